"""The bounds and the peer that benchmarks/data.py measures against; each a process of its own.

bound ENGINE TOKENIZER FILE OUT        orjson, the tokenizer, numpy append: one process, one loop
chat ENGINE TOKENIZER FILE OUT         the same with one Jinja rendering a record
slots ENGINE TOKENIZER FILE OUT        the same with an f-string a record
    pool TOKENIZER FILE OUT WORKERS        multiprocessing.Pool and lists of ids, as Megatron-LM's script
"""

from __future__ import annotations

import json
import multiprocessing
import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

BATCH_CHARS = 1 << 20


def encoder(engine: str, directory: str) -> Callable[[list[str]], tuple[Any, Any]]:
    file = f"{directory}/tokenizer.json"
    if engine == "fastokens":
        import fastokens

        fast = fastokens.Tokenizer.from_file(file)

        def encode(texts: list[str]) -> tuple[Any, Any]:
            ids, offsets = fast.encode_batch_flat(texts)
            return np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.uint64)

        return encode
    if engine == "gigatoken":
        import gigatoken

        giga = gigatoken.Tokenizer(file)

        def encode(texts: list[str]) -> tuple[Any, Any]:
            rows = giga.encode_batch(texts).layout
            return np.asarray(rows.content.data), np.asarray(rows.offsets)

        return encode
    import tokenizers

    plain = tokenizers.Tokenizer.from_file(file)

    def encode(texts: list[str]) -> tuple[Any, Any]:
        rows = [np.array(e.ids, np.uint32) for e in plain.encode_batch_fast(texts, add_special_tokens=False)]
        return np.concatenate(rows), np.cumsum([0, *map(len, rows)])

    return encode


def texts(file: str, made: Callable[[dict[str, Any]], str]) -> Iterator[list[str]]:
    import orjson

    batch: list[str] = []
    chars = 0
    with open(file, "rb") as lines:
        for line in lines:
            text = made(orjson.loads(line))
            batch.append(text)
            chars += len(text)
            if chars > BATCH_CHARS:
                yield batch
                batch, chars = [], 0
    if batch:
        yield batch


def loop(encode: Callable[[list[str]], tuple[Any, Any]], file: str, out: str, made: Callable[[dict[str, Any]], str]) -> None:
    lengths = []
    with open(f"{out}.bin", "wb") as binary:
        for batch in texts(file, made):
            ids, offsets = encode(batch)
            ids.astype(np.int32).tofile(binary)
            lengths.append(np.diff(offsets).astype(np.int32))
    index(f"{out}.idx", np.concatenate(lengths))


def index(path: str, lengths: Any) -> None:
    pointers = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)[:-1]]) * 4
    with open(path, "wb") as file:
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 4, len(lengths), len(lengths) + 1))
        for array in (lengths.astype(np.int32), pointers, np.arange(len(lengths) + 1)):
            array.tofile(file)


def rendering(directory: str) -> Callable[[dict[str, Any]], str]:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    template = environment.from_string(json.loads(Path(directory, "tokenizer_config.json").read_text())["chat_template"])
    return lambda record: template.render(messages=record["messages"], tools=None, add_generation_prompt=False)


def chatml(record: dict[str, Any]) -> str:
    return "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in record["messages"])


_tokenizer: Any = None


def _start(directory: str) -> None:
    global _tokenizer
    import tokenizers

    _tokenizer = tokenizers.Tokenizer.from_file(f"{directory}/tokenizer.json")


def _encode(line: str) -> list[int]:
    ids: list[int] = _tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids
    return ids


def pool(directory: str, file: str, out: str, workers: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    lengths = []
    with (
        multiprocessing.get_context("fork").Pool(workers, _start, (directory,)) as made,
        open(file, encoding="utf-8") as lines,
        open(f"{out}.bin", "wb") as binary,
    ):
        for ids in made.imap(_encode, lines, 32):
            binary.write(np.array(ids, np.int32).tobytes(order="C"))
            lengths.append(len(ids))
    index(f"{out}.idx", np.array(lengths))


def main() -> None:
    what, *rest = sys.argv[1:]
    if what == "pool":
        pool(rest[0], rest[1], rest[2], int(rest[3]))
        return
    engine, directory, file, out = rest
    made = {"bound": lambda record: record["text"], "slots": chatml}.get(what) or rendering(directory)
    loop(encoder(engine, directory), file, out, made)


if __name__ == "__main__":
    main()
