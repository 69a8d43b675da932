"""The ranks that share one model: tensor parallel inside a stage, stages one after another. One process: nothing to do."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from jumar.schema.errors import Exit, ToolError

PATIENCE = timedelta(days=365)
"""Nobody may ask for so long."""
FAREWELL = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place: tp and pp are its numbers, tp_size and pp_size how many there are; rank = pp * tp_size + tp.

    group: the ranks of its stage; control: all of them, over gloo, where one may wait for people as long as they like
    """

    tp: int = 0
    tp_size: int = 1
    pp: int = 0
    pp_size: int = 1
    group: Any = None
    control: Any = None

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.tp_size * self.pp_size

    @property
    def first(self) -> bool:
        """Whether this stage begins with the embedding."""
        return self.pp == 0

    @property
    def last(self) -> bool:
        """Whether this stage ends with the output layer."""
        return self.pp == self.pp_size - 1

    def sum(self, x: Tensor) -> Tensor:
        """The sum over tensor-parallel ranks."""
        if self.tp_size > 1:
            dist.all_reduce(x, group=self.group)
        return x

    def gather(self, x: Tensor) -> Tensor:
        """[..., n] of each tensor-parallel rank, joined along the last dimension."""
        if self.tp_size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.tp_size)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts, -1)

    def receive(self, x: Tensor) -> Tensor:
        """What the stage before sent, into a tensor of its shape."""
        dist.recv(x, src=(self.pp - 1) * self.tp_size + self.tp)
        return x

    def send(self, x: Tensor) -> None:
        """To the stage behind."""
        dist.send(x.contiguous(), dst=(self.pp + 1) * self.tp_size + self.tp)

    def from_last(self, x: Tensor) -> Tensor:
        """What the last stage has, on every rank."""
        if self.pp_size > 1:
            dist.broadcast(x, src=(self.pp_size - 1) * self.tp_size)
        return x

    def same(self, number: int) -> int:
        """The smallest number that a rank gives, on every rank."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return int(found)

    def tell(self, what: Any) -> None:
        """From the first rank to all others, which `hear` it."""
        dist.broadcast_object_list([what], group=self.control)

    def hear(self) -> Any:
        """What the first rank tells, whenever it does."""
        heard = [None]
        dist.broadcast_object_list(heard, group=self.control)
        return heard[0]

    def part(self) -> None:
        """At the end: nobody leaves before the others have heard what was told last, or are gone themselves."""
        if self.size == 1:
            return
        with suppress(RuntimeError):
            dist.barrier(group=self.control, async_op=True).wait(timeout=FAREWELL)
            dist.destroy_process_group()  # its threads may not outlive the interpreter


def join(environ: Mapping[str, str], stages: int, backend: str) -> Ranks:
    """This process's place among those that torchrun started, by its environment; alone without torchrun.

    Ranks of a stage follow one another. Raises ToolError (2) where the processes are no multiple of the stages.
    """
    world, rank = int(environ.get("WORLD_SIZE", "1")), int(environ.get("RANK", "0"))
    if world % stages:
        started = f"{world} processes" if world > 1 else "one process, and torchrun starts several"
        raise ToolError(
            f"{stages} stages cannot share {started}", hint="torchrun --nproc-per-node N, N a multiple of --pp", code=Exit.USAGE
        )
    if world == 1:
        return Ranks()
    if not dist.is_initialized():
        both = backend if backend == "gloo" else f"cpu:gloo,{backend}"  # numbers that the host needs are shared by gloo
        dist.init_process_group(both)
    tp = world // stages
    control = dist.new_group(backend="gloo", timeout=PATIENCE)
    groups = [dist.new_group(list(range(stage * tp, (stage + 1) * tp))) for stage in range(stages)]
    return Ranks(tp=rank % tp, tp_size=tp, pp=rank // tp, pp_size=stages, group=groups[rank // tp], control=control)
