"""Context parallelism: a sequence is cut over ranks, and each attends to all keys and values, gathered.

The cut is the zigzag of megatron-core: of 2 * cp chunks, rank r holds chunks r and 2 * cp - 1 - r, so that causal attention
costs every rank the same.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor

from jumar.device import Ops


def local_chunks(seq_len: int, rank: int, size: int) -> list[tuple[int, int]]:
    """Where the chunks that a context-parallel rank holds begin and end."""
    if size == 1:
        return [(0, seq_len)]
    length = seq_len // (2 * size)
    return [(chunk * length, (chunk + 1) * length) for chunk in (rank, 2 * size - 1 - rank)]


def local_positions(seq_len: int, rank: int, size: int) -> Tensor:
    """Positions, int64, of the tokens that a context-parallel rank holds."""
    return torch.cat([torch.arange(*chunk) for chunk in local_chunks(seq_len, rank, size)])


@lru_cache(maxsize=32)
def gathered_order(length: int, size: int, device: torch.device) -> Tensor:
    """For each position of the whole sequence, where it is among the gathered parts of `length` tokens. int64 [size * length]."""
    where = torch.cat([local_positions(size * length, rank, size) for rank in range(size)])
    order = torch.empty_like(where)
    order[where] = torch.arange(len(where))
    return order.to(device)


class ContextAttention:
    """Causal attention of this rank's queries to the keys and values of all ranks.

    Communication a layer and micro batch: (cp - 1) / cp of K and V of the whole sequence, gathered; as much scattered back.
    """

    def __init__(self, ops: Ops, group: Any) -> None:
        self.ops, self.group = ops, group
        self.size, self.rank = group.size(), group.rank()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, window: int | None, **settings: Any) -> Tensor:
        """q, k, v: [batch, local tokens, heads, dim]. Returns [batch, local tokens, heads, dim of v]."""
        k_all, v_all = self.whole(k, v)
        half = q.shape[1] // 2
        outs = []
        for start, (_, end) in zip((0, half), local_chunks(q.shape[1] * self.size, self.rank, self.size), strict=True):
            begin = 0 if window is None else max(0, end - half - window + 1)  # the first query sees no key before it
            seen = slice(begin, end)
            outs.append(
                self.ops.attention(
                    q[:, start : start + half], k_all[:, seen], v_all[:, seen], causal=True, window=window, **settings
                )
            )
        return torch.cat(outs, 1)

    def whole(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of all ranks, in the order of the sequence: [batch, tokens, heads, dim]."""
        both_SBHD = torch.cat((k, v), -1).transpose(0, 1).contiguous()
        all_SBHD = gather_from_sequence_parallel_region(both_SBHD, group=self.group)
        all_BSHD = all_SBHD[gathered_order(k.shape[1], self.size, k.device)].transpose(0, 1)
        k_all, v_all = all_BSHD.split((k.shape[-1], v.shape[-1]), -1)
        return k_all, v_all
