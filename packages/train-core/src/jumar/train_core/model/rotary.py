"""Rotary position embeddings as cosines and sines, for every kind of scaling that a ModelSpec names.

Sources: https://arxiv.org/abs/2104.09864 (RoPE), https://arxiv.org/abs/2309.00071 (YaRN), and the formula that
https://github.com/meta-llama/llama-models publishes for Llama 3.
"""

from __future__ import annotations

import math
from functools import cached_property, lru_cache

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor

from jumar.schema.spec import Rope, RopeScaling
from jumar.train_core.parallel.context import local_positions


def frequencies(rope: Rope, dim: int) -> tuple[Tensor, float]:
    """Frequencies [dim / 2] in radians a token, float32, and the factor of cosines and sines.

    dim: elements that are rotated. Dynamic scaling, which depends on the length of each text, is refused before launch.
    """
    powers = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    plain = 1.0 / rope.base**powers
    scaling = rope.scaling
    if scaling is None:
        return plain, 1.0
    if scaling.kind == "linear":
        return plain / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(plain, scaling), 1.0
    return _yarn(rope.base, powers, dim, scaling), yarn_attention_factor(scaling)


def _llama3(plain: Tensor, scaling: RopeScaling) -> Tensor:
    low, high = scaling.low_freq_factor or 1.0, scaling.high_freq_factor or 4.0
    trained = scaling.original_max_position_embeddings or 8192
    wavelength = 2 * math.pi / plain
    smooth = ((trained / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * plain / scaling.factor + smooth * plain


def _yarn(base: float, powers: Tensor, dim: int, scaling: RopeScaling) -> Tensor:
    trained = scaling.original_max_position_embeddings
    assert trained is not None

    def dimension(rotations: float) -> float:
        return dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(dimension(scaling.beta_fast or 32)), 0)
    high = min(math.ceil(dimension(scaling.beta_slow or 1)), dim - 1)
    ramp = ((torch.arange(dim // 2).float() - low) / (high - low or 0.001)).clamp(0, 1)
    plain = base**powers
    return ramp / (scaling.factor * plain) + (1 - ramp) / plain


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def yarn_attention_factor(scaling: RopeScaling) -> float:
    """What cosines and sines are multiplied by, so that scores keep their size over longer contexts."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return yarn_mscale(scaling.factor, scaling.mscale) / yarn_mscale(scaling.factor, scaling.mscale_all_dim)
    return yarn_mscale(scaling.factor)


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
