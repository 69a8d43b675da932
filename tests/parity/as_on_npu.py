"""Saving as training on an NPU saves, without one: torch_npu's reducer, and the modules whose objects end up in `args`."""

from __future__ import annotations

import collections
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def modules(**members: dict[str, object]) -> Iterator[None]:
    """Modules that are there while a checkpoint is saved, and gone after; `a__b={"C": c}` is module a.b with a C."""
    added = {}
    for name, attributes in members.items():
        parts = name.split("__")
        for end in range(1, len(parts) + 1):
            added.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
        for key, member in attributes.items():
            setattr(added[".".join(parts)], key, member)
            member.__module__ = ".".join(parts)  # type: ignore[attr-defined]
    before = {name: sys.modules.get(name) for name in added}
    sys.modules.update(added)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@contextmanager
def npu_reducer(npu_format: int | bool = 2) -> Iterator[None]:
    """Tensors are pickled as torch_npu 2.7 does on an NPU: Tensor.__reduce_ex__ is replaced, Parameter's own stays."""

    def _rebuild_npu_tensor() -> None:
        raise AssertionError("called")

    def _reduce_ex(self: torch.Tensor, proto: int) -> tuple[Any, ...]:
        if torch._utils._get_obj_state(self):
            function, args = self._reduce_ex_internal(proto)
            return torch._tensor._rebuild_from_type_v2, (function, type(self), args, torch._utils._get_obj_state(self))
        copy = self.detach().clone()
        size, grad, hooks = tuple(copy.size()), copy.requires_grad, collections.OrderedDict()
        args = copy._typed_storage(), copy.storage_offset(), size, copy.stride(), grad, hooks, npu_format
        return _rebuild_npu_tensor, args

    _rebuild_npu_tensor.__qualname__ = "_rebuild_npu_tensor"
    original = torch.Tensor.__reduce_ex__
    with modules(torch_npu__utils__storage={"_rebuild_npu_tensor": _rebuild_npu_tensor}):
        torch.Tensor.__reduce_ex__ = _reduce_ex
        try:
            yield
        finally:
            torch.Tensor.__reduce_ex__ = original
