"""Weight rules: one rule says how one Megatron tensor is made of Hugging Face tensors, and how it is cut over ranks.

A rule is data. `expand` turns it into a `Geometry`: boxes of HF tensors and the places they take. Everything that moves
bytes, in either direction, is derived from those boxes; no inverse is ever written by hand. Boxes are axis-aligned in the
HF tensor, so that two layouts of the same model meet by intersecting boxes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from jumar.schema.dialects import dialect_of
from jumar.schema.errors import ToolError
from jumar.schema.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Dim:
    """A size with a name.

    `unit`: elements that stay together when the axis is cut; `what`: the things that are then shared out.
    """

    size: int
    unit: int = 1
    what: str = "elements"


@lru_cache(maxsize=64)
def dims(spec: ModelSpec) -> dict[str, Dim]:
    """Every size that rules name, in elements."""
    kv, head = spec.num_kv_heads, spec.head_dim
    table = {
        "hidden": Dim(spec.hidden_size, 1, "hidden units"),
        "2hidden": Dim(2 * spec.hidden_size, 1, "hidden units"),
        "vocab": Dim(spec.vocab_size, 1, "vocabulary rows"),
        "positions": Dim(spec.max_position_embeddings, 1, "positions"),
        "ffn": Dim(spec.ffn_size, 1, "FFN columns"),
        "head": Dim(head, head, "head"),
    }
    if kv:
        table["q"] = Dim(spec.num_heads * head, spec.num_heads // kv * head, "KV groups")
        table["kv"] = Dim(kv * head, head, "KV groups")
    if moe := spec.moe:
        table["experts"] = Dim(moe.num_experts, 1, "experts")
        table["expert_ffn"] = Dim(moe.ffn_size, 1, "expert FFN columns")
        table["shared_ffn"] = Dim(moe.shared_ffn_size, 1, "shared-expert FFN columns")
    if mla := spec.mla:
        table["q_lora"] = Dim(mla.q_lora_rank, 1, "query latents")
        table["kv_lora"] = Dim(mla.kv_lora_rank, 1, "KV latents")
        table["kv_a"] = Dim(mla.kv_lora_rank + mla.rope_dim, 1, "KV latents")
        table["mla_q"] = Dim(spec.num_heads * (mla.nope_dim + mla.rope_dim), mla.nope_dim + mla.rope_dim, "attention heads")
        table["mla_kv"] = Dim(spec.num_heads * (mla.nope_dim + mla.v_dim), mla.nope_dim + mla.v_dim, "attention heads")
        table["nope"], table["rope"] = Dim(mla.nope_dim), Dim(mla.rope_dim)
        table["v"] = Dim(mla.v_dim)
        table["mla_o"] = Dim(spec.num_heads * mla.v_dim, mla.v_dim, "attention heads")
    if ssm := spec.ssm:
        table["inner"] = Dim(ssm.num_heads * ssm.head_dim, ssm.num_heads * ssm.head_dim // ssm.num_groups, "SSM groups")
        table["state"] = Dim(ssm.num_groups * ssm.state_size, ssm.state_size, "SSM groups")
        table["ssm_heads"] = Dim(ssm.num_heads, ssm.num_heads // ssm.num_groups, "SSM groups")
        table["conv"] = Dim(ssm.conv_kernel, ssm.conv_kernel, "taps")
    return table


@dataclass(frozen=True, slots=True)
class Part:
    """One HF tensor, or one segment of one, as a piece of a Megatron tensor.

    name:       HF name without the layer's prefix; `{e}` stands for the expert
    axes:       its HF axes by name ("q hidden"); a sum ("z+x hidden") names the segments of one axis
    pick:       take only this segment of the summed axis
    each:       the summed axis is repeated for every head, and `pick` takes the segment of each
    transposed: HF holds it the other way round (GPT-2's Conv1D)
    """

    name: str
    axes: str
    pick: int | None = None
    each: bool = False
    transposed: bool = False


Stage = Literal["first", "last", "tied_last", "mtp"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One Megatron tensor.

    name:    Megatron name without the layer's prefix; `{e}` stands for the expert
    parts:   joined along the first Megatron axis, each keeping its own cut; or interleaved by KV group
    shard:   the Megatron axis cut over TP (over ETP for experts); None: the same on every rank
    scope:   "model" once (on `stage`), "layer" in every decoder layer and MTP block, "mtp" in every MTP layer
    layers:  which layers of the scope have it
    when, unless: traits (`ModelSpec.has`)
    dialects: only there (and in those that follow them, `schema.dialects`); None: in all
    mm_split: only with MindSpeed's --mla-mm-split, or only without; None: in both
    te, mindspeed: its name in those dialects, where it differs
    keep_dtype: never cast (Megatron holds it in fp32)
    """

    name: str
    parts: tuple[Part, ...]
    shard: int | None = None
    scope: Literal["model", "layer", "mtp"] = "layer"
    stage: Stage = "first"
    layers: Literal["all", "dense", "moe", "ssm", "attention", "mlp"] = "all"
    interleave: bool = False
    when: str | None = None
    unless: str | None = None
    dialects: tuple[str, ...] | None = None
    mm_split: bool | None = None
    te: str | None = None
    mindspeed: str | None = None
    keep_dtype: bool = False

    def name_in(self, dialect: str) -> str:
        """The Megatron name in a dialect, before the renames of those that follow another."""
        return {"te": self.te, "mindspeed": self.mindspeed}.get(dialect_of(dialect).base) or self.name

    @property
    def padded(self) -> bool:
        """Whether its rows are the vocabulary, which Megatron pads."""
        return self.parts[0].axes.split()[0] == "vocab"

    @property
    def expert(self) -> bool:
        return "{e}" in self.parts[0].name

    def applies(self, spec: ModelSpec, dialect: str, mm_split: bool = False) -> bool:
        return (
            (self.when is None or spec.has(self.when))
            and (self.unless is None or not spec.has(self.unless))
            and (self.dialects is None or dialect_of(dialect).base in self.dialects)
            and self.mm_split in (None, mm_split)
        )


@dataclass(frozen=True, slots=True)
class Box:
    """A box of HF tensor number `part` and the place it takes.

    start, size: in the HF tensor, for each of its axes
    at:          where its first element lands, for each Megatron axis
    axes:        the Megatron axis of each HF axis
    """

    part: int
    start: tuple[int, ...]
    size: tuple[int, ...]
    at: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, ...]:
        """Its size along each Megatron axis."""
        extent = [1] * len(self.at)
        for axis, size in zip(self.axes, self.size, strict=True):
            extent[axis] = size
        return tuple(extent)


