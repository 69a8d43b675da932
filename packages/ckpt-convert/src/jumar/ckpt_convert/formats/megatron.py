"""Megatron `torch` checkpoints: directories of mp_rank_* shards, read without megatron, torch or an accelerator, and written.

Layout of the files: megatron/training/checkpointing.py (get_checkpoint_name); reference: docs/formats.md.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jumar.ckpt_convert.formats import legacy
from jumar.ckpt_convert.formats.archive import ArchiveLayout, Global, TensorSpec, read_archive
from jumar.ckpt_convert.plan import Record
from jumar.ckpt_convert.tensors import TensorRef, check_regular
from jumar.schema.errors import ToolError

TRACKER, SHARD_FILE = "latest_checkpointed_iteration.txt", "model_optim_rng.pt"
SHARD_FILES = (SHARD_FILE, "model_rng.pt")  # the second: of Megatron-LM 3.0 with its distributed optimizer
OPTIMIZER_FILES = ("distrib_optim.pt", "optim.pt")
SHARD = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?(?:_(\d{3,}))?")
MODEL_KEY = re.compile(r"model\d*")
SKIPPED = frozenset({"opt_param_scheduler", "rng_state", "rerun_state_machine", "random_rng_state"})
DROPS = re.compile(r".*(\._extra_state|rotary(_pos)?_emb\.inv_freq|\.local_tokens_per_expert|\.ga_steps)")
"""Entries of a state dict that are no weights: TransformerEngine's fp8 state, RoPE buffers, router counters."""


def is_checkpoint(directory: Path) -> bool:
    """Whether a directory is a Megatron checkpoint: its root, one iteration, or shards."""
    if (directory / TRACKER).exists() or any(directory.glob("mp_rank_*")):
        return True
    return any(directory.glob("iter_*/mp_rank_*")) or any(directory.glob("release/mp_rank_*"))


def iteration_directory(root: Path, iteration: str | None, roots: Sequence[Path] = ()) -> Path:
    """The directory that holds a root's shards: the iteration asked for, else the tracker's, else the root itself.

    roots: of all nodes; Megatron writes the tracker on one of them only.
    """
    if iteration is None and any(root.glob("mp_rank_*")):
        return root
    iteration = iteration if iteration is None else str(iteration).removeprefix("iter_")
    if iteration is None:
        tracker = next((r / TRACKER for r in (root, *roots) if (r / TRACKER).exists()), None)
        if tracker is None:
            found = ", ".join(sorted(p.name for p in root.glob("iter_*"))) or "none"
            raise ToolError(f"{root}: no {TRACKER}; iterations here: {found}", hint="choose one with --iteration")
        check_regular(tracker)
        iteration = tracker.read_text(encoding="utf-8", errors="replace").strip()
    if iteration != "release" and not (iteration.isascii() and iteration.isdecimal()):
        raise ToolError(
            f"{root}: iteration {iteration[:40]!r}, expected a number or 'release'", hint="choose one with --iteration"
        )
    name = iteration if iteration == "release" else f"iter_{int(iteration):07d}"
    if not (root / name).is_dir():
        found = ", ".join(sorted(p.name for p in root.iterdir() if p.name.startswith("iter_") or p.name == "release")) or "none"
        raise ToolError(f"{root}: there is no {name}; iterations here: {found}", hint="choose one with --iteration")
    return root / name


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One shard: its directory's name, its file, its args as plain values, its iteration, its state dicts by key.

    version:         Megatron's checkpoint_version
    optimizer_bytes: of tensors of optimizer state, in the same file
    """

    name: str
    file: Path
    args: dict[str, Any]
    iteration: int
    states: dict[str, dict[str, TensorRef]]
    dropped: tuple[str, ...]
    version: float | None = None
    optimizer_bytes: int = 0


def find_shards(directories: Sequence[Path]) -> dict[str, Path]:
    """Shard name -> file, over all nodes' directories. Raises ToolError if two of them hold the same rank."""
    found: dict[str, Path] = {}
    for directory in directories:
        for entry in sorted(directory.glob("mp_rank_*")):
            if not SHARD.fullmatch(entry.name):
                continue
            file = next((entry / name for name in SHARD_FILES if (entry / name).exists()), None)
            if file is None:
                if optimizer_files([directory], entry.name):
                    continue  # optimizer state alone: Megatron-LM 3.0 has a directory for each of its data-parallel ranks
                raise ToolError(f"{entry} holds no {SHARD_FILE}", hint="copy the rank's files again")
            if entry.name in found:
                raise ToolError(
                    f"rank {entry.name} is there twice: {found[entry.name].parent} and {entry}",
                    hint="leave out the directory with the stale copy",
                )
            found[entry.name] = file
    if not found:
        where = ", ".join(map(str, directories))
        what = f"no {SHARD_FILE} beside the optimizer state" if optimizer_files(directories) else "no mp_rank_* directories"
        raise ToolError(f"{where}: {what}", hint="is this a Megatron checkpoint in the torch format?")
    return found


