"""npu_grouped_matmul, npu_moe_token_permute and _unpermute and their gradients, by the words of their documents, in loops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jumar.device.testing.npu_numerics_attention import refuse

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def grouped_matmul(
    x: list[Tensor],
    weight: list[Tensor],
    *,
    group_list: Tensor | None = None,
    split_item: int | None = 0,
    group_type: int | None = None,
    group_list_type: int | None = 0,
    act_type: int | None = 0,
    **rest: Any,
) -> list[Tensor]:
    """One x, one output: rows divided among the weights (group_type 0), or the inner dimension among groups (2)."""
    given = sorted(name for name, value in rest.items() if value is not None)
    refuse(bool(given), f"{given} (not imitated)")
    refuse(split_item not in (2, 3) or len(x) != 1, "one x and one output only (others are not imitated)")
    refuse(act_type != 0, "an activation")
    refuse(group_list is None, "no group_list")
    assert group_list is not None
    refuse(group_list.dtype != torch.int64 or group_list.dim() != 1, f"group_list must be int64 [groups], not {group_list.dtype}")
    dtypes = {t.dtype for t in (*x, *weight)}
    refuse(len(dtypes) != 1 or not dtypes <= set(FLOATS), f"dtypes {dtypes}")
    refuse(any(t.shape[-1] >= 65536 for t in (*x, *weight)), "a last dimension of 65536 or more")
    refuse(len(weight) > 128, f"{len(weight)} weights in a list")
    ends = group_list.tolist() if group_list_type == 0 else group_list.cumsum(0).tolist()
    refuse(ends != sorted(ends), f"cumulative group_list that falls: {ends}")
    refuse(group_type not in (0, 2), f"group_type {group_type}")
    return [_by_rows(x[0], weight, ends) if group_type == 0 else _by_inner(x[0], weight, ends)]


def _by_rows(x: Tensor, weight: list[Tensor], ends: list[int]) -> Tensor:
    refuse(x.dim() != 2 or not x.is_contiguous(), "x must be a matrix, and not transposed")
    refuse(ends[-1] != x.shape[0], f"group_list ends at {ends[-1]}, x has {x.shape[0]} rows")
    if len(weight) == 1:
        refuse(weight[0].dim() != 3, "a single weight must be 3-D")
        matrices = list(weight[0].unbind(0))
    else:
        refuse(any(w.dim() != 2 for w in weight), "weights of a list must be matrices")
        refuse(x.dtype == torch.float32, "fp32 with a list of weights")
        refuse(len({w.is_contiguous() for w in weight}) != 1, "some weights transposed and some not")
        matrices = weight
    refuse(len(matrices) != len(ends), f"{len(matrices)} weights and {len(ends)} groups")
    refuse(any(w.shape[0] != x.shape[1] for w in matrices), f"x [.., {x.shape[1]}] times weight {list(matrices[0].shape)}")
    out = x.new_zeros(x.shape[0], matrices[0].shape[1])
    start = 0
    for end, matrix in zip(ends, matrices, strict=True):
        for row in range(start, end):
            out[row] = (x[row].float() @ matrix.float()).to(x.dtype)
        start = end
    return out


def _by_inner(x: Tensor, weight: list[Tensor], ends: list[int]) -> Tensor:
    refuse(len(weight) != 1 or weight[0].dim() != 2, "group_type 2 takes one matrix as weight")
    refuse(x.dim() != 2 or not x.t().is_contiguous(), "group_type 2 takes x transposed")
    y = weight[0]
    refuse(ends[-1] != x.shape[1] or y.shape[0] != x.shape[1], f"group_list ends at {ends[-1]}, inner is {x.shape[1]}")
    # What is not written stays NaN: nothing says what the kernel leaves for an empty group.
    out = torch.full((len(ends), x.shape[0], y.shape[1]), float("nan"), dtype=x.dtype)
    start = 0
    for group, end in enumerate(ends):
        if end > start:
            out[group] = (x[:, start:end].float() @ y[start:end].float()).to(x.dtype)
        start = end
    return out


def token_permute(
    tokens: Tensor, indices: Tensor, num_out_tokens: int | None = None, padded_mode: bool = False
) -> tuple[Tensor, Tensor]:
    """permuted[sorted_indices[i]] = tokens[i // topK], experts in order, tokens in order within one."""
    refuse(tokens.dtype not in FLOATS or tokens.dim() != 2, f"tokens {tokens.dtype} {list(tokens.shape)}")
    refuse(indices.dtype not in (torch.int32, torch.int64), f"indices {indices.dtype}")
    refuse(padded_mode or bool(num_out_tokens), "padded_mode, num_out_tokens (not imitated)")
    flat = indices.flatten().tolist()
    k = len(flat) // len(tokens)
    ranked = sorted(range(len(flat)), key=lambda i: (flat[i], i))
    places = [0] * len(flat)
    for row, choice in enumerate(ranked):
        places[choice] = row
    return tokens[[choice // k for choice in ranked]].clone(), torch.tensor(places, dtype=torch.int32)


def token_permute_grad(
    tokens: Tensor, grad_permuted_tokens: Tensor, indices: Tensor, sorted_indices: Tensor, padded_mode: bool = False
) -> Tensor:
    """Each token's gradient is the sum over its copies."""
    out = torch.zeros(tokens.shape)
    k = indices.numel() // len(tokens)
    for choice, row in enumerate(sorted_indices.tolist()):
        out[choice // k] += grad_permuted_tokens[row].float()
    return out.to(tokens.dtype)


def token_unpermute(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: list[int] | None = None,
) -> Tensor:
    """Sum of each token's copies times its probs; without probs there is one copy a token."""
    refuse(permuted_tokens.dtype not in FLOATS, f"permuted_tokens {permuted_tokens.dtype}")
    refuse(sorted_indices.dtype != torch.int32, f"sorted_indices {sorted_indices.dtype}")
    refuse(probs is not None and probs.dtype != permuted_tokens.dtype, "probs of another dtype (allowed by some documents only)")
    refuse(padded_mode or restore_shape is not None, "padded_mode, restore_shape (not imitated)")
    k = 1 if probs is None else probs.shape[1]
    out = torch.zeros(len(sorted_indices) // k, permuted_tokens.shape[1])
    for choice, row in enumerate(sorted_indices.tolist()):
        factor = 1.0 if probs is None else float(probs[choice // k, choice % k])
        out[choice // k] += factor * permuted_tokens[row].float()
    return out.to(permuted_tokens.dtype)


def token_unpermute_grad(
    permuted_tokens: Tensor,
    grad_unpermuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: list[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of the permuted tokens and of probs."""
    k = 1 if probs is None else probs.shape[1]
    grad_tokens = torch.zeros(permuted_tokens.shape)
    grad_probs = torch.zeros(()) if probs is None else torch.zeros(probs.shape)
    for choice, row in enumerate(sorted_indices.tolist()):
        token, slot = choice // k, choice % k
        grad = grad_unpermuted_tokens[token].float()
        grad_tokens[row] = grad if probs is None else grad * float(probs[token, slot])
        if probs is not None:
            grad_probs[token, slot] = grad @ permuted_tokens[row].float()
    return grad_tokens.to(permuted_tokens.dtype), grad_probs.to(permuted_tokens.dtype)
