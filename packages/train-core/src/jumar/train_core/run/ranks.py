"""What one rank does for all, and what becomes of the others when one is lost."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Mapping
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


def torchrun_serves(environ: Mapping[str, str], patience_s: float = 15) -> None:
    """Raises Lost where the torchrun in whose store ranks meet is gone, for which they would wait as long as for one another."""
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    where, end = (environ["MASTER_ADDR"], int(environ["MASTER_PORT"])), time.monotonic() + patience_s
    while True:
        try:
            socket.create_connection(where, timeout=patience_s).close()
        except OSError as fault:
            if time.monotonic() < end:
                time.sleep(0.5)
                continue
            raise Lost(
                f"torchrun does not answer at {where[0]}:{where[1]} ({fault.strerror or fault})",
                hint="was it killed? its own messages, or those of the first machine, tell why; start it again",
                late=True,
            ) from None
        return


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
