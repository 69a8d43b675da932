"""Qwen1.5-MoE and Qwen2-MoE: Qwen2 with experts, and one shared expert behind a gate. https://arxiv.org/abs/2407.10671"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jumar.schema.config import ConfigReader
from jumar.schema.families import llama, qwen2
from jumar.schema.family import Family
from jumar.schema.rules import attention, embeddings, experts, final_norm, mlp, norms, shared_experts
from jumar.schema.spec import ModelSpec, Moe


def dense_layers(config: ConfigReader) -> tuple[int, ...]:
    """Layers without experts: those of `mlp_only_layers`, and all but every `decoder_sparse_step`-th."""
    only: list[int] = config.get("mlp_only_layers", [])
    step = config.get("decoder_sparse_step", 1)
    return tuple(i for i in range(config.size("num_hidden_layers")) if i in only or step < 1 or (i + 1) % step)


def num_experts(config: ConfigReader) -> int:
    """transformers 5 writes `num_local_experts` in some of Qwen's families."""
    return config.size("num_experts" if config.get("num_experts", None) else "num_local_experts")


def read(config: ConfigReader) -> ModelSpec:
    moe = Moe(
        num_experts=num_experts(config),
        top_k=config.size("num_experts_per_tok"),
        ffn_size=config.size("moe_intermediate_size"),
        shared_ffn_size=config.size("shared_expert_intermediate_size"),
        shared_gate=True,
        dense_layers=dense_layers(config),
        norm_topk=config.get("norm_topk_prob", False),
        aux_loss_coef=config.get("router_aux_loss_coef", 0.001),
    )
    spec = replace(qwen2.read(config), model_type="qwen2_moe", moe=moe)
    return replace(spec, qkv_bias=config.get("qkv_bias", True))


def write_moe(moe: Moe) -> dict[str, Any]:
    return {
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.ffn_size,
        "mlp_only_layers": list(moe.dense_layers),
        "decoder_sparse_step": 1,
        "norm_topk_prob": moe.norm_topk,
        "router_aux_loss_coef": moe.aux_loss_coef,
    }


def write(spec: ModelSpec) -> dict[str, Any]:
    assert spec.moe is not None
    shared = {"shared_expert_intermediate_size": spec.moe.shared_ffn_size, "qkv_bias": spec.qkv_bias}
    return {**qwen2.write(spec), **write_moe(spec.moe), **shared}


FAMILY = Family(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    read=read,
    write=write,
    weights=(
        *embeddings("model.embed_tokens.weight"),
        *norms("input_layernorm", "post_attention_layernorm"),
        *attention(),
        *mlp(),
        *experts(),
        *shared_experts("mlp.shared_expert"),
        *final_norm(),
    ),
    tiny={
        **llama.FAMILY.tiny,
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
        "mlp_only_layers": [1],
        "use_sliding_window": False,
    },
)
