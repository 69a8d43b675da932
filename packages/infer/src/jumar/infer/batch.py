"""What one pass through the model computes: new tokens of several sequences, one after another in one row of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jumar.infer.cache import Cache
from jumar.infer.states import Where, where


@dataclass(frozen=True, slots=True)
class Part:
    """The tokens of one sequence from position `start` on.

    pages:  of the whole sequence
    length: of the text as far as it is known (dynamic RoPE scaling asks)
    wanted: the logits of so many of its tokens are asked for, of the last ones
    place:  where the model keeps its state, if it keeps states
    """

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]
    length: int
    wanted: int = 1
    place: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """Where a part stands in the batch: `count` rows from `at`. keys: where the sequence's first `end` keys lie in the cache."""

    at: int
    count: int
    end: int
    length: int
    keys: slice | Tensor
    place: int


@dataclass(frozen=True, slots=True)
class Batch:
    """tokens_T, positions_T, slots_T int64: slots are places in the cache. wanted: rows whose logits are asked for.

    paged: those spans of one token that go through the kernel for pages (rows, block table, lengths); None: all are one by one
    single: rows and places of the spans of one token, where there are any and the model keeps states
    """

    tokens_T: Tensor
    positions_T: Tensor
    slots_T: Tensor
    spans: tuple[Span, ...]
    wanted: Tensor
    paged: tuple[Tensor, Tensor, Tensor] | None = None
    single: tuple[Where, Where] | None = None

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """(rows, length of the text) of each span."""
        return [(s.count, s.length) for s in self.spans]


def make_batch(parts: Sequence[Part], cache: Cache, device: torch.device, *, paged: bool) -> Batch:
    """One row of tokens from all parts; paged: parts of one token go through the kernel for pages."""
    tokens: list[int] = []
    positions, slots, spans, wanted = [], [], [], list[int]()
    for part in parts:
        at, count = len(tokens), len(part.tokens)
        end = part.start + count
        alone = paged and count == 1
        keys = slice(0, 0) if alone else cache.rows(part.pages, end)
        spans.append(Span(at, count, end, part.length, keys, part.place))
        if cache.states is not None and part.start == 0:
            cache.states.clear(part.place)
        tokens += part.tokens
        positions.append(torch.arange(part.start, end))
        slots.append(cache.slots(part.pages, part.start, end))
        wanted += range(at + count - part.wanted, at + count)
    return Batch(
        torch.tensor(tokens, device=device),
        torch.cat(positions).to(device),
        torch.cat(slots).to(device),
        tuple(spans),
        torch.tensor(wanted, dtype=torch.int64, device=device),
        _tables(parts, spans, device) if paged else None,
        _single(spans, device) if cache.states is not None else None,
    )


def _single(spans: Sequence[Span], device: torch.device) -> tuple[Where, Where] | None:
    single = [span for span in spans if span.count == 1]
    return (where([s.at for s in single], device), where([s.place for s in single], device)) if single else None


def _tables(parts: Sequence[Part], spans: Sequence[Span], device: torch.device) -> tuple[Tensor, Tensor, Tensor] | None:
    """Rows, block table and lengths (on the host, where the kernels want them) of the parts of one token."""
    single = [(part, span) for part, span in zip(parts, spans, strict=True) if span.count == 1]
    if not single:
        return None
    widest = max(len(part.pages) for part, _ in single)
    table = [[*part.pages, *[part.pages[-1]] * (widest - len(part.pages))] for part, _ in single]
    return (
        torch.tensor([span.at for _, span in single], device=device),
        torch.tensor(table, dtype=torch.int32, device=device),
        torch.tensor([span.end for _, span in single], dtype=torch.int32),
    )
