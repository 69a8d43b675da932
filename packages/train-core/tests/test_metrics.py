"""Metrics: one line a step, whatever stopped the run before, and only where someone looks."""

from __future__ import annotations

import errno
import json
import math
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_ranks import PATIENCE_S, python_path
from jumar.schema.errors import Exit, ToolError
from jumar.train_core.recipe import Log, Wandb
from jumar.train_core.run import trackers
from jumar.train_core.run.metrics import Metrics, Rates, cut_after, line_of, read
from jumar.train_core.run.progress import clock, human, words


def steps_of(path: Path) -> list[tuple[int, str]]:
    return [(record["step"], "eval" if "eval_loss" in record else "train") for record in read(path / "metrics.jsonl")]


def run(path: Path | None, start: int, stop: int, **log: Any) -> Metrics:
    """Steps start + 1 to stop, an evaluation every third."""
    with Metrics(path, Log(**log), steps=20) as metrics:
        metrics.start(start)
        for step in range(start + 1, stop + 1):
            metrics.log(step, {"loss": 5 / step, "lr": 1e-4, "tokens_per_s": 12345.0, "mfu": 0.4213})
            if step % 3 == 0:
                metrics.log(step, {"eval_loss": 6 / step, "eval_perplexity": math.exp(6 / step)})
    return metrics


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    run(tmp_path, 0, 7)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # killed in the middle of a line
    run(tmp_path, 3, 5)
    assert steps_of(tmp_path) == [(1, "train"), (2, "train"), (3, "train"), (3, "eval"), (4, "train"), (5, "train")]
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    assert all(json.loads(line) for line in text.splitlines())
    run(tmp_path, 0, 1)  # from the beginning, without a checkpoint
    assert steps_of(tmp_path) == [(1, "train")]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("torn", ['{"step": 2, "lo', '{"step": 2}garbage', "\x00\x00\x00", '{"step"\n[1]\n"x"\n{"loss": 2}', ""])
def test_lines_that_are_not_whole(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n' + torn)
    assert [record["step"] for record in read(path)] == [1]
    cut_after(path, 5)
    assert path.read_text() == '{"step": 1, "loss": 2.0}\n'


def test_a_cut_that_fails_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, 0, 3)
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ToolError, match="No space left"):
        cut_after(tmp_path / "metrics.jsonl", 1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_killed_while_it_writes(tmp_path: Path) -> None:
    """A real process, killed at some moment: what is there are whole lines, and the next run goes on after them."""
    code = f"""
from pathlib import Path
from jumar.train_core.recipe import Log
from jumar.train_core.run.metrics import Metrics
metrics = Metrics(Path({str(tmp_path)!r}), Log(every=1000000), steps=10**9)
metrics.start(0)
for step in range(1, 10**9):
    metrics.log(step, {{"loss": 1.0, "name" * 200: 2.0}})
"""
    process = subprocess.Popen([sys.executable, "-c", code], env=python_path(), stderr=subprocess.DEVNULL)
    end = time.monotonic() + PATIENCE_S
    path = tmp_path / "metrics.jsonl"
    while not (path.is_file() and path.stat().st_size > 100_000) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1].splitlines()
    assert [json.loads(line)["step"] for line in whole] == list(range(1, len(whole) + 1))
    assert len(whole) > 50
    run(tmp_path, 2, 3)
    assert steps_of(tmp_path) == [(1, "train"), (2, "train"), (3, "train"), (3, "eval")]


def test_numbers_that_json_does_not_have() -> None:
    line = line_of(7, {"loss": math.nan, "grad_norm": -math.inf, "tokens": 12})
    assert (
        line == '{"step": 7, "loss": null, "grad_norm": null, "tokens": 12, "nonfinite": {"loss": "nan", "grad_norm": "-inf"}}\n'
    )


def test_tensors_and_what_is_not_known(tmp_path: Path) -> None:
    with Metrics(tmp_path, Log(), steps=2) as metrics:
        metrics.start(0)
        metrics.log(1, {"loss": torch.tensor(1.5), "grad_norm": np.float32(2), "mfu": None, "skipped": False})
    (record,) = read(tmp_path / "metrics.jsonl")
    assert record == {"step": 1, "loss": 1.5, "grad_norm": 2.0, "skipped": False}


def test_a_full_disk_does_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, state = os.write, {"full": False}

    def maybe(handle: int, data: bytes) -> int:
        if state["full"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data[:9] if state.pop("short", False) else data)

    monkeypatch.setattr(os, "write", maybe)
    with Metrics(tmp_path, Log(every=100), steps=9) as metrics:
        metrics.start(0)
        for step in range(1, 9):
            state["full"] = step in (3, 4)
            state["short"] = step == 6
            metrics.log(step, {"loss": 1.0})
    assert [step for step, _ in steps_of(tmp_path)] == [1, 2, 5, 7, 8]
    assert capsys.readouterr().err.count("No space left") == 1


