"""Runs of jumar-data, and their files compared with the reference's."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from megatron.core.datasets.indexed_dataset import IndexedDataset

import data_reference as reference
from fetched import npm_tokenizer
from jumar.data_prep.job import Job
from jumar.data_prep.pipeline import run

Rows = list[dict[str, Any]]
TUNING = ("input_ids", "attention_mask", "labels")


@functools.cache
def tokenizer_of(model: str) -> Any:
    return reference.tokenizer_of(npm_tokenizer(model))


def make(folder: Path, command: str, rows: Rows, model: str, bad: tuple[str, ...] = (), **options: Any) -> Path:
    """The prefix of what a run makes of rows, with bad lines among them."""
    source = write_rows(folder / "in.jsonl", rows, bad)
    (folder / "out").mkdir()
    options = {"workers": 1, "tokenizer_engine": "tokenizers", **options}
    run(Job(command, (str(source),), folder / "out" / "x", npm_tokenizer(model), **options), say=lambda word, text: None)
    return folder / "out" / "x"


def write_rows(path: Path, rows: Rows, bad: tuple[str, ...] = ()) -> Path:
    lines = [json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows)]
    for i, line in enumerate(bad):
        lines.insert(2 * i + 1, line)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def expect(prefix: Path, between: str, keys: dict[str, list[list[int]]], kind: str = "i", documents: Any = None) -> None:
    """The .bin and .idx files beside a prefix are these and no others, and megatron-core reads the same."""
    made = {file.name for file in prefix.parent.iterdir() if file.suffix in (".bin", ".idx")}
    level = "sentence" if documents else "document"
    names = {f"{prefix.name}{between}_{key}_{level}": rows for key, rows in keys.items()}
    assert made == {name + end for name in names for end in (".bin", ".idx")}
    for name, rows in names.items():
        data, index = reference.files(rows, kind, documents)
        assert (prefix.parent / f"{name}.bin").read_bytes() == data, name
        assert (prefix.parent / f"{name}.idx").read_bytes() == index, name
        assert read(prefix.parent / name) == rows


def read(prefix: Path | str) -> list[list[int]]:
    """What megatron-core reads."""
    dataset = IndexedDataset(str(prefix))  # its items are views, which end with it
    return [dataset[i].tolist() for i in range(len(dataset))]


def expect_tuning(prefix: Path, samples: list[reference.Sample]) -> None:
    assert samples
    ids, labels = [ids for ids, _ in samples], [labels for _, labels in samples]
    expect(prefix, "_packed", {"input_ids": ids, "labels": labels, "attention_mask": [[1] * len(row) for row in ids]})


ANSWER = "It is {}. 你好 🙂 <b>&amp;</b>\n\n1. first\n2. second "
TOOL = {
    "name": "weather",
    "description": "天气",
    "parameters": {"properties": {"city": {"type": "string", "description": "Where"}}, "required": ["city"]},
}


def conversation(i: int) -> list[dict[str, Any]]:
    turns = [{"role": "system", "content": f"You are number {i}. " * (i % 5)}] if i % 3 == 0 and i % 5 else []
    for k in range(i % 4 + 1):
        turns.append({"role": "user", "content": f"Question {i}, {k}? " * (1 + (i * k) % 7) if i + k else ""})
        turns.append({"role": "assistant", "content": ANSWER.format(i) * (1 + (i + k) % 3)})
    return turns


CHATS: Rows = [{"messages": conversation(i)} for i in range(24)]
BAD_CHATS = (
    '{"messages": [{"role": "user", "content": "Hi"}]}',
    "not JSON",
    '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " "}]}',
    '{"messages": []}',
    '{"messages": [{"role": "narrator", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}',
)


def chats(model: str, rows: Rows = CHATS, **how: Any) -> list[reference.Sample]:
    return [reference.chat(tokenizer_of(model), row["messages"], tools=row.get("tools"), **how) for row in rows]
