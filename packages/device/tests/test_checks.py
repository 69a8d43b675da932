"""The doctor's facts, on machines that are folders."""

from __future__ import annotations

import socket

import pytest

from jumar.device.checks import host_checks, run_checks
from jumar.device.checks_cuda import cuda_checks
from jumar.device.checks_npu import npu_checks

TOOLKIT_INFO = "usr/local/Ascend/ascend-toolkit/latest/aarch64-linux/ascend_toolkit_install.info"


def write(root, **files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def machine(tmp_path):
    """A machine with two NPUs, CANN and all that belongs to it, and its environment."""
    write(
        tmp_path,
        **{
            "usr/local/Ascend/driver/version.info": "Version=24.1.rc3\nascendhal_version=7.35.23\n",
            TOOLKIT_INFO: "package_name=toolkit\nversion=8.2.RC1\n",
            "usr/local/Ascend/ascend-toolkit/latest/lib64/libhccl.so": "",
            "usr/local/Ascend/ascend-toolkit/latest/opp/version.info": "",
            "etc/hccn.conf": "address_0=192.168.100.101\nnetmask_0=255.255.255.0\naddress_1=192.168.100.102\n",
            "proc/sys/net/ipv4/ip_local_port_range": "32768 60999\n",
            "proc/sys/net/ipv4/ip_local_reserved_ports": "29500,60000-60015\n",
            "proc/meminfo": "MemTotal: 1048576 kB\nMemAvailable: 524288 kB\n",
            "sys/class/net/eth0/mtu": "1500",
            "sys/class/net/lo/mtu": "1500",
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54\nGCC version\n",
            **{f"dev/{name}": "" for name in ("davinci0", "davinci1", "davinci_manager", "devmm_svm", "hisi_hdc", "shm/x")},
        },
    )
    home = "/usr/local/Ascend/ascend-toolkit/latest"
    return tmp_path, {"ASCEND_HOME_PATH": home, "ASCEND_OPP_PATH": f"{home}/opp", "LD_LIBRARY_PATH": f"/lib:{home}/lib64"}


def versions(torch="2.7.1+cpu", torch_npu="2.7.1.post2"):
    return {"torch": torch, "torch-npu": torch_npu}.get


def found(root, environ, installed=None):
    return {check.name: check for check in npu_checks(root, environ, installed or versions())}


def test_a_sound_machine_has_no_complaint(machine):
    checks = found(*machine)
    assert {check.status for check in checks.values()} == {"ok"}, checks
    assert checks["NPU driver"].got == "24.1.rc3"
    assert checks["CANN"].got == "8.2.RC1"
    assert checks["NPUs"].got == "2: davinci0, davinci1"
    assert "192.168.100.102" in checks["/etc/hccn.conf"].got


def test_version_cfg_is_read_too(machine):
    root, environ = machine
    home = root / "usr/local/Ascend/ascend-toolkit/latest"
    (home / "aarch64-linux/ascend_toolkit_install.info").unlink()
    (home / "version.cfg").write_text("# version: 1.0\nruntime_running_version=[7.7.0.1.238:8.3.RC1]\n")
    assert found(root, environ)["CANN"].got == "8.3.RC1"


@pytest.mark.parametrize(
    ("gone", "name"),
    [
        ("usr/local/Ascend/driver/version.info", "NPU driver"),
        (TOOLKIT_INFO, "CANN"),
        ("usr/local/Ascend/ascend-toolkit/latest/lib64/libhccl.so", "set_env.sh"),
        ("dev/devmm_svm", "NPU manager"),
    ],
)
def test_what_is_missing_is_named(machine, gone, name):
    root, environ = machine
    (root / gone).unlink()
    check = found(root, environ)[name]
    assert check.status == "fail"
    assert check.hint


@pytest.mark.parametrize(
    ("variable", "value", "name", "says"),
    [
        ("ASCEND_HOME_PATH", "", "set_env.sh", "not set: ASCEND_HOME_PATH"),
        ("ASCEND_OPP_PATH", "/nowhere", "set_env.sh", "no directory"),
        ("ASCEND_RT_VISIBLE_DEVICES", "0,2", "ASCEND_RT_VISIBLE_DEVICES", "0,2"),
        ("ASCEND_RT_VISIBLE_DEVICES", "0,0", "ASCEND_RT_VISIBLE_DEVICES", "0,0"),
        ("ASCEND_RT_VISIBLE_DEVICES", "", "ASCEND_RT_VISIBLE_DEVICES", "no NPU is visible"),
        ("HCCL_SOCKET_IFNAME", "ens", "HCCL_SOCKET_IFNAME", "ens"),
        ("HCCL_IF_IP", "10.0.0", "HCCL_IF_IP", "10.0.0"),
        ("HCCL_IF_BASE_PORT", "65530", "HCCL ports", "65530"),
    ],
)
def test_variables_that_cannot_be_right(machine, variable, value, name, says):
    root, environ = machine
    check = found(root, environ | {variable: value})[name]
    assert check.status == "fail"
    assert says in check.got


def test_variables_that_are_right(machine):
    root, environ = machine
    more = {"ASCEND_RT_VISIBLE_DEVICES": "1", "HCCL_SOCKET_IFNAME": "eth", "HCCL_IF_IP": "10.0.0.1"}
    assert {check.status for check in found(root, environ | more).values()} == {"ok"}


@pytest.mark.parametrize(
    ("torch", "torch_npu", "status"), [("2.7.1", "2.7.1", "ok"), ("2.13.0+cpu", "2.12.0.post3", "fail"), ("2.7.1", None, "fail")]
)
def test_torch_npu_must_be_for_this_torch(machine, torch, torch_npu, status):
    check = found(*machine, versions(torch, torch_npu))["torch-npu"]
    assert check.status == status
    if status == "fail":
        assert "pip install" in check.hint


@pytest.mark.parametrize(
    ("cann", "torch", "hint"),
    [
        ("9.0.0", "2.9.0+cpu", "pip install torch-npu==2.9.0.post2"),
        ("9.0.0", "2.13.0+cpu", "pip install torch==2.10.0 torch-npu==2.10.0; other pairs of CANN 9.0.0: docs/versions.md"),
        ("8.3.RC1", None, "pip install torch==2.8.0 torch-npu==2.8.0; other pairs"),
        ("8.2.RC1", "2.13.0", "those of CANN 8.2.RC1, by https://"),
        (None, "2.13.0", "install CANN, then torch and torch-npu of its row in docs/versions.md; with CANN"),
    ],
)
def test_torch_npu_that_is_missing_is_that_of_the_cann(machine, cann, torch, hint):
    root, environ = machine
    (root / TOOLKIT_INFO).write_text(f"version={cann}\n" if cann else "")
    check = found(root, environ, versions(torch, None))["torch-npu"]
    assert check.status == "fail"
    assert hint in check.hint
    assert "2.13.0" not in check.hint  # that no CANN has


def test_ports_that_are_taken_or_may_be(machine):
    root, environ = machine
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = min(listener.getsockname()[1], 65520)
        check = found(root, environ | {"HCCL_IF_BASE_PORT": str(port)})["HCCL ports"]
        assert check.status == "fail"
        assert str(port) in check.got
    (root / "proc/sys/net/ipv4/ip_local_reserved_ports").write_text("\n")
    check = found(root, environ)["HCCL ports range"]
    assert check.status == "warn"
    assert "60000-60015" in check.hint


def test_addresses_that_stand_twice(machine):
    root, environ = machine
    (root / "etc/hccn.conf").write_text("address_0=1.1.1.1\naddress_1=1.1.1.1\n")
    assert found(root, environ)["/etc/hccn.conf"].status == "warn"


def test_the_host(machine):
    root, _ = machine
    checks = {check.name: check for check in host_checks(root, {"GLOO_SOCKET_IFNAME": "eth", "MASTER_PORT": "abc"})}
    assert checks["memory"].got == "0.5 GiB available of 1.0"
    assert checks["network interfaces"].got == "eth0, lo"
    assert checks["GLOO_SOCKET_IFNAME"].status == "fail"  # gloo wants the whole name
    assert checks["MASTER_PORT"].status == "fail"
    assert checks["ulimit -n"].got
    assert checks["/dev/shm"].got
    better = {check.name: check for check in host_checks(root, {"GLOO_SOCKET_IFNAME": "eth0"})}
    assert better["GLOO_SOCKET_IFNAME"].status == "ok"
    assert "MASTER_PORT range" not in better  # it lies below the range


def test_the_cuda_driver(machine):
    root, environ = machine
    checks = {check.name: check for check in cuda_checks(root, environ)}
    assert "550.54" in checks["NVIDIA driver"].got
    assert "CUDA of torch" in checks


@pytest.mark.parametrize("look", [host_checks, npu_checks, cuda_checks])
def test_nothing_raises_where_there_is_nothing(tmp_path, look):
    checks = list(look(tmp_path, {}))
    assert checks
    assert all(check.got and (check.hint or check.status in ("ok", "info")) for check in checks)


def test_a_check_that_cannot_look_says_so():
    def broken():
        raise PermissionError("not for you")
        yield

    (check,) = run_checks({"disk": broken})
    assert (check.name, check.status) == ("disk", "info")
    assert "not for you" in check.got
