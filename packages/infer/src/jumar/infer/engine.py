"""Engine: requests in, tokens out. `step` computes one batch."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jumar.device import Device
from jumar.infer.batch import Part, make_batch
from jumar.infer.faults import hardware_faults
from jumar.infer.memory import check_fits, free_bytes
from jumar.infer.opening import UNLIMITED, Computes, Defaults, Opened, open_model
from jumar.infer.sampling import Sampling, choose_tokens, log_prob
from jumar.infer.scheduler import Request, Scheduler, Work
from jumar.infer.tokenizer import TextStream, Tokenizer
from jumar.schema.errors import ToolError

PAGE = 32
USUAL = 2048
"""Tokens of a request, its answer included, that few have more of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """max_batch: requests at once, None: as many of USUAL tokens as the cache may hold, from 2 to 64 on a CPU, 256 elsewhere;
    chunk: tokens of a prompt at once; cache_tokens: positions in the cache, None: as many as a share of the free memory holds,
    and requests can use; max_tokens: tokens of prompts in one step."""

    max_batch: int | None = 8
    chunk: int = 256
    cache_tokens: int | None = None
    max_tokens: int = 1024


class Engine:
    """A model that answers. Not for several threads, but `add` and `abort` may come from others than that of `step`.

    notes: what was chosen on opening, and why, a line each
    max_batch: requests at once
    leads: other ranks compute what this one computes (see `followers`); else all of them do the same by themselves
    """

    leads = False

    def __init__(self, opened: Opened, limits: Limits | None = None, *, paged: bool | None = None) -> None:
        limits = limits or Limits()
        self.decoder: Computes = opened.decoder
        self.device: Device = opened.device
        self.tokenizer: Tokenizer | None = opened.tokenizer
        self.defaults: Defaults = opened.defaults
        self.notes = opened.notes
        self.context = opened.context
        self.paged = not self.device.host if paged is None else paged
        chunk = -(-(limits.chunk if self.decoder.in_chunks else self.context) // PAGE) * PAGE
        self.max_batch = limits.max_batch or self._at_once(limits.cache_tokens)
        pages = self._pages(limits.cache_tokens)
        with hardware_faults():
            self.cache = self.decoder.cache(pages, PAGE, self.max_batch)
        self.scheduler = Scheduler(self.cache, max_batch=self.max_batch, chunk=chunk, max_tokens=limits.max_tokens)

    @classmethod
    def open(cls, path: str | Path, limits: Limits | None = None, **options: Any) -> Engine:
        """The model of a directory; options as those of `open_model`."""
        limits = limits or Limits()
        return cls(open_model(Path(path), alone=limits.max_batch == 1, **options), limits)

    def _at_once(self, cache_tokens: int | None) -> int:
        """How many requests of USUAL tokens, or of the context, the cache may hold."""
        tokens, each = min(self.context, USUAL), self.decoder.token_bytes()
        if cache_tokens is not None:
            found = cache_tokens // tokens
        else:
            found = self._for_cache(free_bytes(self.device)) // max(tokens * each + self.decoder.place_bytes(), 1)
        return self.decoder.ranks.same(max(2, min(found, 64 if self.device.host else 256)))

    def _for_cache(self, free: int) -> int:
        """What of the free memory is for the cache: on a CPU others need some."""
        return int(free * (0.25 if self.device.host else 0.8))

    def _pages(self, tokens: int | None) -> int:
        """Pages of the cache. Raises ToolError (4) where the memory does not hold them."""
        each, free = self.decoder.token_bytes(), free_bytes(self.device)
        states = self.max_batch * self.decoder.place_bytes()
        if tokens is None:
            left = max(self._for_cache(free) - states, 0)
            most = left // each if each else UNLIMITED
            tokens = max(PAGE, min(self.max_batch * (self.context + PAGE), most))
        hint = f"a token needs {each} bytes: give --cache-tokens a smaller number" + (", or --max-batch" if states else "")
        what = f"keys and values of {tokens} tokens" + (f", and states of {self.max_batch} requests" if states else "")
        check_fits(what, tokens * each + states, free, self.device.name, hint)
        return self.decoder.ranks.same(-(-tokens // PAGE))

    # --- requests

    def add(
        self, prompt: str | Sequence[int], sampling: Sampling | None = None, *, special: bool = True, scored: int | None = None
    ) -> Request:
        """A request that waits for its turn. special: a text gets what the tokenizer puts around it (BOS).

        scored: log-probabilities of the prompt's tokens from this one on are wanted. max_new_tokens is cut to the context.
        Raises ToolError (3) for a prompt that is empty, or longer than the context.
        """
        request = self.request(prompt, sampling, special=special, scored=scored)
        self.scheduler.add(request)
        return request

    def request(
        self, prompt: str | Sequence[int], sampling: Sampling | None = None, *, special: bool = True, scored: int | None = None
    ) -> Request:
        """A request that waits for nothing yet; as `add`."""
        sampling = sampling or self.defaults.sampling()
        ids = self.encode(prompt, special=special) if isinstance(prompt, str) else list(prompt)
        self._check(ids, sampling, scored)
        sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, self.context - len(ids)))
        stops = frozenset(sampling.stop_ids) | (frozenset() if sampling.ignore_eos else frozenset(self.defaults.eos_ids))
        stream = TextStream(self.tokenizer, sampling.stop) if self.tokenizer is not None else None
        return Request(ids, sampling, stops, stream, scored)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text. Raises ToolError (3) without a tokenizer."""
        return self.needs_tokenizer().encode(text, special=special)

    def needs_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises ToolError (3) where there is none."""
        if self.tokenizer is None:
            raise ToolError("the checkpoint has no tokenizer", hint="give one: --tokenizer DIR")
        return self.tokenizer

    def _check(self, ids: list[int], sampling: Sampling, scored: int | None) -> None:
        if not ids:
            raise ToolError("the prompt is empty, and this tokenizer begins no text by itself", hint="write something")
        if len(ids) + (scored is None and sampling.max_new_tokens > 0) > self.context:
            what, more = ("prompt", ", the answer included") if scored is None else ("text", "")
            raise ToolError(
                f"the {what} has {len(ids)} tokens, and the model's context is {self.context}{more}", hint=f"shorten the {what}"
            )
        vocab = self.decoder.vocab_size
        if bad := [i for i in ids if not 0 <= i < vocab]:
            raise ToolError(
                f"token {bad[0]} is outside the vocabulary of {vocab}", hint="does the tokenizer belong to the model?"
            )
        if sampling.stop:
            self.needs_tokenizer()

    def abort(self, request: Request) -> None:
        """Forget a request; its pages are free after the next step. May be called from any thread."""
        self.scheduler.abort(request)

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.scheduler.waiting or self.scheduler.running)

    # --- computing

    def step(self) -> list[Request]:
        """Computes one batch. Returns the requests that went on: those with a new token, or that are done."""
        self.scheduler.sweep()
        work = self.scheduler.plan()
        if not work:
            return []
        return self._take(work, self.compute([self._part(w) for w in work]))

    def _part(self, work: Work) -> Part:
        pages = work.request.pages
        return Part(work.tokens, work.start, pages, work.request.tokens, work.wanted, self.cache.place(pages))

    def compute(self, parts: Sequence[Part]) -> Tensor:
        """Logits of the tokens that are asked for, [rows, vocab]; the keys of all are in the cache then."""
        with hardware_faults():
            if self.leads:
                self.decoder.ranks.tell(parts)
            batch = make_batch(parts, self.cache, self.decoder.device, paged=self.paged)
            return self.decoder(batch, self.cache)

    @torch.inference_mode()
    def _take(self, work: list[Work], logits: Tensor) -> list[Request]:
        answering, rows, moved = [], [], []
        for item, of_it in zip(work, torch.split(logits, [w.wanted for w in work]), strict=True):
            request = item.request
            self.scheduler.computed(item)
            if request.scored is not None:
                _score(request, item.stop, of_it)
            if item.whole and request.sampling.max_new_tokens > 0:
                answering.append(request)
                rows.append(of_it[-1])
            elif item.whole:
                request.finish = request.finish or "length"
                moved.append(request)
        if answering:
            for request, token in zip(answering, choose_tokens(torch.stack(rows), answering), strict=True):
                if request.finish is None:
                    request.take(token)
            moved += answering
        self.scheduler.sweep()
        return moved

    def run(self, requests: Iterable[Request]) -> None:
        """Steps until these are done."""
        left = [r for r in requests if r.finish is None]
        while left:
            self.step()
            left = [r for r in left if r.finish is None]

    def generate(self, prompts: Sequence[str | Sequence[int]], sampling: Sampling | None = None) -> list[Request]:
        """All prompts, answered."""
        requests = [self.add(prompt, sampling) for prompt in prompts]
        self.run(requests)
        return requests

    def stream(self, request: Request) -> Generator[str, None, None]:
        """The text of an answer as it comes; the request is aborted if nobody listens any more."""
        try:
            while request.finish is None:
                self.step()
                assert request.stream is not None
                if text := request.stream.take(last=request.finish is not None):
                    yield text
        finally:
            self.abort(request)
            self.scheduler.sweep()

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Request]:
        """Log-probabilities of each continuation after its context, in `scores` of what is returned; nothing is generated."""
        sampling = Sampling(max_new_tokens=0)
        requests = [self.add([*context, *rest], sampling, scored=len(context)) for context, rest in pairs]
        self.run(requests)
        return requests


def _score(request: Request, stop: int, logits_RV: Tensor) -> None:
    """Row i of the last rows of tokens [.., stop) tells the token after it."""
    first = stop - len(logits_RV) + 1
    for row, at in zip(logits_RV, range(first, min(stop + 1, len(request.prompt))), strict=False):
        request.scores.append(log_prob(row, request.prompt[at], request.sampling.logprobs or 1))