def test_other_ranks_do_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Metrics(tmp_path / "run", Log(), steps=3, rank=1) as metrics:
        metrics.start(0)
        metrics.log(1, {"loss": 1.0})
        metrics.say("warning", "nobody hears")
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


def test_plain_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(None, 0, 20, every=7)
    out, err = capsys.readouterr()
    assert out == ""
    shown = [line.split()[1] for line in err.splitlines() if "eval" not in line]
    assert shown == ["1/20", "7/20", "14/20", "20/20"]
    assert "step 3/20  eval loss 2.0000  perplexity 7.389" in err.splitlines()
    assert "step 7/20  loss 0.7143  lr 0.0001  12.3k tokens/s  MFU 42.1%  00:00:00 left" in err.splitlines()
    run(None, 5, 6, every=100)
    assert "step 6/20" in capsys.readouterr().err  # a resumed run shows soon that it lives


def test_a_bar_on_a_terminal() -> None:
    code = """
from jumar.train_core.recipe import Log
from jumar.train_core.run.metrics import Metrics
with Metrics(None, Log(), steps=30) as metrics:
    metrics.start(10)
    for step in range(11, 31):
        metrics.log(step, {"loss": 1 / step, "tokens_per_s": 5000.0})
        if step == 20:
            metrics.log(step, {"eval_loss": 0.25})
            metrics.say("saved", "step 20 [not markup]")
"""
    master, slave = pty.openpty()
    environment = {**python_path(), "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=slave, stdout=subprocess.PIPE)
    os.close(slave)
    seen = b""
    try:
        while part := os.read(master, 65536):
            seen += part
    except OSError:
        pass  # the other end is closed
    assert process.wait(PATIENCE_S) == 0
    assert process.stdout is not None
    assert process.stdout.read() == b""
    text = seen.decode()
    assert "step 30/30" in text
    assert "loss 0.0333" in text
    assert "eval loss 0.2500" in text
    assert "saved:\x1b[0m step 20 [not markup]" in text  # in one piece, not with the bar between


def test_words() -> None:
    assert [human(n) for n in (0, 999, 999.9, 1234, 56789, 999_600, 12e6, 3e9, 5e12)] == [
        "0", "999", "1k", "1.23k", "56.8k", "1M", "12M", "3G", "5000G",
    ]  # fmt: skip
    assert [clock(s) for s in (0, 61, 3600, 90061)] == ["00:00:00", "00:01:01", "01:00:00", "1 d 01:01:01"]
    assert words({"loss": math.nan, "grad_norm": math.inf, "skipped": 1}) == "loss nan  grad norm inf  skipped"


def test_rates() -> None:
    rates = Rates(flops_per_token=6e9, peak_flops=300e12, devices=2, window=3)
    assert rates.step(1000, 10.0)["tokens_per_s"] == 100  # the first is all there is
    assert rates.step(1000, 1.0)["tokens_per_s"] == 1000  # and is then forgotten
    assert rates.step(1000, 3.0)["tokens_per_s"] == 500
    rates.step(1000, 1.0)
    last = rates.step(2000, 1.0)
    assert last["tokens_per_s"] == 4000 / 5
    assert last["step_time_s"] == 1.0
    assert last["flops_per_s"] == pytest.approx(800 * 6e9)
    assert last["mfu"] == pytest.approx(800 * 6e9 / 600e12)
    assert "mfu" not in Rates(flops_per_token=1.0, peak_flops=None, devices=1).step(1, 1.0)


def test_missing_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    for log, hint in (
        (Log(tensorboard=True), "pip install 'jumar-train-core[tensorboard]'"),
        (Log(wandb=Wandb(project="p")), "pip install 'jumar-train-core[wandb]'"),
        (Log(tensorboard=True, wandb=Wandb(project="p")), "pip install 'jumar-train-core[tensorboard,wandb]'"),
    ):
        with pytest.raises(ToolError, match="not installed") as raised:
            Metrics(None, log, steps=1)
        assert raised.value.hint == hint
        assert raised.value.code is Exit.ENVIRONMENT
    Metrics(None, Log(), steps=1)


def test_tensorboard(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tmp_path, 0, 9, tensorboard=True)
    run(tmp_path, 4, 6, tensorboard=True)
    seen = events.EventAccumulator(str(tmp_path / "tensorboard"))
    seen.Reload()
    assert [event.step for event in seen.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in seen.Scalars("eval/loss")] == [3, 6]
    with pytest.raises(ToolError, match="nowhere to write"):
        run(None, 0, 1, tensorboard=True)


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    with Metrics(
        tmp_path, Log(wandb=Wandb(project="p")), steps=4, about={"recipe": {"path": tmp_path, "list": (1, 2)}}
    ) as metrics:
        metrics.start(0)
        metrics.log(1, {"loss": float("nan")})
    name = (tmp_path / "wandb_id").read_text().strip()
    run(tmp_path, 2, 4, wandb=Wandb(project="p"))
    folders = sorted(folder.name for folder in (tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) >= 1
    assert all(folder.endswith(name) for folder in folders)
