"""Megatron's `args` of a checkpoint, written from a ModelSpec and a layout; `read_megatron_args` reads them back.

Names are those of megatron.training's argument parser (`--num-layers` is `num_layers`), MindSpeed-LLM's where Megatron has none.
"""

from __future__ import annotations

from typing import Any

from jumar.schema.parallel import ParallelLayout
from jumar.schema.placement import Placement
from jumar.schema.spec import ModelSpec, Moe, RopeScaling

YARN = ("original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor")


def to_args(placement: Placement, *, dtype: str, iteration: int) -> dict[str, Any]:
    """The arguments under which Megatron would have saved this checkpoint; plain values only.

    dtype: "bfloat16", "float16", "float32".
    """
    spec, layout = placement.spec, placement.layout
    return {
        **_model_args(spec, layout),
        **_layout_args(layout, spec.num_layers),
        "moe_grouped_gemm": placement.expert_layout == "grouped",
        "transformer_impl": "transformer_engine" if placement.dialect == "te" else "local",
        "vocab_size": spec.vocab_size,
        "padded_vocab_size": placement.padded_vocab,
        "make_vocab_size_divisible_by": placement.vocab_divisible_by,
        "params_dtype": f"torch.{dtype}",
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "iteration": iteration,
        "consumed_train_samples": 0,
        "consumed_valid_samples": 0,
        "use_mcore_models": placement.dialect != "legacy",
        **({"mla_mm_split": placement.mla_mm_split} if spec.mla else {}),
        "model_type_hf": spec.model_type,
    }


def _model_args(spec: ModelSpec, layout: ParallelLayout) -> dict[str, Any]:
    position = {"rope": "rope", "learned": "learned_absolute", "none": "none"}[spec.position]
    args: dict[str, Any] = {
        "num_layers": spec.num_layers + len(layout.noop_layers),
        "hidden_size": spec.hidden_size,
        "ffn_hidden_size": spec.ffn_size or (spec.moe.ffn_size if spec.moe else None),
        "seq_length": spec.max_position_embeddings or None,
        "max_position_embeddings": spec.max_position_embeddings or None,
        "position_embedding_type": position,
        "add_position_embedding": spec.position == "learned",
        "normalization": "RMSNorm" if spec.norm == "rms" else "LayerNorm",
        "norm_epsilon": spec.norm_eps,
        "apply_layernorm_1p": spec.zero_centered_gamma,
        "swiglu": spec.gated and spec.activation == "silu",
        "squared_relu": spec.activation == "relu2",
        "untie_embeddings_and_output_weights": not spec.tied,
        "add_bias_linear": spec.mlp_bias,
        "add_qkv_bias": spec.qkv_bias,
        "add_dense_bias": spec.proj_bias,
        "qk_layernorm": spec.qk_norm or spec.mla is not None,
        "window_size": (spec.sliding_window - 1, 0) if spec.sliding_window else None,
        "window_attn_skip_freq": [int(i in spec.sliding_layers) for i in range(spec.num_layers)] if spec.sliding_window else None,
        "query_pre_attn_scalar": round(spec.attn_scale**-2, 6) if spec.attn_scale else None,
        "attn_logit_softcapping": spec.attn_softcap,
        "output_logit_softcapping": spec.final_softcap,
        "mtp_num_layers": spec.mtp_layers or None,
    }
    if spec.num_heads:
        args |= {
            "num_attention_heads": spec.num_heads,
            "group_query_attention": spec.num_kv_heads not in (0, spec.num_heads),
            "num_query_groups": spec.num_kv_heads or spec.num_heads,
            "kv_channels": spec.head_dim or None,
        }
    if spec.position == "rope":
        args |= {
            "rotary_base": spec.rope.base,
            "rotary_percent": spec.rope.fraction,
            "rotary_interleaved": spec.rope.interleaved and spec.mla is None,
            "use_rotary_position_embeddings": True,
        }
        if scaling := spec.rope.scaling:
            args |= _rope_scaling_args(scaling)
    if spec.moe:
        args |= _moe_args(spec, spec.moe, layout.noop_layers)
    if mla := spec.mla:
        args |= {
            "multi_latent_attention": True,
            "q_lora_rank": mla.q_lora_rank or None,
            "kv_lora_rank": mla.kv_lora_rank,
            "qk_head_dim": mla.nope_dim,
            "qk_pos_emb_head_dim": mla.rope_dim,
            "v_head_dim": mla.v_dim,
        }
    if ssm := spec.ssm:
        args |= {
            "is_hybrid_model": True,
            "hybrid_override_pattern": spec.pattern or None,
            "mamba_state_dim": ssm.state_size,
            "mamba_head_dim": ssm.head_dim,
            "mamba_num_groups": ssm.num_groups,
            "mamba_num_heads": ssm.num_heads,
            "mamba_chunk_size": ssm.chunk_size,
            "mamba_d_conv": ssm.conv_kernel,
        }
    return args


