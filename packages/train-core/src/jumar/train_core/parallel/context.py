"""Context parallelism: a sequence is cut over ranks, and each attends to all keys and values, gathered.

The cut is the zigzag of megatron-core: of 2 * cp chunks, rank r holds chunks r and 2 * cp - 1 - r, so that causal attention
costs every rank the same.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor

from jumar.device import Ops


def local_positions(seq_len: int, rank: int, size: int) -> Tensor:
    """Positions, int64, of the tokens that a context-parallel rank holds."""
    if size == 1:
        return torch.arange(seq_len)
    chunks = torch.arange(seq_len).chunk(2 * size)
    return torch.cat((chunks[rank], chunks[2 * size - 1 - rank]))


def gathered_order(length: int, size: int) -> Tensor:
    """For each position of the whole sequence, where it is among the gathered parts of `length` tokens. int64 [size * length]."""
    where = torch.cat([local_positions(size * length, rank, size) for rank in range(size)])
    order = torch.empty_like(where)
    order[where] = torch.arange(len(where))
    return order


class ContextAttention:
    """Causal attention of this rank's queries to the keys and values of all ranks.

    Communication a layer and micro batch: (cp - 1) / cp of K and V of the whole sequence, gathered; as much scattered back.
    """

    def __init__(self, ops: Ops, group: Any) -> None:
        self.ops, self.group = ops, group
        self.size, self.rank = group.size(), group.rank()
        self._orders: dict[int, Tensor] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, window: int | None, **settings: Any) -> Tensor:
        """q, k, v: [batch, local tokens, heads, dim]. Returns [batch, local tokens, heads, dim of v]."""
        length = q.shape[1]
        width = k.shape[-1]
        both_SBHD = torch.cat((k, v), -1).transpose(0, 1).contiguous()
        all_SBHD = gather_from_sequence_parallel_region(both_SBHD, group=self.group)
        k_all, v_all = all_SBHD[self._order(length, q.device)].transpose(0, 1).split((width, v.shape[-1]), -1)
        half = length // 2
        outs = []
        for start, chunk in ((0, self.rank), (half, 2 * self.size - 1 - self.rank)):
            end = (chunk + 1) * half
            begin = 0 if window is None else max(0, end - half - window + 1)  # the first query sees no key before it
            seen = slice(begin, end)
            outs.append(
                self.ops.attention(
                    q[:, start : start + half], k_all[:, seen], v_all[:, seen], causal=True, window=window, **settings
                )
            )
        return torch.cat(outs, 1)

    def _order(self, length: int, device: torch.device) -> Tensor:
        if length not in self._orders:
            self._orders[length] = gathered_order(length, self.size).to(device)
        return self._orders[length]
