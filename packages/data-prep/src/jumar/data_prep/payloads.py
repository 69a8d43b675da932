"""What goes from the reader to a worker and what comes out of it: small, picklable, nothing open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

MAX_RECORD_BYTES = 64 << 20
EXCERPT_CHARS = 200


class Row(NamedTuple):
    """One record as it stands in the file. line: counted from 0 within the block."""

    line: int
    value: dict[str, Any]


class BadRow(NamedTuple):
    """A record that cannot be read. reason: a few fixed words; excerpt: its first 200 characters, bad bytes as \\xNN."""

    line: int
    reason: str
    detail: str
    excerpt: str


@dataclass(frozen=True, slots=True)
class Fault:
    """A file that cannot be read to its end. line: where, counted from 1 (of tables: the row); None where that says nothing."""

    file: str
    line: int | None
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}" if self.line is None else f"{self.file}, line {self.line}: {self.what}"


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Whole lines of a file that is read where it lies."""

    path: str
    offset: int
    size: int
    max_record_bytes: int


@dataclass(frozen=True, slots=True)
class Lines:
    """Whole lines themselves. One that is longer than `max_record_bytes` is cut behind that many bytes and one more."""

    data: bytes
    max_record_bytes: int


@dataclass(frozen=True, slots=True)
class Elements:
    """JSON values as they stand in the file (cut like Lines), and the line each begins on, from the block's base."""

    texts: list[bytes]
    lines: list[int]
    max_record_bytes: int


@dataclass(frozen=True, slots=True)
class Fields:
    """Rows of a CSV file: the line each begins on (from the block's base) and its fields, or a BadRow."""

    columns: tuple[str, ...]
    rows: list[tuple[int, list[str]] | BadRow]


@dataclass(frozen=True, slots=True)
class TableRange:
    """`rows` rows of a table, over as many parts as that takes, from row `start` of part number `part` on.

    columnar: "parquet" (its parts are row groups) or "arrow" (record batches).
    """

    path: str
    columnar: str
    part: int
    start: int
    rows: int


Payload: TypeAlias = ByteRange | Lines | Elements | Fields | TableRange


@dataclass(frozen=True, slots=True)
class Block:
    """Some whole records of one file.

    number:      of the block, from 0 over all inputs.
    input_index: the file's place among the inputs.
    kind:        as `Input.kind`.
    base:        lines (of tables: rows) of the file before this block, so that a row is on line base + row.line + 1. None where
                 only reading what lies before would tell: it is the sum of `Rows.lines` of the file's earlier blocks.
    fault:       on the last block of a file that ends before it should.
    """

    number: int
    input_index: int
    kind: str
    payload: Payload
    base: int | None
    fault: Fault | None = None


def excerpt(raw: bytes | str) -> str:
    """The first 200 characters; undecodable bytes as \\xNN (in text: those that `surrogateescape` kept)."""
    if isinstance(raw, str):
        raw = raw[:EXCERPT_CHARS].encode("utf-8", "surrogateescape")
    return raw[: 4 * EXCERPT_CHARS].decode("utf-8", "backslashreplace")[:EXCERPT_CHARS]
