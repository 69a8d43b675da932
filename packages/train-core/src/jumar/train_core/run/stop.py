"""Being asked to stop: SIGTERM, SIGINT (Ctrl-C), SIGUSR1 (which schedulers send ahead of a time limit)."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

PR_SET_PDEATHSIG = 1


class Stop:
    """Remembers that a signal came; the loop looks at the end of each step. A second Ctrl-C ends the process at once, also in the
    middle of a long operation, where Python's own handlers wait.

    holds: whether there is something to save. Before, a signal of any kind is a KeyboardInterrupt.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.asked = False
        self.holds = False
        self.signal: signal.Signals | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stop:
        for number in self.SIGNALS:
            self._before[number] = signal.signal(number, self._hear)
        self._ends = os.pipe()
        os.set_blocking(self._ends[1], False)
        self._told_before = signal.set_wakeup_fd(self._ends[1], warn_on_full_buffer=False)
        threading.Thread(target=_end_at_second, args=(self._ends[0],), name="ctrl-c", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._told_before)
        os.close(self._ends[1])  # ends the thread

    def last_word(self) -> None:
        """The process ends by itself within seconds: the SIGTERM by which torchrun ends what a dead rank leaves has no effect."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._before[signal.SIGTERM] = signal.SIG_IGN

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT and self.signal == signal.SIGINT:
            os._exit(130)
        first, self.asked, self.signal = not self.asked, True, signal.Signals(number)
        if first and not self.holds:
            raise KeyboardInterrupt


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


def _end_at_second(pipe: int) -> None:
    """Reads the numbers of signals as they come; a Ctrl-C after a Ctrl-C ends the process. Others, such as a child's end, are not
    its concern."""
    before = 0
    with open(pipe, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            if before == number[0] == signal.SIGINT:
                os._exit(130)
            before = number[0] if number[0] in Stop.SIGNALS else before


def die_with_parent(number: signal.Signals) -> None:
    """Asks Linux for a signal when the process that started this one ends, however that happens."""
    prctl: Callable[..., int] | None = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
