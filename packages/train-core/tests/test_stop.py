"""Signals, remembered or not; real ones, in a process of their own where they end it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jumar.train_core.run.stop import Stop
from parents import child_of_a_killed_parent, gone, until


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


DEAF = """
import hashlib, os, sys, threading
from jumar.train_core.run import stop
stop.SOON_S = stop.ORPHAN_S = 1
parent = os.getppid()
with stop.Stop(parent) as one:
    one.holds = sys.argv[1] == "holds"
    threading.Timer(0.5, open, (sys.argv[2], "w")).start()  # from within
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


@pytest.mark.parametrize("number", Stop.SIGNALS)
def test_a_rank_that_waits_in_native_code_and_has_nothing_to_save(tmp_path: Path, number: signal.Signals) -> None:
    """Such as for a store that does not answer."""
    with subprocess.Popen([sys.executable, "-c", DEAF, "nothing", str(tmp_path / "in")]) as process:
        try:
            until((tmp_path / "in").exists)
            process.send_signal(number)
            assert process.wait(timeout=20) == 130
        finally:
            process.kill()


def test_a_rank_that_hangs_without_its_parent(tmp_path: Path) -> None:
    """It hears the SIGTERM in vain, as long as it would for a step or a checkpoint and no longer."""
    words = [sys.executable, "-c", DEAF, "holds", str(tmp_path / "in")]
    with child_of_a_killed_parent(words, (tmp_path / "in").exists) as child:
        until(lambda: gone(child), 20)


def test_a_signal_after_which_there_is_something_to_save_after_all() -> None:
    """It is not held to the few seconds of those that have nothing."""
    text = "import signal, time\nfrom jumar.train_core.run import stop\nstop.SOON_S = 0.5\n"
    text += "with stop.Stop() as one:\n    one.asked = True\n    signal.raise_signal(signal.SIGTERM)\n"
    text += "    time.sleep(0.2)\n    one.holds = True\n    time.sleep(1.5)\n    print('saved')"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "saved\n")
