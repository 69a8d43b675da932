"""Files cut into blocks of whole records, in order; memory is bounded whatever their size.

Where a file is cut depends on the file and on `block_bytes` alone. Of plain JSON lines and text what is near the cuts is read, of
tables their metadata; all else goes through this process. What is wrong inside a file never raises here: it is a `BadRow` of the
block's rows, or, where nothing can be read on, the `Fault` of the file's last block.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import NamedTuple, TypeAlias

from jumar.data_prep.elements import elements
from jumar.data_prep.inputs import Input
from jumar.data_prep.payloads import (
    MAX_RECORD_BYTES,
    BadRow,
    Block,
    ByteRange,
    Elements,
    Fault,
    Fields,
    Lines,
    Payload,
    TableRange,
    excerpt,
)
from jumar.data_prep.streams import UTF8_BOM, Source, open_source
from jumar.schema.errors import ToolError

BLOCK_BYTES = 4 << 20
_PROBE_BYTES = 1 << 16


class _Limits(NamedTuple):
    block_bytes: int
    max_record_bytes: int


# What a cutter yields: payload and base. What it returns: where the file's fault is (a line from 1, or None) and what it is.
_Cuts: TypeAlias = Generator[tuple[Payload, int | None], None, tuple[int | None, str] | None]


def blocks(
    inputs: Iterable[Input], block_bytes: int = BLOCK_BYTES, *, skip: int = 0, max_record_bytes: int = MAX_RECORD_BYTES
) -> Iterator[Block]:
    """The blocks of all inputs in order, without the first `skip` of them.

    A block is some `block_bytes` of one file, more if a record is larger. A file without records has no block but for its fault.
    Raises ToolError if a file cannot be opened.
    """
    number = 0
    for index, source in enumerate(inputs):
        for payload, base, fault in _with_fault(source, _Limits(block_bytes, max_record_bytes)):
            if number >= skip:
                yield Block(number, index, source.kind, payload, base, fault)
            number += 1


def _with_fault(source: Input, limits: _Limits) -> Iterator[tuple[Payload, int | None, Fault | None]]:
    """A file's cuts, one held back so that the fault can go with the last."""
    cuts = _cutter(source)(source, limits)
    held: tuple[Payload, int | None] | None = None
    while True:
        try:
            cut = next(cuts)
        except StopIteration as end:
            fault = Fault(source.name, *end.value) if end.value else None
            break
        if held:
            yield *held, None
        held = cut
    if held or fault:
        yield *(held or (Lines(b"", limits.max_record_bytes), 0)), fault


def _cutter(source: Input) -> Callable[[Input, _Limits], _Cuts]:
    if source.kind in ("jsonl", "text"):
        return _ranges if source.path is not None and source.compression is None else _lines
    if source.kind in ("array", "values"):
        return _elements
    return _fields if source.kind in ("csv", "tsv") else _tables


def _ranges(source: Input, limits: _Limits) -> _Cuts:
    """A plain file's lines, left where they are: each block ends with the line that its last byte but one falls into."""
    assert source.path is not None
    try:
        file = os.open(source.path, os.O_RDONLY)
    except OSError as error:
        raise ToolError(f"{source.path}: {error.strerror}", hint="may you read it, and is its disk well?") from None
    try:
        size = os.fstat(file).st_size
        start = len(UTF8_BOM) if os.pread(file, len(UTF8_BOM), 0) == UTF8_BOM else 0
        first = start
        while start < size:
            end = _line_end(file, start + limits.block_bytes - 1, size)
            yield ByteRange(str(source.path), start, end - start, limits.max_record_bytes), 0 if start == first else None
            start = end
        return None
    except OSError as error:
        return None, f"cannot be read further: {error.strerror}"
    finally:
        os.close(file)


def _line_end(file: int, position: int, size: int) -> int:
    """The position behind the first newline at or after `position`; the file's size if there is none."""
    probe = _PROBE_BYTES
    while position < size:
        data = os.pread(file, probe, position)
        found = data.find(b"\n")
        if found >= 0:
            return position + found + 1
        if not data:
            break
        position += len(data)
        probe = min(2 * probe, 1 << 22)
    return size


def _lines(source: Input, limits: _Limits) -> _Cuts:
    """Lines that come out of a stream. Of one that its file's fault cuts, nothing is given: it would pass for a whole one."""
    base = 0
    with open_source(source.path, source.compression) as stream:
        while data := stream.read(limits.block_bytes):
            if not data.endswith(b"\n"):
                begun = data.rfind(b"\n") + 1
                if len(data) - begun <= limits.max_record_bytes:
                    data += stream.readline(limits.max_record_bytes + 1 - (len(data) - begun))
                if not data.endswith(b"\n") and _pass_over_line(stream) is not None:
                    data += b"\n"  # too long, and known by its length
            if stream.fault:
                data = data[: data.rfind(b"\n") + 1]
            count = data.count(b"\n")
            if data:
                yield Lines(data, limits.max_record_bytes), base
            base += count
        return (base + 1, stream.fault) if stream.fault else None


def _pass_over_line(stream: Source) -> int | None:
    """Reads to behind the next newline; returns how many quotation marks there were. None if nothing at all was left."""
    quotes = None
    while piece := stream.readline(_PROBE_BYTES):
        quotes = (quotes or 0) + piece.count(b'"')
        if piece.endswith(b"\n"):
            break
    return quotes


