"""What a doctor looks at on a machine with Ascend NPUs, from files and variables: no library of Ascend's is loaded."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from jumar.device import checks
from jumar.device.checks import Check, busy_ports, dynamic_port_check, interface_checks, run_checks
from jumar.device.npu_releases import how_to_install

SET_ENV = "source /usr/local/Ascend/ascend-toolkit/set_env.sh"
TOOLKIT = "/usr/local/Ascend/ascend-toolkit/latest"
HCCL_PORTS = 16  # HCCL listens from HCCL_IF_BASE_PORT on, one port a device (CANN environment variable reference)


def npu_checks(
    root: Path, environ: Mapping[str, str], installed: Callable[[str], str | None] = checks.installed
) -> Iterator[Check]:
    """Driver, CANN, versions, devices, HCCL. `root` stands for /, `installed` for the installed packages' versions."""
    every: dict[str, Callable[[], Iterator[Check]]] = {
        "NPU driver": lambda: _driver(root),
        "CANN": lambda: _cann(root, environ),
        "set_env.sh": lambda: _set_env(root, environ),
        "torch-npu": lambda: _versions(installed, _cann_version(root, environ)),
        "NPUs": lambda: _devices(root, environ),
        "HCCL": lambda: _hccl(root, environ),
        "/etc/hccn.conf": lambda: _hccn(root),
    }
    return run_checks(every)


