"""The loss of a run as a picture: one SVG file that needs nothing else and can be read on light and on dark pages."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 860, 400
LEFT, RIGHT, TOP, BOTTOM = 62, 96, 46, 44
DRAWN = ("step", "loss", "eval_loss", "skipped")
"""Keys of a record that the picture is made of."""
POINTS = 600
"""Of a line: more cannot be told apart."""
LOG_FROM = 3.0
"""Ratio of the largest loss to the smallest from which on the axis is logarithmic: else the first steps leave no room."""
STYLE = """
.card{fill:#ffffff}text{font:12px system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;fill:#57606a}
.title{font-size:15px;font-weight:600;fill:#1f2328}.grid{stroke:#d8dee4;stroke-width:1}.axis{stroke:#8c959f;stroke-width:1}
.raw{fill:none;stroke:#0969da;stroke-width:1;opacity:.28}.train{fill:none;stroke:#0969da;stroke-width:2}
.eval{fill:none;stroke:#bc4c00;stroke-width:2}.dot{fill:#bc4c00}.lost{stroke:#cf222e;stroke-width:2}
text.train-name{fill:#0969da;stroke:none;font-weight:600}text.eval-name{fill:#bc4c00;font-weight:600}text.lost-name{fill:#cf222e}
@media (prefers-color-scheme:dark){.card{fill:#0d1117}text{fill:#9198a1}.title{fill:#f0f6fc}.grid{stroke:#262c36}
.axis{stroke:#656c76}.raw,.train{stroke:#4493f8}.eval{stroke:#f0883e}.dot{fill:#f0883e}.lost{stroke:#f85149}
text.train-name{fill:#4493f8}text.eval-name{fill:#f0883e}text.lost-name{fill:#f85149}}
"""

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Frame:
    """Where numbers lie on the picture. x0 to x1: steps; y0 to y1: losses; log: the losses' axis is logarithmic."""

    x0: float
    x1: float
    y0: float
    y1: float
    log: bool

    def x(self, step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - self.x0) / ((self.x1 - self.x0) or 1)

    def y(self, loss: float) -> float:
        of = math.log if self.log else float
        share = (of(min(max(loss, self.y0), self.y1)) - of(self.y0)) / ((of(self.y1) - of(self.y0)) or 1)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share


def draw(records: Sequence[dict[str, Any]], path: Path, title: str = "Loss") -> bool:
    """Draws the lines of metrics.jsonl: training loss, its running mean, evaluations, steps without a loss.

    False, and no file, where fewer than two steps have a loss.
    """
    train, evals = series(records, "loss"), series(records, "eval_loss")
    lost = [record["step"] for record in records if "loss" in record and (record["loss"] is None or record.get("skipped"))]
    if len(train) < 2:
        return False
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(picture(train, evals, lost, title), encoding="utf-8")
    os.replace(beside, path)
    return True


def series(records: Sequence[dict[str, Any]], key: str) -> Points:
    """(step, value) of the records that have a finite one."""
    return [(record["step"], float(record[key])) for record in records if isinstance(record.get(key), int | float)]


def picture(train: Points, evals: Points, lost: Sequence[int], title: str) -> str:
    """The SVG's text. The same numbers give the same bytes."""
    mean, frame = running_mean(train), _frame(train, evals)
    out = [*_axes(frame)]
    raw = "raw" if mean is not train else "train"
    out.append(_line(thinned(train), frame, raw))
    if mean is not train:
        out.append(_line(thinned(mean), frame, "train"))
    if evals:
        out.append(_line(evals, frame, "eval"))
        out += [f'<circle class="dot" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3"/>' for x, y in thinned(evals)]
    out += _ends([("train", mean[-1]), *([("eval", evals[-1])] if evals else [])], frame)
    out += _lost(lost, frame)
    said = f"{title}: training loss {train[0][1]:.4g} at step {train[0][0]:,}, {mean[-1][1]:.4g} at step {train[-1][0]:,}"
    scale = " (logarithmic)" if frame.log else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img"'
        f' aria-label="{html.escape(said)}">\n<style>{STYLE}</style>\n'
        f'<rect class="card" width="{WIDTH}" height="{HEIGHT}" rx="8"/>\n'
        f'<text class="title" x="16" y="26">{html.escape(title)}{scale}</text>\n' + "\n".join(out) + "\n</svg>\n"
    )


def running_mean(points: Points) -> Points:
    """Means over a 50th of the points around each; of few points, the points themselves."""
    half = len(points) // 100
    if half < 1:
        return points
    sums = list(accumulate((y for _, y in points), initial=0.0))
    ends = [(max(i - half, 0), min(i + half + 1, len(points))) for i in range(len(points))]
    return [(x, (sums[end] - sums[begin]) / (end - begin)) for (x, _), (begin, end) in zip(points, ends, strict=True)]


def thinned(points: Points) -> Points:
    """At most about `POINTS` points: of each stretch the lowest and the highest."""
    by = -(-2 * len(points) // POINTS)
    if len(points) <= POINTS:
        return points
    out: Points = []
    for at in range(0, len(points), by):
        part = points[at : at + by]
        out += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return out


def _frame(train: Points, evals: Points) -> Frame:
    """A few losses far above all others do not press down the rest: they are cut off at the top."""
    values = sorted(y for _, y in train)
    usual = values[min(len(values) - 1, math.ceil(0.99 * len(values)))]
    first = train[0][1] if train[0][1] < 3 * usual else 0.0
    high = max(usual, first, running_mean(train)[0][1], *(y for _, y in evals))
    low = min(values[0], min((y for _, y in evals), default=math.inf))
    log = low > 0 and high / low >= LOG_FROM
    pad = 0.04 * ((math.log(high / low) if log else high - low) or 1)
    y0, y1 = (low * math.exp(-pad), high * math.exp(pad)) if log else (low - pad, high + pad)
    return Frame(train[0][0], train[-1][0], y0, y1, log)


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from low to high."""
    rough = (high - low) / max(count, 1) or 1
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Three to nine round numbers for a logarithmic axis."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        out = [m * 10.0**power for power in powers for m in steps if low <= m * 10.0**power <= high]
        if len(out) >= 4:
            break
    return out


def _axes(frame: Frame) -> list[str]:
    out, right, floor = [], WIDTH - RIGHT, HEIGHT - BOTTOM
    for loss in log_ticks(frame.y0, frame.y1) if frame.log else ticks(frame.y0, frame.y1, 5):
        y = frame.y(loss)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{loss:g}</text>')
    out.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{floor}" y2="{floor}"/>')
    for step in ticks(frame.x0, frame.x1, 7):
        if step == int(step):
            x = frame.x(step)
            out.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 4}"/>')
            out.append(f'<text x="{x:.1f}" y="{floor + 18}" text-anchor="middle">{int(step):,}</text>')
    out.append(f'<text x="{right + 40}" y="{floor + 18}">step</text>')
    return out


def _line(points: Points, frame: Frame, kind: str) -> str:
    return f'<polyline class="{kind}" points="{" ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)}"/>'


def _ends(last: Sequence[tuple[str, tuple[float, float]]], frame: Frame) -> list[str]:
    """Names and last values beside the ends of the lines, the higher one above, not over one another."""
    out, above = [], -math.inf
    for name, (_, value) in sorted(last, key=lambda each: -each[1][1]):
        y = max(frame.y(value) + 4, above + 16)
        out.append(f'<text class="{name}-name" x="{WIDTH - RIGHT + 8}" y="{y:.1f}">{name} {value:.4g}</text>')
        above = y
    return out


def _lost(lost: Sequence[int], frame: Frame) -> list[str]:
    floor = HEIGHT - BOTTOM
    marks = sorted({f"{frame.x(step):.1f}" for step in lost if frame.x0 <= step <= frame.x1})
    out = [f'<line class="lost" x1="{x}" x2="{x}" y1="{floor - 9}" y2="{floor}"/>' for x in marks]
    if lost:
        many = f"{len(lost):,} steps" if len(lost) > 1 else "1 step"
        out.append(f'<text class="lost-name" x="{WIDTH - RIGHT}" y="26" text-anchor="end">{many} skipped or not finite</text>')
    return out
