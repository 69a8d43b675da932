"""What a worker makes of one block: arrays of tokens as bytes, and what became of every record."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Any

from numpy.typing import NDArray

from jumar.data_prep.payloads import EXCERPT_CHARS

SHOWN = 3  # samples that a report renders
Buffer = bytes | NDArray[Any]
Checked = tuple[list[str], bytes, bytes, bool]  # texts, their ids and lengths as an engine gave them, whether with special tokens


@dataclass
class Key:
    """One output key's sequences: values one after another (`seal`ed: as bytes), and their lengths."""

    values: list[NDArray[Any]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    data: bytes = b""

    def add(self, values: NDArray[Any]) -> None:
        """One sequence more."""
        self.values.append(values)
        self.lengths.append(len(values))

    def seal(self) -> None:
        """Makes `data` of the values: cheaper to send."""
        self.data, self.values = b"".join(values.data for values in self.values), []


@dataclass
class Part:
    """A block's outcome.

    lines, blank: lines of the file it covers, and how many of them were empty.
    consumed:  bytes of its file through this block, where that is known.
    read:      records in it, good and bad.
    bad:       (line from 0 within the block, reason, detail, excerpt) of every record that is not in `keys`, or not all of it.
    rejected:  how many of the records are not in `keys` because something is wrong with them.
    keys:      the tokens.
    trained:   trained tokens of each sample.
    documents: sequences of each document, where that is not one.
    hashes:    a 64-bit hash of each sample, to count duplicates by.
    counts:    truncated, split, dropped: records; lost: tokens that were cut off.
    checked:   some texts and the ids an accelerator gave, for the reference to look at.
    kept:      (line, sequence within the block) of the first samples, which reports show.
    """

    block: int
    source: int
    base: int | None = None
    consumed: int = 0
    lines: int = 0
    blank: int = 0
    read: int = 0
    rejected: int = 0
    bad: list[tuple[int, str, str, str]] = field(default_factory=list)
    keys: dict[str, Key] = field(default_factory=dict)
    trained: list[int] = field(default_factory=list)
    documents: list[int] | None = None
    hashes: list[int] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    checked: list[Checked] = field(default_factory=list)
    kept: list[tuple[int, int]] = field(default_factory=list)
    fault: str | None = None

    def reject(self, line: int, reason: str, detail: str, value: Any, *, wrong: bool = True) -> None:
        """A record leaves the stream. wrong: False if it is in order and was only not wanted."""
        self.rejected += wrong
        self.bad.append((line, reason, detail, value if isinstance(value, str) else shortened(value)))

    def add(self, line: int, arrays: dict[str, NDArray[Any]], trained: int, *, hash_of: Buffer) -> None:
        """One sample: a sequence for every key."""
        for name, values in arrays.items():
            self.key(name).add(values)
        self.note(line, trained, hash_of)

    def key(self, name: str) -> Key:
        """An output key's sequences."""
        return self.keys.setdefault(name, Key())

    def note(self, line: int, trained: int, hash_of: Buffer, sequences: int | None = None) -> None:
        """What is kept of a sample beside its tokens. sequences: of its document, where that is not one."""
        if len(self.kept) < SHOWN:
            self.kept.append((line, len(self.trained)))
        if sequences is not None:
            self.documents = self.documents if self.documents is not None else []
            self.documents.append(sequences)
        self.trained.append(trained)
        raw = hash_of if isinstance(hash_of, bytes) else hash_of.data
        self.hashes.append(int.from_bytes(sha1(raw, usedforsecurity=False).digest()[:8], "little"))

    @property
    def tokens(self) -> int:
        """Tokens of all keys that are ids."""
        return sum(sum(key.lengths) for name, key in self.keys.items() if not name.endswith("labels"))

    def sealed(self) -> Part:
        """The same with the arrays of each key joined: cheaper to send."""
        self.bad.sort(key=lambda bad: bad[0])
        for key in self.keys.values():
            key.seal()
        return self


def shortened(value: Any) -> str:
    """The beginning of a record, as JSON."""
    import orjson

    try:
        text = orjson.dumps(value).decode()
    except (TypeError, ValueError):
        text = repr(value)
    return text[:EXCERPT_CHARS]
