"""Training steps with the NPU's operations over stand-in kernels, equal to the CPU's; and calls made wrong, which are seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harness
import train_runs
from npu_train_rows import ALL_KEYS, GRADIENTS, MICRO_BATCHES, ROWS, STEPS, WRONG_IN, WRONG_IN_SLOWLY, Row, recipe
from train_runs import Place

WORKER = Path(__file__).with_name("npu_train_worker.py")
SEAM_WORKER = Path(__file__).with_name("npu_seam_worker.py")
Reports = dict[str, dict[str, Any]]
QUICK = [name for name, row in ROWS.items() if not row.slow]
SLOW = [name for name, row in ROWS.items() if row.slow]
WITH_WRONG = ROWS | {"windows cp2 all keys": ALL_KEYS}


@pytest.fixture(scope="session")
def launch(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[int, tuple[str, ...], tuple[str, ...]], Reports]:
    """(ranks, rows, wrong calls) -> what the worker reports of them: NAME/cpu, NAME/npu; WRONG/cpu, WRONG/npu. Once for each."""
    place = Place(train_runs.shared(tmp_path_factory, request) / "npu")
    folder = place.root

    def both(name: str, of: Row, steps: int, wrong: str | None = None) -> list[dict[str, Any]]:
        common = {"recipe": recipe(of, folder, steps)}
        return [
            {**common, "name": f"{name}/cpu", "on": "cpu", "packed": False, "wrong": None},
            {**common, "name": f"{name}/npu", "on": "npu", "packed": of.packed, "wrong": wrong},
        ]

    def get(ranks: int, rows: tuple[str, ...], wrong: tuple[str, ...]) -> Reports:
        key = hashlib.sha256(repr((ranks, rows, wrong)).encode()).hexdigest()[:12]
        report = folder / f"report-{key}.json"
        with place.locked(key):
            if report.exists():
                return json.loads(report.read_text())
            with place.locked("models"):
                jobs = [job for name in rows for job in both(name, ROWS[name], STEPS)]
                rows_of = WRONG_IN | WRONG_IN_SLOWLY
                jobs += [job for name in wrong for job in both(name, WITH_WRONG[rows_of[name]], 2, name)]
            listed = folder / f"rows-{key}.json"
            listed.write_text(json.dumps(jobs))
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks]
            harness.run(*torchrun, WORKER, listed, report)
        return json.loads(report.read_text())

    return get


def of_ranks(names: list[str], ranks: int) -> tuple[str, ...]:
    return tuple(name for name in names if ROWS[name].ranks == ranks)


def wrong_of_ranks(names: dict[str, str], ranks: int) -> tuple[str, ...]:
    return tuple(name for name, of in names.items() if WITH_WRONG[of].ranks == ranks)


def apart(cpu: dict[str, Any], npu: dict[str, Any]) -> tuple[float, float]:
    """The largest difference of the losses, and of the gradients' norms relative to them."""
    assert len(cpu["loss"]) == len(npu["loss"])
    losses = max(abs(a - b) for a, b in zip(cpu["loss"], npu["loss"], strict=True))
    return losses, max(abs(a - b) / a for a, b in zip(cpu["grad_norm"], npu["grad_norm"], strict=True))


def check(name: str, reports: Reports) -> None:
    row, cpu, npu = ROWS[name], reports[f"{name}/cpu"], reports[f"{name}/npu"]
    assert "error" not in cpu, cpu["trace"]
    assert "error" not in npu, npu["trace"]
    assert cpu["ran"] == {}
    loss, norm = apart(cpu, npu)
    assert loss <= row.loss
    assert norm <= row.norm
    assert len(cpu["loss"]) == STEPS
    assert abs(cpu["loss"][-1] - cpu["loss"][0]) > 1e-3  # something was learnt, or at least moved

    ran = dict(npu["ran"])
    gradients = {GRADIENTS[kernel] for kernel in row.kernels if kernel in GRADIENTS}
    assert set(ran) == row.kernels | gradients
    for kernel, gradient in GRADIENTS.items():
        assert ran.get(kernel, 0) >= ran.get(gradient, 0)
        if "features__recompute" not in row.sets:
            assert ran.get(kernel, 0) == ran.get(gradient, 0)
    assert (row.variant == "gemma2") == bool(npu["said"])  # the one warning, of the softcap


@pytest.mark.parametrize("name", QUICK)
def test_steps_are_the_cpus_and_every_kernel_ran(name, launch):
    ranks = ROWS[name].ranks
    check(name, launch(ranks, of_ranks(QUICK, ranks), wrong_of_ranks(WRONG_IN, ranks)))


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_more_models_and_layouts(name, launch):
    ranks = ROWS[name].ranks
    check(name, launch(ranks, of_ranks(SLOW, ranks), wrong_of_ranks(WRONG_IN_SLOWLY, ranks)))


def test_attention_and_experts_ran_once_a_layer_and_pass(launch):
    reports = launch(1, of_ranks(QUICK, 1), wrong_of_ranks(WRONG_IN, 1))
    layers = 4 * STEPS * MICRO_BATCHES
    dense, experts = reports["llama/npu"]["ran"], reports["experts/npu"]["ran"]
    assert dense["npu_fusion_attention"] == dense["npu_fusion_attention_grad"] == layers
    assert dense["npu_rotary_mul"] == dense["npu_rotary_mul_backward"] == 2 * layers
    assert experts["npu_moe_token_permute"] == experts["npu_moe_token_unpermute_grad"] == layers
    assert experts["npu_grouped_matmul"] == 6 * layers  # two matrices; forward, and two gradients
    recomputed = reports["windows, recomputed/npu"]["ran"]
    assert recomputed["npu_fusion_attention"] == 2 * recomputed["npu_fusion_attention_grad"] == 2 * layers
    assert recomputed["npu_swiglu"] == 2 * recomputed["npu_swiglu_backward"] == 2 * layers


def is_seen(name: str, reports: Reports) -> None:
    of = WITH_WRONG[(WRONG_IN | WRONG_IN_SLOWLY)[name]]
    cpu, npu = reports[f"{name}/cpu"], reports[f"{name}/npu"]
    assert "error" not in cpu, cpu["trace"]
    if "error" in npu:  # of the schema, or of the kernel: a TypeError would be this test's own
        assert npu["error"].startswith(("AttributeError", "RuntimeError", "AssertionError"))
        return
    loss, norm = apart(cpu, npu)
    assert loss > 10 * of.loss or norm > 10 * of.norm


@pytest.mark.parametrize("name", WRONG_IN)
def test_a_wrong_call_is_seen(name, launch):
    is_seen(name, launch(1, of_ranks(QUICK, 1), wrong_of_ranks(WRONG_IN, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG_IN_SLOWLY)
def test_more_wrong_calls_are_seen(name, launch):
    ranks = WITH_WRONG[WRONG_IN_SLOWLY[name]].ranks
    is_seen(name, launch(ranks, of_ranks(SLOW, ranks), wrong_of_ranks(WRONG_IN_SLOWLY, ranks)))


def test_the_permutation_seam_and_what_is_mended_for_an_npu(tmp_path):
    harness.run(SEAM_WORKER)
