"""ModelSpec: an architecture as traits. Code above branches on these, never on a family's name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from jumar.schema.errors import ToolError

RopeKind = Literal["linear", "dynamic", "llama3", "yarn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched; the field names are Hugging Face's `rope_scaling` keys.

    llama3: https://github.com/meta-llama/llama-models; yarn: https://arxiv.org/abs/2309.00071
    """

    kind: RopeKind
    factor: float
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary position embedding, https://arxiv.org/abs/2104.09864.

    fraction: share of the head (of the rope part, under MLA) that is rotated
    interleaved: pairs are neighbours (2i, 2i+1) and not the two halves
    """

    base: float = 10000.0
    fraction: float = 1.0
    interleaved: bool = False
    scaling: RopeScaling | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moe:
    """A mixture of experts in the layers that are not dense.

    ffn_size, shared_ffn_size: inner width of one expert, and of all shared experts together (0: none)
    dense_layers: layers that hold an ordinary MLP instead
    score_bias: a per-expert bias is added to the scores for choosing only (https://arxiv.org/abs/2408.15664)
    norm_topk: the chosen scores are normalised to sum to one
    num_groups, topk_groups: group-limited choosing; `group_score` how a group is ranked ("max" or "top2_sum")
    """

    num_experts: int
    top_k: int
    ffn_size: int
    shared_ffn_size: int = 0
    shared_gate: bool = False
    dense_layers: tuple[int, ...] = ()
    score: Literal["softmax", "sigmoid"] = "softmax"
    score_bias: bool = False
    norm_topk: bool = True
    scaling_factor: float = 1.0
    num_groups: int = 1
    topk_groups: int = 1
    group_score: Literal["max", "top2_sum"] = "max"
    aux_loss_coef: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mla:
    """Multi-head latent attention, https://arxiv.org/abs/2405.04434.

    Sizes in elements; q_lora_rank 0: queries are not compressed.
    """

    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    q_lora_rank: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ssm:
    """A Mamba-2 mixer, https://arxiv.org/abs/2405.21060; in every layer, or in those of `ModelSpec.pattern`.

    inner_size = num_heads * head_dim; its norm is over each of num_groups groups by itself
    """

    state_size: int
    num_heads: int
    head_dim: int
    num_groups: int
    conv_kernel: int = 4
    conv_bias: bool = True
    proj_bias: bool = False
    chunk_size: int = 256
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    time_step_floor: float = 1e-4
    residual_in_fp32: bool = True


Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]
LayerKind = Literal["block", "ssm", "attention", "mlp"]
PATTERN: dict[str, LayerKind] = {"M": "ssm", "*": "attention", "-": "mlp"}
"""Letters of a pattern, as Megatron's --hybrid-override-pattern has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What a decoder is made of. Sizes in elements, of the whole model (not of one rank).

    ffn_size:       inner width of a dense MLP; its input matrix has twice as many rows if `gated`
    qkv_bias, proj_bias, mlp_bias: biases of q/k/v, of the attention's output, of the MLP (dense layers)
    qk_norm:        RMSNorm over each head of q and k
    post_norms:     a second norm after attention and after the MLP, before the residual is added
    zero_centered_gamma: norms multiply by (1 + weight)
    sliding_window: width in tokens, in the layers of `sliding_layers`
    attn_scale:     softmax scale; None: 1/sqrt(head_dim)
    pattern:        a letter of PATTERN for every layer, where each is a mixer, attention or an MLP; empty: all are alike
    mtp_layers:     multi-token-prediction layers after the decoder (https://arxiv.org/abs/2412.19437)
    dtype:          the dtype in which the weights are published ("bfloat16", ...)
    """

    model_type: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    num_heads: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0
    ffn_size: int = 0
    max_position_embeddings: int = 0
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    zero_centered_gamma: bool = False
    post_norms: bool = False
    activation: Activation = "silu"
    gated: bool = True
    tied: bool = False
    qkv_bias: bool = False
    proj_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    position: Literal["rope", "learned", "none"] = "rope"
    rope: Rope = Rope()
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] = ()
    attn_scale: float | None = None
    attn_softcap: float | None = None
    final_softcap: float | None = None
    embed_scale: float | None = None
    moe: Moe | None = None
    mla: Mla | None = None
    ssm: Ssm | None = None
    pattern: str = ""
    mtp_layers: int = 0
    dtype: str = "bfloat16"

    def layer_kind(self, layer: int) -> LayerKind:
        """What decoder layer `layer` is: "block" has attention (of any kind) and an MLP or experts."""
        if self.pattern:
            return PATTERN[self.pattern[layer]]
        return "block" if self.ssm is None else "ssm"

    def is_moe_layer(self, layer: int) -> bool:
        """Whether decoder layer `layer` (from 0; MTP layers follow the decoder's) holds experts."""
        return self.moe is not None and layer not in self.moe.dense_layers

    def has(self, trait: str) -> bool:
        """The truth of a trait by name. "moe.shared_gate" looks inside, false where there is no `moe`; "norm=layer" compares."""
        path, _, wanted = trait.partition("=")
        value: Any = self
        for part in path.split("."):
            value = getattr(value, part) if value is not None else None
        return str(value) == wanted if wanted else bool(value)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest; traits at their default are left out."""
        default = {f.name: f.default for f in fields(self)}
        return {name: value for name, value in asdict(self).items() if getattr(self, name) != default.get(name)}


def spec_from_dict(values: Mapping[str, Any]) -> ModelSpec:
    """The inverse of `ModelSpec.to_dict`. Raises ToolError for a trait that this version does not know."""
    known = {f.name for f in fields(ModelSpec)}
    if unknown := sorted(set(values) - known):
        raise ToolError(f"model traits {', '.join(unknown)} are not known", hint="written by a newer jumar? upgrade jumar-schema")
    made = dict(values)
    kinds: dict[str, Any] = {"moe": Moe, "mla": Mla, "ssm": Ssm}
    try:
        for name, kind in kinds.items():
            if made.get(name):
                made[name] = kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in made[name].items()})
        if rope := made.get("rope"):
            scaling = RopeScaling(**rope["scaling"]) if rope.get("scaling") else None
            made["rope"] = Rope(**{**rope, "scaling": scaling})
        made["sliding_layers"] = tuple(made.get("sliding_layers", ()))
        spec = ModelSpec(**made)
    except (TypeError, ValueError, AttributeError) as fault:
        raise ToolError(f"model traits are damaged: {fault}", hint="written by a newer jumar? upgrade jumar-schema") from fault
    check_spec(spec, "model traits are damaged", hint="written by a newer jumar? upgrade jumar-schema")
    return spec


MOST_LAYERS, MOST_EXPERTS, MOST = 10_000, 100_000, 1 << 40
"""Far more than any model has: a damaged number must not be counted out."""


def check_spec(spec: ModelSpec, where: str, hint: str | None = None) -> None:
    """Raises ToolError for a trait of another kind than its annotation, and for numbers that no model has."""
    fault = _kind_fault(ModelSpec, spec, "")
    moe, rope = spec.moe, spec.rope
    if fault is None:
        for wrong, text in (
            (not 1 <= spec.num_layers <= MOST_LAYERS, f"num_layers is {spec.num_layers}, expected 1 to {MOST_LAYERS}"),
            (spec.mtp_layers > MOST_LAYERS, f"mtp_layers is {spec.mtp_layers}, expected at most {MOST_LAYERS}"),
            (not rope.base > 0, f"rope.base is {rope.base}, expected a positive number"),
            (not 0 < rope.fraction <= 1, f"rope.fraction is {rope.fraction}, expected more than 0, at most 1"),
            (set(spec.pattern) - set(PATTERN), f"pattern is {spec.pattern!r:.60}, expected letters of {''.join(PATTERN)}"),
            (
                spec.pattern and len(spec.pattern) != spec.num_layers,
                f"pattern {spec.pattern!r:.60} is of {len(spec.pattern)} layers, num_layers is {spec.num_layers}",
            ),
            (spec.pattern and not spec.ssm, f"pattern {spec.pattern!r:.60} without ssm"),
            (spec.num_heads and not spec.mla and not spec.num_kv_heads * spec.head_dim, "num_kv_heads or head_dim is 0"),
            (moe and not 1 <= moe.num_experts <= MOST_EXPERTS, f"moe.num_experts is {moe and moe.num_experts}"),
            (moe and not 1 <= moe.top_k <= moe.num_experts, f"{moe and moe.top_k} experts a token of {moe and moe.num_experts}"),
        ):
            if wrong:
                fault = text
    if fault is not None:
        raise ToolError(f"{where}: {fault}", hint=hint)


def _kind_fault(kind: Any, value: Any, path: str) -> str | None:
    """None if a value is of an annotated kind, else what is wrong. Whole numbers are not negative, numbers are finite."""
    if is_dataclass(kind):
        if not isinstance(value, cast(type, kind)):
            return f"{path} is {value!r:.60}, expected traits"
        inner = ((f"{path}.{f.name}" if path else f.name, f.name) for f in fields(kind))
        faults = (_kind_fault(_hints(cast(type, kind))[name], getattr(value, name), where) for where, name in inner)
        return next((fault for fault in faults if fault), None)
    options = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        if value is None and type(None) in options:
            return None
        return _kind_fault(next(o for o in options if o is not type(None)), value, path)
    if get_origin(kind) is Literal:
        right, expected = value in options, f"one of {', '.join(map(str, options))}"
    elif get_origin(kind) is tuple:
        right, expected = isinstance(value, tuple) and all(_is_whole(v) for v in value), "whole numbers"
    elif kind is int:
        right, expected = _is_whole(value), f"a whole number from 0 to {MOST}"
    elif kind is float:
        right, expected = type(value) in (int, float) and math.isfinite(value), "a number"
    else:
        right, expected = type(value) is kind, f"a {kind.__name__}"
    return None if right else f"{path} is {value!r:.60}, expected {expected}"


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


ROPE_KINDS: tuple[str, ...] = get_args(RopeKind)
