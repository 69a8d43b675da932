"""Archives as files: what torch reads of those written here, and what is said of those that cannot be read."""

import argparse
import hashlib
import os
import shutil
import struct
import subprocess
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jumar.ckpt_convert.formats.archive import ArchiveLayout, Global, TensorSpec, read_archive
from jumar.ckpt_convert.formats.unpickle import Inert
from jumar.ckpt_convert.tensors import DTYPES, TensorRef
from jumar.schema.errors import Exit, ToolError

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
}  # fmt: skip


def write(path: Path, value: object, data: Callable[[int], bytes] = bytes, root: str = "archive") -> ArchiveLayout:
    """Write `value` with `data(nbytes)` as the bytes of each tensor."""
    layout = ArchiveLayout.plan(value, root=root)
    crcs = []
    with path.open("wb") as file:
        layout.write_skeleton(file.fileno())
        for record in layout.records:
            content = data(record.nbytes)
            os.pwrite(file.fileno(), content, record.offset)
            crcs.append(zlib.crc32(content))
        layout.finish(file.fileno(), crcs)
    assert path.stat().st_size == layout.size
    return layout


def load(path: Path, mmap: bool = False) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True, mmap=mmap)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def leaves(tree: object, kind: type) -> list[Any]:
    """The leaves of a type, in the order of the pickle."""
    if isinstance(tree, kind):
        return [tree]
    parts: Any = vars(tree) if isinstance(tree, argparse.Namespace) else tree
    if isinstance(parts, dict):
        return [leaf for part in parts.values() for leaf in leaves(part, kind)]
    return [leaf for part in parts for leaf in leaves(part, kind)] if isinstance(parts, list | tuple) else []


def shell(tree: object) -> object:
    """The tree with each tensor as its dtype and shape, and each dtype as its name."""
    if isinstance(tree, torch.Tensor):
        return next(name for name, dtype in TORCH_DTYPES.items() if dtype == tree.dtype), tuple(tree.shape)
    if isinstance(tree, TensorRef | TensorSpec):
        return tree.dtype, tree.shape
    if isinstance(tree, Inert | Global):
        return f"{tree.module}.{tree.name}"
    if isinstance(tree, torch.dtype):
        return str(tree)
    if isinstance(tree, argparse.Namespace):
        return argparse.Namespace(**{key: shell(value) for key, value in vars(tree).items()})
    if isinstance(tree, dict):
        return {key: shell(value) for key, value in tree.items()}
    return type(tree)(shell(part) for part in tree) if isinstance(tree, list | tuple) else tree


