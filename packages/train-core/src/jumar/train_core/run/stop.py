"""Being asked to stop: SIGTERM, SIGINT (Ctrl-C), SIGUSR1 (which schedulers send ahead of a time limit)."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from jumar.train_core.parent import die_with_parent

INTERRUPTED = 130
SOON_S = 10
"""How long an operation in which Python hears nothing may hold up the end of a rank that has nothing to save."""
ORPHAN_S = min(600.0, float(os.environ.get("JUMAR_COLLECTIVE_TIMEOUT_S", 600)))
"""How long a rank whose torchrun is gone may take for the step it is in and its checkpoint."""


class Stop:
    """Remembers that a signal came; the loop looks at the end of each step. A second Ctrl-C ends the process at once, also in the
    middle of a long operation, where Python's own handlers wait.

    holds: whether there is something to save. Before, a signal of any kind is a KeyboardInterrupt.
    parent: the process that started a rank. When it ends, so does the rank: at once while it holds nothing (it may be waiting, in
    code that no Python handler interrupts, for what ended with the parent), and then as by a SIGTERM, in ORPHAN_S at most.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self, parent: int | None = None) -> None:
        self.asked = False
        self._holds, self._parent = False, parent
        self.signal: signal.Signals | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stop:
        for number in self.SIGNALS:
            self._before[number] = signal.signal(number, self._hear)
        self._ends = os.pipe()
        os.set_blocking(self._ends[1], False)
        self._told_before = signal.set_wakeup_fd(self._ends[1], warn_on_full_buffer=False)
        threading.Thread(target=self._end_in_time, args=(self._ends[0],), name="signals", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._told_before)
        os.close(self._ends[1])  # ends the thread

    @property
    def holds(self) -> bool:
        return self._holds

    @holds.setter
    def holds(self, holds: bool) -> None:
        first, self._holds = holds and not self._holds, holds
        if first and self._parent is not None:
            threading.Thread(target=_end_orphaned, args=(self._parent,), name="orphan", daemon=True).start()
            die_with_parent(signal.SIGTERM, self._parent)

    def last_word(self) -> None:
        """The process ends by itself within seconds: the SIGTERM by which torchrun ends what a dead rank leaves has no effect."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._before[signal.SIGTERM] = signal.SIG_IGN

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT and self.signal == signal.SIGINT:
            os._exit(INTERRUPTED)
        first, self.asked, self.signal = not self.asked, True, signal.Signals(number)
        if first and not self.holds:
            raise KeyboardInterrupt

    def _end_in_time(self, pipe: int) -> None:
        """Reads the numbers of signals as they come, also where Python's handlers wait. A Ctrl-C after a Ctrl-C ends the process,
        any signal does soon where nothing is held. Others, such as a child's end, are not its concern."""
        before, end, waiting = 0, None, select.poll()
        waiting.register(pipe, select.POLLIN)
        with open(pipe, "rb", buffering=0) as numbers:
            while True:
                if end is not None and not waiting.poll(max(0.0, end - time.monotonic()) * 1000):
                    if not self.holds:
                        os._exit(INTERRUPTED)
                    end = None
                if not (number := numbers.read(1)):
                    return
                if before == number[0] == signal.SIGINT:
                    os._exit(INTERRUPTED)
                if number[0] in self.SIGNALS:
                    before = number[0]
                    end = end or (None if self.holds else time.monotonic() + SOON_S)


@contextmanager
def interruptible() -> Iterator[None]:
    """Where no Stop listens, as long as a run is looked at and imports, each of its signals is a KeyboardInterrupt.

    What a Stop left for good (`last_word`) stays.
    """
    before = {number: signal.signal(number, signal.default_int_handler) for number in Stop.SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is signal.default_int_handler:
                signal.signal(number, handler)


def _end_orphaned(parent: int) -> None:
    """The other ranks may be gone as well, and then some operations wait without end."""
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(ORPHAN_S)
    os._exit(INTERRUPTED)
