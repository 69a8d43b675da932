"""The header of a GGUF file: its metadata and where its tensors lie. No tensor's bytes are read.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian)
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, overload

import numpy as np

from jumar.schema.errors import Exit, ToolError

_SCALARS: dict[int, str] = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32
_MAX_DIMS = 4

T = TypeVar("T")


def gguf_package() -> ModuleType:
    """The `gguf` package, which knows the quantised types; ToolError (exit 4) where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise ToolError(
            "reading a GGUF file needs the gguf package, which is not installed",
            hint="pip install 'jumar-ckpt-convert[gguf]'",
            code=Exit.ENVIRONMENT,
        ) from None
    return gguf


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor as it lies in a GGUF file.

    type:   ggml's name of the element type: "F32", "Q4_1", ...
    shape:  sizes in elements, outermost first (GGUF stores them innermost first)
    offset: byte offset in the file
    nbytes: bytes in the file; a row (the last axis) is a whole number of quantised blocks
    """

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Fields:
    """The metadata of a GGUF file; what is taken is understood, what is left is refused or reported."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self._left = dict(values)

    def __contains__(self, key: str) -> bool:
        return key in self._left

    @overload
    def take(self, key: str, kind: type[T]) -> T | None: ...

    @overload
    def take(self, key: str, kind: type[T], default: T) -> T: ...

    def take(self, key: str, kind: type[T], default: T | None = None) -> T | None:
        """The value of `key`, or `default` where it is absent; ToolError where it is of another type."""
        if key not in self._left:
            return default
        value = self._left.pop(key)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ToolError(
                f"{self.path}: field {key} is {_short(value)}, expected one {kind.__name__}",
                hint="the file is damaged, or its layers differ from each other in a way that is not supported",
            )
        return value

    def need(self, key: str, kind: type[T]) -> T:
        """The value of `key`; ToolError where it is absent or of another type."""
        value = self.take(key, kind)
        if value is None:
            raise ToolError(
                f"{self.path}: field {key} is missing", hint="convert the model to GGUF again with a current llama.cpp"
            )
        return value

    def need_list(self, key: str, kind: type[T]) -> list[T]:
        """The list `key`; ToolError where it is absent or holds anything but `kind`."""
        values: list[T] = self.need(key, list)
        if not all(type(value) is kind for value in values):
            raise ToolError(f"{self.path}: field {key} is not a list of {kind.__name__}", hint="get the file again")
        return values

    def take_prefix(self, *prefixes: str) -> list[str]:
        """Take every field that starts so, and say which they were."""
        taken = [key for key in self._left if key.startswith(prefixes)]
        for key in taken:
            del self._left[key]
        return taken

    def refuse_rest(self) -> None:
        """ToolError where a field is left that nothing has taken: it may change what the model computes."""
        if not self._left:
            return
        found = ", ".join(f"{key} = {_short(value)}" for key, value in self._left.items())
        hint = "start from the Hugging Face checkpoint, or convert to GGUF without these fields"
        if "split.count" in self._left:
            hint = "merge the parts first: llama-gguf-split --merge FIRST_PART OUT.gguf"
        raise ToolError(f"{self.path}: fields that are not supported: {found}", hint=hint)


