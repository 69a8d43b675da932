"""CPU kernels for the operators that our NPU table calls, and their derivatives through the wheel's own *_grad schemas.

Written from the documents of the operators, apart from the reference; what a document forbids is refused. Every result's
shape and dtype is compared with the wheel's shape kernel. This is how the calls are tested, not how the hardware rounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jumar.device.testing import npu_numerics_attention as attention
from jumar.device.testing import npu_numerics_experts as experts
from jumar.device.testing.npu_numerics_attention import refuse

FLOATS = experts.FLOATS


def rms_norm(self: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """y, and the reciprocal of the root mean square in fp32."""
    refuse(self.dtype not in FLOATS or gamma.dtype != self.dtype, f"x {self.dtype}, gamma {gamma.dtype}")
    refuse(self.dim() < 2 or gamma.shape != self.shape[-1:], f"x {list(self.shape)}, gamma {list(gamma.shape)}")
    x = self.float()
    rstd = 1 / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + epsilon)
    return (x * rstd * gamma.float()).to(self.dtype), rstd


def rms_norm_backward(dy: Tensor, self: Tensor, gamma: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """dx in x's dtype, dgamma in fp32."""
    n, x, g = self.shape[-1], self.float(), dy.float() * gamma.float()
    dx = rstd * g - x * rstd**3 * (g * x).sum(-1, keepdim=True) / n
    return dx.to(self.dtype), (dy.float() * x * rstd).reshape(-1, n).sum(0)


def swiglu(self: Tensor, dim: int = -1) -> Tensor:
    """swish(A) * B, A and B the halves along dim."""
    refuse(self.dtype not in FLOATS or self.shape[dim] % 2 != 0, f"{self.dtype} {list(self.shape)}")
    a, b = (half.float() for half in self.tensor_split(2, dim))
    return (a / (1 + (-a).exp()) * b).to(self.dtype)


def swiglu_backward(grad_output: Tensor, self: Tensor, dim: int = -1) -> Tensor:
    """Both halves' gradients."""
    a, b = (half.float() for half in self.tensor_split(2, dim))
    g, s = grad_output.float(), 1 / (1 + (-a).exp())
    return torch.cat((g * b * s * (1 + a * (1 - s)), g * a * s), dim).to(self.dtype)


def _turn(width: int, mode: str) -> Tensor:
    """The matrix R with x_new = x R of the documents' example."""
    turn = torch.zeros(width, width)
    half = width // 2
    pairs = [(2 * i, 2 * i + 1) for i in range(half)] if mode == "interleave" else [(i, i + half) for i in range(half)]
    for first, second in pairs:
        turn[first, second], turn[second, first] = 1, -1
    return turn


def rotary_mul(self: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None) -> Tensor:
    """r1 * x + r2 * x_new."""
    refuse(rotate is not None or rotary_mode not in ("half", "interleave"), f"rotary_mode {rotary_mode}, rotate")
    refuse(any(t.dim() != 4 for t in (self, r1, r2)), "4-D tensors only")
    refuse(self.dtype not in FLOATS or not self.dtype == r1.dtype == r2.dtype, f"{self.dtype}, {r1.dtype}, {r2.dtype}")
    refuse(r1.shape != r2.shape or r1.shape[-1] != self.shape[-1], f"x {list(self.shape)}, r1 {list(r1.shape)}")
    refuse(self.shape[-1] % 2 != 0 or self.shape[-1] >= 896, f"a head dim of {self.shape[-1]}")
    broadcast = [r == 1 and s != 1 for r, s in zip(r1.shape, self.shape, strict=True)]
    refuse(any(r not in (1, s) for r, s in zip(r1.shape, self.shape, strict=True)), "r1 that does not broadcast")
    refuse(
        rotary_mode == "interleave" and sum(n != 1 for n in r1.shape[:3]) > 1, "interleave with r1 other than S11D, 1S1D, 11SD"
    )
    refuse(broadcast[3], "r1 of width 1")
    x = self.float()
    return (r1.float() * x + r2.float() * (x @ _turn(x.shape[-1], rotary_mode))).to(self.dtype)


