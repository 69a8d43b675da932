"""The ranks that share one model: tensor parallel inside a stage, stages one after another. One process: nothing to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place: tp and pp are its numbers, tp_size and pp_size how many there are; rank = pp * tp_size + tp."""

    tp: int = 0
    tp_size: int = 1
    pp: int = 0
    pp_size: int = 1
    group: Any = None

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
