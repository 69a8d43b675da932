"""People's files to Megatron datasets (`jumar-data`).

The names below are imported when first asked for, so that `import jumar.data_prep` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jumar.data_prep.combine import blend, concatenate, split
    from jumar.data_prep.datasets import Dataset, find_dataset
    from jumar.data_prep.finish import Finished
    from jumar.data_prep.job import Job
    from jumar.data_prep.pipeline import run

_HOME = {
    "Dataset": "datasets",
    "Finished": "finish",
    "Job": "job",
    "blend": "combine",
    "concatenate": "combine",
    "find_dataset": "datasets",
    "run": "pipeline",
    "split": "combine",
}
__all__ = ["Dataset", "Finished", "Job", "blend", "concatenate", "find_dataset", "run", "split"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
