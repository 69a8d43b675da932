"""Attention on Ascend: npu_fusion_attention for training, for inference npu_prompt_flash_attention over a prompt, and
npu_incre_flash_attention over a paged cache."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from jumar.device.ops import attention as reference
from jumar.device.ops.lengths import host_lengths
from jumar.device.ops.npu_module import torch_npu, warn_slow

COMPRESSED = 2048  # side of the one mask that modes 2, 3 and 4 want, whatever the lengths
RIGHT_DOWN_CAUSAL = 3
BAND = 4
WIDEST = 512  # head of the two kernels for inference: latent attention's may be wider
NO_LIMIT = 2**31 - 1  # the schema's default for pre_tockens and next_tockens


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
    """See `table.Attention`. The kernel has no softcap: that runs as plain torch, with one warning."""
    if softcap is not None:
        warn_slow("attention with a softcap has no NPU kernel")
        return reference.attention(
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
    reference.check_attention(q, k, v, window, cu_seqlens_q, cu_seqlens_k)
    if q.numel() == 0 or k.numel() == 0:
        return reference.attention(
            q, k, v, scale=scale, causal=causal, window=window, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k
        )
    if cu_seqlens_q is None and torch.is_inference_mode_enabled() and _in_prompt_kernel(q, k):
        return _prompt(q, k, v, scale, causal, window)
    lengths: dict[str, list[int]] = {}
    longest = k.shape[1]
    if cu_seqlens_q is not None:
        longest = max(reference.packed_lengths(q, k, cu_seqlens_q, cu_seqlens_k)[1])
        cu_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
        lengths = dict(actual_seq_qlen=host_lengths(cu_seqlens_q)[1:], actual_seq_kvlen=host_lengths(cu_k)[1:])
    width, v_width = max(q.shape[-1], v.shape[-1]), v.shape[-1]
    out: Tensor = torch_npu.npu_fusion_attention(
        _padded(q, width),
        _padded(k, width),
        _padded(v, width),
        q.shape[-2],
        "BSND" if cu_seqlens_q is None else "TND",
        scale=scale,
        **_sparse(causal, window, longest, q.device),
        **lengths,
    )[0]
    return out[..., :v_width]


def _in_prompt_kernel(q: Tensor, k: Tensor) -> bool:
    """What the prompt's kernel takes. Queries that see no key are left to the other one, whose zeros are documented."""
    return q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] <= WIDEST and q.shape[1] <= k.shape[1]


def _prompt(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, window: int | None) -> Tensor:
    """Dense sequences in inference mode. Not wherever there is no gradient: recomputation begins so, and must give the same."""
    width, v_width = max(q.shape[-1], v.shape[-1]), v.shape[-1]
    words = _sparse(causal, window, k.shape[1], q.device)
    renamed = {name.replace("tockens", "tokens"): value for name, value in words.items()}
    out: Tensor = torch_npu.npu_prompt_flash_attention(
        *(_padded(t, width).contiguous() for t in (q, k, v)),
        num_heads=q.shape[-2],
        num_key_value_heads=k.shape[-2],
        input_layout="BSND",
        scale_value=scale,
        **renamed,
    )
    return out[..., :v_width]


def _padded(t: Tensor, width: int) -> Tensor:
    """Zeros up to one width of q, k and v: they add nothing to scores, and what they add to the output is cut off."""
    return t if t.shape[-1] == width else F.pad(t, (0, width - t.shape[-1]))


def _sparse(causal: bool, window: int | None, longest: int, device: torch.device) -> dict[str, Tensor | int]:
    """What may be seen, in the kernel's words. In mode 4 query i sees keys i - pre_tockens ... i + next_tockens, both
    counted from the lower right corner, the query's own key included."""
    if window is not None and window < longest:
        ahead = 0 if causal else NO_LIMIT
        return dict(atten_mask=_mask(device), sparse_mode=BAND, pre_tockens=window - 1, next_tockens=ahead)
    if causal:
        return dict(atten_mask=_mask(device), sparse_mode=RIGHT_DOWN_CAUSAL)
    return {}


@cache
def _mask(device: torch.device) -> Tensor:
    """bool [2048, 2048]. Ours says True = may attend, Ascend's True = masked out: inverted here, and nowhere else."""
    with torch.inference_mode(False):  # kept for training too, which could not save an inference tensor
        may_attend = reference.visible(COMPRESSED, COMPRESSED, True, None, device)
        assert may_attend is not None
        return ~may_attend


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
    """See `table.PagedAttention`. The kernel takes fp16 and bf16, pages of a multiple of 16, and lengths on the host."""
    blocks, block_size, kv_heads, dim = k_cache.shape
    lacking = _not_in_kernel(q.dtype, dim, block_size, window, softcap)
    if lacking is not None:
        warn_slow(f"decode attention with {lacking} has no NPU kernel")
        return reference.paged_attention(q, k_cache, v_cache, block_table, lengths, scale=scale, window=window, softcap=softcap)
    batch, heads, _ = q.shape
    out: Tensor = torch_npu.npu_incre_flash_attention(
        q.reshape(batch, 1, heads * dim),
        k_cache.reshape(blocks, block_size, kv_heads * dim),
        v_cache.reshape(blocks, block_size, kv_heads * dim),
        actual_seq_lengths=host_lengths(lengths),
        block_table=block_table,
        num_heads=heads,
        scale_value=scale,
        input_layout="BSH",
        num_key_value_heads=kv_heads,
        block_size=block_size,
        inner_precise=0,  # exact: 1, the default, is fp16 throughout
    )
    return out.reshape(batch, heads, dim)


def _not_in_kernel(dtype: torch.dtype, dim: int, block_size: int, window: int | None, softcap: float | None) -> str | None:
    if softcap is not None:
        return "a softcap"
    if window is not None:
        return "a window"
    if dtype not in (torch.float16, torch.bfloat16):
        return str(dtype)
    if dim > WIDEST:
        return f"heads of {dim} elements, more than {WIDEST},"
    return f"pages of {block_size}, no multiple of 16," if block_size % 16 else None
