"""A process for each program: builds the walls, starts the program behind them, watches it, tells how it ended.

The first process outlives the namespaces. Of its children one is process 1 in there: when that ends, the kernel ends everything
that the program has started. An order comes as JSON by standard input, the outcome goes as JSON to standard output.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn, TypedDict

from jumar.eval.sandbox import calls, inside, kernel, walls

TICK_S = 0.02
START_S = 60
"""An interpreter that has not begun by then never will."""
TOLD_BYTES = 4096
PROCESSES, FILES, FILE_BYTES = 32, 64, 16 << 20


class Order(TypedDict):
    """program: its text. python: the interpreter; inside: what it runs; paths: what it needs. memory: bytes of all processes."""

    program: str
    seconds: float
    memory: int
    walls: bool
    python: str
    inside: str
    paths: list[str]


class Outcome(TypedDict):
    """status: passed, failed, timed out, memory; fault: what the program has nothing to do with."""

    status: str
    error: str


def main() -> None:
    if sys.platform == "linux":
        kernel.die_with_parent()
    order: Order = json.load(sys.stdin)
    told, tell = os.pipe()
    (_behind_walls if order["walls"] else _without_walls)(order, tell)
    os.close(tell)
    with open(told, "rb") as pipe:
        sys.stdout.write(pipe.read().decode() or json.dumps(_fault("the process that watched it was killed")))
    sys.stdout.flush()


def _fault(what: str) -> Outcome:
    return {"status": "fault", "error": what}


def _spawn(work: Callable[[], None], tell: int) -> int:
    """A child that does `work`, or tells what hindered it. It dies with this process."""
    if pid := os.fork():
        return pid
    try:
        if sys.platform == "linux":
            kernel.die_with_parent()
        work()
    except BaseException as fault:  # noqa: BLE001  # whatever it is, it is told
        os.write(tell, json.dumps(_fault(str(fault) or repr(fault))).encode())
    finally:
        os._exit(0)


def _behind_walls(order: Order, tell: int) -> None:
    unshared, say_unshared = os.pipe()
    mapped, say_mapped = os.pipe()

    def outer() -> None:
        os.close(say_mapped)
        kernel.unshare(walls.NAMESPACES)
        os.write(say_unshared, b"+")
        if os.read(mapped, 1):
            os.waitpid(_spawn(first, tell), 0)

    def first() -> None:
        walls.build(order["paths"])
        _finish(order, tell)

    child = _spawn(outer, tell)
    os.close(say_unshared)
    try:
        if os.read(unshared, 1):
            walls.map_ids(child)
            os.write(say_mapped, b"+")
    except OSError as fault:
        os.write(tell, json.dumps(_fault(str(fault))).encode())
    os.close(say_mapped)
    os.waitpid(child, 0)


def _without_walls(order: Order, tell: int) -> None:
    """In this directory. Who leaves the program's session is found as a child of this process."""
    if sys.platform == "linux":
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    try:
        _finish(order, tell)
    except OSError as fault:
        os.write(tell, json.dumps(_fault(str(fault))).encode())


def _finish(order: Order, tell: int) -> None:
    os.write(tell, json.dumps(_watched(order)).encode())


# --- the program


def _watched(order: Order) -> Outcome:
    first_half, second_half = os.urandom(inside.HALF // 2).hex().encode(), os.urandom(inside.HALF // 2).hex().encode()
    report, end = os.pipe()
    proof, give_proof = os.pipe()
    os.write(give_proof, second_half)
    source = os.open("program", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink("program")
    with open(source, "r+b", closefd=False) as file:
        file.write(first_half + order["program"].encode("utf-8", "surrogatepass"))
    os.lseek(source, 0, os.SEEK_SET)
    null = os.open("/dev/null", os.O_RDWR)
    if order["walls"]:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # none may look into process 1
    pid = os.fork()
    if pid == 0:
        _become(order, [source, null, null, end, proof])
    for descriptor in (end, proof, source, null):
        os.close(descriptor)
    told, status, why = _watch(pid, report, order)
    return why or _judged(told, status, first_half + second_half)


def _become(order: Order, descriptors: list[int]) -> NoReturn:
    """This process becomes the program's interpreter."""
    try:
        os.setsid()
        high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64) for descriptor in descriptors]
        for number, descriptor in enumerate(high):
            os.dup2(descriptor, number)
        if order["walls"]:
            kernel.drop_capabilities(walls.NOBODY if os.getuid() == 0 else None)
            calls.forbid()
        _limit(order)
        arguments = [order["python"], "-s", "-S", "-B", "-c", order["inside"]]
        os.execve(order["python"], arguments, {"PYTHONHASHSEED": "0"})  # the same order of sets each time
    except BaseException as fault:  # noqa: BLE001  # whatever it is, it is told
        os.write(3, f"!{order['python']}: {fault!r}".encode("utf-8", "replace"))
    finally:
        os._exit(127)