def rotary_mul_backward(
    grad: Tensor, self: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half"
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, r1 and r2."""
    g, x, turn = grad.float(), self.float(), _turn(self.shape[-1], rotary_mode)
    dx = g * r1.float() + (g * r2.float()) @ turn.T
    return dx.to(self.dtype), (g * x).sum_to_size(r1.shape).to(self.dtype), (g * (x @ turn)).sum_to_size(r2.shape).to(self.dtype)


def apply_adam_w(
    beta1_power: float,
    beta2_power: float,
    lr: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    grad: Tensor,
    max_grad_norm: Tensor | None,
    amsgrad: bool | None,
    maximize: bool | None,
    *,
    var: Tensor,
    m: Tensor,
    v: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """In place; beta1_power and beta2_power are those of the step before."""
    refuse(bool(amsgrad) or bool(maximize), "amsgrad, maximize (not imitated)")
    refuse(
        len({t.dtype for t in (grad, var, m, v)}) != 1 or len({t.shape for t in (grad, var, m, v)}) != 1, "tensors that differ"
    )
    m.copy_(beta1 * m + (1 - beta1) * grad)
    v.copy_(beta2 * v + (1 - beta2) * grad**2)
    m_hat, v_hat = m / (1 - beta1_power * beta1), v / (1 - beta2_power * beta2)
    var.sub_(lr / (v_hat.sqrt() + epsilon) * m_hat + lr * weight_decay * var)
    return var, m, v


def weight_quant_batchmatmul(x: Tensor, weight: Tensor, antiquant_scale: Tensor, *rest: Any, **more: Any) -> Tensor:
    """x times int8 [K, N], scaled by column."""
    refuse(any(value not in (None, 0) for value in (*rest, *more.values())), "more than a scale (not imitated)")
    refuse(x.dtype not in (torch.float16, torch.bfloat16) or x.dim() != 2, f"x {x.dtype} {list(x.shape)}")
    refuse(weight.dtype != torch.int8 or weight.shape[0] != x.shape[1], f"weight {weight.dtype} {list(weight.shape)}")
    refuse(antiquant_scale.dtype != x.dtype or antiquant_scale.shape != weight.shape[1:], "antiquant_scale")
    return (x.float() @ (weight.float() * antiquant_scale.float())).to(x.dtype)


KERNELS: dict[str, Callable[..., Any]] = {
    "npu_rms_norm": rms_norm,
    "npu_rms_norm_backward": rms_norm_backward,
    "npu_swiglu": swiglu,
    "npu_swiglu_backward": swiglu_backward,
    "npu_rotary_mul": rotary_mul,
    "npu_rotary_mul_backward": rotary_mul_backward,
    "npu_fusion_attention": attention.fusion_attention,
    "npu_fusion_attention_grad": attention.fusion_attention_grad,
    "npu_prompt_flash_attention": attention.prompt_flash_attention,
    "npu_incre_flash_attention": attention.incre_flash_attention,
    "npu_grouped_matmul": experts.grouped_matmul,
    "npu_moe_token_permute": experts.token_permute,
    "npu_moe_token_permute_grad": experts.token_permute_grad,
    "npu_moe_token_unpermute": experts.token_unpermute,
    "npu_moe_token_unpermute_grad": experts.token_unpermute_grad,
    "npu_weight_quant_batchmatmul": weight_quant_batchmatmul,
    "npu_apply_adam_w.out": apply_adam_w,
}
RAN: Counter[str] = Counter()
"""How often each operator has run in this process, those of backward passes too: what a test looks at that wants to know."""

NO_DERIVATIVE = (
    *("npu_grouped_matmul", "npu_prompt_flash_attention", "npu_incre_flash_attention"),
    "npu_weight_quant_batchmatmul",
)


def register() -> Any:
    """Register KERNELS for CPU tensors, and derivatives, after `define_operators`. Returns what keeps them alive."""
    from jumar.device.testing.npu_derivatives import derive

    library = torch.library.Library("npu", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name, kernel in KERNELS.items():
        library.impl(name, _checked(name, kernel), "CPU")  # type: ignore[no-untyped-call]
    derive(library, NO_DERIVATIVE)
    return library


def _checked(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel, its outputs compared with the wheel's shape kernel."""
    from torch.utils import _pytree

    base, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.npu, base), overload or "default")

    def in_place(*args: Any, **kwargs: Any) -> Any:  # the outputs are the inputs
        RAN[base] += 1
        return kernel(*args, **kwargs)

    if overload:
        return in_place

    def to_meta(value: Any) -> Any:
        return value.to("meta") if isinstance(value, Tensor) else value

    def checked(*args: Any, **kwargs: Any) -> Any:
        RAN[name] += 1
        out = kernel(*args, **kwargs)
        wanted = operator(*_pytree.tree_map(to_meta, args), **_pytree.tree_map(to_meta, kwargs))
        for got, want in zip(_pytree.tree_leaves(out), _pytree.tree_leaves(wanted), strict=True):
            if isinstance(want, Tensor) and (got.shape != want.shape or got.dtype != want.dtype):
                raise AssertionError(f"{name}: {got.dtype} {list(got.shape)}, but the wheel says {want.dtype} {list(want.shape)}")
        return out

    return checked
