"""Records as bytes: a target tensor put together from source files, a chunk at a time, in bounded memory.

Contiguous ranges are read into a buffer of `CHUNK` bytes a thread, strided ones gathered in it from the source's mapping.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np

from jumar.ckpt_convert.deltas import add_delta, in_hf_order
from jumar.ckpt_convert.plan import ZEROS, CopyBox, Ints, Record
from jumar.ckpt_convert.tensors import DTYPES, contiguous_strides
from jumar.schema.errors import ToolError

CHUNK = 4 << 20
OPEN_FILES = 32
READ = 1 << 20  # bytes read at once: what is read is then still in the processor's cache when it is written


class SourceFiles:
    """Source files: read into buffers, or mapped, once each. Raises ToolError for one that is shorter than it was."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}
        self._lock = threading.Lock()
        self._local = threading.local()

    def read_into(self, buffer: np.ndarray, path: Path, offset: int) -> None:
        """Fills an array of bytes from a file, from `offset` on."""
        if path == ZEROS:
            buffer[...] = 0
            return
        descriptor, here = self._descriptor(path), buffer.data
        while here:
            count = os.preadv(descriptor, [here], offset)
            if not count:
                raise _cut_short(path)
            here, offset = here[count:], offset + count

    def _descriptor(self, path: Path) -> int:
        """A file descriptor; each thread keeps a few, so that none is closed under another."""
        held: dict[Path, _Descriptor] = self._local.__dict__.setdefault("held", {})
        if path not in held and len(held) >= OPEN_FILES:
            del held[next(iter(held))]
        held[path] = descriptor = held.pop(path, None) or _Descriptor(path)
        return descriptor.fd

    def __getitem__(self, path: Path) -> mmap.mmap:
        with self._lock:
            if path == ZEROS:
                return self._maps.setdefault(path, mmap.mmap(-1, mmap.PAGESIZE))
            if path not in self._maps:
                with path.open("rb") as file:
                    if not os.fstat(file.fileno()).st_size:
                        raise _cut_short(path)
                    self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return self._maps[path]

    def view(self, copy: CopyBox) -> np.ndarray:
        """The source bytes of a copy as an array in the target's axis order; nothing is read.

        Reading what a file no longer has would kill the process, so `check` comes before each chunk.
        """
        dtype = DTYPES[copy.dtype]
        strides = tuple(s * dtype.itemsize for s in copy.strides)
        self.check(copy)
        view: np.ndarray = np.ndarray(copy.size, dtype, self[copy.file], copy.offset, strides)
        return view

    def check(self, copy: CopyBox) -> None:
        """Raises ToolError if the file no longer has all bytes of a copy."""
        last = sum((n - 1) * s for n, s in zip(copy.size, copy.strides, strict=True))
        if copy.file != ZEROS and self[copy.file].size() < copy.offset + (last + 1) * DTYPES[copy.dtype].itemsize:
            raise _cut_short(copy.file)


