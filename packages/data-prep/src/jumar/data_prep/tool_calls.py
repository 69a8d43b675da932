"""Tools and the calls of them: as OpenAI's format has them, from all the ways that people write them."""

from __future__ import annotations

from typing import Any

import orjson

from jumar.data_prep.cells import Row, cell, kind, listed
from jumar.data_prep.faults import BadRecord
from jumar.data_prep.mapping import Mapping


def tool_calls(value: Any) -> tuple[dict[str, Any], ...]:
    """tool_calls, unchanged."""
    calls = listed(value)
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise BadRecord("tool call is not JSON", "tool_calls must be a list of objects")
    for call in calls:
        function(call.get("function", call))
    return tuple(calls)


def calls_in(content: str) -> tuple[dict[str, Any], ...]:
    """The text of a function_call turn, one object or a list of them, as tool_calls."""
    try:
        calls = orjson.loads(content)
    except ValueError as error:
        raise BadRecord("tool call is not JSON", str(error)) from None
    calls = calls if isinstance(calls, list) else [calls]
    if not calls:
        raise BadRecord("tool call is not JSON", "an empty list")
    functions = [function(c["function"] if isinstance(c, dict) and "function" in c else c) for c in calls]
    return tuple({"type": "function", "function": called} for called in functions)


def function(value: Any) -> dict[str, Any]:
    """The called function, if it has a name and its arguments are an object or text."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise BadRecord("tool call is not JSON", 'it must be {"name": ..., "arguments": ...}')
    arguments = value.get("arguments", {})
    if not isinstance(arguments, (dict, str)):
        raise BadRecord("tool call is not JSON", f"arguments are {kind(arguments)}")
    return value


def tools(row: Row, mapping: Mapping) -> tuple[dict[str, Any], ...]:
    """The tools, from a list or JSON text; bare functions as templates read them: {"type": "function", "function": ...}."""
    value = listed(cell(row, mapping, "tools"))
    if value in (None, "", [], {}):
        return ()
    found = value if isinstance(value, list) else [value]
    found = [listed(tool) for tool in found]
    if not all(isinstance(tool, dict) for tool in found):
        raise BadRecord("tools are not JSON", f"they are {kind(value)}")
    return tuple(t if "function" in t or "name" not in t else {"type": "function", "function": t} for t in found)
