"""References to tensors in files: what they are and where their bytes lie. Nothing here reads a tensor's bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from jumar.schema.errors import ToolError

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
        "C64": np.complex64,
    }.items()
}
"""safetensors dtype name -> numpy dtype (little endian), https://github.com/huggingface/safetensors#format"""


def check_regular(path: Path) -> None:
    """Raises ToolError for what is there and is no regular file: opening a FIFO would wait for a writer for ever."""
    if path.exists() and not path.is_file():
        raise ToolError(f"{path}: is no file", hint="put the file itself there, or a link to it")


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a C-contiguous array of `shape`."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor as it lies in a file.

    dtype:   safetensors spelling, a key of `DTYPES`
    shape:   sizes in elements
    file:    the file that holds the bytes
    offset:  byte offset in `file` of element [0, ..., 0]
    strides: in elements, one for each axis
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    strides: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.itemsize

    @property
    def contiguous(self) -> bool:
        return self.strides == contiguous_strides(self.shape) or self.numel <= 1


def dtype_of(name: str, where: str) -> np.dtype:
    """The numpy dtype of a safetensors dtype name; ToolError for one that is not known."""
    try:
        return DTYPES[name]
    except KeyError:
        raise ToolError(f"{where}: dtype {name!r} is not known", hint=f"known: {', '.join(DTYPES)}") from None
