"""Pickles that were made to run code, to break the reader or to exhaust it: each is refused, and nothing of it runs."""

import argparse
import copyreg
import os
import pickle
import random
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jumar.ckpt_convert.formats.archive import read_archive
from jumar.ckpt_convert.formats.unpickle import Inert
from jumar.schema.errors import Exit, ToolError

CANARY = "ran_by_the_pickle"


@pytest.fixture(autouse=True)
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Whatever a pickle runs would make a file, or change argparse.Namespace."""
    monkeypatch.chdir(tmp_path)
    before = dict(vars(argparse.Namespace))
    yield
    assert not Path(CANARY).exists()
    assert dict(vars(argparse.Namespace)) == before


def read(pickled: bytes, records: dict[str, bytes] | None = None) -> Any:
    """What the reader makes of an archive with this data.pkl."""
    with zipfile.ZipFile("x.pt", "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        for name, data in (records or {"data/0": bytes(64)}).items():
            archive.writestr(f"x/{name}", data)
    return read_archive(Path("x.pt"))


class Call:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function: object, *args: object) -> None:
        self.reduced = function, args

    def __reduce__(self) -> Any:
        return self.reduced


def word(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def glob(module: str, name: str) -> bytes:
    return word(module) + word(name) + b"\x93"


def pkl(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


TOUCH = f"open({CANARY!r}, 'w')"
STORAGE = b"(" + word("storage") + glob("torch", "FloatStorage") + word("0") + word("cpu") + b"K\x10tQ"
REBUILD = glob("torch._utils", "_rebuild_tensor_v2")
TENSOR = REBUILD + b"(" + STORAGE + b"K\x00(K\x02t(K\x01t\x89}tR"
NAMESPACE = glob("argparse", "Namespace") + b")\x81"


def test_the_canary_sings_without_the_reader() -> None:
    pickle.loads(pickle.dumps(Call(eval, TOUCH))).close()
    Path(CANARY).unlink()


@pytest.mark.parametrize(
    ("function", "args", "name"),
    [
        (os.system, (f"touch {CANARY}",), f"{os.system.__module__}.system"),
        (eval, (TOUCH,), "builtins.eval"),
        (exec, (TOUCH,), "builtins.exec"),
        (getattr, (argparse.Namespace, "__init__"), "builtins.getattr"),
        (__import__, ("antigravity",), "builtins.__import__"),
        (map, (eval, [TOUCH]), "builtins.map"),
        (torch.load, ("x.pt",), "torch.serialization.load"),
        (torch.hub.load, ("a/b", "c"), "torch.hub.load"),
        (torch.storage._load_from_bytes, (b"",), "torch.storage._load_from_bytes"),
        (copyreg._reconstructor, (argparse.Namespace, object, None), "copyreg._reconstructor"),
    ],
)
@pytest.mark.parametrize("section", ["model", "optimizer"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_functions_are_refused_by_name(
    function: Callable[..., object], args: tuple[object, ...], name: str, section: str, protocol: int
) -> None:
    torch.save({section: {"state": [Call(function, *args)]}}, "x.pt", pickle_protocol=protocol)
    with pytest.raises(ToolError) as caught:
        read_archive(Path("x.pt"), skip=frozenset({"optimizer"}))
    assert caught.value.code == Exit.INPUT
    assert f"x.pt: the pickle asks for {name}" in caught.value.message
    assert "could run code" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch", "_utils._rebuild_tensor_v2.__globals__"),
        ("torch", "_utils._rebuild_tensor_v2"),
        ("torch", "serialization.os.system"),
        ("torch", "os"),
        ("torch.hub", "os.system"),
        ("argparse", "Namespace.__init__"),
        ("argparse", "_sys"),
        ("collections", "OrderedDict.fromkeys"),
        ("collections", "_sys.modules"),
        ("pathlib", "os.system"),
        ("numpy", "load"),
        ("megatronx", "Model"),
        ("sys", "modules"),
        ("", ""),
        ("torch\x1b[31m", "x\ny"),
        ("megatron", "x" * 250),
    ],
)
def test_names_are_looked_up_whole(module: str, name: str) -> None:
    with pytest.raises(ToolError, match="which is refused") as caught:
        read(pkl(glob(module, name)))
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400


def test_calls_into_training_stacks_make_names_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "megatron.os", os)
    value = read(pkl(glob("megatron.os", "system"), word(f"touch {CANARY}"), b"\x85R"))
    assert value == Inert("megatron.os", "system", (f"touch {CANARY}",))


def test_the_extension_registry_is_not_asked() -> None:
    copyreg.add_extension("builtins", "eval", 200)
    try:
        for code in (b"\x82\xc8", b"\x83\xc8\x00", b"\x84\xc8\x00\x00\x00"):
            with pytest.raises(ToolError, match="asks for opcode EXT"):
                read(pkl(code, word(TOUCH), b"\x85R"))
    finally:
        copyreg.remove_extension("builtins", "eval", 200)


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (b"(S'" + TOUCH.replace("'", '"').encode() + b"'\nibuiltins\neval\n", "opcode STRING"),
        (b"(" + word(TOUCH) + b"ibuiltins\neval\n", "opcode INST"),
        (b"(" + NAMESPACE + b"o", "opcode OBJ"),
        (glob("argparse", "Namespace") + b")}\x92", "opcode NEWOBJ_EX"),
        (b"P0\n", "opcode PERSID"),
        (b"\x97", "opcode NEXT_BUFFER"),
        (b"\x96" + struct.pack("<Q", 1 << 40), "opcode BYTEARRAY8"),
    ],
)
def test_opcodes_of_no_use_are_refused_by_name(parts: bytes, name: str) -> None:
    with pytest.raises(ToolError, match=f"asks for {name}"):
        read(pkl(parts))


@pytest.mark.parametrize(
    "parts",
    [
        NAMESPACE + b"}" + word("__class__") + b"Nsb",
        NAMESPACE + b"}" + word("__dict__") + b"}sb",
        NAMESPACE + b"}" + word("_get_kwargs") + glob("megatron", "x") + b"sb",
        NAMESPACE + b"}K\x01Nsb",
        NAMESPACE + b"N}" + word("__init__") + b"Ns\x86b",
        NAMESPACE + b"]b",
        NAMESPACE + b"Nb",
        NAMESPACE + b"}" + word("a") + b"Nss",
        NAMESPACE + word("a") + b"Ns",
        NAMESPACE + b"Na",
        glob("argparse", "Namespace") + b"}" + word("a") + b"Nsb",
        glob("argparse", "Namespace") + b"N}" + word("__init__") + b"Ns\x86b",
        REBUILD + b"}" + word("__code__") + b"Nsb",
        TENSOR + b"N}" + word("offset") + b"K\x00s\x86b",
        TENSOR + b"(" + word("U8") + b"(t" + word("/etc/passwd") + b"K\x00(ttb",
        STORAGE + b"}b",
        NAMESPACE + b")R",
        glob("argparse", "Namespace") + b"K\x01\x85R",
        word("eval") + word("1") + b"\x85R",
        glob("megatron", "A") + b")R)R",
        b"Nb",
    ],
)
def test_state_is_set_on_what_may_have_it(parts: bytes) -> None:
    with pytest.raises(ToolError, match=r"x\.pt: (data\.pkl cannot be read|the pickle asks)"):
        read(pkl(parts))


def test_names_are_joined_for_trusted_classes_only() -> None:
    inner = glob("builtins", "getattr")
    assert read(pkl(inner, glob("megatron.a", "Outer"), word("Inner"), b"\x86R")) == Inert("megatron.a", "Outer.Inner")
    long = (inner + glob("megatron.a", "Outer") + word("x" * 150) + b"\x86", word("x" * 150) + b"\x86R")
    for parts in (
        (glob("torch", "Tensor"), word("Inner"), b"\x86R"),
        (glob("megatron.a", "Outer"), word("a.b"), b"\x86R"),
        (glob("megatron.a", "Outer"), b")R", word("a"), b"\x86R"),
        (long[0] + b"R", long[1]),
    ):
        with pytest.raises(ToolError, match=r"builtins\.getattr"):
            read(pkl(inner, *parts))


def nested(levels: int) -> bytes:
    return b"]" * levels + b"a" * (levels - 1)


def doubled(levels: int, opcode: bytes = b"\x86") -> bytes:
    """A tuple of the tuple before it, twice, and so on."""
    return b"N" + b"".join(b"2" + opcode for _ in range(levels))


MEGABYTE = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20)
ENCODE = glob("_codecs", "encode") + b"\x94" + MEGABYTE + b"\x94" + word("latin1") + b"\x94000"
RANGE = glob("builtins", "range") + b"K\x00\x8a\x08" + struct.pack("<q", 10**17) + b"\x86R"


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        (nested(100_000), "deep"),
        (nested(202), "deep"),
        (b"]" + nested(150) + b"\x94a" + b"]" * 100 + b"h\x00" + b"a" * 101, "deep"),  # seen before, nearer to the top
        (b"]\x942a", "deep"),
        (b"]\x94h\x00a", "within themselves"),
        (b"}\x94" + word("a") + b"h\x00s", "within themselves"),
        (NAMESPACE + b"\x94}" + word("a") + b"h\x00sb", "within themselves"),
        (doubled(60), "unfold to more than"),
        (b"}" + doubled(40) + b"Ns", "as key of a dict"),
        (b"\x8f(" + doubled(40) + b"\x90", "item of a set"),
        (b"(" + doubled(40) + b"\x91", "item of a set"),
        (b"}" + glob("megatron", "A") + doubled(40) + b"\x85RNs", "as key of a dict"),
        (glob("builtins", "bytearray") + b"\x8a\x05" + struct.pack("<q", 10**11)[:5] + b"\x85R", "bytearray"),
        (glob("builtins", "bytes") + b"\x8a\x05" + struct.pack("<q", 10**11)[:5] + b"\x85R", "argument"),
        (glob("builtins", "set") + RANGE + b"\x85R", "items in a range"),
        (glob("torch", "Size") + RANGE + b"\x85R", "as sizes"),
        (glob("collections", "deque") + RANGE + b"\x85R", "items in a range"),
        (glob("torch._tensor", "_rebuild_from_type_v2") + b"(" + REBUILD + b"N" + RANGE + b"NtR", "a tensor that"),
        (glob("torch._tensor", "_rebuild_from_type_v2") + b"(" + REBUILD + b"N)NtR", "TypeError"),
        (ENCODE + b"](" + b"h\x00h\x01h\x02\x86R" * 100 + b"e", "copies more than it holds"),
        (glob("builtins", "complex") + MEGABYTE + b"\x85R", "complex of"),
        (b"r\xff\xff\xff\xff", "IndexError"),
        (b"B\xff\xff\xff\xffab", ""),
        (b"\x8e" + struct.pack("<Q", 1 << 62) + b"ab", ""),
        (b"\x95" + struct.pack("<Q", 1 << 62) + b"ab", ""),
    ],
)
def test_work_and_memory_are_bounded(parts: bytes, why: str) -> None:
    started = time.process_time()
    with pytest.raises(ToolError, match=rf"x\.pt: .*{why}"):
        read(pkl(parts))
    assert time.process_time() - started < 5


def test_deep_but_not_too_deep() -> None:
    assert read(pkl(nested(200))) != []
    assert read(pkl(b"}r\xff\xff\xff\xff")) == {}  # a memo index is a dict's key, not the length of an array


@pytest.mark.parametrize(
    "parts",
    [
        (b"K\x00", b"(K\x10t", b"(K\x02t"),  # reaches to element 31 of 16
        (b"K\x0f", b"(K\x02t", b"(K\x01t"),
        (b"K\x00", b"(K\x02K\x02t", b"(K\x01t"),
        (b"K\x00", b"(J\xff\xff\xff\xfft", b"(K\x01t"),
        (b"K\x00", b"(K\x02t", b"(J\xff\xff\xff\xfft"),
        (b"J\xff\xff\xff\xff", b"(K\x02t", b"(K\x01t"),
        (b"K\x00", b"(\x8a\x08" + b"\xff" * 7 + b"\x7f\x8a\x08" + b"\xff" * 7 + b"\x7ft", b"(K\x00K\x00t"),
        (b"K\x00", b"(G?\xf0\x00\x00\x00\x00\x00\x00t", b"(K\x01t"),
        (b"K\x00", b"(\x88t", b"(K\x01t"),
        (b"K\x00", b"(" + b"K\x01" * 65 + b"t", b"(" + b"K\x01" * 65 + b"t"),
    ],
)
def test_tensors_stay_within_their_storage(parts: tuple[bytes, ...]) -> None:
    offset, size, stride = parts
    tensor = REBUILD + b"(" + STORAGE + offset + size + stride + b"\x89}tR"
    with pytest.raises(ToolError, match=r"storage of 64 bytes|as size|as sizes|zip\(\)"):
        read(pkl(tensor))


@pytest.mark.parametrize(
    ("records", "why"),
    [({"data/0": bytes(63)}, "should hold 64 bytes, and its record holds 63"), ({"data/1": bytes(64)}, "no record")],
)
def test_storages_are_there_whole(records: dict[str, bytes], why: str) -> None:
    assert read(pkl(TENSOR)).nbytes == 8
    with pytest.raises(ToolError, match=why):
        read(pkl(TENSOR), records)


@pytest.fixture
def real(tmp_path: Path) -> bytes:
    """A small file that torch.save wrote."""
    tree = {
        "args": argparse.Namespace(dtype=torch.bfloat16, sizes=[1, 2], name="x"),
        "model": {"w": torch.ones(2, 3), "u": torch.ones(2).to(torch.uint16), "p": torch.nn.Parameter(torch.ones(2))},
        "rng": [torch.get_rng_state()[:64].numpy(), {1, 2}, b"ab"],
    }  # fmt: skip
    torch.save(tree, "real.pt")
    return Path("real.pt").read_bytes()


def test_a_file_cut_short_is_always_refused(real: bytes) -> None:
    path = Path("cut.pt")
    for length in random.Random(0).sample(range(len(real)), 400):
        path.write_bytes(real[:length])
        with pytest.raises(ToolError, match=r"cut\.pt: is "):
            read_archive(path)


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_are_refused_or_read(real: bytes, seed: int) -> None:
    """Any byte of the file, and of data.pkl more often; nothing but ToolError, whatever it makes of the pickle."""
    rng, path = random.Random(seed), Path("flip.pt")
    with zipfile.ZipFile("real.pt") as archive:
        pickled = archive.read("real/data.pkl")
    start = real.index(pickled)
    refused = []
    for _ in range(400):
        damaged = bytearray(real)
        for _ in range(rng.choice((1, 1, 1, 4))):
            where = start + rng.randrange(len(pickled)) if rng.random() < 0.8 else rng.randrange(len(real))
            damaged[where] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            repr(read_archive(path))
        except ToolError as error:
            refused.append(error)
    assert 100 < len(refused) < 400
    assert all("flip.pt" in error.message and error.hint and error.code == Exit.INPUT for error in refused)
