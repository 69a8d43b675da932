"""Mixture-of-experts operations on Ascend: npu_grouped_matmul, npu_moe_token_permute, npu_moe_token_unpermute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from jumar.device.ops import reference
from jumar.device.ops.npu_module import torch_npu

ROWS = 0  # group_type: the rows of x are divided among the weights
INNER = 2  # group_type: what is summed over is divided, which gives one product a group
ONE_OUTPUT = 3  # split_item
LIST_LIMIT = 128  # longest list of tensors that the kernel takes


class _GroupedMatmul(torch.autograd.Function):
    """torch-npu has no derivative for npu_grouped_matmul: both gradients are grouped products themselves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: Tensor, *weights: Tensor) -> Tensor:
        ends = counts.cumsum(0)
        ctx.save_for_backward(x, counts, ends, *weights)
        return _grouped([x], _as_list([weight.t() for weight in weights]), ends, ROWS)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, counts, ends, *weights = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = _grouped([grad], _as_list(weights), ends, ROWS) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[2:]):
            return grad_x, None, *(None for _ in weights)
        grad_weights = _grouped([grad.t()], [x], ends, INNER)
        # An expert without rows: whether the kernel writes its product at all is not documented.
        grad_weights.masked_fill_((counts == 0)[:, None, None], 0)
        return grad_x, None, *grad_weights.unbind(0)


def _grouped(x: list[Tensor], weights: list[Tensor], ends: Tensor, group_type: int) -> Tensor:
    out: Tensor = torch_npu.npu_grouped_matmul(x, weights, group_list=ends, split_item=ONE_OUTPUT, group_type=group_type)[0]
    return out


def _as_list(weights: Sequence[Tensor]) -> list[Tensor]:
    """As the kernel takes them: a list of matrices; for fp32, and for more than 128, one stacked tensor."""
    if weights[0].dtype == torch.float32 or len(weights) > LIST_LIMIT:
        return [torch.stack(list(weights))]
    return list(weights)


def grouped_matmul(x: Tensor, weights: Sequence[Tensor], counts: Tensor) -> Tensor:
    """See `table.GroupedMatmul`. Waits for nothing. One expert is a plain product: the kernel wants two or more."""
    if len(weights) == 1:
        return F.linear(x, weights[0])
    if x.shape[0] == 0:
        return reference.grouped_matmul(x, weights, torch.zeros(len(weights), dtype=torch.int64))
    out: Tensor = _GroupedMatmul.apply(x, counts.to(x.device), *weights)  # type: ignore[no-untyped-call]
    return out


def permute(x: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """See `table.Permute`. The kernel's second output is `order` in int32."""
    if x.shape[0] == 0:
        return reference.permute(x, indices)
    permuted, order = torch_npu.npu_moe_token_permute(x, indices)
    return permuted, order


def unpermute(permuted: Tensor, order: Tensor, probs: Tensor | None = None, *, k: int) -> Tensor:
    """See `table.Unpermute`. The kernel multiplies by probs of the tokens' dtype; others are multiplied here, in theirs."""
    if permuted.shape[0] == 0:
        return reference.unpermute(permuted, order, probs, k=k)
    order = order.to(torch.int32)
    if probs is not None and probs.dtype == permuted.dtype:
        out: Tensor = torch_npu.npu_moe_token_unpermute(permuted, order, probs=probs)
        return out
    choices: Tensor = torch_npu.npu_moe_token_unpermute(permuted, order)
    choices = choices.reshape(-1, k, permuted.shape[1])
    if probs is None:
        return choices.sum(1)
    return (choices * probs.unsqueeze(-1)).sum(1).to(permuted.dtype)
