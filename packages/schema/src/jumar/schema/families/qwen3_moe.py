"""Qwen3-MoE: Qwen3 with experts and no shared expert. https://arxiv.org/abs/2505.09388"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jumar.schema.config import ConfigReader
from jumar.schema.families import llama, qwen2_moe
from jumar.schema.family import Family
from jumar.schema.rules import attention, embeddings, experts, final_norm, mlp, norms
from jumar.schema.spec import ModelSpec, Moe


def read(config: ConfigReader) -> ModelSpec:
    moe = Moe(
        num_experts=qwen2_moe.num_experts(config),
        top_k=config.size("num_experts_per_tok"),
        ffn_size=config.size("moe_intermediate_size"),
        dense_layers=qwen2_moe.dense_layers(config),
        norm_topk=config.get("norm_topk_prob", False),
        aux_loss_coef=config.get("router_aux_loss_coef", 0.001),
    )
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window", False) else None
    config.get("max_window_layers", None)  # without effect in this family
    spec = replace(llama.read(config), model_type="qwen3_moe", qk_norm=True, moe=moe, sliding_window=window)
    return replace(spec, sliding_layers=tuple(range(spec.num_layers)) if window else ())


def write(spec: ModelSpec) -> dict[str, Any]:
    assert spec.moe is not None
    config = llama.write(spec)
    del config["mlp_bias"]
    window = {"use_sliding_window": spec.sliding_window is not None, "sliding_window": spec.sliding_window}
    return {**config, **qwen2_moe.write_moe(spec.moe), **window}


FAMILY = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    read=read,
    write=write,
    weights=(
        *embeddings("model.embed_tokens.weight"),
        *norms("input_layernorm", "post_attention_layernorm"),
        *attention(),
        *mlp(),
        *experts(),
        *final_norm(),
    ),
    tiny={
        **llama.FAMILY.tiny,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
)
