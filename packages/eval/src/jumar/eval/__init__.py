"""Benchmark scores of a checkpoint or an endpoint, from local files.

The names below are imported when first asked for, so that `import jumar.eval` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jumar.eval.compare import Compared, check_changes
    from jumar.eval.compare import compare as compare_runs
    from jumar.eval.models import score
    from jumar.eval.requests import Opening
    from jumar.eval.results import check
    from jumar.eval.run import Settings, evaluate
    from jumar.eval.task import Task, load_task

_HOME = {
    "Compared": "compare",
    "Opening": "requests",
    "Settings": "run",
    "Task": "task",
    "check": "results",
    "check_changes": "compare",
    "compare_runs": "compare",
    "evaluate": "run",
    "load_task": "task",
    "score": "models",
}
_THERE = {"compare_runs": "compare"}
"""What is called otherwise there: a module has that name here."""
__all__ = [
    "Compared",
    "Opening",
    "Settings",
    "Task",
    "check",
    "check_changes",
    "compare_runs",
    "evaluate",
    "load_task",
    "score",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), _THERE.get(name, name))
