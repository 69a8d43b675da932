"""Rows of several documents: what attention is told, against one document at a time, whole and cut over ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jumar.device import open_device
from jumar.train_core.parallel.context import local_positions
from jumar.train_core.parallel.packed import attend, own_part, packed

OPS = open_device("cpu").ops()
ROWS = np.array([[1, 1, 1, 2, 2, 3, 3, 3, 3, 0, 0, 0], [5, 5, 5, 5, 5, 5, 5, 5, 6, 6, 6, 7]])


def numbered(lengths: list[int], size: int) -> np.ndarray:
    """A row of documents of these lengths, the rest padding."""
    row = np.zeros(size, np.int64)
    at = 0
    for number, length in enumerate(lengths, 1):
        row[at : at + length] = number
        at += length
    return row


def test_positions_and_last_tokens() -> None:
    about = packed(ROWS)
    assert about.positions.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3, 0, 1, 2], [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 0]]
    assert [row.nonzero()[0].tolist() for row in about.last.numpy()] == [[2, 4, 8, 11], [7, 10, 11]]
    assert about.padding.sum(1).tolist() == [3, 0]
    (piece,) = about.pieces
    assert piece.cu_q.tolist() == piece.cu_k.tolist() == [0, 3, 5, 9, 12, 20, 23, 24]


def test_a_chunk_sees_the_whole_of_the_documents_that_reach_into_it() -> None:
    """Rank 0 of 2 has tokens 0-2 and 9-11."""
    first, second = packed(ROWS, 0, 2).pieces
    assert (first.begins, first.end, first.cu_q.tolist()) == ((0, 0), 3, [0, 3, 6])
    assert (second.begins, second.end) == ((9, 8), 12)
    assert second.cu_q.tolist() == [0, 3, 5, 6]
    assert second.cu_k.tolist() == [0, 3, 6, 7]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=8), min_size=1, max_size=3),
    size=st.sampled_from([1, 2, 3]),
    window=st.sampled_from([None, 1, 3]),
)
def test_attention_is_that_of_documents_alone(lengths: list[list[int]], size: int, window: int | None) -> None:
    seq_len = -(-max(map(sum, lengths)) // (2 * size)) * 2 * size
    rows = np.stack([numbered(each, seq_len) for each in lengths])
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(len(rows), seq_len, heads, 4, generator=generator) for heads in (4, 2, 2))
    wanted = torch.empty_like(q)
    for row, numbers in enumerate(rows):
        for number in np.unique(numbers):
            here = np.flatnonzero(numbers == number)
            parts = (x[row : row + 1, here] for x in (q, k, v))
            wanted[row, here] = OPS.attention(*parts, scale=0.5, causal=True, window=window)[0]
    for rank in range(size):
        here = local_positions(seq_len, rank, size)
        found = attend(OPS, packed(rows, rank, size), q[:, here], k, v, scale=0.5, window=window)
        assert torch.allclose(found, wanted[:, here], atol=1e-6)


def test_cosines_are_looked_up_once() -> None:
    table = torch.arange(2 * 16.0).reshape(2, 16, 1, 1, 1)
    about = packed(ROWS)
    turned = about.turned(table)
    assert turned.shape == (2, 12, 2, 1, 1)
    assert turned[0, :, 1, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 0]
    assert about.turned(table) is turned
    assert about.turned(table + 1) is not turned


@pytest.mark.parametrize("rank", [0, 1])
def test_the_part_of_a_rank(rank: int) -> None:
    ids = torch.arange(24).reshape(2, 12)
    batch = {"tokens": ids, "documents": torch.from_numpy(ROWS), "tokens_here": torch.tensor([9, 12])}
    part = own_part(batch, rank, 2)
    here = local_positions(12, rank, 2)
    assert torch.equal(part["tokens"], ids[:, here])
    assert torch.equal(part["position_ids"], packed(ROWS).positions[:, here])
    assert part["tokens_here"].tolist() == [9, 12]
    assert "documents" not in part
