"""A run's work folder: what has been made so far, and a journal of the blocks it was made of.

Files only grow. A line of the journal is written behind a block's bytes, so that the bytes that the journal counts are
whole, whatever a killed run left behind; what is beyond them is cut off when the run goes on.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from jumar.data_prep.part import SHOWN, Part
from jumar.schema.errors import Exit, ToolError

JOB, BLOCKS = "job.json", "blocks.jsonl"
TRAINED, DOCUMENTS, HASHES, BAD = "trained.i32", "documents.i32", "hashes.u64", "bad.jsonl"


@dataclass
class Totals:
    """Sums over blocks. sources: {index: {"records", "kept", "rejected", "tokens", "trained", "lines"}}."""

    blocks: int = 0
    read: int = 0
    kept: int = 0
    rejected: int = 0
    blank: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    sources: dict[int, Counter[str]] = field(default_factory=dict)
    bytes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)

    def add(self, entry: dict[str, Any]) -> None:
        """Counts one line of the journal."""
        source = self.sources.setdefault(entry["source"], Counter())
        if len(self.shown) < SHOWN:
            base = entry["base"] if entry["base"] is not None else source["lines"]
            for line, sequence in entry["shown"][: SHOWN - len(self.shown)]:
                self.shown.append({"source": entry["source"], "line": base + line + 1, "sample": self.kept + sequence})
        self.blocks += 1
        for name in ("read", "kept", "rejected", "blank"):
            setattr(self, name, getattr(self, name) + entry[name])
        self.counts.update(entry["counts"])
        self.bytes.update(entry["bytes"])
        source.update({"records": entry["read"], **{k: entry[k] for k in ("kept", "rejected", "tokens", "trained", "lines")}})
        if entry["fault"]:
            self.faults.append(entry["fault"])


class Store:
    """The work folder of one run, locked while it is open.

    names: the files it grows, of keys and beside them.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], keys: Iterable[str], *, documents: bool) -> None:
        self.folder, self.keys, self.totals, self.last = folder, tuple(keys), Totals(), -1
        self.names = [f"{key}.{kind}" for key in self.keys for kind in ("bin", "len")]
        self.names += [TRAINED, HASHES, BAD, *([DOCUMENTS] if documents else [])]
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(folder)
        self._lock = _locked(folder)
        self._files: dict[str, BinaryIO] = {}
        try:
            self._begin(facts)
        except BaseException:
            self.close()
            raise

    _journal_bytes = 0

    def _begin(self, facts: dict[str, Any]) -> None:
        """Writes the facts of a new folder; compares those of one that is gone on with, and cuts its files to what is whole."""
        text = json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False)
        file = self.folder / JOB
        if file.exists():
            self._go_on(file, text)
        else:
            _write_whole(file, text)
        for name in (*self.names, BLOCKS):
            handle = (self.folder / name).open("ab")
            handle.truncate(self.totals.bytes[name] if name != BLOCKS else self._journal_bytes)
            self._files[name] = handle

    def _go_on(self, file: Path, text: str) -> None:
        if file.read_text(encoding="utf-8") != text:
            other = ", ".join(_differing(read_facts(self.folder), json.loads(text))) or "what it is of"
            raise ToolError(
                f"{self.folder} holds what another run began: {other} differ",
                hint="finish that one, or add --force to throw it away",
            )
        sizes = {name: (self.folder / name).stat().st_size for name in self.names if (self.folder / name).exists()}
        for entry, size in journal(self.folder):
            grown = {name: self.totals.bytes[name] + entry["bytes"].get(name, 0) for name in self.names}
            if any(sizes.get(name, 0) < size for name, size in grown.items()):
                break
            self.totals.add(entry)
            self.last = entry["block"]
            self._journal_bytes += size

    def append(self, part: Part) -> None:
        """Writes a block's outcome behind those before it."""
        pieces: dict[str, bytes] = {}
        for name in self.keys:
            key = part.keys.get(name)
            pieces[f"{name}.bin"] = key.data if key else b""
            pieces[f"{name}.len"] = np.array(key.lengths, np.int32).tobytes() if key else b""
        pieces[TRAINED] = np.array(part.trained, np.int32).tobytes()
        pieces[HASHES] = np.array(part.hashes, np.uint64).tobytes()
        pieces[BAD] = b"".join(orjson.dumps([part.block, *bad], option=orjson.OPT_APPEND_NEWLINE) for bad in part.bad)
        if DOCUMENTS in self.names:
            pieces[DOCUMENTS] = np.array(part.documents or [], np.int32).tobytes()
        entry = {
            "block": part.block,
            "source": part.source,
            "base": part.base,
            "lines": part.lines,
            "blank": part.blank,
            "read": part.read,
            "kept": len(part.trained),
            "rejected": part.rejected,
            "counts": dict(part.counts),
            "trained": sum(part.trained),
            "tokens": part.tokens,
            "shown": part.kept,
            "fault": part.fault,
            "bytes": {name: len(piece) for name, piece in pieces.items() if piece},
        }
        for name, piece in pieces.items():
            if piece:
                self._files[name].write(piece)
                self._files[name].flush()
        self.append_entry(entry)

    def append_entry(self, entry: dict[str, Any]) -> None:
        """Writes a line of the journal; the bytes that it counts are written."""
        self._files[BLOCKS].write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
        self._files[BLOCKS].flush()
        self.totals.add(entry)
        self.last = entry["block"]

    def file(self, name: str) -> BinaryIO:
        """One of the files, for appending."""
        return self._files[name]

    def array(self, name: str, dtype: Any) -> NDArray[Any]:
        """One of the files as an array, mapped."""
        path = self.folder / name
        if not path.stat().st_size:
            return np.empty(0, dtype)
        return np.memmap(path, dtype, "r")

    def rejects(self, sources: list[str]) -> Iterator[dict[str, Any]]:
        """Every record that is not in the output, or not all of it: file, line (from 1), reason, detail, excerpt."""
        lines: Counter[int] = Counter()
        entries = (entry for entry, _ in journal(self.folder))
        entry: dict[str, Any] = {"block": -1}
        with (self.folder / BAD).open("rb") as file:
            for text in file:
                block, line, reason, detail, excerpt = orjson.loads(text)
                while entry["block"] != block:
                    if entry["block"] >= 0:
                        lines[entry["source"]] += entry["lines"]
                    entry = next(entries)
                base = entry["base"] if entry["base"] is not None else lines[entry["source"]]
                name = sources[entry["source"]]
                yield {"file": name, "line": base + line + 1, "reason": reason, "detail": detail, "record": excerpt}

    def close(self) -> None:
        """Closes the files and gives the folder free."""
        for file in self._files.values():
            file.close()
        self._lock.close()

    def remove(self) -> None:
        """Closes and deletes the folder."""
        self.close()
        shutil.rmtree(self.folder)


