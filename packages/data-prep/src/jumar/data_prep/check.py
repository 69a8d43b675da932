"""An accelerator's ids against the reference's, on the run's own texts, in a process of its own beside the run."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np

from jumar.data_prep.engines import Reference, give_back
from jumar.data_prep.part import Checked
from jumar.schema.errors import Exit, ToolError


class Differs(Exception):
    """An accelerator made other ids of a text than the reference."""


class Checker:
    """Sends texts to a process that holds the reference, and hears of the first difference.

    Made before the accelerator is loaded, whose memory it must not have: both load at the same time.
    """

    def __init__(self, reference: Callable[[], Reference]) -> None:
        context = multiprocessing.get_context("fork")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, self._here, reference), daemon=True)
        self._process.start()
        there.close()
        self._waiting: deque[Checked] = deque()
        self._ready = False

    def check(self, texts: list[Checked]) -> None:
        """Takes texts for checking. Differs if one that was taken before is known to differ."""
        self._waiting.extend(texts)
        self._hear(0.0)
        while self._ready and self._waiting:
            self._send()

    def finish(self) -> None:
        """Waits until all is checked."""
        while not self._ready:
            self._hear(None)
        while self._waiting:
            self._send()
        self._here.send(None)
        self._hear(None)
        self._process.join()

    def stop(self) -> None:
        """Ends the process, checked or not."""
        self._process.terminate()
        self._process.join()

    def _send(self) -> None:
        try:
            self._here.send(self._waiting.popleft())
        except OSError:
            self._hear(None)
        self._hear(0.0)

    def _hear(self, wait_s: float | None) -> None:
        if not self._here.poll(wait_s):
            return
        try:
            said = self._here.recv()
        except (EOFError, OSError):
            raise ToolError(
                "the process that checks ids was killed (out of memory?)",
                hint="run the same command again to go on; --tokenizer-engine tokenizers needs no check",
                code=Exit.ENVIRONMENT,
            ) from None
        if isinstance(said, ToolError):
            raise said
        if said == "ready":
            self._ready = True
        elif said is not None:
            raise Differs(said)


def _serve(there: Connection, here: Connection, reference: Callable[[], Reference]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the threads of the process that this one was forked from are not here
    here.close()
    try:
        engine = reference()
        give_back()
        there.send("ready")
        while (item := there.recv()) is not None:
            if difference := _difference(engine, item):
                there.send(difference)
                return
        there.send(None)
    except ToolError as fault:
        there.send(fault)
    except (EOFError, OSError):
        return  # the run is over


def _difference(reference: Reference, item: Checked) -> str | None:
    texts, flat, lengths, special = item
    expected = reference.encode(texts, special=special)
    rows = np.split(np.frombuffer(flat, np.uint32), np.cumsum(np.frombuffer(lengths, np.int64))[:-1])
    for i, (text, row) in enumerate(zip(texts, rows, strict=True)):
        if not np.array_equal(row, expected[i]):
            return f"{text[:60]!r} is {row[:8].tolist()}..., by tokenizers {expected[i][:8].tolist()}..."
    return None
