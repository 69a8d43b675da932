"""The one error that users see, and the exit codes of every jumar command (docs/contracts.md, 14)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes, the same in every tool."""

    OK = 0
    BUG = 1
    USAGE = 2
    INPUT = 3
    ENVIRONMENT = 4
    CHECK_FAILED = 5
    STOPPED = 75
    INTERRUPTED = 130


class ToolError(Exception):
    """A fault that the user can mend: shown as `error:` and `hint:` without a traceback.

    message: what is wrong, where, what was found and what was expected.
    hint:    what to type or change next.
    code:    the process's exit code; `Exit.INPUT` (3) unless said otherwise.
    """

    def __init__(self, message: str, *, hint: str | None = None, code: Exit = Exit.INPUT) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code

    def at(self, where: str, more: str = "") -> ToolError:
        """The same fault, with its place before it, and what is more to be said behind."""
        found = copy(self)
        found.message = f"{where}: {self.message}{more}"
        found.args = (found.message,)
        return found

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


def refused_by_system(fault: OSError, where: object = None) -> ToolError:
    """What the system refused. where: the file, where the fault does not name it (that of a write never does)."""
    full = fault.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    hint = "make room on that disk, or choose another, and run the same command again"
    place = fault.filename or where
    return ToolError(
        f"{place}: {fault.strerror or fault}" if place else fault.strerror or str(fault),
        hint=hint if full else "check the path, its permissions and the disk",
        code=Exit.ENVIRONMENT,
    )


@contextmanager
def writing(path: object) -> Iterator[None]:
    """What the system refuses in here is told with the name of the file: a full disk does not name it."""
    try:
        yield
    except OSError as fault:
        raise refused_by_system(fault, path) from None
