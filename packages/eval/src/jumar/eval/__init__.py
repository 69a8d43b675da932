"""Benchmark scores of a checkpoint or an endpoint, from local files.

The names below are imported when first asked for, so that `import jumar.eval` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jumar.eval.run import Settings, evaluate
    from jumar.eval.task import Task, load_task

_HOME = {"Settings": "run", "evaluate": "run", "Task": "task", "load_task": "task"}
__all__ = ["Settings", "Task", "evaluate", "load_task"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
