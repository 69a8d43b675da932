"""A model with its adapter: beside the weights (shards that bear a LoRA), or merged into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jumar.ckpt_convert.checkpoint import Checkpoint, OpenOptions
from jumar.ckpt_convert.formats import megatron, peft
from jumar.ckpt_convert.open_hf import BaseModel
from jumar.ckpt_convert.open_peft import open_peft
from jumar.ckpt_convert.opening import open_checkpoint
from jumar.ckpt_convert.plan import Delta
from jumar.ckpt_convert.verification import verify
from jumar.schema.adapters import module_sizes, turned_modules
from jumar.schema.errors import Exit, ToolError


def open_with_adapter(paths: Sequence[Path], adapter: Path | None, options: OpenOptions, *, merge: bool) -> Checkpoint:
    """A model, with an adapter beside its weights or merged. options: `lora_*` are the adapter's, the others the model's first.

    A Megatron adapter of a Hugging Face model has them all.
    """
    if adapter is None:
        opened = open_checkpoint(*paths, options=options)
        return merged(opened) if merge else opened
    if options.base is not None:
        raise ToolError("--base has no effect with --adapter, which adapts the source", hint="leave --base out", code=Exit.USAGE)
    lora = {k: v for k, v in options.sets.items() if k.startswith("lora_")}
    rest = {k: v for k, v in options.sets.items() if k not in lora}
    if all(path.is_dir() and megatron.is_checkpoint(path) for path in paths):
        base, own = open_checkpoint(*paths, options=replace(options, sets=rest)), OpenOptions(sets=lora, ignore=options.ignore)
    else:
        base, own = open_checkpoint(*paths, options=OpenOptions(ignore=options.ignore)), options
    found = open_adapter(adapter, base, own)
    return merged(base, found) if merge else bearing(base, found)


def open_merged(path: Path, adapter: Path | None = None, options: OpenOptions | None = None) -> Checkpoint:
    """A model with the adapter, or the LoRA that its shards bear, in its weights; without either, as it is.

    Raises ToolError: 2 for two adapters, 3 for an adapter of another model, or one where a model is expected.
    """
    base = open_checkpoint(path, options=replace(options or OpenOptions(), bearing=True))
    if base.lora:
        raise ToolError(f"{path} is an adapter, not a model", hint=f"name its model, and --adapter {path}")
    if adapter is not None:
        return merged(base, open_adapter(adapter, base, OpenOptions()))
    return merged(base) if base.adapter is not None else base


def open_adapter(path: Path, base: Checkpoint, options: OpenOptions) -> Checkpoint:
    """An adapter of a model that is open: a PEFT directory, or Megatron shards that hold a LoRA alone or beside weights.

    Those weights are not used: they are compared with the base's, and a note says what was found.
    """
    if path.is_dir() and peft.is_adapter(path):
        return open_peft(path, options, BaseModel(base.family, base.spec, base.extras))
    known = OpenOptions()
    if path.is_dir() and megatron.is_checkpoint(path):
        known = replace(options, base=base.extras) if base.extras else replace(options, family=base.spec.model_type)
    opened = open_checkpoint(path, options=replace(known, bearing=True))
    if opened.lora:
        return opened
    if opened.adapter is None:
        raise ToolError(f"{path} holds no LoRA", hint="expected a PEFT adapter directory, or Megatron shards with lora_A, lora_B")
    found = verify(base, replace(opened, adapter=None))
    if found.same:
        note = f"{path} also holds the model's weights; they equal those of {base.paths[0]}"
    else:
        some = ", ".join(d.name for d in found.differences[:4])
        note = (
            f"{path} also holds weights of the model, and {len(found.differences)} differ from those of {base.paths[0]}, "
            f"which are used: {some}"
        )
    return replace(opened.adapter, notes=(*opened.adapter.notes, note))


def bearing(base: Checkpoint, adapter: Checkpoint) -> Checkpoint:
    """The model with the adapter beside its weights."""
    _check_alone(base, adapter)
    _deltas(base, adapter)
    return replace(base, adapter=adapter, paths=_paths(base, adapter), notes=(*base.notes, *adapter.notes))


def merged(base: Checkpoint, adapter: Checkpoint | None = None) -> Checkpoint:
    """The model with an adapter in its weights: W + scale * B @ A, computed when it is written. None: the LoRA that it bears."""
    own = base.adapter
    if adapter is None:
        if own is None:
            what = "is an adapter without its model" if base.lora else "bears no LoRA"
            raise ToolError(f"{base.paths[0]} {what}", hint="name the adapter: jumar-convert merge-lora BASE ADAPTER DST")
        return replace(base, adapter=None, deltas=_deltas(base, own), replicas=(*base.replicas, *own.replicas))
    _check_alone(base, adapter)
    return replace(
        base,
        deltas=_deltas(base, adapter),
        paths=_paths(base, adapter),
        replicas=(*base.replicas, *adapter.replicas),
        notes=(*base.notes, *adapter.notes),
    )


def _paths(base: Checkpoint, adapter: Checkpoint) -> tuple[Path, ...]:
    return (*base.paths, *(p for p in adapter.paths if p not in base.paths))


def _check_alone(base: Checkpoint, adapter: Checkpoint) -> None:
    if base.adapter is not None or base.deltas:
        raise ToolError(
            f"{base.paths[0]} bears a LoRA of its own beside {adapter.paths[0]}",
            hint="merge one after the other: jumar-convert merge-lora BASE DST",
            code=Exit.USAGE,
        )
    if base.lora or not adapter.lora:
        wrong = base if base.lora else adapter
        what = "an adapter, expected a model" if base.lora else "no adapter"
        raise ToolError(f"{wrong.paths[0]} is {what}", hint="jumar-convert merge-lora BASE ADAPTER DST", code=Exit.USAGE)


def _deltas(base: Checkpoint, adapter: Checkpoint) -> Mapping[str, Delta]:
    """HF weight -> what the adapter adds to it. Raises ToolError where the adapter is not of this model."""
    sizes, turned = module_sizes(base.family, base.spec), turned_modules(base.family, base.spec)
    deltas = {}
    for module, lora in adapter.lora.items():
        weight, a, b = f"{module}.weight", f"{module}.lora_A.weight", f"{module}.lora_B.weight"
        held = adapter.tensors[b][0], adapter.tensors[a][1]
        if weight not in base.tensors or sizes[module] != held:
            is_there = f"is {list(sizes[module])}" if module in sizes else "is not there"
            raise ToolError(
                f"{adapter.paths[0]}: the adapter is for a {weight} {list(held)}; in {base.paths[0]} it {is_there}",
                hint="is this the model that the adapter was trained on?",
            )
        deltas[weight] = Delta(
            scale=float(lora.scale),
            rank=lora.rank,
            shape=base.tensors[weight],
            a=tuple(adapter.sources[a]),
            b=tuple(adapter.sources[b]),
            transposed=module in turned,
        )
    return deltas
