"""From rows to launches, and from their reports to differences."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import forked
import train_models
import tuning_data
from train_rows import FEW, Row

TUNING = ("talks", "packed", "eos")
WORKER = Path(__file__).with_name("train_worker.py")
MARGIN = 3e-6
"""Of the reference run: a token whose experts differ by less may go elsewhere through rounding, which is no error."""


@dataclass(frozen=True)
class Place:
    """The models and data of a session of tests, shared by all its processes, and what was launched with them."""

    root: Path

    def model(self, variant: str) -> Path:
        with self.locked(variant):
            folder = self.root / "models" / variant
            return folder if folder.exists() else train_models.write_model(variant, folder)

    def data(self) -> Path:
        with self.locked("data"):
            folder = self.root / "data"
            if not folder.exists():
                folder.mkdir()
                train_models.write_tokens(folder)
                tuning_data.write_all(folder)
            return folder

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        self.root.mkdir(exist_ok=True)
        with (self.root / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def shared(factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A directory of this run of the tests, the same in all of its processes."""
    root = factory.getbasetemp()
    return root.parent if hasattr(request.config, "workerinput") else root


def recipe(place: Place, variant: str, changes: dict[str, Any], steps: int = 20) -> dict[str, Any]:
    """The recipe of a row, as a file would hold it."""
    model = str(place.model(variant))
    values: dict[str, Any] = {
        "model": {"path": model},
        "load": {"path": model},
        "data": {"train": "plain", "seq_len": train_models.SEQ_LEN, "eod_id": train_models.EOD, "workers": 0},
        "train": {"steps": steps, "global_batch_size": 8, "micro_batch_size": 2, "precision": "fp32"},
        "optim": {"lr": 3e-3, "weight_decay": 0.1, "eps": 1e-4},  # eps: no element moves by the sign of a rounding
        "schedule": {"kind": "constant"},
        "features": {"distributed_optimizer": False},
    }
    for path, value in changes.items():
        *sections, name = path.split(".")
        here = values
        for section in sections:
            here = here.setdefault(section, {})
        here[name] = value
    for name in ("train", "valid"):
        if name in values["data"]:
            given = values["data"][name]
            values["data"][name] = str(place.data() / (given if given in TUNING else f"{given}_text_document"))
    return values


def reference(row: Row) -> Row:
    """The one process that a row is compared with."""
    marks = "".join(f"-{path.rsplit('.', 1)[1]}={value}" for path, value in sorted(row.same.items()))
    steps = 20 if row.steps > FEW else FEW if row.steps > 2 else row.steps
    name = f"{row.variant}-{steps}{marks}".translate(str.maketrans("/{}' :", "______"))
    return Row(name=name, variant=row.variant, world=1, task=row.task, same=row.same, steps=steps)


def job(place: Place, row: Row, out: Path) -> dict[str, Any]:
    """A row as train_worker.py wants it."""
    common = {"name": row.name, "task": row.task, "trap": row.trap, "gradients": row.gradient is not None}
    if row.first is None:
        return common | {"parts": [recipe(place, row.variant, row.same | row.changes, row.steps)]}
    kept = {"save.path": str(out / f"{row.name}.run")}
    parts = [recipe(place, row.variant, row.same | part | kept, row.steps) for part in (row.first, row.changes)]
    return common | {"parts": parts, "stop_at": row.steps // 2}


def launch(jobs: list[dict[str, Any]], world: int, out: Path, timeout_s: float = 120) -> None:
    """Runs rows in as few launches as can be: one that fails is left out of the next. Leaves NAME.json or NAME.error of each.

    Of a group's ranks that are killed because one has failed, that one's words are kept.
    """
    out.mkdir(parents=True, exist_ok=True)
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "JUMAR_COLLECTIVE_TIMEOUT_S": "60",
        "ROW_TIMEOUT_S": str(round(timeout_s)),
    }
    while jobs:
        listed, said = out / f"rows-{world}.json", out / f"rows-{world}.err"
        listed.write_text(json.dumps(jobs))
        started = forked.start_ranks(world, [str(listed), str(out)], said, env, script=WORKER)
        codes = forked.end(started, timeout_s * len(jobs) + 60, together=True)
        left = [each for each in jobs if not (out / f"{each['name']}.json").exists()]
        if left and not (error := out / f"{left[0]['name']}.error").exists():
            error.write_text(f"exit {codes}\n{forked.printed(said, forked.who_failed(codes)).read_text()[-6000:]}")
        jobs = left[1:]


