"""Layouts, features and models drawn at random: what is drawn equals one process, or is refused before anything is launched."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import train_models
import train_runs
from jumar.schema.errors import ToolError
from jumar.schema.recipe import validate
from jumar.train_core.checks import check, raise_first
from jumar.train_core.job import resolve
from jumar.train_core.recipe import Recipe
from train_rows import PP2, Changes, Row, recompute, recompute_full
from train_runs import Place

pytestmark = pytest.mark.timeout(3600)
STEPS, LOSS, NORM, GRADIENT = 2, 5e-6, 5e-5, 5e-5
PARTS = ("core_attn", "mlp", "layernorm", "moe", "moe_act", "mla_up_proj", "shared_experts")
ONCE = settings(database=None, derandomize=True, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))


def divisors(number: int) -> st.SearchStrategy[int]:
    return st.sampled_from([n for n in (1, 2, 4) if number % n == 0])


@st.composite
def layouts(draw: st.DrawFn, world: int) -> Changes:
    """Mostly one that fits the ranks."""
    if draw(st.integers(0, 9)) == 0:
        sizes = {name: draw(st.sampled_from([1, 2, 3, 4])) for name in ("tp", "pp", "cp", "ep", "etp")}
    else:
        tp = draw(divisors(world))
        pp = draw(divisors(world // tp))
        cp = draw(divisors(world // tp // pp))
        etp = draw(divisors(min(world // pp, 2)))
        sizes = {"tp": tp, "pp": pp, "cp": cp, "etp": etp, "ep": draw(divisors(world // pp // etp))}
    if sizes["pp"] > 1:
        sizes["vpp"] = draw(st.sampled_from([1, 1, 2]))
    return {f"parallel.{name}": size for name, size in sizes.items() if size > 1}


@st.composite
def stages(draw: st.DrawFn, pp: int, vpp: int) -> Changes:
    """Layers that are not spread evenly, now and then."""
    kind = draw(st.sampled_from(["even", "even", "uneven", "noop"])) if pp > 1 else "even"
    if kind == "uneven":
        first = draw(st.integers(1, 3))
        return {"parallel.layers_per_stage": [first, 4 - first] if pp == 2 else [1] * pp}
    if kind == "noop":
        slots = draw(st.lists(st.integers(0, 4 + pp * vpp - 1), min_size=pp * vpp, max_size=pp * vpp, unique=True))
        return {"parallel.noop_layers": slots}
    return {}


@st.composite
def cases(draw: st.DrawFn) -> Row:
    variant = draw(st.sampled_from(sorted(train_models.VARIANTS)))
    world = draw(st.sampled_from([1, 2, 2, 4, 4]))
    config = train_models.config_of(variant)
    experts = any(key in config for key in ("n_routed_experts", "num_experts", "num_local_experts"))
    changes = draw(layouts(world))
    if not experts and draw(st.integers(0, 9)):
        changes = {name: value for name, value in changes.items() if name not in ("parallel.ep", "parallel.etp")}
    changes |= draw(stages(changes.get("parallel.pp", 1), changes.get("parallel.vpp", 1)))
    if changes.get("parallel.tp", 1) > 1 and draw(st.booleans()):
        changes["parallel.sequence_parallel"] = draw(st.booleans())
    spread = draw(st.booleans())
    changes["features.distributed_optimizer"] = spread
    if draw(st.booleans()):
        changes["features.overlap_grad_reduce"] = True
        changes["features.overlap_param_gather"] = spread and draw(st.booleans())
    again = draw(st.sampled_from(["none", "none", "full", "parts"]))
    if again == "full":
        changes |= recompute_full(draw(st.sampled_from(["uniform", "block"])), draw(st.integers(1, 2)))
    elif again == "parts":
        changes |= recompute(*draw(st.lists(st.sampled_from(PARTS[: 7 if experts else 3]), min_size=1, max_size=2, unique=True)))
    if draw(st.integers(0, 3)) == 0:
        changes["model.vocab_divisible_by"] = draw(st.sampled_from([1, 8, 40]))

    same: Changes = {
        "data.seq_len": draw(st.sampled_from([16, 24, 32])),
        "train.micro_batch_size": draw(st.sampled_from([1, 2, 4])),
    }
    if draw(st.booleans()):
        same |= {"data.train": "ends", "data.eod_mask_loss": True}
    if draw(st.integers(0, 3)) == 0:
        same["train.loss"] = "micro_batch"
    if experts:
        changes["features.moe.dispatcher"] = draw(st.sampled_from(["alltoall", "allgather"]))
        changes["features.moe.grouped_gemm"] = draw(st.booleans())
        same["features.moe.balancing"] = balancing = draw(st.sampled_from(["micro_batch", "sequence", "none"]))
        if balancing != "none":
            same["features.moe.aux_loss"] = draw(st.sampled_from([0.01, 0.5]))
        same["features.moe.z_loss"] = draw(st.sampled_from([0.0, 0.05]))
    return Row(
        name="?", variant=variant, world=world, changes=changes, same=same, steps=STEPS, loss=LOSS, norm=NORM, gradient=GRADIENT
    )


def drawn(count: int) -> list[Row]:
    """Different cases, numbered."""
    found: dict[str, Row] = {}

    @settings(ONCE, max_examples=count)
    @given(cases())
    def draw(case: Row) -> None:
        found.setdefault(json.dumps([case.variant, case.world, case.changes, case.same], sort_keys=True), case)

    draw()
    return [replace(case, name=f"case{number}") for number, case in enumerate(found.values())]


def refusal(place: Place, row: Row) -> str | None:
    """Why jumar-train does not start this. Nothing but a ToolError may say so."""
    try:
        job = resolve(validate(Recipe, recipe_of(place, row), row.name), world=row.world, device="cpu")
        raise_first(check(job))
    except ToolError as fault:
        return fault.message
    return None


def recipe_of(place: Place, row: Row) -> dict[str, Any]:
    return train_runs.recipe(place, row.variant, row.same | row.changes, row.steps)


def fuzz(place: Place, count: int) -> None:
    rows = drawn(count)
    refused = {row.name: why for row in rows if (why := refusal(place, row)) is not None}
    accepted = [row for row in rows if row.name not in refused]
    bases = {row.name: train_runs.reference(row) for row in accepted}
    out = place.root / "out"
    everything = {row.name: row for row in (*bases.values(), *accepted)}.values()
    for world in (1, 2, 4):
        jobs = [train_runs.job(place, row, out) for row in everything if row.world == world]
        train_runs.launch(jobs, world, out)

    wrong, between, worst = [], 0, np.zeros(3)
    for row in accepted:
        found, wanted = train_runs.read(out, row.name), train_runs.read(out, bases[row.name].name)
        said = f"{row.variant} on {row.world}: {json.dumps(row.changes)} {json.dumps(row.same)}"
        if found.error or wanted.error:
            wrong.append(f"{said}\n  after launch: {(found.error or wanted.error or '')[-1500:]}")
        elif (wanted.values["margin"] or 1) < train_runs.MARGIN:
            between += 1
        else:
            apart = train_runs.difference(found, wanted)
            if apart.within(row):
                worst = np.maximum(worst, [apart.loss, apart.norm, apart.gradient])
            else:
                wrong.append(f"{said}\n  {apart}")
    print(
        f"\nlayout fuzz: {len(rows)} draws, {len(accepted) - between} compared, {len(refused)} refused before launch, "
        f"{between} with a token between two experts, {len(wrong)} wrong; "
        f"largest differences: loss {worst[0]:.1e}, norm {worst[1]:.1e}, gradient {worst[2]:.1e}"
    )
    for why, times in Counter(refused.values()).most_common(12):
        print(f"  {times:4d} {why}")
    assert not wrong, f"{len(wrong)} of {len(accepted)}:\n" + "\n".join(wrong)
    assert len(accepted) - between > len(rows) / 3, "hardly anything is compared"


@pytest.mark.parametrize(
    ("variant", "world", "changes", "why"),
    [
        ("llama", 1, recompute_full("uniform", 3), "no whole number of such units"),
        ("llama", 2, PP2 | {"parallel.layers_per_stage": [1, 3]} | recompute_full("uniform", 3), "no whole number of such units"),
        ("deepseek_v3_mtp", 1, recompute_full("uniform", 2), "units are single layers"),
    ],
)
def test_what_was_found_so_is_refused(tmp_path: Path, variant: str, world: int, changes: Changes, why: str) -> None:
    assert why in (refusal(Place(tmp_path), Row(name="found", variant=variant, world=world, changes=changes)) or "")


def test_what_is_drawn_equals_one_process_or_is_refused(tmp_path: Path) -> None:
    fuzz(Place(tmp_path / "few"), 10)


@pytest.mark.slow
def test_much_that_is_drawn_equals_one_process_or_is_refused(tmp_path: Path) -> None:
    fuzz(Place(tmp_path / "many"), 450)
