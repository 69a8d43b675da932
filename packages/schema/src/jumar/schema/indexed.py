"""Megatron's indexed datasets: PREFIX.bin holds sequences of numbers end to end, PREFIX.idx says where each begins.

The format is megatron.core.datasets.indexed_dataset's, all little-endian: magic, <Q version, <B dtype code, <Q sequences,
<Q entries of the documents' table, int32 lengths, int64 byte offsets, int64 documents (document d holds the sequences
documents[d] to documents[d + 1]), and in multimodal datasets an int8 mode per sequence.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from jumar.schema.errors import ToolError

Array = npt.NDArray[Any]

MAGIC, VERSION = b"MMIDIDX\x00\x00", 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {1: "u1", 2: "i1", 3: "i2", 4: "i4", 5: "i8", 6: "f8", 7: "f4", 8: "u2"}
CODES = {np.dtype(name): code for code, name in DTYPES.items()}
CHUNK = 1 << 20
"""Entries of an index that are looked at or written at a time."""
AGAIN = "copy both files again, or make the dataset again"


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    """What token ids of a vocabulary are stored as: uint16 below 65500, else int32 (Megatron's `optimal_dtype`)."""
    return np.dtype(np.uint16 if vocab_size < 65500 else np.int32)


def strip_suffix(path: Path) -> Path:
    """data/x.bin and data/x.idx -> data/x. A prefix may hold dots of its own."""
    return path.with_suffix("") if path.suffix in (".bin", ".idx") else path


class IndexedReader:
    """A dataset that lies on disk: the index is checked when it is opened, sequences are mapped when they are asked for.

    prefix: the path without suffix, or that of either file. Raises ToolError if a file is missing, cut or does not fit the other.

    lengths:   [sequences] int32, numbers in each.
    pointers:  [sequences] int64, byte offset of each in the .bin.
    documents: [documents + 1] int64, from 0 to sequences, never descending.
    modes:     [sequences] int8, or None where the index ends without.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = strip_suffix(prefix)
        self.idx, self.bin = (self.prefix.with_name(self.prefix.name + end) for end in (".idx", ".bin"))
        for path, other in ((self.idx, self.bin), (self.bin, self.idx)):
            if not path.is_file():
                raise ToolError(f"{path} is not there", hint=f"{other} needs it beside it: {AGAIN}" if other.is_file() else AGAIN)
        self.nbytes = self.bin.stat().st_size
        self.dtype, sequences, entries = self._header()
        self._lay_out(sequences, entries)
        self._check()
        self._mapped: Array | None = None

    def _header(self) -> tuple[np.dtype[Any], int, int]:
        with self.idx.open("rb") as file:
            head = file.read(HEADER.size)
        if not head.startswith(MAGIC):
            hint = "give the prefix of a Megatron .bin/.idx pair"
            raise ToolError(f"{self.idx}: begins with {head[:9]!r}, an index begins with {MAGIC!r}", hint=hint)
        if len(head) < HEADER.size:
            raise ToolError(f"{self.idx}: {len(head)} bytes, the header alone has {HEADER.size}", hint=AGAIN)
        _, version, code, sequences, entries = HEADER.unpack(head)
        if version != VERSION:
            raise ToolError(f"{self.idx}: version {version}, this reader knows {VERSION}", hint=AGAIN)
        if code not in DTYPES:
            known = ", ".join(f"{code} = {np.dtype(name)}" for code, name in DTYPES.items())
            raise ToolError(f"{self.idx}: dtype code {code}, expected one of {known}", hint=AGAIN)
        return np.dtype(DTYPES[code]), sequences, entries

    def _lay_out(self, sequences: int, entries: int) -> None:
        size, bare = self.idx.stat().st_size, HEADER.size + 12 * sequences + 8 * entries
        if size not in (bare, bare + sequences):
            what = "was cut" if size < bare else "does not end where it should"
            raise ToolError(
                f"{self.idx} {what}: {size} bytes, but {sequences} sequences and {entries} entries of documents"
                f" make {bare} (or {bare + sequences} with modes)",
                hint=AGAIN,
            )
        mapped = np.memmap(self.idx, mode="r")
        self.lengths: Array = np.frombuffer(mapped, "<i4", sequences, HEADER.size)
        self.pointers: Array = np.frombuffer(mapped, "<i8", sequences, HEADER.size + 4 * sequences)
        self.documents: Array = np.frombuffer(mapped, "<i8", entries, HEADER.size + 12 * sequences)
        self.modes: Array | None = np.frombuffer(mapped, "i1", sequences, bare) if size > bare else None

    def _check(self) -> None:
        """Everything the index says is possible. In chunks: an index may be larger than memory.

        Sets `contiguous`: whether the sequences lie end to end and fill the .bin, as all known writers leave them.
        """
        self.contiguous, end = True, 0
        for start in range(0, len(self), CHUNK):
            lengths, pointers = self.lengths[start : start + CHUNK].astype(np.int64), self.pointers[start : start + CHUNK]
            ends = pointers + lengths * self.dtype.itemsize
            if (bad := lengths < 0).any():
                at = int(bad.argmax())
                raise ToolError(f"{self.idx}: sequence {start + at} has length {lengths[at]}, expected 0 or more", hint=AGAIN)
            if (bad := (pointers < 0) | (ends < pointers) | (ends > self.nbytes)).any():
                at = int(bad.argmax())
                raise ToolError(
                    f"{self.bin}: {self.nbytes} bytes, but {self.idx.name} puts sequence {start + at} of {len(self)}"
                    f" at bytes {pointers[at]} to {ends[at]}",
                    hint=f"the .bin was cut, or belongs to another .idx: {AGAIN}",
                )
            self.contiguous &= bool(pointers[0] == end and (pointers[1:] == ends[:-1]).all())
            end = int(ends[-1])
        self.contiguous &= end == self.nbytes
        found = [int(self.documents[0]), int(self.documents[-1])] if len(self.documents) else []
        if found != [0, len(self)]:
            run = f"from {found[0]} to {found[1]}" if found else "no entries"
            raise ToolError(f"{self.idx}: documents: {run}, expected from 0 to {len(self)}, the number of sequences", hint=AGAIN)
        for start in range(0, len(self.documents), CHUNK):
            part = self.documents[start : start + CHUNK + 1]
            if (part[1:] < part[:-1]).any():
                at = int((part[1:] < part[:-1]).argmax())
                text = f"document {start + at} runs from sequence {part[at]} to {part[at + 1]}, expected ascending numbers"
                raise ToolError(f"{self.idx}: {text}", hint=AGAIN)

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        return f"IndexedReader({str(self.prefix)!r}: {len(self)} sequences of {self.dtype})"

    @property
    def _bin(self) -> Array:
        if self._mapped is None:
            self._mapped = np.memmap(self.bin, mode="r") if self.nbytes else np.empty(0, np.uint8)  # nothing cannot be mapped
        return self._mapped

    def _view(self, pointer: int, count: int) -> Array:
        return np.frombuffer(self._bin, self.dtype, count, pointer) if count else np.empty(0, self.dtype)

    def __getitem__(self, index: int) -> Array:
        """Sequence `index` (negative: from the end) as a read-only view of the file."""
        return self._view(int(self.pointers[index]), int(self.lengths[index]))

    def sequences(self, start: int = 0, stop: int | None = None) -> Iterator[Array]:
        """Sequences start to stop, one by one, as views."""
        for index in range(*slice(start, stop).indices(len(self))):
            yield self[index]

    def values(self, start: int, stop: int) -> Array:
        """The numbers of sequences start to stop, end to end: a view where they lie so, else a copy."""
        if start >= stop:
            return np.empty(0, self.dtype)
        if self.contiguous:
            return self._view(int(self.pointers[start]), int(self.lengths[start:stop].sum(dtype=np.int64)))
        return np.concatenate(list(self.sequences(start, stop)))


def write_index(path: Path, dtype: npt.DTypeLike, lengths: Array, documents: Array, modes: Array | None = None) -> None:
    """Writes the .idx of sequences that lie end to end, as Megatron does to the byte. Memory is bounded; arrays may be mapped.

    lengths: [sequences], documents: [documents + 1] from 0 to sequences. Raises ValueError if they are not so.
    """
    dtype = np.dtype(dtype)
    if dtype not in CODES:
        raise ValueError(f"dtype {dtype}, an index knows {', '.join(map(str, CODES))}")
    if len(documents) == 0 or documents[0] != 0 or documents[-1] != len(lengths):
        raise ValueError(f"documents must run from 0 to {len(lengths)}, the number of sequences")
    if modes is not None and len(modes) != len(lengths):
        raise ValueError(f"{len(modes)} modes for {len(lengths)} sequences")
    with path.open("wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, CODES[dtype], len(lengths), len(documents)))
        _write_as(file, lengths, "<i4")
        end = 0
        for start in range(0, len(lengths), CHUNK):
            nbytes = np.asarray(lengths[start : start + CHUNK]).astype(np.int64) * dtype.itemsize
            ends = end + np.cumsum(nbytes)
            file.write((ends - nbytes).astype("<i8").tobytes())
            end = int(ends[-1])
        _write_as(file, documents, "<i8", ascending=True)
        if modes is not None:
            _write_as(file, modes, "i1")


def _write_as(file: BinaryIO, numbers: Array, dtype: str, *, ascending: bool = False) -> None:
    limits = np.iinfo(dtype)
    for start in range(0, len(numbers), CHUNK):
        chunk = np.asarray(numbers[max(start - 1, 0) : start + CHUNK])  # with the one before, to compare with
        if ascending and (chunk[1:] < chunk[:-1]).any():
            raise ValueError("documents must be ascending")
        chunk = chunk[min(start, 1) :]
        if dtype != "i1" and (chunk.min() < 0 or chunk.max() > limits.max):
            raise ValueError(f"{chunk.min()} to {chunk.max()}, expected 0 to {limits.max}")
        file.write(chunk.astype(dtype).tobytes())


class IndexedWriter:
    """A dataset that grows: PREFIX.bin as sequences come, PREFIX.idx when it is closed (12 bytes of memory a sequence).

    Who needs it whole or not at all gives a prefix beside the place and renames. After a fault no .idx is written.
    """

    def __init__(self, prefix: Path, dtype: npt.DTypeLike, *, modes: bool = False) -> None:
        self.prefix, self.dtype = prefix, np.dtype(dtype)
        self._lengths, self._documents = array("i"), array("q", [0])
        self._modes = array("b") if modes else None
        self._file = prefix.with_name(prefix.name + ".bin").open("wb")

    def add(self, values: npt.ArrayLike, lengths: npt.ArrayLike | None = None, modes: npt.ArrayLike | None = None) -> None:
        """One document: one sequence, or several of these lengths. Raises ValueError if a number does not fit the dtype."""
        count = self._write(values, lengths, modes)
        self._documents.append(self._documents[-1] + count)

    def add_each(self, values: npt.ArrayLike, lengths: npt.ArrayLike, modes: npt.ArrayLike | None = None) -> None:
        """Many documents, each of one sequence; `values` holds them end to end."""
        count, last = self._write(values, lengths, modes), self._documents[-1]
        self._documents.frombytes(np.arange(last + 1, last + 1 + count, dtype=np.int64).tobytes())

    def _write(self, values: npt.ArrayLike, lengths: npt.ArrayLike | None, modes: npt.ArrayLike | None) -> int:
        given = np.asarray(values)
        sizes = np.asarray([given.size] if lengths is None else lengths, np.int64).reshape(-1)
        kinds = np.asarray([0] * len(sizes) if modes is None else modes, np.int8).reshape(-1)
        if sizes.sum() != given.size or (sizes < 0).any() or len(kinds) != len(sizes):
            raise ValueError(f"{given.size} numbers and {len(kinds)} modes for {len(sizes)} lengths that make {sizes.sum()}")
        if given.dtype != self.dtype and given.size and self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            if given.min() < limits.min or given.max() > limits.max:
                raise ValueError(f"numbers from {given.min()} to {given.max()} in a dataset of {self.dtype}")
        self._file.write(np.ascontiguousarray(given, self.dtype).data)
        self._lengths.frombytes(sizes.astype(np.int32).tobytes())
        if self._modes is not None:
            self._modes.frombytes(kinds.tobytes())
        return len(sizes)

    def close(self) -> None:
        """Writes the index."""
        self._file.close()
        lengths, documents = np.frombuffer(self._lengths, np.int32), np.frombuffer(self._documents, np.int64)
        modes = None if self._modes is None else np.frombuffer(self._modes, np.int8)
        write_index(self.prefix.with_name(self.prefix.name + ".idx"), self.dtype, lengths, documents, modes)

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()
