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

FAMILIES = ("llama", "qwen3", "mixtral", "deepseek_v2", "gemma2")
OPTIM = {"lr": 3e-3, "weight_decay": 0.1, "clip_grad": 0.5, "eps": 1e-8}
SETTINGS = {f"optim.{name}": value for name, value in OPTIM.items()}
# At the rate of the others a token's experts flip through rounding.
RATES = {"deepseek_v2": 3e-4}


def settings(name: str) -> dict:
    quiet = QUIET if name in ("mixtral", "deepseek_v2") else {}
    return SETTINGS | quiet | {"optim.lr": RATES.get(name, OPTIM["lr"])}


ROWS = tuple(Row(name=name, variant=name, world=1, same=settings(name)) for name in FAMILIES)
UNDECAYED = Row(name="llama-all_decayed", world=1, same=SETTINGS | {"optim.weight_decay": 1.0}, trap="all_decayed")
DECAYED = Row(name="llama-decayed", world=1, same=SETTINGS | {"optim.weight_decay": 1.0})
EVERY = (*ROWS, UNDECAYED, DECAYED)


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict, dict]]:
    """Row -> what jumar-train says of its steps, and what torch does."""
    place = Place(tmp_path_factory.mktemp("transformers"))
    out = place.root / "out"
    train_runs.launch([train_runs.job(place, row, out) | {"batches": True} for row in EVERY], 1, out)
    ours = {row.name: train_runs.read(out, row.name) for row in EVERY}
    assert not any(report.error for report in ours.values()), next(r.error for r in ours.values() if r.error)
    jobs = [
        {
            "model": str(place.model(row.variant)),
            "batches": ours[row.name].values["batches"],
            "per_step": 4,
            **OPTIM,
            "lr": row.same["optim.lr"],
            "weight_decay": row.same["optim.weight_decay"],
        }
        for row in EVERY
    ]
    listed, report = place.root / "jobs.json", place.root / "report.json"
    listed.write_text(json.dumps(jobs))
    harness.run(Path(__file__).with_name("train_torch.py"), listed, report)
    theirs = json.loads(report.read_text())
    return {row.name: (ours[row.name].values, found) for row, found in zip(EVERY, theirs, strict=True)}


@pytest.mark.parametrize("name", [*FAMILIES, "llama-decayed"])
def test_the_loss_curve_is_that_of_transformers(name: str, curves: dict[str, tuple[dict, dict]]) -> None:
    ours, theirs = curves[name]
    losses, norms = (np.abs(np.subtract(ours[key], theirs[key])) for key in ("loss", "grad_norm"))
    print(f"{name}: loss {losses.max():.1e} at step {losses.argmax() + 1}, norm {norms.max():.1e}")
    assert len(losses) == 20
    if name in RATES:
        assert abs(ours["loss"][-1] - ours["loss"][0]) > 0.01, "nothing is trained"
    else:
        assert ours["loss"][-1] < ours["loss"][0] - 0.2
    assert max(ours["grad_norm"]) > OPTIM["clip_grad"], "nothing is clipped"
    assert losses.max() < 1e-4, f"step {losses.argmax() + 1}"
    assert (norms / theirs["grad_norm"]).max() < 1e-3


def test_decay_of_norms_too_would_show(curves: dict[str, tuple[dict, dict]]) -> None:
    ours, theirs = curves["llama-all_decayed"]
    assert np.abs(np.subtract(ours["loss"], theirs["loss"])).max() > 1e-4
