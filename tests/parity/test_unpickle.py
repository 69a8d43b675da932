"""What training leaves in its checkpoints, saved by torch.save itself, and read with none of its modules at hand."""

import argparse
import collections
import enum
import io
import operator
import pathlib
import random
import signal
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from as_on_npu import modules, npu_reducer
from jumar.ckpt_convert.formats.archive import read_archive
from jumar.ckpt_convert.formats.unpickle import Inert
from jumar.ckpt_convert.tensors import DTYPES, TensorRef
from jumar.schema.errors import Exit, ToolError


def values(ref: object) -> np.ndarray:
    """The array that a ref names, read with its offset and strides alone."""
    assert isinstance(ref, TensorRef)
    dtype = DTYPES[ref.dtype]
    strides = [step * dtype.itemsize for step in ref.strides]
    return np.ndarray(ref.shape, dtype, ref.file.read_bytes(), ref.offset if ref.numel else 0, strides)


def same(ref: object, tensor: torch.Tensor) -> bool:
    """If a ref has a tensor's shape, and its bytes in row-major order."""
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    found = values(ref)
    return found.shape == tuple(tensor.shape) and np.ascontiguousarray(found).tobytes() == data


def saved(path: Path, value: object, **options: Any) -> Any:
    torch.save(value, path, **options)
    return read_archive(path)


def repack(path: Path, edit: Callable[[bytes], bytes]) -> None:
    """Rewrite data.pkl of an archive."""
    with zipfile.ZipFile(path) as source:
        records = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, data in records.items():
            target.writestr(name, edit(data) if name.endswith("/data.pkl") else data)


TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("protocol", [2, 4])
def test_every_dtype_has_the_bytes_that_torch_saved(tmp_path: Path, dtype: str, protocol: int) -> None:
    tensor = torch.arange(1, 7).to(TORCH_DTYPES[dtype]).reshape(2, 3)
    tree = saved(tmp_path / "x.pt", {"a": tensor, "scalar": tensor[1, 1], "empty": tensor[:0]}, pickle_protocol=protocol)
    assert [ref.dtype for ref in tree.values()] == [dtype] * 3
    assert same(tree["a"], tensor)
    assert same(tree["scalar"], tensor[1, 1])
    assert tree["empty"].shape == (0, 3)


