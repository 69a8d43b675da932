"""What a run says of itself: RUN/metrics.jsonl, a console, TensorBoard, Weights & Biases, and a picture at the end.

metrics.jsonl has one JSON object a line. A step: {"step", "loss", "grad_norm", "lr", "tokens", "tokens_per_s", "step_time_s",
"flops_per_s", "mfu", ...}; an evaluation: {"step", "eval_loss", "eval_perplexity"}, or of test data {"step", "test_loss",
"test_perplexity"}. JSON has no NaN and no infinity: such a number is null, and "nonfinite" names it:
{"step": 7, "loss": null, "nonfinite": {"loss": "nan"}}.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from jumar.schema.errors import ToolError
from jumar.train_core.recipe import Log
from jumar.train_core.run.curve import DRAWN, draw
from jumar.train_core.run.progress import Console
from jumar.train_core.run.trackers import Tracker, need_extras, trackers

NAME, PICTURE = "metrics.jsonl", "loss.svg"


@dataclass(slots=True)
class Rates:
    """Speed over the last steps.

    flops_per_token: model FLOPs of one token, forward and backward, without what is computed twice
    peak_flops:      of one device at the precision of training, FLOP/s; None: not known, and then there is no MFU
    devices:         of the run
    window:          steps. The first one, which compiles and warms up, is left out as soon as there is another.
    """

    flops_per_token: float
    peak_flops: float | None
    devices: int
    window: int = 20
    _steps: deque[tuple[int, float]] = field(default_factory=deque)
    _warm: bool = False

    def step(self, tokens: int, seconds: float) -> dict[str, float]:
        """After a step of `tokens` over all ranks: tokens_per_s, step_time_s (of this step), flops_per_s (over all devices),
        and mfu (model FLOPs utilisation, https://arxiv.org/abs/2204.02311, appendix B; 0 to 1)."""
        if len(self._steps) == 1 and not self._warm:
            self._steps.clear()
            self._warm = True
        self._steps.append((tokens, seconds))
        while len(self._steps) > self.window:
            self._steps.popleft()
        rate = sum(n for n, _ in self._steps) / max(sum(s for _, s in self._steps), 1e-9)
        values = {"tokens_per_s": rate, "step_time_s": seconds, "flops_per_s": rate * self.flops_per_token}
        if self.peak_flops is not None:
            values["mfu"] = values["flops_per_s"] / (self.peak_flops * self.devices)
        return values


class Metrics:
    """Where the loop's numbers go. Every rank makes one; only rank 0's does anything.

    path:  RUN, made where it is not there; None: the console alone
    steps: of the whole run
    about: what Weights & Biases shows as the run's config
    Raises ToolError (4) naming the pip command where an extra that `log` asks for is not installed.
    """

    def __init__(self, path: Path | None, log: Log, *, steps: int, rank: int = 0, about: Mapping[str, Any] | None = None) -> None:
        need_extras(log)
        self.path, self._log, self._about, self._active = path, log, about or {}, rank == 0
        self._console = Console(steps, log.every) if self._active else None
        self._file: int | None = None
        self._torn = False
        self._trackers: list[Tracker] = []

    def start(self, step: int) -> None:
        """Before step `step` + 1: what an earlier run wrote of later steps is cut away, also a line that was not finished."""
        if self._console is None:
            return
        if self.path is not None:
            self.path.mkdir(parents=True, exist_ok=True)
            cut_after(self.path / NAME, step)
            self._file = os.open(self.path / NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._trackers = trackers(self._log, self.path, step, self._about)
        self._console.start(step)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """One line. values: numbers, 0-dimensional tensors or arrays; None is left out. With "loss" it counts as a step done."""
        if self._console is None:
            return
        numbers = {key: _number(value) for key, value in values.items() if value is not None}
        self._write(line_of(step, numbers))
        for tracker in self._trackers:
            tracker.log(step, numbers)
        self._console.show(step, numbers)

    def _write(self, line: str) -> None:
        """A full disk is no reason to lose a run that still computes; what it costs is said once."""
        if self._file is None:
            return
        data = (("\n" if self._torn else "") + line).encode()
        try:
            written = os.write(self._file, data)
        except OSError as fault:
            written = 0
            if not self._torn:
                self.say("warning", f"{self.path}/{NAME}: {fault.strerror}; steps are missing there until it can be written")
        self._torn = written != len(data)

    def say(self, word: str, text: str) -> None:
        """A line for people, above the progress bar: a coloured word (warning, note, saved), then text."""
        if self._console is not None:
            self._console.say(word, text)

    def close(self) -> None:
        """Ends the bar, draws RUN/loss.svg, closes everything. May be called twice."""
        if self._console is None:
            return
        self._console.stop()
        if self._file is not None:
            os.close(self._file)
            self._file = None
            assert self.path is not None
            try:
                draw([{key: line[key] for key in DRAWN if key in line} for line in read(self.path / NAME)], self.path / PICTURE)
            except OSError as fault:  # the run is done all the same
                self.say("warning", f"{self.path / PICTURE}: {fault.strerror}")
        while self._trackers:
            self._trackers.pop().close()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _number(value: Any) -> float | int:
    number: float | int = value.item() if hasattr(value, "item") else value
    return number


def line_of(step: int, values: Mapping[str, float | int]) -> str:
    """A line of metrics.jsonl."""
    odd = {key: str(value) for key, value in values.items() if not math.isfinite(value)}
    record: dict[str, Any] = {"step": step, **{key: None if key in odd else value for key, value in values.items()}}
    if odd:
        record["nonfinite"] = odd
    return json.dumps(record, allow_nan=False) + "\n"


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl; those that are not whole, as a killed run leaves one, are passed over."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                yield record


def cut_after(path: Path, step: int) -> None:
    """Leaves the lines up to `step`. The file is replaced, or stays as it was."""
    if not path.is_file():
        return
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as out:
            for record in read(path):
                if record["step"] <= step:
                    out.write(json.dumps(record) + "\n")
            out.flush()
            os.fsync(out.fileno())
        beside.replace(path)
    except OSError as fault:
        raise ToolError(f"{path}: {fault.strerror}", hint="look at the disk and the permissions of save.path") from None
