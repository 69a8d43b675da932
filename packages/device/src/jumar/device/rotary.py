"""Rotary frequencies for every kind of scaling that a ModelSpec names, and the factor of attention's scores that goes with them.

Training and inference use the same. Sources: https://arxiv.org/abs/2104.09864 (RoPE), https://arxiv.org/abs/2309.00071
(YaRN), and the formula that https://github.com/meta-llama/llama-models publishes for Llama 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jumar.schema.spec import ModelSpec, Rope, RopeScaling


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


def attention_scale(spec: ModelSpec) -> float:
    """The factor of the scores. Under YaRN with mscale_all_dim, latent attention has mscale squared in it (DeepSeek-V2)."""
    if spec.mla is None:
        return spec.attn_scale or spec.head_dim**-0.5
    scale: float = (spec.mla.nope_dim + spec.mla.rope_dim) ** -0.5
    scaling = spec.rope.scaling
    if scaling is not None and scaling.mscale_all_dim:
        scale *= yarn_mscale(scaling.factor, scaling.mscale_all_dim) ** 2
    return scale
