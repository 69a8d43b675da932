"""Blocks through workers, results in the order of the blocks, a bounded number of them under way.

Workers are forked, so that they share the loaded tokenizer. One worker is none: the work is done here. Each has a pipe of its
own, and no thread stands between: of concurrent.futures, a worker that is killed while it sends (which Ctrl-C does) leaves a
thread that reads for ever, for which the interpreter waits at its end.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from jumar.schema.errors import Exit, ToolError

T = TypeVar("T")
R = TypeVar("R")
Outcome = tuple[Any, Exception | None, str]
"""(result, or what was raised, and where)."""
PR_SET_PDEATHSIG = 1


def ordered(items: Iterable[T], work: Callable[[T], R], workers: int) -> Generator[R, None, None]:
    """work(item) of every item, in order, by `workers` processes.

    Raises what `work` raised, when its turn comes, and ToolError (4) if a worker is killed.
    """
    if workers <= 1:
        yield from map(work, items)
        return
    hands = [_Worker(work) for _ in range(workers)]
    free = deque(hands)
    numbered, done, sent, following = enumerate(items), dict[int, Any](), 0, 0
    try:
        while True:
            # To those alone who have nothing to send, else both ends of a pipe may be full. What waits for a slow one is bounded.
            while free and sent - following < 3 * workers and (item := next(numbered, None)) is not None:
                free.popleft().send(item)
                sent += 1
            if following in done:
                result, fault, where = done.pop(following)
                if fault is not None:
                    raise fault from RuntimeError(where)
                yield result
                following += 1
            elif following < sent:
                ready = wait([hand.pipe for hand in hands])
                for hand in (hand for hand in hands if hand.pipe in ready):
                    number, done[number] = hand.receive()
                    free.append(hand)
            else:
                return
    finally:  # done, stopped or given up: nobody waits for what is under way
        for hand in hands:
            hand.end()


class _Worker:
    """A forked process that does one item after another: it is sent (number, item), and answers (number, outcome)."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_serve, args=(theirs, work, os.getpid()), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: forking with threads, which a tokenizer may have
            self._process.start()
        theirs.close()

    def send(self, item: tuple[int, Any]) -> None:
        try:
            self.pipe.send(item)
        except OSError:
            raise _killed() from None

    def receive(self) -> tuple[int, Outcome]:
        try:
            answer: tuple[int, Outcome] = self.pipe.recv()
        except (EOFError, OSError):
            raise _killed() from None
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _killed() -> ToolError:
    return ToolError(
        "a worker was killed (out of memory?)",
        hint="run the same command again to go on; --workers 1, or a smaller --block-size, takes less memory",
        code=Exit.ENVIRONMENT,
    )


def _serve(pipe: Connection, work: Callable[[Any], Any], parent: int) -> None:
    """A worker leaves Ctrl-C to the process that began it, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the threads of the process that this one was forked from are not here
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    while True:
        number, item = pipe.recv()
        try:
            pipe.send((number, (work(item), None, "")))
        except Exception as fault:  # noqa: BLE001  # raised again where the result is asked for
            pipe.send((number, (None, fault, traceback.format_exc())))
