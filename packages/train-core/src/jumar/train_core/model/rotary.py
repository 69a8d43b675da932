"""Rotary position embeddings as cosines and sines, in megatron-core's place."""

from __future__ import annotations

from functools import cached_property, lru_cache

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor

from jumar.device.rotary import frequencies
from jumar.schema.spec import Rope
from jumar.train_core.parallel.context import local_positions


class Rotary(RotaryEmbedding):  # type: ignore[misc]  # megatron-core has no types
    """Takes the place of megatron-core's RotaryEmbedding; gives cosines and sines instead of angles, once for each length."""

    def __init__(self, rope: Rope, dim: int, *, cp_rank: int, cp_size: int, device: torch.device) -> None:
        torch.nn.Module.__init__(self)
        self.rope, self.dim, self.cp_rank, self.cp_size, self.device = rope, dim, cp_rank, cp_size, device
        self.rotary_interleaved = rope.interleaved

    @cached_property
    def inv_freq(self) -> Tensor:
        return frequencies(self.rope, self.dim)[0]

    def forward(self, max_seq_len: int, offset: int = 0, packed_seq: bool = False, cp_group: object = None) -> Tensor:
        """[2, tokens of this context-parallel rank, 1, 1, dim]: cosines and sines, float32. max_seq_len: of the whole.

        packed_seq: those of all positions below max_seq_len (and more), to be looked up.
        """
        if packed_seq:
            return _table(self.rope, self.dim, max_seq_len, self.device)
        return _part(self.rope, self.dim, max_seq_len, self.cp_rank, self.cp_size, self.device)


def _table(rope: Rope, dim: int, seq_len: int, device: torch.device) -> Tensor:
    """Of positions 0 to a power of two: lengths of padded batches are many."""
    return _powers(rope, dim, 1 << (seq_len - 1).bit_length(), device)


@lru_cache(maxsize=32)
def _powers(rope: Rope, dim: int, seq_len: int, device: torch.device) -> Tensor:
    """One for all layers that ask."""
    inverse, factor = frequencies(rope, dim)
    angles = torch.arange(seq_len).float()[:, None] * inverse
    wide = angles.repeat_interleave(2, -1) if rope.interleaved else torch.cat((angles, angles), -1)
    return torch.stack((wide.cos() * factor, wide.sin() * factor))[:, :, None, None, :].to(device)


@lru_cache(maxsize=32)
def _part(rope: Rope, dim: int, seq_len: int, cp_rank: int, cp_size: int, device: torch.device) -> Tensor:
    whole = _table(rope, dim, seq_len, device)
    return whole[:, :seq_len] if cp_size == 1 else whole[:, local_positions(seq_len, cp_rank, cp_size).to(device)]
