"""CUDA's table: FlashAttention if it is installed, SDPA else, torch's grouped matmul and fused AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jumar.device.ops import attention as plain
from jumar.device.ops import reference
from jumar.device.ops.fused_adamw import adamw
from jumar.device.ops.lengths import host_lengths

HALF = (torch.float16, torch.bfloat16)
FLASH_WIDTH = 256  # widest head of FlashAttention 2


@cache
def flash() -> Any:
    """flash_attn, or None if it is not installed."""
    return import_module("flash_attn") if find_spec("flash_attn") else None


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
    """See `table.Attention`. FlashAttention 2 has the same windows, softcaps and alignment at the end; v is padded to q."""
    kernels = flash()
    if kernels is None or q.dtype not in HALF or max(q.shape[-1], v.shape[-1]) > FLASH_WIDTH or q.numel() == 0:
        return plain.attention(
            q,
            k,
            v,
            scale=scale,
            causal=causal,
            window=window,
            softcap=softcap,
            cu_seqlens_q=cu_seqlens_q,
            cu_seqlens_k=cu_seqlens_k,
        )
    plain.check_attention(q, k, v, window, cu_seqlens_q, cu_seqlens_k)
    width = v.shape[-1]
    widest = max(q.shape[-1], width)
    q, k, v = (t if t.shape[-1] == widest else F.pad(t, (0, widest - t.shape[-1])) for t in (q, k, v))
    before = -1 if window is None else window - 1
    words = dict(softmax_scale=scale, causal=causal, window_size=(before, 0 if causal else -1), softcap=softcap or 0.0)
    if cu_seqlens_q is None:
        out: Tensor = kernels.flash_attn_func(q, k, v, **words)
    else:
        cu_seqlens_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
        longest_q, longest_k = (_longest(cu) for cu in (cu_seqlens_q, cu_seqlens_k))
        on_device = (cu.to(q.device, torch.int32, non_blocking=True) for cu in (cu_seqlens_q, cu_seqlens_k))
        out = kernels.flash_attn_varlen_func(q, k, v, *on_device, longest_q, longest_k, **words)
    return out[..., :width]


def _longest(cu_seqlens: Tensor) -> int:
    numbers = host_lengths(cu_seqlens)
    return max((b - a for a, b in pairwise(numbers)), default=0)


def grouped_matmul(x: Tensor, weights: Sequence[Tensor], counts: Tensor) -> Tensor:
    """See `table.GroupedMatmul`. torch's kernel is for bf16 with rows of a multiple of 16 bytes; it waits for nothing."""
    aligned = all(size % 8 == 0 for size in weights[0].shape)
    if x.dtype != torch.bfloat16 or not aligned or x.shape[0] == 0 or not hasattr(F, "grouped_mm"):
        return reference.grouped_matmul(x, weights, counts)
    stacked = torch.stack(list(weights)).transpose(1, 2)
    ends = counts.to(x.device).cumsum(0).to(torch.int32)
    return F.grouped_mm(x, stacked, offs=ends)


CUDA_OPS = replace(reference.REFERENCE, name="cuda", attention=attention, grouped_matmul=grouped_matmul, adamw=adamw)
