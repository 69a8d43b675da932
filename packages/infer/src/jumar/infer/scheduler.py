"""Which requests are computed next: continuous batching with prompts in chunks.

What is computed of a request at once depends on its prompt alone (whole chunks, then one token at a time), never on what else is
there: with rows that do not depend on one another, neither do its logits.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import torch

from jumar.infer.cache import Cache
from jumar.infer.sampling import LogProb, Sampling
from jumar.infer.tokenizer import TextStream
from jumar.schema.errors import ToolError

Finish = Literal["stop", "length", "aborted"]
_numbers = itertools.count()


@dataclass(eq=False, slots=True)
class Request:
    """One prompt on its way to an answer.

    output:   tokens of the answer, what ended it included
    finish:   why it ended; None: it has not
    scored:   from this token of the prompt on, log-probabilities are put into `scores`; None: none are
    computed: tokens whose keys are in the cache
    """

    prompt: list[int]
    sampling: Sampling
    stop_ids: frozenset[int] = frozenset()
    stream: TextStream | None = None
    scored: int | None = None
    number: int = field(default_factory=lambda: next(_numbers))
    output: list[int] = field(default_factory=list)
    logprobs: list[LogProb] = field(default_factory=list)
    scores: list[LogProb] = field(default_factory=list)
    finish: Finish | None = None
    computed: int = 0
    shared: int = 0
    pages: list[int] = field(default_factory=list)
    _generator: torch.Generator | None = None

    @property
    def text(self) -> str:
        """The answer so far; empty where the engine has no tokenizer."""
        return self.stream.text if self.stream is not None else ""

    @property
    def tokens(self) -> int:
        """Tokens that are known: the prompt's and the answer's."""
        return len(self.prompt) + len(self.output)

    def generator(self, device: torch.device) -> torch.Generator:
        """Its own: what else runs draws nothing from it."""
        if self._generator is None:
            self._generator = torch.Generator(device)
            if self.sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self.sampling.seed)
        return self._generator

    def take(self, token: int) -> None:
        """The next token of the answer; it may end it."""
        self.output.append(token)
        finish: Finish | None = None
        if token in self.stop_ids or (self.stream is not None and self.stream.push(token)):
            finish = "stop"
        elif len(self.output) >= self.sampling.max_new_tokens:
            finish = "length"
        if finish is not None and self.stream is not None:
            self.stream.finish(cut=finish == "length")
        self.finish = finish  # at the end: other threads read the text when they see it


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens [start, stop) of a request are computed now."""

    request: Request
    start: int
    stop: int

    @property
    def tokens(self) -> list[int]:
        request, prompt = self.request, len(self.request.prompt)
        return request.prompt[self.start : self.stop] if self.stop <= prompt else request.output[self.start - prompt :]

    @property
    def whole(self) -> bool:
        """Whether all known tokens are then computed, and the next one can be chosen."""
        return self.stop == self.request.tokens

    @property
    def wanted(self) -> int:
        """How many of its last tokens' logits are asked for."""
        request = self.request
        if request.scored is not None and self.stop <= len(request.prompt):
            return max(0, min(self.stop, len(request.prompt) - 1) - max(self.start, request.scored - 1)) + (
                self.stop == len(request.prompt)
            )
        return int(self.whole)


class Scheduler:
    """Requests that wait, in order, and those that run, at most `max_batch`. A request runs once all its pages are there."""

    def __init__(self, cache: Cache, *, max_batch: int, chunk: int, max_tokens: int) -> None:
        self.cache, self.max_batch, self.chunk, self.max_tokens = cache, max_batch, chunk, max(max_tokens, chunk)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._lock = threading.Lock()

    def add(self, *requests: Request) -> None:
        """All or none. Raises ToolError (3) for a request that the whole cache could not hold."""
        for request in requests:
            if (needed := self.pages_of(request)) > self.cache.pages:
                tokens = len(request.prompt) + request.sampling.max_new_tokens
                raise ToolError(
                    f"{tokens} tokens need {needed} pages of the cache, which has {self.cache.pages}",
                    hint="ask for fewer new tokens, or raise --cache-tokens",
                )
        with self._lock:
            self.waiting += requests

    def pages_of(self, request: Request) -> int:
        """How many pages of the cache it takes."""
        return -(-(len(request.prompt) + request.sampling.max_new_tokens) // self.cache.page_size)

    def plan(self) -> list[Work]:
        """One token of each request that answers, and chunks of prompts while there is room for them."""
        with self._lock:
            self._admit()
            running = list(self.running)
        left = self.max_tokens
        work = [Work(r, r.computed, r.tokens) for r in running if r.computed >= len(r.prompt)]
        for request in running:
            start, prompt = request.computed, len(request.prompt)
            stop = min(start - start % self.chunk + self.chunk, prompt)
            if start < prompt and (stop - start <= left or not work):
                work.append(Work(request, start, stop))
                left -= stop - start
        return work

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_batch:
            request = self.waiting[0]
            shared = self.cache.share(request.prompt, self.chunk) if request.scored is None else []
            needed = self.pages_of(request) - len(shared)
            if needed > self.cache.room:
                self.cache.give_back(shared)
                return
            request.pages = shared + self.cache.take(needed)
            request.computed = request.shared = len(shared) * self.cache.page_size
            self.running.append(self.waiting.popleft())

    def computed(self, work: Work) -> None:
        """The keys of these tokens are in the cache."""
        request, prompt = work.request, len(work.request.prompt)
        request.computed = work.stop
        if work.stop == prompt:
            self.cache.remember(request.prompt, request.pages)

    def abort(self, request: Request) -> None:
        """The answer is not wanted any more. May be called from another thread."""
        with self._lock:
            if request.finish is None:
                request.finish = "aborted"
            if request in self.waiting:
                self.waiting.remove(request)

    def sweep(self) -> None:
        """Requests that are done give their pages back."""
        with self._lock:
            for request in [r for r in self.running if r.finish is not None]:
                self.running.remove(request)
                self.cache.give_back(request.pages)
                request.pages = []
