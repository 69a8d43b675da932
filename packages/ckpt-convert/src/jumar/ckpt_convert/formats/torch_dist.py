"""`torch_dist` checkpoints: DCP directories as megatron-core's dist_checkpointing writes them, read and laid out for writing.

Nothing here needs a process group, torch or megatron. Each chunk of a tensor is a small `torch.save` archive at some offset of
a `.distcp` file; `.metadata` says where, `common.pt` holds what is the same on all ranks, `metadata.json` the format's version.
Source: megatron/core/dist_checkpointing/{core,serialization}.py, torch/distributed/checkpoint/filesystem.py.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from jumar.ckpt_convert.formats.archive import ArchiveLayout, TensorSpec, read_archive
from jumar.ckpt_convert.formats.dist_metadata import NAME as METADATA
from jumar.ckpt_convert.formats.dist_metadata import (
    Chunk,
    DistMetadata,
    DistTensor,
    Ints,
    Item,
    metadata_bytes,
    read_metadata,
)
from jumar.ckpt_convert.formats.hf import read_json
from jumar.ckpt_convert.plan import Record
from jumar.ckpt_convert.tensors import TensorRef
from jumar.schema.errors import ToolError

COMMON, FORMAT = "common.pt", "metadata.json"
BACKEND = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1}
MAX_FILE_BYTES = 4 << 30
MAX_COMMON_TENSOR = 1 << 20


def is_dist(directory: Path) -> bool:
    """Whether a directory is one iteration of a distributed checkpoint, of whatever kind."""
    return (directory / METADATA).is_file() or ((directory / FORMAT).is_file() and (directory / COMMON).is_file())


@dataclass(frozen=True, slots=True)
class DistDirectory:
    """One iteration: its tensors and objects, and the plain values of `common.pt`."""

    path: Path
    metadata: DistMetadata
    common: Mapping[str, Any]

    @property
    def args(self) -> dict[str, Any]:
        raw = self.common.get("args")
        return dict(vars(raw)) if isinstance(raw, argparse.Namespace) else dict(raw) if isinstance(raw, dict) else {}

    def ref(self, name: str, tensor: DistTensor, chunk: Chunk) -> TensorRef:
        """A chunk as a tensor in its file. Raises ToolError if the file is missing, cut short, or holds another tensor."""
        file = self.path / chunk.item.file
        if not file.is_file():
            raise ToolError(
                f"{file} is missing, which {METADATA} names", hint="copy every rank's .distcp files into one directory"
            )
        size, end = file.stat().st_size, chunk.item.offset + chunk.item.length
        if end > size:
            hint = "truncated: copy the file again"
            raise ToolError(f"{file}: {size} bytes, but {METADATA} has {name} at bytes {chunk.item.offset} to {end}", hint=hint)
        ref = read_archive(file, extent=(chunk.item.offset, chunk.item.length))
        if not isinstance(ref, TensorRef) or (ref.dtype, ref.shape) != (tensor.dtype, chunk.size):
            held = f"{ref.dtype} {list(ref.shape)}" if isinstance(ref, TensorRef) else f"a {type(ref).__name__}"
            raise ToolError(
                f"{file}: {name} at {list(chunk.start)} is {held}, expected {tensor.dtype} {list(chunk.size)}",
                hint=f"{METADATA} and {file.name} are of different saves: copy both again",
            )
        return ref


def open_directory(directory: Path) -> DistDirectory:
    """Reads headers of one iteration. Raises ToolError for another backend or version, and for what is missing."""
    if not (directory / FORMAT).is_file():
        hint = "copy it with the rest; if the save was stopped, take an earlier iteration (--iteration); it is written last"
        raise ToolError(f"{directory}: no {FORMAT}", hint=hint)
    said = read_json(directory / FORMAT)
    backend, version = (said.get(k) if isinstance(said, dict) else None for k in ("sharded_backend", "sharded_backend_version"))
    if backend != "torch_dist" or version != 1:
        raise ToolError(
            f"{directory / FORMAT}: backend {backend!r}, version {version!r}; torch_dist, version 1 is read",
            hint="load it with the megatron-core that wrote it, and save it with --ckpt-format torch_dist",
        )
    common = read_archive(directory / COMMON) if (directory / COMMON).exists() else {}
    if not isinstance(common, dict):
        raise ToolError(f"{directory / COMMON}: a {type(common).__name__}, expected a dict", hint="copy the file again")
    return DistDirectory(directory, read_metadata(directory), common)


class Chunks:
    """The chunks of one tensor, found by where they stand along its stacked axes."""

    def __init__(self, tensor: DistTensor, stacked: int) -> None:
        self._at: defaultdict[Ints, list[Chunk]] = defaultdict(list)
        for chunk in tensor.chunks:
            lead = zip(chunk.start[:stacked], chunk.size[:stacked], strict=True)
            for place in product(*(range(start, start + size) for start, size in lead)):
                self._at[place].append(chunk)

    def __getitem__(self, place: Ints) -> Sequence[Chunk]:
        return self._at.get(place, ())


@dataclass(frozen=True, slots=True)
class Saved:
    """A chunk to be written: tensor's name and shape, where the chunk begins, and its bytes."""

    key: str
    shape: Ints
    start: Ints
    record: Record