@dataclass(frozen=True, slots=True)
class Geometry:
    """A Megatron tensor as boxes of HF tensors.

    shape:    sizes in elements, in the order of memory; `stored` what the file says (the same bytes under another shape)
    segments: the pieces of each axis that are cut separately
    padding:  rows at the end of the first axis that no HF tensor fills
    """

    shape: tuple[int, ...]
    boxes: tuple[Box, ...]
    segments: tuple[tuple[Dim, ...], ...]
    stored: tuple[int, ...]
    padding: int = 0


def part_shape(part: Part, spec: ModelSpec) -> tuple[int, ...]:
    """The HF tensor's shape as the configuration implies it."""
    repeated = spec.num_heads if part.each else 1
    return tuple(sum(d.size for d in axis) * (repeated if len(axis) > 1 else 1) for axis in _axes(part, spec))


def _axes(part: Part, spec: ModelSpec) -> list[list[Dim]]:
    table = dims(spec)
    return [[Dim(int(n)) if n.isdigit() else table[n] for n in axis.split("+")] for axis in part.axes.split()]


@lru_cache(maxsize=4096)
def expand(rule: Rule, spec: ModelSpec) -> Geometry:
    """The whole (uncut, unpadded) tensor of a rule."""
    pieces = [_piece(index, part, spec) for index, part in enumerate(rule.parts)]
    if len(pieces) == 1:
        return pieces[0]
    if rule.interleave:
        return _interleave(pieces, spec.num_kv_heads)
    rest = pieces[0].shape[1:]
    boxes, rows = [], 0
    for piece in pieces:
        assert piece.shape[1:] == rest, rule
        boxes += [replace(b, at=(b.at[0] + rows, *b.at[1:])) for b in piece.boxes]
        rows += piece.shape[0]
    segments = (tuple(s for piece in pieces for s in piece.segments[0]), *pieces[0].segments[1:])
    shape = (rows, *rest)
    return Geometry(shape, tuple(boxes), segments, shape)


