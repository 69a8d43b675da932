"""samples_NAME.jsonl: a line for every document and answer, in lm-eval's form; while a run goes on, also what it resumes from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from jumar.eval.items import Item
from jumar.eval.metrics import Judge, measured
from jumar.eval.requests import Response
from jumar.eval.task import Task
from jumar.schema.errors import ToolError, writing

Sample = dict[str, Any]
COMPARED = ("doc_id", "doc_hash", "filter", "metrics", "target", "filtered_resps")
"""What there is of every document."""
WHOLE = (*COMPARED, "doc", "arguments", "resps")


def samples_of(task: Task, item: Item, responses: Sequence[Response], judge: Judge | None = None) -> list[Sample]:
    """What is written of one document: one object for each way in which its answers are read."""
    values = [r.value for r in responses]
    arguments = [request.arguments() for request in item.requests]
    base: Sample = {
        "doc_id": item.number,
        "doc": item.doc,
        "target": str(item.target),
        "arguments": {f"gen_args_{i}": {f"arg_{j}": a for j, a in enumerate(args)} for i, args in enumerate(arguments)},
        "resps": [[_plain(value)] for value in values],
    }
    hashes = {
        "doc_hash": _hash(json.dumps(item.doc, indent=2, ensure_ascii=False, default=str)),
        "prompt_hash": _hash(arguments[0][0]),
        "target_hash": _hash(str(item.target)),
    }
    cut = {"truncated": True} if any(r.truncated for r in responses) else {}
    out = []
    for name, read, found, verdicts in measured(task, item, values, judge):
        own: Sample = {"filtered_resps": [_plain(v) for v in read], "filter": name, "metrics": list(found)}
        ran = {"verdicts": [asdict(verdict) for verdict in verdicts]} if verdicts else {}
        out.append({**base, **own, **hashes, **cut, **ran, **found})
    return out


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Journal:
    """The samples of one unit. `add` writes a document's lines at once; `close` puts all in the order of the documents.

    path: None where nothing is kept. answers: lines of a document.
    Raises ToolError (3) where what is there is damaged; a line that was torn at the end is not.
    """

    def __init__(self, path: Path | None, answers: int) -> None:
        self.samples: dict[int, list[Sample]] = {}
        self._file: BinaryIO | None = None
        self.path = path
        end = self._read(path, answers) if path is not None and path.exists() else 0
        if path is not None:
            self._file = path.open("r+b" if path.exists() else "wb")
            self._file.truncate(end)
            self._file.seek(end)

    def _read(self, path: Path, answers: int) -> int:
        """What an earlier run has written; returns where its last whole document ends."""
        end = at = 0
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            at += len(line)
            if not line.endswith(b"\n"):
                break
            try:
                sample = _sample(line, WHOLE)
            except ValueError as fault:
                hint = "remove the file, or start again with --force"
                raise ToolError(f"{path}:{number} is damaged: {fault}", hint=hint) from None
            known = self.samples.setdefault(sample["doc_id"], [])
            known.append(sample)
            if len(known) == answers:
                end = at
        self.samples = {doc: known for doc, known in self.samples.items() if len(known) == answers}
        return end

    def add(self, samples: Sequence[Sample]) -> None:
        """One document's lines, in one write."""
        self.samples[samples[0]["doc_id"]] = list(samples)
        if self._file is not None:
            with writing(self.path):
                self._file.write("".join(_line(sample) for sample in samples).encode())
                self._file.flush()

    def close(self) -> None:
        """The same documents give the same bytes, in whatever order they were answered."""
        if self._file is None or self.path is None:
            return
        self._file.close()
        ordered = "".join(_line(sample) for doc in sorted(self.samples) for sample in self.samples[doc]).encode()
        if self.path.read_bytes() != ordered:
            part = self.path.with_name(self.path.name + ".part")
            with writing(self.path):
                part.write_bytes(ordered)
                os.replace(part, self.path)

    def values(self, metrics: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
        """answer -> metric -> value of each document, in their order."""
        out: dict[str, dict[str, list[Any]]] = {}
        names = list(metrics)
        for doc in sorted(self.samples):
            for sample in self.samples[doc]:
                for name in names:
                    out.setdefault(sample["filter"], {}).setdefault(name, []).append(sample[name])
        return out


def _line(sample: Mapping[str, Any]) -> str:
    return json.dumps(sample, ensure_ascii=False, default=str) + "\n"


def _sample(line: str | bytes, keys: Sequence[str]) -> Sample:
    """Raises ValueError for a line that is no JSON, or has not all keys, or a metric without its value."""
    try:
        sample = json.loads(line)
    except ValueError as fault:
        raise ValueError(f"not JSON: {fault}") from None
    if not isinstance(sample, dict):
        raise ValueError(f"a {type(sample).__name__}, expected an object")
    metrics = sample.get("metrics")
    if lacking := [key for key in (*keys, *(metrics if isinstance(metrics, list) else ())) if key not in sample]:
        raise ValueError(f"it lacks {', '.join(map(str, lacking))}")
    if not isinstance(metrics, list) or not isinstance(sample["doc_id"], int):
        raise ValueError("metrics is a list, doc_id a number")
    return sample


def read_samples(path: Path, keys: Sequence[str] = COMPARED) -> list[Sample]:
    """A samples file, ours or lm-eval's. Raises ToolError (3) for what is damaged, or lacks one of these keys."""
    out = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                out.append(_sample(line, keys))
            except ValueError as fault:
                hint = "was the run stopped? --resume ends it; else score it again"
                raise ToolError(f"{path}:{number} is damaged: {fault}", hint=hint) from None
    return out
