"""PEFT adapter directories: adapter_config.json and the names in adapter_model.safetensors.

Format: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from jumar.ckpt_convert.formats.hf import BIN, SAFETENSORS, read_bin, read_json, read_safetensors
from jumar.ckpt_convert.tensors import TensorRef
from jumar.schema.errors import ToolError

CONFIG, ADAPTER, ADAPTER_BIN = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
FOREIGN = {
    "lora_magnitude_vector": "DoRA (use_dora), whose magnitudes are no product of two matrices",
    "lora_embedding_": "a LoRA on an embedding (lora_embedding_A, lora_embedding_B)",
    "modules_to_save": "modules_to_save: whole modules beside the LoRA",
    ".bias": "biases beside the LoRA",
    ".base_layer.weight": "weights of the model itself (peft: save_pretrained(..., save_embedding_layers=False) leaves them out)",
}
UNDERSTOOD = frozenset(
    "r lora_alpha use_rslora rank_pattern alpha_pattern target_modules exclude_modules layers_to_transform layers_pattern "
    "target_parameters bias peft_type init_lora_weights fan_in_fan_out".split()
)
CARRIED = ("base_model_name_or_path", "revision", "task_type", "lora_dropout")
"""What goes along to Megatron's manifest and back: it says nothing about the weights."""
WITHOUT_EFFECT = frozenset(
    "auto_mapping inference_mode peft_version loftq_config eva_config corda_config lora_ga_config megatron_config megatron_core "
    "qalora_group_size runtime_config".split()
)
STACKED = ("gate_up_proj", "down_proj")
"""Parameters that may be targeted: the experts of a layer, as transformers 5 stacks them."""
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter, and no model beside it."""
    models = (SAFETENSORS, BIN, f"{SAFETENSORS}.index.json", f"{BIN}.index.json")
    found = any((directory / name).exists() for name in (CONFIG, ADAPTER, ADAPTER_BIN))
    return found and not any((directory / name).exists() for name in models)


def read_adapter(directory: Path) -> dict[tuple[str, str], TensorRef]:
    """(HF module, "A" or "B") -> tensor. Raises ToolError naming what is no LoRA of a matrix."""
    path = next((directory / n for n in (ADAPTER, ADAPTER_BIN) if (directory / n).exists()), None)
    if path is None:
        raise ToolError(f"{directory} holds no {ADAPTER} (nor {ADAPTER_BIN})", hint="is the adapter complete?")
    found: dict[tuple[str, str], TensorRef] = {}
    for name, ref in (read_bin(path) if path.name == ADAPTER_BIN else read_safetensors(path)).items():
        what = next((text for mark, text in FOREIGN.items() if mark in name), None)
        match = NAME.fullmatch(name)
        if what or match is None:
            raise ToolError(
                f"{path}: {name}: {what or 'not a tensor of a LoRA'} cannot be carried",
                hint="merge it with peft (merge_and_unload), and convert the merged model",
            )
        found[match[1], match[2]] = ref
    return found


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """adapter_config.json of a LoRA. `carried`: what it says of no weight."""

    rank: int
    alpha: float
    rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target: list[str] | str | None
    exclude: list[str] | str | None
    layers: tuple[int, ...] | None
    layers_pattern: tuple[str, ...]
    carried: Mapping[str, Any]

    def rank_of(self, module: str) -> int:
        return self.rank_pattern.get(_pattern(self.rank_pattern, module), self.rank)

    def scale_of(self, module: str) -> Fraction:
        """The factor of B @ A: alpha / r, or alpha / sqrt(r) (https://arxiv.org/abs/2312.03732)."""
        alpha, rank = self.alpha_pattern.get(_pattern(self.alpha_pattern, module), self.alpha), self.rank_of(module)
        return Fraction(alpha / math.sqrt(rank)) if self.rslora else Fraction(alpha) / rank

    def targets(self, module: str) -> bool:
        """Whether peft would wrap a module (peft.tuners.tuners_utils.check_target_module_exists)."""
        if self.exclude and _named(self.exclude, module):
            return False
        if self.target is None or not _named(self.target, module):
            return False
        if self.layers is None or isinstance(self.target, str) or module in self.target:
            return True
        patterns = [rf"(?:^|.*?\.){p}\.(\d+)\." for p in self.layers_pattern] or [r".*?\.[^.]*\.(\d+)\."]
        found = next((m for p in patterns if (m := re.match(p, module))), None)
        return found is not None and int(found[1]) in self.layers


def _named(target: list[str] | str, module: str) -> bool:
    if isinstance(target, str):
        return re.fullmatch(target, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in target)


def _pattern(patterns: Mapping[str, Any], module: str) -> str:
    return next((p for p in patterns if re.match(rf"(.*\.)?({p})$", module)), module)


def read_adapter_config(path: Path, ignore: frozenset[str]) -> AdapterConfig:
    """Raises ToolError naming what a LoRA of matrices alone cannot carry, and any key that is not understood."""
    config = read_json(path)
    if not isinstance(config, dict):
        raise ToolError(f"{path}: a {type(config).__name__}, expected keys and values", hint="fetch the file again")
    _refuse(path, config, ignore)
    try:
        layers = config.get("layers_to_transform")
        pattern = config.get("layers_pattern") or ()
        read = AdapterConfig(
            rank=_count(config["r"]),
            alpha=_number(config["lora_alpha"]),
            rslora=bool(config.get("use_rslora")),
            rank_pattern={str(k): _count(v) for k, v in (config.get("rank_pattern") or {}).items()},
            alpha_pattern={str(k): _number(v) for k, v in (config.get("alpha_pattern") or {}).items()},
            target=_names(config.get("target_modules")),
            exclude=_names(config.get("exclude_modules")),
            layers=None if layers is None or layers == [] else tuple(map(int, [layers] if isinstance(layers, int) else layers)),
            layers_pattern=(pattern,) if isinstance(pattern, str) else tuple(pattern),
            carried={k: config[k] for k in CARRIED if config.get(k) not in (None, 0)},
        )
        read.targets("model.layers.0.a"), read.scale_of("model.layers.0.a")  # compiles every pattern
    except KeyError as missing:
        raise ToolError(f"{path} does not say {missing}", hint="is this the configuration of a LoRA?") from None
    except (TypeError, ValueError, AttributeError, re.error) as fault:
        raise ToolError(f"{path} holds a value of the wrong kind: {fault}", hint="was the file edited by hand?") from None
    return read


def _refuse(path: Path, config: Mapping[str, Any], ignore: frozenset[str]) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise ToolError(f"{path}: peft_type {kind}: only LORA is read", hint="merge it with peft, and convert the merged model")
    hint = "merge it with peft (merge_and_unload), and convert the merged model"
    if (bias := config.get("bias", "none")) != "none":
        raise ToolError(f"{path}: bias={bias!r}: an adapter that trains biases cannot be carried", hint=hint)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(CHANGES_BASE):
        raise ToolError(
            f"{path}: init_lora_weights={start!r} changed the base model's weights, which the adapter alone does not say",
            hint="save it again in peft with path_initial_model_for_weight_conversion",
        )
    parameters = config.get("target_parameters") or ()
    if others := [p for p in parameters if str(p).rpartition(".")[2] not in STACKED]:
        raise ToolError(f"{path}: target_parameters={others}: cannot be carried, but for {' and '.join(STACKED)}", hint=hint)
    unknown = [k for k, v in config.items() if v and k not in UNDERSTOOD | WITHOUT_EFFECT | ignore | {*CARRIED}]
    if unknown:
        raise ToolError(
            f"{path}: {', '.join(f'{k}={str(config[k])[:60]}' for k in unknown)}: cannot be carried",
            hint=f"{hint}; or, if it has no effect on the weights, add --ignore-config-keys {','.join(unknown)}",
        )


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r}, expected a positive whole number")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r}, expected a number")
    return value


def _names(value: Any) -> list[str] | str | None:
    return value if value is None or isinstance(value, str) else [str(v) for v in value]


def plain_number(value: Fraction) -> int | float:
    """A whole number where it is one."""
    return int(value) if value.denominator == 1 else float(value)


def adapter_config(
    rank: int, scale: Fraction, target: list[str], carried: Mapping[str, Any], *, fan_in_fan_out: bool
) -> dict[str, Any]:
    """adapter_config.json of a LoRA with one rank and one factor."""
    return {
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "inference_mode": True,
        "lora_alpha": plain_number(scale * rank),
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": target,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
        **carried,
    }
