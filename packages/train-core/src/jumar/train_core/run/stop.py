"""Being asked to stop: SIGTERM, SIGINT (Ctrl-C), SIGUSR1 (which schedulers send ahead of a time limit)."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType


class Stop:
    """Remembers that a signal came; the loop looks at the end of each step. A second Ctrl-C ends the process at once."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.asked = False
        self.signal: signal.Signals | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stop:
        for number in self.SIGNALS:
            self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT and self.signal == signal.SIGINT:
            os._exit(130)  # in the middle of a collective nothing else gets through
        self.asked, self.signal = True, signal.Signals(number)
