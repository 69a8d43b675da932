"""Processes whose parents are killed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import psutil

PARENT = "import subprocess, sys, time\nprint(subprocess.Popen(sys.argv[1:]).pid, flush=True)\ntime.sleep(600)"


@contextmanager
def child_of_a_killed_parent(words: Sequence[str], ready: Callable[[], bool]) -> Iterator[psutil.Process]:
    """A command as the child of a process that is killed as soon as the child is ready."""
    with subprocess.Popen([sys.executable, "-c", PARENT, *words], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        try:
            until(ready)
            parent.kill()
            yield child
        finally:
            parent.kill()
            if child.is_running():
                child.kill()


def gone(process: psutil.Process) -> bool:
    """Whether it has ended; it may wait for an init to bury it."""
    try:
        return process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


def until(there: Callable[[], bool], seconds: float = 60) -> None:
    """Waits for something to be so."""
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.02)
