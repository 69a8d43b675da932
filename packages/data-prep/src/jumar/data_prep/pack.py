"""Which samples share a packed sequence: best-fit decreasing, window by window, so that memory is bounded.

Best-fit decreasing needs at most 11/9 of the optimum's bins (+ 4; Johnson 1973), and on real lengths next to none more.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """The bins of one window: bin b holds the samples `order[starts[b] : starts[b + 1]]`.

    order:  [samples] int64, indices into the lengths given.
    starts: [bins + 1] int64.
    """

    order: Array
    starts: Array

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[Array]:
        return (self.order[start:stop] for start, stop in zip(self.starts[:-1], self.starts[1:], strict=True))


def pack(lengths: Array, capacity: int, *, window: int = 1 << 20) -> Iterator[Packed]:
    """Packs each `window` of consecutive samples by itself. `lengths` may be mapped from a file.

    The same lengths give the same bins. In a bin samples ascend, and bins stand in the order of their first samples, so that
    the data's order is kept as well as packing allows. Raises ValueError, before anything is packed, if a length is not
    within 1 and capacity.
    """
    if capacity < 1 or window < 1:
        raise ValueError(f"capacity {capacity}, window {window}: expected 1 or more")
    for start in range(0, len(lengths), window):
        part = np.asarray(lengths[start : start + window])
        if (wrong := (part < 1) | (part > capacity)).any():
            at = int(wrong.argmax())
            raise ValueError(f"sample {start + at} has length {part[at]}, expected 1 to {capacity}")
    return (_pack_window(np.asarray(lengths[at : at + window]), capacity, at) for at in range(0, len(lengths), window))


def _pack_window(lengths: Array, capacity: int, first: int) -> Packed:
    by_length = np.argsort((capacity - lengths).astype(np.min_scalar_type(capacity)), kind="stable")  # longest first
    bin_of = np.empty(len(lengths), np.int64)
    bin_of[by_length] = _best_fit(lengths[by_length], capacity)
    smallest = np.empty(int(bin_of.max()) + 1, np.int64)
    smallest[bin_of[::-1]] = np.arange(len(lengths))[::-1]  # of several writes to one bin the last stays: its smallest index
    rank = np.empty_like(smallest)
    rank[np.argsort(smallest)] = np.arange(len(smallest))
    bin_of = rank[bin_of]
    starts = np.concatenate(([0], np.cumsum(np.bincount(bin_of))))
    return Packed(np.argsort(bin_of, kind="stable") + first, starts)


def _best_fit(descending: Array, capacity: int) -> list[int]:
    """The bin of each sample, longest first: always the fullest bin that has room, else a new one.

    Samples of one length are placed together: the bin that was the best fit for one is so for the next as long as it has room,
    and bins with the same room are alike. So a step serves all bins of one room, and there are far fewer steps than samples.
    """
    placed: list[int] = []
    bins_with: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys of bins_with, ascending
    opened = 0
    sizes, counts = np.unique(descending, return_counts=True)
    for size, left in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while left:
            at = bisect_left(rooms, size)
            if at < len(rooms):
                room = rooms.pop(at)
                bins = bins_with.pop(room)
            else:
                room, wanted = capacity, -(-left // (capacity // size))
                bins = list(range(opened, opened + wanted))
                opened += wanted
            each = room // size
            full = min(left // each, len(bins))
            rest = min(left - full * each, each) if full < len(bins) else 0  # what the last sample of this size leaves half used
            placed += bins[:full] if each == 1 else [b for b in bins[:full] for _ in range(each)]
            placed += bins[full : full + 1] * rest
            left -= full * each + rest
            _keep(bins_with, rooms, room - each * size, bins[:full])
            if full < len(bins):
                _keep(bins_with, rooms, room - rest * size, bins[full : full + 1])
                _keep(bins_with, rooms, room, bins[full + 1 :])
    return placed


def _keep(bins_with: dict[int, list[int]], rooms: list[int], room: int, bins: list[int]) -> None:
    if not bins or not room:
        return
    if room in bins_with:
        bins_with[room] += bins
    else:
        bins_with[room] = bins
        insort(rooms, room)