def _elements(source: Input, limits: _Limits) -> _Cuts:
    with open_source(source.path, source.compression) as stream:
        values = elements(stream, array=source.kind == "array", max_bytes=limits.max_record_bytes)
        texts: list[bytes] = []
        lines: list[int] = []
        filled = 0
        fault: tuple[int | None, str] | None = None
        while True:
            try:
                line, text = next(values)
            except StopIteration as end:
                fault = end.value
                break
            texts.append(text[: limits.max_record_bytes + 1])
            lines.append(line)
            filled += len(texts[-1])
            if filled >= limits.block_bytes:
                yield _as_elements(texts, lines, limits)
                texts, lines, filled = [], [], 0
        if texts:
            yield _as_elements(texts, lines, limits)
        if fault is None and not stream.fault:
            return None
        line_of_fault, what = fault or (None, "")
        return (None if line_of_fault is None else line_of_fault + 1), stream.fault or what


def _as_elements(texts: list[bytes], lines: list[int], limits: _Limits) -> tuple[Elements, int]:
    return Elements(texts, [line - lines[0] for line in lines], limits.max_record_bytes), lines[0]


class _CsvLines:
    """A file's lines as text for the csv module, counted; bytes that are not UTF-8 kept, of lines too long a stand-in."""

    def __init__(self, stream: Source, max_record_bytes: int) -> None:
        self._stream, self.max_bytes = stream, max_record_bytes
        self.read = self.size = 0  # lines, and their bytes
        self.too_long = False
        self.first = b""  # line of the record that is being read

    def __iter__(self) -> _CsvLines:
        return self

    def begin(self) -> int:
        """A record begins: returns its line (from 0)."""
        self.too_long, self.first = False, b""
        return self.read

    def __next__(self) -> str:
        raw = self._stream.readline(self.max_bytes + 1)
        if not raw or (self._stream.fault and not raw.endswith(b"\n")):
            raise StopIteration
        self.read += 1
        self.size += len(raw)
        self.first = self.first or raw
        if len(raw) > self.max_bytes and not raw.endswith(b"\n"):
            self.too_long = True
            quotes = raw.count(b'"') + (_pass_over_line(self._stream) or 0)
            return '"\n' if quotes % 2 else "x\n"  # opens or closes as the whole line would
        return raw.decode("utf-8", "surrogateescape")


def _fields(source: Input, limits: _Limits) -> _Cuts:
    """CSV (RFC 4180; quoted fields may hold newlines) or the same with tabs. The first line names the columns."""
    csv.field_size_limit(limits.max_record_bytes)
    with open_source(source.path, source.compression) as stream:
        lines = _CsvLines(stream, limits.max_record_bytes)
        reader = csv.reader(lines, delimiter="\t" if source.kind == "tsv" else ",", strict=True)
        try:
            columns = tuple(next(reader, ()))
        except csv.Error as error:
            return 1, f"the line that should name the columns is no CSV: {error}"
        decoded = all(name == name.encode("utf-8", "replace").decode() for name in columns)
        named = len(set(columns)) == len(columns) and "" not in columns and decoded
        if lines.read and not (columns and named):
            return (
                1,
                f"the first line must name the columns, each by another name, in UTF-8; it says {excerpt(lines.first).strip()!r}",
            )
        rows: list[tuple[int, list[str]] | BadRow] = []
        base, begun = lines.read, lines.size
        while (row := _next_row(reader, lines, base)) is not None:
            rows.append(row)
            if lines.size - begun >= limits.block_bytes:
                yield Fields(columns, rows), base
                rows, base, begun = [], lines.read, lines.size
        if rows:
            yield Fields(columns, rows), base
        return (lines.read + 1, stream.fault) if stream.fault else None


def _next_row(reader: Iterator[list[str]], lines: _CsvLines, base: int) -> tuple[int, list[str]] | BadRow | None:
    line = lines.begin() - base
    try:
        fields = next(reader)
    except StopIteration:
        return None
    except csv.Error as error:
        what = "record too long" if "field larger than field limit" in str(error) else "not CSV"
        last = lines.read - base - 1  # an open quote takes lines with it
        through = f"; with it go the lines through {lines.read}" if last > line else ""
        return BadRow(line, what, f"{error}{through}", excerpt(lines.first))
    if lines.too_long:
        return BadRow(line, "record too long", f"more than {lines.max_bytes} bytes", excerpt(lines.first))
    return line, fields


def _tables(source: Input, limits: _Limits) -> _Cuts:
    """Row groups of Parquet and record batches of Arrow, cut by the bytes that their metadata say they have."""
    from jumar.data_prep.tables import parts

    part, start, rows, filled, base = 0, 0, 0, 0.0, 0
    listed = parts(source)
    while True:
        try:
            number, count, size = next(listed)
        except StopIteration as end:
            if rows:
                yield TableRange(str(source.path), source.kind, part, start, rows), base
            return (None, end.value) if end.value else None
        done = 0
        while done < count:
            if not rows:
                part, start = number, done
            take = min(count - done, max(1, int((limits.block_bytes - filled) * count / max(size, 1))))
            rows, done, filled = rows + take, done + take, filled + take * size / count
            if filled >= limits.block_bytes or done < count:
                yield TableRange(str(source.path), source.kind, part, start, rows), base
                base, rows, filled = base + rows, 0, 0.0
