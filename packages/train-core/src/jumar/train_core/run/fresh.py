"""How fresh weights are drawn, one Hugging Face tensor at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from jumar.schema.spec import ModelSpec, Ssm

Kind = Literal["normal", "narrow", "zero", "one", "decay", "step", "convolution"]
MIXER: dict[str, Kind] = {"A_log": "decay", "dt_bias": "step", "D": "one"}


@dataclass(frozen=True, slots=True)
class Fresh:
    """Normal with std, smaller by the square root of what is added to the residual where a matrix adds to it (as in Megatron-LM);
    norms 1, biases 0. Of state-space layers, as https://github.com/state-spaces/mamba draws them: A from 1 to 16, time steps
    log-uniform, D 1, and the convolution as torch does."""

    spec: ModelSpec
    std: float

    def kind(self, name: str) -> Kind:
        """name: of the tensor in megatron-core."""
        module, _, last = name.rpartition(".")
        if last in MIXER:
            return MIXER[last]
        if module.endswith("conv1d"):
            return "convolution"
        if last.endswith("bias"):
            return "zero"
        if "norm" in module.rpartition(".")[2]:
            return "zero" if self.spec.zero_centered_gamma else "one"
        return "narrow" if name.endswith(("linear_proj.weight", "linear_fc2.weight", "out_proj.weight")) else "normal"

    def draw(self, kind: Kind, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        ssm = self.spec.ssm
        if kind in ("zero", "one"):
            return torch.full(shape, 1.0 if kind == "one" else 0.0)
        if kind in ("normal", "narrow"):
            added = self.spec.num_layers * (1 if ssm is not None else 2)
            return torch.randn(shape, generator=generator) * (self.std / added**0.5 if kind == "narrow" else self.std)
        assert ssm is not None
        even = torch.rand(shape, generator=generator)
        if kind == "decay":
            return torch.log(1 + 15 * even)
        return _steps(ssm, even) if kind == "step" else (2 * even - 1) * ssm.conv_kernel**-0.5


def _steps(ssm: Ssm, even: Tensor) -> Tensor:
    """softplus of it is a time step from time_step_min to time_step_max."""
    low, high = math.log(ssm.time_step_min), math.log(ssm.time_step_max)
    steps = torch.exp(low + even * (high - low)).clamp(min=ssm.time_step_floor)
    return steps + torch.log(-torch.expm1(-steps))
