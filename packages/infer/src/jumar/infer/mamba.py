"""The Mamba-2 mixer (https://arxiv.org/abs/2405.21060), and layers that are one thing alone: a mixer, attention, or an MLP.

Shapes: T tokens of a batch, H hidden, I inner size and C channels of the convolution of this rank's heads; R rows of one token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jumar.device import Ops
from jumar.infer.batch import Batch, Span
from jumar.infer.cache import Cache
from jumar.infer.group import Ranks
from jumar.infer.layers import Activation, Attention, Mlp, Norm, Turn, linear, row_linear
from jumar.infer.states import States, Where
from jumar.infer.weights import Tensors
from jumar.schema.spec import LayerKind, ModelSpec


class Mamba:
    """z, x, B, C, dt = in_proj(u); x, B, C = silu(conv(x, B, C)); out_proj(norm(scan(x, dt, A, B, C) silu(z)))."""

    def __init__(self, spec: ModelSpec, ops: Ops, tensors: Tensors, ranks: Ranks) -> None:
        assert spec.ssm is not None
        m, self.ssm, self.ops, self.eps = "mixer.", spec.ssm, ops, spec.norm_eps
        self.in_proj = linear(tensors, m + "in_proj")
        self.out_proj = row_linear(tensors, m + "out_proj", ranks, exact=True)  # it sums the widest rows, as an MLP's second
        self.conv, self.conv_bias = tensors[m + "conv1d.weight"].squeeze(1), tensors.get(m + "conv1d.bias")
        self.A, self.D = -tensors[m + "A_log"].float().exp(), tensors[m + "D"].float()
        self.dt_bias, self.norm_weight = tensors[m + "dt_bias"].float(), tensors[m + "norm.weight"]
        self.heads, self.groups = spec.ssm.num_heads // ranks.tp_size, spec.ssm.num_groups // ranks.tp_size
        inner, state = self.heads * spec.ssm.head_dim, self.groups * spec.ssm.state_size
        self.ones = torch.ones_like(self.norm_weight[: inner // self.groups])
        self.projected, self.convolved = [inner, inner + 2 * state, self.heads], [inner, state, state]

    def __call__(self, x_TH: Tensor, states: States, index: int, batch: Batch) -> Tensor:
        """index: of this layer among those with states. The states are then those after the batch's tokens."""
        z, mixed, dt = torch.split(self.in_proj(x_TH), self.projected, -1)
        conv, ssm = states.conv[index], states.ssm[index]
        y_TI = torch.empty_like(z)
        if batch.single is not None:
            rows, places = batch.single
            y_TI[rows] = self._step(mixed[rows], dt[rows], z[rows], conv, ssm, places)
        for span in batch.spans:
            if span.count > 1:
                at = slice(span.at, span.at + span.count)
                y_TI[at] = self._scan(mixed[at], dt[at], z[at], conv, ssm, span)
        return self.out_proj(self._norm(y_TI))

    def _scan(self, mixed_LC: Tensor, dt_LN: Tensor, z_LI: Tensor, conv: Tensor, ssm: Tensor, span: Span) -> Tensor:
        """Several tokens of one sequence, in chunks."""
        before = conv.shape[-1]
        window = torch.cat((conv[span.place], mixed_LC.T), -1)
        conv[span.place] = window[:, span.count :]
        mixed = self.ops.causal_conv1d(window[None], self.conv, self.conv_bias, "silu")[0, :, before:].T
        x, B, C = torch.split(mixed, self.convolved, -1)
        y, state = self.ops.ssd_scan(
            _each(x, self.heads)[None],
            dt_LN[None],
            self.A,
            _each(B, self.groups)[None],
            _each(C, self.groups)[None],
            self.ssm.chunk_size,
            D=self.D,
            z=_each(z_LI, self.heads)[None],
            dt_bias=self.dt_bias,
            dt_softplus=True,
            initial_states=ssm[span.place, None],
            return_final_states=True,
        )
        ssm[span.place] = state[0]
        return y[0].flatten(1)

    def _step(self, mixed_RC: Tensor, dt_RN: Tensor, z_RI: Tensor, conv: Tensor, ssm: Tensor, places: Where) -> Tensor:
        """One token each of several sequences: S = exp(dt A) S + dt x B^T, y = S C + D x, in fp32."""
        window = torch.cat((conv[places], mixed_RC[..., None]), -1)
        conv[places] = window[..., 1:]
        mixed = (window.float() * self.conv.float()).sum(-1)
        mixed = _silu(mixed if self.conv_bias is None else mixed + self.conv_bias)
        x, B, C = torch.split(mixed, self.convolved, -1)
        x = _each(x, self.heads)
        B, C = (_each(t, self.groups).repeat_interleave(self.heads // self.groups, 1) for t in (B, C))
        dt = _softplus(dt_RN.float() + self.dt_bias)
        state = ssm[places]  # where they follow one another, a part of `ssm` itself
        state.mul_((dt * self.A).exp()[..., None, None]).addcmul_((dt[..., None] * x)[..., None], B[:, :, None])
        if not isinstance(places, slice):
            ssm[places] = state
        y = (state @ C[..., None])[..., 0] + self.D[:, None] * x
        return (y * _silu(_each(z_RI.float(), self.heads))).to(z_RI.dtype).flatten(1)

    def _norm(self, y_TI: Tensor) -> Tensor:
        """RMSNorm over each group by itself."""
        grouped = _each(y_TI, self.groups)
        return self.ops.rms_norm(grouped, self.ones, self.eps).flatten(1) * self.norm_weight


def _each(x: Tensor, count: int) -> Tensor:
    """[..., count * size] to [..., count, size]."""
    return x.reshape(*x.shape[:-1], count, -1)


# On CPUs torch's own round what is left over behind whole vectors otherwise than what is in them: a row's numbers would depend
# on how many rows there are. exp and log1p do not.


def _silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def _softplus(x: Tensor) -> Tensor:
    return torch.where(x > 20, x, x.exp().log1p())


NORMS: dict[LayerKind, str] = {"ssm": "norm", "attention": "input_layernorm", "mlp": "pre_mlp_layernorm"}


class SingleLayer:
    """A Mamba-2 mixer, attention, or an MLP, behind a norm."""

    def __init__(self, spec: ModelSpec, ops: Ops, tensors: Tensors, layer: int, ranks: Ranks) -> None:
        kind = spec.layer_kind(layer)
        self.input_norm = Norm(spec, ops, tensors, NORMS[kind])
        self.mamba = Mamba(spec, ops, tensors, ranks) if kind == "ssm" else None
        self.attention = Attention(spec, ops, tensors, layer, ranks) if kind == "attention" else None
        self.mlp = Mlp(tensors, "mlp", Activation(spec, ops), ranks) if kind == "mlp" else None

    def __call__(self, x_TH: Tensor, turn: Turn | None, cache: Cache, index: int, batch: Batch) -> Tensor:
        """x_TH in the dtype of the residual. index: of this layer among those of its kind on the rank."""
        normed = self.input_norm(x_TH).to(self.input_norm.weight.dtype)
        if self.mamba is not None:
            assert isinstance(cache.states, States)
            out = self.mamba(normed, cache.states, index, batch)
        elif self.attention is not None:
            out = self.attention(normed, turn, cache.k[index], cache.v[index], batch)
        else:
            assert self.mlp is not None
            out = self.mlp(normed)
        return x_TH + out
