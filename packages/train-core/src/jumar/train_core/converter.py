"""jumar-convert beside a training: `python -m jumar.train_core.converter RANK_PID ARGS...`, started by `run.export`.

At a low priority, and it ends with the rank that started it, however that ends.
"""

from __future__ import annotations

import os
import signal
import sys

from jumar.train_core.parent import die_with_parent


def main(arguments: list[str]) -> None:
    """Becomes the converter; what `die_with_parent` asked of Linux stays."""
    rank, *words = arguments
    die_with_parent(signal.SIGKILL, int(rank))
    os.nice(10)
    os.execv(sys.executable, [sys.executable, "-m", "jumar.ckpt_convert", *words])


if __name__ == "__main__":
    main(sys.argv[1:])
