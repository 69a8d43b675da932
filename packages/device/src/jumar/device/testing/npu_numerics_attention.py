"""Ascend's attention operators by the words of their documents, one head at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

NO_LIMIT = 2**31 - 1
SIDE = 2048


def refuse(wrong: bool, why: str) -> None:
    """RuntimeError, as the kernel's own checks would, if `wrong`."""
    if wrong:
        raise RuntimeError(f"the NPU kernel refuses: {why}")


def _masked_from(mask: Tensor, beyond: Tensor) -> Tensor:
    """The compressed upper triangle, looked up by how far a key lies beyond the diagonal."""
    beyond = beyond.clamp(1 - SIDE, SIDE - 1)
    return mask[(-beyond).clamp(min=0), beyond.clamp(min=0)]


def _masked(mask: Tensor | None, mode: int, before: int, after: int, queries: int, keys: int) -> Tensor:
    """bool [queries, keys], True where masked out. Without a mask, the mode and both limits mean nothing."""
    if mask is None:
        return torch.zeros(queries, keys, dtype=torch.bool)
    mask = mask.bool()
    i, j = torch.arange(queries)[:, None], torch.arange(keys)[None]
    if mode in (0, 1):
        refuse(mask.shape[-2:] != (queries, keys), f"atten_mask {list(mask.shape)} with sparse_mode {mode}")
        outside = (j - i > after) | (i - j > before)
        return mask | outside if mode == 0 else mask
    refuse(mask.shape != (SIDE, SIDE), f"sparse_mode {mode} wants a compressed 2048 x 2048 atten_mask, not {list(mask.shape)}")
    if mode == 2:
        return _masked_from(mask, j - i)
    corner = keys - queries
    if mode == 3:
        return _masked_from(mask, j - i - corner)
    return _masked_from(mask, j - i - corner - after) | ~_masked_from(mask, j - i - corner + before + 1)


def _check(
    q: Tensor, k: Tensor, v: Tensor, heads: int, layout: str, mode: int, mask: Tensor | None, rest: dict[str, Any]
) -> None:
    refuse(q.dtype not in (torch.float16, torch.bfloat16, torch.float32), f"dtype {q.dtype}")
    refuse(not q.dtype == k.dtype == v.dtype, f"dtypes {q.dtype}, {k.dtype}, {v.dtype} differ")
    refuse(layout not in ("BSND", "TND"), f"layout {layout} (BSH, SBH and BNSD are not imitated)")
    refuse(q.dim() != len(layout), f"{layout} with {q.dim()} dimensions")
    refuse(q.shape[-2] != heads, f"head_num {heads}, but the query has {q.shape[-2]} heads")
    refuse(k.shape != v.shape, f"key {list(k.shape)} and value {list(v.shape)} differ")
    refuse(q.shape[-1] != k.shape[-1] or q.shape[-1] > 768, f"head dims {q.shape[-1]}, {k.shape[-1]}")
    refuse(heads % k.shape[-2] != 0 or heads > 256, f"{heads} query heads over {k.shape[-2]} key heads")
    refuse(mode not in (0, 1, 2, 3, 4), f"sparse_mode {mode} (5 to 8 are not imitated)")
    refuse(mask is not None and mask.dtype not in (torch.bool, torch.uint8), "atten_mask must be bool or uint8")
    given = sorted(name for name, value in rest.items() if value is not None)
    refuse(bool(given), f"{given} (not imitated)")


def _ends(given: list[int] | None, tokens: int) -> list[int]:
    refuse(given is None, "TND needs actual_seq_qlen and actual_seq_kvlen")
    assert given is not None
    refuse(not 1 <= len(given) <= 2048, f"{len(given)} sequences")
    refuse(list(given) != sorted(given) or given[-1] != tokens, f"cumulative lengths {given[:8]} over {tokens} tokens")
    return [0, *given]


