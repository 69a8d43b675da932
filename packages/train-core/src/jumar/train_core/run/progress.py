"""A run on standard error: a progress bar on a terminal, elsewhere a plain line every few steps."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from jumar.schema.cli import escaped, say, stderr

Numbers = Mapping[str, float | int]
LOOK_BACK = 50
"""Steps from whose times the time left is told."""
WIDE = 110
"""Columns of a terminal that has room for a bar beside the numbers."""


class Console:
    """What people see. steps: of the run; every: steps between plain lines."""

    def __init__(self, steps: int, every: int) -> None:
        self.steps, self.every = steps, max(every, 1)
        self._bar: Any = None
        self._times: deque[tuple[int, float]] = deque(maxlen=LOOK_BACK)
        self._first: int | None = None

    def start(self, step: int) -> None:
        """The run is at `step`."""
        self._times.append((step, time.monotonic()))
        if sys.stderr is not None and sys.stderr.isatty():
            from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
            from rich.table import Column

            console, whole = stderr(), Column(no_wrap=True, min_width=len(f"step {self.steps}/{self.steps}"))
            columns: list[ProgressColumn] = [TextColumn("step {task.completed}/{task.total}", table_column=whole)]
            columns += [BarColumn(bar_width=20)] if console.width >= WIDE else []
            self._bar = Progress(*columns, TextColumn("{task.description}", markup=False), console=console)
            self._bar.start()
            self._bar.add_task("", total=self.steps, completed=step)

    def show(self, step: int, values: Numbers) -> None:
        """The numbers of a step, or of an evaluation."""
        if "loss" not in values:
            self._line(f"step {step}/{self.steps}  {words(values)}")
            return
        self._times.append((step, time.monotonic()))
        text = words(values)
        if (left := self.left_s()) is not None:
            text += f"  {clock(left)} left"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, description=escaped(text))
            return
        self._first = step if self._first is None else self._first
        if step % self.every == 0 or step in (self._first, self.steps) or not math.isfinite(values["loss"]):
            self._line(f"step {step}/{self.steps}  {text}")

    def left_s(self) -> float | None:
        """Seconds to the end at the pace of the last steps, with evaluations and checkpoints; None before there is a pace."""
        (first, begun), (last, now) = self._times[0], self._times[-1]
        return None if last <= first else (self.steps - last) * (now - begun) / (last - first)

    def say(self, word: str, text: str) -> None:
        """A coloured word, then text; above the bar."""
        colour = "bold green" if word == "saved" else "bold yellow"
        if self._bar is None:
            say(word, text, colour)
        else:
            from rich.text import Text

            self._bar.console.print(Text.assemble((f"{word}:", colour), f" {escaped(text)}"), soft_wrap=True)

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(escaped(text), markup=False, highlight=False, soft_wrap=True)
            return
        try:
            sys.stderr.write(escaped(text) + "\n")
            sys.stderr.flush()
        except (OSError, AttributeError):
            return  # nobody listens, or a full disk: no fault of the run

    def stop(self) -> None:
        """The bar stays as it is."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


FORMATS = {
    "loss": ("loss", ".4f"),
    "eval_loss": ("eval loss", ".4f"),
    "eval_perplexity": ("perplexity", ".4g"),
    "test_loss": ("test loss", ".4f"),
    "test_perplexity": ("perplexity", ".4g"),
    "lr": ("lr", ".3g"),
    "grad_norm": ("grad norm", ".3g"),
}


def words(values: Numbers) -> str:
    """What a person looks at, in one line."""
    out = [f"{name} {values[key]:{form}}" for key, (name, form) in FORMATS.items() if key in values]
    if values.get("skipped"):
        out.append("skipped")
    if "tokens_per_s" in values:
        out.append(f"{human(values['tokens_per_s'])} tokens/s")
    if "mfu" in values:
        out.append(f"MFU {100 * values['mfu']:.1f}%")
    return "  ".join(out)


def human(value: float) -> str:
    """12345 -> "12.3k"."""
    for unit in ("", "k", "M", "G"):
        if abs(value) < 999.5 or unit == "G":
            break
        value /= 1000
    return f"{value:.3g}{unit}" if value < 999.5 else f"{value:.0f}{unit}"


def clock(seconds: float) -> str:
    """90061 -> "1 d 01:01:01"."""
    days, rest = divmod(int(seconds), 86400)
    return (f"{days} d " if days else "") + f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
