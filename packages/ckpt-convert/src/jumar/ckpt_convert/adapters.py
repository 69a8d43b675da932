"""LoRA adapters between Hugging Face's modules and Megatron's fused ones, and beside or in the weights of their model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from jumar.ckpt_convert.checkpoint import Checkpoint
from jumar.ckpt_convert.formats.peft import plain_number
from jumar.ckpt_convert.gather import record_array
from jumar.ckpt_convert.plan import Ints, SourceBox, compose, identity, zeros
from jumar.schema.adapters import Fused, adapter_family, fused_modules, module_sizes, target_names
from jumar.schema.errors import ToolError
from jumar.schema.family import Family
from jumar.schema.placement import Placement

HALF_A, HALF_B = ".lora_A.default.weight", ".lora_B.default.weight"
Columns = Mapping[tuple[str, ...], Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Fusion:
    """An adapter as Megatron holds it in one dialect: one rank, one alpha, one lora_A for each fused module.

    family:  the rules of its tensors
    sources: where these lie; what no file holds is zero by declaration
    targets: lora_target_modules
    notes:   how it differs from the adapter that it was made of
    """

    family: Family
    tensors: Mapping[str, Ints]
    sources: Mapping[str, Sequence[SourceBox]]
    rank: int
    alpha: int | float
    targets: tuple[str, ...]
    notes: tuple[str, ...]

    def placement(self, like: Placement) -> Placement:
        return replace(like, family=self.family, vocab_rows=None)

    @property
    def args(self) -> dict[str, Any]:
        """What the args of its shards say of it, in MindSpeed-LLM's names."""
        return {"lora_r": self.rank, "lora_alpha": self.alpha, "lora_target_modules": list(self.targets)}


def fuse(adapter: Checkpoint, dialect: str) -> Fusion:
    """Puts the modules of an adapter together as Megatron fuses them.

    Where all modules of a fused one have the same lora_A, Megatron has it too. Else the lora_As are stacked, and each lora_B
    keeps its own columns among zeros: the products stay the same, and the rank is the sum. A module that has no adapter gets
    zero rows, a smaller rank is filled up with zeros, and alpha grows with the rank. Raises ToolError (3) for what Megatron,
    with one alpha for all modules, cannot hold.
    """
    family, spec = adapter.family, adapter.spec
    family.check_dialect(dialect)
    fused = list(fused_modules(family, spec, dialect))
    placed = {m for f in fused for m in f.modules}
    if homeless := [m for m in adapter.lora if m not in placed]:
        raise ToolError(
            f"{adapter.paths[0]}: Megatron's LoRA does not wrap {', '.join(homeless[:6])}",
            hint="merge the adapter into its model: jumar-convert merge-lora BASE ADAPTER DST",
        )
    touched = {f.rule.name for f in fused if any(m in adapter.lora for m in f.modules)}
    names, targets = target_names(family, spec, dialect, touched)
    fused = [f for f in fused if f.rule.name in targets]
    columns = {f.modules: _columns(f, adapter) for f in fused}
    rank = max(stop for own in columns.values() for stop in own.values())
    shapes = adapter_family(family, spec, dialect, targets, rank)
    made = _Fused(adapter, rank)
    for f in fused:
        made.add(f, columns[f.modules])
    made.prove()
    tensors = shapes.hf_tensors(spec)
    sources = {n: made.sources[n] for n in tensors}
    alpha = plain_number(_scale(adapter) * rank)
    return Fusion(shapes, tensors, sources, rank, alpha, names, tuple(_notes(adapter, fused, columns, rank, alpha)))


def _scale(adapter: Checkpoint) -> Fraction:
    """The one factor of B @ A."""
    scales = {lora.scale: module for module, lora in adapter.lora.items()}
    if len(scales) > 1:
        some = ", ".join(f"{m} {float(s):g}" for s, m in list(scales.items())[:4])
        raise ToolError(
            f"{adapter.paths[0]}: alpha / rank differs between modules ({some}), and Megatron has one for all",
            hint="merge the adapter into its model: jumar-convert merge-lora BASE ADAPTER DST",
        )
    return next(iter(scales))


def _columns(fused: Fused, adapter: Checkpoint) -> dict[str, int]:
    """HF module -> where its columns of the common lora_B end: all at the rank if they share lora_A, else one after another."""
    having = [m for m in fused.modules if m in adapter.lora]
    ranks = [adapter.lora[m].rank for m in having]
    if len(set(ranks)) < 2 and all(_same_a(adapter, having[0], m) for m in having[1:]):
        return dict.fromkeys(having, max(ranks, default=0))
    return {m: sum(ranks[: i + 1]) for i, m in enumerate(having)}


def _same_a(adapter: Checkpoint, one: str, other: str) -> bool:
    a, b = f"{one}.lora_A.weight", f"{other}.lora_A.weight"
    if adapter.sources[a] == adapter.sources[b]:
        return True
    if adapter.dtype(a) != adapter.dtype(b) or adapter.tensors[a] != adapter.tensors[b]:
        return False
    left, right = (record_array(compose(n, identity(adapter.tensors[n]), [n], adapter.sources, None)) for n in (a, b))
    return left.tobytes() == right.tobytes()


