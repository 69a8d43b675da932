"""Imported before megatron.core: its jit_fuser is torch.compile, which is twenty seconds for one forward, and whose modules are
more to import than the rest of megatron-core."""

from __future__ import annotations

import sys
from types import ModuleType

assert "megatron.core" not in sys.modules
jit = sys.modules["megatron.core.jit"] = ModuleType("megatron.core.jit")
jit.jit_fuser = lambda function: function  # type: ignore[attr-defined]
