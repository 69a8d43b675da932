"""In the report: scores as numbers to look at first, as bars with their standard errors, and as the whole table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jumar.eval import results
from jumar.schema.page import esc, figures, folded, num, row, rows, section, table

Found = Mapping[str, Any]
STYLE = """
.track { fill: var(--faint); } .half { fill-opacity: .6; } .whisker { stroke: var(--ink); stroke-width: 1.5; }
.mean { stroke: var(--bad); stroke-width: 2; }
.rows details { margin-top: 4px; }
.rows.many { grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); margin-top: 12px; }
td .inner1 { padding-left: 16px; } td .inner2 { padding-left: 32px; }
"""
MOST_FIGURES = 6


def number(value: float) -> str:
    """A score as people compare them: four digits behind the point, fewer of large ones."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if abs(value) < 100 else num(value)


def spread(error: float | None) -> str:
    """A standard error behind its score; nothing where there is none."""
    return "" if error is None else f"± {number(error)}"


def top_tasks(found: Found) -> list[str]:
    """Tasks and groups that are in no group; groups first."""
    inside = {name for names in found.get("group_subtasks", {}).values() for name in names}
    return [name for name in results.ordered(found) if name not in inside]


def documents_of(found: Found, name: str) -> int | None:
    """How many were scored; None where the results do not say."""
    if members := found.get("group_subtasks", {}).get(name):
        counts = [documents_of(found, member) for member in members]
        return None if None in counts else sum(filter(None, counts))
    counted = found.get("n-samples", {}).get(name, {}).get("effective")
    return found["results"].get(name, {}).get("sample_len") if counted is None else int(counted)


def scores_of(found: Found, name: str) -> list[tuple[str, float, float | None]]:
    """(key, value, standard error) of each score of a task."""
    of_task = found["results"].get(name, {})
    keys = [k for k, v in of_task.items() if "," in k and "_stderr," not in k and isinstance(v, int | float)]
    errors = [of_task.get(key.replace(",", "_stderr,", 1)) for key in keys]
    return [(k, float(of_task[k]), e if isinstance(e, float) else None) for k, e in zip(keys, errors, strict=True)]


def named(key: str) -> str:
    """ "acc,none" -> "acc"; "exact_match,strict-match" -> "exact_match, strict-match"."""
    metric, _, answer = key.partition(",")
    return metric if answer == "none" else f"{metric}, {answer}"


def figures_of(found: Found) -> str:
    """The first score of each task; of a single one all."""
    tasks = top_tasks(found)
    shown = [(name, score) for name in tasks for score in scores_of(found, name)[: None if len(tasks) == 1 else 1]]
    cells = []
    for name, (key, value, error) in shown[:MOST_FIGURES]:
        about = (named(key) if len(tasks) > 1 else "", spread(error))
        what = name if len(tasks) > 1 else named(key)
        cells.append((number(value), esc(what), esc(" ".join(filter(None, about)))))
    return figures(cells)


def scores_section(found: Found) -> str:
    made = [_row(name, score, found) for name in top_tasks(found) for score in scores_of(found, name)]
    note = "With the standard error as a line. Bars reach from 0 to 1; what is measured otherwise has none."
    return section("Scores", note, rows(made)) if made else ""


def group_sections(found: Found) -> Iterator[str]:
    """Of each task with subjects: what its first score is made of."""
    members = found.get("group_subtasks", {})
    for name in top_tasks(found):
        if members.get(name) and (scores := scores_of(found, name)):
            key, mean, _ = scores[0]
            note = f"{esc(named(key))} of its parts, best first; the upright line is the mean of all, {number(mean)}."
            yield section(esc(name), note, _parts(found, members[name], key, mean))


def _parts(found: Found, names: Sequence[str], key: str, mean: float) -> str:
    members, made = found.get("group_subtasks", {}), []
    there = {name: score for name in names for score in scores_of(found, name) if score[0] == key}
    for name in sorted(there, key=lambda n: -there[n][1]):
        inner = members.get(name)
        below = folded(f"{len(inner)} subjects", _parts(found, inner, key, mean)) if inner else ""
        made.append(_row(name, there[name], found, mean=mean, below=below))
    return rows(made, "rows" if any(members.get(name) for name in there) else "rows many")


def _row(name: str, score: tuple[str, float, float | None], found: Found, *, mean: float | None = None, below: str = "") -> str:
    key, value, error = score
    about = "" if mean is not None else f" <small>{esc(named(key))}</small>"
    count = documents_of(found, name)
    more = (spread(error), "" if count is None else f"of {num(count)}")
    drawn = _bar(f"{name}: {number(value)}", value, error, mean) if 0 <= value <= 1 else ""
    return row(f"{esc(name)}{about}", f"<b>{number(value)}</b> <small>{' '.join(filter(None, more))}</small>", drawn + below)


def _bar(label: str, value: float, error: float | None, mean: float | None) -> str:
    lines = ""
    if error is not None:
        low, high = max(value - error, 0), min(value + error, 1)
        lines = f'<line class="whisker" x1="{100 * low:.2f}%" x2="{100 * high:.2f}%" y1="7" y2="7"/>'
    if mean is not None:
        lines += f'<line class="mean" x1="{100 * mean:.2f}%" x2="{100 * mean:.2f}%" y1="0" y2="14"/>'
    return (
        f'<svg class="bar" role="img" aria-label="{esc(label)}" width="100%" height="14"><title>{esc(label)}</title>'
        f'<rect class="track" width="100%" height="14"/><rect class="fill-main half" width="{100 * value:.2f}%" height="14"/>'
        f"{lines}</svg>"
    )


def numbers_section(found: Found) -> str:
    """Every score there is."""
    shown = []
    for task, answer, shots, metric, value, error in results.rows(found):
        depth = (len(task) - len(task.lstrip())) // 2
        name = esc(task.strip())
        count = documents_of(found, task.strip())
        cells = (answer, shots, metric, value, error, "" if count is None else num(count))
        shown.append((f'<div class="inner{min(depth, 2)}">{name}</div>' if depth else name, *map(esc, cells)))
    head = ("task", "answer", "shots", "metric", "value", "± stderr", "documents")
    return section("All numbers", "", folded(f"{len(shown)} scores", table(head, shown))) if shown else ""
