"""DeepSeek-V2 and V2-Lite: latent attention, experts with shared ones, dense layers first. https://arxiv.org/abs/2405.04434"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jumar.schema.config import ConfigReader, write_rope
from jumar.schema.family import Family
from jumar.schema.rules import embeddings, experts, final_norm, mla, mlp, norms, shared_experts
from jumar.schema.spec import Mla, ModelSpec, Moe


def read_base(config: ConfigReader) -> ModelSpec:
    """What V2 and V3 have in common: sizes, latent attention, RoPE on neighbouring pairs."""
    heads, nope, rope = config.size("num_attention_heads"), config.size("qk_nope_head_dim"), config.size("qk_rope_head_dim")
    config.get("num_key_value_heads", heads)  # latent attention has none; published files repeat num_attention_heads
    config.get("head_dim", rope)  # transformers 5 writes qk_rope_head_dim here
    config.get("qk_head_dim", nope + rope)
    config.only("attention_bias", False)
    config.only("mlp_bias", False)
    latent = Mla(
        kv_lora_rank=config.size("kv_lora_rank"),
        nope_dim=nope,
        rope_dim=rope,
        v_dim=config.size("v_head_dim"),
        q_lora_rank=config.count("q_lora_rank"),
    )
    return ModelSpec(
        model_type=config.model_type,
        num_layers=config.size("num_hidden_layers"),
        hidden_size=config.size("hidden_size"),
        vocab_size=config.size("vocab_size"),
        num_heads=heads,
        ffn_size=config.size("intermediate_size"),
        max_position_embeddings=config.size("max_position_embeddings", 2048),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        activation=config.activation("hidden_act", "silu"),
        tied=config.get("tie_word_embeddings", False),
        rope=config.rope(interleaved=True),
        mla=latent,
        dtype=config.dtype(),
    )


def read_moe(config: ConfigReader) -> Moe:
    """The experts' sizes and places; how they are chosen is the family's."""
    layers, first = config.size("num_hidden_layers"), config.count("first_k_dense_replace")
    every = config.size("moe_layer_freq", 1)
    ffn = config.size("moe_intermediate_size")
    config.get("seq_aux", True)  # how the auxiliary loss is averaged: a training option
    return Moe(
        num_experts=config.size("n_routed_experts"),
        top_k=config.size("num_experts_per_tok"),
        ffn_size=ffn,
        shared_ffn_size=ffn * config.count("n_shared_experts"),
        dense_layers=tuple(i for i in range(layers) if i < first or i % every),
        scaling_factor=config.get("routed_scaling_factor", 1.0),
        aux_loss_coef=config.get("aux_loss_alpha", 0.0),
    )


def read(config: ConfigReader) -> ModelSpec:
    config.only("topk_method", "greedy", "group_limited_greedy")
    config.only("scoring_func", "softmax")
    grouped = config.get("topk_method", "greedy") == "group_limited_greedy"
    groups, chosen = config.get("n_group", 1), config.get("topk_group", 1)
    moe = replace(
        read_moe(config),
        norm_topk=config.get("norm_topk_prob", False),
        num_groups=groups if grouped else 1,
        topk_groups=chosen if grouped else 1,
    )
    return replace(read_base(config), moe=moe)


def write_base(spec: ModelSpec) -> dict[str, Any]:
    mla, moe = spec.mla, spec.moe
    assert mla is not None
    assert moe is not None
    return {
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.ffn_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_heads,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_position_embeddings,
        "rms_norm_eps": spec.norm_eps,
        "hidden_act": spec.activation,
        "tie_word_embeddings": spec.tied,
        "attention_bias": False,
        "q_lora_rank": mla.q_lora_rank or None,
        "kv_lora_rank": mla.kv_lora_rank,
        "qk_nope_head_dim": mla.nope_dim,
        "qk_rope_head_dim": mla.rope_dim,
        "v_head_dim": mla.v_dim,
        "n_routed_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.ffn_size,
        "n_shared_experts": moe.shared_ffn_size // moe.ffn_size,
        "routed_scaling_factor": moe.scaling_factor,
        "norm_topk_prob": moe.norm_topk,
        "aux_loss_alpha": moe.aux_loss_coef,
        **write_dense_layers(spec.num_layers, moe.dense_layers),
        **write_rope(spec.rope),
    }


def write_dense_layers(layers: int, dense: tuple[int, ...]) -> dict[str, int]:
    """`first_k_dense_replace` and `moe_layer_freq` that give these dense layers."""
    first = next((i for i in range(layers) if i not in dense), layers)
    for every in range(1, layers + 1):
        if dense == tuple(i for i in range(layers) if i < first or i % every):
            return {"first_k_dense_replace": first, "moe_layer_freq": every}
    raise AssertionError(f"dense layers {dense} are not first_k_dense_replace and moe_layer_freq")


def write(spec: ModelSpec) -> dict[str, Any]:
    assert spec.moe is not None
    grouped = spec.moe.num_groups > 1
    groups = {"n_group": spec.moe.num_groups, "topk_group": spec.moe.topk_groups} if grouped else {}
    method = "group_limited_greedy" if grouped else "greedy"
    return {**write_base(spec), **groups, "topk_method": method, "scoring_func": "softmax"}


FAMILY = Family(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    read=read,
    write=write,
    weights=(
        *embeddings("model.embed_tokens.weight"),
        *norms("input_layernorm", "post_attention_layernorm"),
        *mla(),
        *mlp(),
        *experts(),
        *shared_experts("mlp.shared_experts"),
        *final_norm(),
    ),
    tiny={
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 131,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "q_lora_rank": 24,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "topk_method": "greedy",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    },
)
