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

        Collective. Raises ToolError; an OSError becomes one with exit code 4. A bug is raised where it is, as it is.
        """
        value, fault = _outcome(work)
        if self.group is None:
            everyone: list[Any] = [(value, fault)]
        else:
            told = fault if fault is None or isinstance(fault, ToolError) else RuntimeError(f"rank {self.rank}: {fault!r}")
            everyone = [None] * dist.get_world_size(self.group)
            dist.all_gather_object(everyone, (value, told), group=self.group)
        if fault is not None and not isinstance(fault, ToolError):
            raise fault
        for _, each in everyone:
            if each is not None:
                raise each
        return [each for each, _ in everyone]


def _outcome(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except OSError as fault:
        return None, ToolError(
            f"{fault.filename or 'data'}: {fault.strerror or fault}", hint="is it there for every rank?", code=Exit.ENVIRONMENT
        )
    except Exception as fault:  # noqa: BLE001  # raised in `gather`, where the others have heard of it
        return None, fault


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
