"""The ranks that share one model: tensor parallel inside a stage, stages one after another, copies of it beside one another.
One process: nothing to do."""

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
    """This process's place: tp, pp and dp are its numbers, the sizes how many there are.

    rank = (dp * pp_size + pp) * tp_size + tp
    group: the ranks of its stage; copy: those of its copy of the model, None: all there are; control: the same, over gloo,
    where one may wait for people as long as they like
    """

    tp: int = 0
    tp_size: int = 1
    pp: int = 0
    pp_size: int = 1
    dp: int = 0
    dp_size: int = 1
    group: Any = None
    copy: Any = None
    control: Any = None

    @property
    def size(self) -> int:
        """How many processes share this copy of the model."""
        return self.tp_size * self.pp_size

    @property
    def leader(self) -> int:
        """The first rank of this copy."""
        return self.dp * self.size

    @property
    def leads(self) -> bool:
        """Whether this one is it."""
        return self.tp == self.pp == 0

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
        dist.recv(x, src=self.leader + (self.pp - 1) * self.tp_size + self.tp)
        return x

    def send(self, x: Tensor) -> None:
        """To the stage behind."""
        dist.send(x.contiguous(), dst=self.leader + (self.pp + 1) * self.tp_size + self.tp)

    def from_last(self, x: Tensor) -> Tensor:
        """What the last stage has, on every rank."""
        if self.pp_size > 1:
            dist.broadcast(x, src=self.leader + (self.pp_size - 1) * self.tp_size, group=self.copy)
        return x

    def same(self, number: int) -> int:
        """The smallest number that a rank gives, on every rank of all copies."""
        if self.size * self.dp_size == 1:
            return number
        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return int(found)

    def tell(self, what: Any) -> None:
        """From the first rank to all others of this copy, which `hear` it."""
        dist.broadcast_object_list([what], src=self.leader, group=self.control)

    def hear(self) -> Any:
        """What the first rank tells, whenever it does."""
        heard = [None]
        dist.broadcast_object_list(heard, src=self.leader, group=self.control)
        return heard[0]

    def part(self) -> None:
        """At the end: nobody leaves before the others have heard what was told last, or are gone themselves."""
        if self.size * self.dp_size == 1:
            return
        with suppress(RuntimeError):
            if self.size > 1:
                dist.barrier(group=self.control, async_op=True).wait(timeout=FAREWELL)
            dist.destroy_process_group()  # its threads may not outlive the interpreter


def join(environ: Mapping[str, str], stages: int, backend: str, tp: int | None = None) -> Ranks:
    """This process's place among those that torchrun started, by its environment; alone without torchrun.

    tp: ranks of a stage, which follow one another; as many copies of the model as there are processes for. None: one copy.
    Raises ToolError (2) where the processes are no multiple of what a copy needs.
    """
    world, rank = int(environ.get("WORLD_SIZE", "1")), int(environ.get("RANK", "0"))
    needed = stages * (tp or 1)
    if world % needed:
        started = f"{world} processes" if world > 1 else "one process, and torchrun starts several"
        what, option = (f"{stages} stages", "--pp") if tp is None else (f"tp {tp} pp {stages}", "--tp times --pp")
        hint = f"torchrun --nproc-per-node N, N a multiple of {option}"
        raise ToolError(f"{what} cannot share {started}", hint=hint, code=Exit.USAGE)
    if world == 1:
        return Ranks()
    if not dist.is_initialized():
        both = backend if backend == "gloo" else f"cpu:gloo,{backend}"  # numbers that the host needs are shared by gloo
        dist.init_process_group(both)
    tp = tp or world // stages
    size = tp * stages
    control = _mine(world, size, rank, backend="gloo", timeout=PATIENCE)
    group = _mine(world, tp, rank)
    copy = _mine(world, size, rank) if size < world else None
    dp, place = divmod(rank, size)
    sizes = {"tp_size": tp, "pp_size": stages, "dp_size": world // size}
    return Ranks(tp=place % tp, pp=place // tp, dp=dp, **sizes, group=group, copy=copy, control=control)


def _mine(world: int, size: int, rank: int, **words: Any) -> Any:
    """The group of this rank where the world is cut into groups of one size, which all ranks make; None where it is alone."""
    if size == 1:
        return None
    groups = [dist.new_group(list(range(first, first + size)), **words) for first in range(0, world, size)]
    return groups[rank // size]
