"""CUDA's table as far as a CPU can tell: what it passes to FlashAttention, and torch's grouped matmul."""

from __future__ import annotations

import types

import pytest
import torch

from jumar.device.ops import cuda
from jumar.device.ops.cuda import CUDA_OPS
from jumar.device.ops.reference import REFERENCE

CU_Q = torch.tensor([0, 3, 3, 7], dtype=torch.int32)
CU_K = torch.tensor([0, 4, 5, 9], dtype=torch.int32)


def flash_attn_func(q, k, v, softmax_scale, causal, window_size, softcap):
    """FlashAttention 2 by its documents: a query sees keys i + Sk - Sq - left ... i + Sk - Sq + right; -1 is no limit."""
    assert q.dtype in (torch.float16, torch.bfloat16)
    assert q.shape[-1] == k.shape[-1] == v.shape[-1] <= 256
    k, v = (t.repeat_interleave(q.shape[2] // k.shape[2], 2) for t in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q.float(), k.float()) * softmax_scale
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    i, j = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1], torch.arange(k.shape[1])[None]
    left, right = window_size
    hidden = (j > i) if causal else torch.zeros_like(i - j, dtype=torch.bool)
    hidden = hidden | ((j < i - left) if left >= 0 else False) | ((j > i + right) if right >= 0 else False)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1).nan_to_num(0)
    return torch.einsum("bhij,bjhd->bihd", weights, v.float()).to(q.dtype)


def flash_attn_varlen_func(q, k, v, cu_q, cu_k, longest_q, longest_k, **words):
    assert cu_q.dtype == cu_k.dtype == torch.int32
    of_q, of_k = cu_q.diff().tolist(), cu_k.diff().tolist()
    assert (longest_q, longest_k) == (max(of_q), max(of_k))
    pieces = zip(q.split(of_q), k.split(of_k), v.split(of_k), strict=True)
    return torch.cat([flash_attn_func(*(t[None] for t in piece), **words)[0] for piece in pieces])


@pytest.fixture
def _flash(monkeypatch):
    module = types.SimpleNamespace(flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func)
    monkeypatch.setattr(cuda, "flash", lambda: module)


@pytest.mark.usefixtures("_flash")
@pytest.mark.parametrize("v_dim", [4, 2, 6])
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 1, 2])
@pytest.mark.parametrize("causal", [True, False])
def test_flash_attention_is_asked_for_the_same(causal, window, softcap, v_dim):
    words = dict(scale=0.4, causal=causal, window=window, softcap=softcap)
    dense = (torch.randn(2, 3, 4, 4), torch.randn(2, 6, 2, 4), torch.randn(2, 6, 2, v_dim))
    packed = (torch.randn(7, 4, 4), torch.randn(9, 2, 4), torch.randn(9, 2, v_dim))
    for tensors, lengths in ((dense, {}), (packed, dict(cu_seqlens_q=CU_Q, cu_seqlens_k=CU_K))):
        half = [t.bfloat16() for t in tensors]
        got = CUDA_OPS.attention(*half, **words, **lengths)
        torch.testing.assert_close(got, REFERENCE.attention(*half, **words, **lengths), atol=3e-2, rtol=3e-2)


def test_without_flash_attention_and_in_fp32_it_is_sdpa(monkeypatch):
    q = torch.randn(2, 3, 4, 4)
    assert torch.equal(CUDA_OPS.attention(q, q, q, scale=0.4), REFERENCE.attention(q, q, q, scale=0.4))
    monkeypatch.setattr(cuda, "flash", object)  # fp32 is not for it
    assert torch.equal(CUDA_OPS.attention(q, q, q, scale=0.4), REFERENCE.attention(q, q, q, scale=0.4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("inner", "out"), [(16, 8), (12, 8)])
def test_grouped_matmul(dtype, inner, out):
    counts = torch.tensor([3, 0, 5])

    def run(ops):
        torch.manual_seed(0)
        x = torch.randn(8, inner, dtype=dtype, requires_grad=True)
        weights = [torch.randn(out, inner, dtype=dtype, requires_grad=True) for _ in range(3)]
        y = ops.grouped_matmul(x, weights, counts)
        return y, *torch.autograd.grad(y.square().sum(), (x, *weights))

    for got, want in zip(run(CUDA_OPS), run(REFERENCE), strict=True):
        torch.testing.assert_close(got, want, atol=1e-1, rtol=3e-2)