def read_header(path: Path) -> tuple[Fields, dict[str, GgufTensor]]:
    """The metadata and the tensors of a GGUF file, in the file's order.

    Raises ToolError (exit 3) for a file that is not GGUF, is cut short, or whose tensors do not lie one after the
    other within it, as llama.cpp also demands.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if start[:4] == b"GGUF" and len(start) < 8:
                raise ToolError(f"{path}: cut short: {len(start)} bytes", hint="get the file again")
            if start[:4] != b"GGUF":
                found = repr(start[:4]) if start else "an empty file"
                raise ToolError(
                    f"{path}: not a GGUF file: it starts with {found}, expected b'GGUF'",
                    hint="give the path of a .gguf file",
                )
            _check_version(path, start[4:8])
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(_Cursor(path, data, 8))
    except OSError as error:
        raise ToolError(f"{path}: cannot be read: {error.strerror}", hint="give the path of a .gguf file") from None


def _check_version(path: Path, raw: bytes) -> None:
    version = int.from_bytes(raw, "little")
    if version in (2, 3):
        return
    if int.from_bytes(raw, "big") in (2, 3):
        raise ToolError(f"{path}: a big-endian GGUF, expected little endian", hint="gguf-convert-endian FILE little")
    raise ToolError(
        f"{path}: GGUF version {version}, expected 2 or 3",
        hint="convert the model to GGUF again with a current llama.cpp",
    )


class _Cursor:
    """Reads a GGUF header from the front; every read is checked against the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap, pos: int) -> None:
        self.path, self.data, self.pos = path, data, pos

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.pos:
            raise ToolError(
                f"{self.path}: cut short: the header needs byte {self.pos + count}, the file has {len(self.data)}",
                hint="get the file again",
            )
        self.pos += count
        return self.data[self.pos - count : self.pos]

    def u32(self) -> int:
        return int(struct.unpack("<I", self.take(4))[0])

    def u64(self) -> int:
        return int(struct.unpack("<Q", self.take(8))[0])

    def string(self) -> str:
        at = self.pos
        try:
            return self.take(self.u64()).decode()
        except UnicodeDecodeError:
            raise ToolError(f"{self.path}: the string at byte {at} is not UTF-8", hint="get the file again") from None

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item, count = self.u32(), self.u64()
            if item == _STRING:
                return [self.string() for _ in range(count)]
            return self.scalars(item, count).tolist()
        return self.scalars(kind, 1).tolist()[0]

    def scalars(self, kind: int, count: int) -> np.ndarray:
        if kind not in _SCALARS:
            raise ToolError(
                f"{self.path}: a field of type {kind} before byte {self.pos}, expected one of {sorted(_SCALARS)}",
                hint="the file is damaged, or newer than this program",
            )
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.take(dtype.itemsize * count), dtype)


def _parse(cursor: _Cursor) -> tuple[Fields, dict[str, GgufTensor]]:
    path = cursor.path
    num_tensors, num_fields = cursor.u64(), cursor.u64()
    values: dict[str, Any] = {}
    for _ in range(num_fields):
        key = cursor.string()
        if key in values:
            raise ToolError(f"{path}: field {key} stands there twice", hint="the file is damaged: get it again")
        values[key] = cursor.value(cursor.u32())
    infos = [_tensor_info(cursor) for _ in range(num_tensors)]

    fields = Fields(path, values)
    alignment = fields.take("general.alignment", int, _DEFAULT_ALIGNMENT)
    if alignment <= 0 or alignment & (alignment - 1):
        raise ToolError(f"{path}: general.alignment is {alignment}, expected a power of two", hint="get the file again")
    return fields, _place(path, infos, _align(cursor.pos, alignment), alignment, len(cursor.data))


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """(name, shape outermost first, type number, offset in the data section)"""
    name, num_dims = cursor.string(), cursor.u32()
    if num_dims > _MAX_DIMS:
        raise ToolError(
            f"{cursor.path}: tensor {name} has {num_dims} axes, expected at most {_MAX_DIMS}", hint="get the file again"
        )
    dims = [cursor.u64() for _ in range(num_dims)]
    return name, tuple(reversed(dims)), cursor.u32(), cursor.u64()


def _place(
    path: Path, infos: list[tuple[str, tuple[int, ...], int, int]], start: int, alignment: int, size: int
) -> dict[str, GgufTensor]:
    """Tensors with their absolute offsets, each checked against the type, its neighbour and the end of the file."""
    constants = gguf_package().constants
    tensors: dict[str, GgufTensor] = {}
    expected = 0
    for name, shape, number, offset in infos:
        if name in tensors:
            raise ToolError(f"{path}: tensor {name} stands there twice", hint="the file is damaged: get it again")
        try:
            kind = constants.GGMLQuantizationType(number)
        except ValueError:
            raise ToolError(
                f"{path}: tensor {name} is of type {number}, which this version of the gguf package does not know",
                hint="pip install --upgrade gguf",
            ) from None
        block, block_bytes = constants.GGML_QUANT_SIZES[kind]
        if not shape or shape[-1] % block:
            raise ToolError(
                f"{path}: tensor {name} of type {kind.name} has the shape {list(shape)}, "
                f"expected rows of a multiple of {block} elements",
                hint="the file is damaged: get it again",
            )
        nbytes = math.prod(shape) // block * block_bytes
        if offset != expected:
            raise ToolError(
                f"{path}: tensor {name} starts at byte {offset} of the data, expected {expected}",
                hint="the file is damaged: get it again",
            )
        if start + offset + nbytes > size:
            raise ToolError(
                f"{path}: cut short: tensor {name} ends at byte {start + offset + nbytes}, the file has {size}",
                hint="get the file again",
            )
        tensors[name] = GgufTensor(name, kind.name, shape, start + offset, nbytes)
        expected = _align(offset + nbytes, alignment)
    return tensors


def _align(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
