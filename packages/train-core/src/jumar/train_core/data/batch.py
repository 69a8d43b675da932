"""Micro batches of one rank: which samples, in which order, exact to the sample after a stop.

A global batch is the same set of samples whatever the number of data-parallel ranks. Sample numbers are computed, not drawn:
where a run has got to is one number.
"""

from __future__ import annotations

import atexit
import functools
import signal
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jumar.device import Device
from jumar.schema.errors import Exit, ToolError
from jumar.train_core.data.tuning import Tuning

KEYS = ("tokens", "labels", "loss_mask", "position_ids")
READ_AHEAD = 4
"""Micro batches that each worker has ready."""
LOOPS = (signal.SIGINT, signal.SIGTERM)
"""Signals that are the loop's to answer."""

Arrays = dict[str, np.ndarray[Any, Any]]


def sample_numbers(
    start: int, stop: int, *, global_batch_size: int, micro_batch_size: int, dp_rank: int, dp_size: int
) -> Iterator[list[int]]:
    """The samples of each micro batch of a rank, for the whole global batches that lie in start to stop.

    Micro batch m of rank r in the global batch at s is samples s + (m * dp_size + r) * micro_batch_size and the next ones.
    """
    stride = micro_batch_size * dp_size
    if global_batch_size % stride or not 0 <= dp_rank < dp_size:
        raise ValueError(f"global batch of {global_batch_size} for rank {dp_rank} of {dp_size} with {micro_batch_size} at once")
    for begin in range(start, stop - global_batch_size + 1, global_batch_size):
        for at in range(begin + dp_rank * micro_batch_size, begin + global_batch_size, stride):
            yield list(range(at, at + micro_batch_size))


class Batches:
    """An iterator of one data-parallel rank's micro batches. Close it, or use it in a `with`.

    dataset:  one of `datasets(job)`
    consumed: samples, over all ranks, that earlier steps used up: the first global batch begins there
    stop:     no sample from this number on; None: to the end of the dataset. What is left of a global batch is not given
    vocab_size: token ids are below it
    workers:  processes that read ahead; 0: samples are read when they are asked for

    Gives dicts on the CPU: tokens [b, s] int64, labels [b, s] int64 (the tokens, one further), loss_mask [b, s] float32,
    position_ids [b, s] int64, and of tuning data what `Tuning.micro_batch` has besides. Raises ToolError for a token id that
    the model does not have, and when a worker dies.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        dp_rank: int,
        dp_size: int,
        vocab_size: int,
        consumed: int = 0,
        stop: int | None = None,
        workers: int = 0,
    ) -> None:
        self._consumed, self._global, self._per_step = (
            consumed,
            global_batch_size,
            global_batch_size // (micro_batch_size * dp_size),
        )
        self._given = 0
        end = len(dataset) if stop is None else min(stop, len(dataset))
        self._last = max(end - consumed, 0) // global_batch_size * self._per_step
        numbers = sample_numbers(
            consumed,
            end,
            global_batch_size=global_batch_size,
            micro_batch_size=micro_batch_size,
            dp_rank=dp_rank,
            dp_size=dp_size,
        )
        loader: Any = DataLoader(
            _Reader(dataset, vocab_size, consumed, global_batch_size),
            batch_sampler=numbers,
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=READ_AHEAD if workers else None,
            multiprocessing_context="fork" if workers else None,  # datasets are maps of files: nothing to send
            worker_init_fn=_leave_signals,
        )
        with _blocked() if workers else nullcontext():
            self._loaded: Any = iter(loader)  # starts the workers
        if workers:
            _OPEN.add(self)
            _end_with_the_process()
        self._workers = workers

    @property
    def consumed(self) -> int:
        """Samples, over all ranks, used up by the steps whose micro batches were all given."""
        return self._consumed + self._given // self._per_step * self._global

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self

    def __next__(self) -> dict[str, Tensor]:
        if self._loaded is None:
            raise StopIteration
        try:
            loaded = next(self._loaded)
        except StopIteration:
            self.close()
            raise
        except RuntimeError as fault:
            if (died := reader_died(fault)) is None:
                raise
            self.close()
            raise died from None
        if isinstance(loaded, ToolError):
            raise loaded
        self._given += 1
        if self._given == self._last:
            self.close()  # who counts batches does not ask for one more
        return {key: torch.from_numpy(value) for key, value in loaded.items()}

    def close(self) -> None:
        """Ends the workers. May be called twice."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None and self._workers:
            loaded._shutdown_workers()  # else it is the garbage collector's affair when they end
            _OPEN.discard(self)

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


_OPEN: weakref.WeakSet[Batches] = weakref.WeakSet()


