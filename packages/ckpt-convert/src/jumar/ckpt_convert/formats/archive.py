"""Zip archives as torch.save writes them: read as a tree of refs; laid out before a byte is written.

An archive is <root>/data.pkl, <root>/byteorder, <root>/version and a record <root>/data/<key> for each storage, none
compressed, each at a multiple of 64 bytes. torch also writes `.format_version`, which lets a reader compute where
records lie instead of looking; that holds for torch's own writer alone, so it is left out.
Source: caffe2/serialize/inline_container.cc of torch; PKWARE APPNOTE.TXT 6.3.10, 4.3 (headers) and 4.5.3 (zip64).
"""

from __future__ import annotations

import errno
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

from jumar.ckpt_convert.formats.builders import DAMAGED
from jumar.ckpt_convert.formats.pickling import Global as Global
from jumar.ckpt_convert.formats.pickling import TensorSpec as TensorSpec
from jumar.ckpt_convert.formats.pickling import dump
from jumar.ckpt_convert.formats.unpickle import unpickle
from jumar.ckpt_convert.tensors import check_regular
from jumar.schema.errors import ToolError

ALIGNMENT = 64
MAX_PICKLE_BYTES = 1 << 30
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number of torch.save before 1.6, pickled
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF


def read_archive(path: Path, *, skip: frozenset[str] = frozenset(), extent: tuple[int, int] | None = None) -> object:
    """The value tree of a torch.save file, each tensor as a `TensorRef`; reads headers and data.pkl, no tensor bytes.

    skip:   keys of the outermost dict whose values are dropped. They are unpickled and checked like the rest.
    extent: first byte and length of the archive, where it is one of many in a file.
    See `unpickle.unpickle` for the types of the tree. Raises ToolError if the file is no such archive, is cut short or
    damaged, comes from a big-endian machine, or asks for anything but tensors and values.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            start, size = extent or (0, os.fstat(file.fileno()).st_size)
            part = cast(BinaryIO, _Slice(file.fileno(), start, size))
            archive = _Archive(path, file.fileno(), _directory(path, part), start, size)
            value = archive.tree()
    except OSError as error:
        raise ToolError(f"{path}: cannot be read: {error.strerror or error}", hint="check the path") from error
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if key not in skip}
    return value


class _Slice(io.RawIOBase):
    """A range of bytes of an open file, as a file."""

    def __init__(self, fd: int, start: int, size: int) -> None:
        self.fd, self.start, self.size, self.here = fd, start, size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.here

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        here = (0, self.here, self.size)[whence] + offset
        if here < 0:
            raise OSError(errno.EINVAL, "a seek before the start")  # as files do: zipfile tries, and goes by it
        self.here = here
        return here

    def read(self, size: int = -1) -> bytes:
        left = max(self.size - self.here, 0)
        data = os.pread(self.fd, left if size < 0 else min(size, left), self.start + self.here)
        self.here += len(data)
        return data


def _directory(path: Path, file: BinaryIO) -> dict[str, zipfile.ZipInfo]:
    """The records of a zip file by name, in the order of its directory."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(len(_LEGACY))
    if start.startswith(_LEGACY):
        raise ToolError(
            f"{path}: is in the format of torch.save before 1.6; expected a zip archive",
            hint="save it again: torch.save(torch.load(path, map_location='cpu'), path)",
        )
    try:
        infos = zipfile.ZipFile(file).infolist()
    except Exception as error:  # zipfile fails in many ways on damaged files; all of them are bad input
        what = "is a zip archive, cut short or damaged" if start.startswith(b"PK\x03\x04") else "is not a zip archive"
        raise ToolError(
            f"{path}: {what} ({size} bytes, the first {start[:8]!r}: {str(error)[:100]}); expected a torch.save file",
            hint="copy the file again; a file of another kind has another reader",
        ) from error
    records = {info.filename: info for info in infos}
    if len(records) != len(infos):
        raise ToolError(f"{path}: {len(infos) - len(records)} records of the archive have one name", hint=DAMAGED)
    return records


