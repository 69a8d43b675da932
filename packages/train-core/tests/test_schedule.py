"""The learning rate, against megatron-core's scheduler and at its corners."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest

from jumar.train_core.recipe import Optim, Schedule
from jumar.train_core.run.schedule import learning_rate

STEPS, WARM, TAIL = 50, 7, 11
OPTIM = Optim(lr=3e-3)
KINDS = get_args(get_type_hints(Schedule)["kind"])
CURVES = get_args(get_type_hints(Schedule)["wsd_decay"])


def rates(steps: int = STEPS, more: int = 0, **fields: Any) -> list[float]:
    schedule = Schedule(**{"min_lr": 1e-4, "warmup_steps": WARM, **fields})
    return [learning_rate(step, steps, OPTIM, schedule) for step in range(1, steps + more + 1)]


def megatron(kind: str, *, warm: int = WARM, curve: str | None = None) -> list[float]:
    """The same of megatron-core. There step n begins with the rate of n - 1, so that the first one learns nothing."""
    scheduler = pytest.importorskip("megatron.core.optimizer_param_scheduler").OptimizerParamScheduler
    made = scheduler(
        SimpleNamespace(param_groups=[]),
        init_lr=0.0,
        max_lr=3e-3,
        min_lr=1e-4,
        lr_warmup_steps=warm,
        lr_decay_steps=STEPS,
        lr_decay_style=kind,
        start_wd=0.1,
        end_wd=0.1,
        wd_incr_steps=0,
        wd_incr_style="constant",
        wsd_decay_steps=TAIL if curve else None,
        lr_wsd_decay_style=curve,
    )
    found = []
    for _ in range(STEPS + 5):
        made.step(1)
        found.append(made.get_lr({}))
    return found


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "wsd"])
@pytest.mark.parametrize("warm", [0, 1, WARM])
def test_as_megatron_core(kind: str, warm: int) -> None:
    assert rates(more=5, kind=kind, warmup_steps=warm, decay_steps=STEPS) == pytest.approx(megatron(kind, warm=warm), rel=1e-12)


@pytest.mark.parametrize("curve", CURVES)
def test_wsd_as_megatron_core(curve: str) -> None:
    ours = rates(more=5, kind="wsd", wsd_steps=TAIL, wsd_decay=curve, decay_steps=STEPS)
    assert ours == pytest.approx(megatron("WSD", curve=curve), rel=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "constant"])
@pytest.mark.parametrize("curve", CURVES)
def test_end_points_are_exact(kind: str, curve: str) -> None:
    fields = {"wsd_steps": TAIL, "wsd_decay": curve} if kind == "wsd" else {}
    found = rates(kind=kind, **fields)
    assert found[0] == 3e-3 / WARM
    assert found[WARM - 1] == 3e-3
    assert found[STEPS - 1] == 1e-4
    assert all(a >= b for a, b in zip(found[WARM - 1 :], found[WARM:], strict=False))
    if kind == "wsd":
        assert set(found[WARM - 1 : STEPS - TAIL]) == {3e-3}
        assert found[STEPS - TAIL] < 3e-3


def test_constant() -> None:
    assert set(rates(kind="constant", min_lr=0.0)[WARM - 1 :]) == {3e-3}


def test_without_a_warm_up_the_first_step_is_one_of_the_curve() -> None:
    assert rates(kind="linear", warmup_steps=0)[0] == pytest.approx(1e-4 + (3e-3 - 1e-4) * (1 - 1 / STEPS))


def test_decay_steps_are_not_those_of_training() -> None:
    """The curve ends sooner than the run, or the run sooner than the curve."""
    assert set(rates(kind="cosine", decay_steps=20)[19:]) == {1e-4}
    half = rates(kind="cosine", warmup_steps=0, decay_steps=2 * STEPS)[-1]
    assert half == pytest.approx(1e-4 + (3e-3 - 1e-4) * 0.5 * (1 + math.cos(math.pi / 2)))


def test_one_step() -> None:
    assert rates(1, kind="cosine", warmup_steps=0, min_lr=0.0) == [0.0]
