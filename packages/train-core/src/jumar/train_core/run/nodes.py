"""Which ranks share a disk, and what one of them does for the others.

With `save.storage: shared` that is all ranks, and rank 0 writes for them. With `per_node` every machine has a disk of its own
under the same path, and its first rank does there what rank 0 does elsewhere.
"""

from __future__ import annotations

import copy
import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from jumar.schema.errors import Exit, ToolError
from jumar.train_core.run.ranks import disk, on_rank_0

T = TypeVar("T")
VISIBLE_S = 60
"""For how many seconds a network file system may hide what another node has just written."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """of: node of each rank; hosts: name of each node; rank: of this process."""

    of: tuple[int, ...]
    hosts: tuple[str, ...]
    rank: int

    @property
    def count(self) -> int:
        return len(self.hosts)

    @property
    def here(self) -> int:
        """This rank's node."""
        return self.of[self.rank]

    def ranks_of(self, node: int) -> list[int]:
        """The ranks of a node."""
        return [rank for rank, each in enumerate(self.of) if each == node]

    @property
    def leads(self) -> list[int]:
        """The first rank of each node."""
        return [self.of.index(node) for node in range(self.count)]

    @property
    def lead(self) -> bool:
        return self.rank == self.leads[self.here]

    def each(self, work: Callable[[], T]) -> list[T]:
        """What `work` returns on each node's first rank, by node, on all ranks. Collective.

        Raises ToolError on all ranks for the first node that has a fault; where there are several, it names the host.
        """
        if self.count == 1:
            return [on_rank_0(work)]
        found: tuple[T | None, ToolError | None] = (None, None)
        if self.lead:
            try:
                found = (work(), None)
            except (ToolError, OSError) as fault:
                told = copy.copy(fault) if isinstance(fault, ToolError) else disk(fault)
                told.message = f"on {self.hosts[self.here]}: {told.message}"
                found = (None, told)
        everyone: list[Any] = [None] * len(self.of)
        dist.all_gather_object(everyone, found)
        for _, each in everyone:
            if each is not None:
                raise each
        return [everyone[rank][0] for rank in self.leads]


def one_disk() -> Nodes:
    """All ranks on one node."""
    return Nodes((0,) * dist.get_world_size(), ("",), dist.get_rank())


def machines() -> Nodes:
    """The ranks by machine, as torchrun started them; without it, by host name. Collective."""
    environ, rank = os.environ, dist.get_rank()
    key: Any = environ.get("GROUP_RANK")
    if key is None and "LOCAL_WORLD_SIZE" in environ:
        key = rank // int(environ["LOCAL_WORLD_SIZE"])
    host = socket.gethostname()
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (str(host if key is None else key), host))
    keys = list(dict.fromkeys(key for key, _ in everyone))
    hosts = [next(host for key, host in everyone if key == each) for each in keys]
    if len(set(hosts)) < len(hosts):  # several torchruns on one machine
        hosts = [f"{host} (node {number})" for number, host in enumerate(hosts)]
    return Nodes(tuple(keys.index(key) for key, _ in everyone), tuple(hosts), rank)


def nodes_of(storage: str, root: Path | None) -> Nodes:
    """The nodes of a run, and whether its directory is what `save.storage` says. Collective.

    Raises ToolError (4): a directory that is not the same for all nodes, though it should be, or the other way round.
    """
    found = machines()
    if found.count > 1 and root is not None:
        _look(found, storage == "per_node", root)
    return found if storage == "per_node" else one_disk()


def _look(nodes: Nodes, apart: bool, root: Path) -> None:
    """Every node leaves a mark, and looks for those of the others."""
    marks = nodes.each(lambda: _leave_mark(root))
    try:
        seen = nodes.each(lambda: [_sees(root / mark, 0 if apart else VISIBLE_S) for mark in marks])
    finally:
        if nodes.lead:
            (root / marks[nodes.here]).unlink(missing_ok=True)
    for node, sees in enumerate(seen):
        other = next((other for other, found in enumerate(sees) if other != node and found == apart), None)
        if other is None:
            continue
        pair = f"{nodes.hosts[node]} and {nodes.hosts[other]}"
        if apart:
            raise ToolError(
                f"save.path {root} is the same directory on {pair}, where save.storage is per_node",
                hint="set save.storage=shared, or save.path to a directory on each node's own disk",
                code=Exit.ENVIRONMENT,
            )
        raise ToolError(
            f"save.path {root} is not the same directory on {pair}",
            hint="set save.storage=per_node, or save.path to a directory that all nodes see",
            code=Exit.ENVIRONMENT,
        )


def _leave_mark(root: Path) -> str:
    name = f".{uuid.uuid4().hex}.mark"
    root.mkdir(parents=True, exist_ok=True)
    (root / name).touch()
    return name


def _sees(mark: Path, patience_s: float) -> bool:
    end = time.monotonic() + patience_s
    while not mark.exists():
        if time.monotonic() >= end:
            return False
        time.sleep(0.2)
        os.listdir(mark.parent)  # a network file system looks again
    return True