specs = st.builds(TensorSpec, st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=4).map(tuple))
scalars = st.none() | st.booleans() | st.integers(-(1 << 80), 1 << 80) | st.floats(allow_nan=False) | st.text(max_size=5)
names = st.text("abcd_.0", min_size=1, max_size=6)
trees = st.recursive(
    scalars | specs | st.sampled_from([Global("torch", "bfloat16"), Global("torch", "float32")]),
    lambda children: (
        st.lists(children, max_size=5)
        | st.lists(children, max_size=5).map(tuple)
        | st.dictionaries(names | st.integers(0, 300), children, max_size=5)
        | st.dictionaries(names, children, max_size=3).map(lambda attributes: argparse.Namespace(**attributes))
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=150)
@given(tree=trees, seed=st.integers(0, 1 << 30))
def test_what_is_written_is_what_torch_and_the_reader_load(
    tmp_path_factory: pytest.TempPathFactory, tree: object, seed: int
) -> None:
    path = tmp_path_factory.mktemp("archive") / "x.pt"
    rng = np.random.default_rng(seed)
    tensors: list[bytes] = []

    def data(nbytes: int) -> bytes:
        tensors.append(rng.integers(0, 2, nbytes, np.uint8).tobytes())  # 0 and 1: bools too
        return tensors[-1]

    layout = write(path, tree, data)
    assert [record.spec for record in layout.records] == leaves(tree, TensorSpec)
    assert all(record.offset % 64 == 0 for record in layout.records)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    for mmap in (False, True):
        loaded = load(path, mmap)
        assert shell(loaded) == shell(tree)
        assert [raw(tensor) for tensor in leaves(loaded, torch.Tensor)] == tensors
    read = read_archive(path)
    assert shell(read) == shell(tree)
    content = path.read_bytes()
    refs = leaves(read, TensorRef)
    assert [content[ref.offset : ref.offset + ref.nbytes] for ref in refs] == tensors
    assert [ref.offset for ref in refs] == [record.offset for record in layout.records]
    assert all(ref.contiguous for ref in refs)


def test_records_tell_where_their_tensor_stands() -> None:
    spec = TensorSpec("BF16", (2, 3))
    tree = {"model0": {"a.weight": spec, "b": [1, spec]}, "args": argparse.Namespace(x=(spec,)), "n": 1}
    layout = ArchiveLayout.plan(tree)
    assert [record.path for record in layout.records] == [("model0", "a.weight"), ("model0", "b", 1), ("args", "x", 0)]
    assert [record.nbytes for record in layout.records] == [12, 12, 12]
    assert len({record.offset for record in layout.records}) == 3  # one object in three places is three tensors


def test_equal_trees_give_equal_bytes(tmp_path: Path) -> None:
    def tree(first: str, second: str) -> object:
        args = argparse.Namespace(hidden=8, name=second, dtype=Global("torch", "bfloat16"), lr=1e-5)
        return {first: TensorSpec("F32", (2, 2)), "u": TensorSpec("U16", ()), "args": args}

    name = "weight"
    write(tmp_path / "a", tree(name, name))
    write(tmp_path / "b", tree(name, name[:3] + name[3:]))  # equal, and another object: pickle would tell
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    digest = hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()
    assert digest == "0cb3aae01472accde2066e7894f0f2c8d2e8b5e111f2df4ff61f2a542f1a833c"


@pytest.mark.skipif(not shutil.which("unzip"), reason="no unzip here")
def test_another_zip_tool_finds_no_fault(tmp_path: Path) -> None:
    write(tmp_path / "x.pt", {"a": TensorSpec("F32", (1000,)), "b": TensorSpec("U8", (0,))}, os.urandom, root="mp_rank")
    subprocess.run(["unzip", "-tqq", tmp_path / "x.pt"], check=True)


def test_a_file_that_is_not_finished_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with path.open("wb") as file:
        ArchiveLayout.plan({"a": TensorSpec("F32", (1000,))}).write_skeleton(file.fileno())
    with pytest.raises(ToolError, match=r"cut short or damaged"):
        read_archive(path)


@pytest.mark.parametrize("value", [{"a": object()}, {"a": [np.float64(1)]}, {"a": b"x"}, {"a": {1, 2}}, Inert("a", "b")])
def test_what_cannot_be_written_is_named(value: object) -> None:
    with pytest.raises(TypeError, match=r"cannot be written, at (a|the top)"):
        ArchiveLayout.plan(value)


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    for root in ("", "a/b"):
        with pytest.raises(ValueError, match="root"):
            ArchiveLayout.plan({}, root=root)
    with pytest.raises(ToolError, match="dtype 'F4'"):
        ArchiveLayout.plan({"a": TensorSpec("F4", (2,))})
    with (tmp_path / "x").open("wb") as file, pytest.raises(ValueError, match=r"zip"):
        ArchiveLayout.plan({"a": TensorSpec("U8", (2,))}).finish(file.fileno(), [])


def test_twenty_thousand_tensors_are_planned_in_seconds(tmp_path: Path) -> None:
    tree = {"model": {f"decoder.layers.{i}.weight": TensorSpec("BF16", (2, 3)) for i in range(20_000)}}
    started = time.process_time()
    ArchiveLayout.plan(tree)
    assert time.process_time() - started < 15, "one second alone on a core; minutes where each is held against each"
    write(tmp_path / "x.pt", tree)
    read: Any = read_archive(tmp_path / "x.pt")
    assert len(load(tmp_path / "x.pt", mmap=True)["model"]) == len(read["model"]) == 20_000


def sparse(path: Path, tree: object) -> ArchiveLayout:
    """A file whose tensors are holes, with CRCs of none."""
    layout = ArchiveLayout.plan(tree)
    with path.open("wb") as file:
        layout.write_skeleton(file.fileno())
        layout.finish(file.fileno(), [0] * len(layout.records))
    return layout


def test_zip64_for_records_and_offsets_over_4_gib(tmp_path: Path) -> None:
    path, big = tmp_path / "x.pt", (1 << 32) + 10
    layout = sparse(path, {"big": TensorSpec("U8", (big,)), "after": TensorSpec("BF16", (3,))})
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), b"\x01\x00\x02\x00\x03\x00", layout.records[1].offset)
        os.pwrite(file.fileno(), b"\x07", layout.records[0].offset + big - 1)
    loaded, read = load(path, mmap=True), read_archive(path)
    assert isinstance(read, dict)
    assert loaded["big"].shape == read["big"].shape == (big,)
    assert loaded["big"][-1] == 7
    assert raw(loaded["after"]) == b"\x01\x00\x02\x00\x03\x00"
    assert read["after"].offset == layout.records[1].offset > 1 << 32
    with zipfile.ZipFile(path) as archive:
        assert [info.file_size for info in archive.infolist()][3:] == [big, 6]
        local = archive.getinfo("archive/data/0").header_offset
    with path.open("rb") as file:
        header = os.pread(file.fileno(), layout.records[0].offset - local, local)
    assert struct.pack("<2H2Q", 1, 16, big, big) in header  # no reader above looks here; those of streams do


@pytest.mark.slow
def test_zip64_crcs(tmp_path: Path) -> None:
    path, big = tmp_path / "x.pt", (1 << 32) + 10
    layout, crc, zeros = ArchiveLayout.plan({"big": TensorSpec("U8", (big,))}), 0, bytes(1 << 26)
    for start in range(0, big, len(zeros)):
        crc = zlib.crc32(zeros[: big - start], crc)
    with path.open("wb") as file:
        layout.write_skeleton(file.fileno())
        layout.finish(file.fileno(), [crc])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


