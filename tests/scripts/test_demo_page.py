"""The page of the demo says what the run has come to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUESTION = {"doc_id": 0, "doc": {"instruction": "Why?"}, "resps": [["So."]]}


def demo(folder: Path, losses: list[float], manner: float) -> str:
    """The page of a run with these losses, whose answers had the manner 0 before and `manner` after."""
    for name in ("sft", "data", "eval-before", "eval-after"):
        (folder / name).mkdir()
    (folder / "commands.tsv").write_text("3\tjumar-eval run\n0\tjumar-eval run\n")
    (folder / "sft/metrics.jsonl").write_text("".join(json.dumps({"loss": loss}) + "\n" for loss in losses))
    (folder / "sft/loss.svg").write_text("<svg></svg>")
    report = {"records": {"kept": 2, "read": 2}, "tokens": {"total": 9, "trained": 3}, "packing": {"samples": 1, "efficiency": 1}}
    (folder / "data/short-answers.report.json").write_text(json.dumps(report))
    for name, score in (("eval-before", 0.0), ("eval-after", manner)):
        (folder / name / "results.json").write_text(json.dumps({"results": {"manner": {"exact_match,two-lines": score}}}))
        (folder / name / "samples_manner.jsonl").write_text(json.dumps(QUESTION) + "\n")
    subprocess.run([sys.executable, ROOT / "examples/demo/page.py", folder], check=True, stdout=subprocess.DEVNULL)
    return (folder / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("losses", "manner", "title", "loss"),
    [
        ([3.06, 3.28], 0.0, "A short run: two steps, nothing is learnt", "The loss"),
        ([3.0, 2.0, 1.0], 0.8, "A model that learnt to answer in two lines", "How the loss fell"),
        ([3.0, 2.0, 3.1], 0.0, "A model before and after tuning", "The loss"),
    ],
)
def test_titles(losses: list[float], manner: float, title: str, loss: str, tmp_path: Path) -> None:
    page = demo(tmp_path, losses, manner)
    assert f"<h1>{title}</h1>" in page
    assert f"<h2>{loss}</h2>" in page
    assert "<small>3 s</small>" in page
