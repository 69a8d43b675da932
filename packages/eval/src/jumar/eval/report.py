"""The results of a run as one page that needs nothing else: no script, no network, no fonts of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jumar.eval import results
from jumar.eval.compare import compare, flips, sample_files
from jumar.eval.journal import WHOLE, Sample, read_samples
from jumar.eval.place import write_whole
from jumar.eval.report_compare import STYLE as CHANGES
from jumar.eval.report_compare import Against, compared_section
from jumar.eval.report_errors import STYLE as ERRORS
from jumar.eval.report_errors import errors_section
from jumar.eval.report_heat import STYLE as HEAT
from jumar.eval.report_heat import heat_maps
from jumar.eval.report_scores import STYLE as SCORES
from jumar.eval.report_scores import documents_of, figures_of, group_sections, numbers_section, scores_section, top_tasks
from jumar.schema import page
from jumar.schema.page import esc, num

MOST_ERRORS = 50
"""Of each task that are shown."""


def write_report(out: Path, most: int = MOST_ERRORS, against: Path | None = None) -> tuple[Path, bool]:
    """OUT/report.html, and whether it was there as it is. against: another run, which this one is compared with.

    Raises ToolError (3) where there are no results, or the two have no task in common.
    """
    found = results.read(out)
    samples = {name: read_samples(path, WHOLE) for name, path in sample_files(out).items() if name in found["results"]}
    other = None
    if against is not None:
        compared = compare(against, out)
        name = os.path.relpath(against.resolve(), out.resolve().parent)  # the same bytes however the two are spelled
        notes = tuple(_named(note, {against: name, out: out.resolve().name}) for note in compared.notes)
        other = Against(name, replace(compared, notes=notes), flips(against, out, compared, most))
    path = out / "report.html"
    text = report_html(found, samples, most, other)
    if path.is_file() and path.read_bytes() == text.encode():
        return path, True
    write_whole(path, text)
    return path, False


def _named(note: str, names: Mapping[Path, str]) -> str:
    """A note of what is in one of the runs alone, with that run's name in the place of its path."""
    for path, name in names.items():
        for before in ("", "only in "):
            if note.startswith(f"{before}{path}: "):
                return f"{before}{name}: {note.removeprefix(f'{before}{path}: ')}"
    return note


def report_html(
    found: Mapping[str, Any], samples: Mapping[str, Sequence[Sample]], most: int = MOST_ERRORS, against: Against | None = None
) -> str:
    """The page. The same results give the same bytes; no text of them is taken for markup."""
    config = found.get("config", {})
    version = found.get("jumar_eval_version")
    body = [
        figures_of(found),
        scores_section(found),
        "" if against is None else compared_section(against, found.get("higher_is_better", {})),
        *group_sections(found),
        *(heat_maps(name, rows) for name, rows in samples.items()),
        errors_section(samples, most),
        numbers_section(found),
        page.settings(_settings(found)),
    ]
    return page.page(
        esc(found.get("model_name") or config.get("model") or "results"),
        body,
        about="scores",
        kicker=f"jumar-eval {esc(version)}" if version else "jumar-eval",
        lede=_lede(found),
        style=SCORES + CHANGES + ERRORS + HEAT,
    )


def _lede(found: Mapping[str, Any]) -> str:
    """What was asked, and how, in a sentence."""
    config, tasks = found.get("config", {}), top_tasks(found)
    count = sum(filter(None, (documents_of(found, name) for name in tasks)))
    text = f"{num(count)} documents of {len(tasks)} tasks" if len(tasks) != 1 else f"{num(count)} documents of {esc(tasks[0])}"
    if protocol := config.get("protocol"):
        text += f", asked as {esc(protocol)} asks"
    if config.get("apply_chat_template") or found.get("chat_template"):
        text += ", through the chat template"
    if (device := config.get("device", "auto")) != "auto":
        text += f", on {esc(device)}"
    cut = sum(found.get("n-truncated", {}).values())
    long = f" {num(cut)} prompts were longer than the model's context and lost their beginning." if cut else ""
    return f"{text}.{long}"


def _settings(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    more = ("max_length", "n-truncated", "jumar_eval_version", "lm_eval_version")
    shown = {**found.get("config", {}), **{key: found[key] for key in more if key in found}}
    return [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in shown.items() if value is not None]
