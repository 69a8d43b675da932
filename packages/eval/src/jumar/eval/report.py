"""The results of a run as one page that needs nothing else: no script, no network, no fonts of its own."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jumar.eval import results
from jumar.eval.compare import sample_files
from jumar.eval.journal import WHOLE, Sample, read_samples
from jumar.eval.report_checks import instructions
from jumar.eval.report_heat import heat_maps
from jumar.eval.report_style import POLICY, STYLE

MOST_ERRORS = 50
"""Of each task that are shown."""
MOST_CHARS = 4000
"""Of a prompt, its end; of an answer, its beginning."""
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff0-\uffff]")


def write_report(out: Path, most: int = MOST_ERRORS) -> Path:
    """OUT/report.html. Raises ToolError (3) where there are no results."""
    found = results.read(out)
    samples = {name: read_samples(path, WHOLE) for name, path in sample_files(out).items() if name in found["results"]}
    path = out / "report.html"
    path.write_text(report_html(found, samples, most), encoding="utf-8")
    return path


def report_html(found: Mapping[str, Any], samples: Mapping[str, Sequence[Sample]], most: int = MOST_ERRORS) -> str:
    """The page. The same results give the same bytes; no text of them is taken for markup."""
    title = esc(found.get("model_name") or found.get("config", {}).get("model") or "results")
    groups = [name for name in found.get("group_subtasks", {}) if found["group_subtasks"][name]]
    body = [_scores(found), *(_bars(found, name) for name in groups if name in found["results"])]
    body += [heat_maps(name, rows, esc) for name, rows in samples.items()]
    body += [_errors(name, rows, most) for name, rows in samples.items()]
    body.append(_settings(found))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}: scores</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<header>\n<p class="kicker">jumar-eval</p>\n<h1>{title}</h1>\n</header>\n{"".join(body)}</main>\n</body>\n</html>\n'
    )


def esc(text: object) -> str:
    """Any text as inert HTML; what cannot be seen is spelled out."""
    return html.escape(UNSEEN.sub(lambda m: f"\\u{ord(m[0]):04x}", str(text)))


def _section(title: str, note: str, body: str) -> str:
    head = f"<h2>{esc(title)}</h2>\n" + (f'<p class="note">{note}</p>\n' if note else "")
    return f"<section>\n{head}{body}</section>\n"


def _scores(found: Mapping[str, Any]) -> str:
    head = "<tr><th>task</th><th>answer</th><th>shots</th><th>metric</th><th>value</th><th>± stderr</th><th>documents</th></tr>"
    rows = []
    for task, answer, shots, metric, value, error in results.rows(found):
        count = found["results"][task.strip()].get("sample_len", "")
        depth = (len(task) - len(task.lstrip())) // 2
        indent = f' class="inner{min(depth, 2)}"' if depth else ""
        cells = (answer, shots, metric, value, error, count)
        rows.append(f"<tr{indent}><td>{esc(task.strip())}</td>" + "".join(f"<td>{esc(c)}</td>" for c in cells) + "</tr>")
    cut = found.get("n-truncated", {})
    note = "".join(
        f"{esc(name)}: {count} prompts were longer than the model's context and lost their beginning. "
        for name, count in cut.items()
    )
    return _section(
        "Scores", note, f'<div class="wide"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>\n'
    )


def _bars(found: Mapping[str, Any], group: str) -> str:
    """A bar for each subject, of the first metric, with its standard error as a line, and the group's mean across all."""
    of_group = found["results"][group]
    key = next((k for k in of_group if "," in k and "_stderr" not in k), None)
    leaves = [name for name in found["group_subtasks"][group] if key in found["results"].get(name, {})]
    if key is None or not leaves or not all(0 <= found["results"][name][key] <= 1 for name in leaves):
        return ""
    rows = []
    for name in sorted(leaves, key=lambda n: -found["results"][n][key]):
        value, error = found["results"][name][key], found["results"][name].get(key.replace(",", "_stderr,"))
        rows.append(
            f'<li><span title="{esc(name)}">{esc(name)}</span>{_bar(value, error, of_group[key])}<b>{value:.3f}</b></li>\n'
        )
    note = f"{esc(key.partition(',')[0])} by subject, with its standard error; the upright line is the mean, {of_group[key]:.4f}."
    return _section(group, note, f'<ol class="bars">\n{"".join(rows)}</ol>\n')


