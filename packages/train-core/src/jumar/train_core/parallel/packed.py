"""Packed rows: several documents in one row, each of which sees itself alone and counts its positions from 0.

No mask is made: attention takes the documents' cumulative lengths. Under context parallelism a rank holds two chunks of a row
(parallel/context.py); a document that begins in an earlier chunk gives its keys from there on, and the queries of this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jumar.device import Ops
from jumar.train_core.data.batch import split_for_cp
from jumar.train_core.parallel.context import local_chunks, local_positions

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Piece:
    """Queries of one chunk of every row, and the keys that they see.

    begins: of each row, where the keys begin; end: where they and the queries end
    cu_q, cu_k: int32 [documents + 1] on the host, cumulative lengths over all rows
    """

    begins: tuple[int, ...]
    end: int
    cu_q: Tensor
    cu_k: Tensor


@dataclass(slots=True)
class Packed:
    """What the layers must know of a packed micro batch. megatron-core hands it on as `packed_seq_params`.

    positions: int64 [b, tokens of this context-parallel rank], counted in each document
    last:      bool, of the same shape: the last token of each document
    padding:   bool, of the same shape: what is no token, of which experts take no account
    pieces:    of each chunk of this rank
    seq_len:   tokens of a row, over all context-parallel ranks
    """

    positions: Tensor
    last: Tensor
    padding: Tensor
    pieces: tuple[Piece, ...]
    seq_len: int
    _turned: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    qkv_format = "thd"  # what megatron-core asks
    cp_group = None

    @property
    def max_seqlen_q(self) -> int:
        return self.seq_len

    @property
    def max_seqlen_kv(self) -> int:
        return self.seq_len

    def to(self, where: torch.device, *, non_blocking: bool = False) -> Packed:
        positions, last, padding = (x.to(where, non_blocking=non_blocking) for x in (self.positions, self.last, self.padding))
        return Packed(positions, last, padding, self.pieces, self.seq_len)

    def turned(self, table: Tensor) -> Tensor:
        """Cosines and sines of these positions, [2, tokens, b, 1, dim], from those of positions 0, 1, ...: [2, any, 1, 1, dim].

        Looked up once for all layers.
        """
        if self._turned is None or self._turned[0] is not table:
            self._turned = table, table[:, self.positions.transpose(0, 1), 0]
        return self._turned[1]


def packed(documents: Numbers, rank: int = 0, size: int = 1) -> Packed:
    """For one rank of a context-parallel group. documents: [b, s]; where the number changes along a row another one begins,
    and 0 is padding."""
    rows = [_starts(row) for row in documents]
    seq_len = documents.shape[1]
    here = local_positions(seq_len, rank, size).numpy()
    every = np.arange(seq_len)
    positions = np.stack([every - starts[np.searchsorted(starts, every, "right") - 1] for starts in rows])
    last = np.zeros(documents.shape, bool)
    for row, starts in zip(last, rows, strict=True):
        row[np.append(starts[1:], seq_len) - 1] = True
    pieces = tuple(_piece(rows, begin, end) for begin, end in local_chunks(seq_len, rank, size))
    mine = [torch.from_numpy(whole[:, here]) for whole in (positions, last, documents == 0)]
    return Packed(mine[0], mine[1], mine[2], pieces, seq_len)


def own_part(batch: dict[str, Tensor], rank: int, size: int) -> dict[str, Any]:
    """What a context-parallel rank needs of a micro batch: its part of each sequence, `packed` in place of documents.

    tokens_here stays as it is: tokens of the whole sequences, without padding.
    """
    whole = {key: batch.pop(key) for key in ("tokens_here", "documents") if key in batch}
    part: dict[str, Any] = split_for_cp(batch, rank, size)
    if "documents" in whole:
        about = packed(whole.pop("documents").numpy(), rank, size)
        part |= {"packed": about, "position_ids": about.positions}
    return part | whole


def _starts(row: Numbers) -> Numbers:
    """Where its documents begin."""
    return np.concatenate(([0], np.flatnonzero(row[1:] != row[:-1]) + 1))


def _piece(rows: Sequence[Numbers], begin: int, end: int) -> Piece:
    begins, queries, keys = [], [], []
    for starts in rows:
        seen = starts[max(np.searchsorted(starts, begin, "right") - 1, 0) : np.searchsorted(starts, end, "left")]
        ends = np.append(seen[1:], end)
        begins.append(int(seen[0]))
        queries.append(ends - np.maximum(seen, begin))
        keys.append(ends - seen)
    return Piece(tuple(begins), end, _cumulative(queries), _cumulative(keys))


def _cumulative(lengths: Sequence[Numbers]) -> Tensor:
    return torch.from_numpy(np.concatenate(([0], np.cumsum(np.concatenate(lengths)))).astype(np.int32))


def attend(ops: Ops, about: Packed, q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> Tensor:
    """q [b, tokens of this rank, heads, dim]; k and v [b, seq_len, heads, dim]: whole rows. Returns q's shape, dim of v."""
    outs = []
    for piece, mine in zip(about.pieces, q.chunk(len(about.pieces), 1), strict=True):
        about_them: dict[str, Any] = {"cu_seqlens_q": piece.cu_q, "cu_seqlens_k": piece.cu_k, **settings}
        out = ops.attention(mine.flatten(0, 1), _rows(piece, k), _rows(piece, v), causal=True, **about_them)
        outs.append(out.reshape(*mine.shape[:2], *out.shape[1:]))
    return torch.cat(outs, 1)


def _rows(piece: Piece, whole: Tensor) -> Tensor:
    """The keys or values of a piece, row after row."""
    if not any(piece.begins) and piece.end == whole.shape[1]:
        return whole.flatten(0, 1)
    return torch.cat([row[begin : piece.end] for row, begin in zip(whole, piece.begins, strict=True)])
