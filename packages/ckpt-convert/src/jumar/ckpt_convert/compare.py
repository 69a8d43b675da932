"""Comparing boxes of tensors in files, a chunk at a time."""

from __future__ import annotations

import numpy as np

from jumar.ckpt_convert.gather import CHUNK, SourceFiles, chunks
from jumar.ckpt_convert.plan import CopyBox, SourceBox
from jumar.ckpt_convert.tensors import DTYPES


def as_copy(box: SourceBox) -> CopyBox:
    """A box that fills a target of its own size, axes in HF order."""
    return CopyBox((0,) * len(box.size), box.size, box.dtype, box.file, box.offset, box.strides)


def same_values(a: SourceBox, b: SourceBox, files: SourceFiles | None = None) -> bool:
    """Whether two boxes have the same dtype, shape and bytes (NaNs compare by their bits)."""
    if a.dtype != b.dtype or a.size != b.size:
        return False
    files = files or SourceFiles()
    copies = [as_copy(box) for box in (a, b)]
    left, right = (bits(files.view(copy)) for copy in copies)
    item = DTYPES[a.dtype].itemsize
    for at, size in chunks(a.size, CHUNK // item):
        for copy in copies:
            files.check(copy)
        index = tuple(slice(s, s + n) for s, n in zip(at, size, strict=True))
        if not np.array_equal(left[index], right[index]):
            return False
    return True


def first_bytes(box: SourceBox, files: SourceFiles, limit: int = 1 << 16) -> bytes | None:
    """The first bytes of a box, at most `limit` (one element at least); None where all elements in them are the same."""
    view = bits(files.view(as_copy(box)))
    for at, size in chunks(box.size, max(limit // view.dtype.itemsize, 1)):
        part = view[tuple(slice(s, s + n) for s, n in zip(at, size, strict=True))]
        return None if part.size == 0 or (part == part.flat[0]).all() else part.tobytes()
    return None


def unlike(a: SourceBox, b: SourceBox, files: SourceFiles, limit: int = 1 << 16) -> bool:
    """Whether most elements in the first `limit` bytes of two boxes of one shape differ: they are no copies of one another."""
    left, right = (bits(files.view(as_copy(box))) for box in (a, b))
    for at, size in chunks(a.size, max(limit // left.dtype.itemsize, 1)):
        index = tuple(slice(s, s + n) for s, n in zip(at, size, strict=True))
        return bool(left.dtype != right.dtype or (left[index] != right[index]).mean() > 0.5)
    return False


def bits(view: np.ndarray) -> np.ndarray:
    """The same array as unsigned integers of its width."""
    return view.view(np.dtype(f"u{view.dtype.itemsize}")) if view.dtype.kind != "u" else view


def largest_difference(a: SourceBox, b: SourceBox, files: SourceFiles) -> float:
    """The greatest absolute difference of two boxes of one size (inf where one alone is not finite), in double precision."""
    left, right = (files.view(as_copy(box)) for box in (a, b))
    largest = 0.0
    for at, size in chunks(a.size, CHUNK // 8):
        index = tuple(slice(s, s + n) for s, n in zip(at, size, strict=True))
        with np.errstate(invalid="ignore"):  # NaNs, and inf - inf
            one, other = left[index].astype(np.float64), right[index].astype(np.float64)
            gap = np.where(one == other, 0.0, np.abs(one - other))
        if gap.size:
            largest = max(largest, float(np.nan_to_num(gap, nan=np.inf).max()))
    return largest