@dataclass(frozen=True, slots=True)
class DistFile:
    """A `.distcp` file to be written: the chunks' archives, one after the other, and objects (whose content is known)."""

    path: str
    chunks: tuple[Saved, ...]
    layouts: tuple[ArchiveLayout, ...]
    starts: tuple[int, ...]
    objects: tuple[tuple[str, int, bytes], ...]
    size: int
    checksums = True

    @property
    def records(self) -> tuple[Record, ...]:
        return tuple(chunk.record for chunk in self.chunks)

    @property
    def offsets(self) -> tuple[int, ...]:
        return tuple(start + layout.records[0].offset for start, layout in zip(self.starts, self.layouts, strict=True))

    def begin(self, fd: int) -> None:
        os.ftruncate(fd, self.size)
        for start, layout in zip(self.starts, self.layouts, strict=True):
            layout.write_small(fd, start)
        for _, start, content in self.objects:
            os.pwrite(fd, content, start)

    def finish(self, fd: int, crcs: Sequence[int]) -> None:
        for start, layout, crc in zip(self.starts, self.layouts, crcs, strict=True):
            layout.finish(fd, [crc], start)


@lru_cache(maxsize=4096)
def _archive(dtype: str, shape: Ints) -> ArchiveLayout:
    """The archive of one tensor: the same for the many that are alike."""
    return ArchiveLayout.plan(TensorSpec(dtype, shape))


def rank_files(folder: str, rank: int, chunks: Iterable[Saved], objects: Iterable[str]) -> list[DistFile]:
    """The files of one rank, each up to about 4 GiB: `__RANK_0.distcp`, `__RANK_1.distcp`, ...

    objects: names of the empty objects that the rank saves.
    """
    files: list[DistFile] = []
    group: list[Saved] = []
    layouts: list[ArchiveLayout] = []
    starts: list[int] = []
    here = 0

    def close(placed: list[tuple[str, int, bytes]], size: int) -> None:
        path = f"{folder}/__{rank}_{len(files)}.distcp"
        files.append(DistFile(path, tuple(group), tuple(layouts), tuple(starts), tuple(placed), size))
        group.clear()
        layouts.clear()
        starts.clear()

    for chunk in chunks:
        layout = _archive(chunk.record.dtype, chunk.record.stored)
        if group and here + layout.size > MAX_FILE_BYTES:
            close([], here)
            here = 0
        group.append(chunk)
        layouts.append(layout)
        starts.append(here)
        here += layout.size
    empty = ArchiveLayout.plan([None]).content()  # one value for each object of that name
    placed = []
    for name in objects:
        placed.append((name, here, empty))
        here += len(empty)
    if group or placed:
        close(placed, here)
    return files


def index_bytes(files: Iterable[DistFile]) -> bytes:
    """The `.metadata` of these files."""
    found: dict[str, tuple[str, Ints, list[Chunk]]] = {}
    objects: dict[str, Item] = {}
    for file in files:
        name = Path(file.path).name
        for chunk, layout, start in zip(file.chunks, file.layouts, file.starts, strict=True):
            entry = found.setdefault(chunk.key, (chunk.record.dtype, chunk.shape, []))
            if entry[0] != chunk.record.dtype:
                raise ToolError(
                    f"{chunk.key} joins tensors of different dtypes ({entry[0]}, {chunk.record.dtype})",
                    hint="choose one with --dtype",
                )
            entry[2].append(Chunk(chunk.start, chunk.record.stored, Item(name, start, layout.size)))
        objects.update((key, Item(name, start, len(content))) for key, start, content in file.objects)
    tensors = {key: DistTensor(dtype, shape, tuple(chunks)) for key, (dtype, shape, chunks) in found.items()}
    return metadata_bytes(tensors, objects)


def common_bytes(value: Mapping[str, Any]) -> bytes:
    """`common.pt`, of plain values and small tensors (steps of an optimizer), which are read here."""
    held: list[bytes] = []

    def spelled(item: Any) -> Any:
        if isinstance(item, TensorRef):
            held.append(_small_tensor(item))
            return TensorSpec(item.dtype, item.shape)
        if type(item) is dict:
            return {key: spelled(inner) for key, inner in item.items()}
        return type(item)(map(spelled, item)) if type(item) in (list, tuple) else item

    return ArchiveLayout.plan(spelled(dict(value))).content(held)


def _small_tensor(ref: TensorRef) -> bytes:
    if ref.nbytes > MAX_COMMON_TENSOR or not ref.contiguous:
        raise ToolError(
            f"{ref.file}: holds a tensor {ref.dtype} {list(ref.shape)} in common values", hint="add --no-optimizer to leave it"
        )
    with ref.file.open("rb") as file:
        file.seek(ref.offset)
        return file.read(ref.nbytes)


def format_bytes() -> bytes:
    return json.dumps(BACKEND).encode()
