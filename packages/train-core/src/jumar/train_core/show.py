"""What jumar-train prints for people: the dry run's report, and the doctor's."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}
WIDTH = 110
MANY = 8
"""Groups of a kind, and ranks of a group, that are shown."""


def console() -> Console:
    """Standard output, where names and paths stand as they are, and a pipe folds nothing."""
    made = Console(markup=False, emoji=False, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = 1000
    return made


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def dry_run(report: dict[str, Any]) -> None:
    """The report of `dry_run.report`."""
    out = console()
    for title, values in (("recipe", report["recipe"]), ("resolved", report["derived"])):
        _title(out, title)
        _print_text(
            out, yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=WIDTH).rstrip()
        )
    _title(out, "features")
    _print_text(out, textwrap.fill(", ".join(report["features"]), WIDTH))
    if report["groups"]:
        _title(out, "ranks that work together")
        for name, groups in report["groups"].items():
            _print_text(out, f"{name:>9}  {_groups(groups)}")
    unit, size = _unit(report["stages"])
    _title(out, f"stages, one rank of each, memory in {unit}")
    _print(out, _stages(report["stages"], size))
    parameters = report["parameters"]
    active = f", {parameters['active']:,} for one token" if parameters["active"] != parameters["total"] else ""
    _print_text(out, f"{parameters['total']:,} parameters{active}; {parameters['flops_per_token']:.4g} operations (FLOP) a token")
    most = max(report["stages"], key=lambda stage: stage["bytes"]["total"])
    largest = f"Stage {most['stage']} needs most. " if len(report["stages"]) > 1 else ""
    _print_text(out, f"{largest}Memory is estimated, without what the device itself needs.")
    for kind, rows in report["data"].items():
        _title(out, f"{kind} data")
        _print(out, _data(rows))
    _title(out, "steps")
    _print_text(out, _steps(report["steps"]))


def doctor(checks: Sequence[Any]) -> None:
    """Checks as a table, and for each that is not well what to do."""
    out = console()
    rows = table("", "check", "found", "expected")
    for check in checks:
        rows.add_row(Text(check.status, COLOURS.get(check.status, "")), check.name, check.got, check.expected)
    _print(out, rows)
    for check in checks:
        if check.status != "ok" and check.hint:
            _print_text(out, f"{check.name}: {check.hint}")


def _unit(stages: list[dict[str, Any]]) -> tuple[str, int]:
    """The largest in which the largest stage is at least 1."""
    most = max(stage["bytes"]["total"] for stage in stages)
    return next(((unit, size) for unit, size in (("GiB", 2**30), ("MiB", 2**20)) if most >= size), ("KiB", 2**10))


def _stages(stages: list[dict[str, Any]], unit: int) -> Table:
    """Narrow enough for 80 columns."""
    names = ("weights", "gradients", "optimizer", "activations", "logits", "total")
    heads = ("weights", "grads", "optim", "activ", "logits", "total")
    rows = table("stage", "layers", "parameters", *heads, right=("parameters", *heads))
    for stage in stages:
        sizes = [f"{stage['bytes'][name] / unit:,.2f}" for name in names]
        rows.add_row(str(stage["stage"]), _layers(stage["layers"]), f"{stage['parameters']:,}", *sizes)
    return rows


def _layers(chunks: list[list[int]]) -> str:
    """[[0, 1], [4, 5]] -> "0-1 4-5"; an empty chunk is "-"."""
    return " ".join("-" if not c else str(c[0]) if len(c) == 1 else f"{c[0]}-{c[-1]}" for c in chunks)


def _groups(groups: list[list[int]]) -> str:
    shown = " ".join(str(group[:MANY])[:-1] + (", ...]" if len(group) > MANY else "]") for group in groups[:MANY])
    return shown + (f" ... ({len(groups)} groups of {len(groups[0])})" if len(groups) > MANY else "")


def _data(rows: list[dict[str, Any]]) -> Table:
    made = table(
        "prefix", "documents", "tokens", "samples", "share", "epochs", right=("documents", "tokens", "samples", "share", "epochs")
    )
    for row in rows:
        epochs = "-" if row["epochs"] is None else f"{row['epochs']:.2f}"
        numbers = (f"{row[name]:,}" for name in ("documents", "tokens", "samples"))
        made.add_row(row["prefix"], *numbers, f"{row['share']:.1%}", epochs)
    return made


def _steps(steps: dict[str, Any]) -> str:
    most = "at most " if steps["at_most"] else ""
    plural = {name: f"{steps[name]:,} {name if steps[name] != 1 else name[:-1]}" for name in ("evaluations", "checkpoints")}
    return (
        f"{steps['steps']:,} steps of {steps['samples_per_step']:,} samples = {most}{steps['tokens_per_step']:,} tokens; "
        f"{most}{steps['tokens']:,} tokens in all; {plural['evaluations']}, {plural['checkpoints']}"
    )


def _title(out: Console, text: str) -> None:
    out.print(f"\n{text}" if text != "recipe" else text, style="bold")


def _print_text(out: Console, text: str) -> None:
    out.print(text, soft_wrap=True)


def _print(out: Console, rows: Table) -> None:
    """A table; in a pipe its lines end where their text ends."""
    if out.is_terminal:
        out.print(rows)
        return
    with out.capture() as captured:
        out.print(rows)
    for line in captured.get().splitlines():
        if line.strip():
            out.print(line.rstrip(), soft_wrap=True)
