"""The reference and the CPU's table against definitions written down once more: loops over elements, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from jumar.device.ops.cpu import CPU_OPS
from jumar.device.ops.reference import REFERENCE

TABLES = pytest.mark.parametrize("ops", [REFERENCE, CPU_OPS], ids=lambda ops: ops.name)
FEW = settings(max_examples=25, deadline=None, derandomize=True)


def wide(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def attention_by_hand(q, k, v, scale, causal, window, softcap):
    """[seq, heads, dim], one query, one head and one key at a time; without the help of torch's softmax."""
    queries, heads, _ = q.shape
    keys, kv_heads, _ = k.shape
    out = torch.zeros(queries, heads, v.shape[2], dtype=q.dtype)
    for h in range(heads):
        g = h // (heads // kv_heads)
        for i in range(queries):
            own = i + keys - queries
            seen = [j for j in range(keys) if (j <= own or not causal) and (window is None or j > own - window)]
            scores = [(q[i, h] @ k[j, g]).item() * scale for j in seen]
            if softcap is not None:
                scores = [softcap * math.tanh(score / softcap) for score in scores]
            total = sum(math.exp(score) for score in scores)
            for j, score in zip(seen, scores, strict=True):
                out[i, h] += math.exp(score) / total * v[j, g]
    return out


@st.composite
def attention_cases(draw):
    """Heads, dims and options, and the lengths of one to three sequences."""
    lengths = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=3))
    return dict(
        lengths=lengths,
        kv_heads=draw(st.sampled_from([1, 2])),
        group=draw(st.sampled_from([1, 3])),
        v_dim=draw(st.sampled_from([2, 4, 6])),
        causal=draw(st.booleans()),
        window=draw(st.sampled_from([None, 1, 2, 4, 9])),
        softcap=draw(st.sampled_from([None, 0.7])),
        seed=draw(st.integers(0, 9)),
    )


@given(attention_cases())
@FEW
def test_packed_attention_is_the_formula(case):
    torch.manual_seed(case["seed"])
    of_q, of_k = zip(*case["lengths"], strict=True)
    heads = case["kv_heads"] * case["group"]
    q, k, v = wide(sum(of_q), heads, 4), wide(sum(of_k), case["kv_heads"], 4), wide(sum(of_k), case["kv_heads"], case["v_dim"])
    words = dict(scale=0.4, causal=case["causal"], window=case["window"], softcap=case["softcap"])
    cu_q, cu_k = (torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32) for lengths in (of_q, of_k))
    got = REFERENCE.attention(q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, **words)
    pieces = zip(q.split(of_q), k.split(of_k), v.split(of_k), strict=True)
    by_hand = [attention_by_hand(*map(torch.detach, piece), *words.values()) for piece in pieces]
    torch.testing.assert_close(got, torch.cat(by_hand))
    grads = torch.autograd.grad(got.sum(), (q, k, v))
    assert all(grad.isfinite().all() for grad in grads)


@given(attention_cases())
@FEW
def test_dense_attention_is_the_packed_one(case):
    torch.manual_seed(case["seed"])
    queries, keys = case["lengths"][0]
    heads, batch = case["kv_heads"] * case["group"], 2
    shapes = ((queries, heads, 4), (keys, case["kv_heads"], 4), (keys, case["kv_heads"], case["v_dim"]))
    q, k, v = (wide(batch, *shape) for shape in shapes)
    words = dict(scale=0.4, causal=case["causal"], window=case["window"], softcap=case["softcap"])
    got = REFERENCE.attention(q, k, v, **words)
    by_hand = [attention_by_hand(*(t[b].detach() for t in (q, k, v)), *words.values()) for b in range(batch)]
    torch.testing.assert_close(got, torch.stack(by_hand))


@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_has_right_gradients(causal, window, softcap):
    q, k, v = wide(1, 3, 4, 2), wide(1, 4, 2, 2), wide(1, 4, 2, 3)
    words = dict(scale=0.4, causal=causal, window=window, softcap=softcap)
    assert gradcheck(lambda q, k, v: REFERENCE.attention(q, k, v, **words), (q, k, v))