def _within(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _driver(root: Path) -> Iterator[Check]:
    file = root / "usr/local/Ascend/driver/version.info"
    if not file.exists():
        hint = "install the NPU driver; in a container mount /usr/local/Ascend/driver"
        yield Check("NPU driver", "fail", "/usr/local/Ascend/driver/version.info is missing", "a driver", hint)
        return
    found = re.search(r"^Version=(\S+)", file.read_text(), re.MULTILINE)
    yield Check("NPU driver", "ok" if found else "warn", found[1] if found else f"no Version in {file}")


def _cann_version(root: Path, environ: Mapping[str, str]) -> str | None:
    home = _within(root, environ.get("ASCEND_HOME_PATH", TOOLKIT))
    candidates = [
        *sorted(home.glob("*-linux/ascend_toolkit_install.info")),
        home / "ascend_toolkit_install.info",
        home / "version.cfg",
    ]
    for file in candidates:
        if file.exists() and (found := re.search(r"version=\[?(?:[^:\]\n]*:)?([0-9][^\]\s]*)", file.read_text())):
            return found[1]
    return None


def _cann(root: Path, environ: Mapping[str, str]) -> Iterator[Check]:
    version = _cann_version(root, environ)
    if version is not None:
        yield Check("CANN", "ok", version)
        return
    lost = f"no version file in {environ.get('ASCEND_HOME_PATH', TOOLKIT)}"
    yield Check("CANN", "fail", lost, "CANN 8 or later", f"install CANN; {SET_ENV}")


def _set_env(root: Path, environ: Mapping[str, str]) -> Iterator[Check]:
    lost = [name for name in ("ASCEND_HOME_PATH", "ASCEND_OPP_PATH", "LD_LIBRARY_PATH") if not environ.get(name)]
    if lost:
        yield Check("set_env.sh", "fail", f"not set: {', '.join(lost)}", "CANN's variables", SET_ENV)
        return
    folders = [_within(root, folder) for folder in environ["LD_LIBRARY_PATH"].split(":") if folder]
    if not any((folder / "libhccl.so").exists() for folder in folders):
        yield Check(
            "set_env.sh",
            "fail",
            "LD_LIBRARY_PATH leads to no libhccl.so",
            "CANN's libraries",
            f"{SET_ENV} of the CANN that is installed",
        )
    elif not _within(root, environ["ASCEND_OPP_PATH"]).is_dir():
        hint = f"{SET_ENV}; install CANN's kernels package for this NPU"
        yield Check("set_env.sh", "fail", f"ASCEND_OPP_PATH={environ['ASCEND_OPP_PATH']} is no directory", "operators", hint)
    else:
        yield Check("set_env.sh", "ok", "ASCEND_HOME_PATH, ASCEND_OPP_PATH, libhccl.so")


def _versions(installed: Callable[[str], str | None], cann: str | None) -> Iterator[Check]:
    torch, torch_npu = installed("torch"), installed("torch-npu")
    if torch_npu is None:
        yield Check("torch-npu", "fail", "not installed", "of this CANN, of torch's X.Y.Z", how_to_install(cann, torch))
        return
    pair = f"torch {torch}, torch-npu {torch_npu}"
    if torch is None or _release(torch) != _release(torch_npu):
        hint = f"pip install torch=={'.'.join(_release(torch_npu))}"
        yield Check("torch-npu", "fail", pair, "the same X.Y.Z of both", hint)
    else:
        yield Check("torch-npu", "ok", pair)


def _release(version: str) -> list[str]:
    return re.split(r"[.+]", version)[:3]


def _devices(root: Path, environ: Mapping[str, str]) -> Iterator[Check]:
    folder = root / "dev"
    names = (path.name for path in folder.glob("davinci*")) if folder.is_dir() else iter(())
    numbers = sorted(int(name.removeprefix("davinci")) for name in names if name.removeprefix("davinci").isdigit())
    if not numbers:
        hint = "npu-smi info; docker run --device /dev/davinci0 ..., or the Ascend container runtime"
        yield Check("NPUs", "fail", "no /dev/davinci*", "one or more", hint)
    else:
        yield Check("NPUs", "ok", f"{len(numbers)}: {', '.join(f'davinci{n}' for n in numbers)}")
        lost = [name for name in ("davinci_manager", "devmm_svm", "hisi_hdc") if not (folder / name).exists()]
        if lost:
            flags = " ".join(f"--device /dev/{name}" for name in lost)
            yield Check(
                "NPU manager",
                "fail",
                f"missing: {', '.join('/dev/' + name for name in lost)}",
                "all three",
                f"docker run {flags}",
            )
    visible = environ.get("ASCEND_RT_VISIBLE_DEVICES")
    if visible is not None:
        yield _visible(visible, numbers)


def _visible(visible: str, numbers: list[int]) -> Check:
    name, hint = "ASCEND_RT_VISIBLE_DEVICES", "numbers, as 0,1,2,3; unset: all"
    chosen = [word.strip() for word in visible.split(",")]
    if not all(word.isdigit() for word in chosen):
        return Check(name, "fail", visible or "empty: no NPU is visible", "numbers", hint)
    if len(set(chosen)) != len(chosen):
        return Check(name, "fail", visible, "each once", hint)
    # In a container the devices may bear the host's numbers: positions count, not names.
    beyond = [word for word in chosen if int(word) >= len(numbers) and int(word) not in numbers]
    if beyond:
        return Check(name, "fail", visible, f"below {len(numbers)}", hint)
    return Check(name, "ok", visible)


def _hccl(root: Path, environ: Mapping[str, str]) -> Iterator[Check]:
    if (root / "sys/class/net").is_dir():
        found = interface_checks(root, environ, ("HCCL_SOCKET_IFNAME",))
        yield from (check for check in found if check.name == "HCCL_SOCKET_IFNAME")
    address = environ.get("HCCL_IF_IP")
    if address is not None:
        try:
            ipaddress.ip_address(address)
            yield Check("HCCL_IF_IP", "ok", address)
        except ValueError:
            yield Check(
                "HCCL_IF_IP", "fail", address, "an IP address of this machine", "ip addr; or unset it and set HCCL_SOCKET_IFNAME"
            )
    text = environ.get("HCCL_IF_BASE_PORT", "60000")
    if not text.isdigit() or not 1024 <= int(text) <= 65520:
        yield Check("HCCL ports", "fail", f"HCCL_IF_BASE_PORT={text}", "1024 to 65520", "unset HCCL_IF_BASE_PORT: 60000")
        return
    ports = list(range(int(text), int(text) + HCCL_PORTS))
    busy = busy_ports(ports)
    span = f"{ports[0]}-{ports[-1]}"
    if busy:
        hint = "stop what listens there (ss -ltnp), or export HCCL_IF_BASE_PORT=50000"
        yield Check("HCCL ports", "fail", f"in use: {', '.join(map(str, busy))}", f"{span} free", hint)
    else:
        yield Check("HCCL ports", "ok", f"{span} are free")
    yield from dynamic_port_check(root, "HCCL ports", ports)


def _hccn(root: Path) -> Iterator[Check]:
    file = root / "etc/hccn.conf"
    if not file.exists():
        hint = "on several machines: hccn_tool -i 0 -ip -s address ... netmask ...; in a container mount /etc/hccn.conf"
        yield Check("/etc/hccn.conf", "info", "missing", "the NPUs' own addresses, if several machines train together", hint)
        return
    addresses = re.findall(r"^address_(\d+)=(\S+)", file.read_text(), re.MULTILINE)
    twice = len({address for _, address in addresses}) != len(addresses)
    got = ", ".join(f"{number}: {address}" for number, address in addresses) or "no address_N lines"
    bad = twice or not addresses
    yield Check(
        "/etc/hccn.conf",
        "warn" if bad else "ok",
        got,
        "an address of its own for each NPU",
        "hccn_tool -i N -ip -s ..." if bad else "",
    )
