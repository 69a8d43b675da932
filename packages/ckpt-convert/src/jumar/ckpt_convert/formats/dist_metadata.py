"""`.metadata` of a torch.distributed.checkpoint (DCP) directory: read with the restricted unpickler, and written.

torch itself reads this file by `pickle.load`, which runs what it names. Here its classes are plain fields.
Source: torch/distributed/checkpoint/{metadata,filesystem,planner}.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jumar.ckpt_convert.formats.builders import DAMAGED
from jumar.ckpt_convert.formats.inert import Inert, check_tree
from jumar.ckpt_convert.formats.pickling import Fields, Global, Made, dump
from jumar.ckpt_convert.formats.torch_names import TORCH_DTYPES
from jumar.ckpt_convert.formats.unpickle import Unpickler, guarded
from jumar.ckpt_convert.tensors import check_regular
from jumar.schema.errors import ToolError

NAME = ".metadata"
DCP = "torch.distributed.checkpoint"
META, FILES, PLANNER = f"{DCP}.metadata", f"{DCP}.filesystem", f"{DCP}.planner"
_OBJECTS = {
    META: "Metadata TensorStorageMetadata BytesStorageMetadata ChunkStorageMetadata TensorProperties MetadataIndex StorageMeta",
    FILES: "_StorageInfo _StoragePrefix",
    PLANNER: "SavePlan WriteItem TensorWriteData",
}
_CALLS = {META: "_MEM_FORMAT_ENCODING", PLANNER: "WriteItemType", "torch.serialization": "_get_layout"}
OBJECTS = frozenset((module, name) for module, names in _OBJECTS.items() for name in names.split())
CALLS = frozenset((module, name) for module, names in _CALLS.items() for name in names.split())
Ints = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """Where a chunk's archive, or an object's bytes, lie: file in the directory, byte offset, length in bytes."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor that was saved as one: start and size in elements."""

    start: Ints
    size: Ints
    item: Item


@dataclass(frozen=True, slots=True)
class DistTensor:
    """A tensor: safetensors dtype, shape, and the chunks that make it."""

    dtype: str
    shape: Ints
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class DistMetadata:
    """What a directory holds: tensors by name, and the names of objects with where their bytes lie."""

    tensors: Mapping[str, DistTensor]
    objects: Mapping[str, Item]


class _Facts(dict[str, Any]):
    """An object of a known class as its attributes. Hashable by the plain ones, as MetadataIndex is by name and offset."""

    __slots__ = ("kind", "state")

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.state: Any = None

    def __hash__(self) -> int:  # type: ignore[override]  # a dict is not hashable; this one is a key of `storage_data`
        return hash((self.kind, self.get("fqn"), self.get("offset")))

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Facts) and self.kind == other.kind and dict.__eq__(self, other))


class _Reader(Unpickler):
    """The restricted unpickler, which also knows the classes of `OBJECTS`."""

    def find_class(self, module: str, name: str) -> Inert:
        if (module, name) in OBJECTS or (module, name) in CALLS:
            return Inert(module, name)
        return super().find_class(module, name)

    def call(self, function: object, args: object) -> object:
        if type(function) is Inert and function.args is None and type(args) is tuple:
            if (function.module, function.name) in OBJECTS:
                return _Facts(function.name)
            if (function.module, function.name) in CALLS:
                return Inert(function.module, function.name, args)
            if (function.module, function.name) == ("builtins", "getattr") and _names_member(*args):
                return Inert(args[0].module, args[0].name, args[1:])  # as Python 3.11.0 to 3.11.3 pickle members of enums
        return super().call(function, args)

    def build(self, target: Any, state: Any) -> None:
        if type(target) is not _Facts:
            super().build(target, state)
        elif type(state) is dict and all(type(key) is str for key in state):
            self.spend(len(state))
            target.update(state)
        else:
            target.state = state

    def keys(self, items: list[Any]) -> list[Any]:
        self.spend(len(items))
        for item in items:
            if type(item) is not _Facts:
                super().keys([item])
            elif type(item.get("fqn")) is not str or not _plain_offset(item.get("offset")):
                raise ValueError("a key that is no MetadataIndex")
        return items


def _names_member(owner: Any = None, name: Any = None, *more: Any) -> bool:
    enum = type(owner) is Inert and owner.args is None and (owner.module, owner.name) in CALLS
    return enum and type(name) is str and name.isidentifier() and not more


def _plain_offset(value: Any) -> bool:
    return value is None or (type(value) is tuple and len(value) <= 64 and all(type(n) is int for n in value))


def read_metadata(directory: Path) -> DistMetadata:
    """The tensors and objects of a DCP directory. No tensor byte is read; nothing that the file names is called.

    Raises ToolError for what is missing, damaged, not consistent or not understood.
    """
    file = directory / NAME
    try:
        check_regular(file)
        data = file.read_bytes()
    except OSError as fault:
        raise ToolError(f"{file}: cannot be read: {fault.strerror or fault}", hint="copy the whole directory again") from fault
    root = guarded(_Reader(data, file, _no_storage), file, check_tree)
    try:
        return _metadata(directory, root)
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise ToolError(f"{file}: is not as torch writes it ({type(fault).__name__}: {fault})", hint=DAMAGED) from fault


