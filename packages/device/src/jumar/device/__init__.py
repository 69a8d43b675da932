"""CPU, CUDA and Ascend NPU behind one protocol, and one table of operations for training and inference.

The names below are imported when first asked for: `import jumar.device` costs nothing and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jumar.device.base import Device, Memory
    from jumar.device.checks import Check
    from jumar.device.opening import open_device
    from jumar.device.ops.table import Ops

_HOME = {"Check": "checks", "Device": "base", "Memory": "base", "Ops": "ops.table", "open_device": "opening"}
__all__ = ["Check", "Device", "Memory", "Ops", "open_device"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
