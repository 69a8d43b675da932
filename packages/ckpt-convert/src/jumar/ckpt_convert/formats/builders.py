"""What the functions that checkpoints' pickles call would make, made here: tensors as refs, and Python's plain values.

A builder takes the reader (for the file's name and its limits) and the arguments as pickled, and checks what it uses.
Sources: torch/_utils.py and torch/_tensor.py (`_rebuild_*`); the `__reduce__` of Python's own types;
torch_npu/utils/storage.py (`_rebuild_npu_tensor`: torch-npu 2.7 and 2.8 save through it, 2.6 and 2.9 as torch does).
"""

from __future__ import annotations

import argparse
import math
import reprlib
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jumar.ckpt_convert.formats.inert import Inert, printable
from jumar.ckpt_convert.formats.torch_names import NEW_DTYPES, PACKAGES, STORAGE_DTYPES, UNTYPED_STORAGES
from jumar.ckpt_convert.tensors import DTYPES, TensorRef
from jumar.schema.errors import ToolError

Locate = Callable[[str], tuple[int, int]]
Builder = Callable[..., Any]
DAMAGED = "the file is damaged, or another program changed it: copy it again from where it was saved"
_MAX_DIMS = 64


class Reader(Protocol):
    """What a builder may use of the unpickler."""

    file: Path

    def spend(self, items: int) -> None: ...
    def keys(self, items: list[Any]) -> list[Any]: ...
    def refusal(self, what: str) -> ToolError: ...


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage record: name of its torch class, byte offset in the file, length in bytes."""

    name: str
    offset: int
    nbytes: int


def storage(file: Path, pid: object, locate: Locate) -> Storage:
    """The storage of a persistent id: ("storage", class, key, device, number of elements).

    Raises ToolError if its record is missing or too short, or if its dtype is not known.
    """
    if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage":
        raise ValueError("a persistent id that torch.save does not write")
    _, kind, key, _device, numel = pid
    if type(kind) is not Inert or type(key) is not str:
        raise ValueError("a storage that torch.save does not write")
    itemsize = 1
    if (kind.module, kind.name) not in UNTYPED_STORAGES:
        if kind.module != "torch" or kind.name not in STORAGE_DTYPES:
            raise _unknown_dtype(file, kind)
        itemsize = DTYPES[STORAGE_DTYPES[kind.name]].itemsize
    nbytes = _count(numel) * itemsize
    offset, held = locate(key)
    if nbytes > held:
        raise ToolError(
            f"{file}: storage {reprlib.repr(key)} should hold {nbytes} bytes, and its record holds {held}", hint=DAMAGED
        )
    return Storage(kind.name, offset, nbytes)


def _tensor(reader: Reader, data: Any, first: Any, size: Any, stride: Any, dtype: Any = None) -> TensorRef:
    """The tensor from element `first` of the storage `data` on; ToolError if it reaches out of the storage."""
    if type(data) is not Storage:
        raise ValueError("a tensor without a storage")
    name = STORAGE_DTYPES.get(data.name, "U8")  # of a storage without dtype, torch takes the bytes
    if dtype is not None:
        if type(dtype) is not Inert or dtype.module != "torch" or dtype.name not in NEW_DTYPES:
            raise _unknown_dtype(reader.file, dtype)
        name = NEW_DTYPES[dtype.name]
    shape, strides, start = _counts(size), _counts(stride), _count(first)
    numel, itemsize = _count(math.prod(shape)), DTYPES[name].itemsize
    end = start + 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) if numel else 0
    if end * itemsize > data.nbytes:
        raise ToolError(
            f"{reader.file}: a tensor {name} {list(shape)} with strides {list(strides)} from element {start} on "
            f"ends at byte {end * itemsize} of a storage of {data.nbytes} bytes",
            hint=DAMAGED,
        )
    return TensorRef(name, shape, reader.file, data.offset + (start * itemsize if numel else 0), strides)


def _tensor_v2(
    reader: Reader, data: Any, first: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, bits: Any = None
) -> TensorRef:
    _refuse_lazy(reader, bits)
    return _tensor(reader, data, first, size, stride)


def _tensor_v3(
    reader: Reader, data: Any, first: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, bits: Any = None
) -> TensorRef:
    _refuse_lazy(reader, bits)
    return _tensor(reader, data, first, size, stride, dtype)


def _npu_tensor(
    reader: Reader, data: Any, first: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, _npu_format: Any
) -> TensorRef:
    """The bytes are those of a CPU copy, plain row-major; the format number tells a device how to keep its own copy."""
    return _tensor(reader, data, first, size, stride)


def _parameter(_reader: Reader, data: Any, *_grad_hooks_state: Any) -> TensorRef:
    if type(data) is not TensorRef:
        raise ValueError("a parameter without a tensor")
    return data


def _tensor_with_attributes(reader: Reader, function: Any, _kind: Any, args: Any, _state: Any) -> Any:
    if type(function) is not Inert or type(args) is not tuple:
        raise ValueError("a tensor that torch.save does not write")
    key = (function.module, function.name)
    if key not in TENSORS:
        raise reader.refusal(f"a tensor from {printable(*key)}")
    return TENSORS[key](reader, *args)


def _refuse_lazy(reader: Reader, bits: Any) -> None:
    """`bits` are {"conj": bool, "neg": bool} if either is set: the values then differ from the bytes."""
    if bits:
        raise ToolError(
            f"{reader.file}: holds a tensor that is conjugated or negated lazily: {reprlib.repr(bits)}",
            hint="load it with torch, take `.resolve_conj().resolve_neg()` of it, and save again",
        )


def _unknown_dtype(file: Path, kind: Any) -> ToolError:
    name = printable(kind.module, kind.name) if type(kind) is Inert else reprlib.repr(kind)
    return ToolError(
        f"{file}: holds a tensor of {name}, which cannot be read",
        hint=f"convert that tensor with torch and save again; known: {', '.join((*STORAGE_DTYPES, *NEW_DTYPES))}",
    )


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{reprlib.repr(value)} as size, stride, offset or length")
    return value


def _counts(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or len(value) > _MAX_DIMS:
        raise ValueError(f"{reprlib.repr(value)} as sizes or strides of a tensor")
    return tuple(_count(item) for item in value)


def _encoded(reader: Reader, text: Any, codec: Any) -> bytes:
    """bytes, in protocols before 3."""
    if type(text) is not str or codec not in ("latin1", "latin-1"):
        raise reader.refusal("a call of _codecs.encode with another codec than latin1")
    reader.spend(len(text))
    return text.encode("latin-1")


def _bytearray(reader: Reader, data: Any = b"") -> bytearray:
    if type(data) is not bytes:  # of a number, Python would make as many bytes
        raise reader.refusal(f"a bytearray of {reprlib.repr(data)}")
    reader.spend(len(data))
    return bytearray(data)


def _items(reader: Reader, items: Any = (), _maxlen: Any = None) -> list[Any]:
    if type(items) not in (tuple, list):
        raise ValueError(f"items in a {type(items).__name__}")
    reader.spend(len(items))
    return list(items)


def _attribute(reader: Reader, owner: Any, name: Any) -> Inert:
    """Classes within classes are pickled as getattr(Outer, "Inner"), and by Python 3.11.0 to 3.11.3 members of enums too; here it
    joins two names."""
    if not _of_packages(owner) or type(name) is not str or not name.isidentifier() or len(owner.name) + len(name) > 200:
        raise reader.refusal("builtins.getattr")
    return Inert(owner.module, f"{owner.name}.{name}")


def _either(reader: Reader, first: Any, second: Any) -> Inert:
    """Python 3.11.0 to 3.11.3 pickle several members of a Flag as an `or` of each; here it joins their names."""
    if not (_of_packages(first) and _of_packages(second)) or len(first.name) + len(second.name) > 200:
        raise reader.refusal("_operator.or_")
    return Inert(first.module, f"{first.name}|{second.name}")


def _of_packages(value: Any) -> bool:
    return type(value) is Inert and value.args is None and value.module.split(".")[0] in PACKAGES


def _numbers(kind: type, types_allowed: tuple[type, ...], counts: range) -> Builder:
    """A builder of `kind` from a number of arguments in `counts`, all of the allowed types."""

    def build(_reader: Reader, *args: Any) -> Any:
        if len(args) not in counts or any(type(arg) not in types_allowed for arg in args):
            raise ValueError(f"{kind.__name__} of {reprlib.repr(args)}")
        return kind(*args)

    return build


TENSORS: dict[tuple[str, str], Builder] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch_npu.utils.storage", "_rebuild_npu_tensor"): _npu_tensor,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _parameter,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch.nn.parameter", "Parameter"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _tensor_with_attributes,
}
BUILDERS: dict[tuple[str, str], Builder] = TENSORS | {
    ("argparse", "Namespace"): lambda reader: argparse.Namespace(),
    ("types", "SimpleNamespace"): lambda reader: types.SimpleNamespace(),
    ("collections", "OrderedDict"): lambda reader: {},
    ("collections", "defaultdict"): lambda reader, factory=None: {},
    ("collections", "deque"): _items,
    ("torch", "Size"): lambda reader, sizes: _counts(sizes),
    ("builtins", "set"): lambda reader, items=(): set(reader.keys(_items(reader, items))),
    ("builtins", "frozenset"): lambda reader, items=(): frozenset(reader.keys(_items(reader, items))),
    ("builtins", "slice"): _numbers(slice, (int, type(None)), range(1, 4)),
    ("builtins", "range"): _numbers(range, (int,), range(1, 4)),
    ("builtins", "complex"): _numbers(complex, (int, float), range(1, 3)),
    ("builtins", "bytes"): lambda reader: b"",
    ("builtins", "bytearray"): _bytearray,
    ("builtins", "getattr"): _attribute,
    ("_operator", "or_"): _either,
    ("_codecs", "encode"): _encoded,
}
"""Global -> what makes its value. Everything else is inert or refused."""
