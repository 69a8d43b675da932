"""Megatron shards that bear a LoRA: their names set apart, and the adapter seen as modules of Hugging Face.

Names are peft's in Megatron modules, as MindSpeed-LLM saves them; reference: docs/formats.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from jumar.ckpt_convert.checkpoint import Checkpoint, Lora, Replica
from jumar.ckpt_convert.formats.megatron import ShardFile
from jumar.ckpt_convert.plan import SourceBox, boxes_of, prove_geometry, tiling_fault
from jumar.schema.adapters import Fused, adapter_family, fused_modules, target_rules
from jumar.schema.errors import ToolError
from jumar.schema.placement import Placement

Shards = Mapping[str, ShardFile]
HALF = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(?:\.(?P<adapter>\w+))?\.weight")
GROUPED = re.compile(r".+\.weight[12]_lora_[ab]")
WRAPPER = "base_model.model."


@dataclass(frozen=True, slots=True)
class LoraShards:
    """The LoRA of every shard under its plain names, and what the args say of it."""

    shards: Shards
    rank: int
    alpha: float
    alone: bool

    @property
    def base_names(self) -> set[str]:
        """The weights that it adapts, by which dialect and expert layout are recognised."""
        names = {n for shard in self.shards.values() for state in shard.states.values() for n in state}
        return {re.sub(r"\.lora_[AB]\.default\.|_lora_[ab]$", lambda m: "." if "default" in m[0] else "", n) for n in names}


def bears_lora(shards: Shards) -> bool:
    """Whether shards hold anything of a LoRA: its halves, or weights under the names that they then have."""
    names = (n for shard in shards.values() for state in shard.states.values() for n in state)
    return any("lora_" in n or ".base_layer." in n for n in names)


def set_apart(shards: Shards) -> tuple[dict[str, ShardFile], dict[str, ShardFile]]:
    """The shards without their LoRA, and the LoRA alone. Raises ToolError for parts that are no LoRA of matrices."""
    bases: dict[str, ShardFile] = {}
    loras: dict[str, ShardFile] = {}
    adapters: set[str] = set()
    for key, shard in shards.items():
        base: dict[str, dict[str, Any]] = {k: {} for k in shard.states}
        lora: dict[str, dict[str, Any]] = {k: {} for k in shard.states}
        for state, tensors in shard.states.items():
            for full, ref in tensors.items():
                name = full.removeprefix(WRAPPER)
                if match := HALF.fullmatch(name):
                    adapters.add(match["adapter"] or "default")
                    lora[state][f"{match['module']}.lora_{match['half']}.default.weight"] = ref
                elif GROUPED.fullmatch(name):
                    lora[state][name] = ref
                elif "lora_" in name.rpartition(".base_layer.")[2]:
                    raise ToolError(
                        f"{shard.file}: {full} is no half of a LoRA on a matrix", hint="only lora_A and lora_B are read"
                    )
                else:
                    base[state][name.replace(".base_layer.", ".")] = ref
        bases[key], loras[key] = replace(shard, states=base), replace(shard, states=lora)
    if len(adapters) > 1:
        raise ToolError(
            f"{next(iter(shards.values())).file.parent.parent}: {len(adapters)} adapters in one checkpoint "
            f"({', '.join(sorted(adapters))})",
            hint="save them one by one",
        )
    return bases, loras


def joined(bases: Shards, loras: Shards) -> Shards:
    """The shards with both: what the names of either show."""
    if not loras:
        return bases
    return {n: replace(b, states={k: {**t, **loras[n].states[k]} for k, t in b.states.items()}) for n, b in bases.items()}


def read_lora(bases: Shards, loras: Shards, args: Any, local_experts: int) -> LoraShards:
    """Rank and alpha of the adapter: from the args (`--set lora_r=8`), the rank else from the shapes. Raises ToolError (3)."""
    file = next(iter(loras.values())).file
    rank, alpha = args.get("lora_r"), args.get("lora_alpha")
    args.get("lora_target_modules")  # the names of the tensors say it
    shapes = {_rank(name, ref.shape, local_experts) for s in loras.values() for t in s.states.values() for name, ref in t.items()}
    found = sorted(n for n in shapes if n)
    if not found:
        raise ToolError(f"{file}: weights lie under base_layer, but no rank holds a lora_A", hint="is the checkpoint complete?")
    if len(found) > 1 or (rank is not None and rank != found[0]):
        said = "" if rank is None else f"; lora_r is {rank}"
        raise ToolError(
            f"{file}: lora_A has {', '.join(map(str, found))} rows{said}", hint="Megatron has one rank for all modules"
        )
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        said = "do not say lora_alpha" if alpha is None else f"say lora_alpha={alpha!r}"
        raise ToolError(f"{file}: its args {said}, without which B @ A has no factor", hint="give it: --set lora_alpha=N")
    alone = not any(state for shard in bases.values() for state in shard.states.values())
    return LoraShards(loras, found[0], alpha, alone)


def _rank(name: str, shape: tuple[int, ...], local_experts: int) -> int | None:
    if len(shape) != 2:
        return None
    if name.endswith(".lora_A.default.weight"):
        return shape[0]
    if name.endswith(".weight2_lora_a"):
        return shape[1]
    return shape[1] // max(local_experts, 1) if name.endswith(".weight1_lora_a") else None


def refuse_bearing(file: object) -> None:
    """Raises ToolError: nobody has said what is to be done with the LoRA."""
    raise ToolError(
        f"{file}: the shards bear a LoRA beside their weights",
        hint="merge it: jumar-convert merge-lora SRC DST; take it out: jumar-convert to-peft SRC DST; "
        "another layout with the LoRA in it: jumar-convert to-megatron SRC DST",
    )


def adapter_of(lora: LoraShards, like: Checkpoint, peft: Mapping[str, Any]) -> Checkpoint:
    """The adapter as a Checkpoint. like: what is known of the checkpoint that holds it."""
    assert like.placement is not None
    base, spec, dialect = like.family, like.spec, like.placement.dialect
    everything = {r.name for r in target_rules(base, spec, dialect)}
    family = adapter_family(base, spec, dialect, everything, lora.rank)
    placement = replace(like.placement, family=family)
    sources, replicas = _boxes(placement, lora.shards)
    _check_whole(family.hf_tensors(spec), sources, like)
    held: dict[str, list[SourceBox]] = {}
    targets = set()
    for fused in fused_modules(base, spec, dialect):
        if _present(fused, sources, like):
            targets.add(fused.rule.name)
            for module in fused.modules:
                held[f"{module}.lora_A.weight"] = sources[f"{fused.modules[0]}.lora_A.weight"]
                held[f"{module}.lora_B.weight"] = sources[f"{module}.lora_B.weight"]
    scale = Fraction(lora.alpha) / lora.rank
    return replace(
        like,
        tensors={n: _extent(boxes) for n, boxes in held.items()},
        sources=held,
        placement=replace(placement, family=adapter_family(base, spec, dialect, targets, lora.rank)),
        copies={},
        replicas=tuple(replicas),
        padding=0,
        lora={n.removesuffix(".lora_A.weight"): Lora(lora.rank, scale) for n in held if n.endswith(".lora_A.weight")},
        peft=peft,
        notes=like.notes if lora.alone else (),
    )


def _boxes(placement: Placement, shards: Shards) -> tuple[dict[str, list[SourceBox]], list[Replica]]:
    """Where the boxes of each half lie, over all ranks. What a rank does not hold is looked at afterwards."""
    sources: dict[str, list[SourceBox]] = {}
    first: dict[tuple[str, tuple[int, ...], tuple[int, ...]], SourceBox] = {}
    replicas: list[Replica] = []
    for shard in placement.shards:
        file = shards[shard.name]
        left = {(key, name): ref for key, state in file.states.items() for name, ref in state.items()}
        for placed in placement.tensors(shard):
            ref = left.pop((placed.key, placed.name), None)
            if ref is None:
                continue
            if ref.shape != placed.geometry.stored:
                raise ToolError(
                    f"{file.file}: {placed.name} is {list(ref.shape)}, expected {list(placed.geometry.stored)}",
                    hint="is the layout right (--set), the dialect (--set dialect=te), the model (hf/config.json, --base)?",
                )
            prove_geometry(placed)
            for name, box in boxes_of(placed, ref):
                held = first.setdefault((name, box.start, box.size), box)
                if held is box:
                    sources.setdefault(name, []).append(box)
                else:
                    replicas.append(Replica(name, held, box))
        if left:
            foreign = [f"{key}/{name}" for key, name in left]
            raise ToolError(
                f"{file.file}: {placement.spec.model_type} has no module for {len(foreign)} tensor(s): {', '.join(foreign[:6])}",
                hint="is the layout right (--set), the dialect (--set dialect=te), the model (hf/config.json, --base)?",
            )
    return sources, replicas


def _check_whole(shapes: Mapping[str, tuple[int, ...]], sources: Mapping[str, list[SourceBox]], like: Checkpoint) -> None:
    """Every half is there on all its ranks, or on none."""
    for name, boxes in sources.items():
        if fault := tiling_fault(shapes[name], sorted((b.start, b.size) for b in boxes)):
            raise ToolError(f"{like.paths[0]}: {name} is not whole: {fault}", hint="do some ranks lack their part of it?")


def _present(fused: Fused, sources: Iterable[str], like: Checkpoint) -> bool:
    wanted = (f"{fused.modules[0]}.lora_A.weight", *(f"{m}.lora_B.weight" for m in fused.modules))
    missing = [n for n in wanted if n not in sources]
    if missing and len(missing) < len(wanted):
        raise ToolError(f"{like.paths[0]}: nothing holds {missing[0]}", hint="lora_A and lora_B belong together")
    return not missing


def _extent(boxes: Iterable[SourceBox]) -> tuple[int, ...]:
    ends = [tuple(s + n for s, n in zip(b.start, b.size, strict=True)) for b in boxes]
    return tuple(map(max, *ends)) if len(ends) > 1 else ends[0]
