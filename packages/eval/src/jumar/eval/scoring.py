"""Log-likelihoods by an engine: what many contexts begin with is computed once, a context once for all its continuations.

What is computed of a text at once depends on the text alone: its own beginning (the worked examples), the rest of its context in
whole chunks, each continuation by itself. With rows that do not depend on one another (`Engine.compute`), neither do its scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jumar.eval.computing import TOKENS, Run, compute_runs, needed, pages_of, shares

if TYPE_CHECKING:
    from jumar.infer import Engine


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


def score(engine: Engine, head: Sequence[int], texts: Iterable[Text], done: Callable[[Text], None]) -> None:
    """Scores all texts; `done` is told of each. head: tokens that `Text.shared` counts.

    Raises ToolError (4) for a text that the whole cache cannot hold.
    """
    if not shares(engine):
        _plainly(engine, texts, done)
        return
    ordered = sorted(texts, key=lambda text: -len(text.context))
    cache = engine.cache
    shared = list(head) if any(text.shared for text in ordered) else []  # the whole of it: what is computed at once matters
    held = cache.take(needed(engine, pages_of(engine, len(shared)))) if shared else []
    try:
        compute_runs(engine, [Run(shared, 0, held, [])])
        for wave in _waves(engine, ordered):
            _wave(engine, held, wave)
            for text in wave:
                done(text)
    finally:
        cache.give_back(held)


def _plainly(engine: Engine, texts: Iterable[Text], done: Callable[[Text], None]) -> None:
    """Every continuation with all of its context, one after another."""
    for text in texts:
        for rest, scores in zip(text.rests, text.scores, strict=True):
            tokens, last = [*text.context, *rest[:-1]], len(text.context) - 1
            pages = engine.cache.take(needed(engine, pages_of(engine, len(tokens))))
            asks = [(last + i, token, _into(scores, token)) for i, token in enumerate(rest)]
            try:
                compute_runs(engine, [Run(tokens, 0, pages, asks)])
            finally:
                engine.cache.give_back(pages)
        done(text)


def _own_pages(engine: Engine, text: Text) -> int:
    """Pages that a text takes beside those of the head."""
    size = engine.cache.page_size
    own = pages_of(engine, len(text.context)) - text.shared // size
    long = (rest for rest in text.rests if len(rest) > 1)
    return own + sum(pages_of(engine, len(text.context) + len(rest) - 1) - len(text.context) // size for rest in long)


def _waves(engine: Engine, texts: Sequence[Text]) -> Iterator[list[Text]]:
    """Texts that are computed together: so many tokens, and no more than the cache holds."""
    wave: list[Text] = []
    tokens = pages = 0
    for text in texts:
        new, own = len(text.context) - text.shared, _own_pages(engine, text)
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
        own = engine.cache.take(needed(engine, pages_of(engine, end) - full))
        taken.extend(own)
        if position % engine.cache.page_size and own:
            copies.append((pages[full], own[0]))
        return [*pages[:full], *own]

    def compute(runs: list[Run]) -> None:
        sources, targets = [[a] for a, _ in copies], [[b] for _, b in copies]
        engine.cache.copy(sources, targets, engine.cache.page_size)
        copies.clear()
        compute_runs(engine, runs)

    try:
        runs = [_context_run(text, branch(head, text.shared, len(text.context))) for text in texts]
        compute(runs)
        compute([fork for text, run in zip(texts, runs, strict=True) for fork in _forks(text, run.pages, branch)])
    finally:
        engine.cache.give_back(taken)


def _context_run(text: Text, pages: list[int]) -> Run:
    """The context: its last token tells the first of every continuation."""
    last = len(text.context) - 1
    asks = [(last, rest[0], _into(scores, rest[0])) for rest, scores in zip(text.rests, text.scores, strict=True) if rest]
    return Run(text.context[text.shared :], text.shared, pages, asks)


def _forks(text: Text, pages: list[int], branch: Callable[[list[int], int, int], list[int]]) -> Iterator[Run]:
    """Continuations of more than one token."""
    start = len(text.context)
    for rest, scores in zip(text.rests, text.scores, strict=True):
        if len(rest) > 1:
            asks = [(start + i, token, _into(scores, token)) for i, token in enumerate(rest[1:])]
            yield Run(rest[:-1], start, branch(pages, start, start + len(rest) - 1), asks)


def _into(scores: list[tuple[float, bool]], token: int) -> Callable[[float, int], None]:
    return lambda value, best: scores.append((value, best == token))
