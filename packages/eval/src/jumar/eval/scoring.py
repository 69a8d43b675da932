"""Log-likelihoods by an engine: what many contexts begin with is computed once, a context once for all its continuations.

What is computed of a text at once depends on the text alone: its own beginning (the worked examples), the rest of its context in
whole chunks, each continuation. With rows that do not depend on one another (`Engine.compute`), neither do its scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jumar.infer.batch import Part
from jumar.schema.errors import ToolError

if TYPE_CHECKING:
    from jumar.infer import Engine

CHUNK = 512
"""Tokens of one text that are computed at once."""
TOKENS = 1024
"""Tokens of one batch, about."""


@dataclass(eq=False, slots=True)
class Text:
    """A context and its continuations. shared: so many tokens of it are those of the head, at most all but the last.

    scores: of each continuation the log-probabilities of its tokens, and whether each was the most probable one
    """

    context: list[int]
    rests: list[list[int]]
    shared: int = 0
    scores: list[list[tuple[float, bool]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scores = [[] for _ in self.rests]

    @property
    def first(self) -> list[int]:
        """What is computed at once: the context, and a continuation that is alone, but for its last token."""
        return [*self.context, *self.rests[0][:-1]] if len(self.rests) == 1 else self.context


@dataclass(eq=False, slots=True)
class _Run:
    """Tokens from position `start` on that are computed in order; asks: (position, token that follows, where its score goes)."""

    tokens: list[int]
    start: int
    pages: list[int]
    asks: list[tuple[int, int, list[tuple[float, bool]]]]
    done: int = 0


def score(engine: Engine, head: Sequence[int], texts: Iterable[Text], done: Callable[[Text], None]) -> None:
    """Scores all texts; `done` is told of each. head: tokens that `Text.shared` counts.

    Raises ToolError (4) for a text that the whole cache cannot hold.
    """
    ordered = sorted(texts, key=lambda text: -len(text.first))
    longest = max((text.shared for text in ordered), default=0)
    cache = engine.cache
    held = cache.take(_needed(engine, _pages(engine, longest)))
    try:
        _compute(engine, [_Run(list(head[:longest]), 0, held, [])])
        for wave in _waves(engine, ordered):
            _wave(engine, held, wave)
            for text in wave:
                done(text)
    finally:
        cache.give_back(held)


def _pages(engine: Engine, tokens: int) -> int:
    return -(-tokens // engine.cache.page_size)


def _needed(engine: Engine, pages: int) -> int:
    if pages > engine.cache.room:
        size, room = engine.cache.page_size, engine.cache.room
        raise ToolError(f"a text needs {pages * size} tokens of the cache, which has {room * size}", hint="raise --cache-tokens")
    return pages


def _own_pages(engine: Engine, text: Text) -> int:
    """Pages that a text takes beside those of the head."""
    size = engine.cache.page_size
    own = _pages(engine, len(text.first)) - text.shared // size
    forks = sum(_pages(engine, len(text.context) + len(rest) - 1) - len(text.context) // size for rest in _long(text))
    return own + forks


def _long(text: Text) -> Iterator[list[int]]:
    """Continuations that are computed after the context: of several, those of more than one token."""
    return (rest for rest in text.rests if len(text.rests) > 1 and len(rest) > 1)


def _waves(engine: Engine, texts: Sequence[Text]) -> Iterator[list[Text]]:
    """Texts that are computed together: so many tokens, and no more than the cache holds."""
    wave: list[Text] = []
    tokens = pages = 0
    for text in texts:
        new, own = len(text.first) - text.shared, _own_pages(engine, text)
        if wave and (tokens + new > TOKENS or pages + own > engine.cache.room):
            yield wave
            wave, tokens, pages = [], 0, 0
        wave.append(text)
        tokens, pages = tokens + new, pages + own
    if wave:
        yield wave


def _wave(engine: Engine, head: list[int], texts: Sequence[Text]) -> None:
    taken: list[int] = []
    copies: list[tuple[int, int]] = []

    def branch(pages: list[int], position: int, end: int) -> list[int]:
        """Pages of a text that goes on at `position` of another one: the full ones are shared, the last is copied."""
        full = position // engine.cache.page_size
        own = engine.cache.take(_needed(engine, _pages(engine, end) - full))
        taken.extend(own)
        if position % engine.cache.page_size and own:
            copies.append((pages[full], own[0]))
        return [*pages[:full], *own]

    def compute(runs: list[_Run]) -> None:
        sources, targets = [[a] for a, _ in copies], [[b] for _, b in copies]
        engine.cache.copy(sources, targets, engine.cache.page_size)
        copies.clear()
        _compute(engine, runs)

    try:
        runs = [_first_run(text, branch(head, text.shared, len(text.first))) for text in texts]
        compute(runs)
        compute([fork for text, run in zip(texts, runs, strict=True) for fork in _forks(text, run.pages, branch)])
    finally:
        engine.cache.give_back(taken)


def _first_run(text: Text, pages: list[int]) -> _Run:
    last = len(text.context) - 1
    if len(text.rests) == 1:
        asks = [(last + i, token, text.scores[0]) for i, token in enumerate(text.rests[0])]
    else:
        asks = [(last, rest[0], scores) for rest, scores in zip(text.rests, text.scores, strict=True) if rest]
    return _Run(text.first[text.shared :], text.shared, pages, asks)


def _forks(text: Text, pages: list[int], branch: Callable[[list[int], int, int], list[int]]) -> Iterator[_Run]:
    start = len(text.context)
    for rest, scores in zip(text.rests, text.scores, strict=True):
        if len(text.rests) > 1 and len(rest) > 1:
            asks = [(start + i, token, scores) for i, token in enumerate(rest[1:])]
            yield _Run(rest[:-1], start, branch(pages, start, start + len(rest) - 1), asks)


@torch.inference_mode()
def _compute(engine: Engine, runs: Sequence[_Run]) -> None:
    """Every run, in chunks of its own."""
    left = [run for run in runs if run.tokens]
    while left:
        parts: list[Part] = []
        asked, tokens = [], 0
        for run in left:
            chunk = run.tokens[run.done : run.done + CHUNK]
            if parts and tokens + len(chunk) > max(TOKENS, CHUNK):
                break
            start, stop = run.start + run.done, run.start + run.done + len(chunk)
            asks = [ask for ask in run.asks if start <= ask[0] < stop]
            wanted = stop - min((at for at, _, _ in asks), default=stop)
            parts.append(Part(chunk, start, run.pages, stop, wanted))
            asked.append([(at - stop + wanted, token, scores) for at, token, scores in asks])
            run.done += len(chunk)
            tokens += len(chunk)
        _read(engine.compute(parts), [part.wanted for part in parts], asked)
        left = [run for run in left if run.done < len(run.tokens)]


def _read(logits_RV: Tensor, wanted: Sequence[int], asked: Sequence[Sequence[tuple[int, int, list[tuple[float, bool]]]]]) -> None:
    """asked: of each part (row, token, where its score goes)."""
    if not len(logits_RV):
        return
    starts = [sum(wanted[:i]) for i in range(len(wanted))]
    flat = [(start + row, token, scores) for start, asks in zip(starts, asked, strict=True) for row, token, scores in asks]
    logs, best = logits_RV.log_softmax(-1), logits_RV.argmax(-1).tolist()
    rows = torch.tensor([row for row, _, _ in flat], device=logs.device)
    tokens = torch.tensor([token for _, token, _ in flat], device=logs.device)
    for (row, token, scores), value in zip(flat, logs[rows, tokens].tolist(), strict=True):
        scores.append((value, best[row] == token))
