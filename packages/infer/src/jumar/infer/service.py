"""The engine in a thread of its own, for requests that come from an event loop."""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace

from jumar.infer.engine import Engine
from jumar.infer.sampling import Sampling
from jumar.infer.scheduler import Request
from jumar.schema.errors import Exit, ToolError

LOOK_S = 0.5


class QueueFull(Exception):
    """More requests wait than are allowed to."""


class TooSlow(Exception):
    """An answer was not done in time."""


class Ending(Exception):
    """The server ends, and waits for this answer no longer."""


class EngineStopped(Exception):
    """The engine has failed; nothing is answered any more."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt; scored as of `Engine.add`."""

    prompt: Sequence[int]
    sampling: Sampling
    scored: int | None = None

    def again(self, number: int) -> Ask:
        """The same, with a seed of its own."""
        seed = self.sampling.seed
        return self if seed is None else replace(self, sampling=replace(self.sampling, seed=seed + number))


@dataclass(eq=False, slots=True)
class Listener:
    """Who waits for some requests: `wake` is called, in the engine's thread, when one of them went on."""

    requests: Sequence[Request]
    wake: Callable[[], object]


@dataclass
class Counts:
    """What /metrics tells, since the start."""

    requests: dict[int, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    shared_tokens: int = 0
    tokens: int = 0
    aborted: int = 0
    first_token_s: float = 0.0
    first_tokens: int = 0


class Service:
    """Steps the engine while there is something to do. Requests come from one event loop.

    max_waiting: requests that may wait for their turn; on_fault: called when the engine has failed, and is not used any more
    """

    def __init__(self, engine: Engine, *, max_waiting: int = 256, on_fault: Callable[[], object] = lambda: None) -> None:
        self.engine, self.max_waiting, self.counts, self.on_fault = engine, max_waiting, Counts(), on_fault
        self.fault: BaseException | None = None
        self._listeners: dict[Request, Listener] = {}
        self._asked: dict[Request, float] = {}
        self._changed = threading.Condition()
        self._stopping = self._ending = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; what still runs is left."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def cut(self) -> int:
        """Gives up the answers that are not done, and all that are asked for from now on. Returns how many there were."""
        with self._changed:
            self._ending = True
            for listener in set(self._listeners.values()):
                listener.wake()
            return sum(request.finish is None for request in self._listeners)

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping or self.engine.busy)
                    if self._stopping:
                        return
                moved = self.engine.step()
                with self._changed:
                    for request in moved:
                        self._note(request)
        except BaseException as fault:  # noqa: BLE001  # whatever it is, those who wait must hear of it
            if not isinstance(fault, ToolError):
                traceback.print_exc()
            with self._changed:
                self.fault = fault
                for listener in set(self._listeners.values()):
                    listener.wake()
            self.on_fault()

    def _note(self, request: Request) -> None:
        if len(request.output) == 1 and request in self._asked:
            self.counts.first_token_s += time.monotonic() - self._asked.pop(request)
            self.counts.first_tokens += 1
        self.counts.tokens += bool(request.output)
        if (listener := self._listeners.get(request)) is not None:
            listener.wake()

    async def answers(self, asked: Sequence[Ask], *, timeout_s: float) -> AsyncGenerator[list[Request], None]:
        """Yields the requests whenever one of them went on, and every LOOK_S, at the end once when all are done; they are
        forgotten when the iterator is closed.

        The first is yielded at once, before anything is computed. Raises QueueFull, TooSlow, Ending, EngineStopped, and ToolError
        as of `Engine.add` (then nothing is computed).
        """
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        requests = self._add(asked, lambda: loop.call_soon_threadsafe(changed.set))
        end = time.monotonic() + timeout_s
        try:
            yield requests
            done = False
            while not done:
                if any(request.finish is None for request in requests):
                    timer = loop.call_later(
                        LOOK_S, changed.set
                    )  # not asyncio.wait_for: before Python 3.12 it can lose a cancellation
                    await changed.wait()
                    timer.cancel()
                    changed.clear()
                if time.monotonic() > end:
                    raise TooSlow
                if self.fault is not None:
                    raise EngineStopped from self.fault
                done = all(request.finish is not None for request in requests)
                if self._ending and not done:
                    raise Ending
                yield requests
        finally:
            self._forget(requests)

    def _add(self, asked: Sequence[Ask], wake: Callable[[], object]) -> list[Request]:
        if self.fault is not None:
            raise EngineStopped from self.fault
        if len(self.engine.scheduler.waiting) + len(asked) > max(self.max_waiting, len(asked)):
            raise QueueFull
        requests = [self.engine.request(one.prompt, one.sampling, scored=one.scored) for one in asked]
        with self._changed:
            self.engine.scheduler.add(*requests)
            listener = Listener(requests, wake)
            now = time.monotonic()
            for request in requests:
                self._listeners[request], self._asked[request] = listener, now
                self.counts.prompt_tokens += len(request.prompt)
            self._changed.notify()
        return requests

    def _forget(self, requests: Sequence[Request]) -> None:
        with self._changed:
            for request in requests:
                self._listeners.pop(request, None)
                self._asked.pop(request, None)
                self.counts.shared_tokens += request.shared
                if request.finish is None:
                    self.counts.aborted += 1
                    self.engine.abort(request)
            self._changed.notify()

    def metrics(self) -> str:
        """In Prometheus's text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
        counts, cache, scheduler = self.counts, self.engine.cache, self.engine.scheduler
        lines: list[str] = []

        def put(name: str, kind: str, help_: str, *values: tuple[str, float]) -> None:
            lines.extend((f"# HELP jumar_{name} {help_}", f"# TYPE jumar_{name} {kind}"))
            lines.extend(f"jumar_{name}{labels} {value:g}" for labels, value in values)

        by_status = [(f'{{status="{status}"}}', float(count)) for status, count in sorted(counts.requests.items())]
        put("http_requests_total", "counter", "HTTP requests by status.", *by_status)
        put("prompt_tokens_total", "counter", "Tokens of prompts.", ("", counts.prompt_tokens))
        put("prompt_tokens_shared_total", "counter", "Those of them whose keys were there already.", ("", counts.shared_tokens))
        put("generated_tokens_total", "counter", "Tokens of answers.", ("", counts.tokens))
        put("aborted_total", "counter", "Answers that nobody waited for any more.", ("", counts.aborted))
        put("first_token_seconds_sum", "counter", "Time to first tokens.", ("", counts.first_token_s))
        put("first_token_seconds_count", "counter", "First tokens.", ("", counts.first_tokens))
        put("requests_running", "gauge", "Requests that are computed.", ("", len(scheduler.running)))
        put("requests_waiting", "gauge", "Requests that wait.", ("", len(scheduler.waiting)))
        put("cache_pages", "gauge", "Pages of the cache.", ("", cache.pages))
        put("cache_pages_in_use", "gauge", "Those that requests hold.", ("", cache.in_use))
        return "\n".join(lines) + "\n"


def stopped(fault: BaseException) -> ToolError:
    """What the command says when the engine failed."""
    if isinstance(fault, ToolError):
        return fault
    return ToolError(f"the engine has stopped: {fault}", hint="see the traceback above", code=Exit.BUG)
