"""A module that answers as torch_npu does, and a Device whose tensors are on the CPU and whose operations are the NPU's."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jumar.device.cpu import Cpu
from jumar.device.testing.npu_schema import Call, define_operators, kind
from jumar.device.testing.wheels import torch_npu_wheel

if TYPE_CHECKING:
    from jumar.device.ops.table import Ops


class StandIn(types.ModuleType):
    """`npu_*` names call torch.ops.npu.*; every call is kept in `calls`."""

    def __init__(self) -> None:
        super().__init__("torch_npu")
        self.calls: dict[Call, None] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        import torch

        if not hasattr(torch.ops.npu, name):
            raise AttributeError(f"module 'torch_npu' has no attribute {name!r}")
        operator = getattr(torch.ops.npu, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            words = tuple(sorted((key, kind(value)) for key, value in kwargs.items()))
            self.calls[Call(name, tuple(map(kind, args)), words)] = None
            out = kwargs.pop("out", None)
            if out is None:
                return operator(*args, **kwargs)
            names = [a.name for a in operator.out._schema.arguments if a.is_out]
            return operator.out(*args, **kwargs, **dict(zip(names, out, strict=True)))

        return call


@cache
def stand_in(wheel: Path | None = None) -> StandIn:
    """The stand-in, with the schemas and shapes of `wheel` (the pinned release if None, fetched) and numerics on the CPU.

    One wheel a process: torch keeps what is registered. Nothing is put into sys.modules; see `npu_operations`.
    """
    from jumar.device.testing.npu_numerics import register

    module = StandIn()
    module.__dict__["_registered"] = (define_operators(torch_npu_wheel() if wheel is None else wheel), register())
    return module


@contextmanager
def npu_operations(module: Any = None) -> Iterator[Any]:
    """While it lasts, the NPU's operations call `module` (the stand-in if None) instead of torch_npu."""
    from jumar.device.ops.npu_module import torch_npu

    before = torch_npu.module
    torch_npu.module = stand_in() if module is None else module
    try:
        yield torch_npu.module
    finally:
        torch_npu.module = before


class NpuOnCpu(Cpu):
    """The CPU with the NPU's table: real NPU operation code over the stand-in. gloo, not HCCL; no device is activated."""

    name: ClassVar[str] = "npu-on-cpu"
    host: ClassVar[bool] = False

    def ops(self) -> Ops:
        """The NPU's table. From then on this process's NPU operations go to the stand-in."""
        from jumar.device.ops.npu import NPU_OPS
        from jumar.device.ops.npu_module import torch_npu

        if torch_npu.module is None:
            torch_npu.module = stand_in()
        return NPU_OPS


def npu_device() -> NpuOnCpu:
    """A Device for tests: see `NpuOnCpu`. fp32, fp16 and bf16 only, as on the NPU."""
    return NpuOnCpu()