class _Descriptor:
    """A file descriptor that is closed when nobody holds it any more."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


def _cut_short(path: Path) -> ToolError:
    return ToolError(
        f"{path} was cut short while it was read", hint="wait until nothing writes there, then run the same command again"
    )


class RecordReader:
    """Gives the bytes of records in order. Threads may share one: each has a buffer of its own, good until its next piece."""

    def __init__(self, files: SourceFiles) -> None:
        self._files = files
        self._local = threading.local()

    def pieces(self, record: Record) -> Iterator[memoryview]:
        """A record's bytes in order, a chunk at a time."""
        if record.deltas:
            yield from self._summed(record)
            return
        strides = contiguous_strides(record.shape)
        spans = sorted(((_start(c.at, strides), c) for c in record.copies), key=itemgetter(0)) if _all_rows(record) else None
        if spans is None:
            yield from self._gathered(record)
            return
        here, item = 0, DTYPES[record.dtype].itemsize
        for start, copy in spans:
            yield from _zeros((start - here) * item)
            yield from self._span(copy, record)
            here = start + math.prod(copy.size)
        yield from _zeros((math.prod(record.shape) - here) * item)

    def _span(self, copy: CopyBox, record: Record) -> Iterator[memoryview]:
        """A copy that fills one unbroken range of the target."""
        dtype = record.dtype
        if copy.dtype == dtype and _unbroken(copy):
            length = math.prod(copy.size) * DTYPES[dtype].itemsize
            for start in range(0, length, READ):
                piece = self._buffer(min(READ, length - start), "U8")
                self._files.read_into(piece, copy.file, copy.offset + start)
                yield piece.data
            return
        view = self._files.view(copy)
        for at, size in chunks(copy.size, CHUNK // DTYPES[dtype].itemsize):
            self._files.check(copy)
            buffer = self._buffer(math.prod(size), dtype).reshape(size)
            fill(buffer, view[tuple(slice(a, a + n) for a, n in zip(at, size, strict=True))], record)
            yield buffer.reshape(-1).view(np.uint8).data

    def _gathered(self, record: Record) -> Iterator[memoryview]:
        """Copies that lie across one another's rows: put together a chunk at a time."""
        for at, size in chunks(record.shape, CHUNK // DTYPES[record.dtype].itemsize):
            buffer = self._buffer(math.prod(size), record.dtype).reshape(size)
            if record.padding:
                buffer[...] = np.zeros((), buffer.dtype)
            for copy in record.copies:
                if met := overlap(at, size, copy.at, copy.size):
                    target, source = met
                    fill(buffer[target], self._files.view(copy)[source], record)
            yield buffer.reshape(-1).view(np.uint8).data

    def _summed(self, record: Record) -> Iterator[memoryview]:
        """Copies with something added: in float32 (float64 if the tensor is), rounded once to the record's dtype."""
        wide = "F64" if "F64" in (record.dtype, *(c.dtype for c in record.copies)) else "F32"
        for at, size in chunks(record.shape, CHUNK // DTYPES[wide].itemsize):
            total = np.zeros(size, DTYPES[wide])
            for copy in record.copies:
                if met := overlap(at, size, copy.at, copy.size):
                    target, source = met
                    total[target] = self._files.view(copy)[source]
            for box, delta in record.deltas:
                if met := overlap(at, size, box.at, box.extent):
                    target, source = met
                    boxes = zip(box.axes, box.start, box.size, strict=True)
                    ranges = [range(first, first + count)[source[axis]] for axis, first, count in boxes]
                    add_delta(in_hf_order(total[target], box.axes), delta, ranges, self._files.view)
            buffer = self._buffer(math.prod(size), record.dtype).reshape(size)
            fill(buffer, total, record)
            yield buffer.reshape(-1).view(np.uint8).data

    def _buffer(self, count: int, dtype: str) -> np.ndarray:
        nbytes = count * DTYPES[dtype].itemsize
        held: np.ndarray | None = getattr(self._local, "buffer", None)
        if held is None or held.nbytes < nbytes:
            held = self._local.buffer = np.empty(max(nbytes, CHUNK), np.uint8)
        return held[:nbytes].view(DTYPES[dtype])


Slices = tuple[slice, ...]


def overlap(at: Ints, size: Ints, other: Ints, extent: Ints) -> tuple[Slices, Slices] | None:
    """Where two boxes meet, seen from each of them; None if they do not."""
    low = tuple(map(max, at, other))
    high = tuple(min(a + n, c + m) for a, n, c, m in zip(at, size, other, extent, strict=True))
    if not all(lo < hi for lo, hi in zip(low, high, strict=True)):
        return None
    seen = (tuple(slice(lo - s, hi - s) for lo, hi, s in zip(low, high, start, strict=True)) for start in (at, other))
    return next(seen), next(seen)


def fill(target: np.ndarray, source: np.ndarray, record: Record) -> None:
    """Copies values, cast if the dtypes differ. Raises ToolError where a finite value becomes infinite."""
    if target.dtype == source.dtype:
        target[...] = source
        return
    with np.errstate(over="ignore", invalid="ignore"):
        target[...] = source
        lost = np.isinf(target) & np.isfinite(source)
    if lost.any():
        largest = float(np.abs(source[lost].astype(np.float64)).max())
        raise ToolError(
            f"{record.name} has values up to {largest:g}, too large for {record.dtype}",
            hint="choose --dtype bf16 or fp32" if record.dtype == "F16" else "choose --dtype fp32",
        )


def _start(at: Ints, strides: Ints) -> int:
    return sum(a * s for a, s in zip(at, strides, strict=True))


def _all_rows(record: Record) -> bool:
    """Whether every copy fills one unbroken range of the target."""
    return all(_fills_range(c.size, record.shape) for c in record.copies)


def _fills_range(size: Ints, shape: Ints) -> bool:
    inner = len(shape)
    while inner and size[inner - 1] == shape[inner - 1]:
        inner -= 1
    return all(n == 1 for n in size[: max(inner - 1, 0)])


def _unbroken(copy: CopyBox) -> bool:
    """Whether a copy's source is one unbroken range in the order of the target."""
    step = 1
    for size, stride in zip(reversed(copy.size), reversed(copy.strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def chunks(shape: Ints, limit: int) -> Iterator[tuple[Ints, Ints]]:
    """Boxes (start, size) of at most `limit` elements (a single element at least) that are unbroken in memory, in order."""
    inner, axis = 1, len(shape)
    while axis and inner * shape[axis - 1] <= limit:
        axis -= 1
        inner *= shape[axis]
    if not axis:
        yield (0,) * len(shape), shape
        return
    step = max(limit // inner, 1)
    for outer in np.ndindex(*shape[: axis - 1]):
        for start in range(0, shape[axis - 1], step):
            size = min(step, shape[axis - 1] - start)
            yield (*outer, start, *((0,) * (len(shape) - axis))), (*((1,) * (axis - 1)), size, *shape[axis:])


_ZEROS = bytes(CHUNK)


def _zeros(count: int) -> Iterator[memoryview]:
    for start in range(0, count, CHUNK):
        yield memoryview(_ZEROS)[: min(CHUNK, count - start)]


def record_array(record: Record) -> np.ndarray:
    """A record's values as one array in memory."""
    files = SourceFiles()
    if record.deltas:
        whole = b"".join(RecordReader(files).pieces(record))
        return np.frombuffer(bytearray(whole), DTYPES[record.dtype]).reshape(record.shape)
    array = np.zeros(record.shape, DTYPES[record.dtype])
    for copy in record.copies:
        array[tuple(slice(a, a + n) for a, n in zip(copy.at, copy.size, strict=True))] = files.view(copy)
    return array
