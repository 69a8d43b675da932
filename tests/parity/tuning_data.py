"""Conversations as tuning data, one by one and packed: of several turns, so that labels come and go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jumar.schema.indexed import IndexedWriter

VOCAB, EOD, PAD, IGNORED = 97, 96, 0, -100
Rows = list[dict[str, list[int]]]


@dataclass(frozen=True)
class Talk:
    """A conversation: its tokens, and the label of each (not shifted)."""

    tokens: list[int]
    labels: list[int]


def talks(count: int, longest: int, seed: int = 0) -> list[Talk]:
    """Prompts and answers by turns; an answer's tokens follow one another by few rules. The last one is an EOD."""
    generator = np.random.default_rng(seed)
    following = generator.integers(1, EOD, (VOCAB, 3))
    made = []
    for _ in range(count):
        length = int(generator.integers(4, longest + 1))
        tokens, labels, trained = [int(generator.integers(1, EOD))], [IGNORED], False
        while len(tokens) < length - 1:
            trained = not trained
            for _ in range(min(int(generator.integers(1, 6)), length - 1 - len(tokens))):
                tokens.append(int(following[tokens[-1], generator.integers(0, 3)]))
                labels.append(tokens[-1] if trained else IGNORED)
        made.append(Talk([*tokens, EOD], [*labels, EOD]))
    return made


def pack(made: Sequence[Talk], seq_len: int) -> list[list[Talk]]:
    """Into rows, in order."""
    rows: list[list[Talk]] = [[]]
    for talk in made:
        if sum(len(each.tokens) for each in rows[-1]) + len(talk.tokens) > seq_len:
            rows.append([])
        rows[-1].append(talk)
    return rows


def single_rows(made: Sequence[Talk]) -> Rows:
    return [{"input_ids": talk.tokens, "attention_mask": [1] * len(talk.tokens), "labels": talk.labels} for talk in made]


def packed_rows(rows: Sequence[Sequence[Talk]], seq_len: int, *, numbered: bool = True) -> Rows:
    """numbered: the mask counts conversations, as jumar-data and --neat-pack have it; else it is 1 (--pack of MindSpeed-LLM)."""
    found = []
    for row in rows:
        left = seq_len - sum(len(talk.tokens) for talk in row)
        mask = [number for number, talk in enumerate(row, 1) for _ in talk.tokens] + [0] * left
        found.append(
            {
                "input_ids": [token for talk in row for token in talk.tokens] + [PAD] * left,
                "attention_mask": mask if numbered else [1] * seq_len,
                "labels": [label for talk in row for label in talk.labels] + [IGNORED] * left,
            }
        )
    return found


def write(prefix: Path, rows: Rows) -> Path:
    for key in rows[0]:
        with IndexedWriter(prefix.with_name(f"{prefix.name}_packed_{key}_document"), np.int32) as writer:
            for row in rows:
                writer.add(row[key])
    return prefix


SEQ_LEN, COUNT = 32, 480


def everything() -> tuple[list[Talk], list[list[Talk]]]:
    """What `write_all` writes: conversations, and how they are packed."""
    made = talks(COUNT, 20)
    return made, pack(made, SEQ_LEN)


def write_all(folder: Path) -> None:
    """`talks`, `packed` and `eos` (packed, with no numbers)."""
    made, rows = everything()
    write(folder / "talks", single_rows(made))
    write(folder / "packed", packed_rows(rows, SEQ_LEN))
    write(folder / "eos", packed_rows(rows, SEQ_LEN, numbered=False))
