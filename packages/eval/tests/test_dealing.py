"""Requests in parts."""

from __future__ import annotations

import random

from jumar.eval.dealing import HEADS, Deal
from jumar.eval.requests import Request


def parts_of(requests: list[Request], copies: int) -> list[list[int]]:
    deal, out = Deal(requests, copies), list[list[int]]()
    while part := deal.take():
        out.append(part)
    return out


def subjects(count: int, documents: int) -> list[Request]:
    """Four choices of each document, worked examples of each subject."""
    return [
        Request("loglikelihood", head + f"question {doc}", f" {choice}", head)
        for head in (f"{subject} " * 20 for subject in range(count))
        for doc in range(documents)
        for choice in "ABCD"
    ]


def test_everything_is_dealt_once_and_contexts_stay_together() -> None:
    requests = subjects(5, 40)
    random.Random(0).shuffle(requests)
    for copies in (1, 2, 7, 100):
        parts = parts_of(requests, copies)
        assert sorted(number for part in parts for number in part) == list(range(len(requests)))
        contexts = [{requests[number].context for number in part} for part in parts]
        assert sum(map(len, contexts)) == 5 * 40
    assert len(parts_of(requests, 1)) == 1
    assert parts_of([], 3) == []


def test_a_head_is_computed_again_only_where_enough_comes_after_it() -> None:
    requests = subjects(6, 300)
    parts = parts_of(requests, 4)
    assert len(parts) > 8
    for part in parts:
        for head in {requests[number].head for number in part}:
            own = {requests[n].context for n in part if requests[n].head == head}
            assert sum(len(context) - len(head) for context in own) + 2 * 4 * len(own) >= HEADS * len(head)
    assert len(parts_of(subjects(1, 3), 4)) == 1


def test_parts_are_smaller_at_the_end() -> None:
    """What copies wait for one another at the end is little."""
    requests = [Request("generate", f"{number:04}", until=("\n",), max_new_tokens=64) for number in range(1000)]
    sizes = [len(part) for part in parts_of(requests, 4)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 125
    assert sizes[-1] <= 16
