"""Greedy answers by an engine: what prompts begin with is computed once, an answer that is done makes room for the next.

Keys of the shared beginning are copied into each prompt's own pages, side by side: read at every step, they need no gathering.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jumar.eval.computing import Run, compute_runs, needed, pages_of

if TYPE_CHECKING:
    from jumar.infer import Engine, Request


@dataclass(eq=False, slots=True)
class Answering:
    """A request on its way. shared: so many of its tokens are those of the head, at most all but the last."""

    request: Request
    shared: int = 0


def answer_all(
    engine: Engine, head: Sequence[int], prompts: Iterable[Answering], done: Callable[[Answering], None], *, at_once: int
) -> None:
    """Answers all prompts, `at_once` at a time; `done` is told of each. head: tokens that `Answering.shared` counts.

    Raises ToolError (4) for a prompt that the whole cache cannot hold.
    """
    waiting = deque(sorted(prompts, key=lambda prompt: -len(prompt.request.prompt)))
    cache, running = engine.cache, list[Answering]()
    shared = list(head) if any(prompt.shared for prompt in waiting) else []
    held = cache.take(needed(engine, pages_of(engine, len(shared)))) if shared else []
    try:
        compute_runs(engine, [Run(shared, 0, held, [])])
        while waiting or running:
            new = _admitted(engine, waiting, at_once - len(running), first=not running)
            for prompt in (p for p in new if p.shared):
                count = pages_of(engine, prompt.shared)
                cache.copy([held[:count]], [prompt.request.pages[:count]], prompt.shared)
            running += new
            compute_runs(engine, [_prompt_run(prompt) if prompt in new else _next_run(prompt) for prompt in running])
            for prompt in [p for p in running if p.request.finish is not None]:
                running.remove(prompt)
                _leave(engine, prompt)
                done(prompt)
    finally:
        for prompt in running:
            _leave(engine, prompt)
        cache.give_back(held)


def _admitted(engine: Engine, waiting: deque[Answering], most: int, *, first: bool) -> list[Answering]:
    """Those that have a place now, with their pages."""
    out: list[Answering] = []
    while waiting and len(out) < most:
        request = waiting[0].request
        pages = pages_of(engine, len(request.prompt) + request.sampling.max_new_tokens)
        if pages > engine.cache.room and (out or not first):
            break
        request.pages = engine.cache.take(needed(engine, pages))
        out.append(waiting.popleft())
    return out


def _leave(engine: Engine, prompt: Answering) -> None:
    engine.cache.give_back(prompt.request.pages)
    prompt.request.pages = []


def _prompt_run(prompt: Answering) -> Run:
    request = prompt.request
    last = len(request.prompt) - 1
    return Run(request.prompt[prompt.shared :], prompt.shared, request.pages, [(last, 0, _takes(request))])


def _next_run(prompt: Answering) -> Run:
    request = prompt.request
    at = request.tokens - 1
    return Run(request.output[-1:], at, request.pages, [(at, 0, _takes(request))])


def _takes(request: Request) -> Callable[[float, int], None]:
    return lambda _, best: request.take(best)
