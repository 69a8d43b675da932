"""What torch raises where memory is short, or another process is gone, as errors for people."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from jumar.schema.errors import Exit, ToolError

SHORT = ("not enough memory", "out of memory", "can't allocate memory")  # CPU; CUDA and NPU; CPU of older versions
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo")


@contextmanager
def hardware_faults() -> Generator[None, None, None]:
    """Raises ToolError (4) for both; everything else goes through."""
    try:
        yield
    except (RuntimeError, MemoryError) as fault:
        first = str(fault).strip().partition("\n")[0].partition(". ")[0]
        if _is(fault, SHORT, torch.OutOfMemoryError, MemoryError):
            hint = "give --cache-tokens or --max-batch a smaller number, or take --dtype bf16, --quantize, more processes"
            raise ToolError(f"out of memory: {first}", hint=hint, code=Exit.ENVIRONMENT) from fault
        if _is(fault, LOST, dist.DistError):
            hint = "see what the other ranks said, then start all again"
            raise ToolError(
                f"the processes of this model have lost one another: {first}", hint=hint, code=Exit.ENVIRONMENT
            ) from fault
        raise


def _is(fault: Exception, words: tuple[str, ...], *kinds: type[Exception]) -> bool:
    return isinstance(fault, kinds) or any(word in str(fault) for word in words)
