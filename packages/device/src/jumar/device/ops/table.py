"""The table of operations, and what each of them means. A device's table may be faster; it may not differ.

Shapes: batch, seq, heads, dim; `tokens` is batch and seq in one. kv_heads divides heads (grouped-query attention).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, overload

if TYPE_CHECKING:
    from torch import Tensor


class RmsNorm(Protocol):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in fp32, rounded once to x.dtype (arXiv:1910.07467).

    x [..., hidden], weight [hidden] -> [..., hidden]. zero_centered: multiply by 1 + weight.
    """

    def __call__(self, x: Tensor, weight: Tensor, eps: float, *, zero_centered: bool = False) -> Tensor: ...


class Attention(Protocol):
    """softmax(q k^T * scale) v. Returns [..., heads, v_dim].

    q, k, v: [batch, seq, heads, dim]; with cu_seqlens (int32 [n + 1], cumulative lengths from 0) [tokens, heads, dim], and
    a query sees its own sequence only. k and v may have fewer heads, v another dim. cu_seqlens_k defaults to cu_seqlens_q.
    causal: query i of Sq sees keys <= i + Sk - Sq (aligned at the end). window w: and of these only the last w, itself
    included; without causal the keys after it too. softcap c: scores become c * tanh(scores / c) before masking.
    A query that sees no key gives zeros. cu_seqlens are needed on the host by some devices: kept there they cost no wait;
    on the device they are read once per tensor. Raises ValueError for shapes that do not fit.
    """

    def __call__(
        self,
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
    ) -> Tensor: ...


class SwiGlu(Protocol):
    """silu(first half of the last dimension) * second half (arXiv:2002.05202). x [..., 2 n] -> [..., n]."""

    def __call__(self, x: Tensor) -> Tensor: ...


class Rope(Protocol):
    """Rotate the first r dims of each head, pass the rest through (arXiv:2104.09864).

    x [seq, batch, heads, dim] or [tokens, heads, dim]; cos, sin [seq, 1, 1, r] or [tokens, 1, r], r <= dim and even,
    already as wide as what they rotate: cat(f, f) where dims i and i + r/2 are a pair, each value twice for `interleaved`,
    where 2 i and 2 i + 1 are. They are cast to x.dtype first, as every stack does.
    """

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor: ...


class GroupedMatmul(Protocol):
    """Rows of expert e times weights[e]^T. x [tokens, in] sorted by expert, weights experts x [out, in] -> [tokens, out].

    counts int64 [experts]: rows of each expert, on any device; their sum is tokens. An expert without rows gets zero grads.
    """

    def __call__(self, x: Tensor, weights: Sequence[Tensor], counts: Tensor) -> Tensor: ...


class Permute(Protocol):
    """Every token once for each expert it chose, sorted by expert, in token order within one.

    x [T, H], indices int64 [T, k] -> (permuted [T * k, H], order [T * k]). order[t * k + j] is the row of `permuted` that
    token t's choice j went to (int32 or int64): per-choice values follow by `out.index_copy(0, order, values.flatten())`.
    """

    def __call__(self, x: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]: ...


class Unpermute(Protocol):
    """Undo `permute`: out[t] = sum over j of probs[t, j] * permuted[order[t * k + j]].

    permuted [T * k, H], probs [T, k] or None for ones -> [T, H] in permuted.dtype.
    """

    def __call__(self, permuted: Tensor, order: Tensor, probs: Tensor | None = None, *, k: int) -> Tensor: ...


class AdamW(Protocol):
    """One AdamW step in place (arXiv:1711.05101) on lists of fp32 tensors; `step` counts from 1; decay is lr * weight_decay."""

    def __call__(
        self,
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
    ) -> None: ...


class PagedAttention(Protocol):
    """One query a sequence over a cache in pages; no gradient.

    q [batch, heads, dim]; k_cache, v_cache [blocks, block_size, kv_heads, dim]; block_table int32 [batch, max_blocks];
    lengths int32 [batch]: keys of each sequence, the query's own included -> [batch, heads, dim]. Length 0 gives zeros.
    What stands in the table beyond a sequence's last page is never looked at, but must be a block number.
    """

    def __call__(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_table: Tensor,
        lengths: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor: ...


class Int8Matmul(Protocol):
    """x (weight * scales)^T: x [..., in], weight int8 [out, in], scales [out] -> [..., out] in x.dtype."""

    def __call__(self, x: Tensor, weight: Tensor, scales: Tensor) -> Tensor: ...


class SsdScan(Protocol):
    """Mamba-2's scan, in chunks (arXiv:2405.21060): S_t = exp(dt_t A) S_(t-1) + dt_t x_t B_t^T, y_t = S_t C_t + D x_t.

    x [batch, seq, heads, p], dt [batch, seq, heads], A [heads] (negative), B and C [batch, seq, groups, n] with groups dividing
    heads, D [heads] or [heads, p], z as x: y * silu(z). dt_bias [heads] is added to dt, then softplus with dt_softplus.
    initial_states [batch, heads, p, n] -> y as x; with return_final_states (y, states fp32 [batch, heads, p, n]).
    """

    @overload
    def __call__(
        self,
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
        return_final_states: Literal[False] = False,
    ) -> Tensor: ...
    @overload
    def __call__(
        self,
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
        return_final_states: Literal[True],
    ) -> tuple[Tensor, Tensor]: ...


class CausalConv1d(Protocol):
    """Each channel with its own kernel, over itself and the kernel - 1 steps before.

    x [batch, channels, seq], weight [channels, kernel], bias [channels] or None -> as x; activation None or "silu".
    """

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Literal["silu"] | None = None
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Ops:
    """A device's operations. `dataclasses.replace` makes a table that differs in some."""

    name: str
    rms_norm: RmsNorm
    attention: Attention
    swiglu: SwiGlu
    rope: Rope
    grouped_matmul: GroupedMatmul
    permute: Permute
    unpermute: Unpermute
    adamw: AdamW
    paged_attention: PagedAttention
    int8_matmul: Int8Matmul
    ssd_scan: SsdScan
    causal_conv1d: CausalConv1d
