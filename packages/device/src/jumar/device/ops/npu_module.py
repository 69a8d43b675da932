"""`torch_npu`, imported at the first call: the one place through which the NPU's operations reach Ascend's kernels."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from typing import Any


class TorchNpu:
    """Stands for the module. `module` is what answers: torch_npu itself, or a test's stand-in."""

    module: Any = None

    def __getattr__(self, name: str) -> Any:
        if self.module is None:
            self.module = import_module("torch_npu")
        return getattr(self.module, name)


torch_npu: Any = TorchNpu()


@cache
def warn_slow(reason: str) -> None:
    """Say once that an operation runs as plain torch on the NPU, and why."""
    warnings.warn(f"{reason}: computed with plain torch, slowly", stacklevel=3)
