"""results.json in lm-eval's schema, and the table of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jumar.eval.items import Unit
from jumar.eval.journal import Journal
from jumar.eval.metrics import METRICS, pooled_stderr, scores
from jumar.eval.place import RESULTS, write_whole
from jumar.eval.task import Extract, Task, plain
from jumar.schema.errors import Exit, ToolError
from jumar.schema.manifest import NAME as MANIFEST

Scores = dict[str, Any]


def collect(units: Sequence[tuple[Unit, Journal]], facts: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The results of a run. facts: of the model; config: how it was asked."""
    results = {}
    for unit, journal in units:
        of_metric = scores(unit.task, journal.values(METRICS[m].name for m in unit.task.metrics))
        results[unit.name] = {"name": unit.name, "alias": unit.name, "sample_len": len(journal.samples), **of_metric}
    members = _members([unit for unit, _ in units])
    groups = {name: _together(name, [results[n] for n in _leaves(name, members)]) for name in members}
    cut = {unit.name: n for unit, journal in units if (n := _truncated(journal))}
    by_name = {unit.name: unit for unit, _ in units}
    return {
        "results": {**results, **groups},
        **({"groups": groups} if groups else {}),
        "group_subtasks": members | {name: [] for name in results},
        "configs": {name: plain(unit.task) for name, unit in sorted(by_name.items())},
        "versions": {name: unit.task.version for name, unit in sorted(by_name.items())},
        "n-shot": {name: unit.shots for name, unit in sorted(by_name.items())},
        "higher_is_better": {name: _higher(unit.task) for name, unit in sorted(by_name.items())},
        "n-samples": {unit.name: {"original": unit.total, "effective": len(j.samples)} for unit, j in units},
        **({"n-truncated": cut} if cut else {}),
        "config": dict(config),
        **facts,
    }


def _higher(task: Task) -> dict[str, bool]:
    return {METRICS[m].name: METRICS[m].higher for m in task.metrics}


def _truncated(journal: Journal) -> int:
    """Documents whose prompt was longer than the model's context."""
    return sum(any(s.get("truncated") for s in known) for known in journal.samples.values())


def _members(units: Sequence[Unit]) -> dict[str, list[str]]:
    """Group -> what is in it, of all tasks that have subjects."""
    out = dict[str, list[str]]()
    for task in dict.fromkeys(unit.task.task for unit in units):
        own = [unit for unit in units if unit.task.task == task]
        if own[0].task.by_subject and own[0].name != task:
            out |= _groups(own)
    return out


def _groups(units: Sequence[Unit]) -> dict[str, list[str]]:
    """Group -> what is in it: the task, and those that it names."""
    task, there = units[0].task, {unit.name for unit in units}
    out = {}
    for group, subjects in task.groups.items():
        if names := [name for s in subjects if (name := f"{task.task}_{s}") in there]:
            out[f"{task.task}_{group}"] = names
    grouped = {name for names in out.values() for name in names}
    return {task.task: [*out, *sorted(there - grouped)], **out}


def _leaves(name: str, members: Mapping[str, Sequence[str]]) -> list[str]:
    return [leaf for member in members[name] for leaf in _leaves(member, members)] if name in members else [name]


def _together(name: str, parts: Sequence[Scores]) -> Scores:
    """Means over all documents, and their standard errors."""
    sizes = [part["sample_len"] for part in parts]
    out: Scores = {"name": name, "alias": name, "sample_len": sum(sizes)}
    for key in (k for k in parts[0] if "," in k and "_stderr," not in k):
        error_key = key.replace(",", "_stderr,")
        known = not any(isinstance(part[key], str) for part in parts)
        out[key] = sum(p[key] * size for p, size in zip(parts, sizes, strict=True)) / sum(sizes) if known else "N/A"
        errors = [part[error_key] for part in parts]
        error = None if "N/A" in errors else pooled_stderr(errors, sizes)
        out[error_key] = "N/A" if error is None else error
    return out


def write(results: Mapping[str, Any], out: Path) -> None:
    """Beside its place, then renamed."""
    write_whole(out / RESULTS, json.dumps(results, indent=2, ensure_ascii=False, default=str) + "\n")


