"""Signals, remembered or not; real ones, in a process of their own where they end it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jumar.train_core.run.stop import Stop, die_with_parent


@pytest.mark.parametrize("number", Stop.SIGNALS)
def test_a_signal_is_remembered_once_there_is_something_to_save(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Stop() as stop:
        stop.holds = True
        assert not stop.asked
        os.kill(os.getpid(), number)
        assert stop.asked
        assert stop.signal == number
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", Stop.SIGNALS)
def test_before_that_it_ends_what_is_done(number: signal.Signals) -> None:
    with Stop() as stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        other = signal.SIGTERM if number != signal.SIGTERM else signal.SIGUSR1
        os.kill(os.getpid(), other)  # on the way out
        assert stop.asked


HARD = """
import os, signal
from jumar.train_core.run.stop import Stop
with Stop() as stop:
    stop.holds = True
    for number in (%s):
        os.kill(os.getpid(), number)
    print("still here")
"""


LONG = """
import hashlib
from jumar.train_core.run.stop import Stop
with Stop() as stop:
    stop.holds = True
    print("in", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


def ended(*numbers: signal.Signals) -> tuple[int, str]:
    text = HARD % "".join(f"{int(number)}, " for number in numbers)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_a_second_ctrl_c_in_one_long_operation() -> None:
    """Python runs no handler before it returns."""
    with subprocess.Popen([sys.executable, "-c", LONG], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        for _ in range(2):
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=20) == 130
        finally:
            process.kill()


def test_a_second_ctrl_c_ends_the_process() -> None:
    assert ended(signal.SIGINT, signal.SIGINT) == (130, "")
    assert ended(signal.SIGTERM, signal.SIGTERM, signal.SIGINT) == (0, "still here\n")


def test_the_last_word_is_not_cut_short() -> None:
    """Nor by the command around the run, which gives signals back as they were."""
    text = "import os, signal\nfrom jumar.train_core.run.stop import Stop, interruptible\n"
    text += "with interruptible(), Stop() as stop: stop.last_word()\n"
    text += "os.kill(os.getpid(), signal.SIGTERM)\nprint('said')"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "said\n")


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    child = "import signal, time\nfrom jumar.train_core.run.stop import die_with_parent\ndie_with_parent(signal.SIGTERM)\n"
    child += f"open({str(tmp_path / 'ready')!r}, 'w').close()\ntime.sleep(60)"
    parent = f"import subprocess, sys, time\np = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
    parent += "print(p.pid, flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        _until(lambda: (tmp_path / "ready").exists())
        process.kill()
    _until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1])


def _until(there: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not there():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)


def test_nothing_happens_while_the_parent_lives() -> None:
    die_with_parent(signal.SIGTERM)
    die_with_parent(signal.Signals.SIGURG)  # taken back: a signal that is ignored
