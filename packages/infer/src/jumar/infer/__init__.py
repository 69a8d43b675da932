"""Inference on any checkpoint, Hugging Face or Megatron, whatever its layout.

The names below are imported when first asked for, so that `import jumar.infer` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jumar.infer.answers import Answered, answer_file
    from jumar.infer.engine import Engine
    from jumar.infer.sampling import Sampling
    from jumar.infer.scheduler import Request

_HOME = {
    "Answered": "answers",
    "Engine": "engine",
    "Request": "scheduler",
    "Sampling": "sampling",
    "answer_file": "answers",
}
__all__ = ["Answered", "Engine", "Request", "Sampling", "answer_file"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
