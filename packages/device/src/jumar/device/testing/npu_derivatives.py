"""Derivatives of the operators, as torch-npu has them: each through the *_grad or *_backward operator of the wheel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

ATTENTION_KEPT = ("scale", "keep_prob", "pre_tockens", "next_tockens", "sparse_mode", "actual_seq_qlen", "actual_seq_kvlen")


def derive(library: Any, without: Iterable[str]) -> None:
    """Register them; operators in `without`, which torch-npu cannot derive, raise in backward."""
    pairs: dict[str, tuple[Any, Any]] = {
        "npu_rms_norm": (_keep_rms_norm, _rms_norm),
        "npu_swiglu": (_keep_swiglu, _swiglu),
        "npu_rotary_mul": (_keep_rotary_mul, _rotary_mul),
        "npu_fusion_attention": (_keep_attention, _attention),
        "npu_moe_token_permute": (_keep_permute, _permute),
        "npu_moe_token_unpermute": (_keep_unpermute, _unpermute),
    }
    for name, (keep, backward) in pairs.items():
        torch.library.register_autograd(f"npu::{name}", backward, setup_context=keep, lib=library)
    for name in without:
        library.impl(name, _without_derivative(name), "AutogradCPU")


class _Raise(torch.autograd.Function):
    """The output as it is; an error in backward."""

    @staticmethod
    def forward(ctx: Any, name: str, out: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        ctx.name = name
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(f"torch-npu has no derivative for {ctx.name}")


def _without_derivative(name: str) -> Any:
    """torch's own fallback warns and gives no gradient; register_autograd takes no keyword-only tensors, as these have."""
    from torch.utils import _pytree

    operator = getattr(torch.ops.npu, name).default

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            out = operator(*args, **kwargs)
        inputs = [t for t in _pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.requires_grad]
        if not (inputs and torch.is_grad_enabled()):
            return out
        return _pytree.tree_map(lambda t: _Raise.apply(name, t, *inputs), out)  # type: ignore[no-untyped-call]

    return call


def _named(name: str, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """Inputs by their names in the schema, defaults filled in."""
    schema = getattr(torch.ops.npu, name).default._schema
    positional = [a for a in schema.arguments if not a.kwarg_only]
    values = {a.name: a.default_value for a in positional}
    values.update(zip((a.name for a in positional), inputs, strict=False))
    return values


def _keep_rms_norm(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:2], output[1])


def _rms_norm(ctx: Any, dy: Any, _rstd: Any) -> Any:
    x, gamma, rstd = ctx.saved_tensors
    dx, dgamma = torch.ops.npu.npu_rms_norm_backward(dy, x, gamma, rstd)
    return dx, dgamma.to(gamma.dtype), None


def _keep_swiglu(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.dim = inputs[1] if len(inputs) > 1 else -1


def _swiglu(ctx: Any, grad: Any) -> Any:
    return torch.ops.npu.npu_swiglu_backward(grad, *ctx.saved_tensors, ctx.dim), None


def _keep_rotary_mul(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    given = _named("npu_rotary_mul", inputs)
    ctx.save_for_backward(given["self"], given["r1"], given["r2"])
    ctx.mode = given["rotary_mode"]


def _rotary_mul(ctx: Any, grad: Any) -> Any:
    return (*torch.ops.npu.npu_rotary_mul_backward(grad, *ctx.saved_tensors, ctx.mode), None, None)


def _keep_attention(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    given = _named("npu_fusion_attention", inputs)
    ctx.save_for_backward(given["query"], given["key"], given["value"], given["atten_mask"], *output[:3])
    ctx.words = (given["head_num"], given["input_layout"])
    ctx.kept = {name: given[name] for name in ATTENTION_KEPT}
    ctx.inputs = len(inputs)


def _attention(ctx: Any, grad: Any, *_: Any) -> Any:
    query, key, value, mask, out, highest, total = ctx.saved_tensors
    kept = {"scale_value" if name == "scale" else name: given for name, given in ctx.kept.items()}
    kept.update(atten_mask=mask, softmax_max=highest, softmax_sum=total, attention_in=out)
    grads = torch.ops.npu.npu_fusion_attention_grad(query, key, value, grad, *ctx.words, **kept)
    return (*grads[:3], *([None] * (ctx.inputs - 3)))


def _keep_permute(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output[1])
    ctx.inputs = len(inputs)


def _permute(ctx: Any, grad: Any, _indices: Any) -> Any:
    tokens, indices, order = ctx.saved_tensors
    grad_tokens = torch.ops.npu.npu_moe_token_permute_grad(tokens, grad, indices, order)
    return (grad_tokens, *([None] * (ctx.inputs - 1)))


def _keep_unpermute(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    given = _named("npu_moe_token_unpermute", inputs)
    ctx.save_for_backward(given["permuted_tokens"], given["sorted_indices"], given["probs"])
    ctx.inputs = len(inputs)


def _unpermute(ctx: Any, grad: Any) -> Any:
    permuted, order, probs = ctx.saved_tensors
    grad_tokens, grad_probs = torch.ops.npu.npu_moe_token_unpermute_grad(permuted, grad, order, probs)
    grads = (grad_tokens, None, None if probs is None else grad_probs)
    return (*grads, None, None)[: ctx.inputs]
