"""GPT-2: LayerNorm, learned positions, biases everywhere, matrices held the other way round (Conv1D).

https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
"""

from __future__ import annotations

from typing import Any

from jumar.schema.config import ConfigReader
from jumar.schema.family import Copy, Family
from jumar.schema.rules import embeddings, final_norm, norms
from jumar.schema.spec import ModelSpec
from jumar.schema.weights import Part, Rule


def read(config: ConfigReader) -> ModelSpec:
    hidden, heads = config.size("n_embd"), config.size("n_head")
    config.only("scale_attn_weights", True)
    config.only("scale_attn_by_inverse_layer_idx", False)
    config.only("add_cross_attention", False)
    for inert in ("reorder_and_upcast_attn", "n_ctx"):
        config.get(inert, None)
    for key in config.config:
        if key.startswith("summary_"):
            config.get(key, None)  # a classification head that the causal model does not have
    return ModelSpec(
        model_type="gpt2",
        num_layers=config.size("n_layer"),
        hidden_size=hidden,
        vocab_size=config.size("vocab_size"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        ffn_size=config.size("n_inner", 4 * hidden),
        max_position_embeddings=config.size("n_positions", 1024),
        norm="layer",
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        activation=config.activation("activation_function", "gelu_new"),
        gated=False,
        tied=config.get("tie_word_embeddings", True),
        qkv_bias=True,
        proj_bias=True,
        mlp_bias=True,
        position="learned",
        dtype=config.dtype(),
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    return {
        "n_embd": spec.hidden_size,
        "n_inner": spec.ffn_size,
        "n_layer": spec.num_layers,
        "n_head": spec.num_heads,
        "n_positions": spec.max_position_embeddings,
        "vocab_size": spec.vocab_size,
        "layer_norm_epsilon": spec.norm_eps,
        "activation_function": "gelu_new" if spec.activation == "gelu_tanh" else spec.activation,
        "tie_word_embeddings": spec.tied,
    }


QKV_WEIGHT = tuple(Part("attn.c_attn.weight", "hidden q+kv+kv", pick=i, transposed=True) for i in range(3))
QKV_BIAS = tuple(Part("attn.c_attn.bias", "q+kv+kv", pick=i) for i in range(3))

FAMILY = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    read=read,
    write=write,
    layer="transformer.h.{l}.",
    base="transformer.",
    drops=(r".*\.attn\.(masked_)?bias",),
    copies=(Copy("lm_head.weight", "transformer.wte.weight", when="tied"),),
    dialects=("mcore", "te", "legacy"),
    weights=(
        *embeddings("transformer.wte.weight", positions="transformer.wpe.weight"),
        *norms("ln_1", "ln_2"),
        Rule("self_attention.linear_qkv.weight", QKV_WEIGHT, shard=0, interleave=True),
        Rule("self_attention.linear_qkv.bias", QKV_BIAS, shard=0, interleave=True),
        Rule("self_attention.linear_proj.weight", (Part("attn.c_proj.weight", "q hidden", transposed=True),), shard=1),
        Rule("self_attention.linear_proj.bias", (Part("attn.c_proj.bias", "hidden"),)),
        Rule("mlp.linear_fc1.weight", (Part("mlp.c_fc.weight", "hidden ffn", transposed=True),), shard=0),
        Rule("mlp.linear_fc1.bias", (Part("mlp.c_fc.bias", "ffn"),), shard=0),
        Rule("mlp.linear_fc2.weight", (Part("mlp.c_proj.weight", "ffn hidden", transposed=True),), shard=1),
        Rule("mlp.linear_fc2.bias", (Part("mlp.c_proj.bias", "hidden"),)),
        *final_norm("transformer.ln_f"),
    ),
    tiny={
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": 64,
        "n_layer": 4,
        "n_head": 4,
        "n_positions": 128,
        "vocab_size": 131,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "float32",
    },
)
