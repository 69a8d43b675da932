"""What is asked of several copies of a model, dealt to them as they are done with what they have."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence

from jumar.eval.requests import Request

HEADS = 4
"""A share of what begins alike is at least so many times as long as that beginning, which each copy computes again."""
LEAST = 16
"""A copy's even share of all is taken in at most about so many parts: of small ones no batches can be made."""
NEW = 16
"""Characters of a prompt that are computed in the time of one new token, about: prompts are computed at once."""


class Deal:
    """Requests in parts for whoever asks for one, from several threads. What begins alike stays together, as far as that goes.

    Parts are half of what would be an even share of the rest: large as long as much is left, small at the end, where
    copies would wait for one another.
    """

    def __init__(self, requests: Sequence[Request], copies: int) -> None:
        self._pieces, self._copies = deque(_pieces(requests)), copies
        self._left = sum(cost for _, cost in self._pieces)
        self._least = self._left / (copies * LEAST)
        self._lock = threading.Lock()

    def take(self) -> list[int]:
        """Numbers of requests; none where all are taken."""
        with self._lock:
            aim = self._left if self._copies == 1 else max(self._left / (2 * self._copies), self._least)
            part, taken = list[int](), 0
            while self._pieces and (not part or taken < aim):
                numbers, cost = self._pieces.popleft()
                part += numbers
                taken += cost
            self._left -= taken
            return part


def _pieces(requests: Sequence[Request]) -> Iterator[tuple[list[int], int]]:
    """(numbers, cost) of what is never dealt apart: requests of one context, and so many contexts that their head is worth it."""
    groups: dict[tuple[bool, str], dict[str, list[int]]] = {}
    for number, request in enumerate(requests):
        groups.setdefault((request.kind == "generate", request.head), {}).setdefault(request.context, []).append(number)
    for (_, head), contexts in groups.items():
        least = HEADS * len(head)
        found: list[tuple[list[int], int]] = []
        numbers, cost = list[int](), 0
        for own in contexts.values():
            numbers += own
            cost += len(requests[own[0]].context) - len(head) + sum(_own_cost(requests[n]) for n in own)
            if cost >= least:
                found.append((numbers, cost))
                numbers, cost = [], 0
        if numbers and found:
            before, less = found.pop()
            numbers, cost = before + numbers, less + cost
        yield from [*found, (numbers, cost)] if numbers else found


def _own_cost(request: Request) -> int:
    return len(request.rest) + (NEW * request.max_new_tokens if request.kind == "generate" else 0)