def _no_storage(key: str) -> tuple[int, int]:
    raise ValueError(f"a tensor's storage {key!r} in the metadata")


def _metadata(directory: Path, root: Any) -> DistMetadata:
    file = directory / NAME
    if type(root) is not _Facts or root.kind != "Metadata":
        raise ValueError("no Metadata object")
    items: dict[tuple[str, Ints | None], Item] = {}
    for index, info in (root["storage_data"] or {}).items():
        if info.get("transform_descriptors"):
            what = ", ".join(map(str, info["transform_descriptors"]))
            hint = "load it with torch and save it again without"
            raise ToolError(f"{file}: {index['fqn']} is transformed ({what}), which is not read", hint=hint)
        items[index["fqn"], index.get("offset")] = _item(directory, info)
    tensors: dict[str, DistTensor] = {}
    objects: dict[str, Item] = {}
    for name, entry in root["state_dict_metadata"].items():
        if entry.kind == "BytesStorageMetadata":
            objects[name] = items[name, None]
            continue
        shape = _ints(entry["size"])
        chunks = tuple(_chunk(name, shape, chunk, items) for chunk in entry["chunks"])
        tensors[name] = DistTensor(_dtype(file, name, entry["properties"]), shape, chunks)
    return DistMetadata(tensors, objects)


def _item(directory: Path, info: _Facts) -> Item:
    name, offset, length = info["relative_path"], info["offset"], info["length"]
    if type(name) is not str or Path(name).name != name or name in ("", ".", ".."):
        raise ValueError(f"the file name {name!r}")
    if type(offset) is not int or type(length) is not int or offset < 0 or length < 0:
        raise ValueError(f"bytes {offset!r} + {length!r} of {name}")
    return Item(name, offset, length)


def _chunk(name: str, shape: Ints, chunk: _Facts, items: Mapping[tuple[str, Ints | None], Item]) -> Chunk:
    start, size = _ints(chunk["offsets"]), _ints(chunk["sizes"])
    if len(start) != len(shape) or len(size) != len(shape) or any(a + n > m for a, n, m in zip(start, size, shape, strict=True)):
        raise ValueError(f"a chunk of {name} outside of it")
    return Chunk(start, size, items[name, start])


def _ints(value: Any) -> Ints:
    if type(value) is not tuple or not all(type(n) is int and n >= 0 for n in value):
        raise ValueError(f"{value!r} as sizes")
    return value


def _dtype(file: Path, name: str, properties: Any) -> str:
    dtype = properties.state[0] if properties.state is not None else properties["dtype"]
    known = TORCH_DTYPES.get(dtype.name) if type(dtype) is Inert and dtype.module == "torch" else None
    if known is None:
        raise ToolError(f"{file}: {name} is of dtype {dtype!r}, which is not read", hint=f"known: {', '.join(TORCH_DTYPES)}")
    return known


def metadata_bytes(tensors: Mapping[str, DistTensor], objects: Mapping[str, Item]) -> bytes:
    """The `.metadata` file, as torch reads it; the same content gives the same bytes."""
    names = {kind: name for name, kind in TORCH_DTYPES.items()}
    state: dict[str, Any] = {}
    storage: dict[Made, Made] = {}
    for name, tensor in tensors.items():
        layout = Made(Global("torch.serialization", "_get_layout"), ("torch.strided",))
        memory = Made(Global(META, "_MEM_FORMAT_ENCODING"), (0,))
        properties = Made(_meta("TensorProperties"), (), (Global("torch", names[tensor.dtype]), layout, False, memory, False))
        chunks = [_object("ChunkStorageMetadata", offsets=_size(c.start), sizes=_size(c.size)) for c in tensor.chunks]
        state[name] = _object("TensorStorageMetadata", properties=properties, size=_size(tensor.shape), chunks=chunks)
        for number, c in enumerate(tensor.chunks):
            storage[_object("MetadataIndex", fqn=name, offset=_size(c.start), index=number)] = _info(c.item)
    for name, item in objects.items():
        state[name] = _object("BytesStorageMetadata")
        storage[_object("MetadataIndex", fqn=name, index=None)] = _info(item)
    whole = _object("Metadata", state_dict_metadata=state, planner_data=None, storage_data=storage, storage_meta=None)
    data, placed = dump(whole)
    assert not placed
    return data


def _meta(name: str) -> Global:
    return Global(META, name)


def _object(name: str, **fields: object) -> Made:
    return Made(_meta(name), (), Fields(fields.items()))


def _size(value: Iterable[int]) -> Made:
    return Made(Global("torch", "Size"), (tuple(value),))


def _info(item: Item) -> Made:
    fields = Fields({"relative_path": item.file, "offset": item.offset, "length": item.length}.items())
    return Made(Global(FILES, "_StorageInfo"), (), fields)
