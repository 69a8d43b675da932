"""Every operation of a table once for each way in which it calls a kernel: what `support` records."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jumar.device.ops.table import Ops


def exercise(ops: Ops) -> None:
    """Call every operation of `ops` on small CPU tensors, with each option that changes the kernel's arguments."""
    _dense(ops)
    _attention(ops)
    _experts(ops)
    _inference(ops)


def _dense(ops: Ops) -> None:
    import torch

    x = torch.randn(4, 2, 3, 8)
    for zero_centered in (False, True):
        ops.rms_norm(x, torch.ones(8), 1e-5, zero_centered=zero_centered)
    ops.swiglu(x)
    cos = torch.randn(4, 1, 1, 8)
    for interleaved in (False, True):
        ops.rope(x, cos, cos, interleaved=interleaved)
    param, grad, avg, square = ([torch.ones(3)] for _ in range(4))
    ops.adamw(param, grad, avg, square, 1, lr=1e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)


def _attention(ops: Ops) -> None:
    import torch

    dense, packed = torch.randn(1, 4, 2, 8), torch.randn(4, 2, 8)
    cu = torch.tensor([0, 1, 4], dtype=torch.int32)
    for causal in (True, False):
        for window in (None, 2):
            ops.attention(dense, dense, dense, scale=0.5, causal=causal, window=window)
            ops.attention(packed, packed, packed, scale=0.5, causal=causal, window=window, cu_seqlens_q=cu)


def _experts(ops: Ops) -> None:
    import torch

    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(4, 8, dtype=dtype, requires_grad=True)
        weights = [torch.randn(6, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
        ops.grouped_matmul(x, weights, torch.tensor([1, 0, 3])).sum().backward()  # type: ignore[no-untyped-call]
    permuted, order = ops.permute(torch.randn(3, 8), torch.tensor([[0, 1], [1, 2], [2, 0]]))
    for probs in (None, torch.rand(3, 2)):
        ops.unpermute(permuted, order, probs, k=2)


def _inference(ops: Ops) -> None:
    import torch

    prompt = torch.randn(1, 4, 2, 8).bfloat16()
    with torch.inference_mode():
        for causal in (True, False):
            for window in (None, 2):
                ops.attention(prompt, prompt, prompt, scale=0.5, causal=causal, window=window)
    q, cache = torch.randn(2, 4, 8).bfloat16(), torch.randn(3, 16, 2, 8).bfloat16()
    table, lengths = torch.tensor([[0, 1], [2, 0]], dtype=torch.int32), torch.tensor([20, 5], dtype=torch.int32)
    ops.paged_attention(q, cache, cache, table, lengths, scale=0.5)
    ops.int8_matmul(q, torch.ones(6, 8, dtype=torch.int8), torch.ones(6))
