"""Matrices in every form: near, and independent of what else is computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import infer_models
from jumar.device import cpu, npu, open_device
from jumar.infer import Engine, Sampling
from jumar.infer.engine import Limits
from jumar.infer.matrices import KINDS, Matrices, check_kind
from jumar.schema.errors import Exit, ToolError

PROMPTS = [infer_models.random_ids(n, vocab=infer_models.VOCAB, seed=n) for n in (3, 70, 33)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("out, inside", [(1, 40), (7, 33), (192, 576), (576, 192)])
def test_a_row_does_not_depend_on_the_others_nor_on_threads(out: int, inside: int, threads: int) -> None:
    weight, bias, rows = torch.randn(out, inside), torch.randn(out), torch.randn(70, inside)
    apply = Matrices(open_device("cpu").ops(), torch.device("cpu"))(weight, bias)
    whole, before = apply(rows), torch.get_num_threads()
    assert torch.allclose(whole, rows @ weight.T + bias, atol=1e-4)
    torch.set_num_threads(threads)
    try:
        for count in (1, 2, 3, 5, 11, 33):
            assert torch.equal(torch.cat([apply(part) for part in rows.split(count)]), whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("out, inside", [(7, 33), (96, 64), (64, 96)])
def test_matrices_for_one_row(out: int, inside: int) -> None:
    weight, bias, rows = torch.randn(out, inside), torch.randn(out), torch.randn(5, inside)
    make = Matrices(open_device("cpu").ops(), torch.device("cpu"), alone=True)
    assert torch.allclose(make(weight, bias)(rows), rows @ weight.T + bias, atol=1e-4)
    assert torch.allclose(make(weight)(rows[:1]), rows[:1] @ weight.T, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("out, inside", [(7, 33), (97, 64), (192, 576)])
def test_products_are_near(kind: str, out: int, inside: int) -> None:
    """Every product is within half a step of each weight, and of each input where those are rounded too (to 13 bits)."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(out, inside, generator=generator), torch.randn(9, inside, generator=generator)
    weight[3], x[1], x[2] = 0, 0, x[2] * 1e4
    bias = torch.randn(out, generator=generator)
    apply = Matrices(open_device("cpu").ops(), torch.device("cpu"), kind)(weight, bias)
    found, exact = apply(x), x @ weight.T + bias
    bound = x.abs().sum(1, keepdim=True) * weight.abs().amax(1) / 127 / 2
    if kind == "int8-dynamic":
        bound = bound + x.abs().amax(1, keepdim=True) / 127 / 60 * weight.abs().sum(1)
    assert ((found - exact).abs() <= 1.01 * bound + 1e-4).all()
    assert ((found - exact).abs() > bound / 100).any()
    assert torch.equal(found[1], bias)
    assert torch.equal(torch.cat([apply(row) for row in x.split(1)]), found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_model_is_near_and_what_else_runs_changes_no_bit(kind: str, hf: Path) -> None:
    limits = Limits(max_batch=4, chunk=32, cache_tokens=512)
    engine = Engine.open(hf, limits, device="cpu", quantize=kind)
    assert "int8" in engine.notes[1]
    (scored,), (wanted,) = (e.score([([1], PROMPTS[1])]) for e in (engine, Engine.open(hf, limits, device="cpu")))
    found, exact = ([s.logprob for s in r.scores] for r in (scored, wanted))
    assert found == pytest.approx(exact, abs=0.3)
    assert found != pytest.approx(exact, abs=1e-3)
    asked = Sampling(max_new_tokens=6, ignore_eos=True, logprobs=0)
    together = engine.generate(PROMPTS, asked)
    alone = [engine.generate([p], replace(asked))[0] for p in PROMPTS]
    assert [(r.output, r.logprobs) for r in together] == [(r.output, r.logprobs) for r in alone]


@pytest.mark.parametrize("model_type", ["deepseek_v3", "qwen2_moe", "gpt2", "nemotron_h"])
def test_other_families(model_type: str, tmp_path: Path) -> None:
    infer_models.make(tmp_path / "hf", model_type)
    scored = [
        Engine.open(tmp_path / "hf", Limits(cache_tokens=128), device="cpu", quantize=q).score([([1], list(range(40)))])[0]
        for q in (None, "int8-dynamic")
    ]
    exact, found = (torch.tensor([s.logprob for s in request.scores]) for request in scored)
    assert 1e-4 < (exact - found).abs().mean() < 0.1


def test_kinds_that_do_not_exist() -> None:
    for kind, device, dtype in (
        ("int4", cpu, torch.float32),
        ("int8-dynamic", npu, torch.float32),
        ("int8-dynamic", cpu, torch.bfloat16),
    ):
        with pytest.raises(ToolError) as fault:
            check_kind(kind, device.DEVICE, dtype)
        assert fault.value.code == Exit.USAGE
