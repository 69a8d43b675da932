"""Qwen3 (dense): Llama with a norm over each head of q and k. https://arxiv.org/abs/2505.09388"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jumar.schema.config import ConfigReader
from jumar.schema.families import llama, qwen2
from jumar.schema.family import Family
from jumar.schema.spec import ModelSpec


def read(config: ConfigReader) -> ModelSpec:
    head_dim = config.size("head_dim", 128)
    spec = replace(llama.read(config), model_type="qwen3", head_dim=head_dim, qk_norm=True)
    return qwen2.with_sliding_layers(config, spec)


def write(spec: ModelSpec) -> dict[str, Any]:
    config = llama.write(spec)
    del config["mlp_bias"]
    return {**config, **qwen2.write_sliding_layers(spec)}


FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    read=read,
    write=write,
    weights=llama.FAMILY.weights,
    tiny={
        **llama.FAMILY.tiny,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 16,
        "use_sliding_window": False,
    },
)
