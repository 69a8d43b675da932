"""The NPU's table over torch-npu's own schemas and shape kernels: equal to the reference, and wrong calls are found."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jumar.device.ops.npu import NPU_OPS
from jumar.device.ops.npu_attention import _mask
from jumar.device.ops.reference import REFERENCE
from jumar.device.testing.npu_numerics import RAN
from jumar.device.testing.npu_stand_in import npu_device, npu_operations, stand_in
from jumar.device.testing.wrong_calls import Meddling, at, called, rename, replace, without

FEW = settings(max_examples=25, deadline=None, derandomize=True)
CU_Q = torch.tensor([0, 3, 3, 7], dtype=torch.int32)
CU_K = torch.tensor([0, 4, 5, 9], dtype=torch.int32)
ROUTES = torch.tensor([[0, 4], [4, 3], [4, 2], [1, 1]])


@pytest.fixture(autouse=True)
def _kernels():
    with npu_operations():
        yield


def outcome(ops, run, *inputs):
    """Results of run(ops, *inputs), and gradients of their weighted sum for every floating-point input."""
    inputs = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs]
    out = run(ops, *inputs)
    if not inputs:
        return [out]
    torch.manual_seed(1)
    total = (out * torch.randn(out.shape).to(out.dtype)).sum()
    return [out, *torch.autograd.grad(total, [t for t in inputs if t.requires_grad])]


def differs(run, *inputs, tolerance=1e-5):
    """How far the NPU's results and gradients are from the reference's, relative to the tolerance; NaN counts as far."""
    pairs = zip(outcome(REFERENCE, run, *inputs), outcome(NPU_OPS, run, *inputs), strict=True)
    far = 0.0
    for want, got in pairs:
        assert want.shape == got.shape
        assert want.dtype == got.dtype
        if want.numel():
            far = max(far, (((got - want).abs().nan_to_num(1e9) / (tolerance * (1 + want.abs()))).max().item()))
    return far


def dense(queries=3, keys=6, v_dim=4, dtype=torch.float32):
    torch.manual_seed(0)
    return [t.to(dtype) for t in (torch.randn(2, queries, 4, 4), torch.randn(2, keys, 2, 4), torch.randn(2, keys, 2, v_dim))]


def packed():
    torch.manual_seed(0)
    return torch.randn(7, 4, 4), torch.randn(9, 2, 4), torch.randn(9, 2, 4)


def attend(**words):
    return lambda ops, q, k, v: ops.attention(q, k, v, scale=0.5, **words)


def experts(ops, x, *weights):
    return ops.grouped_matmul(x, weights, torch.tensor([2, 0, 4]))


def turn(ops, x, cos, sin, interleaved=False):
    return ops.rope(x, cos, sin, interleaved=interleaved)


def turn_pairs(ops, x, cos, sin):
    return turn(ops, x, cos, sin, interleaved=True)


def updated(ops, *_):
    torch.manual_seed(2)
    params, grads, averages, squares = ([torch.rand(3, 4), torch.rand(5)] for _ in range(4))
    for step in (1, 2, 3):
        ops.adamw(params, grads, averages, squares, step, lr=1e-2, beta1=0.8, beta2=0.95, eps=1e-8, weight_decay=0.1)
    return torch.cat([t.flatten() for t in (*params, *averages, *squares)])


CASES = {
    "rms_norm": (lambda ops, x, w: ops.rms_norm(x, w, 1e-5), torch.randn(2, 3, 8), torch.randn(8)),
    "rms_norm zero-centered": (
        lambda ops, x, w: ops.rms_norm(x, w, 1e-5, zero_centered=True),
        torch.randn(2, 3, 8),
        torch.randn(8),
    ),
    "swiglu": (lambda ops, x: ops.swiglu(x), torch.randn(2, 3, 8)),
    "rope": (turn, torch.randn(5, 2, 3, 8), torch.randn(5, 1, 1, 8), torch.randn(5, 1, 1, 8)),
    "rope tokens": (turn, torch.randn(5, 3, 8), torch.randn(5, 1, 8), torch.randn(5, 1, 8)),
    "rope partial": (turn, torch.randn(5, 2, 3, 8), torch.randn(5, 1, 1, 4), torch.randn(5, 1, 1, 4)),
    "rope interleaved": (turn_pairs, torch.randn(5, 2, 3, 8), torch.randn(5, 1, 1, 4), torch.randn(5, 1, 1, 4)),
    "attention": (attend(), *dense()),
    "attention all": (attend(causal=False), *dense()),
    "attention window": (attend(window=2), *dense()),
    "attention window all": (attend(window=2, causal=False), *dense()),
    "attention more queries": (attend(), *dense(6, 3)),
    "attention narrow v": (attend(), *dense(v_dim=2)),
    "attention wide v": (attend(), *dense(v_dim=6)),
    "attention packed": (attend(cu_seqlens_q=CU_Q, cu_seqlens_k=CU_K), *packed()),
    "attention packed window": (attend(cu_seqlens_q=CU_Q, cu_seqlens_k=CU_K, window=2), *packed()),
    "grouped_matmul": (experts, torch.randn(6, 3), *(torch.randn(2, 3) for _ in range(3))),
    "permute": (lambda ops, x: ops.permute(x, ROUTES)[0], torch.randn(4, 3)),
    "unpermute": (lambda ops, x: ops.unpermute(x, ops.permute(x[:4], ROUTES)[1], k=2), torch.randn(8, 3)),
    "unpermute probs": (
        lambda ops, x, p: ops.unpermute(x, ops.permute(x[:4], ROUTES)[1], p, k=2),
        torch.randn(8, 3),
        torch.rand(4, 2),
    ),
    "adamw": (updated,),
}


@pytest.mark.parametrize("name", [name for name in CASES if name != "adamw"])
def test_results_and_gradients_are_the_references(name):
    assert differs(*CASES[name]) <= 1


def test_adamw_is_the_references():
    torch.testing.assert_close(updated(NPU_OPS), updated(REFERENCE))


@pytest.mark.parametrize(
    "name", ["rms_norm", "swiglu", "rope", "attention", "attention packed", "grouped_matmul", "permute", "unpermute probs"]
)
def test_in_bf16_too(name):
    run, *inputs = CASES[name]
    assert differs(run, *(t.bfloat16() for t in inputs), tolerance=4e-2) <= 1


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=3),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 3]),
    st.booleans(),
    st.sampled_from([None, 1, 3, 9]),
)
@FEW
def test_packed_attention_of_any_lengths(lengths, kv_heads, group, causal, window):
    of_q, of_k = (torch.tensor(column) for column in zip(*lengths, strict=True))
    cu_q, cu_k = (torch.cat((torch.zeros(1, dtype=torch.int64), n.cumsum(0))).int() for n in (of_q, of_k))
    k = torch.randn(int(of_k.sum()), kv_heads, 4)
    run = attend(causal=causal, window=window, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k)
    assert differs(run, torch.randn(int(of_q.sum()), kv_heads * group, 4), k, torch.randn_like(k)) <= 1


def test_experts_without_rows_get_zeros_where_the_kernel_writes_nothing():
    run, x, *weights = CASES["grouped_matmul"]
    grad = outcome(NPU_OPS, run, x, *weights)[3]
    assert torch.equal(grad, torch.zeros_like(grad))
    raw = stand_in().npu_grouped_matmul([x.t()], [x], group_list=torch.tensor([2, 2, 6]), split_item=3, group_type=2)
    assert raw[0][1].isnan().all()


@pytest.mark.parametrize("experts_number", [1, 3, 130])
def test_any_number_of_experts_and_no_tokens(experts_number):
    weights = [torch.randn(2, 4).bfloat16() for _ in range(experts_number)]
    for each in (0, 1):
        counts = torch.full((experts_number,), each)
        run = lambda ops, x, *w, counts=counts: ops.grouped_matmul(x, w, counts)  # noqa: E731
        assert differs(run, torch.randn(each * experts_number, 4).bfloat16(), *weights, tolerance=4e-2) <= 1


def test_fp32_probs_over_bf16_tokens_are_not_rounded():
    permuted, probs = torch.randn(8, 3).bfloat16(), torch.rand(4, 2)
    order = NPU_OPS.permute(permuted[:4], ROUTES)[1]
    assert torch.equal(NPU_OPS.unpermute(permuted, order, probs, k=2), REFERENCE.unpermute(permuted, order, probs, k=2))


def test_decode_attention_and_int8():
    q, keys, values = torch.randn(3, 4, 8).bfloat16(), torch.randn(5, 16, 2, 8).bfloat16(), torch.randn(5, 16, 2, 8).bfloat16()
    table, lengths = torch.tensor([[3, 1], [0, 0], [2, 4]], dtype=torch.int32), torch.tensor([20, 0, 16], dtype=torch.int32)
    got, want = (ops.paged_attention(q, keys, values, table, lengths, scale=0.3) for ops in (NPU_OPS, REFERENCE))
    torch.testing.assert_close(got, want, atol=2e-2, rtol=2e-2)
    weight, scales = torch.randint(-127, 128, (6, 8), dtype=torch.int8), torch.rand(6)
    got, want = (ops.int8_matmul(q, weight, scales) for ops in (NPU_OPS, REFERENCE))
    torch.testing.assert_close(got, want, atol=1, rtol=2e-2)


PROMPTS = {
    "a prompt": dict(),
    "a window": dict(window=2),
    "all": dict(causal=False),
    "all in a window": dict(causal=False, window=2),
}


def of_prompt(ops, words, *inputs):
    with torch.inference_mode():
        return ops.attention(*(t.bfloat16() for t in inputs), scale=0.5, **words).float()


@pytest.mark.parametrize("what", PROMPTS)
@pytest.mark.parametrize("shape", [dict(queries=6), dict(), dict(v_dim=2)], ids=["whole", "a chunk", "narrow v"])
def test_prompts_in_inference_mode_go_through_their_own_kernel(what, shape):
    before = RAN["npu_prompt_flash_attention"]
    got, want = (of_prompt(ops, PROMPTS[what], *dense(**shape)) for ops in (NPU_OPS, REFERENCE))
    torch.testing.assert_close(got, want, atol=2e-2, rtol=2e-2)
    assert RAN["npu_prompt_flash_attention"] == before + 1


def test_what_the_prompts_kernel_does_not_take_goes_through_the_other():
    """More queries than keys, wide heads, fp32, and whatever is not in inference mode: recomputation begins without gradient."""
    before = RAN["npu_prompt_flash_attention"]
    wide = torch.randn(1, 2, 2, 520)
    for inputs in (dense(6, 3), (wide, wide, wide)):
        got, want = (of_prompt(ops, {}, *inputs) for ops in (NPU_OPS, REFERENCE))
        torch.testing.assert_close(got, want, atol=2e-2, rtol=2e-2)
    NPU_OPS.attention(*dense(dtype=torch.bfloat16), scale=0.5)
    with torch.no_grad():
        NPU_OPS.attention(*dense(dtype=torch.bfloat16), scale=0.5)
    assert RAN["npu_prompt_flash_attention"] == before


@pytest.mark.parametrize(
    "change, words",
    [
        (rename("next_tokens", "next_tockens"), {"window": 2}),
        (replace(atten_mask=lambda mask: ~mask), {}),
        (without("atten_mask"), {}),
        (replace(sparse_mode=2), {}),
        (replace(pre_tokens=lambda n: n + 1), {"window": 2}),
        (without("scale_value"), {}),
        (without("num_key_value_heads"), {}),
        (without("input_layout"), {}),
        (at(1, lambda k: k.transpose(1, 2).contiguous().transpose(1, 2)), {}),
    ],
)
def test_a_wrong_call_for_a_prompt_is_found(change, words):
    want = of_prompt(REFERENCE, words, *dense())
    with npu_operations(Meddling("npu_prompt_flash_attention", change)):
        try:
            got = of_prompt(NPU_OPS, words, *dense())
        except RuntimeError:
            return
    assert (got - want).abs().nan_to_num(1e9).max() > 0.1


def test_what_has_no_kernel_is_the_reference_with_one_warning():
    q, k, v = dense()
    with pytest.warns(UserWarning, match="softcap has no NPU kernel"):
        got = NPU_OPS.attention(q, k, v, scale=0.5, softcap=3.0)
    torch.testing.assert_close(got, REFERENCE.attention(q, k, v, scale=0.5, softcap=3.0))
    NPU_OPS.attention(q, k, v, scale=0.5, softcap=3.0)
    cache, table, lengths = (
        torch.randn(2, 16, 2, 4),
        torch.tensor([[0], [1]], dtype=torch.int32),
        torch.tensor([9, 3], dtype=torch.int32),
    )
    with pytest.warns(UserWarning, match=r"torch.float32 has no NPU kernel"):
        NPU_OPS.paged_attention(q[:, 0], cache, cache, table, lengths, scale=0.5)
    latents = torch.randn(2, 16, 1, 576).bfloat16()
    with pytest.warns(UserWarning, match="heads of 576 elements, more than 512, has no NPU kernel"):
        NPU_OPS.paged_attention(latents[:, 0], latents, latents, table, lengths, scale=0.5)


def test_no_derivative_is_an_error_in_backward():
    x = torch.randn(2, 8).bfloat16().requires_grad_()
    out = stand_in().npu_weight_quant_batchmatmul(x, torch.ones(8, 3, dtype=torch.int8), torch.ones(3).bfloat16())
    with pytest.raises(NotImplementedError, match="no derivative for npu_weight_quant_batchmatmul"):
        out.sum().backward()


def test_training_after_inference():
    q, _, _ = packed()
    _mask.cache_clear()
    with torch.inference_mode():
        lengths = CU_Q.clone()
        NPU_OPS.attention(q, q, q, scale=0.5, cu_seqlens_q=lengths)
        lengths[1] = 2
        changed = NPU_OPS.attention(q, q, q, scale=0.5, cu_seqlens_q=lengths)
        torch.testing.assert_close(changed, REFERENCE.attention(q, q, q, scale=0.5, cu_seqlens_q=lengths))
    assert differs(*CASES["attention packed"]) <= 1


def test_a_device_for_trainers_in_ci():
    device = npu_device()
    assert device.ops() is NPU_OPS
    assert device.backend == "gloo"
    assert device.activate(3) == torch.device("cpu")


WRONG = {
    "a name that is not there": ("rms_norm", "npu_rms_norm", called("npu_rms_normal")),
    "pre_tokens for pre_tockens": ("attention window", "npu_fusion_attention", rename("pre_tockens", "pre_tokens")),
    "epsilon called eps": ("rms_norm", "npu_rms_norm", rename("epsilon", "eps")),
    "the mask the other way round": ("attention", "npu_fusion_attention", replace(atten_mask=lambda mask: ~mask)),
    "the mask the other way round, window": ("attention window", "npu_fusion_attention", replace(atten_mask=lambda mask: ~mask)),
    "a mask that is not compressed": ("attention", "npu_fusion_attention", replace(atten_mask=lambda mask: mask[:3, :6])),
    "a mask of floats": ("attention", "npu_fusion_attention", replace(atten_mask=lambda mask: mask.float())),
    "no mask": ("attention", "npu_fusion_attention", without("atten_mask")),
    "aligned at the start": ("attention", "npu_fusion_attention", replace(sparse_mode=2)),
    "a window of one more": ("attention window", "npu_fusion_attention", replace(pre_tockens=lambda n: n + 1)),
    "a window that sees ahead": ("attention window", "npu_fusion_attention", replace(next_tockens=1)),
    "no scale": ("attention", "npu_fusion_attention", without("scale")),
    "cumulative lengths from 0": ("attention packed", "npu_fusion_attention", replace(actual_seq_qlen=lambda cu: [0, *cu])),
    "no lengths of keys": ("attention packed", "npu_fusion_attention", without("actual_seq_kvlen")),
    "the layout of another tensor": ("attention", "npu_fusion_attention", at(4, "BNSD")),
    "TND for 4-D": ("attention", "npu_fusion_attention", at(4, "TND")),
    "heads of the keys": ("attention", "npu_fusion_attention", at(3, 2)),
    "double precision": ("attention", "npu_fusion_attention", at(0, lambda q: q.double())),
    "turned the other way": ("rope", "npu_rotary_mul", at(2, lambda sin: -sin)),
    "pairs for halves": ("rope", "npu_rotary_mul", replace(rotary_mode="interleave")),
    "halves for pairs": ("rope interleaved", "npu_rotary_mul", replace(rotary_mode="half")),
    "a mode that is not there": ("rope", "npu_rotary_mul", replace(rotary_mode="interleaved")),
    "counts for their sums": (
        "grouped_matmul",
        "npu_grouped_matmul",
        replace(group_list=lambda ends: ends.diff(prepend=ends[:1] * 0)),
    ),
    "int32 sums": ("grouped_matmul", "npu_grouped_matmul", replace(group_list=lambda ends: ends.int())),
    "weights not transposed": (
        "grouped_matmul",
        "npu_grouped_matmul",
        at(1, lambda ws: [w.transpose(-1, -2).contiguous() for w in ws]),
    ),
    "another axis": ("grouped_matmul", "npu_grouped_matmul", replace(group_type=1)),
    "int64 order": ("unpermute", "npu_moe_token_unpermute", at(1, lambda order: order.long())),
    "the inverse order": ("unpermute", "npu_moe_token_unpermute", at(1, lambda order: order.argsort().int())),
    "the wrong half": ("swiglu", "npu_swiglu", at(0, lambda x: x.roll(4, -1))),
    "powers of this step": ("adamw", "npu_apply_adam_w", at(0, lambda power: power * 0.8)),
    "no decay": ("adamw", "npu_apply_adam_w", at(3, 0.0)),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_call_is_found(what):
    case, name, change = WRONG[what]
    with npu_operations(Meddling(name, change)):
        try:
            far = differs(*CASES[case])
        except (RuntimeError, AttributeError):  # refused by the schema, or by the numerics; a TypeError would be this file's
            return
    assert far > 100


def test_a_call_without_a_change_is_not_found():
    for case, name, _ in WRONG.values():
        with npu_operations(Meddling(name, lambda args, kwargs: None)):
            assert differs(*CASES[case]) <= 1
