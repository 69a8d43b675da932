"""Signals: a run that is told to stop says so, leaves nothing half done, and can go on."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

import failing
from failing import contents, huggingface, ok, python, refused, run, started
from stopping import AT_ONCE, lines, resume

pytestmark = pytest.mark.matrix

SLOW = (
    AT_ONCE
    + """
import time
at_once = execute.Executor._write
def slow(self, *args):
    time.sleep(0.02)
    at_once(self, *args)
execute.Executor._write = slow
"""
)


@pytest.mark.parametrize("direction", ["to-megatron", "to-hf"])
@pytest.mark.parametrize("times", [1, 3])
def test_interrupted(direction: str, times: int, llama: Path, sharded: Path, tmp_path: Path) -> None:
    """Ctrl-C, and Ctrl-C of somebody impatient: 130, no traceback, and the run can go on."""
    dst = tmp_path / "out"
    source, layout = (llama, ["--tp", 2, "--pp", 2]) if direction == "to-megatron" else (sharded, [])
    running = started(python(SLOW, direction, source, dst, *layout))
    failing.wait_for(lambda: lines(dst) > 5)
    for _ in range(times):
        running.process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    result = running.wait()
    assert result.code == 130, str(result)
    assert "Traceback" not in result.err, str(result)
    assert "stopped" in result.err
    assert result.out == ""
    assert not dst.exists()
    refused(run(direction, source, dst, *layout), 3, "holds a run that was stopped")
    ok(run(direction, source, dst, *layout, "--resume"))
    assert contents(dst) == contents(sharded if direction == "to-megatron" else huggingface(tmp_path / "like", sharded))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_told_to_stop(number: signal.Signals, llama: Path, sharded: Path, tmp_path: Path) -> None:
    dst = tmp_path / "out"
    running = started(python(SLOW, "to-megatron", llama, dst, "--tp", 2, "--pp", 2))
    failing.wait_for(lambda: lines(dst) > 5)
    running.process.send_signal(number)
    assert running.wait().code in (-number, 128 + number)
    ok(resume(llama, dst))
    assert contents(dst) == contents(sharded)


def test_interrupted_while_it_verifies(llama: Path, sharded: Path) -> None:
    slow: Any = "import time, jumar.ckpt_convert.verification as v\nold = v._compare\n"
    slow += "v._compare = lambda *args: (time.sleep(0.2), old(*args))[1]\n"
    slow += "print('begun', flush=True)"
    running = started(python(slow, "verify", llama, sharded))
    assert running.process.stdout is not None
    assert running.process.stdout.readline() == "begun\n"
    time.sleep(1)
    running.process.send_signal(signal.SIGINT)
    result = running.wait()
    assert result.code == 130, str(result)
    assert "Traceback" not in result.err, str(result)
