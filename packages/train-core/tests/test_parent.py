"""Who ends when the process that started it ends; real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jumar.train_core.parent import die_with_parent
from parents import child_of_a_killed_parent, gone, until

CHILD = """
import os, signal, sys, time
from jumar.train_core.parent import die_with_parent
die_with_parent(signal.Signals(int(sys.argv[1])), os.getppid())
open(sys.argv[2], "w").close()
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_child_ends_with_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    words = [sys.executable, "-c", CHILD, str(int(number)), str(tmp_path / "ready")]
    with child_of_a_killed_parent(words, (tmp_path / "ready").exists) as child:
        until(lambda: gone(child), 20)


def test_a_child_whose_parent_has_ended_before_it_could_ask() -> None:
    text = f"import signal\nfrom jumar.train_core.parent import die_with_parent\ndie_with_parent(signal.SIGKILL, {os.getppid()})"
    done = subprocess.run([sys.executable, "-c", text], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("module", ["torchrun", "converter"])
def test_programs_of_ours_whose_parent_has_ended(module: str, tmp_path: Path) -> None:
    """The launcher's torchrun, and the converter beside a training: before they do anything."""
    words = [sys.executable, "-m", f"jumar.train_core.{module}", str(os.getppid()), str(tmp_path / "failures"), "1", "this"]
    done = subprocess.run(words, env=os.environ | {"PET_NNODES": "1"}, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL


def test_nothing_happens_while_the_parent_lives() -> None:
    die_with_parent(signal.SIGTERM, os.getppid())
    die_with_parent(signal.Signals.SIGURG, os.getppid())  # taken back: a signal that is ignored