def _sequences(q: Tensor, k: Tensor, layout: str, qlen: list[int] | None, kvlen: list[int] | None) -> Iterator[tuple[Any, Any]]:
    """Index of each sequence's rows in q and in k."""
    if layout == "BSND":
        refuse(qlen is not None or kvlen is not None, "actual_seq_qlen with BSND")
        yield from ((b, b) for b in range(q.shape[0]))
        return
    ends_q, ends_k = _ends(qlen, q.shape[0]), _ends(kvlen, k.shape[0])
    refuse(len(ends_q) != len(ends_k), "as many sequences of keys as of queries")
    for n in range(len(ends_q) - 1):
        if ends_q[n] < ends_q[n + 1] and ends_k[n] < ends_k[n + 1]:  # empty ones are allowed: zeros where there are queries
            yield slice(ends_q[n], ends_q[n + 1]), slice(ends_k[n], ends_k[n + 1])


def fusion_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = NO_LIMIT,
    next_tockens: int = NO_LIMIT,
    inner_precise: int = 0,
    prefix: list[int] | None = None,
    actual_seq_qlen: list[int] | None = None,
    actual_seq_kvlen: list[int] | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    sink: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    seed: int = 0,
    offset: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int, int]:
    """Forward. The statistics of the softmax stand in the last dimension eight times, as the kernel keeps them."""
    unused = dict(pse=pse, padding_mask=padding_mask, prefix=prefix, sink=sink, dropout_mask=dropout_mask)
    _check(query, key, value, head_num, input_layout, sparse_mode, atten_mask, unused)
    refuse(keep_prob != 1, "dropout (not imitated)")
    out = torch.zeros(*query.shape[:-1], value.shape[-1], dtype=query.dtype)
    shape = (query.shape[0], head_num, 8) if input_layout == "TND" else (query.shape[0], head_num, query.shape[1], 8)
    highest, total = torch.zeros(shape), torch.zeros(shape)
    group = head_num // key.shape[-2]
    for at_q, at_k in _sequences(query, key, input_layout, actual_seq_qlen, actual_seq_kvlen):
        for n in range(head_num):
            q, k, v = query[at_q][:, n].float(), key[at_k][:, n // group].float(), value[at_k][:, n // group].float()
            masked = _masked(atten_mask, sparse_mode, pre_tockens, next_tockens, len(q), len(k))
            scores = (scale * (q @ k.T)).masked_fill(masked, float("-inf"))
            high = scores.amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
            weights = (scores - high).exp()
            sums = weights.sum(1, keepdim=True)
            _rows(out, at_q)[:, n] = (weights @ v / sums.clamp(min=1e-30)).to(out.dtype)
            where = (at_q, n) if input_layout == "TND" else (at_q, n, slice(None))
            highest[where], total[where] = high, sums
    return out, highest, total, torch.empty(0, dtype=query.dtype), 0, 0, 0


def _rows(t: Tensor, at: Any) -> Tensor:
    return t[at]


def fusion_attention_grad(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dy: Tensor,
    head_num: int,
    input_layout: str,
    *,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    softmax_max: Tensor | None = None,
    softmax_sum: Tensor | None = None,
    softmax_in: Tensor | None = None,
    attention_in: Tensor | None = None,
    scale_value: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = NO_LIMIT,
    next_tockens: int = NO_LIMIT,
    actual_seq_qlen: list[int] | None = None,
    actual_seq_kvlen: list[int] | None = None,
    sparse_mode: int = 0,
    **rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from the kept statistics, as the flash attention papers derive them."""
    _check(query, key, value, head_num, input_layout, sparse_mode, atten_mask, dict(pse=pse, padding_mask=padding_mask))
    assert softmax_max is not None
    assert softmax_sum is not None
    assert attention_in is not None
    dq, dk, dv = (torch.zeros_like(t, dtype=torch.float32) for t in (query, key, value))
    group = head_num // key.shape[-2]
    for at_q, at_k in _sequences(query, key, input_layout, actual_seq_qlen, actual_seq_kvlen):
        for n in range(head_num):
            m = n // group
            q, k, v = query[at_q][:, n].float(), key[at_k][:, m].float(), value[at_k][:, m].float()
            masked = _masked(atten_mask, sparse_mode, pre_tockens, next_tockens, len(q), len(k))
            where = (at_q, n) if input_layout == "TND" else (at_q, n, slice(None))
            high, sums = softmax_max[where][:, :1], softmax_sum[where][:, :1].clamp(min=1e-30)
            p = (scale_value * (q @ k.T) - high).exp().masked_fill(masked, 0) / sums
            g, o = dy[at_q][:, n].float(), attention_in[at_q][:, n].float()
            ds = p * (g @ v.T - (g * o).sum(1, keepdim=True)) * scale_value
            _rows(dq, at_q)[:, n] += ds @ k
            _rows(dk, at_k)[:, m] += ds.T @ q
            _rows(dv, at_k)[:, m] += p.T @ g
    none = torch.empty(0)
    return dq.to(query.dtype), dk.to(query.dtype), dv.to(query.dtype), none, none


def prompt_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor | None = None,
    num_heads: int = 1,
    scale_value: float = 1.0,
    pre_tokens: int = NO_LIMIT,
    next_tokens: int = 0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    **rest: Any,
) -> Tensor:
    """Whole prompts in BSND, without statistics."""
    refuse(query.dtype not in (torch.float16, torch.bfloat16), f"dtype {query.dtype}")
    refuse(input_layout != "BSND", f"layout {input_layout} (BSH, BNSD and others are not imitated)")
    refuse(any(not t.is_contiguous() for t in (query, key, value)), "tensors that are not contiguous")
    refuse((num_key_value_heads or num_heads) != key.shape[-2], f"num_key_value_heads {num_key_value_heads}")
    refuse(query.shape[-1] > 512, f"head dim {query.shape[-1]}")
    _check(query, key, value, num_heads, input_layout, sparse_mode, atten_mask, rest)
    out = torch.zeros_like(query)
    for b in range(len(query)):
        masked = _masked(atten_mask, sparse_mode, pre_tokens, next_tokens, query.shape[1], key.shape[1])
        for n in range(num_heads):
            m = n // (num_heads // key.shape[-2])
            scores = scale_value * (query[b, :, n].float() @ key[b, :, m].float().T)
            weights = scores.masked_fill(masked, float("-inf")).softmax(1)
            out[b, :, n] = (weights @ value[b, :, m].float()).to(out.dtype)
    return out


def incre_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    actual_seq_lengths: list[int] | None = None,
    block_table: Tensor | None = None,
    num_heads: int = 1,
    scale_value: float = 1.0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    block_size: int = 0,
    inner_precise: int = 1,
    **rest: Any,
) -> Tensor:
    """One query a sequence, the cache in pages of [blocks, block_size, heads * dim]."""
    given = sorted(name for name, value in rest.items() if value is not None)
    refuse(bool(given), f"{given} (not imitated)")
    refuse(query.dtype not in (torch.float16, torch.bfloat16), f"dtype {query.dtype}")
    refuse(input_layout != "BSH" or query.dim() != 3 or query.shape[1] != 1, "BSH, with one query")
    refuse(key.dim() != 3 or key.shape != value.shape, "a cache of [blocks, block_size, heads * dim]")
    refuse(block_size % 16 != 0 or block_size != key.shape[1], f"block_size {block_size} (pages of {key.shape[1]})")
    refuse(block_table is None or actual_seq_lengths is None, "pages without block_table and actual_seq_lengths")
    assert block_table is not None
    assert actual_seq_lengths is not None
    refuse(block_table.dtype != torch.int32 or len(block_table) != len(query), "block_table must be int32 [batch, max]")
    refuse(len(actual_seq_lengths) != len(query), "one length for each sequence")
    kv_heads = num_key_value_heads or num_heads
    dim = query.shape[2] // num_heads
    refuse(dim > 512, f"head dim {dim}")
    refuse(key.shape[2] != kv_heads * dim or num_heads % kv_heads != 0, "head counts that do not fit")
    out = torch.zeros_like(query)
    for b, length in enumerate(actual_seq_lengths):
        pages = block_table[b, : -(-length // block_size)].long()
        keys, values = (t[pages].reshape(-1, kv_heads, dim)[:length].float() for t in (key, value))
        for n in range(num_heads if length else 0):
            m = n // (num_heads // kv_heads)
            weights = (keys[:, m] @ query[b, 0, n * dim : (n + 1) * dim].float() * scale_value).softmax(0)
            out[b, 0, n * dim : (n + 1) * dim] = (weights @ values[:, m]).to(out.dtype)
    return out
