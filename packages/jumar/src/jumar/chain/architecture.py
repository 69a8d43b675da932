"""The model of a training script: its config.json, or one made of the flags where there is none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jumar.chain.facts import Facts
from jumar.chain.tables import tables
from jumar.chain.verdicts import Unreadable, real
from jumar.schema.errors import ToolError
from jumar.schema.read_megatron_args import spec_from_args
from jumar.schema.registry import family_of

GPT2_VOCABULARY = 50257
"""Of GPT-2's tokenizer, where its vocab.json is not here."""


def read_config(folder: str | None) -> Mapping[str, Any] | None:
    """config.json of a model's directory, Hugging Face or Megatron; None where it is not here."""
    if folder is None:
        return None
    for path in (Path(folder) / "config.json", Path(folder) / "hf/config.json"):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict):
            return found
    return None


# --- without a config.json


def made_config(t: Facts) -> dict[str, Any]:
    """A config.json of the script's flags and of Megatron-LM's defaults. Raises ToolError saying what is missing."""
    family = next((each["family"] for each in tables()["training"].more["architectures"] if _fits(t, each)), None)
    if family is None:
        raise ToolError("no family of docs/families.md has these flags", hint="name its config: --model DIR")
    found = family_of(family, "the script's flags")
    return dict(found.config(spec_from_args(_arguments(t), found)))


def _fits(t: Facts, each: Mapping[str, Any]) -> bool:
    return all(t.has(name) for name in each["has"]) and not t.has(*each.get("not", ()))


def _arguments(t: Facts) -> dict[str, Any]:
    """The flags as Megatron's parser has them, with its defaults (megatron/training/arguments.py)."""
    args: dict[str, Any] = {
        "norm_epsilon": 1e-5,
        "rotary_base": 10000,
        "rotary_percent": 1.0,
        "untie_embeddings_and_output_weights": t.has("--untie-embeddings-and-output-weights"),
        "add_bias_linear": not t.has("--disable-bias-linear"),
        "add_qkv_bias": t.has("--add-qkv-bias"),
        "group_query_attention": t.has("--group-query-attention"),
        "bf16": t.has("--bf16"),
        "fp16": t.has("--fp16"),
        "moe_router_topk": 2,
    }
    for flag in t.job.flags:
        if flag.rule is not None and flag.rule.config and flag.rule.takes in ("N", "X") and len(flag.values) == 1:
            try:
                number = real(flag)
            except Unreadable:
                continue
            args[flag.name[2:].replace("-", "_")] = int(number) if number == int(number) else number
    args.setdefault("max_position_embeddings", t.number("--seq-length"))
    args.setdefault("vocab_size", t.number("--padded-vocab-size") or _vocabulary(t))
    args["noop_layers"] = t.said("--noop-layers") if t.pp > 1 else None
    args["norm_topk_prob"] = True if t.has("--norm-topk-prob") else None
    if hidden := args.get("hidden_size"):
        args.setdefault("ffn_hidden_size", int(4 * hidden * 2 / 3 / 64) * 64 if t.has("--swiglu") else 4 * hidden)
    if (shared := args.get("n_shared_experts")) and args.get("moe_ffn_hidden_size"):
        args.setdefault("moe_shared_expert_intermediate_size", shared * args["moe_ffn_hidden_size"])
    return args


def _vocabulary(t: Facts) -> int | None:
    """Tokens of GPT-2's kind of tokenizer: vocab.json and merges.txt."""
    if not t.has("--merge-file"):
        return None
    try:
        return len(json.loads(Path(t.said("--vocab-file") or "").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return GPT2_VOCABULARY
