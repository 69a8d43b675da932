"""The plan: every target tensor as strided copies from source files, proven before a byte moves.

Source and target meet in the Hugging Face tensors, which both describe as boxes: intersecting the boxes gives the copies.
So any format converts to any other, and Megatron to Megatron at another layout is no special case.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from jumar.ckpt_convert.tensors import DTYPES, TensorRef, contiguous_strides
from jumar.schema.errors import ToolError
from jumar.schema.placement import Placed
from jumar.schema.weights import Box, Geometry

Ints = tuple[int, ...]
ZEROS = Path("(zeros)")
"""Stands for a file in a box that is zero by declaration: it tiles and is copied as any other."""


@dataclass(frozen=True, slots=True)
class SourceBox:
    """A box of an HF tensor as it lies in a source file.

    start, size: in the HF tensor
    offset:      byte offset in the file of the box's first element
    strides:     in elements, for each HF axis
    """

    start: Ints
    size: Ints
    dtype: str
    file: Path
    offset: int
    strides: Ints

    @property
    def nbytes(self) -> int:
        return math.prod(self.size) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class CopyBox:
    """One strided copy into a target tensor.

    at, size: the box it fills, in the target's logical shape (the order of its memory)
    file, offset, strides: where it comes from; byte offset, strides in elements for each logical axis
    dtype:    of the source; another than the target's means a cast
    """

    at: Ints
    size: Ints
    dtype: str
    file: Path
    offset: int
    strides: Ints


@dataclass(frozen=True, slots=True)
class Delta:
    """What a LoRA adds to an HF weight: scale * B @ A, with A (rank, in) and B (out, rank) as boxes in files.

    shape: of the HF weight, (out, in), or (in, out) if it is `transposed`
    """

    scale: float
    rank: int
    shape: Ints
    a: tuple[SourceBox, ...]
    b: tuple[SourceBox, ...]
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """A target tensor: what it is called, how it is stored, and the copies that make it.

    padding: elements that stay zero
    deltas:  what is added to the values of its boxes: this one is computed, not copied
    """

    name: str
    dtype: str
    stored: Ints
    shape: Ints
    copies: tuple[CopyBox, ...]
    padding: int = 0
    deltas: tuple[tuple[Box, Delta], ...] = ()

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def casts(self) -> list[tuple[str, str]]:
        """(from, to) for each dtype of its sources that is not its own."""
        return [(old, self.dtype) for old in sorted({c.dtype for c in self.copies} - {self.dtype})]


Sources = Mapping[str, Sequence[SourceBox]]


def whole(ref: TensorRef) -> SourceBox:
    """A tensor that a file holds as Hugging Face names it."""
    return SourceBox((0,) * len(ref.shape), ref.shape, ref.dtype, ref.file, ref.offset, ref.strides)


def zeros(shape: Ints, dtype: str, start: Ints) -> SourceBox:
    """A box of an HF tensor that no file holds because it is zero."""
    return SourceBox(start, shape, dtype, ZEROS, 0, (0,) * len(shape))


def boxes_of(placed: Placed, ref: TensorRef) -> Iterable[tuple[str, SourceBox]]:
    """The HF boxes that a Megatron tensor in a file holds."""
    geometry = placed.geometry
    if geometry.shape == ref.shape:
        strides = ref.strides
    elif ref.contiguous:
        strides = contiguous_strides(geometry.shape)
    else:
        raise ToolError(
            f"{ref.file}: {placed.name} is stored as a view that is not contiguous", hint="save it again with .contiguous()"
        )
    for box in geometry.boxes:
        first = sum(a * s for a, s in zip(box.at, strides, strict=True))
        offset = ref.offset + first * ref.itemsize
        yield (
            placed.sources[box.part],
            SourceBox(box.start, box.size, ref.dtype, ref.file, offset, tuple(strides[a] for a in box.axes)),
        )


def identity(shape: Ints) -> Geometry:
    """An HF tensor as itself."""
    axes = tuple(range(len(shape)))
    return Geometry(shape, (Box(0, (0,) * len(shape), shape, (0,) * len(shape), axes),), (), shape)


def compose(
    name: str,
    geometry: Geometry,
    names: Sequence[str],
    sources: Sources,
    dtype: str | None,
    deltas: Mapping[str, Delta] | None = None,
) -> Record:
    """The record of a target tensor whose boxes come from `sources`. dtype: what it is cast to; None: as the sources are.

    deltas: HF name -> what is added to the tensor.

    Raises ToolError where the sources disagree on the dtype, and AssertionError where they do not fill the target exactly.
    """
    copies: list[CopyBox] = []
    for box in geometry.boxes:
        hf = names[box.part]
        found = sources.get(hf)
        if not found:
            raise ToolError(
                f"{name}: needs the tensor {hf}, which the source does not have",
                hint="jumar-convert inspect SRC lists what it has",
            )
        copies += (c for c in (_meet(box, s) for s in found) if c is not None)
    # a rank that holds nothing but padding still has the dtype of the others
    kinds = sorted({c.dtype for c in copies} or {s.dtype for hf in names for s in sources.get(hf, ())})
    if len(kinds) > 1 and (dtype is None or not castable(kinds)):
        raise ToolError(
            f"{name} joins tensors of different dtypes ({', '.join(kinds)}): {', '.join(names[:4])}",
            hint="choose one with --dtype"
            if castable(kinds)
            else "only BF16, F16, F32 and F64 are cast; dequantise the others first",
        )
    if fault := _fault(_filled(geometry), frozenset((c.at, c.size) for c in copies)):
        raise AssertionError(f"{name}: {fault}")
    target = dtype if dtype is not None and castable(kinds) else kinds[0]
    added = tuple((box, deltas[names[box.part]]) for box in geometry.boxes if names[box.part] in deltas) if deltas else ()
    return Record(name, target, geometry.stored, geometry.shape, tuple(copies), _padding(geometry), added)


def prove_geometry(placed: Placed) -> None:
    """Every element of a Megatron tensor but its padding belongs to exactly one HF box. Raises AssertionError."""
    geometry = placed.geometry
    if fault := _fault(_filled(geometry), frozenset((b.at, b.extent) for b in geometry.boxes)):
        raise AssertionError(f"{placed.name}: {fault}")


def _filled(geometry: Geometry) -> Ints:
    return (geometry.shape[0] - geometry.padding, *geometry.shape[1:]) if geometry.padding else geometry.shape


def castable(dtypes: Iterable[str]) -> bool:
    """Whether all of them are floating-point."""
    return all(d in ("F64", "F32", "F16", "BF16") for d in dtypes)


def _padding(geometry: Geometry) -> int:
    return geometry.padding * math.prod(geometry.shape[1:])


def _meet(box: Box, source: SourceBox) -> CopyBox | None:
    low = tuple(map(max, box.start, source.start))
    size = tuple(
        min(b + n, s + m) - lo for b, n, s, m, lo in zip(box.start, box.size, source.start, source.size, low, strict=True)
    )
    if any(n <= 0 for n in size):
        return None
    at, extent, strides = list(box.at), [1] * len(box.at), [0] * len(box.at)
    for hf_axis, axis in enumerate(box.axes):
        at[axis] += low[hf_axis] - box.start[hf_axis]
        extent[axis] = size[hf_axis]
        strides[axis] = source.strides[hf_axis]
    skipped = sum((lo - s) * t for lo, s, t in zip(low, source.start, source.strides, strict=True))
    offset = source.offset + skipped * DTYPES[source.dtype].itemsize
    return CopyBox(tuple(at), tuple(extent), source.dtype, source.file, offset, tuple(strides))


def tiling_fault(shape: Ints, boxes: Sequence[tuple[Ints, Ints]]) -> str | None:
    """None if the boxes (start, size) cover every element of `shape` exactly once, else what is wrong.

    The proof: each box lies inside, no two overlap, and their volumes add up to the whole.
    """
    total = sum(math.prod(size) for _, size in boxes)
    if total != math.prod(shape):
        return f"{total} of {math.prod(shape)} elements are covered"
    if not shape or (len(boxes) <= 1 and all(s == 0 for b, _ in boxes for s in b)):
        return None
    start = np.array([b for b, _ in boxes], dtype=np.int64).reshape(len(boxes), len(shape))
    stop = start + np.array([s for _, s in boxes], dtype=np.int64).reshape(start.shape)
    if (start < 0).any() or (stop > np.array(shape)).any():
        return "a box lies outside the tensor"
    order = np.lexsort(start.T[::-1])
    start, stop = start[order], stop[order]
    for i in range(len(boxes) - 1):
        later = start[i + 1 :]
        near = int(np.searchsorted(later[:, 0], stop[i, 0]))
        if near and ((later[:near] < stop[i]) & (stop[i + 1 : i + 1 + near] > start[i])).all(axis=1).any():
            return f"two copies overlap at {tuple(int(x) for x in start[i])}"
    return None


@dataclass(slots=True)
class Coverage:
    """Counts, for each HF tensor, which boxes of it went where; proves at the end that the whole source was used exactly once.

    A box that is written again, identically, is a replica: declared, counted, and no fault.
    """

    seen: dict[str, set[tuple[Ints, Ints]]] = field(default_factory=dict)
    replicas: int = 0

    def add(self, geometry: Geometry, names: Sequence[str]) -> None:
        for box in geometry.boxes:
            boxes = self.seen.setdefault(names[box.part], set())
            self.replicas += (box.start, box.size) in boxes
            boxes.add((box.start, box.size))

    def prove(self, shapes: Mapping[str, Ints]) -> None:
        """Raises AssertionError naming an HF tensor that is not used exactly once."""
        for name, shape in shapes.items():
            boxes = self.seen.get(name, set())
            if fault := _fault(shape, frozenset(boxes)):
                raise AssertionError(f"{name}: {fault} by the target")


@lru_cache(maxsize=16384)
def _fault(shape: Ints, boxes: frozenset[tuple[Ints, Ints]]) -> str | None:
    return tiling_fault(shape, sorted(boxes))
