"""The Mamba-2 mixer on the device's operations, with megatron-core's parameter names. https://arxiv.org/abs/2405.21060

megatron-core's own needs mamba-ssm's Triton kernels, has one eps for all models, and no biases of its projections.
Shapes: S tokens of this rank, L tokens of the whole sequence, B micro batch, H hidden, I inner size of this rank's heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.ssm.mamba_context_parallel import MambaContextParallel
from megatron.core.ssm.mamba_mixer import _split_tensor_factory
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint, sharded_state_dict_default
from torch import Tensor

from jumar.device import Ops
from jumar.schema.spec import ModelSpec
from jumar.train_core.parallel.packed import Packed

FP32 = ("A_log", "D")
"""Parameters that stay float32 in a model of halves: A is exp(A_log), and decays a state over thousands of tokens."""


def _each(x: Tensor, count: int) -> Tensor:
    """[..., count * size] to [..., count, size]."""
    return x.reshape(*x.shape[:-1], count, -1)


class GroupedNorm(torch.nn.Module):
    """RMSNorm over each group of the inner size by itself, so that no group's norm needs another rank's numbers."""

    def __init__(self, size: int, groups: int, eps: float, *, ops: Ops, dtype: torch.dtype) -> None:
        super().__init__()
        self.groups, self.eps, self.ops = groups, eps, ops
        self.weight = torch.nn.Parameter(torch.ones(size, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to the same. Rounded before it is weighed, as in transformers' model."""
        if self.groups == 1:
            return self.ops.rms_norm(x, self.weight, self.eps)
        grouped = _each(x, self.groups)
        return self.ops.rms_norm(grouped, grouped.new_ones(grouped.shape[-1]), self.eps).flatten(-2) * self.weight


