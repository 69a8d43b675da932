"""The interpreter that a program has for itself: this file's text is what it runs (`python -c`), on the standard library alone.

Told by 3: "+" when the program begins, then "-" with its error, or the proof that it came to its end. The proof is one half of
what stands before the program (0), and one half in 4. A program that ends itself has given none.
"""

from __future__ import annotations

import os
import sys

HALF = 32


def _text(fault: BaseException) -> str:
    try:
        return f"{type(fault).__name__}: {fault}"
    except BaseException:  # noqa: BLE001  # of the program's making
        return "an error that cannot be written"


def _run() -> None:
    read, write, leave = os.read, os.write, os._exit
    given = b"".join(iter(lambda: read(0, 1 << 20), b""))
    os.dup2(1, 0)
    os.environ.clear()
    sys.path[:] = [path for path in sys.path if path]
    sys.argv[:] = ["program.py"]
    write(3, b"+")
    try:
        exec(compile(given[HALF:], "program.py", "exec"), {})  # without __name__, as code_eval runs it
    except BaseException as fault:  # noqa: BLE001  # whatever a program may raise
        write(3, b"-" + _text(fault)[:2000].encode("utf-8", "replace"))
        leave(1)
    write(3, given[:HALF] + read(4, HALF))
    leave(0)


if __name__ == "__main__":
    _run()
