"""Attention modules on the device's operations, in megatron-core's places and with its parameter names.

Shapes: S tokens of this rank, B micro batch, N heads of this rank, G key/value heads of this rank, D head dim, H hidden.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.tensor_parallel.mappings import (
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer import attention, multi_latent_attention
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from jumar.device import Ops
from jumar.device.rotary import attention_scale
from jumar.schema.spec import ModelSpec
from jumar.train_core.model.rotary import Rotary
from jumar.train_core.parallel.context import ContextAttention
from jumar.train_core.parallel.packed import Packed, attend


class CoreAttention(MegatronModule):  # type: ignore[misc]  # megatron-core has no types
    """softmax(q k^T scale) v, causal, with the window of its layer and the model's soft-capping; over all ranks of a CP group."""

    def __init__(self, config: Any, layer_number: int, *, spec: ModelSpec, ops: Ops, **_unused: Any) -> None:
        super().__init__(config=config)
        self.window = spec.sliding_window if layer_number - 1 in spec.sliding_layers else None
        self.settings = {"scale": attention_scale(spec), "softcap": spec.attn_softcap}
        self.ops, self.context = ops, None
        if config.context_parallel_size > 1:
            self.context = ContextAttention(ops, parallel_state.get_context_parallel_group())

    def forward(self, q_SBND: Tensor, k_SBGD: Tensor, v_SBGD: Tensor, packed: Packed | None = None) -> Tensor:
        """Returns [S, B, N * D of v]. packed: of rows that hold several documents."""
        q, k, v = (x.transpose(0, 1) for x in (q_SBND, k_SBGD, v_SBGD))
        settings: dict[str, Any] = {"window": self.window, **self.settings}
        if packed is not None:
            out = attend(self.ops, packed, q, *((k, v) if self.context is None else self.context.whole(k, v)), **settings)
        else:
            out = (self.context or self.ops.attention)(q, k, v, **settings)
        return out.transpose(0, 1).flatten(2)


class _Core:
    """What both kinds of attention do after q, k and v are there."""

    core_attention: Any
    linear_proj: Any
    checkpoint_core_attention: bool
    training: bool

    def _attend(self, q_SBND: Tensor, k_SBGD: Tensor, v_SBGD: Tensor, packed: Packed | None) -> Tensor:
        core = partial(self.core_attention, packed=packed)
        if self.checkpoint_core_attention and self.training:
            out: Tensor = tensor_parallel.checkpoint(core, False, q_SBND, k_SBGD, v_SBGD)
            return out
        out = core(q_SBND, k_SBGD, v_SBGD)
        return out


class SelfAttention(_Core, attention.SelfAttention):  # type: ignore[misc]
    """Grouped-query attention. `spec` decides its biases one by one, where megatron-core has one setting for all."""

    def __init__(self, config: Any, *args: Any, spec: ModelSpec, ops: Ops, **kwargs: Any) -> None:
        config = copy.copy(config)
        config.add_bias_linear, config.add_qkv_bias = spec.proj_bias, spec.qkv_bias
        super().__init__(config, *args, **kwargs)
        if spec.proj_bias and not spec.qkv_bias:
            self.linear_qkv.bias = None
        self.ops, self.interleaved = ops, spec.rope.interleaved

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_pos_emb: Tensor | None = None,
        packed_seq_params: Packed | None = None,
        **_unused: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states [S, B, H]; rotary_pos_emb as `Rotary` gives it. Returns [S, B, H] and a bias that is yet to be added."""
        q, k, v = self.get_query_key_value_tensors(hidden_states, None)
        v = v.contiguous()  # as a part of what the matrix gave, it would keep all of it until the backward pass
        if rotary_pos_emb is not None:
            cos, sin = rotary_pos_emb if packed_seq_params is None else packed_seq_params.turned(rotary_pos_emb)
            q = self.ops.rope(q, cos, sin, interleaved=self.interleaved)
            k = self.ops.rope(k, cos, sin, interleaved=self.interleaved)
        out: tuple[Tensor, Tensor | None] = self.linear_proj(self._attend(q, k, v, packed_seq_params))
        return out


class SumGradient(torch.autograd.Function):
    """The same values on every tensor-parallel rank, each of which uses them for its own heads: gradients are summed."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(grad, group=parallel_state.get_tensor_model_parallel_group())
        return grad