def _limit(order: Order) -> None:
    cpu_s = 4 * int(order["seconds"]) + 2  # of several threads; by the clock it is ended sooner
    bounds = [
        ("CPU", cpu_s),
        ("AS", order["memory"]),
        ("NPROC", PROCESSES),
        ("FSIZE", FILE_BYTES),
        ("NOFILE", FILES),
        ("CORE", 0),
    ]
    for name, bound in (*bounds, ("MSGQUEUE", 0)):
        if (number := getattr(resource, f"RLIMIT_{name}", None)) is None:
            continue
        hard = resource.getrlimit(number)[1]
        low = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        soft = max(low - 1, 0) if name == "CPU" else low  # a signal that says so comes before the one that does not
        if sys.platform == "linux":
            resource.setrlimit(number, (soft, low))
        else:
            with contextlib.suppress(ValueError, OSError):  # not every system keeps every limit
                resource.setrlimit(number, (soft, low))


def _watch(pid: int, report: int, order: Order) -> tuple[bytes, int, Outcome | None]:
    """(what it told, its status as of waitpid, why it was ended). At the end none of its processes is left, or will be."""
    told, open_, status = b"", True, None
    deadline = time.monotonic() + START_S
    try:
        while status is None:
            if select.select([report] if open_ else [], [], [], TICK_S)[0]:
                chunk = os.read(report, TOLD_BYTES)
                if chunk and not told:
                    deadline = time.monotonic() + order["seconds"]
                told += chunk
                open_ = bool(chunk) and len(told) <= TOLD_BYTES
            if time.monotonic() > deadline and not told:
                return told, 0, _fault(f"the interpreter had not begun after {START_S} s")
            if time.monotonic() > deadline:
                return told, 0, {"status": "timed out", "error": f"not done after {order['seconds']:g} s"}
            if order["walls"] and _memory() > order["memory"]:
                return told, 0, {"status": "memory", "error": f"more than {order['memory'] >> 20} MiB"}
            status = _reaped(pid)
        while open_ and select.select([report], [], [], 0)[0] and (chunk := os.read(report, TOLD_BYTES)):
            told += chunk
            open_ = len(told) <= TOLD_BYTES
        return told, status, None
    finally:
        if not order["walls"]:
            _end_all(pid)


def _reaped(pid: int) -> int | None:
    """The program's status, once it has ended. Of others that ended nothing is left."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            if found[0] == pid:
                return found[1]
    return None


def _memory() -> int:
    """Bytes that all processes but this one, which is 1, hold."""
    pages = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            with contextlib.suppress(OSError), open(f"/proc/{name}/statm") as file:
                pages += int(file.read().split()[1])
    return pages * resource.getpagesize()


def _end_all(pid: int) -> None:
    """The program's session, then whoever has left it: orphans become children of this process."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    while sys.platform == "linux" and (children := _children()):
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        _reaped(pid)


def _children() -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
            if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(name))
    return found


def _name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _judged(told: bytes, status: int, proof: bytes) -> Outcome:
    if not told.startswith(b"+"):
        return _fault(told[1:].decode("utf-8", "replace") or f"the interpreter did not start (status {status})")
    if told == b"+" + proof and status == 0:
        return {"status": "passed", "error": ""}
    if told.startswith(b"+-"):
        lines = told[2:].decode("utf-8", "replace").strip().splitlines() or [""]
        last = re.sub(r"\b0x[0-9a-f]{6,}\b", "0x...", lines[-1])[:500]  # addresses are others each time
        return {"status": "memory" if lines[0].startswith("MemoryError") else "failed", "error": last}
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return {"status": "timed out" if number == signal.SIGXCPU else "failed", "error": f"ended by {_name(number)}"}
    return {"status": "failed", "error": f"it ended before its tests did (exit code {os.waitstatus_to_exitcode(status)})"}
