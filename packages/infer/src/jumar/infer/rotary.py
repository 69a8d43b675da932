"""Rotary position embeddings as cosines and sines, for every kind of scaling that a ModelSpec names.

Sources: https://arxiv.org/abs/2104.09864 (RoPE), https://arxiv.org/abs/2309.00071 (YaRN), and the formula that
https://github.com/meta-llama/llama-models publishes for Llama 3.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from jumar.schema.spec import Rope, RopeScaling


def cos_sin(rope: Rope, dim: int, positions_T: Tensor, lengths: list[tuple[int, int]], trained: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, 1, dim], float32.

    dim:     elements that are rotated
    lengths: (tokens, length of their text) of each sequence in turn: dynamic scaling stretches by the length
    trained: positions that the model was trained on, for dynamic scaling that does not say
    """
    if rope.scaling is not None and rope.scaling.kind == "dynamic":
        each = [_dynamic(rope, dim, length, trained).expand(tokens, -1) for tokens, length in lengths]
        frequencies_TF, factor = torch.cat(each).to(positions_T.device), 1.0
    else:
        frequencies_TF, factor = _frequencies(rope, dim, positions_T.device)
    angles = positions_T.float()[:, None] * frequencies_TF
    wide = angles.repeat_interleave(2, -1) if rope.interleaved else torch.cat((angles, angles), -1)
    cos, sin = wide.cos()[:, None], wide.sin()[:, None]
    return (cos, sin) if factor == 1 else (cos * factor, sin * factor)


@lru_cache(maxsize=16)
def _frequencies(rope: Rope, dim: int, device: torch.device) -> tuple[Tensor, float]:
    """Frequencies [1, dim / 2] in radians a token, float32, and the factor of cosines and sines."""
    powers = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    plain, factor, scaling = 1.0 / rope.base**powers, 1.0, rope.scaling
    if scaling is not None and scaling.kind == "linear":
        plain = plain / scaling.factor
    elif scaling is not None and scaling.kind == "llama3":
        plain = _llama3(plain, scaling)
    elif scaling is not None:
        plain, factor = _yarn(rope.base, powers, dim, scaling), yarn_attention_factor(scaling)
    return plain[None].to(device), factor


@lru_cache(maxsize=256)
def _dynamic(rope: Rope, dim: int, length: int, trained: int) -> Tensor:
    """The base grows with the length of the text, once that is past what the model was trained on."""
    scaling = rope.scaling
    assert scaling is not None
    trained = scaling.original_max_position_embeddings or trained
    stretch = scaling.factor * max(length, trained) / trained - (scaling.factor - 1)
    base = rope.base * stretch ** (dim / (dim - 2))
    powers = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    inverse: Tensor = 1.0 / base**powers
    return inverse[None]


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
    """How much scores lose over a context that is `factor` times longer."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def yarn_attention_factor(scaling: RopeScaling) -> float:
    """What cosines and sines are multiplied by, so that scores keep their size over longer contexts."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return yarn_mscale(scaling.factor, scaling.mscale) / yarn_mscale(scaling.factor, scaling.mscale_all_dim)
    return yarn_mscale(scaling.factor)
