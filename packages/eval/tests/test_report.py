"""The page of a run: what is on it, that nothing of a sample is markup, what has changed against another run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from jumar.eval.report import report_html, write_report
from jumar.schema.errors import ToolError

HOSTILE = "<img src=x>\u202e</pre>"


def choice(number: int, *, right: bool, prompt: str = "Up or down?", text: str = "up") -> dict[str, Any]:
    """A document that is asked by two choices, the first of which is right."""
    scores = [[-1.0, True], [-2.0, False]] if right else [[-2.0, False], [-1.0, True]]
    arguments = {f"gen_args_{i}": {"arg_0": prompt, "arg_1": c} for i, c in enumerate((text, "down"))}
    asked = {"doc_id": number, "doc": {"q": prompt}, "target": "0", "arguments": arguments, "resps": [[s] for s in scores]}
    read = {"filtered_resps": scores, "filter": "none", "metrics": ["acc"], "acc": float(right)}
    return {**asked, **read, "doc_hash": str(number), "prompt_hash": "p"}


def said(number: int, answer: str, way: str, read: str) -> dict[str, Any]:
    """A document that is answered by a text, wrongly."""
    asked = {"doc_id": number, "doc": {}, "target": "42", "arguments": {"gen_args_0": {"arg_0": "How many?", "arg_1": {}}}}
    return {
        **asked, "resps": [[answer]], "filtered_resps": [read], "filter": way, "metrics": ["exact_match"], "exact_match": 0.0,
        "doc_hash": str(number), "prompt_hash": "p",
    }  # fmt: skip


SCORES = {
    "exam_ropes": {"acc,none": 0.75, "acc_stderr,none": 0.25},
    "exam_knots": {"acc,none": 0.25, "acc_stderr,none": 0.25},
    "exam": {"acc,none": 0.5, "acc_stderr,none": 0.1},
    "texts": {"bits_per_byte,none": 1.25, "bits_per_byte_stderr,none": "N/A"},
}
FOUND: dict[str, Any] = {
    "results": SCORES,
    "group_subtasks": {"exam": ["exam_ropes", "exam_knots"], "exam_ropes": [], "exam_knots": [], "texts": []},
    "n-shot": {"exam_ropes": 5, "exam_knots": 5, "texts": 0},
    "n-samples": {name: {"original": 9, "effective": 4} for name in ("exam_ropes", "exam_knots", "texts")},
    "config": {"model": "hf", "protocol": "lm-eval", "device": "cpu", "limit": None},
    "model_name": "climber",
    "jumar_eval_version": "0.1.0",
}


def written(out: Path, samples: list[dict[str, Any]], name: str = "exam_ropes", **found: Any) -> Path:
    out.mkdir()
    (out / "results.json").write_text(json.dumps({**FOUND, **found}))
    (out / f"samples_{name}.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return out


def text_of(page: str) -> str:
    """What one reads, a line a piece."""
    return re.sub(r"\s*\n\s*", "\n", re.sub("<[^>]+>", "\n", page[page.index("<body>") :]))


def test_what_one_looks_at_first() -> None:
    page = report_html(FOUND, {})
    head = text_of(page).split("\nScores\n")[0]
    for wanted in (
        "climber",
        "jumar-eval 0.1.0",
        "12 documents of 2 tasks, asked as lm-eval asks, on cpu.",
        "0.5000",
        "± 0.1000",
    ):
        assert wanted in head
    assert head.index("exam") < head.index("texts")
    assert page == report_html(FOUND, {})
    bars = re.findall(r'role="img" aria-label="([^"]*)"', page)
    assert bars == ["exam: 0.5000", "exam_ropes: 0.7500", "exam_knots: 0.2500"]  # what is no share has none
    assert 'x1="50.00%" x2="50.00%"' in page  # the mean across the subjects
    assert "4 scores" in page
    assert "limit" not in text_of(page).split("\nSettings\n")[1]


def test_errors_are_read_one_by_one(tmp_path: Path) -> None:
    long = "".join(f"Worked example {i}: up.\n\n" for i in range(40)) + "Up or down?"
    samples = [choice(0, right=True), choice(1, right=False, prompt=long), choice(2, right=False, text="uphill")]
    page = write_report(written(tmp_path / "out", samples), 1)[0].read_text()
    errors = text_of(page).split("\nErrors\n")[1].split("\nAll numbers\n")[0]
    assert "2 of 3 answers are wrong." in errors
    assert "the first 1 documents are here" in errors
    assert "document 1\n948 characters before\n" in errors
    assert "uphill" not in errors
    assert '<tr class="right "><td>up</td><td>-2.000</td>' in page
    assert '<tr class="chosen"><td>down</td><td>-1.000</td>' in page
    assert '<details class="errors" open>' in page


def test_the_readings_of_one_answer_are_together() -> None:
    samples = [said(0, "it is 41", "strict", "[invalid]"), said(0, "it is 41", "loose", "41")]
    page = report_html(FOUND, {"texts": samples})
    errors = text_of(page).split("\nErrors\n")[1]
    assert errors.count("How many?") == 1
    for wanted in ("strict, loose", "[invalid]", "41", "expected\n42"):
        assert wanted in errors


def test_nothing_of_a_sample_is_markup() -> None:
    sample = choice(0, right=False, prompt=HOSTILE, text=HOSTILE)
    found = {**FOUND, "model_name": HOSTILE, "config": {"model": HOSTILE, "protocol": HOSTILE, "device": HOSTILE}}
    found |= {"results": {HOSTILE: {"acc,none": 0.5}}, "group_subtasks": {}, "n-samples": {}}
    page = report_html(found, {HOSTILE: [sample, said(1, HOSTILE, HOSTILE, HOSTILE)]})
    assert page.count("&lt;img src=x&gt;\\u202e&lt;/pre&gt;") >= 8
    for outside in ("<img", "<script", "http://", "https://", "url(", "\u202e"):
        assert outside not in page


def test_what_has_changed_against_another_run(tmp_path: Path) -> None:
    rights = ([True, False, False, False, True], [True, True, True, False, True])
    before, after = (
        written(tmp_path / name, [choice(i, right=right) for i, right in enumerate(row)])
        for name, row in zip(("before", "after"), rights, strict=True)
    )
    page = write_report(after, against=before)[0].read_text()
    changes = text_of(page).split(f"\nCompared with {before.name}\n")[1].split("\nErrors\n")[0]
    for wanted in ("exam_ropes\nacc", "0.4000 → 0.8000", "+0.4000", "± 0.2449 p 0.500", "better: 2, worse: 0, of 5 documents"):
        assert wanted in changes
    assert "document 1\nthe same prompt\nchoice 1, by 1.000\n→\nchoice 0, by 1.000\n, right is\n0" in changes
    assert 'class="fill-main half" x="50.00%"' in page
    assert f"Compared with {after.name}<" in write_report(before, against=after)[0].read_text()
    (tmp_path / "link").symlink_to(tmp_path)
    by_link = (tmp_path / "link" / before.name, before / ".." / after.name), (before, tmp_path / "link" / after.name)
    for spelled, other in by_link:
        assert write_report(spelled, against=other)[1], "it was there"
    assert 'class="fill-bad half"' in (before / "report.html").read_text()
    same = text_of(write_report(after, against=after)[0].read_text()).split("\nCompared with")[1]
    assert "unchanged: 1" in same
    results = {"another": {"acc,none": 1.0}}
    other = written(tmp_path / "other", [choice(0, right=True)], "another", results=results, group_subtasks={})
    with pytest.raises(ToolError, match=r"samples_exam_knots.jsonl is missing"):
        write_report(after, against=other)
