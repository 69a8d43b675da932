"""Other places for metrics: TensorBoard (extra `[tensorboard]`) and Weights & Biases (extra `[wandb]`)."""

from __future__ import annotations

import importlib.util
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from jumar.schema.errors import Exit, ToolError
from jumar.train_core.recipe import Log, Wandb

Numbers = Mapping[str, float | int]


class Tracker(Protocol):
    """Takes the numbers of each step."""

    def log(self, step: int, values: Numbers) -> None: ...

    def close(self) -> None: ...


def need_extras(log: Log) -> None:
    """Raises ToolError (4) naming the pip command, where a recipe asks for a tracker that is not installed."""
    wanted = {"tensorboard": log.tensorboard, "wandb": log.wandb is not None}
    missing = [name for name, asked in wanted.items() if asked and importlib.util.find_spec(name) is None]
    if missing:
        text = " and ".join(f"log.{name} needs {name}, which is not installed" for name in missing)
        raise ToolError(text, hint=f"pip install 'jumar-train-core[{','.join(missing)}]'", code=Exit.ENVIRONMENT)


def trackers(log: Log, path: Path | None, step: int, about: Mapping[str, Any]) -> list[Tracker]:
    """What a recipe asks for. path: RUN; step: the last step that counts, of an earlier run what came later is hidden."""
    if path is None:
        if log.tensorboard or log.wandb:
            name = "tensorboard" if log.tensorboard else "wandb"
            raise ToolError(f"log.{name} has nowhere to write", hint="set save.path", code=Exit.USAGE)
        return []
    out: list[Tracker] = []
    if log.tensorboard:
        out.append(TensorBoard(path / "tensorboard", step))
    if log.wandb is not None:
        out.append(WeightsAndBiases(log.wandb, path, about))
    return out


def title(key: str) -> str:
    """eval_loss -> eval/loss, loss -> train/loss."""
    part, _, name = key.partition("_")
    return f"{part}/{name}" if part in ("eval", "test") and name else f"train/{key}"


class TensorBoard:
    """Event files under RUN/tensorboard."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, step: int, values: Numbers) -> None:
        for key, value in values.items():
            self._writer.add_scalar(title(key), value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run under RUN/wandb. Its id is kept in RUN/wandb_id, so that a resumed run goes on in the same one."""

    def __init__(self, given: Wandb, path: Path, about: Mapping[str, Any]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it opens a connection of its own to report crashes
        os.environ.setdefault("WANDB_SILENT", "true")  # RUN says where things are
        import wandb

        known = path / "wandb_id"
        if not known.is_file():
            known.write_text(uuid.uuid4().hex[:8] + "\n", encoding="utf-8")
        self._run: Any = wandb.init(
            project=given.project,
            name=given.name,
            entity=given.entity,
            mode=given.mode,
            id=known.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(path),
            config=json.loads(json.dumps(about, default=str)),
        )
        self._run.define_metric("*", step_metric="step")  # its own count of steps cannot go back

    def log(self, step: int, values: Numbers) -> None:
        self._run.log({"step": step, **{title(key): value for key, value in values.items()}})

    def close(self) -> None:
        self._run.finish()
