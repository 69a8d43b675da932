"""Writing a rank's files of a checkpoint, in its own process or in one forked from it, and what came of it.

megatron-core forks a process for each file, also where the trainer waits for it, and starts a server for what they answer: a
writer that is killed is waited for without end, and the server outlives a rank that is killed.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

from jumar.train_core.parent import die_with_parent
from jumar.train_core.run.stop import Stop

BLOCK = 1 << 24
Sums = dict[str, tuple[int, int]]
"""Bytes and crc32 of files, by name."""


class Results:
    """What the writer of one checkpoint answers, in place of megatron-core's queue. Lives in memory that a fork shares.

    trainer: the process that made it, of which the writer may be a fork
    """

    def __init__(self) -> None:
        self.trainer = os.getpid()
        self._file = os.fdopen(os.memfd_create("checkpoint"), "r+b", buffering=0)
        filesystem_async._results_queue = self

    def put(self, answer: tuple[Any, Sums]) -> None:
        self._file.write(pickle.dumps(answer))

    def _read(self) -> tuple[Any, Sums] | None:
        self._file.seek(0)
        content = self._file.read()
        return pickle.loads(content) if content else None

    def get_nowait(self) -> Any:
        """What megatron-core asks for: file number -> its parts, or an exception."""
        if (answer := self._read()) is None:
            raise queue.Empty
        return answer[0]

    def outcome(self) -> tuple[str | None, Sums]:
        """What went wrong, and the files that were written."""
        if (answer := self._read()) is None:
            return "the process that writes it was killed", {}
        return (str(answer[0]) or repr(answer[0])) if isinstance(answer[0], Exception) else None, answer[1]


def write(transforms: Any, use_msc: bool, rank: int, buckets: Any, results: Results) -> None:
    """Writes a rank's files, each in a thread. Raises nothing: what went wrong is an answer too."""
    if os.getpid() != results.trainer:
        _aside(results.trainer)
    try:
        with ThreadPoolExecutor(len(buckets)) as pool:
            parts = dict(pool.map(lambda number: _write_one(transforms, number, buckets[number]), range(len(buckets))))
            sums = dict(pool.map(lambda bucket: (bucket[1], checksum(Path(bucket[0]))), buckets))
    except Exception as fault:  # noqa: BLE001  # raised in the trainer, on all ranks
        results.put((RuntimeError(str(fault)) if not isinstance(fault, OSError) else fault, {}))
    else:
        results.put((parts, sums))


def _write_one(transforms: Any, number: int, bucket: Any) -> tuple[int, Any]:
    answers: queue.Queue[Any] = queue.Queue()
    running: queue.Queue[int] = queue.Queue()
    running.put(number)
    FileSystemWriterAsync.write_preloaded_data(transforms, number, bucket, answers, running, True)
    _, found = answers.get_nowait()
    if isinstance(found, Exception):
        raise found
    return number, found


FileSystemWriterAsync.write_preloaded_data_multiproc = staticmethod(write)


def _aside(trainer: int) -> None:
    """A forked writer ends with its rank, and not by signals, which are the rank's to answer. torch's threads stayed behind."""
    die_with_parent(signal.SIGKILL, trainer)
    for number in Stop.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


def checksum(path: Path) -> tuple[int, int]:
    """Bytes and crc32 of a file."""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc
