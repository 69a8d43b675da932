"""Instructions that a program checks; documents that cannot be checked are refused before a model runs."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from eval_files import Maker
from jumar.eval import language
from jumar.eval.checks import CHECKS, check_of
from jumar.eval.data import find
from jumar.eval.items import How, Item, unit_of
from jumar.eval.journal import samples_of
from jumar.eval.metrics import check
from jumar.eval.report import report_html
from jumar.eval.requests import Request, Response
from jumar.eval.task import load_task
from jumar.schema.errors import Exit, ToolError

pytest.importorskip("langdetect")
pytest.importorskip("punkt")
ENGLISH = "the wind and the river and the snow are cold in the night"
# instruction, its arguments, an answer that follows it, one that does not
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["rope", "knot"]}, "A Rope, knotted.", "A rope."),
    ("keywords:frequency", {"keyword": "rope", "frequency": 2, "relation": "at least"}, "Rope on rope.", "A rope."),
    ("keywords:forbidden_words", {"forbidden_words": ["rope"]}, "Two ropes.", "A Rope."),
    ("keywords:letter_frequency", {"letter": "O", "let_frequency": 2, "let_relation": "less than"}, "go", "Oslo"),
    ("language:response_language", {"language": "de"}, "Das ist ein Seil, und das Wetter ist gut.", ENGLISH),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "less than"},
        "Dr. A of the U.S. came. Go!",
        "Go. Come! Stay.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb\n***", "a\n***\n***\nb"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "mother-in-law", "mother in"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Rope"},
        "a\n\n'rope's end",
        "rope\n\na",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b]", "[a [b]"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "a\np. p. s. b", "P.S. b"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n - b", "* a\n**b**"),
    ("detectable_format:constrained_response", {}, "So: My answer is no.", "my answer is no."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* *b*", "*a* * *"),
    ("detectable_format:multiple_sections", {"section_spliter": "Part", "num_sections": 2}, "Part 1 a Part 2", "Part I a Part 2"),
    ("detectable_format:json_format", {}, "```json\n[1]\n```", "[1"),
    ("detectable_format:title", {}, "<<a>>", "<< >>"),
    ("combination:two_responses", {}, "a ****** b", "a ****** a"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Tie a knot."}, "tie a KNOT. Done.", "Well: tie a knot."),
    ("startend:end_checker", {"end_phrase": "Done."}, 'It is done."', "Done. No."),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "NASA and EU", "NASA-EU"),
    ("change_case:english_capital", {}, ENGLISH.upper(), "DAS IST EIN SEIL UND DAS WETTER IST GUT"),
    ("change_case:english_lowercase", {}, ENGLISH, ENGLISH.title()),
    ("punctuation:no_comma", {}, "a; b", "a, b"),
    ("startend:quotation", {}, ' "a" ', '"'),
]


def test_every_instruction_has_a_case() -> None:
    assert [name for name, *_ in CASES] == list(CHECKS)


@pytest.mark.parametrize("name, given, follows, fails", CASES, ids=[name for name, *_ in CASES])
def test_instructions(name: str, given: dict[str, Any], follows: str, fails: str) -> None:
    followed = check_of(name, given)
    assert (followed(follows), followed(fails)) == (True, False)


def test_a_letter_that_is_none_is_counted_as_it_is() -> None:
    """The published file asks for '#'; lm-eval counts a letter that it draws instead."""
    four = check_of("keywords:letter_frequency", {"letter": "#", "let_frequency": 4, "let_relation": "at least"})
    assert (four("#a #b #c #d"), four("#a #b #c d")) == (True, False)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"instruction_id_list": ["keywords:exist"]}, "there is no instruction 'keywords:exist'"),
        ({"kwargs": [{"keywords": ["a"], "letter": "b"}]}, "unexpected keyword argument 'letter'"),
        ({"kwargs": [{"keywords": []}]}, "missing 1 required keyword-only argument: 'keywords'"),
        ({"kwargs": [{"keywords": ["("]}]}, "unterminated subpattern"),
        ({"kwargs": []}, "two lists of the same length"),
        ({"instruction_id_list": None}, "two lists of the same length"),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": 3, "relation": "exactly"}],
            },
            "relation 'exactly' is none of",
        ),
        (
            {
                "instruction_id_list": ["length_constraints:nth_paragraph_first_word"],
                "kwargs": [{"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"}],
            },
            "paragraph 3 is none of 2",
        ),
    ],
)
def test_documents_that_cannot_be_checked_are_refused(change: dict, said: str, make: Maker) -> None:
    sound = {"key": 1, "prompt": "Go.", "instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["a"]}]}
    make.lines("ifeval/ifeval_input_data.jsonl", [sound, sound | change])
    task = load_task("ifeval")
    (unit,) = [unit_of(task, found, How()) for found in find(task, make.folder)]
    with pytest.raises(ToolError, match=f"ifeval, document 1: .*{said}"):
        check(unit)


@pytest.mark.parametrize(
    "name, missing", [("language:response_language", "langdetect"), ("length_constraints:number_sentences", "punkt")]
)
def test_a_missing_library_is_named_before_a_model_runs(name: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for cached in (language.language_of, language.sentences):
        cached.cache_clear()
    for module in [m for m in sys.modules if m == missing or m.startswith(missing + ".")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ToolError, match=f"needs {missing}") as fault:
        check_of(name, next(given for case, given, *_ in CASES if case == name))
    assert fault.value.code == Exit.ENVIRONMENT
    assert fault.value.hint == 'pip install "jumar-eval[ifeval]"'


def test_the_report_shows_which_instruction_was_not_followed() -> None:
    task = load_task("ifeval")
    names = ["punctuation:no_comma", "keywords:existence"]
    doc = {"prompt": "Go.", "instruction_id_list": names, "kwargs": [{}, {"keywords": ["<rope>"], "letter": None}]}
    (sample,) = samples_of(task, Item(0, doc, 0, (), (Request("generate", "Go."),)), [Response("*up, up*\nthe <rope>")])
    assert (sample["inst_level_strict_acc"], sample["inst_level_loose_acc"]) == ([False, True], [True, True])
    found = {"results": {"ifeval": {}}, "n-shot": {}, "group_subtasks": {}, "config": {}}
    page = report_html(found, {"ifeval": [sample]})
    assert "ifeval <small>1 of 1 answers are wrong</small>" in page
    assert "<td>punctuation:no_comma</td><td></td><td>no</td><td>yes</td>" in page
    assert "<td>keywords:existence</td><td>keywords: [&quot;&lt;rope&gt;&quot;]</td><td>yes</td><td>yes</td>" in page