class _Archive:
    """An open archive: where its records lie."""

    def __init__(self, path: Path, fd: int, infos: dict[str, zipfile.ZipInfo], start: int, size: int) -> None:
        self.path, self.fd, self.infos, self.start, self.size = path, fd, infos, start, size
        self.root = next(iter(infos), "").partition("/")[0]  # as torch does: that of the first record

    def tree(self) -> object:
        """The value tree of data.pkl."""
        byteorder = self.read("byteorder") if f"{self.root}/byteorder" in self.infos else b"little"
        if byteorder != b"little":
            raise ToolError(
                f"{self.path}: byteorder is {byteorder[:16]!r}; expected b'little'",
                hint="load it with torch on a little-endian machine, and save it again",
            )
        return unpickle(self.read("data.pkl"), self.path, lambda key: self.extent(f"data/{key}"))

    def read(self, name: str) -> bytes:
        offset, nbytes = self.extent(name)
        if nbytes > MAX_PICKLE_BYTES:
            raise ToolError(
                f"{self.path}: record {name} has {nbytes} bytes; at most {MAX_PICKLE_BYTES} are read",
                hint="tensors are records of their own: load it with torch, drop what is large and no tensor, save again",
            )
        return os.pread(self.fd, nbytes, offset)

    def extent(self, name: str) -> tuple[int, int]:
        """Byte offset (in the file) and length of a record.

        ToolError if it is missing, compressed, or not where it should be.
        """
        full, info = f"{self.root}/{name}", self.infos.get(f"{self.root}/{name}")
        if info is None:
            found = ", ".join(self.infos)[:200]
            raise ToolError(
                f"{self.path}: has no record {full[:100]!a}; its {len(self.infos)} records are {found!a}",
                hint="it is no torch.save file, or was cut short: copy it again",
            )
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise ToolError(
                f"{self.path}: record {full[:100]!a} is compressed or encrypted; expected it stored as it is",
                hint="unpack it and pack it without compression (zip -0), or save it again with torch",
            )
        start, raw_name = info.header_offset, info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
        head = os.pread(self.fd, 30 + len(raw_name), self.start + start) if start >= 0 else b""
        offset = start + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        if head[:4] != b"PK\x03\x04" or head[30:] != raw_name or offset + info.file_size > self.size:
            raise ToolError(
                f"{self.path}: record {full[:100]!a} of {info.file_size} bytes is not at byte {start} of {self.size}, "
                "where the directory has it",
                hint=DAMAGED,
            )
        return self.start + offset, info.file_size


@dataclass(frozen=True, slots=True)
class _Entry:
    """A record of a zip file that is to be written; offsets and length in bytes."""

    name: bytes
    header_offset: int
    nbytes: int

    @property
    def zip64(self) -> bytes:
        """Field of the local header with the two sizes, if they need 64 bits."""
        return struct.pack("<2H2Q", 1, 16, self.nbytes, self.nbytes) if self.nbytes >= _MAX32 else b""

    @property
    def offset(self) -> int:
        """Of the data: aligned, after a header and the padding in it, which takes 4 bytes or more."""
        end = self.header_offset + 30 + len(self.name) + len(self.zip64) + 4
        return end + -end % ALIGNMENT

    def fields(self, crc: int, extra: int) -> bytes:
        """What local and central header share: version, flags (UTF-8), stored, 1980-01-01, CRC, sizes, lengths."""
        size, version = min(self.nbytes, _MAX32), 45 if max(self.nbytes, self.header_offset) >= _MAX32 else 20
        return struct.pack("<5H3I2H", version, 0x800, 0, 0, 0x21, crc, size, size, len(self.name), extra)

    def local_header(self, crc: int) -> bytes:
        padding = self.offset - self.header_offset - 30 - len(self.name) - len(self.zip64) - 4
        extra = self.zip64 + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        return b"PK\x03\x04" + self.fields(crc, len(extra)) + self.name + extra

    def central_header(self, crc: int) -> bytes:
        wide = [self.nbytes] * 2 if self.nbytes >= _MAX32 else []
        wide += [self.header_offset] if self.header_offset >= _MAX32 else []
        extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        tail = struct.pack("<3H2I", 0, 0, 0, 0, min(self.header_offset, _MAX32))
        return b"PK\x01\x02\x2d\x00" + self.fields(crc, len(extra)) + tail + self.name + extra


