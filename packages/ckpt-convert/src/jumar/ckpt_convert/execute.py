"""The executor: streams a plan's bytes from file to file in bounded memory, with checksums, in parallel, resumable.

Bytes go through the page cache only: contiguous ranges from the source's mapping to the target, strided ones through a buffer of
`CHUNK` bytes a thread. A record counts as done once its file is synced and a line of the journal says so.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import mmap
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from typing import Protocol

import numpy as np

from jumar.ckpt_convert.plan import CopyBox, Ints, Record
from jumar.ckpt_convert.tensors import DTYPES, contiguous_strides
from jumar.schema.errors import Exit, ToolError

CHUNK = 4 << 20
SYNC_EVERY = 64 << 20
JOURNAL = "journal.jsonl"


class TargetFile(Protocol):
    """A file to be written: its records and where their bytes go; `checksums`: whether `finish` wants the records' CRC-32."""

    @property
    def path(self) -> str: ...
    @property
    def records(self) -> tuple[Record, ...]: ...
    @property
    def offsets(self) -> tuple[int, ...]: ...
    @property
    def size(self) -> int: ...
    @property
    def checksums(self) -> bool: ...
    def begin(self, fd: int) -> None: ...
    def finish(self, fd: int, crcs: Sequence[int]) -> None: ...


Progress = Callable[[int], None]


class Journal:
    """What is done, a line a record, so that a killed run can go on. The first line names the plan that the lines belong to."""

    def __init__(self, directory: Path, fingerprint: str, resume: bool) -> None:
        self.path = directory / JOURNAL
        self.done: dict[tuple[int, int], int] = {}
        directory.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab", buffering=0)
        _lock(self._file.fileno(), directory)
        if not resume or not self._read(fingerprint):
            os.truncate(self.path, 0)
            self._file.write((json.dumps({"plan": fingerprint}) + "\n").encode())

    def _read(self, fingerprint: str) -> bool:
        """Takes up what is done. False if the process died before it wrote its first line."""
        content = self.path.read_bytes()
        lines = content.split(b"\n")
        torn = lines.pop()  # the last line, if the process died while writing it
        if not lines:
            return False
        try:
            same = json.loads(lines[0]).get("plan") == fingerprint
            self.done = {(int(file), int(record)): int(crc) for file, record, crc in map(json.loads, lines[1:])}
        except (ValueError, TypeError, AttributeError):
            raise damaged(self.path) from None
        if not same:
            raise ToolError(
                f"{self.path.parent} was begun with other sources or options",
                hint="give the options of the first run, or start over with --force instead of --resume",
            )
        if torn:
            os.truncate(self.path, len(content) - len(torn))
        return True

    def check(self, files: Sequence[TargetFile]) -> None:
        """Raises ToolError if the journal says of anything that is not there that it was written."""
        for index, number in self.done:
            if not 0 <= index < len(files) or not 0 <= number < len(files[index].records):
                raise damaged(self.path)
        for index in sorted({index for index, _ in self.done}):
            path = self.path.parent / files[index].path
            if not path.is_file() or path.stat().st_size != files[index].size:
                raise ToolError(f"{path} is not as the stopped run left it", hint="start over with --force instead of --resume")

    def add(self, entries: Sequence[tuple[int, int, int]]) -> None:
        self._file.write("".join(json.dumps(e) + "\n" for e in entries).encode())

    def close(self) -> None:
        self._file.close()


def damaged(journal: Path) -> ToolError:
    return ToolError(f"{journal} is damaged", hint="start over with --force instead of --resume")


def refuse_second_writer(directory: Path) -> None:
    """Raises ToolError (4) if another process is writing into a staging directory."""
    journal = directory / JOURNAL
    if journal.exists():
        with journal.open("rb") as file:
            _lock(file.fileno(), directory)


def _lock(fd: int, directory: Path) -> None:
    """Takes the lock of a journal; ToolError (4) if another process has it. File systems without locks are let pass."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ToolError(
            f"another process is writing {directory}", hint="wait until it is done, or stop it", code=Exit.ENVIRONMENT
        ) from None
    except OSError:
        pass


class SourceFiles:
    """Source files, mapped once each."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}
        self._lock = threading.Lock()

    def __getitem__(self, path: Path) -> mmap.mmap:
        with self._lock:
            if path not in self._maps:
                with path.open("rb") as file:
                    self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return self._maps[path]

    def view(self, copy: CopyBox) -> np.ndarray:
        """The source bytes of a copy as an array in the target's axis order; nothing is read."""
        dtype = DTYPES[copy.dtype]
        strides = tuple(s * dtype.itemsize for s in copy.strides)
        view: np.ndarray = np.ndarray(copy.size, dtype, self[copy.file], copy.offset, strides)
        return view


