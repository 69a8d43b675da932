"""Needles are where they are said to be, in prompts as long as they are said to be; samples hold a long text once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval_files import Maker
from jumar.eval.data import find
from jumar.eval.items import How, Unit, unit_of
from jumar.eval.journal import samples_of
from jumar.eval.local import LocalModel, Opening
from jumar.eval.report import report_html, write_report
from jumar.eval.requests import Response
from jumar.eval.run import Settings, evaluate
from jumar.eval.task import load_task, task_files
from jumar.schema.errors import Exit, ToolError

TASKS = ("needle", "needle_several", "needle_zh", "needle_several_zh")


def texts(make: Maker) -> None:
    for name, sentences, ends in (("en", 900, ". "), ("zh", 900, "。")):
        path = make.folder / f"needle/{name}/text.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        words = (make.words(4, 9) if name == "en" else "绳子与雪山之间的路很长" * 2 for _ in range(sentences))
        path.write_text("".join(word + ends for word in words), encoding="utf-8")


def unit_in(make: Maker, name: str, **how: Any) -> Unit:
    task = load_task(name)
    (found,) = find(task, make.folder)
    return unit_of(task, found, How(**how))


def own(make: Maker, **changes: Any) -> str:
    """`needle` with other lengths and depths, or others of its keys."""
    loaded = yaml.safe_load(task_files()["needle"].read_text())
    loaded["haystack"] |= changes.pop("haystack", {})
    path = make.folder / "own.yaml"
    path.write_text(yaml.safe_dump(loaded | changes))
    return str(path)


@pytest.mark.parametrize("name", TASKS)
def test_needles_lie_at_their_depth(name: str, make: Maker) -> None:
    texts(make)
    unit = unit_in(make, name)
    at_once = 3 if "several" in name else 1
    assert {item.doc["length"] for item in unit.items} == {1000, 2000, 4000, 8000, 16000}
    assert len({item.doc["keywords"][0] for item in unit.items}) == len(unit.items) == 55
    for item in unit.items:
        prompt, doc = item.requests[0].context, item.doc
        hay = prompt.split("\n\n")[1]
        assert (len(doc["needles"]), doc["unit"]) == (at_once, "characters")
        assert 0 < doc["length"] - len(prompt) - unit.task.max_new_tokens < 80
        assert all(question in prompt[-300:] for question in re.findall(r"[^?？]+[?？]", doc["question"]))
        for needle, depth, keyword in zip(doc["needles"], doc["depths"], doc["keywords"], strict=True):
            assert hay.count(needle) == 1
            assert prompt.count(keyword) == 1
            before = hay.index(needle)
            rest = len(hay) - len(needle) * at_once
            assert before - sum(len(n) for n in doc["needles"] if hay.index(n) < before) == pytest.approx(
                rest * depth / 100, abs=70
            )
            if before:
                assert hay[before - 1] in " 。."
    assert unit_in(make, name) == unit
    assert [note for note in unit.notes if "left out" in note][-1].startswith("length 128000 is left out: the texts have ")
    assert unit.notes[0] == "lengths are in characters: an endpoint does not give its tokenizer"


def test_lengths_are_the_models_tokens(hf: Path, make: Maker) -> None:
    texts(make)
    model = LocalModel(hf, Opening(device="cpu", cache_tokens=4096))
    unit = unit_in(make, "needle", measure=model.measure())
    assert {(item.doc["length"], item.doc["unit"]) for item in unit.items} == {(1000, "tokens")}
    assert unit.notes[0] == "length 2000 is left out: the model's context is 1600"
    for item in unit.items:
        assert 900 < len(model.engine.encode(item.requests[0].context)) + unit.task.max_new_tokens <= 1000


def test_a_run_holds_each_text_once_and_shows_depth_and_length(hf: Path, make: Maker, tmp_path: Path) -> None:
    texts(make)
    task = own(make, haystack={"lengths": [400, 600], "depths": [0, 50, 100]}, max_new_tokens=8)
    settings = Settings(tasks=(task,), data=make.folder, out=tmp_path / "out")
    found = evaluate(lambda: LocalModel(hf, Opening(device="cpu", cache_tokens=4096)), settings)
    assert found["n-samples"]["needle"] == {"original": 6, "effective": 6}
    samples = [json.loads(line) for line in (tmp_path / "out/samples_needle.jsonl").open()]
    for sample in samples:
        prompt = sample["arguments"]["gen_args_0"]["arg_0"]
        assert json.dumps(sample).count(json.dumps(prompt.split("\n\n")[1][:60])[1:-1]) == 1
    assert '<th>100%</th><td style="--v: 0.00">0.00</td>' in write_report(tmp_path / "out")[0].read_text()


def test_the_share_of_needles_found_is_shown_at_depth_and_length(make: Maker) -> None:
    texts(make)
    unit = unit_in(make, "needle_several")
    samples = []
    for item in unit.items:
        said = " ".join(item.doc["keywords"][: 2 if item.doc["length"] == 1000 else 3])
        samples += samples_of(unit.task, item, [Response(f"They are {said}.")])
    page = report_html({"results": {}, "n-shot": {}, "group_subtasks": {}, "config": {}}, {"needle_several": samples})
    row = "".join(f'<td style="--v: {v:.2f}">{v:.2f}</td>' for v in (2 / 3, 1, 1, 1, 1))
    for depth in (0, 50, 100):
        assert f"<th>{depth}%</th>{row}</tr>" in page
    assert "in characters" in page


def test_needles_of_needlebench(make: Maker) -> None:
    make.lines("NeedleBench/PaulGrahamEssays.jsonl", [{"text": make.words(200, 300) + "."} for _ in range(9)])
    rows = [
        {"language": x, "needle": f"{x} {i} hid the {thing}.", "retrieval_question": f"What hid {x} {i}?", "arg2": thing}
        for x in ("English", "Chinese")
        for i, thing in enumerate(("zeppelin", "oboe", "quilt", "oboe"))
    ]
    make.lines("NeedleBench/needles.jsonl", rows)
    unit = unit_in(make, "needle_several")
    for item in unit.items:
        assert sorted(item.doc["keywords"]) == ["oboe", "quilt", "zeppelin"]
        assert all("English" in needle for needle in item.doc["needles"])
        assert "What hid English 0?" in item.requests[0].context
    make.lines("NeedleBench/needles.jsonl", rows[:2])
    with pytest.raises(ToolError, match=r"needles.jsonl: 2 needles in English, expected 3"):
        unit_in(make, "needle_several")
    make.lines("NeedleBench/needles.jsonl", [{"language": "English", "needle": "x"}])
    with pytest.raises(ToolError, match=r"needles.jsonl: row 1: no column 'retrieval_question'"):
        unit_in(make, "needle")


def test_what_cannot_be_hidden_is_refused(make: Maker) -> None:
    (make.folder / "needle").mkdir(parents=True)
    text = make.folder / "needle/text.txt"
    text.write_text("A short text.")
    with pytest.raises(ToolError, match=r"needle: no length fits: .*length 1000 is left out: the texts have 13 characters"):
        unit_in(make, "needle")
    text.write_text(f"{make.words(900, 900)}. " * 3)
    with pytest.raises(ToolError, match="a prompt of 150 characters has no room for text"):
        unit_in(make, own(make, haystack={"lengths": [150]}))
    text.write_text(unit_in(make, "needle").items[0].requests[0].context.split("\n\n")[1] * 40)
    with pytest.raises(ToolError, match="the texts hold what is to be found: '"):
        unit_in(make, "needle")
    with pytest.raises(ToolError, match="has no worked examples") as fault:
        unit_in(make, "needle", shots=1)
    assert fault.value.code == Exit.USAGE
