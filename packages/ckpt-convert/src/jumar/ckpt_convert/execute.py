"""The executor: streams a plan's bytes from file to file in bounded memory, with checksums, in parallel, resumable.

A record counts as done once its file is synced and a line of the journal says so.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from jumar.ckpt_convert.gather import RecordReader, SourceFiles
from jumar.ckpt_convert.journal import NAME as JOURNAL
from jumar.ckpt_convert.journal import Journal
from jumar.ckpt_convert.plan import Record
from jumar.schema.errors import Exit, ToolError

SYNC_EVERY = 64 << 20


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


class Executor:
    """Writes target files into `staging`. `progress` is called with the number of bytes just written."""

    def __init__(self, staging: Path, journal: Journal, *, threads: int = 2, progress: Progress | None = None) -> None:
        self.staging = staging
        self.journal = journal
        self.threads = threads
        self.progress = progress or (lambda n: None)
        self._reader = RecordReader(SourceFiles())
        self._pending: list[tuple[int, int, int]] = []
        self._pending_bytes = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._commits: list[Future[None]] = []

    def run(self, files: Sequence[TargetFile]) -> None:
        """Writes every record that the journal does not have, then closes each file with its checksums.

        Raises ToolError: 4 on a full disk, which can be resumed; 3 for a value that its target cannot hold, which cannot.
        """
        self.journal.check(files)
        try:
            for file in files:
                with _opened(self.staging / file.path, create=True) as fd:
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
            for piece in self._reader.pieces(record):
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


class _opened:
    """A file descriptor for reading and writing. create: the file is made with its directories if need be.

    A file is made once: where it is gone later, somebody has removed what was written.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path, self.create = path, create

    def __enter__(self) -> int:
        if self.create:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self.fd = os.open(self.path, os.O_RDWR | (os.O_CREAT if self.create else 0), 0o644)
        return self.fd

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)


def _pwrite_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def disk_error(fault: OSError, where: Path) -> ToolError:
    """What went wrong with a target, for its user. where: the staging directory."""
    resume = " with --resume" if os.path.exists(where / JOURNAL) else " again"
    if fault.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = f"make room, then run the same command{resume}"
        return ToolError(f"the disk of {where} is full", hint=hint, code=Exit.ENVIRONMENT)
    if fault.errno == errno.ENOENT and fault.filename and Path(fault.filename).is_relative_to(where):
        hint = "start over with --force instead of --resume" if resume == " with --resume" else "run the same command again"
        return ToolError(f"{fault.filename} was removed while it was written", hint=hint, code=Exit.ENVIRONMENT)
    return ToolError(f"{where}: {fault}", hint=f"mend it, then run the same command{resume}", code=Exit.ENVIRONMENT)