def test_packed_lengths_are_read_again_when_they_change():
    cu = torch.tensor([0, 1, 4], dtype=torch.int32)
    q = torch.randn(4, 2, 4)
    first = REFERENCE.attention(q, q, q, scale=1.0, cu_seqlens_q=cu)
    cu[1] = 2
    second = REFERENCE.attention(q, q, q, scale=1.0, cu_seqlens_q=cu)
    fresh = REFERENCE.attention(q, q, q, scale=1.0, cu_seqlens_q=cu.clone())
    assert not torch.equal(first, second)
    assert torch.equal(second, fresh)


@pytest.mark.parametrize(
    ("q", "k", "v", "words", "says"),
    [
        ((2, 3, 4), (2, 3, 4), (2, 3, 4), {}, "takes 4-D"),
        ((1, 2, 3, 4), (1, 2, 2, 4), (1, 2, 2, 4), {}, "do not fit"),
        ((1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3, 4), {}, "do not fit"),
        ((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), dict(window=0), "at least 1"),
        ((5, 3, 4), (5, 3, 4), (5, 3, 4), dict(cu_seqlens_q=torch.tensor([0, 4])), "must rise from 0 to the 5 tokens"),
        ((5, 3, 4), (5, 3, 4), (5, 3, 4), dict(cu_seqlens_q=torch.tensor([0, 4, 3, 5])), "must rise"),
        ((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), dict(cu_seqlens_k=torch.tensor([0, 2])), "without cu_seqlens_q"),
    ],
)
def test_attention_refuses_what_does_not_fit(q, k, v, words, says):
    with pytest.raises(ValueError, match=says):
        REFERENCE.attention(torch.ones(q), torch.ones(k), torch.ones(v), scale=1.0, **words)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.sampled_from([None, 1, 3]), st.sampled_from([None, 0.7]))
@FEW
def test_paged_attention_is_attention_over_what_the_pages_hold(lengths, window, softcap):
    size, kv_heads, dim, blocks = 3, 2, 4, 20
    keys, values = wide(blocks, size, kv_heads, dim).detach(), wide(blocks, size, kv_heads, dim).detach()
    free = torch.randperm(blocks).tolist()
    table = torch.tensor([[free.pop() for _ in range(3)] for _ in lengths], dtype=torch.int32)
    q = wide(len(lengths), 4, dim).detach()
    got = REFERENCE.paged_attention(
        q, keys, values, table, torch.tensor(lengths, dtype=torch.int32), scale=0.3, window=window, softcap=softcap
    )
    for b, length in enumerate(lengths):
        k, v = (torch.cat([cache[p] for p in table[b].tolist()])[:length] for cache in (keys, values))
        torch.testing.assert_close(got[b], attention_by_hand(q[b][None], k, v, 0.3, True, window, softcap)[0])


@TABLES
@pytest.mark.parametrize("zero_centered", [False, True])
def test_rms_norm(ops, zero_centered):
    x, w = wide(2, 3, 6), wide(6)
    for i, j in np.ndindex(2, 3):
        row = x[i, j].tolist()
        scale = 1 / math.sqrt(sum(e * e for e in row) / 6 + 1e-3)
        factors = [(1 + f if zero_centered else f) * scale for f in w.tolist()]
        want = torch.tensor([e * f for e, f in zip(row, factors, strict=True)], dtype=torch.float64)
        torch.testing.assert_close(ops.rms_norm(x, w, 1e-3, zero_centered=zero_centered)[i, j], want)
    assert gradcheck(lambda x, w: ops.rms_norm(x, w, 1e-3, zero_centered=zero_centered), (x, w))


@TABLES
def test_rms_norm_rounds_once(ops):
    x, w = torch.randn(64, 32).bfloat16(), torch.randn(32).bfloat16()
    exact = x.double() / (x.double() ** 2).mean(-1, keepdim=True).add(1e-6).sqrt() * w.double()
    got = ops.rms_norm(x, w, 1e-6)
    assert got.dtype == torch.bfloat16
    assert (got == exact.bfloat16()).float().mean() > 0.999
    assert ops.rms_norm(x, w.float(), 1e-6).dtype == torch.bfloat16


def test_swiglu():
    x = wide(3, 8)
    gate, up = x[:, :4], x[:, 4:]
    torch.testing.assert_close(REFERENCE.swiglu(x), gate / (1 + torch.exp(-gate)) * up)
    assert gradcheck(REFERENCE.swiglu, (x,))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("shape", [(5, 2, 3, 8), (5, 3, 8)])
