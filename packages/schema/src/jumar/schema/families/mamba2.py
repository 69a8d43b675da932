"""Mamba-2: a state-space mixer in every layer, no attention. https://arxiv.org/abs/2405.21060"""

from __future__ import annotations

from typing import Any

from jumar.schema.config import ConfigReader
from jumar.schema.errors import ToolError
from jumar.schema.family import Copy, Family
from jumar.schema.rules import embeddings, norm
from jumar.schema.spec import ModelSpec, Ssm
from jumar.schema.weights import Part, Rule

# how fresh weights are drawn, and two settings that transformers' model does not read
INITIALISATION = (
    *("time_step_rank", "time_step_init_scheme", "time_step_scale", "rescale_prenorm_residual"),
    *("norm_before_gate", "use_mambapy"),
)


def read(config: ConfigReader) -> ModelSpec:
    hidden, heads, head_dim = config.size("hidden_size"), config.size("num_heads"), config.size("head_dim")
    if hidden * config.get("expand", 2) != heads * head_dim:
        raise ToolError(
            f"config.json of mamba2: num_heads {heads} * head_dim {head_dim} is {heads * head_dim}, "
            f"expected hidden_size {hidden} * expand {config.get('expand', 2)}",
            hint="one of the four is not the model's: get its config.json again",
        )
    check_time_steps(config)
    config.only("rms_norm", True)
    for inert in INITIALISATION:
        config.get(inert, None)
    ssm = Ssm(
        state_size=config.size("state_size", 128),
        num_heads=heads,
        head_dim=head_dim,
        num_groups=config.size("n_groups", 8),
        conv_kernel=config.size("conv_kernel", 4),
        conv_bias=config.get("use_conv_bias", True),
        proj_bias=config.get("use_bias", False),
        chunk_size=config.size("chunk_size", 256),
        time_step_min=config.get("time_step_min", 0.001),
        time_step_max=config.get("time_step_max", 0.1),
        time_step_floor=config.get("time_step_floor", 1e-4),
        residual_in_fp32=config.get("residual_in_fp32", True),
    )
    return ModelSpec(
        model_type="mamba2",
        num_layers=config.size("num_hidden_layers"),
        hidden_size=hidden,
        vocab_size=config.size("vocab_size"),
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        activation=config.activation("hidden_act", "silu"),
        gated=False,
        tied=config.get("tie_word_embeddings", False),
        position="none",
        ssm=ssm,
        dtype=config.dtype(),
    )


def check_time_steps(config: ConfigReader) -> None:
    """Refuses time steps that are cut off at either end."""
    low, high = config.get("time_step_limit", [0.0, float("inf")])
    if (float(low), float(high)) != (0.0, float("inf")):
        raise ToolError(
            f"config.json of {config.model_type}: time_step_limit [{low}, {high}] is not supported, expected [0, inf]",
            hint="models with steps that are cut off are not computed here",
        )


def write(spec: ModelSpec) -> dict[str, Any]:
    ssm = spec.ssm
    assert ssm is not None
    return {
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_layers,
        "vocab_size": spec.vocab_size,
        "layer_norm_epsilon": spec.norm_eps,
        "hidden_act": spec.activation,
        "tie_word_embeddings": spec.tied,
        "state_size": ssm.state_size,
        "num_heads": ssm.num_heads,
        "head_dim": ssm.head_dim,
        "n_groups": ssm.num_groups,
        "expand": ssm.num_heads * ssm.head_dim // spec.hidden_size,
        "conv_kernel": ssm.conv_kernel,
        "use_conv_bias": ssm.conv_bias,
        "use_bias": ssm.proj_bias,
        "chunk_size": ssm.chunk_size,
        "time_step_min": ssm.time_step_min,
        "time_step_max": ssm.time_step_max,
        "time_step_floor": ssm.time_step_floor,
        "residual_in_fp32": ssm.residual_in_fp32,
    }


def mixer(name: str, axes: str, shard: int | None = 0, **traits: Any) -> Rule:
    """A mixer tensor has the same name on both sides; a sum of axes is cut piece by piece."""
    return Rule(f"mixer.{name}", (Part(f"mixer.{name}", axes),), shard=shard, **traits)


IN_PROJ, CONV = "inner+inner+state+state+ssm_heads", "inner+state+state"  # z x B C dt; x B C
MIXER = (
    *norm("norm", "norm", te="mixer.in_proj.layer_norm_"),
    mixer("A_log", "ssm_heads", keep_dtype=True),
    mixer("D", "ssm_heads", keep_dtype=True),
    mixer("dt_bias", "ssm_heads"),
    mixer("in_proj.weight", f"{IN_PROJ} hidden"),
    mixer("in_proj.bias", IN_PROJ, when="ssm.proj_bias"),
    mixer("conv1d.weight", f"{CONV} 1 conv"),
    mixer("conv1d.bias", CONV, when="ssm.conv_bias"),
    mixer("norm.weight", "inner"),
    mixer("out_proj.weight", "hidden inner", shard=1),
    mixer("out_proj.bias", "hidden", shard=None, when="ssm.proj_bias"),
)

FAMILY = Family(
    model_type="mamba2",
    architecture="Mamba2ForCausalLM",
    read=read,
    write=write,
    layer="backbone.layers.{l}.",
    base="backbone.",
    copies=(Copy("lm_head.weight", "backbone.embeddings.weight", when="tied"),),
    weights=(
        *embeddings("backbone.embeddings.weight"),
        *MIXER,
        *norm("decoder.final_norm", "backbone.norm_f", scope="model", stage="last"),
    ),
    tiny={
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": "mamba2",
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "vocab_size": 131,
        "state_size": 16,
        "num_heads": 8,
        "head_dim": 16,
        "n_groups": 4,
        "expand": 2,
        "conv_kernel": 4,
        "chunk_size": 16,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    },
)
