"""Every dependency has a wheel, for both architectures; what is collected installs without an index and with the network cut."""

from __future__ import annotations

import hashlib
import platform
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import offline
import wheelhouse
import workspace
from wheelhouse import Target, Unresolved, constraints, requirements, resolve

HERE = "{}.{}".format(*sys.version_info[:2])
needs_index = pytest.mark.skipif({name for _, name in socket.if_nameindex()} <= {"lo"}, reason="needs a package index")
needs_namespace = pytest.mark.skipif(offline.way() is None, reason="needs `unshare --net`, which this machine does not permit")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    into = tmp_path_factory.mktemp("wheels")
    wheelhouse.build_ours(requirements([], True, None, tests=False), constraints(None), into)
    return into


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    into = tmp_path_factory.mktemp("every-wheel")
    wheelhouse.build_ours(requirements([], False, None, tests=True), constraints(None), into)
    return into


def check_all_are_wheels(target: Target, wheels: list[wheelhouse.Wheel]) -> None:
    machines = {part for wheel in wheels for part in re.findall(r"aarch64|x86_64", wheel.file)}
    assert machines == {target.arch}
    abis = {tag for wheel in wheels for tag in re.findall(r"-(cp\d+)-cp\d+-", wheel.file)}
    assert abis == {f"cp{target.python.replace('.', '')}"}
    assert all(wheel.sha256 for wheel in wheels)


@needs_index
@pytest.mark.parametrize("arch", ["aarch64", "x86_64"])
def test_what_needs_no_torch_has_wheels(arch: str, ours: Path) -> None:
    target = Target(HERE, arch)
    wheels = resolve(target, requirements([], True, None, tests=False), constraints(None), ours)
    names = {wheel.name for wheel in wheels}
    assert {"jumar-schema", "jumar-ckpt-convert", "jumar-data-prep", "jumar-eval", "pyarrow", "tokenizers", "langdetect"} <= names
    assert not names & {"torch", "transformers", "jumar-infer", "pytest"}
    assert ("tomli" in names) == (HERE == "3.10")  # markers are those of the target
    check_all_are_wheels(target, wheels)


@needs_index
def test_what_has_no_wheel_is_named(ours: Path, tmp_path: Path) -> None:
    """It is what the list of what is left out says of [flash], and why one is built for [ifeval]."""
    (flash,) = workspace.packages()["jumar-device"].extras["flash"]
    for line, folder in ((flash, ours), *((name, tmp_path) for name in wheelhouse.FROM_SOURCE)):
        name = Requirement(line).name
        with pytest.raises(Unresolved, match=rf"no wheel of {name}\S* for Python {HERE} on aarch64"):
            resolve(Target(HERE, "aarch64"), [line], constraints(None), folder)


@needs_index
@pytest.mark.slow
@pytest.mark.parametrize("npu", [None, wheelhouse.TORCH_NPU, "2.13.0"])
@pytest.mark.parametrize("arch", ["aarch64", "x86_64"])
@pytest.mark.parametrize("python", ["3.10", "3.11"])
def test_everything_has_wheels(python: str, arch: str, npu: str | None, everything: Path) -> None:
    if workspace.interpreter(f"python{python}") is None:
        pytest.skip(f"python{python} is not here, and pip resolves for the Python that runs it")
    target = Target(python, arch)
    try:
        wheels = resolve(target, requirements([], False, npu, tests=True), constraints(npu), everything)
    except Unresolved as fault:
        if npu is None or f"torch-npu {npu} depends on torch=={npu}+cpu" not in str(fault):
            raise
        pytest.skip(
            f"torch-npu {npu} for {arch} wants torch=={npu}+cpu, of torch's own index (--index), which pip does not know here"
        )
    found = {wheel.name: wheel.version for wheel in wheels}
    assert set(workspace.packages()) <= set(found)
    assert found.get("torch-npu") == npu
    assert npu is None or found["torch"].partition("+")[0] == re.match(r"\d+\.\d+\.\d+", npu)[0]
    check_all_are_wheels(target, wheels)


def test_what_is_asked_for() -> None:
    lines = requirements([], False, "2.10.0.post2", tests=False)
    device, train = (next(line for line in lines if line.startswith(name)) for name in ("jumar-device", "jumar-train-core"))
    assert device.startswith("jumar-device[npu]==")
    assert re.match(r"jumar-train-core\[[a-z,]*npu\]==", train)
    assert lines[-1] == "torch-npu==2.10.0.post2"
    assert [line for line in constraints("2.10.0.post2") if line.startswith("torch==")] == ["torch==2.10.0"]
    assert requirements(["schema"], True, None, tests=False) == [
        "jumar-schema[chat,cli]==" + workspace.packages()["jumar-schema"].version
    ]
    assert "pytest" in requirements(["schema"], True, None, tests=True)


@needs_index
@needs_namespace
@pytest.mark.slow
def test_it_installs_with_the_network_cut(tmp_path: Path) -> None:
    """One package, by what is printed; all of them: scripts/packages_alone.py --offline, which CI runs."""
    house, home = tmp_path / "house", tmp_path / "home"
    script = workspace.ROOT / "scripts/wheelhouse.py"
    words = ["--python", HERE, "--arch", platform.machine(), "--torch-free", "--out", house, "schema"]
    done = subprocess.run([sys.executable, script, *words], check=True, capture_output=True, text=True)
    sums = dict(reversed(line.split()) for line in (house / "SHA256SUMS").read_text().splitlines())
    assert sums == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in house.glob("*.whl")}
    assert not [name for name in sums if name.startswith("jumar") and "schema" not in name]

    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    printed = done.stdout.replace(f"python{HERE}", str(home / "bin/python"))
    asked = "from importlib.metadata import version; import jumar.schema.cli, jinja2; print(version('jumar-schema'))"
    lines = f'set -e\n{printed}\n{home}/bin/python -c "{asked}"'
    cut = [sys.executable, workspace.ROOT / "scripts/offline.py", "bash", "-c", lines]
    done = subprocess.run(cut, cwd=tmp_path, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == workspace.packages()["jumar-schema"].version


@needs_namespace
def test_a_network_that_is_cut_has_the_loopback_alone() -> None:
    code = """
import socket
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
print(*(name for _, name in socket.if_nameindex()))
"""
    cut = [sys.executable, workspace.ROOT / "scripts/offline.py", sys.executable, "-c", code]
    done = subprocess.run(cut, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "lo\n"), done.stderr
