"""A small tokenizer and inputs, good and bad, for the tests of whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from making import chats, make_tokenizer, write_jsonl


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files, one compressed, with broken lines in both."""
    folder = tmp_path_factory.mktemp("inputs")
    first = write_jsonl(folder / "a.jsonl", chats(400), broken=50)
    return [first, write_jsonl(folder / "b.jsonl.gz", chats(200, 1), broken=31)]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    for name, content in (("empty.jsonl", ""), ("blank.jsonl", "\n\n \n"), ("x.docx", "x")):
        (folder / name).write_text(content)
    (folder / "utf16.txt").write_bytes("text".encode("utf-16"))
    write_jsonl(folder / "chat.jsonl", chats(3))
    write_jsonl(folder / "text.jsonl", [{"text": "a"}] * 3)
    write_jsonl(folder / "pairs.jsonl", [{"instruction": "q", "chosen": "a", "rejected": "b"}] * 3)
    turns = [{"role": "system", "content": "a tensor has shape " * 9}, *chats(1)[0]["messages"][-2:]]
    write_jsonl(folder / "system.jsonl", [{"messages": turns}])
    return folder
