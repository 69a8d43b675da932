"""Tokens of several texts through an engine, in batches, and what is asked of their logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jumar.infer.batch import Part
from jumar.schema.errors import Exit, ToolError

if TYPE_CHECKING:
    from jumar.infer import Engine

CHUNK = 512
"""Tokens of one text that are computed at once."""
TOKENS = 1024
"""Tokens of one batch, about."""

Told = Callable[[float, int], None]
"""Is told the log-probability of the token that was asked for, and the most probable token."""
Ask = tuple[int, int, Told]
"""(position, token after it, who is told)."""


@dataclass(eq=False, slots=True)
class Run:
    """Tokens from position `start` on that are computed in order, and what is asked about them."""

    tokens: Sequence[int]
    start: int
    pages: list[int]
    asks: list[Ask]
    done: int = 0


def shares(engine: Engine) -> bool:
    """Whether what texts begin with can be shared: keys are all that is kept of a text, and it may be computed piece by piece."""
    return engine.cache.states is None and engine.decoder.in_chunks


def pages_of(engine: Engine, tokens: int) -> int:
    """Pages that so many tokens fill."""
    return -(-tokens // engine.cache.page_size)


def needed(engine: Engine, pages: int) -> int:
    """`pages`. Raises ToolError (4) where the cache has not so many left."""
    if pages > engine.cache.room:
        size, room = engine.cache.page_size, engine.cache.room
        what = f"a text needs {pages * size} tokens of the cache, which has {room * size}"
        raise ToolError(what, hint="raise --cache-tokens", code=Exit.ENVIRONMENT)
    return pages


@torch.inference_mode()
def compute_runs(engine: Engine, runs: Sequence[Run]) -> None:
    """Every run, in chunks of its own; whoever asked is told."""
    most = CHUNK if engine.decoder.in_chunks else engine.context
    left = [run for run in runs if run.tokens]
    while left:
        parts: list[Part] = []
        asked, tokens = list[list[Ask]](), 0
        for run in left:
            chunk = run.tokens[run.done : run.done + most]
            if parts and tokens + len(chunk) > max(TOKENS, most):
                break
            start, stop = run.start + run.done, run.start + run.done + len(chunk)
            asks = [ask for ask in run.asks if start <= ask[0] < stop]
            wanted = stop - min((at for at, _, _ in asks), default=stop)
            parts.append(Part(chunk, start, run.pages, stop, wanted, engine.cache.place(run.pages)))
            asked.append([(at - stop + wanted, token, told) for at, token, told in asks])
            run.done += len(chunk)
            tokens += len(chunk)
        _tell(engine.compute(parts), [part.wanted for part in parts], asked)
        left = [run for run in left if run.done < len(run.tokens)]


def _tell(logits_RV: Tensor, wanted: Sequence[int], asked: Sequence[Sequence[Ask]]) -> None:
    """wanted: rows of each part; asked: of each part (row, token, who is told)."""
    if not len(logits_RV):
        return
    starts = [sum(wanted[:i]) for i in range(len(wanted))]
    flat = [(start + row, token, told) for start, asks in zip(starts, asked, strict=True) for row, token, told in asks]
    logs, best = logits_RV.log_softmax(-1), logits_RV.argmax(-1).tolist()
    rows = torch.tensor([row for row, _, _ in flat], device=logs.device)
    tokens = torch.tensor([token for _, token, _ in flat], device=logs.device)
    for (row, _, told), value in zip(flat, logs[rows, tokens].tolist(), strict=True):
        told(value, best[row])
