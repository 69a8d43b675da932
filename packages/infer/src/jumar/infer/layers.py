"""The blocks of a decoder layer, built from traits, on the device's operations.

Shapes: T tokens of a batch (several sequences one after another), H hidden, N heads and G key/value heads of this rank, R heads
a key/value head, D head dim, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from jumar.device import Ops
from jumar.device.rotary import attention_scale
from jumar.infer.batch import Batch
from jumar.infer.cache import Cache
from jumar.infer.group import Ranks
from jumar.infer.matrices import Matrix
from jumar.infer.weights import Tensors
from jumar.schema.spec import ModelSpec, Moe

Turn = tuple[Tensor, Tensor]
"""Cosines and sines [T, 1, dims that are rotated]."""


def linear(tensors: Tensors, name: str, *, bias: bool = True, exact: bool = False) -> Matrix:
    """The matrix `name`.weight with its bias, if it has one; the tensor itself is let go. exact: never in int8."""
    return tensors.matrices(tensors.pop(f"{name}.weight"), tensors.get(f"{name}.bias") if bias else None, exact=exact)


def row_linear(tensors: Tensors, name: str, ranks: Ranks, *, exact: bool = False) -> Matrix:
    """A matrix whose input is cut over tensor-parallel ranks: products are summed, then the bias is added once."""
    if ranks.tp_size == 1:
        return linear(tensors, name, exact=exact)
    part, bias = linear(tensors, name, bias=False, exact=exact), tensors.get(f"{name}.bias")

    def apply(x: Tensor) -> Tensor:
        out = ranks.sum(part(x))
        return out if bias is None else out + bias

    return apply


class Norm:
    """RMSNorm or LayerNorm over the last dimension."""

    def __init__(self, spec: ModelSpec, ops: Ops, tensors: Tensors, name: str) -> None:
        self.weight, self.bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
        self.rms, self.eps, self.zero_centered, self.ops = spec.norm == "rms", spec.norm_eps, spec.zero_centered_gamma, ops

    def __call__(self, x: Tensor) -> Tensor:
        if self.rms:
            return self.ops.rms_norm(x, self.weight, self.eps, zero_centered=self.zero_centered)
        weight = 1 + self.weight if self.zero_centered else self.weight
        return F.layer_norm(x, weight.shape, weight, self.bias, self.eps)


class Heads:
    """softmax(q k^T scale) v over the cache, sequence by sequence."""

    def __init__(self, spec: ModelSpec, ops: Ops, layer: int) -> None:
        self.window = spec.sliding_window if layer in spec.sliding_layers else None
        self.scale, self.softcap, self.ops = attention_scale(spec), spec.attn_softcap, ops

    def __call__(self, q_TND: Tensor, k_cache: Tensor, v_cache: Tensor, batch: Batch) -> Tensor:
        """k_cache, v_cache [pages, page_size, G, D], the batch's own keys already in it -> [T, N, D of v]."""
        out = q_TND.new_empty(*q_TND.shape[:2], v_cache.shape[-1])
        words: dict[str, Any] = {"scale": self.scale, "softcap": self.softcap}
        if batch.paged is not None:
            rows, table, lengths = batch.paged
            out[rows] = self.ops.paged_attention(
                q_TND[rows], k_cache, v_cache, table, lengths, window=self.window, scale=self.scale, softcap=self.softcap
            )
        k_all, v_all = k_cache.flatten(0, 1), v_cache.flatten(0, 1)
        for span in batch.spans:
            if span.count == 1 and batch.paged is not None:
                continue
            k, v, q = k_all[span.keys], v_all[span.keys], q_TND[span.at : span.at + span.count]
            if self.window is not None and (unseen := span.end - span.count - self.window + 1) > 0:
                k, v = k[unseen:], v[unseen:]
            if span.count == 1:  # the heads that share a key/value head are its queries
                q = q.view(1, k.shape[1], -1, q.shape[-1]).transpose(1, 2)
                got = self.ops.attention(q, k[None], v[None], causal=False, **words).transpose(1, 2).flatten(1, 2)
            else:
                got = self.ops.attention(q[None], k[None], v[None], window=self.window, **words)[0]
            if len(batch.spans) == 1:
                return got
            out[span.at : span.at + span.count] = got
        return out


