"""What came of a run, as data: `jumar-train --json`, and `train` for scripts."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jumar.schema.errors import Exit, ToolError
from jumar.train_core.exit_file import ExitFile
from jumar.train_core.job import Task
from jumar.train_core.recipe import Recipe
from jumar.train_core.run.metrics import NAME, read


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a run. Without `save.path` nothing is known of it but its steps: the rest is None.

    out:     the run's directory, which jumar-convert, jumar-infer and jumar-eval take
    already_done: an earlier call had done all steps, and this one nothing
    step:    the last that is done; less than `steps` where the run was stopped
    tokens:  of the loss so far, over all ranks
    loss:    of the last step; None where it was not finite
    eval_loss, test_loss: the last ones, where there is such data
    """

    out: Path | None
    already_done: bool
    step: int
    steps: int
    seconds: float
    tokens: int | None = None
    loss: float | None = None
    eval_loss: float | None = None
    test_loss: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "out": None if self.out is None else str(self.out), "seconds": round(self.seconds, 3)}


def trained(recipe: Recipe, already: bool, seconds: float) -> Trained:
    """What RUN/metrics.jsonl tells of a run that has ended, with 0 or with 75."""
    out, steps = recipe.save.path, recipe.train.steps
    if out is None:
        return Trained(None, already, steps, steps, seconds)
    last: dict[str, Any] = {}
    for line in read(out / NAME):
        last |= line
    known = {key: last.get(key) for key in ("tokens", "loss", "eval_loss", "test_loss")}
    return Trained(out, already, last.get("step", 0), steps, seconds, **known)


def train(
    task: Task, recipe: Path | Mapping[str, Any], *, sets: Sequence[str] = (), nproc: int | None = None, device: str = "auto"
) -> Trained:
    """Trains as `jumar-train TASK RECIPE` does: in processes of its own, and from the newest checkpoint in save.path on.

    task:   "pretrain" or "sft"
    recipe: a YAML or TOML file, or what stands in one: {"data": {"train": Path("data/chat")}, ...}
    sets:   fields laid over it, "train.steps=20"
    nproc:  ranks on this machine; None: 1

    To be called in the main thread, whose signals are passed on to the ranks. Raises ToolError with the command's exit code: 75
    where the run was asked to stop and has saved a checkpoint, from which the same call goes on.
    """
    from jumar.train_core.start import start

    begin = time.monotonic()
    with _as_file(recipe) as path, _own_environment():
        outcome = start(task, path, sets, nproc=nproc, device=device, apart=True)
    assert outcome.recipe is not None
    done = trained(outcome.recipe, outcome.already, time.monotonic() - begin)
    if outcome.code:
        raise _ended(outcome.code, done)
    return done


def _ended(code: int, done: Trained) -> ToolError:
    """A run that did not come to its end. What was wrong its ranks have told, and exit.json."""
    told = ExitFile(done.out).told()
    what = told.message if told is not None and told.message else f"the run ended with exit code {code}"
    if code == Exit.STOPPED:
        what = f"the run was stopped after step {done.step} of {done.steps}"
    again = code in (Exit.STOPPED, Exit.ENVIRONMENT)
    return ToolError(what, hint="the same call goes on from the newest checkpoint" if again else None, code=Exit(code))


@contextmanager
def _as_file(recipe: Path | Mapping[str, Any]) -> Iterator[Path]:
    """Where the ranks read it."""
    if not isinstance(recipe, Mapping):
        yield Path(recipe)
        return
    with tempfile.TemporaryDirectory(prefix="jumar-recipe-") as folder:
        path = Path(folder) / "recipe.yaml"  # JSON is YAML
        path.write_text(json.dumps(recipe, default=str), encoding="utf-8")
        yield path


@contextmanager
def _own_environment() -> Iterator[None]:
    """What a run sets in its environment is not left behind in the caller's."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
