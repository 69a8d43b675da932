"""What becomes of a process when the one that started it ends, however that happens.

jumar-train starts torchrun, torchrun the ranks, a rank its writers and a converter; each is tied to the one before it.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
STARTED_BY = "JUMAR_TRAIN_STARTED_BY"
"""Process id of the torchrun that `launch` started, for its ranks: it may be gone before they can ask who it was."""


def die_with_parent(number: signal.Signals, parent: int) -> None:
    """Asks Linux for a signal when `parent`, which started this process, ends; one that has ended already sends it at once."""
    prctl: Callable[..., int] | None = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)
