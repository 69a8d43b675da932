"""Keys and values in pages, shared between prompts that begin alike.

A request is given all its pages when it is admitted, side by side where that is possible: then its keys are one slice of memory,
and nothing is gathered. Pages whose request is done are kept, until they are needed, for prompts that begin with what they hold.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from jumar.infer.states import Places


class Cache:
    """k[layer], v[layer] [pages, page_size, heads, dim]. v_dim 0: values are in the keys (latent attention), v is k.

    states: what else is kept of sequences, `places` of them at once. A sequence has its place as long as its first page. Pages
    are never shared then: a state does not come apart into what was before and after.
    """

    def __init__(
        self,
        layers: int,
        pages: int,
        page_size: int,
        heads: int,
        k_dim: int,
        v_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        states: Places | None = None,
        places: int = 0,
    ) -> None:
        def empty(dim: int) -> Tensor:
            return torch.empty(pages, page_size, heads, dim, dtype=dtype, device=device)

        self.page_size, self.pages, self.device = page_size, pages, device
        self.states, self.places = states, places
        self._place_of: dict[int, int] = {}
        self._open = list(range(places))
        self.k = [empty(k_dim) for _ in range(layers)]
        self.v = [empty(v_dim) for _ in range(layers)] if v_dim else self.k
        self._fresh = set(range(pages))
        self._users = [0] * pages
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(pages))  # the next to be taken first
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def in_use(self) -> int:
        """Pages that requests hold."""
        return self.pages - len(self._free)

    @property
    def room(self) -> int:
        """Pages that can be taken."""
        return len(self._free) if self.states is None or self._open else 0

    def place(self, pages: Sequence[int]) -> int:
        """Of a sequence by its pages; 0 where nothing is kept beside keys."""
        return 0 if self.states is None else self._place_of[pages[0]]

    def take(self, count: int) -> list[int]:
        """`count` pages, side by side if there are so many. At most `room`."""
        assert count <= self.room
        chosen = self._side_by_side(count) or list(self._free)[:count]
        for page in chosen:
            del self._free[page]
            self._users[page] = 1
            if (key := self._key_of.pop(page, None)) is not None:
                del self._page_of[key]
        self._clear(chosen)
        if self.states is not None:
            self._place_of[chosen[0]] = self._open.pop(0)
        return chosen

    def _clear(self, pages: Sequence[int]) -> None:
        """Memory that was never written may hold NaN, which kernels that mask by weights of zero would spread."""
        if fresh := sorted(self._fresh.intersection(pages)):
            self._fresh.difference_update(fresh)
            for held in {id(t): t for t in (*self.k, *self.v)}.values():
                held[fresh] = 0

    def _side_by_side(self, count: int) -> list[int] | None:
        """The first run of free pages that hold nothing, else of free ones."""
        for pages in (sorted(p for p in self._free if p not in self._key_of), sorted(self._free)):
            start = 0
            for i, (page, following) in enumerate(pairwise([*pages, -1])):
                if i + 1 - start == count:
                    return pages[start : i + 1]
                if following != page + 1:
                    start = i + 1
        return None

    def give_back(self, pages: Sequence[int]) -> None:
        """A request is done with its pages. Those that hold nothing known are taken first again."""
        for page in pages:
            self._users[page] -= 1
            if not self._users[page]:
                self._free[page] = None
                self._free.move_to_end(page, last=page in self._key_of)
                if page in self._place_of:
                    self._open.append(self._place_of.pop(page))

    def share(self, tokens: Sequence[int], step: int) -> list[int]:
        """Pages that hold the keys of the beginning of `tokens`, of at most all but the last one; a multiple of `step` tokens."""
        found: list[int] = []
        for key in self._keys(tokens, (len(tokens) - 1) // self.page_size):
            if key not in self._page_of:
                break
            found.append(self._page_of[key])
        found = found[: len(found) * self.page_size // step * step // self.page_size]
        for page in found:
            self._users[page] += 1
            self._free.pop(page, None)
        return found

    def remember(self, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """The full pages of `tokens`, which have been computed, may be shared from now on."""
        for key, page in zip(self._keys(tokens, len(tokens) // self.page_size), pages, strict=False):
            if key not in self._page_of and page not in self._key_of:
                self._page_of[key], self._key_of[page] = page, key

    def forget(self) -> None:
        """No page that is free is shared any more."""
        for page in [page for page in self._key_of if not self._users[page]]:
            del self._page_of[self._key_of.pop(page)]

    def _keys(self, tokens: Sequence[int], pages: int) -> list[bytes]:
        """A digest of each page's tokens and all before it; none where pages are not all that is kept."""
        if self.states is not None:
            return []
        ids, key, keys = np.asarray(tokens[: pages * self.page_size], np.int64), b"", []
        for page in ids.reshape(-1, self.page_size):
            key = blake2b(key + page.tobytes(), digest_size=16).digest()
            keys.append(key)
        return keys

    def copy(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], count: int, *, start: int = 0) -> None:
        """The keys and values [start, count) of each source's pages, in the pages of each target, which has those before `start`.
        They may overlap."""
        part = slice(start // self.page_size, -(-count // self.page_size))
        moved = [(s, t) for s, t in zip(sources, targets, strict=True) if s is not t]
        if moved:
            whence, where = ([page for pages in side for page in pages[part]] for side in zip(*moved, strict=True))
            for held in {id(t): t for t in (*self.k, *self.v)}.values():
                held[where] = held[whence]
            if self.states is not None:
                self.states.copy(*([self.place(pages) for pages in side] for side in zip(*moved, strict=True)))

    def rows(self, pages: Sequence[int], count: int) -> slice | Tensor:
        """Where the first `count` keys of a sequence lie among all: a slice where its pages are side by side."""
        used = pages[: -(-count // self.page_size)]
        if all(b == a + 1 for a, b in pairwise(used)):
            start = used[0] * self.page_size if used else 0
            return slice(start, start + count)
        return self.slots(pages, 0, count).to(self.device)

    def slots(self, pages: Sequence[int], start: int, stop: int) -> Tensor:
        """The number of each position from start to stop among all positions, int64, on the host."""
        at = torch.arange(start, stop)
        return torch.tensor(pages, dtype=torch.int64)[at // self.page_size] * self.page_size + at % self.page_size
