"""Rotary position embeddings as cosines and sines, for every kind of scaling that a ModelSpec names.

Sources: https://arxiv.org/abs/2104.09864 (RoPE), https://arxiv.org/abs/2309.00071 (YaRN), and the formula that
https://github.com/meta-llama/llama-models publishes for Llama 3.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from jumar.device.rotary import frequencies
from jumar.schema.spec import Rope


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
    plain, factor = frequencies(rope, dim)
    return plain[None].to(device), factor


@lru_cache(maxsize=256)
def _dynamic(rope: Rope, dim: int, length: int, trained: int) -> Tensor:
    """The base grows with the length of the text, once that is past what the model was trained on."""
    scaling = rope.scaling
    assert scaling is not None
    trained = scaling.original_max_position_embeddings or trained
    stretch = scaling.factor * max(length, trained) / trained - (scaling.factor - 1)
    base = rope.base * stretch ** (dim / (dim - 2))
    return frequencies(replace(rope, base=base, scaling=None), dim)[0][None]
