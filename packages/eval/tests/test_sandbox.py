"""Programs behind walls: those that are right pass, those that mean harm do none, and count as failed."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jumar.eval.sandbox import calls
from jumar.eval.sandbox.host import Sandbox, Verdict

HINDERED = Sandbox().hindered()
walled = pytest.mark.skipif(HINDERED is not None, reason=f"this machine gives no namespaces: {HINDERED}")
TESTS = "\nassert answer() == 42"
RIGHT = "def answer(): return 42"
WRITES = "import os\nfor fd in range(3, 64):\n  try: os.write(fd, b'passed' + bytes(99))\n  except OSError: pass\n"


@pytest.fixture(params=[pytest.param(True, marks=walled), False], ids=["walls", "bare"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return Sandbox(walls=request.param, memory=256 << 20)


def run(sandbox: Sandbox, program: str, seconds: float = 10) -> Verdict:
    return sandbox.run(program + TESTS, seconds)


def behind_walls(program: str, seconds: float = 10, **words: int) -> Verdict:
    return run(Sandbox(**words), program, seconds)


def test_the_end_is_what_counts(sandbox: Sandbox) -> None:
    assert run(sandbox, RIGHT) == Verdict("passed")
    assert run(sandbox, "def answer(): return 41") == Verdict("failed", "AssertionError:")
    assert run(sandbox, "def answer(: return 42").error.startswith("SyntaxError: invalid syntax")
    assert run(sandbox, "def answer(): raise KeyError('one\\ntwo')") == Verdict("failed", "KeyError: 'one\\ntwo'")
    assert run(sandbox, "answer = input") == Verdict("failed", "EOFError: EOF when reading a line")
    assert run(sandbox, f"{RIGHT}\nif __name__ == '__main__': answer = None").passed, "as code_eval has it"
    assert run(sandbox, f"{RIGHT}\nimport atexit, threading, time\nthreading.Thread(target=time.sleep, args=[99]).start()").passed


@pytest.mark.parametrize(
    "program, said",
    [
        ("import os; os._exit(0)", "it ended before its tests did (exit code 0)"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "ended by SIGTERM"),
        ("import ctypes; ctypes.string_at(0)", "ended by SIGSEGV"),
        (WRITES + "os._exit(0)", "it ended before its tests did"),
        (WRITES, "it ended before its tests did"),
        ("import os\nif os.fork(): os._exit(0)\nimport time; time.sleep(0.2)", "it ended before its tests did"),
        ("import os, sys\nos.execv('/proc/self/exe', [sys.executable, '-S', '-c', ''])", "it ended before its tests did"),
        ("class E(BaseException):\n  def __str__(self): raise self\nraise E", "an error that cannot be written"),
        ("raise Exception('x' * 10**6)", "Exception: xxx"),
    ],
    ids=["_exit", "SystemExit", "SIGTERM", "SIGSEGV", "writes, _exit", "writes", "fork", "exec", "unwritable", "long"],
)  # fmt: skip
def test_ending_without_the_tests_is_failing(sandbox: Sandbox, program: str, said: str) -> None:
    verdict = run(sandbox, f"{program}\n{RIGHT}")
    assert verdict.status == "failed"
    assert said in verdict.error
    assert len(verdict.error) <= 500


def test_bounds(sandbox: Sandbox) -> None:
    """Time, memory, output, files."""
    start = time.monotonic()
    assert run(sandbox, "while True: pass", seconds=0.5) == Verdict("timed out", "not done after 0.5 s")
    assert run(sandbox, "import time; time.sleep(99)", seconds=0.2).status == "timed out"
    assert run(sandbox, "while True: print('again' * 9999)", seconds=0.3).status == "timed out"
    assert time.monotonic() - start < 60
    assert run(sandbox, "x = bytearray(1 << 30)").status == "memory"
    assert "File too large" in run(sandbox, "open('big', 'wb').write(bytes(20 << 20))").error


def alive(mark: str) -> list[str]:
    return [line for line in subprocess.check_output(["ps", "-eo", "pid,args"], text=True).splitlines() if mark in line]


def test_what_a_program_has_started_ends_with_it(sandbox: Sandbox) -> None:
    """Also what has left its session, and lives on as an orphan."""
    mark = f"mark{os.getpid()}{sandbox.walls}"
    child = f"os.execv({sys.executable!r}, ['{mark}', '-S', '-c', 'import time; time.sleep(60)'])"
    if sandbox.walls:
        child = f"os.execv('/proc/self/exe', ['{mark}', '-S', '-c', 'import time; time.sleep(60)'])"
    fork = f"import os, time\nif not os.fork():\n  os.setsid()\n  if not os.fork(): {child}\n  os._exit(0)\ntime.sleep(0.5)\n"
    assert run(sandbox, fork + RIGHT).passed
    assert not alive(mark)
    assert run(sandbox, fork + "while True: pass", seconds=1).status == "timed out"
    assert not alive(mark)


# --- walls


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare, of util-linux, to ask")
def test_walls_are_built_where_they_can_be() -> None:
    """Where they cannot, the tests below are skipped: not for a fault of ours."""
    spaces = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--net", "--ipc", "--uts", "true"]
    assert (subprocess.run(spaces, capture_output=True).returncode != 0) == (HINDERED is not None), HINDERED


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("JUMAR_SECRET", "open sesame")
    return "open sesame"


@walled
def test_a_fork_bomb_is_bounded() -> None:
    """So many processes at once, and no more; none is left."""
    bomb = "import os\ncount = 0\ntry:\n  while os.fork(): count += 1\n  import time; time.sleep(60)\nexcept OSError as fault:\n"
    verdict = behind_walls(bomb + "  raise Exception(count, fault.errno)", seconds=20)
    assert verdict == Verdict("failed", "Exception: (31, 11)"), "as root too, whom no limit of processes would bind"
    assert behind_walls("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", seconds=0.5).status == "timed out"


@walled
def test_memory_of_all_processes_is_bounded_together() -> None:
    many = "import os, time\nfor _ in range(9):\n  if not os.fork():\n    x = bytearray(b'1') * (60 << 20)\n    time.sleep(60)\n"
    assert behind_walls(many + "time.sleep(60)", seconds=20, memory=200 << 20) == Verdict("memory", "more than 200 MiB")


@walled
@pytest.mark.parametrize("call", ["memfd_create", "shmget", "io_uring_setup", "bpf", "keyctl", "perf_event_open"])
def test_memory_of_nobody_and_doors_to_the_kernel_are_shut(call: str) -> None:
    number = calls.numbers()[call]
    program = f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nfound = libc.syscall({number}, 0, 4096, 0o1600, 0)\n"
    assert behind_walls(program + "raise Exception(found, ctypes.get_errno())") == Verdict("failed", "Exception: (-1, 1)")


@walled
def test_files_of_the_machine_are_out_of_reach(tmp_path: Path, secret: str) -> None:
    """Neither read nor written, nor deleted; its own directory is a new one each time."""
    victim = tmp_path / "thesis.tex"
    victim.write_text(secret)
    missing, read_only = (errno.ENOENT,), (errno.EROFS,)
    expected = {
        f"open({str(victim)!r}).read()": missing,
        f"shutil.rmtree({str(tmp_path)!r})": missing,
        f"os.remove({str(victim)!r})": missing,
        f"open({str(Path.home() / 'left')!r}, 'w')": missing + read_only,
        "open('/etc/passwd').read()": missing,
        "open('/usr/lib/left', 'w')": read_only,
        "open('/left', 'w')": read_only,
        "os.chmod(os.__file__, 0o777)": read_only,
        "os.mkdir('/proc/left')": missing,
        "open('/proc/sys/kernel/hostname', 'w')": (errno.EACCES,),
    }
    lines = ["import os, shutil", "found = []"]
    for program in expected:
        lines += ["try:", f"  {program}", "  found.append(0)", "except OSError as fault: found.append(fault.errno)"]
    verdict = behind_walls("\n".join([*lines, "raise Exception(*found)"]))
    found = re.findall(r"\d+", verdict.error)
    assert len(found) == len(expected), verdict
    for (program, numbers), number in zip(expected.items(), found, strict=True):
        assert int(number) in numbers, program
    assert victim.read_text() == secret
    assert not (Path.home() / "left").exists()
    for _ in range(2):
        assert behind_walls(f"open('own', 'x').write('mine')\nassert open('own').read() == 'mine'\n{RIGHT}").passed


@walled
def test_the_machine_s_disks_and_secrets_are_out_of_sight(secret: str) -> None:
    seen = "import os\nassert not os.environ\nassert os.listdir('/proc/self/fd') and not os.path.exists('/home')\n"
    seen += "paths = [f'/proc/{pid}/{name}' for pid in ('1', 'self') for name in ('environ', 'cmdline')]\n"
    seen += "texts = [open(path, 'rb').read() for path in paths if os.access(path, os.R_OK)]\n"
    seen += f"assert not any({secret.encode()!r} in text for text in texts)\n"
    seen += "assert {p for p in os.listdir('/proc') if p.isdigit()} == {'1', str(os.getpid())}\n"
    seen += "for path in ('/proc/1/mem', '/proc/1/environ', '/proc/1/root', '/proc/1/fd'):\n"
    seen += "  try: os.close(os.open(path, os.O_RDONLY))\n  except PermissionError: pass\n  else: raise Exception(path)\n"
    assert behind_walls(seen + RIGHT) == Verdict("passed")


@pytest.fixture
def listening() -> Iterator[tuple[int, str]]:
    """A port and an abstract address that wait for a visitor."""
    name = f"\0jumar-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(name)
        local.listen()
        yield server.getsockname()[1], name


@walled
def test_there_is_no_network(listening: tuple[int, str]) -> None:
    port, name = listening
    with socket.create_connection(("127.0.0.1", port)):
        pass
    for what in (f"socket.create_connection(('127.0.0.1', {port}), 1)", f"socket.socket(socket.AF_UNIX).connect({name!r})"):
        verdict = behind_walls(f"import socket\n{what}\n{RIGHT}")
        assert verdict.status == "failed"
        assert verdict.error.startswith("PermissionError: [Errno 1]"), verdict
    pair = "import asyncio\nasync def later():\n  await asyncio.sleep(0)\n  return 42\n"
    assert behind_walls(pair + "def answer(): return asyncio.run(later())").passed, "what a program needs of sockets for itself"


@walled
def test_it_is_nobody_without_any_rights() -> None:
    """Not the first process, nor a new namespace, where it would be root, nor a signal to whoever watches it."""
    import_libc = "import ctypes, os, signal\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    checks = (
        "assert os.getresuid() == os.getresgid() == (65534,) * 3, os.getresuid()",
        "status = open('/proc/self/status').read()",
        "assert 'CapEff:\\t0000000000000000' in status and 'CapBnd:\\t0000000000000000' in status",
        "assert 'NoNewPrivs:\\t1' in status",
        "assert libc.unshare(0x10000000) == -1, 'a user namespace'",
        "assert libc.ptrace(16, 1, 0, 0) == -1, 'ptrace'",
        "assert libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) == -1, 'mount'",
        "assert os.getppid() == 1",
    )
    assert behind_walls(import_libc + "\n".join(checks) + "\n" + RIGHT) == Verdict("passed")
    kill = (
        "import os\nfor pid, number in ((1, 19), (1, 9), (-1, 9), (0, 9)):\n  try: os.kill(pid, number)\n  except OSError: pass\n"
    )
    assert behind_walls(kill + RIGHT) == Verdict("failed", "ended by SIGKILL")


@walled
def test_a_launcher_that_dies_takes_its_program_along() -> None:
    """kill -9 on what runs programs: nothing of it lives on."""
    mark = f"sleeper{os.getpid()}"
    program = f"import os; os.execv('/proc/self/exe', ['{mark}', '-S', '-c', 'import time; time.sleep(60)'])"
    code = f"from jumar.eval.sandbox.host import Sandbox; Sandbox().run({program!r}, 60)"
    runs = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not alive(mark):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    runs.send_signal(signal.SIGKILL)
    runs.wait()
    while alive(mark):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@walled
def test_programs_run_side_by_side() -> None:
    verdicts: list[Verdict] = []
    threads = [threading.Thread(target=lambda: verdicts.append(behind_walls(RIGHT))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [Verdict("passed")] * 4