@pytest.mark.slow
def test_zip64_for_more_than_65535_records(tmp_path: Path) -> None:
    count = 66_000
    sparse(tmp_path / "x.pt", [TensorSpec("U8", (1,))] * count)
    assert len(load(tmp_path / "x.pt", mmap=True)) == count
    read = read_archive(tmp_path / "x.pt")
    assert isinstance(read, list)
    assert len({ref.offset for ref in read}) == count


def torch_file(path: Path, **options: Any) -> Path:
    torch.save({"a": torch.arange(6.0), "args": argparse.Namespace(x=1)}, path, **options)
    return path


def repack(path: Path, compression: int = zipfile.ZIP_STORED, **records: bytes | None) -> Path:
    """Rewrite an archive, with some of its records replaced or (None) left out."""
    with zipfile.ZipFile(path) as source:
        content = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
    content |= {name.replace("__", ".").replace("_", "/"): data for name, data in records.items() if data is not None}
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, data in content.items():
            if records.get(name.replace("/", "_").replace(".", "__"), b"") is not None:
                target.writestr(f"any name/{name}", data)
    return path


def test_any_top_directory_and_no_byteorder(tmp_path: Path) -> None:
    tree: Any = read_archive(repack(torch_file(tmp_path / "x.pt"), byteorder=None, version=None))
    assert tree["a"].shape == (6,)
    assert tree["args"] == argparse.Namespace(x=1)
    assert tree["a"].file.read_bytes()[tree["a"].offset :][:24] == np.arange(6, dtype="<f4").tobytes()


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda path: path.write_bytes(b""), "is not a zip archive .0 bytes"),
        (lambda path: path.write_bytes(b"\x40\0\0\0\0\0\0\0{}" * 9), "is not a zip archive"),
        (lambda path: torch_file(path, _use_new_zipfile_serialization=False), r"torch\.save before 1\.6"),
        (lambda path: repack(path, zipfile.ZIP_DEFLATED), "is compressed or encrypted; expected it stored"),
        (lambda path: repack(path, byteorder=b"big"), "byteorder is b'big'; expected b'little'"),
        (lambda path: repack(path, data__pkl=None), "has no record 'any name/data.pkl'; its 6 records are"),
        (lambda path: repack(path, data_0=None), "has no record 'any name/data/0'"),
        (lambda path: repack(path, data_0=bytes(23)), "storage '0' should hold 24 bytes, and its record holds 23"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "has no record '/data.pkl'; its 0 records"),
        (lambda path: (path.unlink(), path.mkdir()), "is no file"),
        (lambda path: path.unlink(), "cannot be read: No such file"),
    ],
)
def test_files_that_cannot_be_read_are_told_apart(tmp_path: Path, spoil: Callable[[Path], object], expected: str) -> None:
    path = torch_file(tmp_path / "x.pt")
    spoil(path)
    with pytest.raises(ToolError, match=expected) as caught:
        read_archive(path)
    assert caught.value.message.startswith(f"{path}: ")
    assert caught.value.hint
    assert caught.value.code == Exit.INPUT


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_in_the_directory_are_one_record_each(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "x.pt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02N.")
    with pytest.raises(ToolError, match="1 records of the archive have one name"):
        read_archive(path)


def test_the_pickle_has_a_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jumar.ckpt_convert.formats.archive.MAX_PICKLE_BYTES", 50)
    with pytest.raises(ToolError, match=r"record data\.pkl has \d+ bytes; at most 50 are read"):
        read_archive(torch_file(tmp_path / "x.pt"))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        (8, b"\x01\x08", "compressed or encrypted"),
        (10, b"\x08\x00", "compressed or encrypted"),
        (20, b"\x17\0\0\0", "compressed or encrypted"),
        (20, b"\0\0\x10\0" * 2, "of 1048576 bytes is not at byte"),
        (42, b"\x40\0\0\0", "of 24 bytes is not at byte 64 of"),
        (42, b"\0\0\0\x7f", "of 24 bytes is not at byte 2130706432 of"),
    ],
)
def test_a_record_is_what_the_directory_says(tmp_path: Path, field: int, value: bytes, expected: str) -> None:
    path = torch_file(tmp_path / "x.pt")
    content = bytearray(path.read_bytes())
    header = content.rindex(b"x/data/0") - 46  # in the directory: flags, method, sizes and offset at these fields
    content[header + field : header + field + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(ToolError, match=f"record 'x/data/0' .*{expected}"):
        read_archive(path)


def test_a_record_is_where_the_directory_says(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "x.pt")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"x/data/0", b"x/data/9", 1))  # the local header comes first
    with pytest.raises(ToolError, match=r"record 'x/data/0' of 24 bytes is not at byte \d+"):
        read_archive(path)
