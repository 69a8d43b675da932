"""JSON values out of a stream, one after another, as they stand there: those of one array, or values with nothing around them."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Generator

_CHUNK_BYTES = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_NEXT_OBJECT = re.compile(r"\n(?=\{)")
_LONGEST_WORD = 12  # -Infinity, an escape: what seems broken so near the end of what is read may only be cut

# Finds where a value ends. Whether it is good JSON is for orjson to say, so that being lenient here loses nothing: NaN, control
# characters, integers of any length.
_DECODER = json.JSONDecoder(strict=False, parse_int=float)


def elements(
    source: io.BufferedReader, *, array: bool, max_bytes: int
) -> Generator[tuple[int, bytes], None, tuple[int | None, str] | None]:
    """Yields each value's line (from 0) and its bytes; returns the line (from 0) and kind of fault that ends the file, if any.

    Of values without an array around them, one that is broken is given as it stands, up to the next line that begins an object.
    In an array nothing tells where the next one begins, and a broken one ends it.
    """
    text = _Text(source)
    if array:
        if text.next_char() not in ("[", ""):
            return text.line, f"an array begins with [, not with {text.char!r}"
        text.position += 1
    while True:
        char = text.next_char()
        if array and char == ",":
            return text.line, "a value is missing before this comma"
        if array and char == "]":
            text.position += 1
            return None if not text.next_char() else (text.line, "something follows the end of the array")
        if not char:
            return (text.line, "the array is not closed") if array else None
        line, error = text.line, text.find_end(max_bytes)
        if (error and array) or error == _CUT:
            return line, error
        if error:
            yield line, text.take_broken(max_bytes)
            continue
        yield line, text.take()
        if array and text.next_char() == ",":
            text.position += 1
        elif array and text.char not in ("]", ""):
            return text.line, f"between two values of an array stands a comma, not {text.char!r}"


_CUT = "the file ends in the middle of a value"


class _Text:
    """What is decoded and not yet taken. Bytes that are not UTF-8 are kept (`surrogateescape`), to be found in their record."""

    def __init__(self, source: io.BufferedReader) -> None:
        self._source, self._ended = source, False
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text, self._end, self._counted, self._line = "", 0, 0, 0
        self.position = 0

    @property
    def line(self) -> int:
        """The line (from 0) of `position`."""
        self._line += self._text.count("\n", self._counted, self.position)
        self._counted = self.position
        return self._line

    @property
    def char(self) -> str:
        return self._text[self.position : self.position + 1]

    def _more(self, size: int) -> bool:
        """Reads on; lets go of what is taken."""
        if self._ended:
            return False
        data = self._source.read(size)
        self._ended = len(data) < size
        _ = self.line
        self._text = self._text[self.position :] + self._decoder.decode(data, self._ended)
        self.position = self._counted = 0
        return True

    def next_char(self) -> str:
        """Goes to the next character that is not white space; "" at the end."""
        while True:
            self.position = _SPACE.match(self._text, self.position).end()  # type: ignore[union-attr]  # matches always
            if self.char or not self._more(_CHUNK_BYTES):
                return self.char

    def find_end(self, max_bytes: int) -> str:
        """Finds where the value at `position` ends. Says why there is no end, else ""."""
        while True:
            try:
                _, self._end = _DECODER.raw_decode(self._text, self.position)
                if self._end < len(self._text) or self._ended or self._text[self._end - 1] in '}]"':
                    return ""
            except json.JSONDecodeError as error:
                if not (error.msg.startswith("Unterminated string") or self._cut_at(error.pos)):
                    return f"not JSON: {error.msg}"
            except RecursionError:
                return "not JSON: nested too deeply"
            if len(self._text) - self.position > max_bytes:
                return f"record too long: more than {max_bytes} bytes"
            if not self._more(max(_CHUNK_BYTES, len(self._text) - self.position)):
                return _CUT

    def _cut_at(self, position: int) -> bool:
        """Whether a value that seems broken at this position may only be cut there."""
        if not self._ended:
            return position >= len(self._text) - _LONGEST_WORD
        read = self._text.rstrip()
        return position >= len(read) or (position >= len(read) - _LONGEST_WORD and read[-1] not in "]}")

    def take(self) -> bytes:
        """The value that `find_end` found."""
        start, self.position = self.position, self._end
        return self._text[start : self._end].encode("utf-8", "surrogateescape")

    def take_broken(self, max_bytes: int) -> bytes:
        """What stands before the next line that begins with an object; of more than `max_bytes` the beginning."""
        kept = b""
        while True:
            found = _NEXT_OBJECT.search(self._text, self.position)
            start, self.position = self.position, found.end() if found else len(self._text)
            if not found and self._text.endswith("\n") and not self._ended:
                self.position -= 1  # the brace may be the first character of what is read next
            if len(kept) <= max_bytes:
                kept += self._text[start : self.position].encode("utf-8", "surrogateescape")
            if found or not self._more(_CHUNK_BYTES):
                return kept[: max_bytes + 1].rstrip()
