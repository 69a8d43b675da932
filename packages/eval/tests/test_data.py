"""Files to documents, documents to prompts; what does not fit is refused by name."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import yaml

from eval_files import Maker
from jumar.eval.data import documents, find
from jumar.eval.items import How, unit_of
from jumar.eval.listing import lines, listing
from jumar.eval.metrics import METRICS, extract
from jumar.eval.task import METRICS_OF, Extract, load_task, task_files
from jumar.schema.errors import Exit, ToolError


def units(make: Maker, name: str, **how: int) -> list:
    task = load_task(name)
    return [unit_of(task, found, How(**how)) for found in find(task, make.folder)]


def test_every_task_of_ours_is_sound() -> None:
    assert len(task_files()) >= 15
    for name in task_files():
        task = load_task(name)
        assert task.task == name
        assert task.source or name == "perplexity"
    assert {name for names in METRICS_OF.values() for name in names} == set(METRICS)


def test_a_five_shot_prompt(make: Maker) -> None:
    made = make.mmlu("high_school_physics", count=3)
    (unit,) = units(make, "mmlu")
    item, row, shot = unit.items[1], made["test"][1], made["dev"][0]
    assert unit.name == "mmlu_high_school_physics"
    head, prompt = item.requests[0].head, item.requests[0].context
    about = "The following are multiple choice questions (with answers) about high school physics.\n\n"
    first = "\n".join([shot["question"].strip(), *(f"{x}. {c}" for x, c in zip("ABCD", shot["choices"], strict=True))])
    assert head.startswith(f"{about}{first}\nAnswer: {'ABCD'[shot['answer']]}\n\n")
    assert head.count("\nAnswer: ") == 5
    own = "\n".join([row["question"].strip(), *(f"{x}. {c}" for x, c in zip("ABCD", row["choices"], strict=True))])
    assert prompt == f"{head}{own}\nAnswer:"
    assert [r.rest for r in item.requests] == [" A", " B", " C", " D"]
    assert item.target == row["answer"]


def test_the_same_documents_from_other_layouts(make: Maker, tmp_path: Path) -> None:
    """CSV of the authors, JSON lines, and Parquet of the hub."""
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    made = make.mmlu(count=3)
    for kind in ("jsonl", "parquet"):
        other = Maker(tmp_path / kind)
        for split, rows in made.items():
            path = other.lines(f"mmlu/anatomy/{split}.jsonl", rows)
            if kind == "parquet":
                parquet.write_table(pyarrow.Table.from_pylist(rows), path.with_name(f"{split}-00000-of-00001.parquet"))
                path.unlink()
        assert units(other, "mmlu")[0].items == units(make, "mmlu")[0].items


def test_worked_examples_of_big_bench_hard(make: Maker) -> None:
    make.bbh()
    (direct,), (steps,) = units(make, "bbh"), units(make, "bbh_cot")
    prompt = direct.items[0].requests[0].context
    assert prompt.startswith("Say who lies.\n\nQ: ")
    assert prompt.count("?\nA: Yes\n\n") == 2
    assert steps.items[0].requests[0].context.count("So the answer is Yes.\n\n") == 2
    assert steps.items[0].requests[0].context.endswith("\nA: Let's think step by step.\n")
    assert direct.items[0].target in ("Yes", "No")


def test_no_document_is_its_own_example(make: Maker, tmp_path: Path) -> None:
    make.piqa(count=4)
    file = tmp_path / "own.yaml"
    piqa = yaml.safe_load(task_files()["piqa"].read_text())
    file.write_text(yaml.safe_dump(piqa | {"layouts": [{"test": "valid.jsonl"}], "target": "label"}))
    (unit,) = units(make, str(file), shots=3)
    for item in unit.items:
        *shots, question = item.requests[0].context.split("\n\n")
        assert len(shots) == 3
        assert not any(shot.startswith(question) for shot in shots)
    with pytest.raises(ToolError, match="4 worked examples are asked for, and there are 3") as fault:
        units(make, str(file), shots=4)
    assert fault.value.code == Exit.USAGE


def test_worked_examples_that_are_missing_are_not_taken_from_the_documents(make: Maker) -> None:
    make.mmlu("anatomy", count=7)
    (make.folder / "mmlu/dev/anatomy_dev.csv").unlink()
    with pytest.raises(ToolError, match="mmlu_anatomy: no worked examples") as fault:
        units(make, "mmlu")
    assert fault.value.hint == f"expected {make.folder}/mmlu/dev/anatomy_dev.csv, or --shots 0"
    (unit,) = units(make, "mmlu", shots=0)
    assert unit.items[0].requests[0].context.count("Answer:") == 1


def test_missing_data_says_what_is_expected_where(make: Maker) -> None:
    make.piqa()
    with pytest.raises(ToolError, match="no data of mmlu") as fault:
        units(make, "mmlu")
    assert str(make.folder / "mmlu/test/SUBJECT_test.csv") in str(fault.value.hint)
    assert "huggingface.co/datasets/cais/mmlu" in str(fault.value.hint)
    rows = {row["task"]: row for row in listing(make.folder)}
    assert (rows["piqa"]["found"], rows["mmlu"]["found"]) == (True, False)
    with pytest.raises(ToolError, match="there is no directory"):
        find(load_task("mmlu"), make.folder / "nowhere")


@pytest.mark.parametrize(
    "name, path, content, said",
    [
        ("mmlu", "mmlu/test/x_test.csv", "q,a,b,c,d,A\nq,a,b,c,A\n", r"x_test.csv:2: 5 columns, expected 6: question, A, B"),
        ("mmlu", "mmlu/test/x_test.csv", 'q,"a,b\n', r"x_test.csv:1: not CSV"),
        ("boolq", "boolq/dev.jsonl", '{"passage": "p", "question": "q"}\n', "row 1: .*answer.*its columns: passage, question"),
        ("boolq", "boolq/dev.jsonl", '{"passage": "p"\n', r"dev.jsonl:1: not JSON"),
        ("boolq", "boolq/dev.jsonl", "[1]\n", r"dev.jsonl:1: a list, expected an object"),
        ("boolq", "boolq/dev.jsonl", "\n", "holds no rows"),
        ("bbh", "bbh/web.json", '{"canary": ""}', "under 'examples' is no list"),
    ],
)
def test_damaged_files_are_refused(name: str, path: str, content: str, said: str, make: Maker) -> None:
    target = make.folder / path
    target.parent.mkdir(parents=True)
    target.write_text(content)
    if name == "mmlu":
        make.mmlu("x", count=1)
        target.write_text(content)
    with pytest.raises(ToolError, match=said):
        units(make, name)


def test_bytes_that_are_no_text(make: Maker) -> None:
    (make.folder / "boolq").mkdir(parents=True)
    (make.folder / "boolq/dev.jsonl").write_bytes(b'{"passage": "\xff"}\n')
    with pytest.raises(ToolError, match="is not UTF-8"):
        units(make, "boolq")


def test_choices_without_text_and_answers_astray_are_counted(make: Maker) -> None:
    make.mmlu("x", count=2)
    path = make.folder / "mmlu/test/x_test.csv"
    path.write_text('q,a,b,c,,A\nq,a,b,c,d,E\n"two, and\nlines",a,b,c,d,B\n')
    (unit,) = units(make, "mmlu")
    assert [item.target for item in unit.items] == [0, -1, 1]
    assert "\nD. \nAnswer:" in unit.items[0].requests[0].context
    assert [note.split()[0] for note in unit.notes] == ["1", "1"]
    assert "have a choice without text" in unit.notes[0]
    assert "none of their choices" in unit.notes[1]


@pytest.mark.parametrize("choices", [[], None, "yes", {"text": ["yes", "no"]}])
def test_a_document_without_choices_is_refused(choices: object, make: Maker) -> None:
    make.lines("agieval/agieval-sat-math/test.jsonl", [{"query": "a?", "choices": choices, "gold": [0]}])
    with pytest.raises(ToolError, match="agieval_sat-math, document 0: choices are "):
        units(make, "agieval")


def test_a_worked_example_shows_its_right_answer(make: Maker) -> None:
    """Of several the first; one that is none of its choices is refused."""
    rows = [{"query": f"{x}?", "choices": ["one", "two"], "gold": gold} for x, gold in zip("abc", ([0], [1, 0], []), strict=True)]
    make.lines("agieval/agieval-sat-math/test.jsonl", rows)
    (unit,) = units(make, "agieval", shots=1, limit=2)
    assert [item.requests[0].context for item in unit.items] == ["b? two\n\na?", "a? one\n\nb?"]
    with pytest.raises(ToolError, match="document 0: worked example 2 names none of its choices: None"):
        units(make, "agieval", shots=2, limit=1)
    make.mmlu("x", count=1)
    dev = make.folder / "mmlu/dev/x_dev.csv"
    dev.write_text("q,a,b,c,d,A\nq,a,b,c,d,E\n")
    with pytest.raises(ToolError, match="mmlu_x, document 0: worked example 2 names none of its choices: -1"):
        units(make, "mmlu", shots=2)


def test_a_task_of_ones_own(make: Maker, tmp_path: Path) -> None:
    make.lines("quiz.jsonl", [{"ask": "Up?", "options": ["yes", ""], "right": 0}])
    file = tmp_path / "quiz.yaml"
    own = {"task": "quiz", "title": "T", "kind": "choice", "metrics": ["acc"], "layouts": [{"test": "quiz.jsonl"}]}
    file.write_text(json.dumps(own | {"prompt": "{{ ask }}", "choices": "options", "target": "right"}))
    (unit,) = units(make, str(file))
    assert unit.items[0].requests[0].context == "Up?"
    assert unit.notes == ("1 documents have a choice without text; they are asked as they are",)
    for change, said in (
        ({"metric": ["acc"]}, "unknown key metric"),
        ({"metrics": ["exact_match"]}, "no metric of a task of kind choice"),
        ({"choices": []}, "has choices"),
        ({"prompt": "{{ ask"}, "not a Jinja template"),
        ({"target": "wrong"}, "'wrong' is undefined"),
    ):
        file.write_text(json.dumps(own | {"prompt": "{{ ask }}", "choices": "options", "target": "right"} | change))
        with pytest.raises(ToolError, match=said):
            units(make, str(file))
    with pytest.raises(ToolError, match="there is no task 'mmlux'") as fault:
        load_task("mmlux")
    assert "did you mean mmlu?" in str(fault.value.hint)


def test_a_description_is_that_of_each_document(make: Maker, tmp_path: Path) -> None:
    """Of the document before that of its worked example."""
    make.lines("quiz.jsonl", [{"ask": f"ask {x}", "about": f"about {x}"} for x in "abc"])
    own = {"task": "q", "title": "T", "kind": "generate", "metrics": ["exact_match"], "layouts": [{"test": "quiz.jsonl"}]}
    (tmp_path / "quiz.yaml").write_text(json.dumps(own | {"description": "{{ about }}: ", "prompt": "{{ ask }}"}))
    for shots in (0, 1):
        (unit,) = units(make, str(tmp_path / "quiz.yaml"), shots=shots)
        assert [item.requests[0].context[:9] for item in unit.items] == ["about a: ", "about b: ", "about c: "]


def test_templates_reach_nothing(make: Maker, tmp_path: Path) -> None:
    make.lines("quiz.jsonl", [{"ask": "x"}])
    file = tmp_path / "quiz.yaml"
    prompt = "{{ ask.__class__.__mro__ }}"
    own = {"task": "q", "title": "T", "kind": "generate", "metrics": ["exact_match"], "layouts": [{"test": "quiz.jsonl"}]}
    file.write_text(json.dumps(own | {"prompt": prompt}))
    with pytest.raises(ToolError, match="unsafe"):
        units(make, str(file))


@pytest.mark.parametrize(
    "how, text, found",
    [
        ({"find": r"#### (\d+)"}, "so #### 12 and #### 13", "12"),
        ({"find": r"(\$?\d+)|(-\d+)", "take": -1}, "1 then $7", "$7"),
        ({"find": r"#### (\d+)"}, "none", "[invalid]"),
        ({}, " as it is ", " as it is "),
        ({"strip": True}, " as it is ", "as it is"),
    ],
)
def test_what_counts_as_the_answer(how: dict, text: str, found: str) -> None:
    assert extract(Extract(name="x", **how), text) == found


def test_documents_know_their_subject(make: Maker) -> None:
    make.mmlu("moral_disputes", count=1)
    task = load_task("mmlu")
    docs, shots = documents(task, find(task, make.folder)[0])
    assert docs[0]["subject"] == "moral disputes"
    assert len(shots) == 5


def test_answers_of_agieval_that_are_texts(make: Maker, tmp_path: Path) -> None:
    """The authors' files and the hub's ask the same; the sets of choices are another task."""
    rows = [{"passage": None, "question": "1+1?", "options": None, "label": None, "answer": "$2$"}]
    for name in ("math", "gaokao-mathcloze", "sat-math"):
        make.lines(f"AGIEval/data/v1/{name}.jsonl", rows)
    chinese, english = units(make, "agieval_cloze")
    assert [unit.name for unit in (chinese, english)] == ["agieval_cloze_gaokao-mathcloze", "agieval_cloze_math"]
    assert english.items[0].requests[0].context == "Q: 1+1?\nA: The answer is"
    assert chinese.items[0].requests[0].context == "问题：1+1?\n答案："
    for said, score in (("therefore 2.", 1.0), (r"\boxed{\frac42}", 0.0)):
        assert METRICS["same_answer"].of(load_task("agieval_cloze"), english.items[0], [said]) == score
    other = Maker(tmp_path / "hub")
    other.lines("agieval/agieval-math/test.jsonl", [{"query": "Q: 1+1?\nA: The answer is", "answer": "$2$"}])
    assert units(other, "agieval_cloze")[0].items[0].requests == english.items[0].requests


@pytest.mark.parametrize(
    "name, spread", [("gsm8k", "gsm8k/test/a.jsonl"), ("gsm8k", "gsm8k/gsm8k_test.jsonl"), ("piqa", "piqa/valid.jsonl.gz")]
)
def test_other_names_of_the_same_files(name: str, spread: str, make: Maker) -> None:
    make.gsm8k() if name == "gsm8k" else make.piqa()
    (unit,) = units(make, name, shots=0)
    source = make.folder / ("gsm8k/test.jsonl" if name == "gsm8k" else "piqa/valid.jsonl")
    content = source.read_bytes()
    source.unlink()
    target = make.folder / spread
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(gzip.compress(content) if spread.endswith(".gz") else content)
    assert units(make, name, shots=0)[0].items == unit.items


def test_the_list_says_what_is_missing_of_a_task(make: Maker) -> None:
    make.mmlu()
    rows = {row["task"]: row for row in listing(make.folder)}
    assert rows["mmlu"]["worked_examples"] == str(make.folder / "mmlu/dev/anatomy_dev.csv")
    (make.folder / "mmlu/dev/anatomy_dev.csv").unlink()
    found = listing(make.folder)
    assert {row["task"]: row for row in found}["mmlu"]["worked_examples"] is None
    assert sum("worked examples are missing: --shots 0" in line for line in lines(found)) == 1
