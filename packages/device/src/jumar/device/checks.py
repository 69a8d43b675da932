"""What a doctor looks at on any machine. Every check says what it got and what to do; none of them raises."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

Status = Literal["ok", "warn", "fail", "info"]
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. "fail": it will not run; "warn": it may not, or slowly; "info": nothing to judge."""

    name: str
    status: Status
    got: str
    expected: str = ""
    hint: str = ""


def run_checks(checks: Mapping[str, Callable[[], Iterable[Check]]]) -> Iterator[Check]:
    """What they find; one that cannot look says so, under its name, instead of raising."""
    for name, check in checks.items():
        try:
            yield from check()
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError) as error:
            yield Check(name, "info", f"could not be looked at: {error}")


def host_checks(root: Path, environ: Mapping[str, str]) -> Iterator[Check]:
    """torch, cores, memory, /dev/shm, limits, interfaces and the rendezvous port. `root` stands for /."""

    def torch_version() -> Iterator[Check]:
        found = installed("torch")
        yield Check(
            "torch", "fail" if found is None else "ok", found or "not installed", ">=2.7", "" if found else "pip install torch"
        )

    def cores() -> Iterator[Check]:
        usable, all_cores = len(os.sched_getaffinity(0)), os.cpu_count() or 0
        threads = environ.get("OMP_NUM_THREADS", "not set")
        yield Check("cores", "info", f"{usable} usable of {all_cores}, OMP_NUM_THREADS {threads}")

    def memory() -> Iterator[Check]:
        fields = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines() if ":" in line)
        total, free = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
        yield Check("memory", "info", f"{free / GIB:.1f} GiB available of {total / GIB:.1f}")

    def shared_memory() -> Iterator[Check]:
        stat = os.statvfs(root / "dev/shm")
        yield _shared_memory(stat.f_blocks * stat.f_frsize)

    def interfaces() -> Iterator[Check]:
        yield from interface_checks(root, environ, ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"))

    every: dict[str, Callable[[], Iterable[Check]]] = {
        "torch": torch_version,
        "cores": cores,
        "memory": memory,
        "/dev/shm": shared_memory,
        "ulimit": _limits,
        "network interfaces": interfaces,
        "MASTER_PORT": lambda: _rendezvous(root, environ),
    }
    return run_checks(every)


def installed(package: str) -> str | None:
    """The version of an installed package, without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _shared_memory(size_bytes: int) -> Check:
    got = f"{size_bytes / GIB:.2f} GiB"
    if size_bytes < GIB:
        return Check(
            "/dev/shm", "warn", got, ">= 1 GiB", "docker run --ipc=host, or --shm-size=16g: data workers and gloo share memory"
        )
    return Check("/dev/shm", "ok", got, ">= 1 GiB")


def _limits() -> Iterator[Check]:
    wanted = (("-n", resource.RLIMIT_NOFILE, 4096), ("-u", resource.RLIMIT_NPROC, 4096), ("-l", resource.RLIMIT_MEMLOCK, None))
    for flag, limit, least in wanted:
        soft, _ = resource.getrlimit(limit)
        got = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
        if least is None:  # pinned memory and RDMA; harmless where there is neither
            yield Check(f"ulimit {flag}", "info", got if got == "unlimited" else f"{soft // 1024} KiB", "unlimited for RDMA")
        elif soft != resource.RLIM_INFINITY and soft < least:
            yield Check(f"ulimit {flag}", "warn", got, f">= {least}", f"ulimit {flag} 65536")
        else:
            yield Check(f"ulimit {flag}", "ok", got, f">= {least}")


def interface_checks(root: Path, environ: Mapping[str, str], variables: Iterable[str]) -> Iterator[Check]:
    """The machine's network interfaces, and whether the variables that choose one name one that is there."""
    there = sorted(path.name for path in (root / "sys/class/net").iterdir())
    yield Check("network interfaces", "info", ", ".join(there) or "none")
    for variable in variables:
        value = environ.get(variable)
        if value is None:
            continue
        # NCCL and HCCL read prefixes, "=" before an exact name and "^" before what is not to be used.
        excluded, exact = value.startswith("^"), value.lstrip("^").startswith("=") or variable.startswith(("GLOO", "TP"))
        names = [name for name in value.lstrip("^=").split(",") if name]
        lost = [name for name in names if not any(t == name if exact else t.startswith(name) for t in there)]
        if lost and not excluded:
            yield Check(
                variable, "fail", value, f"one of {', '.join(there)}", f"export {variable}=NAME, a name that `ip addr` lists"
            )
        else:
            yield Check(variable, "ok", value)


def _rendezvous(root: Path, environ: Mapping[str, str]) -> Iterator[Check]:
    text = environ.get("MASTER_PORT", "29500")
    if not text.isdigit() or not 0 < int(text) < 65536:
        yield Check("MASTER_PORT", "fail", text, "a port number", "export MASTER_PORT=29500")
        return
    port, address = int(text), environ.get("MASTER_ADDR", "127.0.0.1")
    if address not in ("127.0.0.1", "localhost", socket.gethostname()):
        yield Check("MASTER_PORT", "info", f"{port} on {address}, not looked at from here")
    elif port in busy_ports([port]):
        yield Check(
            "MASTER_PORT", "warn", f"{port} is in use", "a free port", "export MASTER_PORT=29501, or stop the job that has it"
        )
    else:
        yield Check("MASTER_PORT", "ok", f"{port} is free")
    yield from dynamic_port_check(root, "MASTER_PORT", [port])


def busy_ports(ports: Iterable[int]) -> list[int]:
    """Those TCP ports of this machine that cannot be listened on."""
    busy = []
    for port in ports:
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # left-over connections do not count
            try:
                tried.bind(("", port))
            except OSError:
                busy.append(port)
    return busy


def dynamic_port_check(root: Path, name: str, ports: list[int]) -> Iterator[Check]:
    """Warn where the kernel may hand out one of the ports to any program that connects somewhere."""
    folder = root / "proc/sys/net/ipv4"
    first, last = map(int, (folder / "ip_local_port_range").read_text().split())
    reserved_file = folder / "ip_local_reserved_ports"
    reserved = _ranges(reserved_file.read_text()) if reserved_file.exists() else set()
    open_ports = [port for port in ports if first <= port <= last and port not in reserved]
    if open_ports:
        span = f"{ports[0]}-{ports[-1]}" if len(ports) > 1 else str(ports[0])
        yield Check(
            f"{name} range",
            "warn",
            f"{span} lies in ip_local_port_range {first}-{last}",
            "reserved ports",
            f"sysctl -w net.ipv4.ip_local_reserved_ports={span}: else another program may be given one",
        )


def _ranges(text: str) -> set[int]:
    spans = (part.split("-") for part in text.strip().split(",") if part)
    return {port for span in spans for port in range(int(span[0]), int(span[-1]) + 1)}
