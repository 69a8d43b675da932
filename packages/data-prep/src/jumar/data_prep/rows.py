"""A block's rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

import orjson

from jumar.data_prep.payloads import BadRow, Block, ByteRange, Elements, Fault, Fields, Lines, Row, TableRange, excerpt

_TOGETHER = 128  # lines that are parsed at one go; only if one of them is bad, one by one
_TOGETHER_BYTES = 4 << 20


class Rows:
    """Iterates over a block's records: `Row` or `BadRow`, in order, each with its line within the block.

    After the iteration:
    lines: how many lines of its file the block covers (of tables: rows), to add up where `Block.base` is None.
    blank: how many lines were blank and passed over.
    fault: the block's, or what was found wrong with the file only while it was read here.
    """

    def __init__(self, block: Block) -> None:
        self._block = block
        self.lines = self.blank = 0
        self.fault: Fault | None = block.fault

    def __iter__(self) -> Iterator[Row | BadRow]:
        self.lines = self.blank = 0
        payload = self._block.payload
        if isinstance(payload, ByteRange):
            return self._of_range(payload)
        if isinstance(payload, Lines):
            return self._of_lines(_split(payload.data), payload.max_record_bytes)
        if isinstance(payload, Elements):
            self.lines = payload.lines[-1] + 1
            return self._parsed(payload.texts, payload.lines, payload.max_record_bytes)
        return self._of_fields(payload) if isinstance(payload, Fields) else self._of_table(payload)

    def _of_range(self, payload: ByteRange) -> Iterator[Row | BadRow]:
        limit, left = payload.max_record_bytes, payload.size
        try:
            with open(payload.path, "rb") as file:
                file.seek(payload.offset)
                if left <= limit:
                    data = file.read(left)
                    left -= len(data)
                    yield from self._of_lines(_split(data), limit)
                while left > 0:
                    lines, taken = [], 0
                    while taken < min(left, _TOGETHER_BYTES) and (line := file.readline(min(left - taken, limit + 1))):
                        lines.append(line.removesuffix(b"\n"))
                        taken += len(line)
                        while not line.endswith(b"\n") and (line := file.readline(min(left - taken, _TOGETHER_BYTES))):
                            taken += len(line)
                    if not taken:
                        break
                    left -= taken
                    yield from self._of_lines(lines, limit)
        except OSError as error:
            self.fault = Fault(payload.path, None, f"cannot be read further: {error.strerror}")
            return
        if left > 0:
            self.fault = Fault(payload.path, None, "has become shorter since it was cut into blocks")

    def _of_lines(self, lines: list[bytes], limit: int) -> Iterator[Row | BadRow]:
        numbers = range(self.lines, self.lines + len(lines))
        self.lines += len(lines)
        return self._texts(lines, numbers, limit) if self._block.kind == "text" else self._parsed(lines, numbers, limit)

    def _texts(self, lines: list[bytes], numbers: Sequence[int], limit: int) -> Iterator[Row | BadRow]:
        for number, raw in zip(numbers, lines, strict=True):
            if len(raw) > limit:
                yield _bad(number, raw, limit)
                continue
            try:
                text = raw.removesuffix(b"\r").decode()
            except UnicodeDecodeError:
                yield _bad(number, raw, limit)
                continue
            if not text or text.isspace():
                self.blank += 1
            else:
                yield Row(number, {"text": text})

    def _parsed(self, texts: list[bytes], numbers: Sequence[int], limit: int) -> Iterator[Row | BadRow]:
        for start in range(0, len(texts), _TOGETHER):
            some, places = texts[start : start + _TOGETHER], numbers[start : start + _TOGETHER]
            try:
                values = list(map(orjson.loads, some)) if max(map(len, some)) <= limit else []
            except ValueError:
                values = []
            if values and set(map(type, values)) == {dict}:
                yield from map(
                    tuple.__new__, repeat(Row), zip(places, values, strict=True)
                )  # Row(place, value), without a call of Python each
            else:
                yield from self._one_by_one(some, places, limit)

    def _one_by_one(self, texts: list[bytes], numbers: Sequence[int], limit: int) -> Iterator[Row | BadRow]:
        for number, raw in zip(numbers, texts, strict=True):
            if len(raw) > limit:
                yield _bad(number, raw, limit)
                continue
            try:
                value = orjson.loads(raw)
            except ValueError as error:
                if raw.isspace() or not raw:
                    self.blank += 1
                else:
                    yield _bad(number, raw, limit, str(error))
                continue
            if type(value) is dict:
                yield Row(number, value)
            else:
                yield BadRow(number, "not an object", f"a JSON {_JSON_TYPES[type(value)]}", excerpt(raw))

    def _of_fields(self, payload: Fields) -> Iterator[Row | BadRow]:
        columns = payload.columns
        for row in payload.rows:
            self.lines = row[0] + 1
            if isinstance(row, BadRow):
                yield row
                continue
            line, fields = row
            if not fields:
                self.blank += 1
            elif len(fields) != len(columns):
                detail = f"{len(fields)} fields, and {len(columns)} columns"
                yield BadRow(line, "wrong number of fields", detail, excerpt(",".join(fields)))
            elif (where := _undecodable(fields)) is not None:
                yield BadRow(line, "not UTF-8", f"in column {columns[where]!r}", excerpt(",".join(fields)))
            else:
                yield Row(line, dict(zip(columns, fields, strict=True)))

    def _of_table(self, payload: TableRange) -> Iterator[Row | BadRow]:
        from jumar.data_prep import tables

        try:
            for batch in tables.rows(payload):
                first, self.lines = self.lines, self.lines + batch.num_rows
                try:
                    values = batch.to_pylist()
                except ValueError:  # text that is not UTF-8, for one
                    for number in range(first, self.lines):
                        yield _table_row(batch.slice(number - first, 1), number)
                else:
                    yield from map(Row, range(first, self.lines), values)
        except tables.UNREADABLE as error:
            tables.forget()
            lost, base = payload.rows - self.lines, self._block.base or 0
            what = f"this row and {lost - 1} more cannot be read: {' '.join(str(error).split())}"
            self.fault = Fault(payload.path, base + self.lines + 1, what)


_JSON_TYPES = {list: "array", str: "string", int: "number", float: "number", bool: "true or false", type(None): "null"}


def _split(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


def _bad(line: int, raw: bytes, limit: int, parser_says: str = "") -> BadRow:
    if len(raw) > limit:
        return BadRow(line, "record too long", f"more than {limit} bytes", excerpt(raw))
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return BadRow(line, "not UTF-8", f"at byte {error.start}", excerpt(raw))
    return BadRow(line, "not JSON", parser_says, excerpt(raw))


def _undecodable(fields: list[str]) -> int | None:
    """The first field with bytes that are not UTF-8."""
    for index, field in enumerate(fields):
        if not field.isascii():
            try:
                field.encode()
            except UnicodeEncodeError:
                return index
    return None


def _table_row(one: Any, line: int) -> Row | BadRow:
    try:
        return Row(line, one.to_pylist()[0])
    except UnicodeDecodeError as error:
        return BadRow(line, "not UTF-8", f"at byte {error.start} of a text", excerpt(bytes(error.object)))
    except ValueError as error:
        return BadRow(line, "cannot be read", str(error), "")