@dataclass(frozen=True, slots=True)
class ArchiveRecord:
    """Where a tensor's bytes go. path: the keys that lead to it in the tree; offset: in the file, in bytes."""

    path: tuple[object, ...]
    spec: TensorSpec
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class ArchiveLayout:
    """A torch.save file that is to be written, all but the bytes of its tensors. Equal trees give equal files.

    size:    of the file, in bytes.
    records: one for each TensorSpec of the tree, in the order of the pickle.
    Write the skeleton, each tensor's bytes (little endian, C order) at its record's offset, then finish. Until then the
    file has no directory, so that no reader takes it for whole. It loads with `torch.load(weights_only=True)` if
    argparse.Namespace is allow-listed, with mmap too.
    """

    size: int
    records: list[ArchiveRecord]
    _small: list[tuple[_Entry, bytes]]
    _tensors: list[_Entry]

    @classmethod
    def plan(cls, value: object, *, root: str = "archive") -> ArchiveLayout:
        """The layout of a file that holds `value`, of the types in `pickling.dump`, under a top directory `root`."""
        if not root or "/" in root:
            raise ValueError(f"root {root!r} is not one directory's name")
        pickled, placed = dump(value)
        small, position = [], 0
        for name, data in ("data.pkl", pickled), ("byteorder", b"little"), ("version", b"3\n"):
            entry = _Entry(f"{root}/{name}".encode(), position, len(data))
            small.append((entry, data))
            position = entry.offset + len(data)
        tensors, records = [], []
        for key, item in enumerate(placed):
            entry = _Entry(f"{root}/data/{key}".encode(), position, item.spec.nbytes)
            tensors.append(entry)
            records.append(ArchiveRecord(item.path, item.spec, entry.offset, entry.nbytes))
            position = entry.offset + entry.nbytes
        layout = cls(0, records, small, tensors)
        return replace(layout, size=position + len(layout._directory([0] * len(tensors))))

    def write_skeleton(self, fd: int) -> None:
        """Give the file its full size, as a hole, and write the records that are not tensors."""
        os.ftruncate(fd, self.size)
        self.write_small(fd)

    def write_small(self, fd: int, start: int = 0) -> None:
        """Write the records that are not tensors. start: where in the file the archive begins, if it is one of many."""
        for entry, data in self._small:
            _pwrite(fd, entry.local_header(zlib.crc32(data)) + data, start + entry.header_offset)

    def finish(self, fd: int, crcs: Sequence[int], start: int = 0) -> None:
        """Write the tensors' headers and the directory. crcs: the CRC-32 of each record's bytes; start: as above."""
        for entry, crc in zip(self._tensors, crcs, strict=True):
            _pwrite(fd, entry.local_header(crc), start + entry.header_offset)
        directory = self._directory(crcs)
        _pwrite(fd, directory, start + self.size - len(directory))

    def content(self, tensors: Sequence[bytes] = ()) -> bytes:
        """The whole file in memory. tensors: the bytes of each record."""
        whole = bytearray(self.size)
        for entry, data in (*self._small, *zip(self._tensors, tensors, strict=True)):
            piece = entry.local_header(zlib.crc32(data)) + data
            whole[entry.header_offset : entry.header_offset + len(piece)] = piece
        directory = self._directory([zlib.crc32(data) for data in tensors])
        whole[-len(directory) :] = directory
        return bytes(whole)

    def _directory(self, crcs: Sequence[int]) -> bytes:
        """The central directory, with the zip64 end record that torch always writes."""
        entries = [(entry, zlib.crc32(data)) for entry, data in self._small] + list(zip(self._tensors, crcs, strict=True))
        central = b"".join(entry.central_header(crc) for entry, crc in entries)
        count, length, start = len(entries), len(central), entries[-1][0].offset + entries[-1][0].nbytes
        end64 = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, start)
        locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, start + length, 1)
        short = min(count, _MAX16)
        end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, short, short, min(length, _MAX32), min(start, _MAX32), 0)
        return central + end64 + locator + end


def _pwrite(fd: int, data: bytes, offset: int) -> None:
    """os.pwrite until all is written: one call may write less, and writes at most 2 GiB."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