def test_views_keep_their_strides_and_share_their_storage(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    views = {
        "base": base, "tied": base, "t": base.t(), "slice": base[1:3, 2:5], "step": base[::2, 1::3], "row": base[3],
        "one": base[2, 2], "none": base[4:], "expand": base[0, 0].expand(3, 2), "permute": base.reshape(2, 2, 6).mT,
    }  # fmt: skip
    tree = saved(tmp_path / "x.pt", views)
    assert all(same(tree[name], view) for name, view in views.items())
    assert tree["base"] == tree["tied"]
    assert tree["t"].strides == (1, 6)
    assert not tree["t"].contiguous
    assert tree["row"].offset == tree["base"].offset + 18 * 4


def test_parameters_and_modules_are_their_tensors(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    module[0].weight.tensor_model_parallel = True  # Megatron marks its parameters: `_rebuild_parameter_with_state`
    marked = torch.ones(2)
    marked.allreduce = False  # `_rebuild_from_type_v2`
    tree = {"plain": dict(module.named_parameters()), "state": module.state_dict(), "marked": marked}
    assert tree["state"]._metadata  # set by BUILD on an OrderedDict
    read = saved(tmp_path / "x.pt", tree)
    assert type(read["state"]) is dict
    assert list(read["state"]) == list(module.state_dict())
    assert all(same(read[part][key], tree[part][key]) for part in ("plain", "state") for key in tree["plain"])
    assert same(read["marked"], marked)


def test_tensors_saved_on_an_npu(tmp_path: Path) -> None:
    with_state = torch.nn.Parameter(torch.full((2, 2), 3.0))
    with_state.sequence_parallel = True
    tree = {
        "weight": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "t": torch.arange(6.0).reshape(2, 3).t(),
        "parameter": torch.nn.Parameter(torch.ones(3), requires_grad=True),
        "with_state": with_state,
        "scalar": torch.tensor(7),
    }
    with npu_reducer(npu_format=29):
        torch.save(tree, tmp_path / "x.pt")
    with npu_reducer(npu_format=True):  # a bool in files of old versions
        torch.save(tree, tmp_path / "old.pt")
    torch.save(tree, tmp_path / "other.pt")  # versions without the reducer: torch's own, from a storage on npu:0
    repack(tmp_path / "other.pt", lambda data: data.replace(b"\x03\0\0\0cpu", b"\x05\0\0\0npu:0"))
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        assert archive.read("x/data.pkl").count(b"torch_npu.utils.storage\n_rebuild_npu_tensor") == 1
    for name in ("x.pt", "old.pt", "other.pt"):
        read: Any = read_archive(tmp_path / name)
        assert all(same(read[key], tensor) for key, tensor in tree.items())
    with pytest.raises(ModuleNotFoundError, match="torch_npu"):
        torch.load(tmp_path / "x.pt", weights_only=False)
    assert "torch_npu" not in sys.modules


BY_NAME = (3, 11, 0) <= sys.version_info < (3, 11, 4)
"""Members of enums are pickled by the name of the member, else by its value."""


class ModelType(enum.Enum):
    encoder_or_decoder = 1


class AttnBackend(enum.IntFlag):
    flash = 1
    fused = 2


class Config:
    class Mode(enum.Enum):
        train = "train"


class Registry(dict):  # type: ignore[type-arg]
    pass


class Stages(list):  # type: ignore[type-arg]
    pass


def test_classes_of_training_stacks_become_inert(tmp_path: Path) -> None:
    registry, config = Registry(a=1), Config()
    registry.owner, config.hidden = "x", 8
    with modules(
        megatron__core__enums={"ModelType": ModelType},
        mindspeed_llm__x={"AttnBackend": AttnBackend, "Config": Config},
        modellink__y={"Registry": Registry, "Stages": Stages},
    ):
        args = argparse.Namespace(
            model_type=ModelType.encoder_or_decoder, backend=AttnBackend.flash, both=AttnBackend(3), config=config,
            mode=Config.Mode.train, registry=registry, stages=Stages([1, 2]), kind=ModelType, by_dtype={torch.half: 1},
            params_dtype=torch.bfloat16, device=torch.device("cuda", 1), exit_signal=signal.SIGTERM,
            load=pathlib.Path("/a/b"),
        )  # fmt: skip
        torch.save({"args": args}, tmp_path / "x.pt")
    assert "modellink" not in sys.modules
    tree: Any = read_archive(tmp_path / "x.pt")
    args = tree["args"]
    assert type(args) is argparse.Namespace
    assert args.kind.args is None
    members = [(value.name, value.args) for value in (args.model_type, args.backend, args.both)]
    if BY_NAME:
        assert members == [
            ("ModelType.encoder_or_decoder", None),
            ("AttnBackend.flash", None),
            ("AttnBackend.fused|AttnBackend.flash", None),
        ]
    else:
        assert members == [("ModelType", (1,)), ("AttnBackend", (1,)), ("AttnBackend", (3,))]
    assert args.exit_signal.module == "signal"
    assert args.config.state == {"hidden": 8}
    assert args.registry.state == {"owner": "x"}
    assert args.stages == Inert("modellink.y", "Stages", ())
    mode = ("Config.Mode.train", None) if BY_NAME else ("Config.Mode", ("train",))
    assert args.mode == Inert("mindspeed_llm.x", *mode)
    assert args.params_dtype == Inert("torch", "bfloat16")
    assert repr(args.params_dtype) == "Inert(torch.bfloat16)"
    assert args.device.args == ("cuda", 1)
    assert args.load.name in ("PosixPath", "WindowsPath")
    assert args.by_dtype[Inert("torch", "float16")] == 1
    assert repr(args.model_type) == f"Inert(megatron.core.enums.ModelType{'.encoder_or_decoder' if BY_NAME else '(1)'})"


class ByName(enum.IntFlag):
    """As every Flag is pickled by Python 3.11.0 to 3.11.3, which Debian 12 has."""

    flash = 1
    fused = 2

    def __reduce_ex__(self, protocol: object) -> Any:
        members = [ByName(member) for member in ByName if member in self]
        return (getattr, (ByName, members[0].name)) if len(members) == 1 else (operator.or_, tuple(members))


def test_members_of_enums_by_name(tmp_path: Path) -> None:
    with modules(mindspeed_llm__x={"ByName": ByName}):
        torch.save({"one": ByName.fused, "both": ByName(3)}, tmp_path / "x.pt")
    tree: Any = read_archive(tmp_path / "x.pt")
    assert tree["one"] == Inert("mindspeed_llm.x", "ByName.fused")
    assert tree["both"] == Inert("mindspeed_llm.x", "ByName.flash|ByName.fused")


@pytest.mark.parametrize("call", [(getattr, (int, "real")), (operator.or_, (1, 2)), (operator.or_, (int, str))])
def test_these_calls_are_for_names_alone(tmp_path: Path, call: Any) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return call

    torch.save({"x": Hostile()}, tmp_path / "x.pt")
    with pytest.raises(ToolError, match="the pickle asks for"):
        read_archive(tmp_path / "x.pt")


@pytest.mark.parametrize("numpy_core", [b"numpy._core", b"numpy.core"])
def test_rng_states_hold_no_arrays(tmp_path: Path, numpy_core: bytes) -> None:
    state = {
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "lr": np.float64(0.1),
        "extra": io.BytesIO(b"x" * 100),
    }
    path = tmp_path / "x.pt"
    torch.save({"rng_state": [state], "iteration": 3}, path)
    repack(path, lambda data: data.replace(b"numpy._core", numpy_core))
    tree: Any = read_archive(path)
    read = tree["rng_state"][0]
    assert read["random_rng_state"] == random.getstate()
    assert same(read["torch_rng_state"], torch.get_rng_state())
    array = read["np_rng_state"][1]
    assert array == Inert(numpy_core.decode() + ".multiarray", "_reconstruct", ())
    assert array.state is None
    assert read["lr"].name == "scalar"
    assert read["lr"].args == ()
    assert read["extra"].state is None
    assert read_archive(path, skip=frozenset({"rng_state", "optimizer"})) == {"iteration": 3}


def test_plain_values_come_as_they_were(tmp_path: Path) -> None:
    plain = {
        "scalars": [None, True, -5, 1 << 70, 1.5, 3 + 4j, "é", b"", b"\x00\xff", bytearray(b"ab")],
        "containers": [(), (1,), (1, 2, 3, 4), {1, 2}, frozenset({"a"}), slice(1, None, 2), range(3, 9, 2)],
        (1, "a"): {2.5: []},
    }
    lossy = {
        "ordered": collections.OrderedDict(a=1),
        "default": collections.defaultdict(list, {"a": [1]}),
        "deque": collections.deque([1, 2], maxlen=3),
        "size": torch.Size([2, 3]),
        "space": types.SimpleNamespace(a=1),
    }
    for protocol in (2, 3, 4):
        read = saved(tmp_path / "x.pt", plain | lossy, pickle_protocol=protocol)
        assert {key: read[key] for key in plain} == plain
        assert read["ordered"] == {"a": 1}
        assert type(read["ordered"]) is dict
        assert read["default"] == {"a": [1]}
        assert type(read["default"]) is dict
        assert read["deque"] == [1, 2]
        assert read["size"] == (2, 3)
        assert read["space"] == types.SimpleNamespace(a=1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: torch.eye(2).to_sparse(), "sparse"),
        (lambda: torch.eye(2).to_sparse_csr(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantized"),
        (lambda: torch.empty(2, device="meta"), "meta"),
        (lambda: torch.ones(2, dtype=torch.complex128), "ComplexDoubleStorage"),
        (lambda: torch.ones(2, dtype=torch.float8_e4m3fnuz), "float8_e4m3fnuz"),
        (lambda: torch.ones(2, dtype=torch.complex64).conj(), "conjugated"),
        (lambda: torch.ones(2).untyped_storage(), "Storage"),
    ],
)
def test_tensors_that_bytes_do_not_tell_are_refused(tmp_path: Path, make: Callable[[], object], expected: str) -> None:
    with pytest.raises(ToolError, match=expected) as caught:
        saved(tmp_path / "x.pt", {"a": make()})
    assert caught.value.code == Exit.INPUT
    assert str(tmp_path / "x.pt") in caught.value.message
    assert caught.value.hint


def test_reading_imports_nothing(tmp_path: Path) -> None:
    with npu_reducer(), modules(megatron__core__enums={"ModelType": ModelType}):
        torch.save({"a": torch.ones(2), "args": argparse.Namespace(m=ModelType(1))}, tmp_path / "x.pt")
    program = (
        "import sys; from pathlib import Path; from jumar.ckpt_convert.formats.archive import read_archive\n"
        "before = set(sys.modules); tree = read_archive(Path(sys.argv[1]))\n"
        "print(tree['args'].m, set(sys.modules) - before - {'encodings.cp437'}, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "x.pt"], capture_output=True, text=True, check=True)
    assert done.stdout == f"Inert(megatron.core.enums.ModelType{'.encoder_or_decoder' if BY_NAME else '(1)'}) set() False\n"
