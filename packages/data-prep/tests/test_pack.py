"""Packing against the plain algorithm, and what it promises of order and memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jumar.data_prep.pack import pack


def plain_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """The rooms left by best-fit decreasing as it is defined, O(n^2)."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fits = [(room, b) for b, room in enumerate(rooms) if room >= length]
        if fits:
            rooms[min(fits)[1]] -= length
        else:
            rooms.append(capacity - length)
    return rooms


def greedy_knapsack(lengths: list[int], capacity: int) -> int:
    """Bins when each in turn takes the largest sample that still fits."""
    left, bins = sorted(lengths), 0
    while left:
        room, bins = capacity, bins + 1
        while left and left[0] <= room:
            at = int(np.searchsorted(left, room, side="right")) - 1
            room -= left.pop(at)
    return bins


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], int, int]:
    capacity = draw(st.integers(1, 70))
    return draw(st.lists(st.integers(1, capacity), max_size=60)), capacity, draw(st.integers(1, 80))


@given(cases())
def test_every_sample_once_and_as_full_as_the_plain_algorithm(case: tuple[list[int], int, int]) -> None:
    lengths, capacity, window = case
    array, seen = np.array(lengths, np.int32), []
    for number, packed in enumerate(pack(array, capacity, window=window)):
        part = lengths[number * window : (number + 1) * window]
        sums = [int(array[b].sum()) for b in packed]
        assert max(sums) <= capacity
        assert sorted(packed.order.tolist()) == list(range(number * window, number * window + len(part)))
        assert sorted(capacity - s for s in sums) == sorted(plain_best_fit(part, capacity))
        assert -(-sum(part) // capacity) <= len(packed) <= greedy_knapsack(part, capacity) * 11 / 9 + 4
        assert all((np.diff(b) > 0).all() for b in packed)
        firsts = [int(b[0]) for b in packed]
        assert firsts == sorted(firsts)
        seen += packed.order.tolist()
    assert len(seen) == len(lengths)


@given(cases())
def test_the_same_again(case: tuple[list[int], int, int]) -> None:
    lengths, capacity, window = case
    once, again = (
        [(p.order.tolist(), p.starts.tolist()) for p in pack(np.array(lengths), capacity, window=window)] for _ in "ab"
    )
    assert once == again


def test_bins_in_the_order_of_the_data() -> None:
    (packed,) = pack(np.array([3, 10, 7, 2, 8]), 10)
    assert [b.tolist() for b in packed] == [[0, 2], [1], [3, 4]]


def test_as_full_as_a_greedy_knapsack_on_lengths_like_real_ones() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 1.0, 4000).astype(np.int64), 8, 4096)
    (packed,) = pack(lengths, 4096)
    assert len(packed) <= greedy_knapsack(lengths.tolist(), 4096)
    assert len(packed) <= -(-lengths.sum() // 4096) + 1


@pytest.mark.parametrize(("bad", "at"), [(0, 2), (11, 2), (-1, 2)])
def test_lengths_that_cannot_be_packed_are_named_before_anything_is_packed(bad: int, at: int) -> None:
    with pytest.raises(ValueError, match=f"sample {at} has length {bad}, expected 1 to 10"):
        pack(np.array([1, 2, bad]), 10, window=1)


def test_nothing_to_pack() -> None:
    assert list(pack(np.empty(0, np.int32), 10)) == []
