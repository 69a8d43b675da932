"""jumar-train against transformers and torch's AdamW: the same weights, batches, decay groups, learning rate and clipping."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import harness
import train_runs
from train_rows import QUIET, Row
from train_runs import Place

FAMILIES = ("llama", "qwen3", "mixtral", "deepseek_v2", "gemma2", "mamba2", "nemotron_h")
STATES = ("mamba2", "nemotron_h")
OPTIM = {"lr": 3e-3, "weight_decay": 0.1, "clip_grad": 0.5, "eps": 1e-8}
SETTINGS = {f"optim.{name}": value for name, value in OPTIM.items()}
# At the rate of the others a token's experts flip through rounding; state-space layers learn little.
RATES = {"deepseek_v2": 3e-4, "mamba2": 5e-3, "nemotron_h": 5e-3}


def settings(name: str) -> dict:
    quiet = QUIET if name in ("mixtral", "deepseek_v2") else {}
    clip = {"optim.clip_grad": 0.3} if name in STATES else {}
    return SETTINGS | quiet | clip | {"optim.lr": RATES.get(name, OPTIM["lr"])}


ROWS = tuple(  # those with states stop half-way and go on
    Row(name=name, variant=name, world=1, same=settings(name), first={} if name in STATES else None) for name in FAMILIES
)
UNDECAYED = Row(name="llama-all_decayed", world=1, same=SETTINGS | {"optim.weight_decay": 1.0}, trap="all_decayed")
DECAYED = Row(name="llama-decayed", world=1, same=SETTINGS | {"optim.weight_decay": 1.0})
EVERY = (*ROWS, UNDECAYED, DECAYED)


@pytest.fixture(scope="session")
def curves(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, tuple[dict, dict]]:
    """Row -> what jumar-train says of its steps, and what torch does."""
    place = Place(train_runs.shared(tmp_path_factory, request) / "transformers")
    out, report = place.root / "out", place.root / "report.json"
    with place.locked("curves"):
        if not report.exists():
            train_runs.launch([train_runs.job(place, row, out) | {"batches": True} for row in EVERY], 1, out)
            with_torch(place, report)
    names = [row.name for row in EVERY] + [f"{name}-converted" for name in STATES]
    theirs = zip(names, json.loads(report.read_text()), strict=True)
    return {name: (train_runs.read(out, name.removesuffix("-converted")).values, found) for name, found in theirs}


def with_torch(place: Place, report: Path) -> None:
    """The same steps by transformers and torch's AdamW; and those after a checkpoint, from it."""
    out = place.root / "out"
    ours = {row.name: train_runs.read(out, row.name) for row in EVERY}
    assert not any(each.error for each in ours.values()), next(each.error for each in ours.values() if each.error)
    jobs = [
        {
            "model": str(place.model(row.variant)),
            "batches": ours[row.name].values["batches"],
            "per_step": 4,
            **OPTIM,
            "lr": row.same["optim.lr"],
            "weight_decay": row.same["optim.weight_decay"],
            "clip_grad": row.same["optim.clip_grad"],
        }
        for row in EVERY
    ]
    halves = [jobs[FAMILIES.index(name)] | {"model": str(converted(out / f"{name}.run"))} for name in STATES]
    jobs += [half | {"batches": half["batches"][10 * 4 : 11 * 4]} for half in halves]
    listed = place.root / "jobs.json"
    listed.write_text(json.dumps(jobs))
    harness.run(Path(__file__).with_name("train_torch.py"), listed, report)


def converted(run: Path) -> Path:
    """The checkpoint of step 10 as a Hugging Face directory."""
    from jumar.ckpt_convert import OpenOptions, open_checkpoint, plan_hf, run_plan

    run_plan(plan_hf(open_checkpoint(run, options=OpenOptions(iteration="10"))), run.with_suffix(".hf"))
    return run.with_suffix(".hf")


@pytest.mark.parametrize("name", [*FAMILIES, "llama-decayed"])
def test_the_loss_curve_is_that_of_transformers(name: str, curves: dict[str, tuple[dict, dict]]) -> None:
    ours, theirs = curves[name]
    losses, norms = (np.abs(np.subtract(ours[key], theirs[key])) for key in ("loss", "grad_norm"))
    print(f"{name}: loss {losses.max():.1e} at step {losses.argmax() + 1}, norm {norms.max():.1e}")
    assert len(losses) == 20
    if name == "deepseek_v2":
        assert abs(ours["loss"][-1] - ours["loss"][0]) > 0.01, "nothing is trained"
    else:
        assert ours["loss"][-1] < ours["loss"][0] - 0.2
    assert max(ours["grad_norm"]) > settings(name)["optim.clip_grad"], "nothing is clipped"
    assert losses.max() < 1e-4, f"step {losses.argmax() + 1}"
    assert (norms / theirs["grad_norm"]).max() < 1e-3


@pytest.mark.parametrize("name", STATES)
def test_a_checkpoint_of_the_run_is_the_model_for_transformers(name: str, curves: dict[str, tuple[dict, dict]]) -> None:
    ours, theirs = curves[f"{name}-converted"]
    print(f"{name}: loss {abs(ours['loss'][10] - theirs['loss'][0]):.1e}")
    assert abs(ours["loss"][10] - theirs["loss"][0]) < 2e-6
    assert abs(ours["loss"][0] - theirs["loss"][0]) > 0.1, "trained weights would not show"


def test_decay_of_norms_too_would_show(curves: dict[str, tuple[dict, dict]]) -> None:
    ours, theirs = curves["llama-all_decayed"]
    assert np.abs(np.subtract(ours["loss"], theirs["loss"])).max() > 1e-4
