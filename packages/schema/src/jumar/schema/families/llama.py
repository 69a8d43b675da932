"""Llama 1 to 3, and every model published as LlamaForCausalLM. https://huggingface.co/docs/transformers/model_doc/llama"""

from __future__ import annotations

from typing import Any

from jumar.schema.config import ConfigReader, write_rope
from jumar.schema.family import EVERYWHERE, Family
from jumar.schema.rules import attention, embeddings, final_norm, mlp, norms
from jumar.schema.spec import ModelSpec


def read(config: ConfigReader) -> ModelSpec:
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    bias = config.get("attention_bias", False)
    return ModelSpec(
        model_type="llama",
        num_layers=config.size("num_hidden_layers"),
        hidden_size=hidden,
        vocab_size=config.size("vocab_size"),
        num_heads=heads,
        num_kv_heads=config.size("num_key_value_heads", heads),
        head_dim=config.size("head_dim", hidden // heads),
        ffn_size=config.size("intermediate_size"),
        max_position_embeddings=config.size("max_position_embeddings", 2048),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        activation=config.activation("hidden_act", "silu"),
        tied=config.get("tie_word_embeddings", False),
        qkv_bias=bias,
        proj_bias=bias,
        mlp_bias=config.get("mlp_bias", False),
        rope=config.rope(),
        dtype=config.dtype(),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    return {
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.ffn_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_position_embeddings,
        "rms_norm_eps": spec.norm_eps,
        "hidden_act": spec.activation,
        "tie_word_embeddings": spec.tied,
        "attention_bias": spec.qkv_bias,
        "mlp_bias": spec.mlp_bias,
        **write_rope(spec.rope),
    }


FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    read=read,
    write=write,
    weights=(
        *embeddings("model.embed_tokens.weight"),
        *norms("input_layernorm", "post_attention_layernorm"),
        *attention(),
        *mlp(),
        *final_norm(),
    ),
    tiny={
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 131,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    },
    dialects=(*EVERYWHERE, "legacy"),
)
