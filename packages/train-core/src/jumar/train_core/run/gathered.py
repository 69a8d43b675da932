"""A checkpoint whose files lie on several nodes' disks, seen on each as one directory.

RUN/iter_0000100.gathered links to the files that are here. Of those that are elsewhere the bytes that are asked for come over
through the process group, into files with holes, in blocks: memory does not grow with the model, and disk only with what is read.
"""

from __future__ import annotations

import os
import pickle
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedStateDict, ShardedTensor
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from jumar.schema.errors import Exit, ToolError
from jumar.train_core.data.together import all_ranks
from jumar.train_core.run.nodes import Nodes
from jumar.train_core.run.writing import BLOCK

DATA = ".distcp"
METADATA = ".metadata"
NOT_WEIGHTS = ("optimizer.", "rng_state")
Span = tuple[str, int, int]
"""A file's name, and a beginning and an end in bytes."""
Holders = Mapping[str, frozenset[int]]
"""File -> the nodes that have it."""


def directory(iteration: Path) -> Path:
    return iteration.with_name(f"{iteration.name}.gathered")


@contextmanager
def gathered(nodes: Nodes, iteration: Path, files: Holders) -> Iterator[tuple[Path, Any]]:
    """A directory to load from, and megatron-core's strategy for it (None: its own). Collective; the directory is removed after.

    Raises ToolError (4) on all ranks where a disk is full.
    """
    if nodes.count == 1:
        yield iteration, None
        return
    with all_ranks() as ranks:
        carrier = Carrier(nodes, iteration, files, ranks.group)
        carrier.begin()
        try:
            yield carrier.here, _FromNodes(carrier.bring)
            nodes.each(lambda: shutil.rmtree(carrier.here))
        finally:
            if nodes.lead:
                shutil.rmtree(carrier.here, ignore_errors=True)


def gather_weights(nodes: Nodes, iteration: Path, files: Holders) -> Path:
    """A directory on rank 0's node with the weights alone of an iteration, which stays. Collective. Raises as `gathered`."""
    with all_ranks() as ranks:
        carrier = Carrier(nodes, iteration, files, ranks.group)
        try:
            carrier.begin()
            carrier.bring(_weights(carrier.here) if nodes.rank == 0 else ())
        except ToolError:
            if nodes.lead:
                shutil.rmtree(carrier.here, ignore_errors=True)
            raise
        if nodes.lead and nodes.here:
            shutil.rmtree(carrier.here, ignore_errors=True)
    return carrier.here


@dataclass(frozen=True, slots=True)
class Carrier:
    """Brings spans of files from the nodes that have them to those that ask. group: of gloo, over all ranks."""

    nodes: Nodes
    iteration: Path
    files: Holders
    group: Any

    @property
    def here(self) -> Path:
        return directory(self.iteration)

    def begin(self) -> None:
        """Links to what is here; what every reader needs whole, such as the metadata, is there afterwards."""
        self.nodes.each(self._link)
        sizes = self.nodes.each(lambda: {name: self._size(name) for name in self.files if not name.endswith(DATA)})
        whole = {name: size for each in sizes for name, size in each.items() if size is not None}
        self.bring([(name, 0, size) for name, size in sorted(whole.items())])

    def _link(self) -> None:
        shutil.rmtree(self.here, ignore_errors=True)
        self.here.mkdir()
        for name in self.files:
            if self.nodes.here in self.files[name]:
                (self.here / name).symlink_to(Path("..") / self.iteration.name / name)

    def _size(self, name: str) -> int | None:
        return (self.here / name).stat().st_size if self.nodes.here in self.files[name] else None

    def bring(self, spans: Iterable[Span]) -> None:
        """Each rank asks for its spans, and has them when all return. Collective."""
        asked: list[Any] = [None] * len(self.nodes.of)
        mine = [span for span in spans if self.nodes.here not in self.files[span[0]]]
        dist.all_gather_object(asked, mine, group=self.group)
        faults: list[OSError] = []
        wanted = [[span for rank in ranks for span in asked[rank]] for ranks in map(self.nodes.ranks_of, range(self.nodes.count))]
        for name, start, end, targets in segments(wanted):
            self._carry((min(self.files[name]), *targets), name, range(start, end), faults)

        def told() -> None:
            if faults:
                raise ToolError(
                    f"{self.here} cannot be filled from other nodes: {faults[0].strerror or faults[0]}",
                    hint=f"make room on the disk of {self.here.parent}: it is needed while the checkpoint is read",
                    code=Exit.ENVIRONMENT,
                )

        self.nodes.each(told)

    def _carry(self, chain: tuple[int, ...], name: str, span: range, faults: list[OSError]) -> None:
        """Bytes of a file from the first node to the second, from there to the third, and so on, block after block: nodes work at
        the same time. A fault of a disk is kept, and the blocks go on: the next in the chain counts on them."""
        leads = [self.nodes.leads[node] for node in chain]
        if self.nodes.rank not in leads:
            return
        at = leads.index(self.nodes.rank)
        for start in span[::BLOCK]:
            block = torch.zeros(min(BLOCK, span.stop - start), dtype=torch.uint8)
            if at:
                dist.recv(block, leads[at - 1], group=self.group)
            try:
                if at and not faults:
                    _write(self.here / name, start, block)
                elif not at:
                    _read(self.iteration / name, start, block)
            except OSError as fault:
                faults.append(fault)
            if at + 1 < len(leads):
                dist.send(block, leads[at + 1], group=self.group)


