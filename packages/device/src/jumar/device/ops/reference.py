"""Every operation in plain torch, on any device: the meaning of the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from jumar.device.ops.attention import attention, paged_attention
from jumar.device.ops.mamba import causal_conv1d, ssd_scan
from jumar.device.ops.table import Ops


class _RmsNorm(torch.autograd.Function):
    """One backward for the whole formula: autograd through F.rms_norm takes four times as long on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, rstd = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, rstd = ctx.saved_tensors
        normed = x.to(weight.dtype) * rstd
        grad = grad.to(weight.dtype)
        inner = grad * weight
        along = torch.linalg.vecdot(inner, normed).unsqueeze(-1).div_(x.shape[-1])
        grad_weight = (grad * normed).flatten(0, -2).sum(0)
        return inner.sub_(normed.mul_(along)).mul_(rstd).to(x.dtype), grad_weight, None


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm, and what x was multiplied with, in weight's dtype."""
    wide = x.to(weight.dtype)
    rstd = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * rstd).mul_(weight).to(x.dtype), rstd


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, zero_centered: bool = False) -> Tensor:
    """See `table.RmsNorm`."""
    wide = weight.to(torch.promote_types(x.dtype, torch.float32))
    wide = 1 + wide if zero_centered else wide
    if not torch.is_grad_enabled():  # a function of autograd's takes three times as long for one row
        return _normed(x, wide, eps)[0]
    out: Tensor = _RmsNorm.apply(x, wide, eps)  # type: ignore[no-untyped-call]
    return out


def swiglu(x: Tensor) -> Tensor:
    """See `table.SwiGlu`."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """See `table.Rope`."""
    width = cos.shape[-1]
    turned, rest = (x, None) if width == x.shape[-1] else (x[..., :width], x[..., width:])
    if interleaved:
        quarter = torch.stack((-turned[..., 1::2], turned[..., ::2]), -1).flatten(-2)
    else:
        first, second = turned.chunk(2, -1)
        quarter = torch.cat((-second, first), -1)
    turned = turned * cos.to(x.dtype) + quarter * sin.to(x.dtype)
    return turned if rest is None else torch.cat((turned, rest), -1)


def grouped_matmul(x: Tensor, weights: Sequence[Tensor], counts: Tensor) -> Tensor:
    """See `table.GroupedMatmul`. One matmul an expert; waits for `counts` if they are on a device."""
    sizes = check_counts(x, weights, counts)
    return torch.cat([F.linear(rows, weight) for rows, weight in zip(torch.split(x, sizes), weights, strict=True)])


def check_counts(x: Tensor, weights: Sequence[Tensor], counts: Tensor) -> list[int]:
    """Rows of each expert, on the host. ValueError if they do not add up to x's rows, or are not one for each weight."""
    sizes: list[int] = counts.tolist()
    if len(sizes) != len(weights) or sum(sizes) != x.shape[0]:
        raise ValueError(f"{x.shape[0]} rows and {len(weights)} experts do not fit counts {sizes}")
    return sizes


class _Take(torch.autograd.Function):
    """x[index // k], where `order` is index's inverse: its gradient is a gather too, not an index_add."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, order: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(order)
        ctx.k = k
        return x.index_select(0, index if k == 1 else index // k)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (order,) = ctx.saved_tensors
        back = grad.index_select(0, order)
        return (back if ctx.k == 1 else back.reshape(-1, ctx.k, back.shape[1]).sum(1)), None, None, None


def _inverse(index: Tensor) -> Tensor:
    return torch.empty_like(index).scatter_(0, index.long(), torch.arange(len(index), device=index.device, dtype=index.dtype))


def permute(x: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """See `table.Permute`."""
    index = indices.flatten().argsort(stable=True)
    order = _inverse(index)
    return _Take.apply(x, index, order, indices.shape[1]), order  # type: ignore[no-untyped-call]


def unpermute(permuted: Tensor, order: Tensor, probs: Tensor | None = None, *, k: int) -> Tensor:
    """See `table.Unpermute`."""
    choices: Tensor = _Take.apply(permuted, order, _inverse(order), 1)  # type: ignore[no-untyped-call]
    choices = choices.reshape(-1, k, permuted.shape[1])
    if probs is None:
        return choices.sum(1)
    return (choices * probs.unsqueeze(-1)).sum(1).to(permuted.dtype)


@torch.no_grad()
def adamw(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    step: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """See `table.AdamW`."""
    for param, grad, avg, square in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        param.mul_(1 - lr * weight_decay)
        avg.lerp_(grad, 1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = square.sqrt().div_((1 - beta2**step) ** 0.5).add_(eps)
        param.addcdiv_(avg, root, value=-lr / (1 - beta1**step))


def int8_matmul(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """See `table.Int8Matmul`."""
    return F.linear(x, weight.to(x.dtype)) * scales.to(x.dtype)


REFERENCE = Ops(
    name="reference",
    rms_norm=rms_norm,
    attention=attention,
    swiglu=swiglu,
    rope=rope,
    grouped_matmul=grouped_matmul,
    permute=permute,
    unpermute=unpermute,
    adamw=adamw,
    paged_attention=paged_attention,
    int8_matmul=int8_matmul,
    ssd_scan=ssd_scan,
    causal_conv1d=causal_conv1d,
)
