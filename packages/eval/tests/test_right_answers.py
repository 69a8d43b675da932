"""Right answers that are none, values that are null, subjects that are not there: told, never taken for something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eval_files import Maker
from jumar.eval.data import absent, find
from jumar.eval.items import How, Unit, unit_of
from jumar.eval.task import load_task
from jumar.schema.errors import Exit, ToolError


def unit(name: str, data: Path) -> Unit:
    task = load_task(name)
    return unit_of(task, find(task, data)[0], How(shots=0))


@pytest.mark.parametrize("answer", ["yes", None, "A", 2])
def test_boolq_takes_true_and_false_alone(answer: Any, tmp_path: Path) -> None:
    rows = [{"passage": "p", "question": "q", "answer": given} for given in (True, "false", answer)]
    Maker(tmp_path).lines("boolq/dev.jsonl", rows)
    found = unit("boolq", tmp_path)
    assert [item.target for item in found.items] == [1, 0, -1]
    assert "1 documents name as the right answer none of their choices" in found.notes[0]


@pytest.mark.parametrize("label", ["", None, "x"])
def test_scenes_without_a_label_are_counted(label: Any, tmp_path: Path) -> None:
    make = Maker(tmp_path)
    make.lines("hellaswag/hellaswag_val.jsonl", [*make.hellaswag()[:1], {**make.hellaswag()[0], "label": label}])
    found = unit("hellaswag", tmp_path)
    assert found.items[0].target in range(4)
    assert found.items[1].target == -1
    assert found.notes


@pytest.mark.parametrize("key", ["E", "", None, 1])
def test_keys_that_are_no_label_are_counted(key: Any, tmp_path: Path) -> None:
    """lm-eval ends there: ValueError: 'E' is not in list."""
    make = Maker(tmp_path)
    labelled = {"text": ["up", "down"], "label": ["A", "B"]}
    for name, column in (("ARC-Challenge", "question"), ("openbookqa", "question_stem")):
        make.lines(f"{name}/test.jsonl", [{column: "q", "choices": labelled, "answerKey": given} for given in ("B", key)])
    published = [{"text": text, "label": label} for text, label in zip(*labelled.values(), strict=True)]
    rows = [{"question": {"stem": "q", "choices": published}, "answerKey": given} for given in ("B", key)]
    make.lines("ARC-Easy/ARC-Easy-Test.jsonl", rows)
    for name in ("arc_challenge", "openbookqa", "arc_easy"):
        found = unit(name, tmp_path)
        assert [item.target for item in found.items] == [1, -1]
        assert "1 documents name as the right answer none of their choices; they count as answered wrongly" in found.notes


@pytest.mark.parametrize("gold, counted", [([], True), ([7], True), ([0, 7], False), ([1], False)])
def test_lists_of_right_answers(gold: list[int], counted: bool, tmp_path: Path) -> None:
    Maker(tmp_path).lines("agieval/agieval-sat-math/test.jsonl", [{"query": "q", "choices": ["(A)a", "(B)b"], "gold": gold}])
    found = unit("agieval", tmp_path)
    assert (found.items[0].target == -1) is counted
    assert bool(found.notes) is counted


@pytest.mark.parametrize("row", [{"question": "q", "answer": None}, {"question": None, "answer": "#### 1"}])
def test_nothing_is_asked_or_expected_of_null(row: dict[str, Any], tmp_path: Path) -> None:
    Maker(tmp_path).lines("gsm8k/test.jsonl", [row])
    with pytest.raises(ToolError, match=r"gsm8k, document 0: .*(names no right answer|a value is null)") as fault:
        unit("gsm8k", tmp_path)
    assert fault.value.code == Exit.INPUT


def test_subjects_that_are_not_there(tmp_path: Path) -> None:
    Maker(tmp_path).mmlu("anatomy")
    task = load_task("mmlu")
    missing = absent(task, find(task, tmp_path))
    assert len(missing) == 56
    assert "anatomy" not in missing
