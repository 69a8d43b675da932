"""ModelSpec and recipe to megatron-core's TransformerConfig."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

from jumar.schema.spec import ModelSpec
from jumar.train_core.features import settings
from jumar.train_core.job import Job
from jumar.train_core.model.layers import ACTIVATIONS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

NOTHING_FUSED: dict[str, Any] = dict(  # what is fused is fused in the device's operations
    bias_activation_fusion=False,
    bias_dropout_fusion=False,
    masked_softmax_fusion=False,
    apply_rope_fusion=False,
    persist_layer_norm=False,
    gradient_accumulation_fusion=False,
    cross_entropy_loss_fusion=False,
    moe_router_fusion=False,
    moe_permute_fusion=False,
)


def transformer_config(job: Job) -> TransformerConfig:
    """The configuration of this job's model under its layout. The features have the last word on the fields that are theirs."""
    spec, precision = job.spec, job.recipe.train.precision
    std = job.recipe.model.init_std or job.config.get("initializer_range") or 0.02
    fields: dict[str, Any] = dict(
        num_layers=spec.num_layers,
        hidden_size=spec.hidden_size,
        num_attention_heads=spec.num_heads,
        ffn_hidden_size=spec.ffn_size or spec.moe.ffn_size if spec.moe else spec.ffn_size,
        normalization="RMSNorm" if spec.norm == "rms" else "LayerNorm",
        layernorm_epsilon=spec.norm_eps,
        layernorm_zero_centered_gamma=spec.zero_centered_gamma,
        qk_layernorm=spec.qk_norm or spec.mla is not None,
        add_bias_linear=False,  # biases are the modules' own, one by one
        gated_linear_unit=spec.gated,
        activation_func=ACTIVATIONS[spec.activation],
        hidden_dropout=job.recipe.model.hidden_dropout,
        attention_dropout=0.0,
        init_method_std=std,
        use_cpu_initialization=True,  # the same random weights under every layout and on every device
        params_dtype=DTYPES[precision],
        pipeline_dtype=DTYPES[precision],
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        mtp_num_layers=spec.mtp_layers or None,
        **NOTHING_FUSED,
        **(_moe_fields(spec) if spec.moe else {}),
    )
    if spec.ssm is not None:
        fields |= _ssm_fields(spec)
    fields |= settings(job)
    if spec.mla is not None:
        return MLATransformerConfig(**fields, **_mla_fields(spec))
    return TransformerConfig(**fields, num_query_groups=spec.num_kv_heads, kv_channels=spec.head_dim)


def _ssm_fields(spec: ModelSpec) -> dict[str, Any]:
    """What megatron-core asks its configuration; the sizes of the mixer are in the spec that it is built from."""
    assert spec.ssm is not None
    fields: dict[str, Any] = {"is_hybrid_model": True}
    if spec.ssm.residual_in_fp32:
        fields["pipeline_dtype"] = torch.float32  # what goes from stage to stage is the residual
    return fields


def _moe_fields(spec: ModelSpec) -> dict[str, Any]:
    moe = spec.moe
    assert moe is not None
    return dict(
        num_moe_experts=moe.num_experts,
        moe_layer_freq=[int(spec.is_moe_layer(i)) for i in range(spec.num_layers)],
        moe_ffn_hidden_size=moe.ffn_size,
        moe_router_topk=moe.top_k,
        moe_router_score_function=moe.score,
        moe_router_pre_softmax=True,
        moe_router_enable_expert_bias=moe.score_bias,
        moe_router_dtype="fp32",
        moe_shared_expert_intermediate_size=moe.shared_ffn_size or None,
        moe_shared_expert_gate=moe.shared_gate,
    )


def _mla_fields(spec: ModelSpec) -> dict[str, Any]:
    mla = spec.mla
    assert mla is not None
    return dict(
        multi_latent_attention=True,
        q_lora_rank=mla.q_lora_rank or None,
        kv_lora_rank=mla.kv_lora_rank,
        qk_head_dim=mla.nope_dim,
        qk_pos_emb_head_dim=mla.rope_dim,
        v_head_dim=mla.v_dim,
        rope_type="rope",  # scaling is in our Rotary
    )