def read(out: Path) -> dict[str, Any]:
    """The results of a directory, ours or lm-eval's (its newest). Raises ToolError (3) where there are none."""
    found = [out] if out.is_file() else [out / RESULTS] if (out / RESULTS).is_file() else sorted(out.glob("**/results_*.json"))
    if not found:
        stopped = (out / MANIFEST).is_file()
        hint = "jumar-eval run ... --resume ends it" if stopped else "give the directory of -o"
        raise ToolError(f"{out} holds no results" + (": the run was stopped" if stopped else ""), hint=hint)
    try:
        loaded = json.loads(found[-1].read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise ToolError(f"{found[-1]} cannot be read: {fault}", hint="run it again") from None
    if not isinstance(loaded, dict) or not isinstance(loaded.get("results"), dict):
        raise ToolError(f"{found[-1]} is no file of results", hint="give the directory of -o")
    return loaded


def rows(results: Mapping[str, Any]) -> list[tuple[str, str, str, str, str, str]]:
    """(task, answer, shots, metric, value, standard error) of each score; subjects behind their groups."""
    out = []
    for name in ordered(results):
        of_task = results["results"][name]
        shots = results["n-shot"].get(name, "")
        depth = _depth(name, results["group_subtasks"])
        for key, value in of_task.items():
            metric, comma, answer = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = of_task.get(f"{metric}_stderr,{answer}")
            text = f"{error:.4f}" if isinstance(error, float) else ""
            shown = value if isinstance(value, str) else f"{value:.4f}"
            out.append(("  " * depth + name, answer, str(shots), metric, shown, text))
    return out


def ordered(results: Mapping[str, Any]) -> list[str]:
    """Names of tasks and groups; groups first, what is in them behind each."""
    members = results.get("group_subtasks", {})
    inside = {name for names in members.values() for name in names}
    out: list[str] = []

    def visit(name: str) -> None:
        if name in results["results"] and name not in out:
            out.append(name)
        for member in members.get(name, ()):
            visit(member)

    for name in results["results"]:
        if name not in inside and members.get(name):
            visit(name)
    for name in results["results"]:
        if name not in inside:
            visit(name)
    return out


def _depth(name: str, members: Mapping[str, Sequence[str]]) -> int:
    return next((1 + _depth(group, members) for group, names in members.items() if name in names), 0)


def check_names(units: Sequence[Unit], wanted: Sequence[str]) -> None:
    """Whether there will be such scores, before they are computed. Raises ToolError (2) as `check`."""
    keys = {
        unit.name: [
            f"{METRICS[m].name},{how.name}" for how in unit.task.answers or (Extract(name="none"),) for m in unit.task.metrics
        ]
        for unit in units
    }
    members = _members(units)
    keys |= {name: keys[_leaves(name, members)[0]] for name in members}
    for each in wanted:
        score_keys(each, keys)


def check(results: Mapping[str, Any], wanted: str) -> None:
    """`mmlu.acc=0.4`. Raises ToolError: 5 for a score below, 2 for one that is not there."""
    keys = {name: [k for k in of_task if "," in k and "_stderr," not in k] for name, of_task in results["results"].items()}
    task, found, bound = score_keys(wanted, keys)
    for key in found:
        value = results["results"][task][key]
        if isinstance(value, str):
            raise ToolError(
                f"{task}.{key} is {value}, and {bound:g} was asked for",
                hint="its samples say why it is no number",
                code=Exit.CHECK_FAILED,
            )
        higher = results["higher_is_better"].get(task, {}).get(key.partition(",")[0], True)
        if not (value >= bound if higher else value <= bound):  # NaN is neither
            side = "below" if higher else "above"
            hint = "with -o OUT, jumar-eval report OUT shows what was answered wrongly; --fail-under sets the bound"
            raise ToolError(f"{task}.{key} is {value:.4f}, {side} {bound:g}", hint=hint, code=Exit.CHECK_FAILED)


def score_keys(wanted: str, keys: Mapping[str, Sequence[str]]) -> tuple[str, list[str], float]:
    """(task, keys of its scores that are meant, the bound). keys: of each task, "acc,none". Raises ToolError (2)."""
    name, equals, least = wanted.partition("=")
    task, _, metric = name.rpartition(".")
    try:
        bound = float(least)
    except ValueError:
        equals = ""
    if not equals or not task or bound != bound:
        raise ToolError(f"--fail-under {wanted}: expected TASK.METRIC=NUMBER", hint="mmlu.acc=0.4", code=Exit.USAGE)
    found = [key for key in keys.get(task, ()) if metric in (key, key.partition(",")[0])]
    if not found:
        known = ", ".join(keys.get(task, ())) or f"tasks: {', '.join(keys)}"
        raise ToolError(f"--fail-under {wanted}: there is no such score", hint=f"there are {known}", code=Exit.USAGE)
    return task, found, bound
