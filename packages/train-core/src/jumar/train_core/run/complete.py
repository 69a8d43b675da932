"""Which checkpoints of a run are there, and which are whole: by complete.json, which lists an iteration's files.

To look at what is here needs no torch, so that a run that is done is known at once.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jumar.train_core.run.nodes import Nodes

ITERATION = re.compile(r"iter_(\d{7,})")
COMPLETE = "complete.json"


def step_of(iteration: Path) -> int:
    """Of a checkpoint's directory."""
    return int(iteration.name[5:])


def iterations(root: Path | None) -> list[Path]:
    """Published checkpoints under a run directory, the newest first."""
    if root is None or not root.is_dir():
        return []
    found = {int(name[1]): path for path in root.iterdir() if (name := ITERATION.fullmatch(path.name)) and path.is_dir()}
    return [found[step] for step in sorted(found, reverse=True)]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a rank sees of a checkpoint on its node's disk.

    mark:    of what complete.json says, the same on all nodes; None: the directory is not there, or cannot be understood
    lacking: files of other nodes, in this rank's share, that are not here as well
    fault:   what is wrong with what should be here
    """

    mark: int | None = None
    lacking: frozenset[str] = frozenset()
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Whole:
    """A checkpoint that is whole over all nodes. holders: file -> the nodes that have it."""

    path: Path
    facts: dict[str, Any]
    holders: dict[str, frozenset[int]]


def look(path: Path, rank: int = 0, ranks: int = 1, *, content: bool = True) -> Seen:
    """A checkpoint against the sizes and checksums that it was published with.

    Each of `ranks` reads its share of the files; content: False looks at their sizes only, and at all of them.
    """
    if not path.is_dir():
        return Seen()
    lacking, fault = set[str](), None
    try:
        facts = read_facts(path)
        own, files = facts["files"], {**facts.pop("elsewhere", {}), **facts["files"]}
        mark = _crc_of({**facts, "files": files})
        for name in sorted(files)[rank::ranks] if content else sorted(files):
            if (wrong := _wrong(path / name, files[name], content)) is not None:
                lacking.add(name)
                fault = fault or (f"{name} {wrong}" if name in own else None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as broken:
        return Seen(fault=f"{COMPLETE} cannot be read: {broken}")
    return Seen(mark, frozenset(lacking), fault)


def _wrong(file: Path, expected: Any, content: bool) -> str | None:
    size, crc = expected
    if not file.is_file():
        return "is missing"
    if file.stat().st_size != size:
        return f"has {file.stat().st_size} bytes of {size}"
    if not content:
        return None
    from jumar.train_core.run.writing import checksum

    return "has other bytes than were written" if checksum(file)[1] != crc else None


def judge(seen: Sequence[tuple[int, Seen]], hosts: Sequence[str]) -> dict[int, frozenset[str]] | str:
    """What each node lacks of a checkpoint, of those that have any of it; or what is wrong with it.

    seen: of every rank, with its node; hosts: names of the nodes.
    """
    for node, each in seen:
        if each.fault is not None:
            return f"{each.fault} on {hosts[node]}" if len(hosts) > 1 else each.fault
    there = [(node, each) for node, each in seen if each.mark is not None]
    if not there:
        return "it is not there"
    for node, each in there:
        if each.mark != there[0][1].mark:
            return f"{hosts[there[0][0]]} and {hosts[node]} have different ones of that number"
    nodes = sorted({node for node, _ in there})
    lacking = {at: frozenset[str]().union(*(each.lacking for node, each in there if node == at)) for at in nodes}
    if nowhere := sorted(frozenset.intersection(*lacking.values())):
        without = [host for node, host in enumerate(hosts) if node not in lacking]
        nothing = f", and {', '.join(without)} has nothing of it" if without else ""
        return f"{nowhere[0]} is missing{' on all nodes' if len(hosts) > 1 else ''}{nothing}"
    return lacking


def damage(path: Path, rank: int = 0, ranks: int = 1, *, content: bool = True) -> str | None:
    """What is wrong with a checkpoint that is all on one disk; None if nothing is. The rest is as for `look`."""
    found = judge([(0, look(path, rank, ranks, content=content))], [""])
    return found if isinstance(found, str) else None


def whole(nodes: Nodes, path: Path, *, content: bool = True) -> Whole | str:
    """A checkpoint that is whole over all nodes, or what is wrong with it. Collective: each rank reads a share of its node's."""
    import torch.distributed as dist

    mates = nodes.ranks_of(nodes.here)
    seen = look(path, mates.index(nodes.rank), len(mates), content=content) if content or nodes.lead else Seen()
    everyone: list[Any] = [None] * len(nodes.of)
    dist.all_gather_object(everyone, seen)
    found = judge(list(zip(nodes.of, everyone, strict=True)), nodes.hosts)
    if isinstance(found, str):
        return found
    box: list[Any] = [read_facts(path) if nodes.rank == (source := _first(everyone)) else None]
    dist.broadcast_object_list(box, src=source)
    names = {**box[0].pop("elsewhere", {}), **box[0].pop("files")}
    return Whole(path, box[0], {name: frozenset(node for node in found if name not in found[node]) for name in names})


def _first(seen: Sequence[Seen]) -> int:
    return next(rank for rank, each in enumerate(seen) if each.mark is not None)


def step_here(root: Path | None) -> int | None:
    """The step of the newest checkpoint that has its files here. As a run does, without the tracker, which is written last."""
    for path in iterations(root):
        seen = look(path, content=False)
        if seen.mark is not None and seen.fault is None:
            return step_of(path)
    return None


def newest(nodes: Nodes, root: Path | None) -> Whole | None:
    """The newest checkpoint of a run whose files are there, on whatever nodes; None where there is none. Collective."""
    for path in all_iterations(nodes, root):
        if isinstance(found := whole(nodes, path, content=False), Whole):
            return found
    return None


def all_iterations(nodes: Nodes, root: Path | None) -> list[Path]:
    """Published checkpoints on any node, the newest first. Collective."""
    found = {path for each in nodes.each(lambda: iterations(root)) for path in each}
    return sorted(found, key=step_of, reverse=True)


def facts_text(facts: Mapping[str, Any]) -> str:
    """complete.json: facts, and a checksum of them."""
    return json.dumps({**facts, "crc32": _crc_of(facts)}, indent=2) + "\n"


def read_facts(path: Path) -> dict[str, Any]:
    """Of a checkpoint's directory. Raises OSError, or ValueError where it is not what was written."""
    facts: dict[str, Any] = json.loads((path / COMPLETE).read_text())
    if facts.pop("crc32", None) != _crc_of(facts):
        raise ValueError("it has other bytes than were written")
    return facts


def _crc_of(facts: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())
