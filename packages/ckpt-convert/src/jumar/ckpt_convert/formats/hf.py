"""Hugging Face model directories: safetensors or pytorch_model.bin, and the files beside them.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jumar.ckpt_convert.formats.archive import read_archive
from jumar.ckpt_convert.plan import Record
from jumar.ckpt_convert.tensors import DTYPES, TensorRef, check_regular, contiguous_strides, dtype_of
from jumar.schema.errors import ToolError

SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"
MAX_HEADER = 100_000_000
CARRIED_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".py", ".tiktoken", ".md")
CARRIED_NAMES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "merges", "vocab")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
NOT_CARRIED = (
    "manifest.json",
    "adapter_config.json",
    "trainer_state.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
)


def read_json(path: Path) -> Any:
    """A JSON file's value. Raises ToolError naming file and position."""
    check_regular(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ToolError(f"{path} is missing", hint="is the directory complete?") from None
    except (ValueError, RecursionError) as fault:
        raise ToolError(f"{path} is not JSON: {fault}", hint="fetch the file again") from None


def has_weights(directory: Path) -> bool:
    """Whether a directory holds Hugging Face weights."""
    return any((directory / n).exists() for n in (SAFETENSORS, f"{SAFETENSORS}.index.json", BIN, f"{BIN}.index.json")) or any(
        directory.glob("*.safetensors")
    )


def open_tensors(directory: Path) -> dict[str, TensorRef]:
    """Every tensor of a model directory by name; no bytes read.

    Raises ToolError for what is missing, truncated or contradictory.
    """
    for name, read in ((SAFETENSORS, read_safetensors), (BIN, read_bin)):
        index = directory / f"{name}.index.json"
        if index.exists():
            return _indexed(index, read)
        if (directory / name).exists():
            return read(directory / name)
    loose = sorted(directory.glob("*.safetensors"))
    if not loose:
        raise ToolError(
            f"{directory} holds no weights: none of {SAFETENSORS}, {SAFETENSORS}.index.json, {BIN}, {BIN}.index.json",
            hint="is this a Hugging Face model directory, and is the download complete?",
        )
    tensors: dict[str, TensorRef] = {}
    for file in loose:
        _check_count(file, loose)
        _merge(tensors, read_safetensors(file), file)
    return tensors


def _check_count(file: Path, present: Sequence[Path]) -> None:
    """model-00001-of-00003.safetensors says how many there are."""
    count = file.stem.rpartition("-of-")[2]
    if "-of-" in file.stem and count.isdigit() and int(count) != len(present):
        hint = "fetch the missing files" if len(present) < int(count) else "remove the files that do not belong to the model"
        raise ToolError(f"{file.parent}: {len(present)} of {int(count)} shards are there", hint=hint)


def _merge(tensors: dict[str, TensorRef], more: dict[str, TensorRef], file: Path) -> None:
    for name, ref in more.items():
        if name in tensors:
            raise ToolError(f"{name} is in two files: {tensors[name].file.name} and {file.name}", hint="remove the stale one")
        tensors[name] = ref


def _indexed(index: Path, read: Callable[[Path], dict[str, TensorRef]]) -> dict[str, TensorRef]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise ToolError(f"{index}: no weight_map that says which file holds which tensor", hint="fetch the file again")
    files = sorted(set(weight_map.values()))
    missing = [f for f in files if Path(f).name != f or not (index.parent / f).exists()]
    if missing:
        raise ToolError(
            f"{index.parent}: {len(missing)} of {len(files)} shards are missing: {', '.join(missing)}", hint="fetch them"
        )
    tensors: dict[str, TensorRef] = {}
    for file in files:
        _merge(tensors, read(index.parent / file), index.parent / file)
    absent = [n for n, f in weight_map.items() if n not in tensors or tensors[n].file.name != f]
    if absent:
        where = ", ".join(f"{n} ({weight_map[n]})" for n in absent[:5])
        raise ToolError(
            f"{index.name} names {len(absent)} tensor(s) that the files do not hold: {where}",
            hint="index and shards are of different versions; fetch both again",
        )
    return tensors


def read_safetensors(path: Path) -> dict[str, TensorRef]:
    """The tensors of one safetensors file, every range checked against the file."""
    check_regular(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise ToolError(f"{path}: {size} bytes, no safetensors header", hint="truncated, or not safetensors; fetch it again")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        entries = {n: _header_entry(n, e) for n, e in header.items() if n != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
        raise ToolError(f"{path}: the safetensors header is damaged ({fault})", hint="fetch the file again") from None
    start, here = 8 + length, 0
    for name, (dtype, shape, begin, end) in sorted(entries.items(), key=lambda e: (e[1][2], e[1][3])):
        item = dtype_of(dtype, f"{path}: {name}").itemsize
        if begin != here or end - begin != math.prod(shape) * item:
            raise ToolError(
                f"{path}: {name} claims bytes {begin} to {end}, expected {here} to {here + math.prod(shape) * item} "
                f"for {dtype} {list(shape)}",
                hint="the header is damaged; fetch the file again",
            )
        here = end
    if start + here != size:
        what = "truncated" if size < start + here else "followed by foreign bytes"
        raise ToolError(f"{path}: {size} bytes, but its header says {start + here}: {what}", hint="fetch the file again")
    return {n: TensorRef(d, s, path, start + b, contiguous_strides(s)) for n, (d, s, b, _) in entries.items()}


def _header_entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape, first byte, end. Raises ValueError for what is not of the kind that the format prescribes."""
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not isinstance(dtype, str) or not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise ValueError(f"{name}: {str(entry)[:200]}")
    return dtype, shape, begin, end


def read_bin(path: Path) -> dict[str, TensorRef]:
    """The tensors of a state dict that torch.save wrote."""
    state = read_archive(path)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise ToolError(f"{path}: a {type(state).__name__}, expected a state dict", hint="save the state dict alone")
    foreign = [str(k) for k, v in state.items() if not isinstance(v, TensorRef)]
    if foreign:
        raise ToolError(f"{path}: entries that are no tensors: {', '.join(foreign[:5])}", hint="save the state dict alone")
    return state


def carried_files(directory: Path) -> Iterator[Path]:
    """What a model needs beside its weights: config, generation config, tokenizer, chat templates, remote code, licence.

    Relative paths, of the directory and of the folders in it that are not models or checkpoints themselves.
    """
    for path in sorted(p for p in directory.iterdir() if not p.name.startswith(".")):
        if path.is_file() and _is_carried(path.name):
            yield path.relative_to(directory)
        elif path.is_dir() and not (path / "config.json").exists():
            inner = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
            if not any(p.suffix in WEIGHT_SUFFIXES for p in inner):
                yield from (p.relative_to(directory) for p in inner if _is_carried(p.name))


def left_behind(directory: Path) -> list[str]:
    """What of a model directory is neither weights nor carried along: its files, and folders of which nothing is."""
    carried = {p.parts[0] for p in carried_files(directory)}
    shown = (p for p in sorted(directory.iterdir()) if not p.name.startswith(".") and p.name not in carried)
    weights = (SAFETENSORS, BIN, "model-", "pytorch_model-", "manifest.json")
    return [p.name for p in shown if not p.name.startswith(weights)]


def _is_carried(name: str) -> bool:
    if name in NOT_CARRIED or name.endswith(".index.json"):
        return False
    return name.endswith(CARRIED_SUFFIXES) or name.split(".")[0] in CARRIED_NAMES


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """A safetensors file to be written: header first, then the records one after the other."""

    path: str
    records: tuple[Record, ...]
    header: bytes

    @classmethod
    def plan(cls, path: str, records: Sequence[Record]) -> SafetensorsFile:
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        here = 0
        for r in records:
            entries[r.name] = {"dtype": r.dtype, "shape": list(r.stored), "data_offsets": [here, here + r.nbytes]}
            here += r.nbytes
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return cls(path, tuple(records), struct.pack("<Q", len(text)) + text)

    @property
    def offsets(self) -> tuple[int, ...]:
        here, offsets = len(self.header), []
        for record in self.records:
            offsets.append(here)
            here += record.nbytes
        return tuple(offsets)

    @property
    def size(self) -> int:
        return len(self.header) + sum(r.nbytes for r in self.records)

    checksums = False

    def begin(self, fd: int) -> None:
        os.ftruncate(fd, self.size)
        os.pwrite(fd, self.header, 0)

    def finish(self, fd: int, crcs: Sequence[int]) -> None:
        """Nothing: safetensors has no checksums."""


def plan_files(records: Sequence[Record], max_shard_bytes: int) -> tuple[list[SafetensorsFile], dict[str, bytes]]:
    """The files for these tensors, none above `max_shard_bytes` unless one tensor is, and the index if there are several."""
    groups: list[list[Record]] = [[]]
    held = 0
    # aligned as the safetensors library does: wider elements first
    for record in sorted(records, key=lambda r: -DTYPES[r.dtype].itemsize):
        if groups[-1] and held + record.nbytes > max_shard_bytes:
            groups.append([])
            held = 0
        groups[-1].append(record)
        held += record.nbytes
    if len(groups) == 1:
        return [SafetensorsFile.plan(SAFETENSORS, groups[0])], {}
    names = [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    files = [SafetensorsFile.plan(name, group) for name, group in zip(names, groups, strict=True)]
    weight_map = {record.name: file.path for file in files for record in file.records}
    total = sum(r.nbytes for r in records)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return files, {f"{SAFETENSORS}.index.json": (json.dumps(index, indent=2) + "\n").encode()}