@pytest.mark.parametrize("turning", [8, 4])
def test_rope_multiplies_by_a_complex_number(interleaved, shape, turning):
    x, half = wide(*shape), turning // 2
    angle = torch.rand(5, half, dtype=torch.float64)
    full = angle.repeat_interleave(2, -1) if interleaved else torch.cat((angle, angle), -1)
    full = full.view(5, *[1] * (len(shape) - 2), turning)
    got = REFERENCE.rope(x, full.cos(), full.sin(), interleaved=interleaved)
    pairs = [(2 * i, 2 * i + 1) if interleaved else (i, i + half) for i in range(half)]
    for s in range(5):
        for i, (a, b) in enumerate(pairs):
            number = torch.complex(x[s, ..., a], x[s, ..., b]) * complex(math.cos(angle[s, i]), math.sin(angle[s, i]))
            torch.testing.assert_close(torch.complex(got[s, ..., a], got[s, ..., b]), number)
    assert torch.equal(got[..., turning:], x[..., turning:])
    assert gradcheck(lambda x: REFERENCE.rope(x, full.cos(), full.sin(), interleaved=interleaved), (x,))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5))
@FEW
def test_grouped_matmul_is_a_product_for_each_row(counts):
    x, weights = wide(sum(counts), 3), [wide(2, 3) for _ in counts]
    got = REFERENCE.grouped_matmul(x, weights, torch.tensor(counts))
    expert = [e for e, count in enumerate(counts) for _ in range(count)]
    want = [weights[e] @ x[row] for row, e in enumerate(expert)]
    torch.testing.assert_close(got, torch.stack(want) if want else torch.zeros(0, 2, dtype=torch.float64))
    grads = torch.autograd.grad(got.sum(), weights)
    assert all(bool(grad.any()) == (count > 0) for grad, count in zip(grads, counts, strict=True))


def test_grouped_matmul_gradients_and_refusals():
    x, weights, counts = wide(6, 3), [wide(2, 3) for _ in range(3)], torch.tensor([2, 0, 4])
    assert gradcheck(lambda x, *w: REFERENCE.grouped_matmul(x, w, counts), (x, *weights))
    with pytest.raises(ValueError, match="do not fit counts"):
        REFERENCE.grouped_matmul(x, weights, torch.tensor([2, 0, 3]))


@given(st.integers(0, 6), st.integers(1, 3), st.integers(1, 5), st.integers(0, 99))
@FEW
def test_permute_and_unpermute(tokens, k, experts, seed):
    torch.manual_seed(seed)
    x, indices = wide(tokens, 3), torch.randint(experts, (tokens, k))
    permuted, order = REFERENCE.permute(x, indices)
    ranked = sorted((int(indices[t, j]), t, j) for t in range(tokens) for j in range(k))
    for row, (_, t, j) in enumerate(ranked):
        assert torch.equal(permuted[row], x[t])
        if indices[t].tolist().count(int(indices[t, j])) == 1:
            assert int(order[t * k + j]) == row
    probs = torch.rand(tokens, k, dtype=torch.float64, requires_grad=True)
    back = REFERENCE.unpermute(permuted, order, probs, k=k)
    torch.testing.assert_close(back, x * probs.sum(1, keepdim=True))
    torch.testing.assert_close(REFERENCE.unpermute(permuted, order, k=k), k * x)
    if tokens:
        assert gradcheck(lambda x: REFERENCE.permute(x, indices)[0], (x,))
        rows = permuted.detach().requires_grad_()
        assert gradcheck(lambda rows, probs: REFERENCE.unpermute(rows, order, probs, k=k), (rows, probs))


def test_values_follow_a_permutation_by_index_copy():
    x, indices, values = torch.arange(4.0)[:, None], torch.tensor([[2, 0], [1, 2], [0, 1], [2, 1]]), torch.rand(4, 2)
    permuted, order = REFERENCE.permute(x, indices)
    followed = torch.empty(8).index_copy(0, order, values.flatten())
    want = [values[t, j] for _, t, j in sorted((int(indices[t, j]), t, j) for t in range(4) for j in range(2))]
    assert torch.equal(followed, torch.stack(want))
    assert permuted.flatten().tolist() == [0, 2, 1, 2, 3, 0, 1, 3]


