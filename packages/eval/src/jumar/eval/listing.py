"""jumar-eval list: the tasks, and which of them have their files in a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jumar.eval.data import expected, find
from jumar.eval.task import load_task, task_files
from jumar.schema.errors import ToolError


def listing(data: Path | None) -> list[dict[str, Any]]:
    """One object a task; `files` says where its files are, or what is expected where."""
    out = []
    for name in sorted(task_files()):
        task = load_task(name)
        row: dict[str, Any] = {"task": name, "title": task.title, "shots": task.shots, "metrics": list(task.metrics)}
        row |= {"kind": task.kind, "source": task.source}
        if data is not None:
            try:
                units = find(task, data)
                row |= {"found": True, "files": f"{len(units)} subjects, {units[0].test[0].parent}" if task.by_subject else str(units[0].test[0])}
            except ToolError as fault:
                if not data.is_dir():
                    raise
                row |= {"found": False, "files": f"missing: {expected(task, data)}"}
        out.append(row)
    return out
