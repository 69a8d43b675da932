"""scores_TASK.csv: subject, number of questions, accuracy, and a row of all, as MindSpeed-LLM's table of a benchmark has them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from jumar.eval.items import Unit
from jumar.eval.journal import Journal
from jumar.eval.metrics import METRICS
from jumar.eval.task import PROTOCOLS

HEAD = ("subject", "question_n", "acc")


def write_tables(units: Sequence[tuple[Unit, Journal]], out: Path) -> None:
    """A file for each task of another protocol than lm-eval's. Beside its place, then renamed."""
    tasks = {unit.task.task: unit.task for unit, _ in units if unit.task.protocol != PROTOCOLS[0]}
    for name, task in tasks.items():
        metric = METRICS[task.metrics[0]].name
        rows, right, total = list[tuple[str, int, float]](), 0.0, 0
        for unit, journal in units:
            if unit.task.task == name:
                values = next(iter(journal.values([metric]).values()))[metric]
                rows.append((_subject(unit), len(values), sum(values) / len(values)))
                right, total = right + sum(values), total + len(values)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([HEAD, *rows, ("total", total, right / total)])
        path = out / f"scores_{name}.csv"
        part = path.with_name(path.name + ".part")
        part.write_text(text.getvalue(), encoding="utf-8")
        os.replace(part, path)


def _subject(unit: Unit) -> str:
    """As the benchmark names it, where the task has a name for it that one."""
    subject = unit.name.removeprefix(f"{unit.task.task}_")
    return unit.task.subjects.get(subject, subject)
