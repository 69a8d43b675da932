"""Norms, MLPs, experts and the layer, on the device's operations, in megatron-core's places and with its parameter names."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.parallel_state import get_tensor_model_parallel_rank
from megatron.core.transformer import mlp, transformer_layer
from megatron.core.transformer.moe import experts, shared_experts
from torch import Tensor

from jumar.device import Ops
from jumar.schema.spec import ModelSpec

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


class RMSNorm(torch.nn.Module):
    """https://arxiv.org/abs/1910.07467. Its gradient is summed over TP under sequence parallelism."""

    def __init__(self, config: Any, hidden_size: int, eps: float, *, spec: ModelSpec, ops: Ops, **_unused: Any) -> None:
        super().__init__()
        self.eps, self.ops, self.zero_centered = eps, ops, spec.zero_centered_gamma
        start = torch.zeros if spec.zero_centered_gamma else torch.ones
        self.weight = torch.nn.Parameter(start(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.rms_norm(x, self.weight, self.eps, zero_centered=self.zero_centered)


class LayerNorm(torch.nn.LayerNorm):
    """torch's, under sequence parallelism too. torch alone keeps it: it has one fused kernel on every device."""

    def __init__(self, config: Any, hidden_size: int, eps: float, *, spec: ModelSpec, ops: Ops, **_unused: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        for parameter in (self.weight, self.bias):
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


def activation(ops: Ops, spec: ModelSpec) -> Callable[[Tensor], Tensor]:
    """The activation between the two matrices of an MLP: [..., 2 * ffn] to [..., ffn] where it is gated."""
    plain = ACTIVATIONS[spec.activation]
    if not spec.gated:
        return plain
    if spec.activation == "silu":
        return ops.swiglu

    def gated(x: Tensor) -> Tensor:
        gates, values = x.chunk(2, -1)
        return plain(gates) * values

    return gated


class MLP(mlp.MLP):  # type: ignore[misc]
    def __init__(self, config: Any, *args: Any, spec: ModelSpec, ops: Ops, **kwargs: Any) -> None:
        config = copy.copy(config)
        config.add_bias_linear = spec.mlp_bias
        kwargs.setdefault("ffn_hidden_size", config.ffn_hidden_size)
        super().__init__(config, *args, **kwargs)
        self.activation = activation(ops, spec)

    def forward(
        self, hidden_states: Tensor, per_token_scale: Tensor | None = None, **_unused: Any
    ) -> tuple[Tensor, Tensor | None]:
        """[S, B, H] to the same, and the bias that is still to be added."""
        x, bias = self.linear_fc1(hidden_states)
        out: tuple[Tensor, Tensor | None] = self.linear_fc2(self.activation(x if bias is None else x + bias))
        return out


class SharedExperts(shared_experts.SharedExpertMLP):  # type: ignore[misc]
    """Experts that every token goes through; with a gate, by the share that it gives."""

    def __init__(self, *args: Any, spec: ModelSpec, ops: Ops, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = activation(ops, spec)

    def forward(self, hidden_states: Tensor) -> Tensor:
        out, _ = MLP.forward(self, hidden_states)
        if self.gate_weight is not None:
            out = out * F.linear(hidden_states, self.gate_weight).sigmoid()
        return out


class GroupedExperts(experts.SequentialMLP):  # type: ignore[misc]
    """All experts of a rank in one grouped matrix product; the parameters are those of megatron-core's SequentialMLP."""

    def __init__(self, *args: Any, spec: ModelSpec, ops: Ops, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ops, self.activation = ops, activation(ops, spec)
        self.recompute_act = self.config.recompute_granularity == "selective" and "moe_act" in self.config.recompute_modules

    def forward(self, tokens_TH: Tensor, tokens_per_expert: Tensor, probs_T: Tensor) -> tuple[Tensor, None]:
        """Tokens sorted by expert, the number of each, and their weights. Returns the weighted outputs [T, H]."""
        for expert in self.local_experts:
            for linear in (expert.linear_fc1, expert.linear_fc2):
                for hook in linear._forward_pre_hooks.values():
                    hook(linear, ())  # with overlap_param_gather it waits for the weights; nothing below would
        first = [expert.linear_fc1.weight for expert in self.local_experts]
        second = [expert.linear_fc2.weight for expert in self.local_experts]
        x = self.ops.grouped_matmul(tokens_TH, first, tokens_per_expert)
        if not (self.recompute_act and self.training):
            return self.ops.grouped_matmul(self._weighted(x, probs_T), second, tokens_per_expert), None
        again = tensor_parallel.CheckpointWithoutOutput()
        out = self.ops.grouped_matmul(again.checkpoint(self._weighted, x, probs_T), second, tokens_per_expert)
        again.discard_output_and_register_recompute(out)
        return out, None

    def _weighted(self, x: Tensor, probs_T: Tensor) -> Tensor:
        return (self.activation(x) * probs_T.unsqueeze(-1)).to(x.dtype)


class TransformerLayer(transformer_layer.TransformerLayer):  # type: ignore[misc]
    """megatron-core's layer; where the model has them, norms after attention and MLP, before the residual is added."""

    def __init__(self, config: Any, *args: Any, spec: ModelSpec, ops: Ops, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        if spec.post_norms:
            settings = dict(hidden_size=config.hidden_size, eps=config.layernorm_epsilon, spec=spec, ops=ops)
            self.post_attn_norm = RMSNorm(config, **settings)
            self.post_mlp_layernorm = RMSNorm(config, **settings)
            inner: Any = self
            self.self_attn_bda: Any = _after(self.post_attn_norm, inner.self_attn_bda)
            self.mlp_bda: Any = _after(self.post_mlp_layernorm, inner.mlp_bda)

    def forward(self, *args: Any, packed_seq_params: Any = None, **kwargs: Any) -> Any:
        """Experts are told which tokens are padding; megatron-core tells those of the first stage alone."""
        if packed_seq_params is not None:
            padding = packed_seq_params.padding
            if self.config.sequence_parallel:
                padding = padding.chunk(self.config.tensor_model_parallel_size, 1)[get_tensor_model_parallel_rank()]
            kwargs["padding_mask"] = padding
        return super().forward(*args, packed_seq_params=packed_seq_params, **kwargs)


def _after(norm: torch.nn.Module, add: Callable[[bool, bool], Any]) -> Callable[[bool, bool], Any]:
    """bias-dropout-add of what `norm` makes of output and bias."""

    def made(training: bool, fused: bool) -> Any:
        def run(out_with_bias: tuple[Tensor, Tensor | None], residual: Tensor, dropout: float) -> Tensor:
            out, bias = out_with_bias
            result: Tensor = add(training, fused)((norm(out if bias is None else out + bias), None), residual, dropout)
            return result

        return run

    return made