class LatentAttention(_Core, multi_latent_attention.MLASelfAttention):  # type: ignore[misc]
    """Multi-head latent attention, https://arxiv.org/abs/2405.04434.

    megatron-core's own loses part of a gradient at TP > 1: the rotary key is shared by all heads, a rank's gradient of it is that
    of its heads alone, and nothing sums them (Megatron-LM issue 1699).
    """

    def __init__(self, config: Any, *args: Any, spec: ModelSpec, ops: Ops, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        assert spec.mla is not None
        self.ops, self.interleaved = ops, spec.rope.interleaved
        self.rotary_pos_emb = Rotary(
            spec.rope,
            int(spec.mla.rope_dim * spec.rope.fraction),
            cp_rank=self.pg_collection.cp.rank(),
            cp_size=self.pg_collection.cp.size(),
            device=self.linear_proj.weight.device,
        )
        self.tp = config.tensor_model_parallel_size
        for name in ("q_layernorm", "kv_layernorm"):
            norm = getattr(self, name, None)
            if norm is not None and not config.sequence_parallel:
                # Every rank has the whole gradient; megatron-core sums those of everything called q_layernorm over TP.
                norm.weight.average_gradients_across_tp_domain = True

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        packed_seq_params: Packed | None = None,
        **_unused: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states [S, B, H], S cut over TP under sequence parallelism. Returns the same shape, and no bias."""
        mla, heads = self.config, self.num_attention_heads_per_partition
        if packed_seq_params is None:
            cos, sin = self.rotary_pos_emb(self.rotary_pos_emb.get_rotary_seq_len(None, None, hidden_states, mla))
        else:
            cos, sin = packed_seq_params.turned(self.rotary_pos_emb(packed_seq_params.seq_len, packed_seq=True))

        q_low = hidden_states
        if mla.q_lora_rank is not None:
            q_low = self.q_layernorm(self._own_tokens(self._whole(self.linear_q_down_proj(hidden_states)[0])))
        kv_all = self._whole(self.linear_kv_down_proj(hidden_states)[0])
        kv_low, k_rope = torch.split(kv_all, [mla.kv_lora_rank, mla.qk_pos_emb_head_dim], -1)
        kv_low = self.kv_layernorm(self._own_tokens(kv_low))
        if self.tp > 1:
            k_rope = SumGradient.apply(k_rope)  # type: ignore[no-untyped-call]  # torch's
        k_rope = self.ops.rope(k_rope.unsqueeze(-2), cos, sin, interleaved=self.interleaved)

        if self.recompute_up_proj and self.training:
            q, k, v = tensor_parallel.checkpoint(self._up, False, q_low, kv_low, k_rope, cos, sin)
        else:
            q, k, v = self._up(q_low, kv_low, k_rope, cos, sin)
        assert q.shape[2] == heads
        out: tuple[Tensor, Tensor | None] = self.linear_proj(self._attend(q, k, v, packed_seq_params))
        return out

    def _up(self, q_low: Tensor, kv_low: Tensor, k_rope: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From the latents to q, k [S, B, N, nope + rope] and v [S, B, N, v_dim]."""
        mla, heads = self.config, self.num_attention_heads_per_partition
        up = self.linear_q_proj if mla.q_lora_rank is None else self.linear_q_up_proj
        q = up(q_low)[0].unflatten(-1, (heads, self.q_head_dim))
        q_nope, q_rope = q.split((mla.qk_head_dim, mla.qk_pos_emb_head_dim), -1)
        q = torch.cat((q_nope, self.ops.rope(q_rope, cos, sin, interleaved=self.interleaved)), -1)
        kv = self.linear_kv_up_proj(kv_low)[0].unflatten(-1, (heads, mla.qk_head_dim + mla.v_head_dim))
        k_nope, v = kv.split((mla.qk_head_dim, mla.v_head_dim), -1)
        return q, torch.cat((k_nope, k_rope.expand(*k_nope.shape[:-1], -1)), -1), v

    def _whole(self, low: Tensor) -> Tensor:
        """The output of a down-projection, whose columns are cut over TP, put together on every rank."""
        return gather_from_tensor_model_parallel_region(low) if self.tp > 1 else low

    def _own_tokens(self, low: Tensor) -> Tensor:
        return scatter_to_sequence_parallel_region(low) if self.config.sequence_parallel else low
