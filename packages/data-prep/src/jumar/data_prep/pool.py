"""Blocks through workers, results in the order of the blocks, a bounded number of them under way.

Workers are forked, so that they share the loaded tokenizer. One worker is none: the work is done here.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from jumar.schema.errors import Exit, ToolError

T = TypeVar("T")
R = TypeVar("R")
PR_SET_PDEATHSIG = 1
_work: Callable[[Any], Any] | None = None  # in a worker: what it does; inherited by the fork


def ordered(items: Iterable[T], work: Callable[[T], R], workers: int) -> Iterator[R]:
    """work(item) of every item, in order, by `workers` processes.

    ToolError (exit 4) if a worker is killed.
    """
    if workers <= 1:
        yield from map(work, items)
        return
    global _work
    _work = work
    context = multiprocessing.get_context("fork")
    under_way: deque[Future[R]] = deque()
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(os.getpid(),))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: forking with threads, which the pool itself has
            for item in items:
                under_way.append(pool.submit(_do, item))
                if len(under_way) > 2 * workers:
                    yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool:
        raise ToolError(
            "a worker was killed (out of memory?)",
            hint="run the same command again to go on; --workers 1, or a smaller --block-size, takes less memory",
            code=Exit.ENVIRONMENT,
        ) from None
    except BaseException:  # stopped, or given up: nobody waits for what is under way, however often Ctrl-C is pressed
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        _work = None


def _start(parent: int) -> None:
    """A worker leaves Ctrl-C to the process that began it, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the threads of the process that this one was forked from are not here
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _do(item: Any) -> Any:
    assert _work is not None
    return _work(item)
