"""Parallel training of language models on megatron-core, from one recipe.

The names below are imported when first asked for, so that `import jumar.train_core` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jumar.train_core.checks import check
    from jumar.train_core.features import Feature, Problem
    from jumar.train_core.job import Job, resolve
    from jumar.train_core.recipe import Recipe
    from jumar.train_core.trained import Trained, train

_HOME = {
    "Feature": "features",
    "Job": "job",
    "Problem": "features",
    "Recipe": "recipe",
    "Trained": "trained",
    "check": "checks",
    "resolve": "job",
    "train": "trained",
}
__all__ = ["Feature", "Job", "Problem", "Recipe", "Trained", "check", "resolve", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
