"""What a LoRA adds to a weight, computed a tile at a time.

Tiles are fixed in the Hugging Face tensor, and each is always computed whole: so a value does not depend on the layout of the
target, on its chunks or on the threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jumar.ckpt_convert.plan import CopyBox, Delta, Ints, SourceBox
from jumar.schema.errors import ToolError

TILE = 128, 512
"""Outputs and inputs of a tile."""
View = Callable[[CopyBox], np.ndarray]


def in_hf_order(region: np.ndarray, axes: Ints) -> np.ndarray:
    """A region of a Megatron tensor as the box of the HF matrix that lies there: a view, whose axes are the matrix's."""
    plane: np.ndarray = region[tuple(slice(None) if axis in axes else 0 for axis in range(region.ndim))]
    return plane.T if axes[0] > axes[1] else plane


def add_delta(target: np.ndarray, delta: Delta, ranges: Sequence[range], view: View) -> None:
    """Adds the box `ranges` of a delta to `target`, both in the axes of the HF weight. Computed in target's dtype."""
    out, inner = reversed(ranges) if delta.transposed else ranges
    total = target.T if delta.transposed else target  # (out, in)
    sizes = tuple(reversed(delta.shape)) if delta.transposed else delta.shape
    for rows in _tiles(out, sizes[0], TILE[0]):
        b = _read(delta.b, (rows, range(delta.rank)), view, target.dtype)
        for columns in _tiles(inner, sizes[1], TILE[1]):
            with np.errstate(over="ignore", invalid="ignore"):
                tile = b @ _read(delta.a, (range(delta.rank), columns), view, target.dtype)
                tile *= target.dtype.type(delta.scale)
            if not np.isfinite(tile).all():
                raise ToolError(
                    "the adapter's scale * B @ A has values that are no finite numbers",
                    hint="is the adapter whole? it may come from a run that diverged",
                )
            mine, theirs = zip(*(_meeting(part, of) for part, of in ((rows, out), (columns, inner))), strict=True)
            total[theirs] += tile[mine]


def _tiles(wanted: range, size: int, step: int) -> Iterator[range]:
    """The tiles of an axis of `size` that meet a range of it."""
    for start in range(wanted.start // step * step, wanted.stop, step):
        yield range(start, min(start + step, size))


def _meeting(tile: range, wanted: range) -> tuple[slice, slice]:
    low, high = max(tile.start, wanted.start), min(tile.stop, wanted.stop)
    return slice(low - tile.start, high - tile.start), slice(low - wanted.start, high - wanted.start)


def _read(boxes: Sequence[SourceBox], ranges: tuple[range, range], view: View, dtype: np.dtype) -> np.ndarray:
    """A box of lora_A or lora_B, put together from its files."""
    array = np.zeros(tuple(map(len, ranges)), dtype)
    for box in boxes:
        low = tuple(max(s, r.start) for s, r in zip(box.start, ranges, strict=True))
        high = tuple(min(s + n, r.stop) for s, n, r in zip(box.start, box.size, ranges, strict=True))
        if all(lo < hi for lo, hi in zip(low, high, strict=True)):
            source = tuple(slice(lo - s, hi - s) for lo, hi, s in zip(low, high, box.start, strict=True))
            target = tuple(slice(lo - r.start, hi - r.start) for lo, hi, r in zip(low, high, ranges, strict=True))
            whole = CopyBox((0,) * len(box.size), box.size, box.dtype, box.file, box.offset, box.strides)
            array[target] = view(whole)[source]
    return array