def _piece(index: int, part: Part, spec: ModelSpec) -> Geometry:
    axes = _axes(part, spec)
    if part.each:
        return _pick_of_each(index, part, axes, spec.num_heads)
    start = [0] * len(axes)
    if part.pick is not None:
        cut = next(i for i, segments in enumerate(axes) if len(segments) > 1)
        start[cut] = sum(d.size for d in axes[cut][: part.pick])
        axes[cut] = [axes[cut][part.pick]]
    size = tuple(sum(d.size for d in axis) for axis in axes)
    order = tuple(reversed(range(len(axes)))) if part.transposed else tuple(range(len(axes)))
    shape = tuple(size[i] for i in order)
    box = Box(index, tuple(start), size, (0,) * len(axes), order)
    return Geometry(shape, (box,), tuple(tuple(axes[i]) for i in order), shape)


def _pick_of_each(index: int, part: Part, axes: list[list[Dim]], heads: int) -> Geometry:
    """One segment of every head, head after head: [a0; b0; a1; b1; ...] gives [a0; a1; ...]. The first axis is the summed one."""
    assert part.pick is not None
    assert not part.transposed
    segments, rest = axes[0], tuple(d.size for axis in axes[1:] for d in axis)
    before, all_of_one = sum(d.size for d in segments[: part.pick]), sum(d.size for d in segments)
    rows, zeros, order = segments[part.pick].size, (0,) * len(rest), tuple(range(1 + len(rest)))
    boxes = tuple(
        Box(index, (head * all_of_one + before, *zeros), (rows, *rest), (head * rows, *zeros), order) for head in range(heads)
    )
    shape = (heads * rows, *rest)
    return Geometry(shape, boxes, ((Dim(shape[0], rows, "attention heads"),), *map(tuple, axes[1:])), shape)


