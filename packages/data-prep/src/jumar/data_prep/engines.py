"""Who turns text into ids: Hugging Face `tokenizers`, which is the reference, or a faster library that gives the same ids.

An engine encodes a list of texts into one flat array of ids and the offsets of the texts in it: no Python object per token.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

ENGINES = ("tokenizers", "fastokens", "gigatoken")


@dataclass(frozen=True, slots=True)
class Ids:
    """Ids of several texts: those of text i are flat[offsets[i] : offsets[i + 1]]."""

    flat: NDArray[np.uint32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> NDArray[np.uint32]:
        return self.flat[self.offsets[i] : self.offsets[i + 1]]


def joined(rows: list[NDArray[np.uint32]]) -> Ids:
    """Rows of ids as one flat array."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return Ids(np.concatenate(rows) if rows else np.empty(0, np.uint32), offsets)


class Engine(Protocol):
    """`special`: with the special tokens that the tokenizer adds around every text (BOS)."""

    name: str

    def encode(self, texts: list[str], *, special: bool = False) -> Ids: ...

    def decode(self, ids: list[int]) -> str:
        """The text, special tokens as they are written."""
        ...


class Refused(Exception):
    """A library does not take this tokenizer."""


class Reference:
    """Hugging Face `tokenizers`."""

    name = "tokenizers"

    def __init__(self, file: Path, added: tuple[str, ...] = ()) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(file))
        self.tokenizer.no_truncation()  # some files carry the settings of somebody's last call
        self.tokenizer.no_padding()
        if added:
            self.tokenizer.add_special_tokens(list(added))

    def encode(self, texts: list[str], *, special: bool = False) -> Ids:
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=special)
        return joined([np.array(encoding.ids, np.uint32) for encoding in encodings])

    def decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def encode_spans(self, texts: list[str], spans: list[list[tuple[int, int]]]) -> tuple[Ids, list[list[tuple[int, int]]]]:
        """Ids, and the tokens [first, last + 1) that hold any character of each text's spans [start, end)."""
        encodings = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        ids = joined([np.array(encoding.ids, np.uint32) for encoding in encodings])
        found = [
            [_tokens(encoding, start, end) for start, end in of_text] for encoding, of_text in zip(encodings, spans, strict=True)
        ]
        return ids, found


def _tokens(encoding: Any, start: int, end: int) -> tuple[int, int]:
    """Tokens of characters [start, end). Characters that no token holds (dropped by a normaliser) are passed over."""
    first = next((token for at in range(start, end) if (token := encoding.char_to_token(at)) is not None), None)
    if first is None:
        return 0, 0
    last = next(token for at in range(end - 1, start - 1, -1) if (token := encoding.char_to_token(at)) is not None)
    offsets = encoding.offsets
    while last + 1 < len(offsets) and start <= offsets[last + 1][0] < end:  # one character may be several tokens
        last += 1
    return first, last + 1


class Fastokens:
    """`fastokens` (PyPI)."""

    name = "fastokens"
    threaded_in: ClassVar[int | None] = None  # the process whose threads it uses: one that is forked from that has none

    def __init__(self, file: Path) -> None:
        from fastokens import Tokenizer

        try:
            self.tokenizer = Tokenizer.from_file(str(file))
        except ValueError as fault:
            raise Refused(str(fault)) from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def encode(self, texts: list[str], *, special: bool = False) -> Ids:
        Fastokens.threaded_in = os.getpid()
        flat, offsets = self.tokenizer.encode_batch_flat(texts, add_special_tokens=special)
        return Ids(np.frombuffer(flat, np.uint32), np.frombuffer(offsets, np.uint64).astype(np.int64))

    def decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False)
        return text


class Gigatoken:
    """`gigatoken` (PyPI). It adds no special tokens: `before` and `after` are those of the tokenizer's file.

    parallel: False in a process that was forked from another, whose threads it has not.
    """

    name = "gigatoken"

    def __init__(self, file: Path, around: tuple[list[int], list[int]] | None, *, parallel: bool) -> None:
        from gigatoken import Tokenizer

        if around is None:
            raise Refused("what its post-processor adds is not known")
        try:
            self.tokenizer = Tokenizer(file)
        except (ValueError, RuntimeError, OSError) as fault:
            raise Refused(str(fault)) from None
        self.before, self.after = (np.array(ids, np.uint32) for ids in around)
        self.parallel = parallel

    def encode(self, texts: list[str], *, special: bool = False) -> Ids:
        rows = self.tokenizer.encode_batch(texts, parallel=self.parallel).layout
        offsets, flat = np.asarray(rows.offsets).astype(np.int64), np.asarray(rows.content.data).astype(np.uint32, copy=False)
        flat, offsets = flat[offsets[0] : offsets[-1]], offsets - offsets[0]
        if special and len(self.before) + len(self.after):
            pieces = [piece for a, b in pairwise(offsets) for piece in (self.before, flat[a:b], self.after)]
            offsets = offsets + np.arange(len(offsets)) * (len(self.before) + len(self.after))
            flat = np.concatenate(pieces) if pieces else flat
        return Ids(flat, offsets)

    def decode(self, ids: list[int]) -> str:
        raw: bytes = self.tokenizer.decode(ids)
        return raw.decode(errors="replace")


def give_back() -> None:
    """Memory that loading took and nothing uses goes back to the system (glibc keeps it): some 90 MB of a large vocabulary."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def installed(name: str) -> bool:
    """Whether an engine's library is here."""
    return importlib.util.find_spec(name) is not None