class Mixer(MegatronModule):  # type: ignore[misc]  # megatron-core has no types
    """z, x, B, C, dt = in_proj(u); x, B, C = silu(conv(x, B, C)); out_proj(norm(scan(x, dt, A, B, C) silu(z))).

    TP cuts heads and groups; CP exchanges tokens for heads before the convolution and back after the scan.
    """

    def __init__(self, config: Any, *, spec: ModelSpec, ops: Ops, pg_collection: Any, **_unused: Any) -> None:
        super().__init__(config)
        ssm, tp = spec.ssm, pg_collection.tp.size()
        assert ssm is not None
        self.ops, self.ssm, self.groups_of_ranks = ops, ssm, pg_collection
        heads, groups = ssm.num_heads // tp, ssm.num_groups // tp
        inner, state = heads * ssm.head_dim, groups * ssm.state_size
        self.heads, self.groups = heads, groups
        self.projected = {"z": inner, "x": inner, "B": state, "C": state, "dt": heads}
        self.convolved = {name: self.projected[name] for name in "xBC"}
        linear: dict[str, Any] = dict(config=config, bias=ssm.proj_bias, is_expert=False, tp_group=pg_collection.tp)
        self.in_proj = ColumnParallelLinear(
            spec.hidden_size, tp * sum(self.projected.values()), init_method=config.init_method, gather_output=False, **linear
        )
        self.out_proj = RowParallelLinear(
            tp * inner,
            spec.hidden_size,
            init_method=config.output_layer_init_method,
            input_is_parallel=True,
            skip_bias_add=True,
            **linear,
        )
        channels, dtype = sum(self.convolved.values()), config.params_dtype
        self.conv1d = torch.nn.Conv1d(
            channels, channels, ssm.conv_kernel, groups=channels, bias=ssm.conv_bias, dtype=dtype
        )  # holds the parameters alone
        self.dt_bias = torch.nn.Parameter(torch.zeros(heads, dtype=dtype))
        self.A_log = torch.nn.Parameter(torch.zeros(heads, dtype=torch.float32))
        self.D = torch.nn.Parameter(torch.ones(heads, dtype=torch.float32))
        self.norm = GroupedNorm(inner, groups, spec.norm_eps, ops=ops, dtype=dtype)
        for parameter in (self.dt_bias, self.A_log, self.D, *self.conv1d.parameters(), *self.norm.parameters()):
            parameter.tensor_model_parallel = True  # type: ignore[attr-defined]  # every TP rank's are others: the norm of the gradient counts them all

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Mixer:
        """Moves and casts; of what stays float32, only moves."""
        before = {name: getattr(self, name).data for name in FP32}
        super()._apply(fn, recurse)
        for name, value in before.items():
            parameter = getattr(self, name)
            if parameter.dtype != value.dtype:
                parameter.data = value.to(parameter.device)
        return self

    def forward(
        self, hidden_states: Tensor, *, packed_seq_params: Packed | None = None, **_unused: Any
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states [S, B, H], S cut over CP, and over TP under sequence parallelism. Returns the same and a bias to add.

        packed_seq_params: its `lengths` are those of the documents; no state and no convolution goes over such a border.
        """
        across = self._across()
        projected, _ = self.in_proj(hidden_states)
        whole_BLX = across.pre_conv_ssm(projected).transpose(0, 1)
        if packed_seq_params is None:
            y_BLI = self._scan(whole_BLX, across)
        else:
            documents = whole_BLX.flatten(0, 1).split(packed_seq_params.lengths)
            y_BLI = torch.cat([self._scan(each[None], across)[0] for each in documents]).view(*whole_BLX.shape[:2], -1)
        y_SBI = across.post_conv_ssm(y_BLI.transpose(0, 1))
        out: tuple[Tensor, Tensor | None] = self.out_proj(self.norm(y_SBI))
        return out

    def _scan(self, whole_BLX: Tensor, across: Any) -> Tensor:
        """Convolution and scan of whole sequences, for this rank's heads: [B, L, z x B C dt] to [B, L, I]."""
        ssm, groups = self.ssm, across.ngroups_local_tpcp
        inner, heads, state = across.d_inner_local_tpcp, across.nheads_local_tpcp, groups * ssm.state_size
        z, mixed, dt = torch.split(whole_BLX, [inner, inner + 2 * state, heads], -1)
        bias = across.get_conv1d_bias() if ssm.conv_bias else None
        mixed = self.ops.causal_conv1d(mixed.transpose(1, 2), across.get_conv1d_weight().squeeze(1), bias, "silu").transpose(1, 2)
        x, B, C = torch.split(mixed, [inner, state, state], -1)
        y = self.ops.ssd_scan(
            _each(x, heads),
            dt,
            -torch.exp(across.get_A_log().float()),
            _each(B, groups),
            _each(C, groups),
            ssm.chunk_size,
            D=across.get_D().float(),
            z=_each(z, heads),
            dt_bias=across.get_dt_bias().float(),
            dt_softplus=True,
        )
        return y.flatten(-2)

    def _across(self) -> Any:
        """The exchange over context-parallel ranks, and which parameters are this one's. Made anew: moving may replace them."""
        return MambaContextParallel(
            cp_group=self.groups_of_ranks.cp,
            d_inner_local_tp=self.projected["x"],
            nheads_local_tp=self.heads,
            ngroups_local_tp=self.groups,
            d_state=self.ssm.state_size,
            conv1d_cp1=self.conv1d,
            dt_bias_cp1=self.dt_bias,
            A_log_cp1=self.A_log,
            D_cp1=self.D,
            D_has_hdim=False,
        )

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """As megatron-core's mixer writes it: what TP cuts piece by piece is saved piece by piece."""
        own: dict[str, Tensor] = {}
        self._save_to_state_dict(own, "", keep_vars=True)
        parts = {"": own} | {f"{name}.": getattr(self, name).state_dict(keep_vars=True) for name in ("conv1d", "norm")}
        found: dict[str, Any] = {}
        groups = {"tp_group": self.groups_of_ranks.tp, "dp_cp_group": metadata["dp_cp_group"]}
        for name, tensors in parts.items():
            found |= make_sharded_tensors_for_checkpoint(
                tensors, prefix + name, dict.fromkeys(tensors, 0), sharded_offsets, **groups
            )
        for name in ("in_proj", "out_proj"):
            linear = getattr(self, name)
            found |= sharded_state_dict_default(
                linear, f"{prefix}{name}.", sharded_offsets, metadata, tp_group=groups["tp_group"]
            )
        pieces = {"in_proj.weight": self.projected, "conv1d.weight": self.convolved, "conv1d.bias": self.convolved}
        for name, sizes in pieces.items():
            if (key := prefix + name) in found:
                found[key] = _split_tensor_factory(found[key], list(sizes.values()), list(sizes), 0)
        return found
