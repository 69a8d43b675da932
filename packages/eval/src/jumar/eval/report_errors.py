"""In the report: what was answered wrongly, document by document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jumar.eval.journal import Sample
from jumar.eval.report_checks import instructions
from jumar.schema.page import esc, esc_lines, folded, num, section

STYLE = """
.label { margin: 8px 0 2px; font-size: 13px; color: var(--soft); } .label + .text { margin-top: 0; }
.sample .text + details, .sample details + .text, .sample .text + .wide { margin-top: 8px; }
.wrong { border-left-color: var(--bad); } .expected { border-left-color: var(--main); }
tr.right td { color: var(--main); font-weight: 600; } tr.chosen td { color: var(--bad); }
.errors > summary { font-size: 16px; }
"""
MOST_CHARS = 4000
"""Of a prompt, its end; of an answer, its beginning."""
FOLDED = 600
"""Characters before a question (worked examples) from which on they are folded away."""


def errors_section(samples: Mapping[str, Sequence[Sample]], most: int) -> str:
    """A fold for each task in which something is wrong, open where there is but one."""
    judged = {name: [s for s in rows if _judged(s) is not None] for name, rows in samples.items()}
    wrong = {name: [s for s in rows if not s[str(_judged(s))]] for name, rows in judged.items()}
    there = {name: rows for name, rows in wrong.items() if rows}
    total = sum(map(len, judged.values()))
    if not total:
        return ""
    note = f"{num(sum(map(len, wrong.values())))} of {num(total)} answers are wrong."
    made = [_task(name, rows, len(judged[name]), most, opened=len(there) == 1) for name, rows in there.items()]
    return section("Errors", note, *made)


def _task(name: str, wrong: Sequence[Sample], count: int, most: int, *, opened: bool) -> str:
    by_document: dict[int, list[Sample]] = {}
    for sample in wrong:
        by_document.setdefault(sample["doc_id"], []).append(sample)
    few = f"; the first {num(most)} documents are here" if len(by_document) > most else ""
    summary = f"{esc(name)} <small>{num(len(wrong))} of {num(count)} answers are wrong{few}</small>"
    return folded(summary, *map(_error, list(by_document.values())[:most]), opened=opened, kind="errors")


def _judged(sample: Sample) -> str | None:
    """The metric that says right or wrong."""
    return next((m for m in sample["metrics"] if sample.get(m) in (0, 1)), None)


def _error(readings: Sequence[Sample]) -> str:
    """One document, with all readings of its answer that are wrong."""
    sample = readings[0]
    arguments = [list(a.values()) for a in sample["arguments"].values()]
    scored = isinstance(sample["filtered_resps"][0], list)
    answer = _choices(sample, arguments) if scored else _text(readings)
    ways = ", ".join(s["filter"] for s in readings if s["filter"] != "none")
    way = f" <small>{esc(ways)}</small>" if ways else ""
    return f'<div class="sample">\n<h3>document {sample["doc_id"]}{way}</h3>\n{_prompt(str(arguments[0][0]))}{answer}</div>\n'


def _prompt(prompt: str) -> str:
    """The question; what stands before it, if that is long, folded away."""
    before, gap, question = prompt.rpartition("\n\n")
    if len(before) < FOLDED or not question.strip():
        before, gap, question = "", "", prompt
    if len(question) > MOST_CHARS:
        before, question = before + gap + question[:-MOST_CHARS], question[-MOST_CHARS:]
    shown = f'<div class="text" dir="auto">{esc_lines(question)}</div>\n'
    if not before:
        return shown
    kept = f"<em>{num(len(before) - MOST_CHARS)} characters before</em>\n" if len(before) > MOST_CHARS else ""
    text = f'<div class="text" dir="auto">{kept}{esc_lines(before[-MOST_CHARS:])}</div>'
    return folded(f"{num(len(before))} characters before", text) + shown


def _choices(sample: Sample, arguments: Sequence[Sequence[Any]]) -> str:
    scores = [float(value) for value, _ in sample["filtered_resps"]]
    same = len({a[1] for a in arguments}) == 1
    rows = []
    for i, (score, argument) in enumerate(zip(scores, arguments, strict=True)):
        marks = ("right " if str(i) == sample["target"] else "") + ("chosen" if score == max(scores) else "")
        text = str(argument[0])[-200:] if same else argument[1]
        rows.append(f'<tr class="{marks}"><td>{esc_lines(text)}</td><td>{score:.3f}</td><td>{marks}</td></tr>\n')
    head = "<tr><th>choice</th><th>log-likelihood</th><th></th></tr>"
    return f'<div class="wide"><table><thead>{head}</thead><tbody>\n{"".join(rows)}</tbody></table></div>\n'


def _text(readings: Sequence[Sample]) -> str:
    sample, whole = readings[0], str(readings[0]["resps"][0][0])
    read = dict.fromkeys(str(each["filtered_resps"][0]) for each in readings)
    said = "".join(f'<p class="label">read as <code>{esc(text)}</code></p>\n' for text in read if text != whole)
    answer = f'<p class="label">answer</p><div class="text wrong" dir="auto">{esc_lines(whole[:MOST_CHARS])}</div>\n{said}'
    if found := instructions(sample):
        return answer + found
    target = esc_lines(str(sample["target"])[:MOST_CHARS])
    expected = f'<p class="label">expected</p><div class="text expected" dir="auto">{target}</div>\n'
    return f'<div class="pair">\n<div>{answer}</div>\n<div>{expected}</div>\n</div>\n'
