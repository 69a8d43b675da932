"""jumar-eval list: the tasks, and which of them have their files in a directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jumar.eval.data import expected, find
from jumar.eval.task import PROTOCOLS, load_task, task_files
from jumar.schema.errors import ToolError


def listing(data: Path | None, protocol: str = PROTOCOLS[0]) -> list[dict[str, Any]]:
    """One object a task of a protocol; `files` says where its files are, or what is expected where."""
    out = []
    for name in sorted(task_files(protocol)):
        task = load_task(name, protocol)
        row: dict[str, Any] = {"task": name, "title": task.title, "shots": task.shots, "metrics": list(task.metrics)}
        row |= {"kind": task.kind, "source": task.source}
        if data is not None:
            try:
                units = find(task, data)
                many = f" and {len(units) - 1} more" if len(units) > 1 else ""
                row |= {"found": True, "files": f"{units[0].test[0]}{many}"}
                if task.shots and units[0].layout.shots:
                    row["worked_examples"] = str(next((path for unit in units for path in unit.shots), "")) or None
            except ToolError:
                if not data.is_dir():
                    raise
                row |= {"found": False, "files": expected(task, data)}
        out.append(row)
    return out


def lines(found: list[dict[str, Any]]) -> Iterator[str]:
    """As people read it."""
    wide = max(len(task["task"]) for task in found)
    for task in found:
        yield f"{task['task']:{wide}}  {task['title']} ({task['shots']} shots; {', '.join(task['metrics'])})"
        if "found" in task:
            yield f"{'':{wide}}  {'found' if task['found'] else 'missing: expected'} {task['files']}"
        if task.get("worked_examples", "") is None:
            yield f"{'':{wide}}  worked examples are missing: --shots 0 asks for none"
