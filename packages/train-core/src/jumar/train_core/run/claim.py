"""A run's directory belongs to one run at a time."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jumar.schema.errors import Exit, ToolError
from jumar.train_core import exit_file
from jumar.train_core.run.nodes import Nodes

NAME = ".lock"
LEFT = re.compile(r"(hf_)?iter_\d+\.(partial|removing|gathered)|\.hf\.new")


class InUse(ToolError):
    """Another run writes there: also exit.json is its own."""


@contextmanager
def claimed(root: Path | None, nodes: Nodes) -> Iterator[None]:
    """Holds a run's directory, made where it is not there, on every node, and clears it of what killed runs left. Collective.

    Raises ToolError (4): it cannot be written, or another run holds it. File systems without locks are let pass.
    """
    handle: list[int] = []
    try:
        if root is not None:
            nodes.each(lambda: handle.append(_claim(root)))
        yield
    finally:
        for each in handle:
            os.close(each)


def _claim(root: Path) -> int:
    root.mkdir(parents=True, exist_ok=True)
    handle = os.open(root / NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: what it forks does not keep it
    except (BlockingIOError, PermissionError):
        holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
        os.close(handle)
        raise InUse(
            f"{root} is in use by another run ({holder})",
            hint="wait for it or stop it, or set another save.path",
            code=Exit.ENVIRONMENT,
        ) from None
    except OSError:
        pass
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    (root / exit_file.NAME).unlink(missing_ok=True)  # tells of an earlier run
    for left in root.iterdir():
        if LEFT.fullmatch(left.name):
            shutil.rmtree(left, ignore_errors=True)
    return handle
