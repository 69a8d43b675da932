"""Being asked to stop: SIGTERM, SIGINT (Ctrl-C), SIGUSR1 (which schedulers send ahead of a time limit)."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType

PR_SET_PDEATHSIG = 1


class Stop:
    """Remembers that a signal came; the loop looks at the end of each step. A second Ctrl-C ends the process at once.

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
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def last_word(self) -> None:
        """The process ends by itself within seconds: the SIGTERM by which torchrun ends what a dead rank leaves has no effect."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._before[signal.SIGTERM] = signal.SIG_IGN

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT and self.signal == signal.SIGINT:
            os._exit(130)  # in the middle of a collective nothing else gets through
        first, self.asked, self.signal = not self.asked, True, signal.Signals(number)
        if first and not self.holds:
            raise KeyboardInterrupt


def die_with_parent(number: signal.Signals) -> None:
    """Asks Linux for a signal when the process that started this one ends, however that happens."""
    prctl: Callable[..., int] | None = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