class Attention:
    """Grouped-query attention; linear_qkv holds for each key/value head its R queries, its key, its value."""

    def __init__(self, spec: ModelSpec, ops: Ops, tensors: Tensors, layer: int, ranks: Ranks) -> None:
        a = "self_attention."
        self.qkv, self.proj = linear(tensors, a + "linear_qkv"), row_linear(tensors, a + "linear_proj", ranks)
        self.q_norm = Norm(spec, ops, tensors, a + "q_layernorm") if spec.qk_norm else None
        self.k_norm = Norm(spec, ops, tensors, a + "k_layernorm") if spec.qk_norm else None
        self.shape = (-1, spec.num_heads // spec.num_kv_heads + 2, spec.head_dim)
        self.heads, self.ops, self.interleaved = Heads(spec, ops, layer), ops, spec.rope.interleaved

    def __call__(self, x_TH: Tensor, turn: Turn | None, k_cache: Tensor, v_cache: Tensor, batch: Batch) -> Tensor:
        qkv = self.qkv(x_TH).view(len(x_TH), *self.shape)
        qk, v = qkv[:, :, :-1], qkv[:, :, -1]
        if self.q_norm is not None and self.k_norm is not None:
            qk = torch.cat((self.q_norm(qk[:, :, :-1]), self.k_norm(qk[:, :, -1:])), 2)
        if turn is not None:  # of all heads at once
            qk = self.ops.rope(qk.flatten(1, 2), *turn, interleaved=self.interleaved).view(qk.shape)
        q, k = qk[:, :, :-1].flatten(1, 2), qk[:, :, -1]
        k_cache.flatten(0, 1).index_copy_(0, batch.slots_T, k)
        v_cache.flatten(0, 1).index_copy_(0, batch.slots_T, v)
        return self.proj(self.heads(q, k_cache, v_cache, batch).flatten(1))


class LatentAttention:
    """Multi-head latent attention, https://arxiv.org/abs/2405.04434, over a cache of latents.

    The up-projection of keys is multiplied into the queries, that of values into what attention gives (section 2.1.2): all heads
    share one key, which is the latent with the rotated part behind it, and whose front is the value.
    """

    def __init__(self, spec: ModelSpec, ops: Ops, tensors: Tensors, layer: int, ranks: Ranks) -> None:
        assert spec.mla is not None
        self.mla, a = spec.mla, "self_attention."
        self.q_down, self.q_norm = None, None
        if spec.mla.q_lora_rank:
            self.q_down, self.q_norm = linear(tensors, a + "linear_q_down_proj"), Norm(spec, ops, tensors, a + "q_layernorm")
        self.q_up = linear(tensors, a + ("linear_q_up_proj" if self.q_down else "linear_q_proj"))
        self.kv_down, self.kv_norm = linear(tensors, a + "linear_kv_down_proj"), Norm(spec, ops, tensors, a + "kv_layernorm")
        up = tensors.pop(a + "linear_kv_up_proj.weight").view(-1, spec.mla.nope_dim + spec.mla.v_dim, spec.mla.kv_lora_rank)
        k_up, v_up = torch.split(up, [spec.mla.nope_dim, spec.mla.v_dim], 1)
        self.k_up, self.v_up = tensors.matrices.of_heads(k_up.transpose(1, 2)), tensors.matrices.of_heads(v_up)
        self.proj = row_linear(tensors, a + "linear_proj", ranks)
        self.heads, self.ops, self.interleaved = Heads(spec, ops, layer), ops, spec.rope.interleaved

    def __call__(self, x_TH: Tensor, turn: Turn | None, k_cache: Tensor, v_cache: Tensor, batch: Batch) -> Tensor:
        assert turn is not None
        mla = self.mla
        q_low = x_TH if self.q_down is None or self.q_norm is None else self.q_norm(self.q_down(x_TH))
        q = self.q_up(q_low).view(len(x_TH), -1, mla.nope_dim + mla.rope_dim)
        q_nope, q_rope = torch.split(q, [mla.nope_dim, mla.rope_dim], -1)
        latent, k_rope = torch.split(self.kv_down(x_TH), [mla.kv_lora_rank, mla.rope_dim], -1)
        q_rope = self.ops.rope(q_rope, *turn, interleaved=self.interleaved)
        k_rope = self.ops.rope(k_rope[:, None], *turn, interleaved=self.interleaved)
        k = torch.cat((self.kv_norm(latent)[:, None], k_rope), -1)
        q = torch.cat((self.k_up(q_nope), q_rope), -1)
        k_cache.flatten(0, 1).index_copy_(0, batch.slots_T, k)
        out = self.heads(q, k_cache, v_cache, batch)[..., : mla.kv_lora_rank]
        return self.proj(self.v_up(out).flatten(1))


class Activation:
    """What stands between the two matrices of an MLP; gated: of the first half, times the second."""

    def __init__(self, spec: ModelSpec, ops: Ops) -> None:
        plain: dict[str, Callable[[Tensor], Tensor]] = {
            "silu": F.silu,
            "gelu": F.gelu,
            "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
            "relu": F.relu,
            "relu2": lambda x: F.relu(x).square(),
        }
        self.plain, self.gated = plain[spec.activation], spec.gated
        self.swiglu = ops.swiglu if spec.gated and spec.activation == "silu" else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.swiglu is not None:
            return self.swiglu(x)
        if not self.gated:
            return self.plain(x)
        gate, up = x.chunk(2, -1)
        return self.plain(gate) * up


class Mlp:
    """A dense MLP."""

    def __init__(self, tensors: Tensors, name: str, activation: Activation, ranks: Ranks) -> None:
        self.fc1 = linear(tensors, f"{name}.linear_fc1")
        # Half of what int8 costs in perplexity is the rounding of this one, which sums the widest rows.
        self.fc2 = row_linear(tensors, f"{name}.linear_fc2", ranks, exact=True)
        self.activation = activation

    def __call__(self, x_TH: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x_TH)))


