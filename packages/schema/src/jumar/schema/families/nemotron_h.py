"""Nemotron-H: each layer is a Mamba-2 mixer, attention without positions, or a plain MLP. https://arxiv.org/abs/2504.03624"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jumar.schema.config import ConfigReader
from jumar.schema.errors import ToolError
from jumar.schema.families.mamba2 import MIXER, check_time_steps
from jumar.schema.family import Copy, Family
from jumar.schema.rules import attention, embeddings, norm
from jumar.schema.spec import PATTERN, ModelSpec, Ssm
from jumar.schema.weights import Part, Rule

LETTERS = {
    "linear_attention": "M",
    "mamba": "M",
    "full_attention": "*",
    "attention": "*",
    "mlp": "-",
    "moe": "E",
}
"""Names of transformers 5, new and old, for the letters of the published files."""

# of experts, which are refused by their letter; how fresh weights are drawn; and what transformers' model does not read
INERT = (
    *("n_routed_experts", "n_shared_experts", "moe_intermediate_size", "moe_shared_expert_intermediate_size", "moe_latent_size"),
    *("moe_shared_expert_overlap", "num_experts_per_tok", "routed_scaling_factor", "n_group", "topk_group", "norm_topk_prob"),
    *("mtp_layers_block_type", "mtp_hybrid_override_pattern", "rescale_prenorm_residual", "num_logits_to_keep"),
    *("use_mamba_kernels", "mamba_ssm_cache_dtype", "expand", "rms_norm_eps", "sliding_window"),
)


def read(config: ConfigReader) -> ModelSpec:
    pattern = read_pattern(config)
    check_time_steps(config)
    config.only("attention_bias", False)
    config.only("mamba_proj_bias", False)
    config.only("residual_in_fp32", False)
    config.only("mamba_hidden_act", "silu", "swish")
    config.only("num_nextn_predict_layers", 0)
    for inert in INERT:
        config.get(inert, None)
    ssm = Ssm(
        state_size=config.size("ssm_state_size", 128),
        num_heads=config.size("mamba_num_heads", 128),
        head_dim=config.size("mamba_head_dim", 64),
        num_groups=config.size("n_groups", 8),
        conv_kernel=config.size("conv_kernel", 4),
        conv_bias=config.get("use_conv_bias", True),
        proj_bias=config.get("use_bias", False),
        chunk_size=config.size("chunk_size", 128),
        time_step_min=config.get("time_step_min", 0.001),
        time_step_max=config.get("time_step_max", 0.1),
        time_step_floor=config.get("time_step_floor", 1e-4),
        residual_in_fp32=False,
    )
    heads = config.size("num_attention_heads", 32)
    return ModelSpec(
        model_type="nemotron_h",
        num_layers=len(pattern),
        hidden_size=config.size("hidden_size"),
        vocab_size=config.size("vocab_size"),
        num_heads=heads,
        num_kv_heads=config.size("num_key_value_heads", 8),
        head_dim=config.size("head_dim", config.size("attention_head_dim", 128)),
        ffn_size=config.size("intermediate_size"),
        max_position_embeddings=config.size("max_position_embeddings", 4096),
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        activation=config.activation("mlp_hidden_act", "relu2"),
        gated=False,
        tied=config.get("tie_word_embeddings", False),
        mlp_bias=config.get("mlp_bias", False),
        position="none",
        ssm=ssm,
        pattern=pattern,
        dtype=config.dtype(),
    )


def read_pattern(config: ConfigReader) -> str:
    """A letter for each layer, from the published files' string or transformers' list."""
    names = config.get("layers_block_type", config.get("layer_types", None))
    said = config.get("hybrid_override_pattern", "")
    pattern = said if names is None else "".join(LETTERS.get(str(name), "?") for name in names)
    if not pattern or set(pattern) - set(PATTERN):
        found = f"{pattern!r:.60}" if names is None else f"{names!r:.80}"
        raise ToolError(
            f"config.json of nemotron_h: the kinds of layers are {found}, expected {' '.join(PATTERN)} "
            "(Mamba-2, attention, MLP; layers of experts, E, are not known yet)",
            hint="is the directory complete?" if not pattern else None,
        )
    if said not in ("", pattern) or config.size("num_hidden_layers", len(pattern)) != len(pattern):
        raise ToolError(
            f"config.json of nemotron_h: {len(pattern)} kinds of layers, {pattern!r:.60}, and "
            f"num_hidden_layers {config.get('num_hidden_layers', None)}, hybrid_override_pattern {said!r:.60}",
            hint="was the file edited by hand? fetch it again",
        )
    return pattern


def write(spec: ModelSpec) -> dict[str, Any]:
    ssm = spec.ssm
    assert ssm is not None
    return {
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_layers,
        "hybrid_override_pattern": spec.pattern,
        "vocab_size": spec.vocab_size,
        "intermediate_size": spec.ffn_size,
        "mlp_hidden_act": spec.activation,
        "mlp_bias": spec.mlp_bias,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "max_position_embeddings": spec.max_position_embeddings,
        "layer_norm_epsilon": spec.norm_eps,
        "tie_word_embeddings": spec.tied,
        "ssm_state_size": ssm.state_size,
        "mamba_num_heads": ssm.num_heads,
        "mamba_head_dim": ssm.head_dim,
        "n_groups": ssm.num_groups,
        "conv_kernel": ssm.conv_kernel,
        "use_conv_bias": ssm.conv_bias,
        "use_bias": ssm.proj_bias,
        "chunk_size": ssm.chunk_size,
        "time_step_min": ssm.time_step_min,
        "time_step_max": ssm.time_step_max,
        "time_step_floor": ssm.time_step_floor,
    }


def mlp(kind: str, axes: dict[str, str]) -> tuple[Rule, ...]:
    """A plain MLP: one matrix up, one down."""
    when = None if kind == "weight" else "mlp_bias"
    return (
        Rule(f"mlp.linear_fc1.{kind}", (Part(f"mixer.up_proj.{kind}", axes["up"]),), shard=0, when=when),
        Rule(
            f"mlp.linear_fc2.{kind}",
            (Part(f"mixer.down_proj.{kind}", axes["down"]),),
            shard=1 if kind == "weight" else None,
            when=when,
        ),
    )


ATTENTION = (*norm("input_layernorm", "norm", te="self_attention.linear_qkv.layer_norm_"), *attention("mixer"))
MLP = (
    *norm("pre_mlp_layernorm", "norm", te="mlp.linear_fc1.layer_norm_"),
    *mlp("weight", {"up": "ffn hidden", "down": "hidden ffn"}),
    *mlp("bias", {"up": "ffn", "down": "hidden"}),
)

FAMILY = Family(
    model_type="nemotron_h",
    architecture="NemotronHForCausalLM",
    read=read,
    write=write,
    layer="backbone.layers.{l}.",
    base="backbone.",
    copies=(Copy("lm_head.weight", "backbone.embeddings.weight", when="tied"),),
    dialects=("mcore", "te"),
    weights=(
        *embeddings("backbone.embeddings.weight"),
        *(replace(rule, layers="ssm") for rule in MIXER),
        *(replace(rule, layers="attention") for rule in ATTENTION),
        *(replace(rule, layers="mlp") for rule in MLP),
        *norm("decoder.final_norm", "backbone.norm_f", scope="model", stage="last"),
    ),
    tiny={
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "hidden_size": 64,
        "hybrid_override_pattern": "M-M*",
        "intermediate_size": 96,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "vocab_size": 131,
        "max_position_embeddings": 128,
        "ssm_state_size": 16,
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "n_groups": 4,
        "conv_kernel": 4,
        "chunk_size": 16,
        "mlp_hidden_act": "relu2",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    },
)
