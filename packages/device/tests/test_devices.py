"""Opening devices, and what a Device says of itself."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
import torch

from jumar.device import Device, open_device
from jumar.device import opening as opening_module
from jumar.device.base import Missing
from jumar.device.cpu import DEVICE as CPU
from jumar.device.cuda import DEVICE as CUDA
from jumar.device.npu import DEVICE as NPU
from jumar.device.peaks import dense_peak
from jumar.schema.errors import Exit, ToolError


class Fast(type(CPU)):
    name = "fast"


class Absent(Fast):
    name = "absent"

    def missing(self):
        return Missing("its card is not plugged in", "plug it in")


FAST, ABSENT, NOT_A_DEVICE = Fast(), Absent(), object()


@pytest.fixture
def registered(monkeypatch):
    """Only these entry points exist; their objects are in this file."""

    def register(**objects):
        points = [EntryPoint(name, f"{__name__}:{value}", "jumar.devices") for name, value in objects.items()]
        monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _this())
        monkeypatch.setattr(opening_module, "entry_points", lambda group: points if group == "jumar.devices" else [])

    return register


def _this():
    import types

    module = types.ModuleType(__name__)
    module.__dict__.update(globals())
    return module


def test_importing_costs_nothing():
    code = (
        "import sys, json; import jumar.device, jumar.device.testing; before = sorted(sys.modules);"
        "import jumar.device.cpu, jumar.device.cuda, jumar.device.npu, jumar.device.opening, jumar.device.checks;"
        "print(json.dumps([name for name in sys.modules if name in ('torch', 'torch_npu', 'yaml', 'numpy')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_device_by_name_and_the_best_one():
    assert open_device("cpu") is CPU
    if not (CUDA.available() or NPU.available()):
        assert open_device() is CPU


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ToolError, match="no device 'tpu'; known are cpu, cuda, npu, and auto") as caught:
        open_device("tpu")
    assert caught.value.code == Exit.USAGE


@pytest.mark.parametrize("device", [CUDA, NPU], ids=lambda d: d.name)
def test_a_missing_device_says_what_to_type(device):
    if device.available():
        pytest.skip("it is here")
    with pytest.raises(ToolError, match=f"device {device.name} cannot be used: ") as caught:
        open_device(device.name)
    assert caught.value.code == Exit.ENVIRONMENT
    assert caught.value.hint
    with pytest.raises(ToolError):
        device.activate(0)
    assert device.count() == 0


def test_third_parties_bring_devices(registered):
    registered(fast="FAST", absent="ABSENT", cpu="CPU")
    assert open_device("fast").name == "fast"
    assert open_device("auto").name == "fast"  # before the CPU, and over one that is not available
    with pytest.raises(ToolError, match="absent cannot be used: its card is not plugged in"):
        open_device("absent")


def test_entry_points_that_are_no_devices(registered):
    registered(odd="NOT_A_DEVICE")
    with pytest.raises(ToolError, match=r"not a jumar\.device\.Device"):
        open_device("odd")
    registered()
    with pytest.raises(ToolError, match="not even the CPU"):
        open_device("auto")


def test_torch_npu_that_does_not_load(monkeypatch, tmp_path):
    (tmp_path / "torch_npu.py").write_text("raise ImportError('libhccl.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    missing = NPU.missing()
    assert "libhccl.so: cannot open" in missing.what
    assert "set_env.sh" in missing.hint


def test_torch_that_cannot_be_imported_because_of_torch_npu(monkeypatch):
    def broken(name):
        raise RuntimeError("Failed to load the backend extension: torch_npu")

    monkeypatch.setattr(opening_module, "import_module", broken)
    with pytest.raises(ToolError, match="torch cannot be imported") as caught:
        open_device("auto")
    assert caught.value.code == Exit.ENVIRONMENT
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in caught.value.hint


def test_the_environment_is_only_what_is_not_set():
    for device in (CPU, CUDA, NPU):
        advised = device.environment({})
        assert advised
        assert device.environment(advised) == {}
        first = next(iter(advised))
        assert first not in device.environment({first: "mine"})
    assert int(CPU.environment({"LOCAL_WORLD_SIZE": "1000"})["OMP_NUM_THREADS"]) == 1
    assert NPU.environment({})["PYTORCH_NPU_ALLOC_CONF"] == "expandable_segments:True"


def test_cpu_memory_and_its_peak():
    CPU.reset_peak_memory()
    before = CPU.memory()
    held = torch.ones(2**24)
    during = CPU.memory()
    assert during.allocated_bytes - before.allocated_bytes > 2**25
    del held
    after = CPU.memory()
    assert after.peak_bytes >= during.allocated_bytes - 2**22
    assert after.total_bytes > after.peak_bytes > 0


def test_cpu_generator_goes_back():
    CPU.seed(7)
    state = CPU.rng_state()
    first = torch.rand(3)
    CPU.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)
    CPU.seed(7)
    assert torch.equal(torch.rand(3), first)
    CPU.synchronize()
    assert CPU.peak_flops("bfloat16") is None


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("NVIDIA A800-SXM4-80GB", "torch.bfloat16", 312e12),
        ("NVIDIA H100 80GB HBM3", "float16", 989.4e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA H20", "bfloat16", 148e12),
        ("NVIDIA L40S", "bfloat16", 362e12),
        ("Tesla V100-SXM2-32GB", "bfloat16", None),
        ("Tesla V100-SXM2-32GB", "float16", 125e12),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2e12),
        ("Ascend910B3", "bfloat16", 313e12),
        ("Ascend910_9392", "bfloat16", 376e12),
        ("Ascend910A", "bfloat16", None),
        ("NVIDIA A1000", "bfloat16", None),
        ("NVIDIA A100-SXM4-80GB", "int4", None),
    ],
)
def test_peaks(name, dtype, peak):
    assert dense_peak(name, dtype) == (None if peak is None else pytest.approx(peak))


@pytest.mark.parametrize("device", [CUDA, NPU])
@pytest.mark.parametrize("has", [True, False])
def test_bf16_that_is_emulated_does_not_count(device, has, monkeypatch):
    class Api:
        if device is CUDA:
            is_bf16_supported = staticmethod(lambda including_emulation=True: including_emulation or has)
        else:
            is_bf16_supported = staticmethod(lambda: has)

    monkeypatch.setattr(type(device), "api", lambda self: Api)
    assert device.has_bf16() == has


def test_every_table_has_every_operation():
    for device in (CPU, CUDA, NPU):
        assert device.ops().name == device.name
        assert isinstance(device, Device)
        assert list(device.checks())
