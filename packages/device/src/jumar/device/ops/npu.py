"""The NPU's table: Ascend's kernels as torch-npu names them. What they lack is computed by the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from jumar.device.ops import reference
from jumar.device.ops.npu_attention import attention, paged_attention
from jumar.device.ops.npu_experts import grouped_matmul, permute, unpermute
from jumar.device.ops.npu_module import torch_npu


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, zero_centered: bool = False) -> Tensor:
    """See `table.RmsNorm`. The kernel wants one dtype: other weights, and 1 + weight, which bf16 would round, go through fp32."""
    same = x.dtype == weight.dtype and not (zero_centered and x.dtype != torch.float32)
    wide, weight = (x, weight) if same else (x.float(), weight.float())
    out: Tensor = torch_npu.npu_rms_norm(wide, 1 + weight if zero_centered else weight, epsilon=eps)[0]
    return out.to(x.dtype)


def swiglu(x: Tensor) -> Tensor:
    """See `table.SwiGlu`."""
    out: Tensor = torch_npu.npu_swiglu(x, dim=-1)
    return out


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """See `table.Rope`. The kernel turns whole heads in 4-D: the part that turns is cut out, tokens get a batch of one."""
    width = cos.shape[-1]
    turned = x if width == x.shape[-1] else x[..., :width].contiguous()
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    if x.dim() == 3:
        turned, cos, sin = turned.unsqueeze(1), cos.unsqueeze(1), sin.unsqueeze(1)
    out: Tensor = torch_npu.npu_rotary_mul(turned, cos, sin, rotary_mode="interleave" if interleaved else "half")
    if x.dim() == 3:
        out = out.squeeze(1)
    return out if width == x.shape[-1] else torch.cat((out, x[..., width:]), -1)


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
    """See `table.AdamW`. The kernel multiplies the powers it is given by beta once more: they are those of the step before."""
    before1, before2 = beta1 ** (step - 1), beta2 ** (step - 1)
    for param, grad, avg, square in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        torch_npu.npu_apply_adam_w(
            before1, before2, lr, weight_decay, beta1, beta2, eps, grad, None, False, False, out=(param, avg, square)
        )


def int8_matmul(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """See `table.Int8Matmul`. fp16 and bf16 have a kernel, without gradient."""
    if x.dtype not in (torch.float16, torch.bfloat16) or (torch.is_grad_enabled() and x.requires_grad):
        return reference.int8_matmul(x, weight, scales)
    rows = x.reshape(-1, x.shape[-1])
    out: Tensor = torch_npu.npu_weight_quant_batchmatmul(rows, weight.t(), scales.to(x.dtype))
    return out.reshape(*x.shape[:-1], weight.shape[0])


NPU_OPS = replace(
    reference.REFERENCE,
    name="npu",
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
)
