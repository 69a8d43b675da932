"""Opening a Hugging Face model directory: config, tensors, and a check of one against the other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jumar.ckpt_convert.checkpoint import Checkpoint, OpenOptions
from jumar.ckpt_convert.compare import same_values
from jumar.ckpt_convert.formats.hf import has_weights, open_tensors, read_json
from jumar.ckpt_convert.plan import Ints, whole
from jumar.ckpt_convert.tensors import TensorRef
from jumar.schema.errors import Exit, ToolError
from jumar.schema.family import Family
from jumar.schema.manifest import above
from jumar.schema.registry import family_of_config
from jumar.schema.spec import ModelSpec


def read_config(path: Path, ignore: frozenset[str]) -> tuple[Family, ModelSpec]:
    """Family and traits of a config.json. Raises ToolError naming what is not understood."""
    config: Mapping[str, Any] = read_json(path)
    if not isinstance(config, dict):
        raise ToolError(f"{path}: a {type(config).__name__}, expected keys and values", hint="fetch the file again")
    family = family_of_config(config, str(path))
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise ToolError(f"{path}: the weights are quantised ({method}), which is not read yet", hint="dequantise them first")
    return family, family.spec(config, ignore=ignore)


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The model that an adapter adapts, and the directory of its config and tokenizer."""

    family: Family
    spec: ModelSpec
    extras: Path | None


def read_base(path: Path, ignore: frozenset[str]) -> BaseModel:
    """What a directory says of a model: a Hugging Face directory, with weights or without, or a Megatron one with hf/."""
    homes = (path, path / "hf", *(each / "hf" for each in above(path)))
    home = next((d for d in homes if (d / "config.json").exists()), None)
    if home is None:
        raise ToolError(f"{path}: no config.json, nor hf/config.json", hint="name the base model's directory: --base HF_DIR")
    if has_weights(home):  # they may lack what the config promises: MTP layers
        model = open_hf(home, OpenOptions(ignore=ignore))
        return BaseModel(model.family, model.spec, home)
    return BaseModel(*read_config(home / "config.json", ignore), home)


def open_hf(root: Path, options: OpenOptions) -> Checkpoint:
    """A model directory as a Checkpoint. Every tensor must be named by a rule, be a declared drop, or equal what it repeats."""
    if options.sets or options.iteration or options.family:
        raise ToolError(
            f"{root} is a Hugging Face directory, on which --iteration, --family and --set have no effect",
            hint="leave them out; they are for Megatron checkpoints",
            code=Exit.USAGE,
        )
    family, spec = read_config(root / "config.json", options.ignore)
    found = open_tensors(root)
    base = not family.base or any(name.startswith(family.base) for name in found)
    if not base:
        found = {n if n == "lm_head.weight" else family.base + n: ref for n, ref in found.items()}
    check_counts(spec, len(found), str(root / "config.json"))
    shapes = family.hf_tensors(spec)
    notes: list[str] = []
    if spec.mtp_layers and not _has_mtp(shapes, found, family, spec):
        notes.append(f"config.json says {spec.mtp_layers} MTP layers, the files hold none: converted without")
        spec = replace(spec, mtp_layers=0)
        shapes = family.hf_tensors(spec)
    copies = {n: original for n, original in family.copy_names(spec).items() if n in found}
    dropped = tuple(n for n in found if n not in shapes and any(re.fullmatch(p, n) for p in family.drops))
    unknown = [n for n in found if n not in shapes and n not in copies and n not in dropped]
    _check(root, spec, shapes, found, unknown)
    for name, original in copies.items():
        if not same_values(whole(found[name]), whole(found[original])):
            raise ToolError(
                f"{root}: {name} should repeat {original}, but their values differ",
                hint="if they are separate weights, set tie_word_embeddings to false in config.json",
            )
    return Checkpoint(
        paths=(root,),
        format="huggingface",
        family=family,
        spec=spec,
        tensors=shapes,
        sources={n: [whole(found[n])] for n in shapes},
        extras=root,
        copies=copies,
        dropped=dropped,
        base=base,
        notes=tuple(notes),
    )


def check_counts(spec: ModelSpec, tensors: int, where: str) -> None:
    """Raises ToolError for a config of so many layers or experts that the files cannot hold them, before they are counted out."""
    for count, what in ((spec.num_layers, "layers"), (spec.mtp_layers, "MTP layers")):
        if count > tensors:
            raise ToolError(
                f"{where} says {count} {what}, the files hold {tensors} tensors", hint="does it belong to these weights?"
            )


def _has_mtp(shapes: Iterable[str], found: Iterable[str], family: Family, spec: ModelSpec) -> bool:
    prefixes = tuple(family.layer.format(l=spec.num_layers + k) for k in range(spec.mtp_layers))
    return any(name.startswith(prefixes) for name in found)


def _check(root: Path, spec: ModelSpec, shapes: Mapping[str, Ints], found: Mapping[str, TensorRef], unknown: list[str]) -> None:
    """Raises ToolError for tensors that are missing, that no rule names, or whose shape is not what config.json implies."""
    missing = [n for n in shapes if n not in found]
    if missing:
        raise ToolError(
            f"{root}: {len(missing)} tensor(s) that {spec.model_type} needs are missing: {_some(missing)}",
            hint="is the download complete, and does config.json belong to these weights?",
        )
    if unknown:
        raise ToolError(
            f"{root}: no rule of {spec.model_type} names {len(unknown)} tensor(s): {_some(unknown)}",
            hint="the model has a part that jumar does not know; nothing was converted",
        )
    wrong = [n for n, shape in shapes.items() if found[n].shape != shape]
    if wrong:
        lines = ", ".join(f"{n} is {list(found[n].shape)}, expected {list(shapes[n])}" for n in wrong[:3])
        raise ToolError(
            f"{root}: {len(wrong)} tensor(s) contradict config.json: {lines}",
            hint="does config.json belong to these weights (vocab_size, num_key_value_heads, head_dim)?",
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