def journal(folder: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """(entry, bytes of its line) of the journal's whole lines."""
    path = folder / BLOCKS
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                entry = orjson.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n"):
                return
            yield entry, len(line)


def read_facts(folder: Path) -> dict[str, Any]:
    """What the run in a work folder is of; {} if there is none."""
    try:
        facts = json.loads((folder / JOB).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _differing(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[str]:
    """Names of what two runs differ in."""
    names = []
    for name in sorted({*one, *other}):
        a, b = one.get(name), other.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            names += _differing(a, b, f"{name}.")
        elif a != b:
            names.append(prefix + name)
    return names


def discard(folder: Path) -> None:
    """Deletes what a run left behind. ToolError while that run goes on, and if the folder is somebody else's."""
    if folder.exists():
        _refuse_foreign(folder)
        _locked(folder).close()
        shutil.rmtree(folder)


def _refuse_foreign(folder: Path) -> None:
    there = sorted(path.name for path in folder.iterdir())
    if there not in ([], ["lock"]) and JOB not in there and f"{Path(JOB).stem}.part" not in there:
        raise ToolError(f"{folder} is there, and is no run's: it holds {there[0]}", hint="choose another -o, or move it away")


def _locked(folder: Path) -> BinaryIO:
    lock = (folder / "lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ToolError(
            f"{folder} is in use: another process is making it", hint="wait for it, or choose another -o", code=Exit.ENVIRONMENT
        ) from None
    except OSError:  # a file system without locks
        pass
    return lock


def _write_whole(path: Path, text: str) -> None:
    beside = path.with_suffix(".part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