def _interleave(pieces: list[Geometry], groups: int) -> Geometry:
    """[Q of group 0; K of group 0; V of group 0; Q of group 1; ...] along the first axis."""
    boxes, row = [], 0
    for group in range(groups):
        for piece in pieces:
            (box,) = piece.boxes
            rows = piece.shape[0] // groups
            hf_axis = box.axes.index(0)
            start, size = list(box.start), list(box.size)
            start[hf_axis] += group * rows
            size[hf_axis] = rows
            boxes.append(Box(box.part, tuple(start), tuple(size), (row, *box.at[1:]), box.axes))
            row += rows
    shape = (row, *pieces[0].shape[1:])
    return Geometry(shape, tuple(boxes), ((Dim(row, row // groups, "KV groups"),), *pieces[0].segments[1:]), shape)


def pad_rows(geometry: Geometry, rows: int) -> Geometry:
    """The same with `rows` rows; those past the end are padding."""
    shape = (rows, *geometry.shape[1:])
    segments = ((Dim(rows, 1, "vocabulary rows"),), *geometry.segments[1:])
    return Geometry(shape, geometry.boxes, segments, shape, rows - geometry.shape[0])


@lru_cache(maxsize=65536)
def cut(geometry: Geometry, axis: int, index: int, count: int, what: str = "tp") -> Geometry:
    """Rank `index` of `count`'s share: every segment of `axis` is cut into `count` equal parts.

    Raises ToolError if a segment does not divide (`what` names the flag).
    """
    if count == 1:
        return geometry
    ranges, here = [], 0
    for segment in geometry.segments[axis]:
        things = segment.size // segment.unit
        if things % count:
            raise ToolError(
                f"{what}={count} does not divide the model's {things} {segment.what}",
                hint=f"choose --{what} among the divisors of {things}",
            )
        size = segment.size // count
        ranges.append((here + index * size, size, segment))
        here += segment.size
    return _select(geometry, axis, ranges)


def cut_rows(geometry: Geometry, start: int, rows: int) -> Geometry:
    """Rows [start, start + rows) of the first axis: for vocabularies that another tool cut unevenly."""
    return _select(geometry, 0, [(start, rows, Dim(rows, 1, "vocabulary rows"))])


def _select(geometry: Geometry, axis: int, ranges: list[tuple[int, int, Dim]]) -> Geometry:
    boxes: list[Box] = []
    local = 0
    for start, size, _ in ranges:
        for box in geometry.boxes:
            low, high = max(box.at[axis], start), min(box.at[axis] + box.extent[axis], start + size)
            if low < high:
                boxes.append(_narrow(box, axis, low, high, local + low - start))
        local += size
    shape = (*geometry.shape[:axis], local, *geometry.shape[axis + 1 :])
    segments = (
        *geometry.segments[:axis],
        tuple(Dim(size, d.unit, d.what) for _, size, d in ranges),
        *geometry.segments[axis + 1 :],
    )
    padding = geometry.padding
    if padding and axis == 0:
        ((start, size, _),) = ranges
        padding = min(max(start + size - (geometry.shape[0] - padding), 0), size)
    return Geometry(shape, tuple(boxes), segments, shape, padding)


def _narrow(box: Box, axis: int, low: int, high: int, at: int) -> Box:
    places = (*box.at[:axis], at, *box.at[axis + 1 :])
    if axis not in box.axes:
        return replace(box, at=places)
    hf_axis = box.axes.index(axis)
    start = (*box.start[:hf_axis], box.start[hf_axis] + low - box.at[axis], *box.start[hf_axis + 1 :])
    size = (*box.size[:hf_axis], high - low, *box.size[hf_axis + 1 :])
    return Box(box.part, start, size, places, box.axes)


@lru_cache(maxsize=4096)
def stack_experts(geometry: Geometry, experts: int, parts: int, rows_last: bool) -> Geometry:
    """Grouped experts: one [out, in] matrix an expert becomes [experts, in, out] in memory, stored under a flat shape.

    rows_last: stored as (in, experts * out), else as (experts * in, out): Megatron's weight1 and weight2.
    """
    out, inner = geometry.shape
    boxes = [
        Box(e * parts + b.part, b.start, b.size, (e, b.at[1], b.at[0]), tuple(2 - a for a in b.axes))
        for e in range(experts)
        for b in geometry.boxes
    ]
    stored = (inner, experts * out) if rows_last else (experts * inner, out)
    shape = (experts, inner, out)
    return Geometry(shape, tuple(boxes), ((Dim(experts),), geometry.segments[1], geometry.segments[0]), stored)


def within(box: Box, low: tuple[int, ...], high: tuple[int, ...]) -> Box | None:
    """The part of a box that lands in [low, high) of the Megatron tensor; it keeps its place. None if none does."""
    for axis, (lo, hi) in enumerate(zip(low, high, strict=True)):
        start, stop = max(lo, box.at[axis]), min(hi, box.at[axis] + box.extent[axis])
        if start >= stop:
            return None
        box = _narrow(box, axis, start, stop, start)
    return box
