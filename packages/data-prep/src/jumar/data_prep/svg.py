"""Small charts as inline SVG: horizontal measures in per cent, so that a chart fits a phone and its letters keep their size.

Colours are the page's classes (`fill-main`, ...), every chart has a label for who cannot see it, every mark a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from jumar.schema.page import Number, esc, num, share

TOP, FLOOR, HEIGHT, BINS = 34, 196, 218, 60
"""Of a histogram: where its bars end and begin, its height in px, and the bars that can be told apart on a phone."""


STYLE = """
svg text { font-size: 12px; fill: var(--soft); }
svg .peak { fill: var(--ink); font-weight: 600; }
svg .grid { stroke: var(--rule); } svg .axis { stroke: var(--soft); }
svg .limit { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 4 3; }
svg .limit-name { fill: var(--bad); font-weight: 600; }
.plot { padding: 0 12px 0 48px; } .plot .unit { margin: 0; text-align: center; font-size: 12px; color: var(--soft); }
.legend + .plot { margin-top: 18px; }
@media print { .plot { break-inside: avoid; } }
"""


def ticks(top: Number) -> list[float]:
    """Three to five round numbers from 0 to at least `top`."""
    rough = max(top, 1) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    step = max(step, 1.0) if step != 2.5 else 5.0  # of countable things there is no half
    last = math.ceil(top / step)
    return [step * i for i in range(last if step * (last - 1) >= top else last + 1)]


def stacked(label: str, parts: Sequence[tuple[str, Number, str]], *, shares: bool = False, height: int = 40) -> str:
    """One bar of several parts: (name, value, class). A part that is there has at least a visible sliver. shares: no counts."""
    there = [part for part in parts if part[1] > 0]
    total = sum(value for _, value, _ in there)
    widths = [max(100 * value / total, 0.4) for _, value, _ in there]
    scale, at, out = 100 / sum(widths) if widths else 0.0, 0.0, []
    for (name, value, colour), wide in zip(there, widths, strict=True):
        title = f"{esc(name)}: {share(value, total)}" if shares else f"{esc(name)}: {value:,.0f} ({share(value, total)})"
        x, width = f"{at:.2f}%", f"{wide * scale:.2f}%"
        out.append(f'<rect class="{colour}" x="{x}" width="{width}" height="{height}"><title>{title}</title></rect>')
        at += wide * scale
    said = "; ".join(f"{name} {share(value, total) if shares else format(value, ',.0f')}" for name, value, _ in there)
    return (
        f'<svg class="bar" role="img" aria-label="{esc(f"{label}: {said}")}" width="100%" height="{height}">{"".join(out)}</svg>'
    )


def bar(label: str, value: Number, of: Number, *, inner: Number | None = None, colour: str = "main") -> str:
    """A bar of `value` where `of` is the full width; `inner` of it is darker."""
    base = f"fill-{colour}" if inner is None else f"fill-{colour}-soft"
    out = ""
    for number, paint in ((value, base), (inner or 0, f"fill-{colour}")):
        if number:
            width = max(100 * number / of, 0.3) if of else 0
            out += f'<rect class="{paint}" width="{width:.2f}%" height="10"><title>{esc(label)}</title></rect>'
    return f'<svg class="bar" role="img" aria-label="{esc(label)}" width="100%" height="10">{out}</svg>'


def histogram(
    label: str,
    edges: Sequence[Number],
    counts: Sequence[Number],
    *,
    x_title: str,
    y_title: str,
    line: tuple[Number, str] | None = None,
    percent: bool = False,
    discrete: bool = False,
) -> str:
    """Bars of equal width, one for each pair of neighbouring edges. line: a limit (value, name), bars beyond it stand out."""
    edges, counts = _fewer(edges, counts)
    levels, n = ticks(max(counts)), len(counts)
    out = []
    for level in levels:
        y = _y(level, levels[-1])
        kind = "axis" if level == 0 else "grid"
        out.append(f'<line class="{kind}" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        out.append(f'<text x="0" dx="-8" y="{y}" dy=".35em" text-anchor="end">{num(level, tick=True)}</text>')
    out.append(f'<text class="unit" x="0" dx="-8" y="14">{esc(y_title)}</text>')
    peak = max(range(n), key=lambda i: counts[i])
    limit = line[0] if line else math.inf
    for i, count in enumerate(counts):
        span = _span(edges[i], edges[i + 1], percent=percent, discrete=discrete)
        y, colour = _y(count, levels[-1]), "fill-warn" if edges[i] >= limit else "fill-main"
        where = f'x="{100 * i / n:.2f}%" y="{y}" width="{100 / n:.2f}%" height="{FLOOR - y:.1f}"'
        if count:
            out.append(f'<rect class="{colour}" {where}><title>{span}: {count:,.0f}</title></rect>')
    middle = 100 * (peak + 0.5) / n
    top = f'x="{middle:.2f}%" y="{_y(counts[peak], levels[-1])}" dy="-5" text-anchor="{_anchor(middle)}"'
    out.append(f'<text class="peak" {top}>{num(counts[peak])}</text>')
    out += _x_labels(edges, percent=percent, discrete=discrete)
    if line and edges[0] <= line[0] <= edges[-1]:
        at = _place(line[0], edges)
        out.append(f'<line class="limit" x1="{at:.2f}%" x2="{at:.2f}%" y1="4" y2="{FLOOR}"/>')
        side, dx = ("end", -6) if at > 50 else ("start", 6)
        out.append(f'<text class="limit-name" x="{at:.2f}%" dx="{dx}" y="14" text-anchor="{side}">{esc(line[1])}</text>')
    said = f"{label}: {n} bars; the highest, {_span(edges[peak], edges[peak + 1], percent=percent, discrete=discrete)}: "
    body = "".join(out)
    svg = f'<svg role="img" aria-label="{esc(said)}{counts[peak]:,.0f}" width="100%" height="{HEIGHT}">{body}</svg>'
    return f'<div class="plot">{svg}<p class="unit">{esc(x_title)}</p></div>'


def _y(value: Number, top: Number) -> float:
    return round(FLOOR - (FLOOR - TOP) * value / top, 1)


def _anchor(percent: float) -> str:
    return "start" if percent < 6 else "end" if percent > 94 else "middle"


def _fewer(edges: Sequence[Number], counts: Sequence[Number]) -> tuple[list[Number], list[Number]]:
    """At most `BINS` bars: neighbours are added up."""
    by = -(-len(counts) // BINS)
    sums = [sum(counts[at : at + by]) for at in range(0, len(counts), by)]
    return [*edges[: len(counts) : by], edges[len(counts)]], sums


def _place(value: Number, edges: Sequence[Number]) -> float:
    """Where on the axis a value lies, in per cent: bars are equally wide, whatever their edges."""
    i = next((i for i in range(len(edges) - 1) if value <= edges[i + 1]), len(edges) - 2)
    width = edges[i + 1] - edges[i]
    return 100 * (i + ((value - edges[i]) / width if width else 0)) / (len(edges) - 1)


def _span(low: Number, high: Number, *, percent: bool, discrete: bool) -> str:
    if percent:
        return f"{100 * low:.3g} to {100 * high:.3g}%"
    if discrete and high - low == 1:
        return f"{low:,.0f}"
    return f"{low:,.0f} to {high - 1 if discrete else high:,.0f}"


def _x_labels(edges: Sequence[Number], *, percent: bool, discrete: bool) -> list[str]:
    """About six numbers under the axis: at the edges, or of single values in the middle of their bars."""
    n = len(edges) - 1
    centred = discrete and all(b - a == 1 for a, b in pairwise(edges))
    step = max(-(-n // 6), 1)
    chosen = list(range(0, n if centred else n + 1, step))
    if not centred and chosen[-1] != n:
        chosen = [*(i for i in chosen if n - i >= step * 0.6), n]
    out = []
    for i in chosen:
        at = 100 * (i + 0.5 * centred) / n
        text = f"{100 * edges[i]:.3g}" if percent else num(edges[i], tick=True)
        out.append(f'<text x="{at:.2f}%" y="{FLOOR + 17}" text-anchor="middle">{text}</text>')
        if not centred:
            out.append(f'<line class="axis" x1="{at:.2f}%" x2="{at:.2f}%" y1="{FLOOR}" y2="{FLOOR + 4}"/>')
    return out