def optimizer_files(directories: Sequence[Path], ranks: str = "mp_rank_*") -> list[Path]:
    """Files of optimizer state beside the shards, which are not opened."""
    return [file for d in directories for name in OPTIMIZER_FILES for file in sorted(d.glob(f"{ranks}/{name}"))]


def read_shard(name: str, file: Path) -> ShardFile:
    """A shard's args and tensors, none of whose bytes are read. Raises ToolError if it is no Megatron shard."""
    content = read_archive(file, skip=SKIPPED)
    if not isinstance(content, dict):
        raise ToolError(
            f"{file}: a {type(content).__name__}, expected a Megatron checkpoint's dict", hint="is this a Megatron shard?"
        )
    optimizer_bytes = _bytes_of(content.pop("optimizer", None))
    states: dict[str, dict[str, TensorRef]] = {}
    dropped: list[str] = []
    for key, value in content.items():
        if isinstance(key, str) and MODEL_KEY.fullmatch(key) and isinstance(value, dict):
            states[key], gone = _state(file, key, value)
            dropped += gone
    if not states:
        keys = ", ".join(map(str, list(content)[:8]))
        raise ToolError(f"{file}: no 'model' or 'model0' (keys: {keys})", hint="is this a Megatron shard?")
    raw = content.get("args")
    args = dict(vars(raw)) if isinstance(raw, argparse.Namespace) else dict(raw) if isinstance(raw, dict) else {}
    iteration, version = content.get("iteration"), content.get("checkpoint_version")
    return ShardFile(
        name,
        file,
        args,
        iteration if isinstance(iteration, int) else 0,
        states,
        tuple(dropped),
        version if isinstance(version, int | float) else None,
        optimizer_bytes,
    )


def _bytes_of(tree: object) -> int:
    """Of the tensors in dicts, lists and tuples, each storage once."""
    found, left = dict[int, int](), [tree]
    while left:
        value = left.pop()
        if isinstance(value, TensorRef):
            found[value.offset] = max(found.get(value.offset, 0), value.nbytes)
        elif isinstance(value, dict | list | tuple):
            left += value.values() if isinstance(value, dict) else value
    return sum(found.values())


def _state(file: Path, key: str, value: Mapping[Any, Any]) -> tuple[dict[str, TensorRef], list[str]]:
    """Tensors by name, and the names of entries that are none: of a flat state dict, or of Megatron-LM's nested ones."""
    flat = dict(legacy.flat(value))
    old = legacy.is_legacy(flat)
    state: dict[str, TensorRef] = {}
    dropped = []
    for tensor, ref in flat.items():
        name = legacy.current(tensor) if old else tensor
        if DROPS.fullmatch(name):
            dropped.append(name)
        elif not isinstance(ref, TensorRef):
            raise ToolError(
                f"{file}: {key}/{tensor} is a {type(ref).__name__}, expected a tensor", hint="is this a Megatron shard?"
            )
        elif name in state:
            raise ToolError(
                f"{file}: {key} holds {name} under two spellings ({tensor})", hint="remove one; no Megatron writes both"
            )
        else:
            state[name] = ref
    return state, dropped


@dataclass(frozen=True, slots=True)
class MegatronFile:
    """A shard to be written, as `torch.save` would lay it out."""

    path: str
    records: tuple[Record, ...]
    layout: ArchiveLayout
    checksums = True

    @classmethod
    def plan(cls, path: str, records: Mapping[str, Sequence[Record]], args: Mapping[str, Any], iteration: int) -> MegatronFile:
        """records: by state-dict key ("model", "model0", ...). args: plain values; dtype names become torch dtypes."""
        value: dict[str, Any] = {
            "args": namespace(args),
            "checkpoint_version": 3.0,
            "iteration": iteration,
        }
        for key, group in records.items():
            value[key] = legacy.nested({r.name: TensorSpec(r.dtype, r.stored) for r in group})
        in_order = [dict(legacy.flat(legacy.nested({r.name: r for r in group}))) for group in records.values()]
        flat = tuple(r for group in in_order for r in group.values())
        return cls(path, flat, ArchiveLayout.plan(value))

    @property
    def offsets(self) -> tuple[int, ...]:
        return tuple(r.offset for r in self.layout.records)

    @property
    def size(self) -> int:
        return self.layout.size

    def begin(self, fd: int) -> None:
        self.layout.write_skeleton(fd)

    def finish(self, fd: int, crcs: Sequence[int]) -> None:
        self.layout.finish(fd, crcs)


def namespace(args: Mapping[str, Any]) -> argparse.Namespace:
    """Args as Megatron pickles them; names of torch dtypes become dtypes."""
    return argparse.Namespace(**{k: _plain(v) for k, v in args.items()})


def _plain(value: Any) -> Any:
    return Global("torch", value.removeprefix("torch.")) if isinstance(value, str) and value.startswith("torch.") else value


def tracker_text(iteration: str) -> bytes:
    return iteration.encode()
