"""What one rank does for all, and what becomes of the others when one is lost."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from jumar.schema.errors import Exit, ToolError

T = TypeVar("T")
GONE = re.compile(r"gloo/|NCCL|HCCL|[Ss]ocket|TCPStore|[Cc]onnection (closed|reset|refused)|wait timeout after")
LATE = re.compile(r"[Tt]imed out|[Tt]imeout")


def on_rank_0(work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, on all ranks. Collective: what it raises for users is raised on all of them."""
    box: list[T | ToolError | None] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = work()
        except ToolError as fault:
            box[1] = fault
        except OSError as fault:
            box[1] = disk(fault)
    dist.broadcast_object_list(box, src=0)
    if isinstance(box[1], ToolError):
        raise box[1]
    return box[0]  # type: ignore[return-value]


def disk(fault: OSError) -> ToolError:
    """A fault of the disk as users see it."""
    where = f"{fault.filename}: " if fault.filename else ""
    return ToolError(
        f"{where}{fault.strerror or fault}", hint="look at the disk and the permissions of save.path", code=Exit.ENVIRONMENT
    )


class Lost(ToolError):
    """Another rank is gone, or does not answer. late: it is there, but was waited for in vain."""

    def __init__(self, message: str, *, hint: str, late: bool) -> None:
        super().__init__(message, hint=hint, code=Exit.ENVIRONMENT)
        self.late = late


def lost(fault: BaseException) -> Lost | None:
    """What a failed collective means; None if `fault` is something else."""
    text = str(fault)
    if not GONE.search(text):
        return None
    why = next((line for line in text.splitlines() if GONE.search(line)), text)[:200]
    if LATE.search(text):
        return Lost(
            f"another rank has not answered in time ({why})",
            hint="look for a process or machine that hangs; JUMAR_COLLECTIVE_TIMEOUT_S sets for how long ranks wait",
            late=True,
        )
    return Lost(
        f"another rank has ended ({why})",
        hint="its own message, or the machine's log, tells why; the same command goes on from the last checkpoint",
        late=False,
    )
