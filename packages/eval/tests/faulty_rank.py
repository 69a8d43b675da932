"""torchrun faulty_rank.py RANK BATCHES memory|bug|kill WORDS...: jumar-eval, one of whose ranks ends so after so many batches."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from jumar.eval import cli
from jumar.infer import Engine


def spoil(left: int, how: str) -> None:
    compute = Engine.compute

    def spoiled(self: Engine, parts: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            return compute(self, parts)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError if how == "memory" else ZeroDivisionError

    Engine.compute = spoiled  # type: ignore[method-assign]


if __name__ == "__main__":
    rank, batches, how = sys.argv[1:4]
    del sys.argv[1:4]
    if os.environ["RANK"] == rank:
        spoil(int(batches), how)
    cli.main()