@dataclass(frozen=True)
class Report:
    """What a row left behind; error: of a row that did not come to its end."""

    name: str
    values: dict[str, Any]
    gradients: dict[str, np.ndarray]
    error: str | None = None


def read(out: Path, name: str) -> Report:
    if (error := out / f"{name}.error").exists():
        return Report(name, {}, {}, error.read_text())
    with np.load(out / f"{name}.npz") as arrays:
        return Report(name, json.loads((out / f"{name}.json").read_text()), dict(arrays))


@dataclass(frozen=True)
class Difference:
    """Largest differences, and where they are. norm and gradient are relative."""

    loss: float
    norm: float
    gradient: float
    replicas: float
    where: str

    def within(self, row: Row) -> bool:
        gradient = np.inf if row.gradient is None else row.gradient
        same_everywhere = self.replicas <= max(gradient, 1e-6)
        return self.loss <= row.loss and self.norm <= row.norm and self.gradient <= gradient and same_everywhere

    def __str__(self) -> str:
        numbers = f"loss {self.loss:.1e}, norm {self.norm:.1e}, gradient {self.gradient:.1e}, replicas {self.replicas:.1e}"
        return f"{numbers}: {self.where}"


def difference(found: Report, wanted: Report) -> Difference:
    losses, norms = (np.abs(np.subtract(*pair)) for pair in _pairs(found, wanted))
    norms = norms / np.abs(wanted.values["grad_norm"][: len(norms)])
    where = f"loss at step {losses.argmax() + 1}, norm at step {norms.argmax() + 1}"
    compared = wanted.gradients if found.gradients else {}
    apart = {name: _apart(found.gradients[name], grad, compared) for name, grad in compared.items() if name in found.gradients}
    if set(found.gradients) != set(compared):
        return Difference(np.inf, np.inf, np.inf, 0, f"tensors {sorted(set(found.gradients) ^ set(wanted.gradients))[:4]}")
    worst = max(apart, key=apart.__getitem__) if apart else ""
    wrong = sum(value > 2e-5 for value in apart.values())
    where += f", {worst}" + (f" and {wrong - 1} more" if wrong > 1 else "")
    number = [float(np.nan_to_num(x, nan=np.inf)) for x in (losses.max(), norms.max(), apart.get(worst, 0.0))]
    return Difference(*number, float(found.values["replicas"]), where)


def _pairs(found: Report, wanted: Report) -> Iterator[tuple[list[float], list[float]]]:
    for key in ("loss", "grad_norm"):
        count = len(found.values[key])
        assert 0 < count <= len(wanted.values[key]), f"{key}: {count} steps"
        yield found.values[key], wanted.values[key][:count]


def _apart(found: np.ndarray, wanted: np.ndarray, everything: dict[str, np.ndarray]) -> float:
    """Relative to the tensor's largest element. A gradient that is zero but for rounding (gpt2's bias of keys) has none."""
    floor = 1e-3 * max(np.abs(grad).max() for grad in everything.values())
    return float(np.nan_to_num(np.abs(found - wanted).max(), nan=np.inf) / max(np.abs(wanted).max(), floor))


def needed(rows: Iterable[Row], among: Iterable[Row]) -> list[Row]:
    """These rows and those that they are compared with, each once."""
    by_name = {row.name: row for row in among}
    found: dict[str, Row] = {}
    for row in rows:
        base = by_name[row.like] if row.like else reference(row)
        found |= {base.name: base, row.name: row}
        if row.like:
            found |= {reference(base).name: reference(base)}
    return list(found.values())