def _bar(value: float, error: Any, mean: float) -> str:
    line = ""
    if isinstance(error, float):
        low, high = max(value - error, 0), min(value + error, 1)
        line = f'<line class="error" x1="{100 * low:.2f}%" x2="{100 * high:.2f}%" y1="9" y2="9"/>'
    return (
        f'<svg height="18" role="img" aria-label="{value:.3f}"><rect class="rest" width="100%" height="18"/>'
        f'<rect class="value" width="{100 * value:.2f}%" height="18"/>{line}'
        f'<line class="mean" x1="{100 * mean:.2f}%" x2="{100 * mean:.2f}%" y1="0" y2="18"/></svg>'
    )


def _errors(name: str, samples: Sequence[Sample], most: int) -> str:
    wrong = [s for s in samples if (metric := _judged(s)) is not None and not s[metric]]
    judged = [s for s in samples if _judged(s) is not None]
    if not judged:
        return ""
    shown = "".join(_error(sample) for sample in wrong[:most])
    note = f"{len(wrong)} of {len(judged)} answers are wrong" + (f"; the first {most} are here." if len(wrong) > most else ".")
    return _section(f"{name}: errors", note, shown)


def _judged(sample: Sample) -> str | None:
    """The metric that says right or wrong."""
    return next((m for m in sample["metrics"] if sample.get(m) in (0, 1)), None)


def _error(sample: Sample) -> str:
    arguments = [list(a.values()) for a in sample["arguments"].values()]
    prompt = str(arguments[0][0])
    cut = f"<i>{len(prompt) - MOST_CHARS:,} characters before</i>\n" if len(prompt) > MOST_CHARS else ""
    way = "" if sample["filter"] == "none" else f" · {esc(sample['filter'])}"
    answer = _choices(sample, arguments) if isinstance(sample["filtered_resps"][0], list) else _text(sample)
    return (
        f"<details><summary>document {sample['doc_id']}{way}</summary>\n"
        f'<pre dir="auto">{cut}{esc(prompt[-MOST_CHARS:])}</pre>\n{answer}</details>\n'
    )


def _choices(sample: Sample, arguments: Sequence[Sequence[Any]]) -> str:
    scores = [float(value) for value, _ in sample["filtered_resps"]]
    same = len({a[1] for a in arguments}) == 1
    rows = []
    for i, (score, argument) in enumerate(zip(scores, arguments, strict=True)):
        marks = ("right " if str(i) == sample["target"] else "") + ("chosen" if score == max(scores) else "")
        text = str(argument[0])[-200:] if same else argument[1]
        rows.append(f'<tr class="{marks}"><td>{esc(text)}</td><td>{score:.3f}</td><td>{marks}</td></tr>')
    head = "<tr><th>choice</th><th>log-likelihood</th><th></th></tr>"
    return f'<table class="choices"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>\n'


def _text(sample: Sample) -> str:
    whole, read = str(sample["resps"][0][0]), sample["filtered_resps"][0]
    said = "" if read == whole else f"<p>read as <code>{esc(read)}</code></p>"
    expected = instructions(sample, esc) or f'<p>expected</p><pre dir="auto">{esc(sample["target"][:MOST_CHARS])}</pre>\n'
    return f'<p>answer</p><pre dir="auto" class="answer">{esc(whole[:MOST_CHARS])}</pre>{said}{expected}'


def _settings(found: Mapping[str, Any]) -> str:
    shown = {
        **found.get("config", {}),
        **{k: found[k] for k in ("max_length", "jumar_eval_version", "lm_eval_version") if k in found},
    }
    rows = "".join(
        f'<tr><th scope="row">{esc(key)}</th><td>{esc(value if isinstance(value, str) else json.dumps(value))}</td></tr>\n'
        for key, value in shown.items()
        if value is not None
    )
    return _section("Settings", "", f'<table class="settings"><tbody>\n{rows}</tbody></table>\n')
