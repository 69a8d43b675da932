"""In the report: what has changed against another run, with its significance, and the documents that flipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jumar.eval.compare import Compared, Difference
from jumar.eval.report_scores import number, spread
from jumar.schema.page import esc, folded, num, row, rows, section, table

STYLE = """
.zero { stroke: var(--soft); } .flips { padding-left: 20px; } .flips li { margin: 6px 0; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True, slots=True)
class Against:
    """name: of the other run; flips: documents whose score changed, as `compare.flips` gives them."""

    name: str
    compared: Compared
    flips: Sequence[Mapping[str, Any]]


def compared_section(against: Against, higher: Mapping[str, Mapping[str, bool]]) -> str:
    """higher: task -> metric -> whether more is better."""
    differences = against.compared.differences
    tops = {d.metric: max(_reach(other) for other in differences if other.metric == d.metric) for d in differences}
    changed = [d for d in differences if d.gained or d.lost]
    made = [_row(d, tops[d.metric], higher.get(d.task, {}).get(d.metric, True), against.flips) for d in changed]
    same = [(_named(d), number(d.second), num(d.documents)) for d in differences if d not in changed]
    note = (
        f"Each score less that of {esc(against.name)}, over the documents that both have, with the standard error of the "
        "difference as a line; p: how probable so large a difference is by chance. Blue is better, red is worse."
    )
    notes = [f"<li>{esc(text)}</li>\n" for text in against.compared.notes]
    return section(
        f"Compared with {esc(against.name)}",
        note,
        rows(made) if made else "",
        folded(f"unchanged: {num(len(same))}", table(("task", "value", "documents"), same)) if same else "",
        folded(f"notes: {num(len(notes))}", f'<ul class="flips">\n{"".join(notes)}</ul>') if notes else "",
    )


def _named(d: Difference) -> str:
    return f"{esc(d.task)} <small>{esc(d.metric if d.answer == 'none' else f'{d.metric}, {d.answer}')}</small>"


def _reach(d: Difference) -> float:
    return abs(d.change) + (d.error or 0.0)


def _row(d: Difference, top: float, higher: bool, flips: Sequence[Mapping[str, Any]]) -> str:
    said = f"{number(d.first)} → {number(d.second)} <b>{'+' if d.change >= 0 else '−'}{number(abs(d.change))}</b>"
    more = (spread(d.error), "" if d.p is None else _chance(d.p))
    drawn = _bar(f"{d.task} {d.metric}: {d.change:+.4f}", d, top, better=(d.change > 0) == higher)
    own = [f for f in flips if (f["task"], f["metric"], f["answer"]) == (d.task, d.metric, d.answer)]
    count = len(d.gained) + len(d.lost)
    shown = f"; the first {num(len(own))} are here" if len(own) < count else ""
    summary = f"better: {num(len(d.gained))}, worse: {num(len(d.lost))}, of {num(d.documents)} documents{shown}"
    below = folded(summary, f'<ol class="flips">\n{"".join(map(_flip, own))}</ol>') if own else ""
    return row(_named(d), f"{said} <small>{' '.join(filter(None, more))}</small>", drawn + below)


def _chance(p: float) -> str:
    return f"p {p:.3f}" if p >= 0.001 else "p under 0.001"


def _bar(label: str, d: Difference, top: float, *, better: bool) -> str:
    """From the middle, where nothing has changed, to the right for more."""
    half = 48 / top if top else 0.0
    start, end = 50 + half * min(d.change, 0), 50 + half * max(d.change, 0)
    colour = "fill-main" if better else "fill-bad"
    line = ""
    if d.error:
        low, high = 50 + half * (d.change - d.error), 50 + half * (d.change + d.error)
        line = f'<line class="whisker" x1="{low:.2f}%" x2="{high:.2f}%" y1="7" y2="7"/>'
    return (
        f'<svg class="bar" role="img" aria-label="{esc(label)}" width="100%" height="14"><title>{esc(label)}</title>'
        f'<rect class="track" width="100%" height="14"/>'
        f'<rect class="{colour} half" x="{start:.2f}%" width="{end - start:.2f}%" height="14"/>{line}'
        '<line class="zero" x1="50%" x2="50%" y1="0" y2="14"/></svg>'
    )


def _flip(flip: Mapping[str, Any]) -> str:
    before, after = map(esc, flip["answers"])
    right = f", right is <code>{esc(flip['target'])}</code>" if flip["target"] else ""
    return (
        f"<li>document {flip['doc_id']} <small>{esc(flip['why'])}</small><br>"
        f"<code>{before}</code> → <code>{after}</code>{right}</li>\n"
    )
