"""Qwen2 and Qwen2.5: Llama with biases on q, k and v. https://arxiv.org/abs/2407.10671"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jumar.schema.config import ConfigReader
from jumar.schema.errors import ToolError
from jumar.schema.families import llama
from jumar.schema.family import EVERYWHERE, Family
from jumar.schema.spec import ModelSpec


def read(config: ConfigReader) -> ModelSpec:
    spec = replace(llama.read(config), model_type="qwen2", qkv_bias=True, proj_bias=False)
    return with_sliding_layers(config, spec)


def with_sliding_layers(config: ConfigReader, spec: ModelSpec) -> ModelSpec:
    """Qwen's sliding window: `layer_types` says where; else the layers from `max_window_layers` on, if `use_sliding_window`."""
    used, window = config.get("use_sliding_window", False), config.get("sliding_window", 4096)
    since = config.get("max_window_layers", 28)
    default = ["sliding_attention" if used and i >= since else "full_attention" for i in range(spec.num_layers)]
    types = config.get("layer_types", default)
    if unknown := sorted(set(types) - {"full_attention", "sliding_attention"}):
        raise ToolError(
            f"config.json of {spec.model_type}: layer_types {', '.join(unknown)} are not supported",
            hint="known: full_attention, sliding_attention",
        )
    layers = tuple(i for i, kind in enumerate(types) if kind == "sliding_attention")
    return replace(spec, sliding_window=window if layers else None, sliding_layers=layers)


def write_sliding_layers(spec: ModelSpec) -> dict[str, Any]:
    layers = ["sliding_attention" if i in spec.sliding_layers else "full_attention" for i in range(spec.num_layers)]
    return {
        "use_sliding_window": spec.sliding_window is not None,
        "sliding_window": spec.sliding_window,
        "max_window_layers": min(spec.sliding_layers, default=spec.num_layers),
        "layer_types": layers,
    }


def write(spec: ModelSpec) -> dict[str, Any]:
    config = llama.write(spec)
    del config["attention_bias"], config["mlp_bias"]
    return {**config, **write_sliding_layers(spec)}


FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    read=read,
    write=write,
    weights=llama.FAMILY.weights,
    tiny={
        **llama.FAMILY.tiny,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    },
    dialects=(*EVERYWHERE, "legacy"),
)
