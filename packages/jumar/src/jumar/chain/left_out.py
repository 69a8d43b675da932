"""What Megatron-LM takes of an architecture where a flag is left out, against a model's config.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jumar.chain.facts import Facts
from jumar.chain.traits import ACTIVATIONS, LATENT
from jumar.schema.errors import ToolError
from jumar.schema.registry import family_of_config
from jumar.schema.spec import ModelSpec

ELSEWHERE = ("--use-checkpoint-args", "--use-mp-args-from-checkpoint-args", "--spec")
"""Where one of these is given, the flags that are left out are said by something else."""
ROTARY = ("--position-embedding-type", "--use-rotary-position-embeddings", "--use-rotary-position-embedding")


def left_out(t: Facts, config: Mapping[str, Any]) -> str | None:
    """A note of all defaults that are not this model's; None where there is none, or config.json is not read."""
    try:
        spec = family_of_config(config, "the model's config.json").spec(config)
    except ToolError:
        return None
    found = () if t.has(*ELSEWHERE) or t.job.program.endswith("pretrain_mamba.py") else tuple(_defaults(t, spec))
    if not found:
        return None
    what = "left out, and otherwise by Megatron-LM's defaults than in config.json, whose model is trained"
    return f"{what}: {'; '.join(found)}"


def _defaults(t: Facts, spec: ModelSpec) -> Iterator[str]:
    """Defaults: megatron/training/arguments.py."""
    if not t.has("--normalization") and spec.norm == "rms":
        yield "--normalization (LayerNorm there, RMSNorm here)"
    if not t.has(*ACTIVATIONS) and (spec.gated or spec.activation not in ("gelu", "gelu_tanh")):
        yield f"--swiglu and its like (gelu there, {'gated ' if spec.gated else ''}{spec.activation} here)"
    if not t.has("--disable-bias-linear") and not spec.mlp_bias:
        yield "--disable-bias-linear (biases there, none here)"
    if t.has("--disable-bias-linear") and not t.has("--add-qkv-bias") and spec.qkv_bias:
        yield "--add-qkv-bias (no biases of q, k and v there, biases here)"
    if not t.has("--untie-embeddings-and-output-weights") and not spec.tied:
        yield "--untie-embeddings-and-output-weights (tied there, not here)"
    if not t.has(*ROTARY) and spec.position != "learned":
        yield f"--position-embedding-type (learned there, {spec.position} here)"
    if not t.has("--num-experts") and spec.moe is not None:
        yield f"--num-experts (none there, {spec.moe.num_experts} here)"
    if not t.has(*LATENT) and spec.mla is not None:
        yield "--multi-latent-attention (not there, here)"
    if not t.has("--qk-layernorm") and spec.qk_norm:
        yield "--qk-layernorm (no norms of q and k there, norms here)"
    if not t.has("--group-query-attention") and spec.mla is None and spec.num_kv_heads < spec.num_heads:
        yield f"--group-query-attention ({spec.num_heads} KV heads there, {spec.num_kv_heads} here)"
    if not t.has("--rotary-base") and spec.position == "rope" and spec.rope.base != 10000:
        yield f"--rotary-base (10000 there, {spec.rope.base:.15g} here)"
