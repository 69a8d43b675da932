"""In the report: which instructions of a document its answer follows (IFEval)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jumar.schema.page import esc


def instructions(sample: Mapping[str, Any]) -> str:
    """A table with a row for each instruction; nothing of a sample that has none."""
    strictly, loosely = (sample.get(f"inst_level_{level}_acc") for level in ("strict", "loose"))
    names = sample["doc"].get("instruction_id_list")
    if not names or not isinstance(strictly, list) or not isinstance(loosely, list):
        return ""
    rows = []
    for name, given, strict, loose in zip(names, sample["doc"]["kwargs"], strictly, loosely, strict=True):
        mark = "right" if strict else "chosen"
        cells = (name, _arguments(given), *("yes" if followed else "no" for followed in (strict, loose)))
        rows.append(f'<tr class="{mark}">' + "".join(f"<td>{esc(cell)}</td>" for cell in cells) + "</tr>")
    head = "<tr><th>instruction</th><th></th><th>followed</th><th>loosely</th></tr>"
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>\n'


def _arguments(given: Mapping[str, Any] | None) -> str:
    said = {name: value for name, value in (given or {}).items() if value is not None}
    return "; ".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in said.items())
