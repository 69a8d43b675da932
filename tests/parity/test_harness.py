"""The harness itself: whatever goes wrong in a conversion, it sees."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import literal
from harness import launch

right = SimpleNamespace(**vars(literal))  # the functions as they are, for the mistaken ones to call


def ungrouped_bias(q, k, v, groups):
    return torch.cat([q, k, v]) if q.ndim == 1 else right.interleaved_qkv(q, k, v, groups)


def halved_rotary(hf, src, t, tp):
    """The shared rotary key as MLA does not want it: even rows before odd ones."""
    name = src + "kv_a_proj_with_mqa.weight"
    latent, rotary = hf[name].split([20, 8])
    return right.latent_attention(hf | {name: torch.cat([latent, rotary[0::2], rotary[1::2]])}, src, t, tp)


def swapped(function, first, second):
    def call(*args):
        state = function(*args)
        return state | {first: state[second], second: state[first]}

    return call


def changed(function, name, change):
    def call(*args):
        state = function(*args)
        return state | {name: change(state[name])}

    return call


# what -> a model, a function of literal.py, and what stands in its place
WRONG_NUMBERS = {
    "gate and up swapped": ("llama", "gate_up", lambda gate, up, t, tp: right.gate_up(up, gate, t, tp)),
    "gate and up joined, then split": (
        "llama",
        "gate_up",
        lambda gate, up, t, tp: right.rows(torch.cat([gate, up]), t, tp),
    ),
    "q, k, v not interleaved": ("llama", "interleaved_qkv", lambda q, k, v, groups: torch.cat([q, k, v])),
    "their biases not interleaved": ("qwen2", "interleaved_qkv", ungrouped_bias),
    "rotary rows shifted by one": (
        "llama",
        "interleaved_qkv",
        lambda q, k, v, groups: right.interleaved_qkv(q.roll(1, 0), k.roll(1, 0), v, groups),
    ),
    "rotary rows of MLA in halves": ("deepseek_v2", "latent_attention", halved_rotary),
    "query and key norms swapped": (
        "qwen3",
        "attention",
        swapped(right.attention, "q_layernorm.weight", "k_layernorm.weight"),
    ),
    "norms of a layer swapped": (
        "llama",
        "layer",
        swapped(right.layer, "input_layernorm.weight", "pre_mlp_layernorm.weight"),
    ),
    "columns of the other rank": ("llama", "columns", lambda w, t, tp: right.columns(w, tp - 1 - t, tp)),
    "layers in reverse": ("llama", "layer", lambda hf, config, i, *rest: right.layer(hf, config, 3 - i, *rest)),
    "experts in reverse": (
        "mixtral",
        "experts",
        lambda hf, src, mine, *rest: right.experts(hf, src, mine[::-1], *rest),
    ),
    "no router bias": ("deepseek_v3", "moe", changed(right.moe, "router.expert_bias", torch.zeros_like)),
    "shared expert's gate negated": ("qwen2_moe", "moe", changed(right.moe, "shared_experts.gate_weight", torch.neg)),
}
WRONG_FILES = {
    "a tensor missing": ("llama", "mlp", lambda *args: {"linear_fc1.weight": right.mlp(*args)["linear_fc1.weight"]}),
    "a tensor too many": ("llama", "mlp", lambda *args: right.mlp(*args) | {"linear_fc2.bias": torch.zeros(48)}),
    "not split": ("llama", "columns", lambda w, t, tp: w),
    "another dtype": ("llama", "columns", lambda w, t, tp: right.columns(w, t, tp).half()),
}


@pytest.mark.slow
def test_the_harness_sees_every_mistake(hf, tmp_path, monkeypatch, subtests):
    mistakes = WRONG_NUMBERS | WRONG_FILES | {"none": ("llama", "mlp", right.mlp)}
    pairs = []
    for what, (model, function, mistaken) in mistakes.items():
        with monkeypatch.context() as patch:
            patch.setattr(literal, function, mistaken)
            literal.write(hf(model), tmp_path / what, tp=2)
        pairs.append((tmp_path / what, hf(model)))
    rows = dict(zip(mistakes, launch(pairs, {"tp": 2}, tmp_path / "report.json"), strict=True))
    assert rows["none"]["max_diff"] < 1e-5
    for what in WRONG_NUMBERS:
        with subtests.test(what):
            assert rows[what]["max_diff"] > 0.1
    for what in WRONG_FILES:
        with subtests.test(what):
            assert "error" in rows[what]