def _read(path: Path, start: int, block: torch.Tensor) -> None:
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        if file.readinto(block.numpy()) != len(block):  # type: ignore[arg-type]
            raise OSError(f"{path} ends too early")


def _write(path: Path, start: int, block: torch.Tensor) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        left = memoryview(block.numpy())  # type: ignore[arg-type]
        while left:
            written = os.pwrite(handle, left, start)
            left, start = left[written:], start + written
    finally:
        os.close(handle)


def joined(spans: Iterable[Span]) -> list[Span]:
    """The same bytes, each once, in few spans."""
    found: list[Span] = []
    for name, start, end in sorted(spans):
        if found and found[-1][0] == name and start <= found[-1][2]:
            found[-1] = (name, found[-1][1], max(end, found[-1][2]))
        else:
            found.append((name, start, end))
    return found


def segments(wanted: Sequence[Iterable[Span]]) -> Iterator[tuple[str, int, int, tuple[int, ...]]]:
    """What each node wants, as spans that do not overlap, each with all nodes that want it."""
    spans = [joined(each) for each in wanted]
    for name in sorted({span[0] for each in spans for span in each}):
        edges = sorted({edge for each in spans for span in each if span[0] == name for edge in span[1:]})
        for start, end in pairwise(edges):
            who = [
                node
                for node, each in enumerate(spans)
                if (at := bisect_right(each, (name, start, inf))) and _within(each[at - 1], name, end)
            ]
            if who:
                yield name, start, end, tuple(who)


def _within(span: Span, name: str, end: int) -> bool:
    return span[0] == name and end <= span[2]


class _FromNodes(TorchDistLoadShardedStrategy):  # type: ignore[misc]
    """megatron-core's way to load, after what this rank reads has been brought here."""

    def __init__(self, bring: Callable[[Iterable[Span]], None]) -> None:
        super().__init__()
        self.bring = bring

    def load(self, sharded_state_dict: ShardedStateDict, checkpoint_dir: Path) -> Any:
        self.bring(_needed(sharded_state_dict, FileSystemReader(checkpoint_dir).read_metadata()))
        return super().load(sharded_state_dict, checkpoint_dir)


def _needed(state: ShardedStateDict, metadata: Metadata) -> Iterator[Span]:
    """Where the stored pieces lie that meet what this rank holds."""
    for value in nested_values(state):
        if isinstance(value, ShardedObject):
            yield _span(metadata, MetadataIndex(value.unique_key))
        elif isinstance(value, ShardedTensor):
            size = (1,) * value.prepend_axis_num + tuple(value.local_shape)
            stored: Any = metadata.state_dict_metadata[value.key]
            for chunk in stored.chunks:
                if _meet(value.global_offset, size, chunk.offsets, chunk.sizes):
                    yield _span(metadata, MetadataIndex(value.key, chunk.offsets))


def _meet(start: Iterable[int], size: Iterable[int], other: Iterable[int], other_size: Iterable[int]) -> bool:
    return all(a < b + m and b < a + n for a, n, b, m in zip(start, size, other, other_size, strict=True))


def _span(metadata: Metadata, index: MetadataIndex) -> Span:
    stored = metadata.storage_data[index]
    return stored.relative_path, stored.offset, stored.offset + stored.length


def _weights(here: Path) -> list[Span]:
    """Where the weights lie; the metadata of the directory is made to name nothing else."""
    metadata = FileSystemReader(here).read_metadata()
    kept = {name: about for name, about in metadata.state_dict_metadata.items() if not name.startswith(NOT_WEIGHTS)}
    stored = {index: where for index, where in metadata.storage_data.items() if index.fqn in kept}
    metadata.state_dict_metadata, metadata.storage_data = kept, stored
    (here / METADATA).unlink()  # a link, or a copy
    (here / METADATA).write_bytes(pickle.dumps(metadata))
    return [_span(metadata, index) for index in stored]
