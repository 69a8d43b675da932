"""In the report: what was found of needles, at each depth (down) of texts of each length (across)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jumar.eval.metrics import mean
from jumar.schema.page import esc, section

STYLE = """
.heat th, .heat td { text-align: center; padding: 6px; min-width: 0; } .heat td { border: 2px solid var(--paper); }
.heat td { --seen: calc(var(--v) * 100%); background: color-mix(in srgb, var(--main-soft) var(--seen), var(--bad-soft)); }
"""


def heat_maps(name: str, samples: Sequence[Mapping[str, Any]]) -> str:
    """A table for each way in which answers are read; nothing of a task without lengths and depths."""
    out = []
    for answer in dict.fromkeys(sample["filter"] for sample in samples):
        cells: dict[tuple[float, int], list[float]] = {}
        for sample in samples:
            doc = sample["doc"]
            if sample["filter"] == answer and "depth" in doc and "length" in doc:
                cells.setdefault((doc["depth"], doc["length"]), []).append(float(sample[sample["metrics"][0]]))
        if cells:
            unit = samples[0]["doc"].get("unit", "")
            out.append(_map(esc(f"{name}: depth and length"), {key: mean(values) for key, values in cells.items()}, esc(unit)))
    return "".join(out)


def _map(title: str, cells: Mapping[tuple[float, int], float], unit: str) -> str:
    lengths = sorted({length for _, length in cells})
    head = "".join(f"<th>{length:,}</th>" for length in lengths)
    rows = [f"<tr><th>{depth:g}%</th>{''.join(_cell(cells.get((depth, n))) for n in lengths)}</tr>" for depth in _depths(cells)]
    note = f"Down: how deep the needle lies; across: how long the prompt is, in {unit}. The share of needles that were found."
    table = f'<table class="heat"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return section(title, note, f'<div class="wide">{table}</div>')


def _depths(cells: Mapping[tuple[float, int], float]) -> list[float]:
    return sorted({depth for depth, _ in cells})


def _cell(value: float | None) -> str:
    return "<td></td>" if value is None else f'<td style="--v: {value:.2f}">{value:.2f}</td>'
