"""Mixtral: Mistral with a mixture of experts in every layer. https://arxiv.org/abs/2401.04088"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jumar.schema.config import ConfigReader
from jumar.schema.families import llama, mistral
from jumar.schema.family import Family
from jumar.schema.rules import attention, embeddings, experts, final_norm, norms
from jumar.schema.spec import ModelSpec, Moe


def read(config: ConfigReader) -> ModelSpec:
    moe = Moe(
        num_experts=config.size("num_local_experts", 8),
        top_k=config.size("num_experts_per_tok", 2),
        ffn_size=config.size("intermediate_size"),
        aux_loss_coef=config.get("router_aux_loss_coef", 0.001),
    )
    return replace(mistral.read(config), model_type="mixtral", ffn_size=0, moe=moe)


def write(spec: ModelSpec) -> dict[str, Any]:
    assert spec.moe is not None
    return {
        **mistral.write(spec),
        "intermediate_size": spec.moe.ffn_size,
        "num_local_experts": spec.moe.num_experts,
        "num_experts_per_tok": spec.moe.top_k,
        "router_aux_loss_coef": spec.moe.aux_loss_coef,
    }


FAMILY = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    read=read,
    write=write,
    weights=(
        *embeddings("model.embed_tokens.weight"),
        *norms("input_layernorm", "post_attention_layernorm"),
        *attention(),
        *experts("block_sparse_moe", gate="w1", up="w3", down="w2"),
        *final_norm(),
    ),
    tiny={
        **llama.FAMILY.tiny,
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    },
    dialects=("mcore", "te", "mindspeed-v1"),
)