class _Fused:
    """The tensors of fused modules, and the proof that every tensor of the adapter is in them, whole and once."""

    def __init__(self, adapter: Checkpoint, rank: int) -> None:
        self.adapter = adapter
        self.rank = rank
        self.sources: dict[str, list[SourceBox]] = {}
        self.used: list[str] = []
        self.sizes = module_sizes(adapter.family, adapter.spec)
        self.dtype = adapter.dtype(next(iter(adapter.tensors)))

    def add(self, fused: Fused, columns: Mapping[str, int]) -> None:
        having = [m for m in fused.modules if m in self.adapter.lora]
        shared = len({columns[m] for m in having}) < 2
        inner = self.sizes[fused.modules[0]][1]
        a: list[SourceBox] = []
        for i, m in enumerate(having):
            name, first = f"{m}.lora_A.weight", columns[m] - self.adapter.lora[m].rank
            a += [] if shared and i else [replace(s, start=(s.start[0] + first, s.start[1])) for s in self.adapter.sources[name]]
            self.used.append(name)
        filled = max((columns[m] for m in having), default=0)
        kind = a[0].dtype if a else self.dtype
        self.sources[f"{fused.modules[0]}.lora_A.weight"] = a + _zeros((self.rank - filled, inner), kind, (filled, 0))
        kinds = [self.adapter.dtype(f"{m}.lora_B.weight") for m in having] or [self.dtype]
        for m in fused.modules:
            self.sources[f"{m}.lora_B.weight"] = self._b(m, columns.get(m), kinds[0])

    def _b(self, module: str, stop: int | None, kind: str) -> list[SourceBox]:
        out, name = self.sizes[module][0], f"{module}.lora_B.weight"
        if stop is None:
            return _zeros((out, self.rank), kind, (0, 0))
        self.used.append(name)
        kind, first = self.adapter.dtype(name), stop - self.adapter.lora[module].rank
        own = [replace(s, start=(s.start[0], s.start[1] + first)) for s in self.adapter.sources[name]]
        return [*_zeros((out, first), kind, (0, 0)), *own, *_zeros((out, self.rank - stop), kind, (0, stop))]

    def prove(self) -> None:
        """Raises AssertionError unless each tensor went in once. That the boxes tile their targets is proven with the plan."""
        if sorted(self.used) != sorted(self.adapter.tensors):
            raise AssertionError(f"adapter: {set(self.adapter.tensors).symmetric_difference(self.used) or 'a tensor twice'}")


def _zeros(shape: Ints, dtype: str, start: Ints) -> list[SourceBox]:
    return [zeros(shape, dtype, start)] if all(shape) else []


def _notes(
    adapter: Checkpoint,
    fused: Sequence[Fused],
    columns: Mapping[tuple[str, ...], Mapping[str, int]],
    rank: int,
    alpha: int | float,
) -> list[str]:
    notes = []
    stacked = [f for f in fused if len(set(columns[f.modules].values())) > 1]
    if stacked:
        notes.append(
            f"{len(stacked)} fused modules had a lora_A for each of their parts, Megatron has one for all: stacked, with zeros "
            f"beside each part of lora_B; rank {rank} and alpha {alpha:g} for all modules, the same products"
        )
    elif any(lora.rank != rank for lora in adapter.lora.values()):
        notes.append(f"modules of different ranks: filled up with zeros to rank {rank}, alpha {alpha:g}; the same products")
    empty = [f"{m}" for f in fused for m in f.modules if m not in adapter.lora]
    if empty:
        some = ", ".join(empty[:4]) + (" ..." if len(empty) > 4 else "")
        notes.append(f"{len(empty)} modules without an adapter are zeros where Megatron wraps them too: {some}")
    if isinstance(alpha, float):
        notes.append(f"lora_alpha is {alpha!r}, no whole number: MindSpeed-LLM's --lora-alpha takes one")
    return notes


def wrapped(name: str, modules: AbstractSet[str]) -> str:
    """A weight's name where LoRA wraps its module: X.weight is X.base_layer.weight."""
    if name.endswith((HALF_A, HALF_B)):
        return name
    words = name.split(".")
    for i in range(len(words) - 1, 0, -1):
        if ".".join(words[:i]) in modules:
            return ".".join([*words[:i], "base_layer", *words[i:]])
    return name


def wrapped_modules(fusion: Fusion, placement: Placement, shard: Any) -> dict[str, set[str]]:
    """State-dict key -> the Megatron modules of a shard that LoRA wraps."""
    modules: dict[str, set[str]] = {key: set() for key in placement.keys}
    for placed in fusion.placement(placement).tensors(shard):
        if placed.name.endswith(HALF_A):
            modules[placed.key].add(placed.name.removesuffix(HALF_A))
    return modules


def refuse_grouped_te(dialect: str, expert_layout: str, fusion: Fusion) -> None:
    """Raises ToolError: nobody has said how adapters of TransformerEngine's grouped experts are stored."""
    if dialect == "te" and expert_layout == "grouped" and any(r.expert for r in fusion.family.weights):
        raise ToolError(
            "adapters of experts have no known names in dialect te with grouped experts",
            hint="choose --expert-layout sequential, or another --dialect",
        )
