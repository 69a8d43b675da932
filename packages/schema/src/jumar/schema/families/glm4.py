"""GLM-4-0414: gate and up in one matrix, norms after as well as before, half of each head rotated. https://arxiv.org/abs/2406.12793"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jumar.schema.config import ConfigReader
from jumar.schema.families import llama
from jumar.schema.family import Family
from jumar.schema.rules import attention, embeddings, final_norm, norms
from jumar.schema.spec import ModelSpec
from jumar.schema.weights import Part, Rule


def read(config: ConfigReader) -> ModelSpec:
    rope = config.rope(fraction=0.5, interleaved=True)
    head_dim, bias = config.size("head_dim", 128), config.get("attention_bias", True)
    spec = replace(llama.read(config), model_type="glm4", rope=rope, head_dim=head_dim)
    return replace(spec, qkv_bias=bias, proj_bias=False, post_norms=True)


def write(spec: ModelSpec) -> dict[str, Any]:
    config = llama.write(spec)
    del config["mlp_bias"]
    # transformers' default padding token would lie outside a smaller vocabulary
    return {**config, "partial_rotary_factor": spec.rope.fraction, "pad_token_id": None}


FAMILY = Family(
    model_type="glm4",
    architecture="Glm4ForCausalLM",
    read=read,
    write=write,
    weights=(
        *embeddings("model.embed_tokens.weight"),
        *norms(
            "input_layernorm",
            "post_attention_layernorm",
            post_attention="post_self_attn_layernorm",
            post_mlp="post_mlp_layernorm",
        ),
        *attention(),
        Rule("mlp.linear_fc1.weight", (Part("mlp.gate_up_proj.weight", "ffn+ffn hidden"),), shard=0),
        Rule("mlp.linear_fc2.weight", (Part("mlp.down_proj.weight", "hidden ffn"),), shard=1),
        *final_norm(),
    ),
    tiny={
        **llama.FAMILY.tiny,
        "architectures": ["Glm4ForCausalLM"],
        "model_type": "glm4",
        "head_dim": 16,
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
        "pad_token_id": 0,
        "eos_token_id": 1,
    },
    dialects=("mcore", "te"),
)
