"""Gemma 2: norms after as well as before each block, soft-capping, alternating sliding windows. https://arxiv.org/abs/2408.00118"""

from __future__ import annotations

from typing import Any

from jumar.schema.config import ConfigReader
from jumar.schema.errors import ToolError
from jumar.schema.families import llama
from jumar.schema.family import Family
from jumar.schema.rules import attention, embeddings, final_norm, mlp, norms
from jumar.schema.spec import ModelSpec

KINDS = ("sliding_attention", "full_attention")


def read(config: ConfigReader) -> ModelSpec:
    hidden, layers = config.size("hidden_size"), config.size("num_hidden_layers")
    bias = config.get("attention_bias", False)
    config.only("use_bidirectional_attention", False)
    config.get("sliding_window_size", None)  # an older name, which published files carry beside sliding_window
    config.get("hidden_act", None)  # older files carry it beside hidden_activation, which is the one used
    kinds = config.get("layer_types", [KINDS[i % 2] for i in range(layers)])
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise ToolError(
            f"config.json of gemma2: layer_types {', '.join(unknown)} are not supported", hint=f"known: {', '.join(KINDS)}"
        )
    return ModelSpec(
        model_type="gemma2",
        num_layers=layers,
        hidden_size=hidden,
        vocab_size=config.size("vocab_size"),
        num_heads=config.size("num_attention_heads"),
        num_kv_heads=config.size("num_key_value_heads"),
        head_dim=config.size("head_dim", 256),
        ffn_size=config.size("intermediate_size"),
        max_position_embeddings=config.size("max_position_embeddings", 8192),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        zero_centered_gamma=True,
        post_norms=True,
        activation=config.activation("hidden_activation", "gelu_pytorch_tanh"),
        tied=config.get("tie_word_embeddings", True),
        qkv_bias=bias,
        proj_bias=bias,
        rope=config.rope(),
        sliding_window=config.get("sliding_window", 4096),
        sliding_layers=tuple(i for i, kind in enumerate(kinds) if kind == KINDS[0]),
        attn_scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
        attn_softcap=config.get("attn_logit_softcapping", 0.0) or None,
        final_softcap=config.get("final_logit_softcapping", 0.0) or None,
        embed_scale=hidden**0.5,
        dtype=config.dtype(),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    scale = spec.attn_scale or spec.head_dim**-0.5
    config = llama.write(spec)
    del config["hidden_act"], config["mlp_bias"]
    return {
        **config,
        "hidden_activation": "gelu_pytorch_tanh" if spec.activation == "gelu_tanh" else spec.activation,
        "query_pre_attn_scalar": _whole(round(scale**-2, 6)),
        "sliding_window": spec.sliding_window,
        "layer_types": [KINDS[0] if i in spec.sliding_layers else KINDS[1] for i in range(spec.num_layers)],
        "attn_logit_softcapping": spec.attn_softcap,
        "final_logit_softcapping": spec.final_softcap,
    }


def _whole(value: float) -> float | int:
    """transformers 5 takes only whole numbers here."""
    return int(value) if value == int(value) else value


FAMILY = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    read=read,
    write=write,
    weights=(
        *embeddings("model.embed_tokens.weight"),
        *norms(
            "input_layernorm",
            "pre_feedforward_layernorm",
            post_attention="post_attention_layernorm",
            post_mlp="post_feedforward_layernorm",
        ),
        *attention(),
        *mlp(),
        *final_norm(),
    ),
    tiny={
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "vocab_size": 131,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "query_pre_attn_scalar": 16,
        "sliding_window": 32,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    },
)
