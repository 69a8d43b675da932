"""What state-space layers keep of a sequence: as much after a million tokens as after one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from jumar.schema.spec import Ssm


class Places(Protocol):
    """Something kept of each sequence, at the sequence's place."""

    def clear(self, place: int) -> None:
        """A sequence begins here."""

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """What is kept at each source, at each target. They may overlap."""


class States:
    """Of each layer: conv [places, channels, kernel - 1], the last inputs of its convolution, and ssm [places, heads, head_dim,
    state_size], float32: over thousands of tokens a state of halves would forget what it sums."""

    def __init__(self, ssm: Ssm, layers: int, places: int, tp: int, *, dtype: torch.dtype, device: torch.device) -> None:
        conv, state = _shapes(ssm, tp)
        self.conv = [torch.zeros(places, *conv, dtype=dtype, device=device) for _ in range(layers)]
        self.ssm = [torch.zeros(places, *state, device=device) for _ in range(layers)]

    def clear(self, place: int) -> None:
        for held in (*self.conv, *self.ssm):
            held[place] = 0

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        for held in (*self.conv, *self.ssm):
            held[list(targets)] = held[list(sources)]


def state_bytes(ssm: Ssm, tp: int, dtype: torch.dtype) -> int:
    """What one sequence takes in one layer of a rank."""
    conv, state = _shapes(ssm, tp)
    return conv.numel() * dtype.itemsize + state.numel() * torch.float32.itemsize


def _shapes(ssm: Ssm, tp: int) -> tuple[torch.Size, torch.Size]:
    heads, groups = ssm.num_heads // tp, ssm.num_groups // tp
    channels = heads * ssm.head_dim + 2 * groups * ssm.state_size
    return torch.Size((channels, ssm.conv_kernel - 1)), torch.Size((heads, ssm.head_dim, ssm.state_size))


Where = slice | Tensor
"""Places (or rows) as a slice where they follow one another: then nothing is gathered."""


def where(numbers: Sequence[int], device: torch.device) -> Where:
    """At least one number."""
    if list(numbers) == list(range(numbers[0], numbers[0] + len(numbers))):
        return slice(numbers[0], numbers[0] + len(numbers))
    return torch.tensor(numbers, device=device)
