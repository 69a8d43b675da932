"""Mamba's two operations in plain torch."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Literal["silu"] | None = None) -> Tensor:
    """See `table.CausalConv1d`. ValueError for another activation."""
    if activation not in (None, "silu"):
        raise ValueError(f"causal_conv1d knows no activation {activation!r}, only 'silu' and None")
    padded = F.pad(x, (weight.shape[1] - 1, 0))
    out = F.conv1d(padded, weight.unsqueeze(1).to(x.dtype), None if bias is None else bias.to(x.dtype), groups=weight.shape[0])
    return out if activation is None else F.silu(out)


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int = 256,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
) -> Any:
    """See `table.SsdScan`. Inside a chunk attention-like products, between chunks the recurrence; fp32 throughout."""
    acc = torch.promote_types(x.dtype, torch.float32)
    length = x.shape[1]
    steps = dt.to(acc) if dt_bias is None else dt.to(acc) + dt_bias.to(acc)
    steps = F.softplus(steps) if dt_softplus else steps
    size = min(chunk_size, max(length, 1))
    xs, steps, Bs, Cs = (_chunks(t.to(acc), size) for t in (x, steps, B, C))
    decay = (steps * A.to(acc)).cumsum(2)
    states, final = _states(xs, steps, decay, Bs, initial_states)
    y = _within(xs, steps, decay, Bs, Cs) + _across(states, decay, Cs)
    y = y.flatten(1, 2)[:, :length]
    if D is not None:
        y = y + x.to(acc) * (D if D.dim() == 2 else D[:, None]).to(acc)
    y = (y if z is None else y * F.silu(z.to(acc))).to(x.dtype)
    return (y, final) if return_final_states else y


def _chunks(t: Tensor, size: int) -> Tensor:
    """[batch, seq, ...] -> [batch, chunks, size, ...], padded with zeros: steps of zero neither decay nor add."""
    short = -t.shape[1] % size
    padded = F.pad(t, (0, 0) * (t.dim() - 2) + (0, short))
    return padded.reshape(t.shape[0], -1, size, *t.shape[2:])


def _per_head(t: Tensor, heads: int) -> Tensor:
    """[..., groups, n] -> [..., heads, n]."""
    return t.repeat_interleave(heads // t.shape[-2], -2)


def _within(x: Tensor, steps: Tensor, decay: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """What a chunk's own steps give: sum over s <= l of C_l . B_s exp(decay_l - decay_s) dt_s x_s."""
    size, heads = x.shape[2], x.shape[3]
    scores = torch.einsum("bclgn,bcsgn->bcgls", C, B).repeat_interleave(heads // B.shape[3], 2)
    d = decay.movedim(3, 2)
    gap = d[..., :, None] - d[..., None, :]
    later = torch.ones(size, size, dtype=torch.bool, device=x.device).triu_(1)
    weights = scores * gap.masked_fill(later, float("-inf")).exp()
    return torch.einsum("bchls,bcshp->bclhp", weights, x * steps.unsqueeze(-1))


def _states(x: Tensor, steps: Tensor, decay: Tensor, B: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """States before each chunk [batch, chunks, heads, p, n], and the last."""
    left = (decay[:, :, -1:] - decay).exp() * steps
    added = torch.einsum("bclhp,bclhn->bchpn", x * left.unsqueeze(-1), _per_head(B, x.shape[3]))
    kept = decay[:, :, -1].exp()[..., None, None]
    state = torch.zeros_like(added[:, 0]) if initial is None else initial.to(added.dtype)
    before = []
    for chunk in range(x.shape[1]):
        before.append(state)
        state = state * kept[:, chunk] + added[:, chunk]
    return torch.stack(before, 1), state


def _across(states: Tensor, decay: Tensor, C: Tensor) -> Tensor:
    """What the state before a chunk gives to its steps."""
    return torch.einsum("bclhn,bchpn->bclhp", _per_head(C, states.shape[2]), states) * decay.exp().unsqueeze(-1)
