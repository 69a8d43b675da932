"""Workers: order, faults, what is large, and that none is left."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator

import pytest

from jumar.data_prep.pool import ordered

LARGE = 1 << 20


def test_what_is_larger_than_a_pipe_in_both_directions() -> None:
    items = [bytes([i]) * LARGE for i in range(20)]
    assert list(ordered(items, lambda item: item[::-1] + b"x", 3)) == [item + b"x" for item in items]


def test_the_order_is_that_of_the_items_and_a_slow_one_is_not_run_away_from() -> None:
    read = []

    def items() -> Iterator[float]:
        for i in range(30):
            read.append(i)
            yield 0.5 if i == 0 else 0.0

    results = ordered(items(), lambda seconds: time.sleep(seconds) or seconds, 2)
    assert next(results) == 0.5
    assert len(read) <= 8
    assert list(results) == [0.0] * 29


def test_a_fault_is_raised_when_its_turn_comes() -> None:
    results = ordered(range(10), lambda i: 1 // (i - 3), 2)
    assert [next(results) for _ in range(3)] == [-1, -1, -1]
    with pytest.raises(ZeroDivisionError) as caught:
        next(results)
    assert "in <lambda>" in str(caught.value.__cause__)


def test_a_result_that_cannot_be_sent_is_told() -> None:
    with pytest.raises(Exception, match="pickle"):
        list(ordered(range(3), lambda i: lambda: i, 2))


@pytest.mark.parametrize("count", [0, 1, 5])
def test_no_worker_is_left(count: int) -> None:
    assert list(ordered(range(count), lambda i: i, 4)) == list(range(count))
    assert not multiprocessing.active_children()


def test_given_up_while_workers_send() -> None:
    """Nobody waits for the rest of a result that is cut off."""
    for _ in range(10):
        results = ordered(range(100), lambda i: bytes(16 * LARGE), 2)
        next(results)
        results.close()
        assert not multiprocessing.active_children()
