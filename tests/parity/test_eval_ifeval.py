"""IFEval's checks against lm-eval's own, verdict by verdict."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import langdetect
import nltk
import pytest
from punkt.data import english

from eval_files import Maker
from jumar.eval.checks import CHECKS
from jumar.eval.data import find
from jumar.eval.ifeval import loosely, strictly
from jumar.eval.items import How, unit_of
from jumar.eval.journal import samples_of
from jumar.eval.metrics import check, scores
from jumar.eval.requests import Response
from jumar.eval.task import load_task

RELATIONS = ["less than", "at least"]
GIVEN: dict[str, list[dict[str, Any]]] = {
    "keywords:existence": [{"keywords": ["rope", "knot"]}, {"keywords": ["Wall"]}, {"keywords": ["a.b", "river"]}],
    "keywords:frequency": [{"keyword": " rope ", "frequency": n, "relation": r} for n in (1, 2) for r in RELATIONS],
    "keywords:forbidden_words": [{"forbidden_words": ["rope", "rope", "Dr"]}, {"forbidden_words": ["wind"]}],
    "keywords:letter_frequency": [
        {"letter": x, "let_frequency": n, "let_relation": r} for x in "oE" for n in (1, 9) for r in RELATIONS
    ],
    "language:response_language": [{"language": "en"}, {"language": "de"}, {"language": "hi"}, {"language": "bn"}],
    "length_constraints:number_sentences": [{"num_sentences": n, "relation": r} for n in (2, 4, 7) for r in RELATIONS],
    "length_constraints:number_paragraphs": [{"num_paragraphs": n} for n in (1, 2, 3)],
    "length_constraints:number_words": [{"num_words": n, "relation": r} for n in (3, 20, 60) for r in RELATIONS],
    "length_constraints:nth_paragraph_first_word": [
        {"num_paragraphs": n, "nth_paragraph": k, "first_word": w} for n, k in ((1, 1), (2, 1), (2, 2)) for w in ("Rope", "the")
    ],
    "detectable_content:number_placeholders": [{"num_placeholders": n} for n in (1, 2)],
    "detectable_content:postscript": [{"postscript_marker": m} for m in ("P.S.", "P.P.S", " N.B. ")],
    "detectable_format:number_bullet_lists": [{"num_bullets": n} for n in (1, 2, 3)],
    "detectable_format:constrained_response": [{}],
    "detectable_format:number_highlighted_sections": [{"num_highlights": n} for n in (1, 2, 3)],
    "detectable_format:multiple_sections": [
        {"section_spliter": s, "num_sections": n} for s in ("Section", " PART ") for n in (1, 2)
    ],
    "detectable_format:json_format": [{}],
    "detectable_format:title": [{}],
    "combination:two_responses": [{}],
    "combination:repeat_prompt": [{"prompt_to_repeat": "Tie a knot. "}],
    "startend:end_checker": [{"end_phrase": " Any other questions? "}, {"end_phrase": "Rope."}],
    "change_case:capital_word_frequency": [{"capital_frequency": n, "capital_relation": r} for n in (1, 3) for r in RELATIONS],
    "change_case:english_capital": [{}],
    "change_case:english_lowercase": [{}],
    "punctuation:no_comma": [{}],
    "startend:quotation": [{}],
}
PIECES = """
The rope is long. | Dr. Smith of the U.S. Army came at 5 p.m. He left! | rope, rope and Rope | Wow!!! Really?? Yes...
DON'T PANIC NOW | the wind and the river and the snow are cold in the night
THE WIND AND THE RIVER AND THE SNOW ARE COLD | Ist das ein Seil? Das Wetter ist gut. | यह एक रस्सी है।
这是一条绳子。那是一个结。 | [name] and [place] | *high* ground and **higher** ground | ** ** and * *
**** | *** | ****** | \n\n | \n | \n\n\n | \t | * one\n* two | - one\n - two\n* three | *one | P.S. bring a lamp
p. p. s. and a tent | P.P.S | n.b. no | Section 1 knots | Section 2 | PART 1 ropes\nPART 2 walls | SECTION IV
<<Ode to rope>> | << >> | <<a>> <<b | {"rope": [1, 2]} | ```json\n{"a": 1}\n``` | ```\n[1]\n``` | {"rope": 1
My answer is no. | my answer is yes. | Tie a knot. | tie a KNOT. Then rest. | Any other questions?
any other questions?" | " | "quoted" | ' | 'the | "rope, she said | Rope's end | , | 12,000 m | mother-in-law
NASA and EU | I | A.B. C.D. | 3.5 | e.g. this | \u00a0 | \u2028 | İstanbul | ÉTÉ
""".replace("\n", " | ")


@pytest.fixture(scope="module")
def lm_eval(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """lm-eval's own checks; what nltk would download for them is written down as nltk writes it."""
    root = tmp_path_factory.mktemp("nltk_data")
    folder = root / "tokenizers/punkt_tab/english"
    folder.mkdir(parents=True)
    (folder / "abbrev_types.txt").write_text("\n".join(sorted(english.ABBREV_TYPES)))
    (folder / "sent_starters.txt").write_text("\n".join(sorted(english.SENT_STARTERS)))
    (folder / "collocations.tab").write_text("\n".join("\t".join(pair) for pair in sorted(english.COLLOCATIONS)))
    (folder / "ortho_context.tab").write_text("\n".join(f"{word}\t{flags}" for word, flags in english.ORTHO_CONTEXT.items()))
    nltk.data.path.insert(0, str(root))
    langdetect.DetectorFactory.seed = 0  # else lm-eval's verdicts differ from one run to the next
    from lm_eval.tasks.ifeval import utils

    yield utils
    nltk.data.path.remove(str(root))


def answers(count: int, seed: int) -> list[str]:
    """Pieces side by side, so that each check finds something to say yes and no to."""
    draw = random.Random(seed)
    pieces = [piece.replace("\\n", "\n").replace("\\t", "\t") for piece in PIECES.split(" | ")]
    glue = ["", " ", " ", "\n", "\n\n", ". "]
    made = []
    for _ in range(count):
        chosen = draw.choices(pieces, k=draw.randint(1, 7))
        made.append("".join(piece + draw.choice(glue) for piece in chosen))
    return [*pieces, *(f'"{piece}"' for piece in pieces[:9]), *made]


def document(names: list[str], draw: random.Random) -> dict[str, Any]:
    """As the hub has it: every argument of every instruction, most of them nothing."""
    every = {key: None for options in GIVEN.values() for key in options[0]}
    given = [{**every, **draw.choice(GIVEN[name])} for name in names]
    return {"key": 1, "prompt": "Tie a knot.", "instruction_id_list": names, "kwargs": given}


def compared(utils: ModuleType, count: int) -> Counter[tuple[str, str, bool]]:
    """(instruction, level, verdict) -> how often both gave it. count: answers for each instruction, about."""
    assert GIVEN.keys() == CHECKS.keys()
    seen: Counter[tuple[str, str, bool]] = Counter()
    for name, options in GIVEN.items():
        for given in options:
            doc = {"key": 1, "prompt": "Tie a knot.", "instruction_id_list": [name], "kwargs": [given]}
            for answer in random.Random(1).sample(answers(count, seed=len(seen)), k=count // len(options)):
                theirs = utils.process_results(doc, [answer])
                for level, ours in (("strict", strictly(doc, answer)), ("loose", loosely(doc, answer))):
                    assert ours == theirs[f"inst_level_{level}_acc"], (name, given, answer, level)
                    seen[name, level, ours[0]] += 1
    return seen


def test_every_verdict_equals_lm_evals(lm_eval: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    seen = compared(lm_eval, 90)
    assert {(name, level, said) for name in CHECKS for level in ("strict", "loose") for said in (True, False)} == seen.keys()
    with capsys.disabled():
        print(f"\n{sum(seen.values())} verdicts of {len(CHECKS)} instructions equal lm-eval's")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_thousand_verdicts_equal_lm_evals(lm_eval: ModuleType) -> None:
    assert sum(compared(lm_eval, 1100).values()) > 50_000


def test_scores_equal_lm_evals(lm_eval: ModuleType, tmp_path: Path) -> None:
    """Of documents with several instructions, through a file in the published layout, aggregated."""
    draw = random.Random(3)
    docs = [document(draw.sample(list(CHECKS), k=draw.randint(1, 3)), draw) for _ in range(30)]
    make = Maker(tmp_path)
    make.lines("ifeval/input_data.jsonl", docs)
    task = load_task("ifeval")
    (unit,) = [unit_of(task, found, How()) for found in find(task, make.folder)]
    check(unit)
    assert unit.items[0].requests[0].arguments()[1] == {"until": [], "do_sample": False, "max_gen_toks": 1280}
    said = draw.sample(answers(60, seed=4), k=30)
    samples = [samples_of(task, item, [Response(text)])[0] for item, text in zip(unit.items, said, strict=True)]
    theirs = [lm_eval.process_results(doc, [text]) for doc, text in zip(docs, said, strict=True)]
    for ours, expected in zip(samples, theirs, strict=True):
        assert {name: ours[name] for name in expected} == expected
    found = scores(task, {"none": {name: [sample[name] for sample in samples] for name in task.metrics}})
    for level in ("strict", "loose"):
        prompts = [float(row[f"prompt_level_{level}_acc"]) for row in theirs]
        assert found[f"prompt_level_{level}_acc,none"] == sum(prompts) / 30
        assert found[f"prompt_level_{level}_acc_stderr,none"] > 0
        expected = lm_eval.agg_inst_level_acc([row[f"inst_level_{level}_acc"] for row in theirs])
        assert found[f"inst_level_{level}_acc,none"] == expected
        assert found[f"inst_level_{level}_acc_stderr,none"] == "N/A"
