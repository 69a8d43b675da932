"""Parquet and Arrow files: what parts they have, for the process that cuts them; the rows of a range, for the one that reads."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from jumar.data_prep.inputs import Input
from jumar.data_prep.payloads import TableRange

_BATCH_ROWS = 256
_ARROW_FILE_MAGIC = b"ARROW1\x00\x00"
_CHANGED = "the file has become shorter since it was cut into blocks"
UNREADABLE = (pa.ArrowException, OSError, ValueError, EOFError)


def parts(source: Input) -> Generator[tuple[int, int, int], None, str]:
    """Yields (number, rows, bytes) of each row group or record batch; returns what is wrong with the file, "" if nothing is."""
    if not source.size:
        return ""
    try:
        if source.kind == "parquet":
            metadata = pq.read_metadata(source.path)
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                yield number, group.num_rows, group.total_byte_size
        else:
            for number, batch in enumerate(_arrow_batches(str(source.path))):
                yield number, batch.num_rows, batch.nbytes
    except UNREADABLE as error:
        return f"cannot be read{' further' if source.kind == 'arrow' else ''}: {_one_line(error)}"
    return ""


def rows(wanted: TableRange) -> Iterator[pa.RecordBatch]:
    """The rows of the range, in small batches. Raises one of UNREADABLE where the file is damaged."""
    left, part, start = wanted.rows, wanted.part, wanted.start
    while left > 0:
        for batch in _reader(wanted.path, wanted.columnar).read(part, start, left):
            left -= batch.num_rows
            yield batch
        part, start = part + 1, 0


class _Reader:
    """A file that is open at a place: the ranges a worker reads follow one another, and going on from there costs least."""

    def __init__(self, path: str, columnar: str) -> None:
        self.path, self.columnar, self.version = path, columnar, _version(path)
        self._file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) if columnar == "parquet" else None
        self._arrow: Iterator[pa.RecordBatch] = iter(())
        self._next_part = 0  # of an Arrow file
        self._part, self._row = -1, 0
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._held: pa.RecordBatch | None = None

    def read(self, part: int, start: int, count: int) -> Iterator[pa.RecordBatch]:
        """At most `count` rows of one part, from row `start` of it on."""
        if part != self._part or start < self._row:
            self._begin(part)
        while count > 0:
            batch, self._held = self._held or next(self._batches, None), None
            if batch is None:
                return
            passed = min(max(start - self._row, 0), batch.num_rows)
            taken = min(count, batch.num_rows - passed)
            self._row += passed + taken
            count -= taken
            if passed + taken < batch.num_rows:
                self._held = batch.slice(passed + taken)
            if taken:
                yield batch.slice(passed, taken)

    def _begin(self, part: int) -> None:
        self._part, self._row, self._held = part, 0, None
        if self._file is not None:
            if part >= self._file.num_row_groups:
                raise EOFError(_CHANGED)
            self._batches = self._file.iter_batches(_BATCH_ROWS, row_groups=[part])
            return
        if part < self._next_part or not self._next_part:
            self._arrow, self._next_part = _arrow_batches(self.path), 0
        for _ in range(part - self._next_part):
            next(self._arrow, None)
        self._next_part = part + 1
        whole = next(self._arrow, None)
        if whole is None:
            raise EOFError(_CHANGED)
        self._batches = iter([whole.slice(at, _BATCH_ROWS) for at in range(0, whole.num_rows, _BATCH_ROWS)])


_open: list[_Reader] = []  # the worker's one open table, or none


def _reader(path: str, columnar: str) -> _Reader:
    if not _open or (_open[0].path, _open[0].columnar, _open[0].version) != (path, columnar, _version(path)):
        _open[:] = [_Reader(path, columnar)]
    return _open[0]


def _version(path: str) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns


def forget() -> None:
    """Closes the table that is held open."""
    _open.clear()


def _arrow_batches(path: str) -> Iterator[pa.RecordBatch]:
    """The record batches of an IPC file or stream. A file is a stream between two marks, so its end is not missed."""
    with pa.memory_map(path) as file:
        if file.read(len(_ARROW_FILE_MAGIC)) != _ARROW_FILE_MAGIC:
            file.seek(0)
        yield from pa.ipc.open_stream(file)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
