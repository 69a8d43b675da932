"""Adapters of experts as peft saves them on transformers 5, which holds the experts of a layer in two stacked parameters.

`experts.gate_up_proj` and `experts.down_proj` get one lora_A (experts * rank, in) and one lora_B (out, rank * experts) each;
they are strided views of the adapters of single experts, in which gate and up have one lora_A.
Format: peft.tuners.lora.layer.ParamWrapper.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from jumar.ckpt_convert.tensors import TensorRef
from jumar.schema.adapters import fused_modules, module_sizes
from jumar.schema.errors import ToolError
from jumar.schema.family import Family
from jumar.schema.spec import ModelSpec

Halves = dict[tuple[str, str], TensorRef]
STACK = re.compile(r"(?P<layer>.*?\.(?P<number>\d+)\.)[^.]+\.experts(\.base_layer)*")


def split_experts(found: Halves, family: Family, spec: ModelSpec) -> tuple[Halves, dict[str, str]]:
    """The halves with those of stacked experts as modules, and for each of these the parameter that the configuration names.

    Raises ToolError for a stack that is not of this model's experts.
    """
    split: Halves = {}
    names: dict[str, str] = {}
    sizes = module_sizes(family, spec)
    for (stack, half), a in found.items():
        match = STACK.fullmatch(stack)
        if match is None or stack in sizes:
            split[stack, half] = a
            continue
        b = found.get((stack, "B"))
        if half == "B" or b is None or len(a.shape) != 2 or len(b.shape) != 2:
            if (stack, "A") not in found or b is None:
                raise ToolError(f"{a.file}: one of lora_A and lora_B is missing for {stack}", hint="is the adapter complete?")
            continue
        experts = _experts(family, spec, match["number"])
        fits = [
            (parameter, modules)
            for parameter, modules in experts.items()
            if a.shape[1] == sizes[modules[0][0]][1] and b.shape[0] == sum(sizes[m][0] for m in modules[0])
        ]
        if len(fits) != 1 or a.shape[0] % len(fits[0][1]) or a.shape[0] != b.shape[1]:
            raise ToolError(
                f"{a.file}: {stack}: lora_A {list(a.shape)} and lora_B {list(b.shape)} fit no experts of layer {match['number']}",
                hint="is --base the model that the adapter was trained on?",
            )
        ((parameter, modules),) = fits
        for module, refs in _views(a, b, modules, sizes).items():
            split[module, "A"], split[module, "B"] = refs
            names[module] = f"{match['layer']}mlp.experts.{parameter}"
    return split, names


def _experts(family: Family, spec: ModelSpec, layer: str) -> dict[str, list[tuple[str, ...]]]:
    """Parameter of a layer's experts -> the HF modules that it stacks, expert by expert."""
    prefix = family.layer.format(l=layer)
    found: dict[str, list[tuple[str, ...]]] = {}
    for fused in fused_modules(family, spec, family.dialects[0]):
        if fused.rule.expert and fused.modules[0].startswith(prefix):
            found.setdefault("gate_up_proj" if len(fused.modules) > 1 else "down_proj", []).append(fused.modules)
    return found


def _views(
    a: TensorRef, b: TensorRef, modules: list[tuple[str, ...]], sizes: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[TensorRef, TensorRef]]:
    """HF module -> its lora_A, the rows of its expert; and its lora_B, every count-th column of its rows."""
    count = len(modules)
    rank = a.shape[0] // count
    views = {}
    for e, group in enumerate(modules):
        rows = 0
        own_a = replace(a, shape=(rank, a.shape[1]), offset=a.offset + e * rank * a.strides[0] * a.itemsize)
        for module in group:
            out = sizes[module][0]
            first = (rows * b.strides[0] + e * b.strides[1]) * b.itemsize
            own_b = replace(b, shape=(out, rank), offset=b.offset + first, strides=(b.strides[0], count * b.strides[1]))
            views[module] = own_a, own_b
            rows += out
    return views