def _rope_scaling_args(scaling: RopeScaling) -> dict[str, Any]:
    """llama3 and linear scaling as Megatron says them; yarn as its latent attention does; MindSpeed's name for the kind."""
    args: dict[str, Any] = {"rope_scaling_type": scaling.kind}
    if scaling.kind == "llama3":
        return args | {"use_rope_scaling": True, "rope_scaling_factor": scaling.factor}
    if scaling.kind == "linear":
        return args | {"rotary_seq_len_interpolation_factor": scaling.factor}
    if scaling.kind == "yarn":
        return args | {"rope_type": "yarn", "rotary_scaling_factor": scaling.factor, **{n: getattr(scaling, n) for n in YARN}}
    return args | {"rope_scaling_factor": scaling.factor}


def _moe_args(spec: ModelSpec, moe: Moe, noop: tuple[int, ...]) -> dict[str, Any]:
    layers = iter(range(spec.num_layers))
    slots = [None if slot in noop else next(layers) for slot in range(spec.num_layers + len(noop))]
    return {
        "num_experts": moe.num_experts,
        "moe_router_topk": moe.top_k,
        "moe_ffn_hidden_size": moe.ffn_size,
        "moe_shared_expert_intermediate_size": moe.shared_ffn_size or None,
        "moe_shared_expert_gate": moe.shared_gate,
        "moe_layer_freq": [0 if layer is None or layer in moe.dense_layers else 1 for layer in slots],
        "moe_router_score_function": moe.score,
        "moe_router_enable_expert_bias": moe.score_bias,
        "moe_router_pre_softmax": not moe.norm_topk,
        "norm_topk_prob": moe.norm_topk,
        "moe_router_topk_scaling_factor": moe.scaling_factor,
        "moe_router_num_groups": moe.num_groups if moe.num_groups > 1 else None,
        "moe_router_group_topk": moe.topk_groups if moe.num_groups > 1 else None,
        "moe_aux_loss_coeff": moe.aux_loss_coef,
    }


def _layout_args(layout: ParallelLayout, num_layers: int) -> dict[str, Any]:
    uneven, slots = layout.layers_per_stage, num_layers + len(layout.noop_layers)
    interleaved = layout.vpp > 1 and layout.schedule == "1f1b"
    return {
        "tensor_model_parallel_size": layout.tp,
        "pipeline_model_parallel_size": layout.pp,
        "virtual_pipeline_model_parallel_size": layout.vpp if layout.vpp > 1 else None,
        "context_parallel_size": layout.cp,
        "expert_model_parallel_size": layout.ep,
        "expert_tensor_parallel_size": layout.expert_tp,
        "num_layers_per_virtual_pipeline_stage": slots // (layout.pp * layout.vpp) if interleaved else None,
        "decoder_first_pipeline_num_layers": None,
        "decoder_last_pipeline_num_layers": None,
        "num_layer_list": ",".join(map(str, uneven)) if uneven else None,
        "noop_layers": ",".join(map(str, layout.noop_layers)) if layout.noop_layers else None,
        "schedules_method": "dualpipev" if layout.schedule == "dualpipev" else None,
        "moe_tp_extend_ep": layout.tp_extend_ep,
    }
