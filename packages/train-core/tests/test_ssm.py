"""State-space layers: what does not fit, with the numbers; their memory, operations and fresh weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import make_job, texts
from jumar.device.ops.mamba import ssd_scan
from jumar.schema.registry import families
from jumar.train_core.activations import activation_bytes
from jumar.train_core.checks import check
from jumar.train_core.estimate import flops_per_token
from jumar.train_core.run.fresh import Fresh

MODULES = "features__recompute"


@pytest.mark.parametrize(
    "family, world, sets, message, hint",
    [
        ("mamba2", 8, {"parallel__tp": 8}, "tp=8 does not divide the model's 4 groups of state-space heads", "divisors of 4"),
        ("nemotron_h", 3, {"parallel__tp": 3}, "tp=3 does not divide the model's 8 state-space heads", "divisors of 8"),
        (
            "mamba2",
            2,
            {"parallel__tp": 2, "model__config": {"use_bias": True}},
            "tp=2: a bias of the state-space layers' projections (use_bias) is trained at tp=1 only",
            "parallel.tp=1",
        ),
        (
            "mamba2",
            16,
            {"parallel": {"cp": 16}, "train__global_batch_size": 16},
            "cp=16 does not divide the 8 state-space heads",
            "8",
        ),
        (
            "mamba2",
            8,
            {"parallel": {"tp": 2, "cp": 4}, "model__config": {"num_heads": 4, "head_dim": 32}},
            "cp=4 does not divide the 2 state-space heads of a rank at tp=2",
            "divisors of 2",
        ),
        (
            "mamba2",
            4,
            {"parallel__cp": 4, "model__config": {"num_heads": 24, "head_dim": 16, "expand": 6, "n_groups": 6}},
            "cp=4 and 6 groups of state-space heads: neither divides the other",
            "divisors of 6",
        ),
        (
            "mamba2",
            2,
            {"parallel": {"pp": 2, "vpp": 2}},
            "vpp=2: megatron-core has no interleaved pipeline",
            "leave parallel.vpp",
        ),
        (
            "nemotron_h",
            2,
            {"parallel": {"pp": 2, "noop_layers": [1, 5]}},
            "noop_layers [1, 5]: the pattern 'M-M*' has a letter for each layer",
            "layers_per_stage",
        ),
        ("mamba2", 2, {"parallel__ep": 2}, "parallel.ep = 2 has no effect: this model has no experts", "leave parallel.ep out"),
        ("mamba2", 1, {"model__config": {"hidden_act": "gelu"}}, "the activation of the convolution is gelu", "hidden_act"),
        (
            "mamba2",
            1,
            {MODULES: {"modules": ["core_attn"]}},
            "core_attn cannot be recomputed: this model has no attention",
            "take",
        ),
        ("mamba2", 1, {MODULES: {"modules": ["mlp"]}}, "mlp cannot be recomputed: this model has no MLP", "take mlp"),
        ("mamba2", 1, {MODULES: {"modules": ["layernorm"]}}, "norms before state-space layers are kept", "take layernorm"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, family: str, world: int, sets: dict[str, Any], message: str, hint: str) -> None:
    found = texts(check(make_job(tmp_path, family, world=world, **sets)))
    assert message in found
    assert hint in found


@pytest.mark.parametrize(
    "family, world, sets",
    [
        ("nemotron_h", 1, {MODULES: {"modules": ["core_attn", "mlp", "layernorm"]}}),
        ("nemotron_h", 2, {"parallel": {"pp": 2, "layers_per_stage": [1, 3]}}),
        ("mamba2", 8, {"parallel__cp": 8, "data__seq_len": 64}),  # two ranks share a group
        ("mamba2", 2, {"parallel": {"pp": 2, "noop_layers": [1, 5]}}),
    ],
)
def test_what_fits(tmp_path: Path, family: str, world: int, sets: dict[str, Any]) -> None:
    assert texts(check(make_job(tmp_path, family, world=world, **sets))) == ""


def test_activations_of_a_mixer_by_hand(tmp_path: Path) -> None:
    """mamba2, 32 tokens, fp32: hidden 64, inner 128, B and C of 4 x 16 each, 8 heads of 16, chunks of 16."""
    job = make_job(tmp_path, "mamba2", model__config={"num_hidden_layers": 1})
    outside = 2 * 64 + (2 * 128 + 128 + 8) + 2 * (128 + 128) + 2 * 128
    scan = 8 * (3 * 16 + 5 * 16 + 3 * 16 + 3 * 16 * 16 / 16)
    assert activation_bytes(job, 0) == 32 * 4 * (outside + scan)
    halves = make_job(tmp_path, "mamba2", model__config={"num_hidden_layers": 1}, train__precision="bf16")
    assert activation_bytes(halves, 0) == 32 * (2 * outside + 2 * 64 + 4 * scan)  # the residual and the scan stay fp32
    cut = make_job(tmp_path, "mamba2", world=2, parallel__tp=2, model__config={"num_hidden_layers": 1})
    assert activation_bytes(cut, 0) * 2 == activation_bytes(job, 0)


def test_layers_of_a_hybrid_are_counted_by_their_kind(tmp_path: Path) -> None:
    def size(pattern: str) -> int:
        return activation_bytes(make_job(tmp_path / pattern, "nemotron_h", model__config={"hybrid_override_pattern": pattern}), 0)

    attention = 32 * (4 * (2 * 64 + 128 + 64) + 4 * 8)
    mlp = 32 * 4 * (2 * 64 + 2 * 96)
    assert (size("*"), size("-"), size("M-M*")) == (attention, mlp, 2 * size("M") + attention + mlp)


@pytest.mark.parametrize("heads, head, groups, state, chunk", [(8, 16, 2, 32, 64), (8, 32, 2, 32, 64), (8, 16, 2, 64, 128)])
def test_the_scan_keeps_what_is_estimated(tmp_path: Path, heads: int, head: int, groups: int, state: int, chunk: int) -> None:
    config = dict(num_heads=heads, head_dim=head, n_groups=groups, state_size=state, chunk_size=chunk, expand=heads * head // 64)
    job = make_job(tmp_path, "mamba2", data__seq_len=512, model__config={"num_hidden_layers": 1, **config})
    inner, pairs = heads * head, 2 * groups * state
    outside = 2 * 64 + (2 * inner + pairs + heads) + 2 * (inner + pairs) + 2 * inner
    estimated = activation_bytes(job, 0) - 512 * 4 * outside
    x, z, B, C = (
        torch.randn(1, 512, n, m, requires_grad=True) for n, m in ((heads, head), (heads, head), *[(groups, state)] * 2)
    )
    dt, ones = torch.randn(1, 512, heads, requires_grad=True), torch.ones(heads, requires_grad=True)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    alive: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ssd_scan(x, dt, -ones, B, C, chunk, D=ones, z=z, dt_bias=ones, dt_softplus=True)
    for given in (x, z, B, C, dt, ones):
        kept.pop(given.untyped_storage().data_ptr(), None)
    assert sum(kept.values()) == pytest.approx(estimated, rel=0.06)


def test_flops_of_state_space_layers() -> None:
    """mamba2: 64 hidden, 128 inner, B and C of 64, 8 heads, chunks of 16; four layers."""
    spec = families()["mamba2"].spec(families()["mamba2"].tiny)
    matrices = 64 * (2 * 128 + 2 * 64 + 8) + (128 + 2 * 64) * 4 + 128 * 64
    scan = 16 / 2 * (64 + 128) + 2 * 128 * 16
    assert flops_per_token(spec, 32) == flops_per_token(spec, 64) == 6 * (4 * (matrices + scan) + 131 * 64)
    hybrid = families()["nemotron_h"].spec(families()["nemotron_h"].tiny)
    attention = (64 + 2 * 32) * 64 + 64 * 64
    layers = 2 * (matrices + scan) + 2 * 64 * 96 + attention
    assert flops_per_token(hybrid, 32) == 6 * (layers + 131 * 64) + 6 * 64 * 32


def test_fresh_weights_of_a_mixer() -> None:
    spec = families()["mamba2"].spec(families()["mamba2"].tiny)
    assert spec.ssm is not None
    fresh, generator = Fresh(spec, 0.02), torch.Generator().manual_seed(0)
    prefix = "decoder.layers.0."

    def drawn(name: str, *shape: int) -> torch.Tensor:
        return fresh.draw(fresh.kind(prefix + name), shape, generator)

    decay = drawn("mixer.A_log", 4000).exp()
    assert 1 <= decay.min() < 1.1
    assert 15.9 < decay.max() <= 16.001
    steps = torch.nn.functional.softplus(drawn("mixer.dt_bias", 4000))
    assert steps.min() == pytest.approx(0.001, rel=0.02)
    assert steps.max() == pytest.approx(0.1, rel=0.02)
    assert steps.log().mean() == pytest.approx(math.log(0.01), abs=0.1)
    assert (drawn("mixer.D", 8) == 1).all()
    assert (drawn("mixer.norm.weight", 8) == 1).all()
    assert (drawn("norm.weight", 8) == 1).all()
    assert (drawn("mixer.in_proj.bias", 8) == 0).all()
    assert drawn("mixer.conv1d.weight", 400, 1, 4).abs().max() == pytest.approx(0.5, rel=0.01)
    assert drawn("mixer.conv1d.bias", 4000).abs().max() == pytest.approx(0.5, rel=0.01)
    assert drawn("mixer.in_proj.weight", 100, 100).std() == pytest.approx(0.02, rel=0.05)
    assert drawn("mixer.out_proj.weight", 100, 100).std() == pytest.approx(0.02 / 4**0.5, rel=0.05)