class Experts:
    """A mixture of experts: each token through the few that it chooses, and through the shared ones."""

    def __init__(
        self,
        spec: ModelSpec,
        ops: Ops,
        tensors: Tensors,
        experts: Mapping[str, Sequence[Tensor]],
        activation: Activation,
        ranks: Ranks,
    ) -> None:
        assert spec.moe is not None
        m = "mlp."
        self.moe, self.ops, self.activation, self.ranks, make = spec.moe, ops, activation, ranks, tensors.matrices
        self.router = make(tensors.pop(m + "router.weight").float(), exact=True)
        self.bias = tensors.get(m + "router.expert_bias")
        self.fc1, self.fc2 = (make.grouped(experts[f"{m}experts.linear_fc{i}.weight"]) for i in (1, 2))
        self.shared = Mlp(tensors, m + "shared_experts", activation, Ranks()) if spec.moe.shared_ffn_size else None
        gate = tensors.get(m + "shared_experts.gate_weight")
        self.gate = None if gate is None else make(gate, exact=True)

    def __call__(self, x_TH: Tensor) -> Tensor:
        weights_TK, chosen_TK = choose(self.router(x_TH.float()), self.moe, self.bias)
        rows, order = self.ops.permute(x_TH, chosen_TK)
        counts = torch.bincount(chosen_TK.flatten(), minlength=self.moe.num_experts)
        rows = self.fc2(self.activation(self.fc1(rows, counts)), counts)
        out = self.ops.unpermute(rows, order, weights_TK.to(rows.dtype), k=self.moe.top_k)
        if self.shared is not None:
            shared = self.shared(x_TH)
            out = out + (shared if self.gate is None else shared * sigmoid(self.gate(x_TH)))
        return self.ranks.sum(out)


def sigmoid(x: Tensor) -> Tensor:
    """By exp: on CPUs torch's own rounds what is left over behind whole vectors otherwise: rows would depend on their number."""
    return 1 / (1 + (-x).exp())


def choose(logits_TE: Tensor, moe: Moe, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights and numbers of the experts that each token chooses, [T, top_k].

    https://arxiv.org/abs/2405.04434 (groups), https://arxiv.org/abs/2408.15664 (the bias, which only chooses).
    """
    scores = logits_TE.softmax(-1) if moe.score == "softmax" else sigmoid(logits_TE)
    ranks = scores if bias is None else scores + bias
    if moe.num_groups > 1:
        groups = ranks.view(len(ranks), moe.num_groups, -1)
        best = (groups.amax(-1) if moe.group_score == "max" else groups.topk(2, -1).values.sum(-1)).topk(moe.topk_groups, -1)
        kept = torch.zeros_like(groups[..., 0], dtype=torch.bool).scatter(-1, best.indices, True)
        ranks = groups.masked_fill(~kept[..., None], float("-inf")).flatten(-2)
    chosen = ranks.topk(moe.top_k, -1).indices
    weights = scores.gather(-1, chosen)
    if moe.norm_topk and moe.top_k > 1:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * moe.scaling_factor, chosen


class Mixer(Protocol):
    """Attention of either kind."""

    def __call__(self, x_TH: Tensor, turn: Turn | None, k_cache: Tensor, v_cache: Tensor, batch: Batch) -> Tensor: ...


class Layer:
    """One decoder layer: attention and MLP, each behind a norm, with a second norm after it by trait."""

    def __init__(
        self,
        spec: ModelSpec,
        ops: Ops,
        tensors: Tensors,
        experts: Mapping[str, Sequence[Tensor]],
        layer: int,
        ranks: Ranks,
    ) -> None:
        kind = Attention if spec.mla is None else LatentAttention
        self.attention: Mixer = kind(spec, ops, tensors, layer, ranks)
        activation = Activation(spec, ops)
        self.mlp: Callable[[Tensor], Tensor] = (
            Experts(spec, ops, tensors, experts, activation, ranks) if experts else Mlp(tensors, "mlp", activation, ranks)
        )
        self.input_norm, self.mlp_norm = (Norm(spec, ops, tensors, n) for n in ("input_layernorm", "pre_mlp_layernorm"))
        self.after_attention = Norm(spec, ops, tensors, "post_attn_norm") if spec.post_norms else None
        self.after_mlp = Norm(spec, ops, tensors, "post_mlp_layernorm") if spec.post_norms else None

    def __call__(self, x_TH: Tensor, turn: Turn | None, cache: Cache, index: int, batch: Batch) -> Tensor:
        """index: of this layer among those of the rank."""
        out = self.attention(self.input_norm(x_TH), turn, cache.k[index], cache.v[index], batch)
        x_TH = x_TH + (out if self.after_attention is None else self.after_attention(out))
        out = self.mlp(self.mlp_norm(x_TH))
        return x_TH + (out if self.after_mlp is None else self.after_mlp(out))