class Executor:
    """Writes target files into `staging`. `progress` is called with the number of bytes just written."""

    def __init__(self, staging: Path, journal: Journal, *, threads: int = 2, progress: Progress | None = None) -> None:
        self.staging = staging
        self.journal = journal
        self.threads = threads
        self.progress = progress or (lambda n: None)
        self._sources = SourceFiles()
        self._pending: list[tuple[int, int, int]] = []
        self._pending_bytes = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._commits: list[Future[None]] = []
        self._local = threading.local()

    def run(self, files: Sequence[TargetFile]) -> None:
        """Writes every record that the journal does not have, then closes each file with its checksums.

        Raises ToolError: 4 on a full disk, which can be resumed; 3 for a value that its target cannot hold, which cannot.
        """
        self.journal.check(files)
        try:
            for file in files:
                with _opened(self.staging / file.path) as fd:
                    file.begin(fd)
            work = [(f, r) for f, file in enumerate(files) for r in range(len(file.records)) if (f, r) not in self.journal.done]
            resumed = sum(files[f].records[r].nbytes for f, r in self.journal.done)
            if resumed:
                self.progress(resumed)
            self._share_out(files, work)
            self._commit(files)
            for index, file in enumerate(files):
                with _opened(self.staging / file.path) as fd:
                    file.finish(fd, [self.journal.done[index, r] for r in range(len(file.records))])
                    os.fsync(fd)
        except ToolError:
            shutil.rmtree(self.staging, ignore_errors=True)
            raise
        except OSError as fault:
            raise disk_error(fault, self.staging) from fault

    def _share_out(self, files: Sequence[TargetFile], work: list[tuple[int, int]]) -> None:
        todo = iter(work)
        taking = threading.Lock()

        def worker() -> None:
            while not self._stop.is_set():
                with taking:
                    item = next(todo, None)
                if item is None:
                    return
                try:
                    self._write(files, *item)
                except BaseException:
                    self._stop.set()
                    raise

        # one more thread syncs what is written, so that neither the disk nor a worker waits for the other
        with ThreadPoolExecutor(1) as self._syncer, ThreadPoolExecutor(self.threads) as pool:
            futures = [pool.submit(worker) for _ in range(self.threads)]
            try:
                for future in futures:
                    future.result()
                for commit in self._commits:  # all of them, now that no worker adds one
                    commit.result()
            except BaseException:
                self._stop.set()
                raise

    def _write(self, files: Sequence[TargetFile], index: int, number: int) -> None:
        file = files[index]
        record, offset = file.records[number], file.offsets[number]
        with _opened(self.staging / file.path) as fd:
            crc = 0
            for piece in self._pieces(record):
                if self._stop.is_set():
                    return
                if file.checksums:
                    crc = zlib.crc32(piece, crc)
                _pwrite_all(fd, piece, offset)
                offset += len(piece)
                with self._lock:
                    self.progress(len(piece))
        with self._lock:
            self._pending.append((index, number, crc))
            self._pending_bytes += record.nbytes
            full = self._pending_bytes >= SYNC_EVERY
            if full:
                self._commits.append(self._syncer.submit(self._commit, files))

    def _commit(self, files: Sequence[TargetFile]) -> None:
        """Syncs the files of finished records, then says so in the journal."""
        with self._lock:
            entries, self._pending, self._pending_bytes = self._pending, [], 0
        try:
            for index in sorted({e[0] for e in entries}):
                with _opened(self.staging / files[index].path) as fd:
                    os.fdatasync(fd)
            with self._lock:
                self.journal.add(entries)
                self.journal.done.update(((f, r), crc) for f, r, crc in entries)
        except BaseException:
            self._stop.set()
            raise

    def _pieces(self, record: Record) -> Iterator[memoryview]:
        """A record's bytes in order, a chunk at a time."""
        strides = contiguous_strides(record.shape)
        spans = sorted(((_start(c.at, strides), c) for c in record.copies), key=itemgetter(0)) if _all_rows(record) else None
        if spans is None:
            yield from self._gathered(record)
            return
        here, item = 0, DTYPES[record.dtype].itemsize
        for start, copy in spans:
            yield from _zeros((start - here) * item)
            yield from self._span(copy, record)
            here = start + math.prod(copy.size)
        yield from _zeros((math.prod(record.shape) - here) * item)

    def _span(self, copy: CopyBox, record: Record) -> Iterator[memoryview]:
        """A copy that fills one unbroken range of the target."""
        dtype = record.dtype
        if copy.dtype == dtype and _unbroken(copy):
            length = math.prod(copy.size) * DTYPES[dtype].itemsize
            source = memoryview(self._sources[copy.file])[copy.offset : copy.offset + length]
            for start in range(0, length, CHUNK):
                yield source[start : start + CHUNK]
            return
        view = self._sources.view(copy)
        for at, size in chunks(copy.size, CHUNK // DTYPES[dtype].itemsize):
            buffer = self._buffer(math.prod(size), dtype).reshape(size)
            fill(buffer, view[tuple(slice(a, a + n) for a, n in zip(at, size, strict=True))], record)
            yield buffer.reshape(-1).view(np.uint8).data

    def _gathered(self, record: Record) -> Iterator[memoryview]:
        """Copies that lie across one another's rows: put together a chunk at a time."""
        for at, size in chunks(record.shape, CHUNK // DTYPES[record.dtype].itemsize):
            buffer = self._buffer(math.prod(size), record.dtype).reshape(size)
            if record.padding:
                buffer[...] = np.zeros((), buffer.dtype)
            for copy in record.copies:
                low = tuple(map(max, at, copy.at))
                high = tuple(min(a + n, c + m) for a, n, c, m in zip(at, size, copy.at, copy.size, strict=True))
                if all(lo < hi for lo, hi in zip(low, high, strict=True)):
                    target = tuple(slice(lo - a, hi - a) for lo, hi, a in zip(low, high, at, strict=True))
                    source = tuple(slice(lo - c, hi - c) for lo, hi, c in zip(low, high, copy.at, strict=True))
                    fill(buffer[target], self._sources.view(copy)[source], record)
            yield buffer.reshape(-1).view(np.uint8).data

    def _buffer(self, count: int, dtype: str) -> np.ndarray:
        nbytes = count * DTYPES[dtype].itemsize
        held: np.ndarray | None = getattr(self._local, "buffer", None)
        if held is None or held.nbytes < nbytes:
            held = self._local.buffer = np.empty(max(nbytes, CHUNK), np.uint8)
        return held[:nbytes].view(DTYPES[dtype])


def fill(target: np.ndarray, source: np.ndarray, record: Record) -> None:
    """Copies values, cast if the dtypes differ. Raises ToolError where a finite value becomes infinite."""
    if target.dtype == source.dtype:
        target[...] = source
        return
    with np.errstate(over="ignore"):
        target[...] = source
    if (lost := np.isinf(target) & np.isfinite(source)).any():
        largest = float(np.abs(source[lost].astype(np.float64)).max())
        raise ToolError(
            f"{record.name} has values up to {largest:g}, too large for {record.dtype}", hint="choose --dtype bf16 or fp32"
        )


def _start(at: Ints, strides: Ints) -> int:
    return sum(a * s for a, s in zip(at, strides, strict=True))


def _all_rows(record: Record) -> bool:
    """Whether every copy fills one unbroken range of the target."""
    return all(_fills_range(c.size, record.shape) for c in record.copies)


def _fills_range(size: Ints, shape: Ints) -> bool:
    inner = len(shape)
    while inner and size[inner - 1] == shape[inner - 1]:
        inner -= 1
    return all(n == 1 for n in size[: max(inner - 1, 0)])


def _unbroken(copy: CopyBox) -> bool:
    """Whether a copy's source is one unbroken range in the order of the target."""
    step = 1
    for size, stride in zip(reversed(copy.size), reversed(copy.strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def chunks(shape: Ints, limit: int) -> Iterator[tuple[Ints, Ints]]:
    """Boxes (start, size) of at most `limit` elements (a single element at least) that are unbroken in memory, in order."""
    inner, axis = 1, len(shape)
    while axis and inner * shape[axis - 1] <= limit:
        axis -= 1
        inner *= shape[axis]
    if not axis:
        yield (0,) * len(shape), shape
        return
    step = max(limit // inner, 1)
    for outer in np.ndindex(*shape[: axis - 1]):
        for start in range(0, shape[axis - 1], step):
            size = min(step, shape[axis - 1] - start)
            yield (*outer, start, *((0,) * (len(shape) - axis))), (*((1,) * (axis - 1)), size, *shape[axis:])


_ZEROS = bytes(CHUNK)


def _zeros(count: int) -> Iterator[memoryview]:
    for start in range(0, count, CHUNK):
        yield memoryview(_ZEROS)[: min(CHUNK, count - start)]


class _opened:
    """A file descriptor for reading and writing, created with its directories if need be."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> int:
        try:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        return self.fd

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)


def _pwrite_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def disk_error(fault: OSError, where: Path) -> ToolError:
    """What went wrong with a target, for its user."""
    if fault.errno in (errno.ENOSPC, errno.EDQUOT):
        return ToolError(
            f"the disk of {where} is full",
            hint="make room, then run the same command with --resume",
            code=Exit.ENVIRONMENT,
        )
    return ToolError(f"{where}: {fault}", hint="mend it, then run the same command with --resume", code=Exit.ENVIRONMENT)


def record_array(record: Record) -> np.ndarray:
    """A record's values as one array in memory."""
    files = SourceFiles()
    array = np.zeros(record.shape, DTYPES[record.dtype])
    for copy in record.copies:
        array[tuple(slice(a, a + n) for a, n in zip(copy.at, copy.size, strict=True))] = files.view(copy)
    return array
