"""Hugging Face <-> Megatron checkpoints, as planned and proven byte copies.

The names below are imported when first asked for, so that `import jumar.ckpt_convert` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jumar.ckpt_convert.checkpoint import Checkpoint, OpenOptions, slices_for
    from jumar.ckpt_convert.convert import Plan, plan_hf, plan_megatron, run_plan
    from jumar.ckpt_convert.dist_plan import plan_dist
    from jumar.ckpt_convert.merge import open_merged
    from jumar.ckpt_convert.opening import open_checkpoint
    from jumar.ckpt_convert.verification import verify

_HOME = {
    "Checkpoint": "checkpoint",
    "OpenOptions": "checkpoint",
    "Plan": "convert",
    "open_checkpoint": "opening",
    "open_merged": "merge",
    "plan_dist": "dist_plan",
    "plan_hf": "convert",
    "plan_megatron": "convert",
    "run_plan": "convert",
    "slices_for": "checkpoint",
    "verify": "verification",
}
__all__ = [
    "Checkpoint",
    "OpenOptions",
    "Plan",
    "open_checkpoint",
    "open_merged",
    "plan_dist",
    "plan_hf",
    "plan_megatron",
    "run_plan",
    "slices_for",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