@functools.cache
def _end_with_the_process() -> None:
    """Before multiprocessing ends what is left by SIGTERM, and waits for processes that do not listen to it."""
    atexit.register(_close_all)


def _close_all() -> None:
    for each in list(_OPEN):
        each.close()


def reader_died(fault: RuntimeError) -> ToolError | None:
    """torch's word that a worker died, which it raises wherever the process happens to be; None of any other fault."""
    if "DataLoader worker" not in str(fault):
        return None
    return ToolError(
        f"a process that reads data ahead died: {fault}",
        hint="set data.workers to 0 to read without, or look for what killed it (memory, the disk)",
        code=Exit.ENVIRONMENT,
    )


def workers_for(given: int | None, device: Device) -> int:
    """`data.workers`, resolved: on a CPU, processes that read ahead take from what computes."""
    return given if given is not None else 0 if device.host else 2


class _Reader(Dataset[Any]):
    """Reads whole micro batches. Arrays, not tensors, and faults as values: so they come through a pipe as they are, without
    the shared memory and open files that tensors take."""

    def __init__(self, dataset: Any, vocab_size: int, consumed: int, global_batch_size: int) -> None:
        self.dataset, self.vocab_size, self.consumed, self.global_batch_size = dataset, vocab_size, consumed, global_batch_size

    def __getitem__(self, number: int) -> Any:
        raise NotImplementedError  # batches only

    def __getitems__(self, numbers: list[int]) -> Arrays | ToolError:
        try:
            if isinstance(self.dataset, Tuning):
                begin = numbers[0] - (numbers[0] - self.consumed) % self.global_batch_size
                return self.dataset.micro_batch(numbers, range(begin, begin + self.global_batch_size), self.vocab_size)
            samples = [self.dataset[number] for number in numbers]
            for number, sample in zip(numbers, samples, strict=True):
                check_vocabulary(self.dataset, number, sample, self.vocab_size)
        except ToolError as fault:
            return fault
        except OSError as fault:
            return ToolError(
                f"sample {numbers[0]} of {name_of(self.dataset)}: {fault}",
                hint="is the data still there, and its disk well?",
                code=Exit.ENVIRONMENT,
            )
        return {key: np.stack([sample[key].numpy() for sample in samples]) for key in KEYS}


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach all processes of a job; the loop decides, and it may still need what they read."""
    for each in LOOPS:
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LOOPS)


@contextmanager
def _blocked() -> Iterator[None]:
    """Signals wait: a worker is born without having said yet that it leaves them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, LOOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def name_of(dataset: Any, sample: Mapping[str, Any] | None = None) -> str:
    """The prefix that a sample comes from; of a blend without a sample, all of them."""
    sources = getattr(dataset, "datasets", [dataset])
    if sample is not None and "dataset_id" in sample:
        sources = [sources[int(sample["dataset_id"])]]
    return ", ".join(str(getattr(source, "dataset_path", type(source).__name__)) for source in sources)


def check_vocabulary(dataset: Any, number: int, sample: Mapping[str, Any], vocab_size: int) -> None:
    """Raises ToolError for an id that the model has no row for. Under tensor parallelism it would silently be read as zeros."""
    for key in ("tokens", "labels"):
        low, high = torch.aminmax(sample[key])
        bad = int(high) if int(high) >= vocab_size else int(low)
        if not 0 <= bad < vocab_size:
            raise ToolError(
                f"{name_of(dataset, sample)}: token id {bad} in sample {number}; the model's vocabulary is 0 to {vocab_size - 1}",
                hint="the data was made with another tokenizer: make it again with the model's (jumar-data pretrain --tokenizer)",
            )


def split_for_cp(batch: Mapping[str, Tensor], rank: int, size: int) -> dict[str, Tensor]:
    """The part of a context-parallel rank: of 2 * size chunks of the sequence, chunks rank and 2 * size - 1 - rank.

    [b, s, ...] -> [b, s / size, ...]; with a causal mask all ranks have the same work. Raises ToolError if s does not divide.
    Source: megatron.core.utils.get_batch_on_this_cp_rank.
    """
    if size == 1:
        return dict(batch)
    out = {}
    for key, value in batch.items():
        if value.shape[1] % (2 * size):
            text = f"{value.shape[1]} tokens do not divide into 2 * cp = {2 * size} chunks"
            raise ToolError(text, hint=f"set data.seq_len to a multiple of {2 * size}")
        chunks = value.chunk(2 * size, dim=1)
        out[key] = torch.cat((chunks[rank], chunks[2 * size - 1 - rank]), dim=1)
    return out