@TABLES
def test_adamw_is_torchs_optimizer(ops):
    params = [torch.randn(3, 4), torch.randn(5)]
    ours = [p.clone() for p in params]
    theirs = [p.clone().requires_grad_() for p in params]
    optimizer = torch.optim.AdamW(theirs, lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, foreach=False)
    averages, squares = ([torch.zeros_like(p) for p in params] for _ in range(2))
    for step in (1, 2, 3):
        grads = [torch.randn_like(p) for p in params]
        for param, grad in zip(theirs, grads, strict=True):
            param.grad = grad.clone()
        optimizer.step()
        ops.adamw(ours, grads, averages, squares, step, lr=1e-2, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.1)
        torch.testing.assert_close(ours, [p.detach() for p in theirs])
    ops.adamw([], [], [], [], 1, lr=1.0, beta1=0.9, beta2=0.9, eps=1.0, weight_decay=0.0)


@TABLES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inner", "out"), [(8, 6), (64, 128), (33, 7)])
def test_int8_matmul(ops, dtype, inner, out):
    x, weight, scales = (
        torch.randn(2, 3, inner).to(dtype),
        torch.randint(-127, 128, (out, inner), dtype=torch.int8),
        torch.rand(out),
    )
    want = x.double() @ (weight.double() * scales.double()[:, None]).T
    got = ops.int8_matmul(x, weight, scales)
    assert got.dtype == dtype
    assert (got.double() - want).abs().max() <= want.abs().max() * (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize(
    "options", [{}, dict(D=1), dict(D=2, z=True), dict(dt_bias=True, dt_softplus=True), dict(initial_states=True)]
)
@pytest.mark.parametrize("chunk", [1, 3, 7, 256])
def test_ssd_scan_is_the_recurrence(chunk, options):
    batch, seq, heads, p, groups, n = 2, 7, 4, 3, 2, 5
    x, dt, A = wide(batch, seq, heads, p), torch.rand(batch, seq, heads).double(), -torch.rand(heads).double()
    B, C = wide(batch, seq, groups, n), wide(batch, seq, groups, n)
    words = {
        "D": {1: wide(heads), 2: wide(heads, p)}.get(options.get("D")),
        "z": wide(batch, seq, heads, p) if "z" in options else None,
        "dt_bias": torch.rand(heads).double() if "dt_bias" in options else None,
        "dt_softplus": "dt_softplus" in options,
        "initial_states": wide(batch, heads, p, n) if "initial_states" in options else None,
    }
    y, final = REFERENCE.ssd_scan(x, dt, A, B, C, chunk, return_final_states=True, **words)
    step = dt + (0 if words["dt_bias"] is None else words["dt_bias"])
    step = torch.log1p(step.exp()) if words["dt_softplus"] else step
    for b, h in np.ndindex(batch, heads):
        state = torch.zeros(p, n).double() if words["initial_states"] is None else words["initial_states"][b, h]
        g = h // (heads // groups)
        for t in range(seq):
            state = torch.exp(step[b, t, h] * A[h]) * state + step[b, t, h] * torch.outer(x[b, t, h], B[b, t, g])
            want = state @ C[b, t, g] + (0 if words["D"] is None else words["D"][h] * x[b, t, h])
            if words["z"] is not None:
                want = want * words["z"][b, t, h] * torch.sigmoid(words["z"][b, t, h])
            torch.testing.assert_close(y[b, t, h], want)
        torch.testing.assert_close(final[b, h], state)
    assert torch.equal(REFERENCE.ssd_scan(x, dt, A, B, C, chunk, **words), y)


def test_ssd_scan_has_right_gradients():
    inputs = (wide(1, 5, 2, 2), torch.rand(1, 5, 2).double().requires_grad_(), (-torch.rand(2).double()).requires_grad_())
    assert gradcheck(
        lambda *a: REFERENCE.ssd_scan(*a, 2, return_final_states=True), (*inputs, wide(1, 5, 1, 3), wide(1, 5, 1, 3))
    )


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("biased", [False, True])
def test_causal_conv1d(activation, biased):
    x, w, bias = wide(2, 3, 5), wide(3, 4), wide(3) if biased else None
    got = REFERENCE.causal_conv1d(x, w, bias, activation)
    for b, c, t in np.ndindex(2, 3, 5):
        want = sum(w[c, 3 - back] * x[b, c, t - back] for back in range(4) if t >= back) + (bias[c] if biased else 0)
        torch.testing.assert_close(got[b, c, t], want * torch.sigmoid(want) if activation else want)
    with pytest.raises(ValueError, match="gelu"):
        REFERENCE.causal_conv1d(x, w, bias, "gelu")
