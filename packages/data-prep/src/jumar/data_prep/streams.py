"""Files as streams of bytes that end where they can be read no further, and say why, instead of raising."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from jumar.schema.errors import Exit, ToolError

STANDARD_INPUT = "standard input"
UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = {b"\xff\xfe": "UTF-16LE", b"\xfe\xff": "UTF-16BE"}
_BUFFER_BYTES = 1 << 18


class Faulty(io.RawIOBase):
    """A raw stream over any `read(at_most)`: what is wrong with the file goes to `fault`, and the stream ends there.

    A leading UTF-8 byte order mark is passed over.
    """

    def __init__(self, read: Callable[[int], bytes], close: Callable[[], None]) -> None:
        super().__init__()
        self._read, self._close, self.fault = read, close, ""
        head = b""
        while len(head) < len(UTF8_BOM) and (more := self._some(len(UTF8_BOM) - len(head))):
            head += more
        self._head = head.removeprefix(UTF8_BOM)

    def close(self) -> None:
        if not self.closed:
            self._close()
        super().close()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed: any writable buffer
        data = self._some(len(buffer)) if not self._head else self._head[: len(buffer)]
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        return len(data)

    def _some(self, at_most: int) -> bytes:
        if self.fault:
            return b""
        try:
            return self._read(at_most)
        except EOFError:
            self.fault = "the compressed file is cut: it ends in the middle"
        except (OSError, zlib.error) as error:
            self.fault = f"cannot be read further: {error}"
        return b""


class Source(io.BufferedReader):
    """A buffered stream; `fault` says what ended it, "" if the file did."""

    def __init__(self, read: Callable[[int], bytes], close: Callable[[], None]) -> None:
        self._faulty = Faulty(read, close)
        super().__init__(self._faulty, _BUFFER_BYTES)

    @property
    def fault(self) -> str:
        return self._faulty.fault


def open_source(path: Path | None, compression: str | None) -> Source:
    """Opens a file (None: standard input) as its decompressed bytes.

    Raises ToolError if it cannot be opened; all that happens later is `Source.fault`.
    """
    try:
        if path is None:
            return Source(standard_input().read1, lambda: None)
        if compression == "zst":
            frames = _Zstandard(path)
            return Source(frames.read, frames.close)
        if compression == "gz":
            member = gzip.GzipFile(path)
            return Source(member.read1, member.close)
        file = io.FileIO(path)
        return Source(file.read, file.close)
    except OSError as error:
        raise ToolError(f"{path}: {error.strerror or error}", hint="may you read it, and is its disk well?") from None


def standard_input() -> io.BufferedReader:
    """The process's standard input, as bytes."""
    if sys.stdin is None:
        raise ToolError("the standard input is closed", hint="feed it, or name files", code=Exit.ENVIRONMENT)
    return cast(io.BufferedReader, sys.stdin.buffer)


def refuse_utf16(head: bytes, name: str) -> None:
    """Raises ToolError if a text begins with the byte order mark of UTF-16."""
    encoding = _UTF16_BOMS.get(head[:2])
    if encoding:
        file = f"{name} > {Path(name).stem}.utf8{Path(name).suffix}" if name != STANDARD_INPUT else "| jumar-data ..."
        hint = f"convert it: iconv -f {encoding} -t UTF-8 {file}"
        raise ToolError(f"{name} is {encoding} text (it begins with {head[:2].hex(' ')}); text must be UTF-8", hint=hint)


class _Zstandard:
    """Reads a .zst file (of any number of frames) through pyarrow, to the last byte that can be had of a damaged one.

    pyarrow gives nothing at all of a read that fails, so a failed read is done again byte by byte.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._position, self._bytewise = path, 0, False
        self._stream = self._open()

    def _open(self) -> BinaryIO:
        import pyarrow

        return cast(BinaryIO, pyarrow.input_stream(str(self._path), compression="zstd"))

    def read(self, at_most: int) -> bytes:
        if not self._bytewise:
            try:
                data = self._stream.read(at_most)
                self._position += len(data)
                return data
            except OSError:
                self.close()
                self._bytewise, self._stream = True, self._open()
                left = self._position
                while left:
                    left -= len(self._stream.read(min(left, _BUFFER_BYTES)))
        return self._stream.read(1)

    def close(self) -> None:
        self._stream.close()
