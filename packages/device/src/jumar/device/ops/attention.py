"""Attention in plain torch: SDPA wherever it says the same thing, a matmul for softcaps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from jumar.device.ops.lengths import check_lengths, host_lengths


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
) -> Tensor:
    """See `table.Attention`. Packed sequences are taken one by one: quadratic in their lengths, not in their sum."""
    check_attention(q, k, v, window, cu_seqlens_q, cu_seqlens_k)
    if cu_seqlens_q is None:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return _dense(q, k, v, scale, causal, window, softcap).transpose(1, 2)
    lengths_q, lengths_k = packed_lengths(q, k, cu_seqlens_q, cu_seqlens_k)
    pieces = zip(_each(q, lengths_q), _each(k, lengths_k), _each(v, lengths_k), strict=True)
    outs = [_dense(*piece, scale, causal, window, softcap)[0] for piece in pieces]
    return torch.cat(outs, 1).transpose(0, 1) if outs else q.new_empty(0, q.shape[1], v.shape[2])


def _each(t: Tensor, lengths: list[int]) -> Iterator[Tensor]:
    """[tokens, heads, dim] -> each sequence as [1, heads, seq, dim]."""
    return (rows.transpose(0, 1).unsqueeze(0) for rows in torch.split(t, lengths))


def check_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None, cu_q: Tensor | None, cu_k: Tensor | None) -> None:
    """ValueError for shapes that `table.Attention` does not allow."""
    rank = 4 if cu_q is None else 3
    if any(t.dim() != rank for t in (q, k, v)):
        raise ValueError(
            f"attention {'with' if rank == 3 else 'without'} cu_seqlens takes {rank}-D q, k, v, not {_shapes(q, k, v)}"
        )
    if cu_q is None and cu_k is not None:
        raise ValueError("cu_seqlens_k without cu_seqlens_q")
    if k.shape[:-1] != v.shape[:-1] or q.shape[-1] != k.shape[-1] or q.shape[-2] % k.shape[-2]:
        raise ValueError(f"attention: q, k, v do not fit one another: {_shapes(q, k, v)}")
    if window is not None and window < 1:
        raise ValueError(f"a window of {window} keys: it holds the query's own position, so it is at least 1")


def packed_lengths(q: Tensor, k: Tensor, cu_q: Tensor, cu_k: Tensor | None) -> tuple[list[int], list[int]]:
    """Lengths of the sequences in q and in k. ValueError if they do not cover the tokens, or differ in number."""
    lengths_q = check_lengths(host_lengths(cu_q), q.shape[0], "q")
    lengths_k = check_lengths(host_lengths(cu_q if cu_k is None else cu_k), k.shape[0], "k")
    if len(lengths_q) != len(lengths_k):
        raise ValueError(f"{len(lengths_q)} sequences of queries and {len(lengths_k)} of keys")
    return lengths_q, lengths_k


def visible(queries: int, keys: int, causal: bool, window: int | None, device: torch.device) -> Tensor | None:
    """bool [queries, keys], True where the query may see the key; None if it may see all."""
    if window is not None and window >= keys:
        window = None
    if (not causal or queries == 1) and window is None:
        return None
    ones = torch.ones(queries, keys, dtype=torch.bool, device=device)
    mask = ones.tril(keys - queries) if causal else ones
    return mask if window is None else mask.triu_(keys - queries - window + 1)


def _dense(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, window: int | None, softcap: float | None) -> Tensor:
    """q [batch, heads, queries, dim], k and v [batch, kv_heads, keys, dim] -> [batch, heads, queries, v_dim]."""
    queries, keys = q.shape[2], k.shape[2]
    if queries == 0 or keys == 0:  # keeps the graph whole: zeros with zero gradients
        return q.new_zeros(*q.shape[:3], v.shape[3]) + 0 * (q.sum() + k.sum() + v.sum())
    plain = causal and queries == keys and queries > 1 and (window is None or window >= keys)
    mask = None if plain else visible(queries, keys, causal, window, q.device)
    if softcap is not None:
        if plain:
            mask = visible(queries, keys, True, None, q.device)
        return _capped(q, k, v, scale, mask, softcap)
    width = v.shape[3]
    if width < q.shape[3]:  # the fused kernels want one width
        v = F.pad(v, (0, q.shape[3] - width))
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=plain, scale=scale, enable_gqa=grouped)
    return out[..., :width]


def _capped(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, softcap: float) -> Tensor:
    """Attention with c * tanh(scores / c), through the whole matrix of scores (arXiv:2408.00118)."""
    batch, heads, queries, dim = q.shape
    q = q.reshape(batch, k.shape[1], heads // k.shape[1], queries, dim)
    scores = (q @ k.unsqueeze(2).transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * scale
    scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1)
    if mask is not None:
        weights = weights.masked_fill(~mask, 0)  # a query that sees no key: all its scores are equal here
    return (weights.to(v.dtype) @ v.unsqueeze(2)).flatten(1, 2)


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """See `table.PagedAttention`. Gathers every page the table names: give a table no wider than the longest sequence."""
    k, v = (c[block_table.long()].flatten(1, 2).transpose(1, 2) for c in (k_cache, v_cache))
    at = torch.arange(k.shape[2], device=q.device)
    ends = lengths.to(q.device)[:, None]
    mask = at < ends
    if window is not None:
        mask = mask & (at >= ends - window)
    mask = mask[:, None, None, :]
    if softcap is not None:
        return _capped(q[:, :, None], k, v, scale, mask[:, None], softcap)[:, :, 0]
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)[:, :, 0]


def _shapes(*tensors: Tensor) -> str:
    return ", ".join(str(list(t.shape)) for t in tensors)
