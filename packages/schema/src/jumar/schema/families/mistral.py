"""Mistral: Llama's tensors with a sliding window in every layer. https://arxiv.org/abs/2310.06825"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jumar.schema.config import ConfigReader
from jumar.schema.families import llama
from jumar.schema.family import EVERYWHERE, Family
from jumar.schema.spec import ModelSpec


def read(config: ConfigReader) -> ModelSpec:
    window = config.get("sliding_window", 0) or None
    spec = replace(llama.read(config), model_type="mistral", sliding_window=window)
    return replace(spec, sliding_layers=tuple(range(spec.num_layers)) if window else ())


def write(spec: ModelSpec) -> dict[str, Any]:
    config = llama.write(spec)
    del config["attention_bias"], config["mlp_bias"]
    return {**config, "sliding_window": spec.sliding_window}


FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    read=read,
    write=write,
    weights=llama.FAMILY.weights,
    tiny={
        **llama.FAMILY.tiny,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": 32,
        "head_dim": 16,
    },
    dialects=(*EVERYWHERE, "legacy"),
)
