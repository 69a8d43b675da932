"""What the ranks of a job decide together: everybody's word, or the first fault, on every rank.

A fault that one rank alone raises leaves the others waiting until their time is out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from jumar.schema.errors import Exit, ToolError

T = TypeVar("T")
PATIENCE = timedelta(hours=4)
"""For how long ranks wait while others build indices: of trillions of tokens that takes longer than a collective's own limit."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """All ranks of the job, over a gloo group of their own; one process alone where torch.distributed is not initialised."""

    rank: int
    group: Any

    def gather(self, work: Callable[[], T]) -> list[T]:
        """What `work` returns on each rank. The fault of the lowest rank that has one is raised on all of them.

        Collective. Raises ToolError; an OSError becomes one with exit code 4.
        """
        outcome = _outcome(work)
        everyone: list[Any] = [outcome]
        if self.group is not None:
            everyone = [None] * dist.get_world_size(self.group)
            dist.all_gather_object(everyone, outcome, group=self.group)
        for _, fault in everyone:
            if fault is not None:
                raise fault
        return [value for value, _ in everyone]


def _outcome(work: Callable[[], T]) -> tuple[T | None, ToolError | None]:
    try:
        return work(), None
    except ToolError as fault:
        return None, fault
    except OSError as fault:
        return None, ToolError(f"{fault.filename or 'data'}: {fault.strerror or fault}", code=Exit.ENVIRONMENT)


@contextmanager
def all_ranks() -> Iterator[Ranks]:
    """The ranks of the job, for as long as the block lasts. Collective."""
    if not dist.is_initialized():
        yield Ranks(0, None)
        return
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), group)
    finally:
        dist.destroy_process_group(group)
