"""Prompts from a JSONL file or standard input, each with its line number for errors."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jumar.schema.errors import ToolError


@dataclass(frozen=True, slots=True)
class Row:
    """One line: `where` is FILE:LINE, `values` its object."""

    where: str
    values: dict[str, Any]

    def fault(self, what: str, hint: str) -> ToolError:
        """An error that says where."""
        return ToolError(f"{self.where}: {what}", hint=hint)


def read_rows(source: str, example: str = '{"prompt": "..."}') -> list[Row]:
    """All lines of a file, or of standard input ("-"), with or without a byte order mark.

    example: what a line may be, for hints. Raises ToolError (3) for a line that is no JSON object.
    """
    name = "stdin" if source == "-" else source
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        lines = content.decode("utf-8-sig").split("\n")  # not splitlines: texts may hold U+2028 and its like
    except OSError as fault:
        raise ToolError(f"{source} cannot be read: {fault.strerror}", hint="give a JSONL file, or - for standard input") from None
    except UnicodeDecodeError as fault:
        raise ToolError(f"{name} is not UTF-8: {fault}", hint="is it a JSONL file?") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            values = strict_json(line)
        except RecursionError:
            raise ToolError(f"{where}: nested too deeply", hint=f"each line is an object: {example}") from None
        except ValueError as fault:
            raise ToolError(f"{where}: not JSON: {fault}", hint=f"each line is an object: {example}") from None
        if not isinstance(values, dict):
            found = f"{where}: a {type(values).__name__}, expected an object"
            raise ToolError(found, hint=f"each line is an object: {example}")
        rows.append(Row(where, values))
    if not rows:
        raise ToolError(f"{name} has no lines", hint=f"give one object a line: {example}")
    return rows


def strict_json(text: str) -> Any:
    """JSON whose numbers are finite. Raises ValueError, and RecursionError for what is nested too deeply."""
    return json.loads(text, parse_constant=_no_number, parse_float=_finite)


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _no_number(text: str) -> float:
    raise ValueError(f"{text:.20} is no number that JSON can hold")
