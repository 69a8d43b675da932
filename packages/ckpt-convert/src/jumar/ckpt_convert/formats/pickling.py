"""The pickle of a checkpoint that is still to be written: tensors by dtype and shape, classes and dtypes by name.

Protocol 2, as torch.save writes it, from the few types that a checkpoint holds; nothing of torch is imported. Equal
trees give equal bytes: strings and globals are memoized by value, while `pickle` does so by identity, which depends on
who built the tree. Opcodes: Lib/pickletools.py of CPython; tensors: torch/_tensor.py, `_reduce_ex_internal`.
"""

from __future__ import annotations

import argparse
import math
import pickle
import struct
from dataclasses import dataclass

from jumar.ckpt_convert.formats.torch_names import NEW_DTYPES, STORAGE_DTYPES
from jumar.ckpt_convert.tensors import contiguous_strides, dtype_of

_STORAGES = {dtype: name for name, dtype in STORAGE_DTYPES.items()}
_DTYPES = {dtype: name for name, dtype in NEW_DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written, C-contiguous, in a storage of its own. dtype: a key of `DTYPES`; shape: in elements."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * dtype_of(self.dtype, "a tensor to be written").itemsize


@dataclass(frozen=True, slots=True)
class Global:
    """A class or constant of a module, by name: Global("torch", "bfloat16")."""

    module: str
    name: str


class Fields(tuple[tuple[str, object], ...]):
    """Attributes by name, as a hashable state of a `Made`."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Made:
    """An object of a class: made by `kind(*args)`, or, with a state, by `__new__` and then given it.

    Equal and hashable by value where its parts are, so that it can be the key of a dict.
    """

    kind: Global
    args: tuple[object, ...] = ()
    state: object = None


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor of the tree, and the keys that lead to it (list and tuple indices, attribute names of a Namespace)."""

    path: tuple[object, ...]
    spec: TensorSpec


def dump(value: object) -> tuple[bytes, list[Placed]]:
    """The pickle of `value`, and its tensors; the n-th is in the storage with key str(n).

    value: None, bool, int, float, str, list, tuple, dict, argparse.Namespace, Global, Made, TensorSpec, and nothing
    else: TypeError names what stands where. A TensorSpec that stands in two places is two tensors.
    """
    writer = _Writer()
    writer.save(value, ())
    return b"".join((pickle.PROTO, b"\x02", *writer.out, pickle.STOP)), writer.tensors


class _Writer:
    def __init__(self) -> None:
        self.out: list[bytes] = []
        self.tensors: list[Placed] = []
        self.memo: dict[str | Global, int] = {}

    def save(self, value: object, path: tuple[object, ...]) -> None:
        if value is None:
            self.out.append(pickle.NONE)
        elif isinstance(value, bool):
            self.out.append(pickle.NEWTRUE if value else pickle.NEWFALSE)
        elif type(value) is int:
            self.save_int(value)
        elif type(value) is float:
            self.out.append(pickle.BINFLOAT + struct.pack(">d", value))
        elif type(value) is str or isinstance(value, Global):
            self.save_name(value)
        elif isinstance(value, TensorSpec):
            self.save_tensor(value, path)
        elif type(value) is tuple:
            self.save_tuple(value, path)
        elif type(value) is list:
            self.out += (pickle.EMPTY_LIST, pickle.MARK)
            for index, item in enumerate(value):
                self.save(item, (*path, index))
            self.out.append(pickle.APPENDS)
        elif isinstance(value, dict):
            self.out += (pickle.EMPTY_DICT, pickle.MARK)
            for key, item in value.items():
                self.save(key, path)
                self.save(item, (*path, key))
            self.out.append(pickle.SETITEMS)
        elif isinstance(value, Made):
            self.save_made(value, path)
        elif type(value) is argparse.Namespace:
            self.save(Global("argparse", "Namespace"), path)
            self.out += (pickle.EMPTY_TUPLE, pickle.NEWOBJ)
            self.save(vars(value), path)
            self.out.append(pickle.BUILD)
        else:
            raise TypeError(f"a {type(value).__name__} cannot be written, at {'.'.join(map(str, path)) or 'the top'}")

    def save_made(self, value: Made, path: tuple[object, ...]) -> None:
        self.save(value.kind, path)
        self.save(value.args, path)
        self.out.append(pickle.REDUCE if value.state is None else pickle.NEWOBJ)
        if value.state is not None:
            self.save(dict(value.state) if isinstance(value.state, Fields) else value.state, path)
            self.out.append(pickle.BUILD)

    def save_int(self, value: int) -> None:
        if 0 <= value < 1 << 8:
            self.out.append(pickle.BININT1 + value.to_bytes(1, "little"))
        elif 0 <= value < 1 << 16:
            self.out.append(pickle.BININT2 + value.to_bytes(2, "little"))
        elif -(1 << 31) <= value < 1 << 31:
            self.out.append(pickle.BININT + value.to_bytes(4, "little", signed=True))
        else:
            nbytes = value.bit_length() // 8 + 1
            self.out.append(pickle.LONG1 + nbytes.to_bytes(1, "little") + value.to_bytes(nbytes, "little", signed=True))

    def save_name(self, value: str | Global) -> None:
        if value in self.memo:
            index = self.memo[value]
            self.out.append(pickle.BINGET + bytes([index]) if index < 256 else pickle.LONG_BINGET + struct.pack("<I", index))
            return
        if isinstance(value, Global):
            self.out.append(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
        else:
            text = value.encode("utf-8", "surrogatepass")
            self.out.append(pickle.BINUNICODE + struct.pack("<I", len(text)) + text)
        index = self.memo[value] = len(self.memo)
        self.out.append(pickle.BINPUT + bytes([index]) if index < 256 else pickle.LONG_BINPUT + struct.pack("<I", index))

    def save_tuple(self, value: tuple[object, ...], path: tuple[object, ...]) -> None:
        short = {0: pickle.EMPTY_TUPLE, 1: pickle.TUPLE1, 2: pickle.TUPLE2, 3: pickle.TUPLE3}
        if len(value) not in short:
            self.out.append(pickle.MARK)
        for index, item in enumerate(value):
            self.save(item, (*path, index))
        self.out.append(short.get(len(value), pickle.TUPLE))

    def save_tensor(self, spec: TensorSpec, path: tuple[object, ...]) -> None:
        """A call of `_rebuild_tensor_v2`; of `_v3` on untyped bytes, for a dtype that has no storage class."""
        typed = spec.dtype in _STORAGES
        kind = Global("torch", _STORAGES[spec.dtype]) if typed else Global("torch.storage", "UntypedStorage")
        self.save(Global("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3"), path)
        self.out.append(pickle.MARK)
        self.save(("storage", kind, str(len(self.tensors)), "cpu", spec.numel if typed else spec.nbytes), path)
        self.out += (pickle.BINPERSID, pickle.BININT1, b"\x00")  # storage offset
        self.save(spec.shape, path)
        self.save(contiguous_strides(spec.shape), path)
        self.out.append(pickle.NEWFALSE)  # requires_grad
        self.save(Global("collections", "OrderedDict"), path)  # hooks: none
        self.out += (pickle.EMPTY_TUPLE, pickle.REDUCE)
        if not typed:
            self.save(Global("torch", _DTYPES[spec.dtype]), path)
        self.out += (pickle.TUPLE, pickle.REDUCE)
        self.tensors.append(Placed(path, spec))
