"""Programs run from here: each by a launcher of its own, which shares nothing with this process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from jumar.schema.errors import Exit, ToolError

Status = Literal["passed", "failed", "timed out", "memory"]
MEMORY_BYTES = 1 << 30
LAUNCH = "import sys; sys.path.append(sys.argv[1]); from jumar.eval.sandbox.launcher import main; main()"
GRACE_S = 90
"""For interpreters to start, on a machine that has much else to do."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a program ended; error: the last line of what it failed with."""

    status: Status
    error: str = ""

    @property
    def passed(self) -> bool:
        return self.status == "passed"


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Runs programs, from several threads if need be. memory: bytes, of all processes of a program.

    walls: in namespaces of its own; False: with limits, a session and an empty directory of its own, and nothing more
    """

    walls: bool = True
    memory: int = MEMORY_BYTES

    def run(self, program: str, seconds: float) -> Verdict:
        """Passed: it came to its last line without an error. Raises ToolError (4) where it could not be run at all."""
        outcome = self._outcome(program, seconds)
        if outcome["status"] == "fault":
            raise ToolError(
                f"a program could not be run: {outcome['error']}",
                hint="go on with --resume, with fewer programs about",
                code=Exit.ENVIRONMENT,
            )
        return Verdict(outcome["status"], outcome["error"])

    def hindered(self) -> str | None:
        """Why nothing can be run so on this machine; None: it can."""
        if self.walls and sys.platform != "linux":
            return f"{sys.platform} has none"
        outcome = self._outcome("import ctypes, hashlib, math", 60)
        return None if outcome["status"] == "passed" else outcome["error"]

    def _outcome(self, program: str, seconds: float) -> dict[str, Any]:
        order = {"program": program, "seconds": seconds, "memory": self.memory, "walls": self.walls, **_interpreter()}
        if self.walls:
            return _launched(order, "/")
        with tempfile.TemporaryDirectory(prefix="jumar-program-", ignore_cleanup_errors=True) as folder:
            return _launched(order, folder)


def _launched(order: dict[str, Any], folder: str) -> dict[str, Any]:
    python, root = order["python"], str(Path(__file__).parents[3])
    launcher = subprocess.Popen(
        [python, "-I", "-S", "-B", "-c", LAUNCH, root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={},
        start_new_session=True,
    )
    try:
        told, said = launcher.communicate(json.dumps(order).encode(), timeout=order["seconds"] + GRACE_S)
    except BaseException as fault:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.communicate()
        if not isinstance(fault, subprocess.TimeoutExpired):
            raise
        return {"status": "fault", "error": f"nothing was heard of it for {fault.timeout:g} s"}
    try:
        found: dict[str, Any] = json.loads(told)
    except ValueError:
        last = said.decode("utf-8", "replace").strip().splitlines()[-1:]
        return {"status": "fault", "error": last[0] if last else f"the launcher ended with {launcher.returncode}"}
    return found


@cache
def _interpreter() -> dict[str, Any]:
    """The interpreter behind the one that runs here, and what it is made of."""
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    prefix = os.path.realpath(sys.base_prefix)
    paths = {
        python,
        f"{prefix}/lib",
        f"{prefix}/lib64",
        "/lib",
        "/lib64",
        "/usr/lib",
        "/usr/lib64",
        "/nix/store",
        "/etc/ld.so.cache",
    }
    bases = {"installed_base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    paths |= {os.path.realpath(sysconfig.get_path(name, vars=bases)) for name in ("stdlib", "platstdlib")}
    own = sorted(path for path in paths if not any(path.startswith(other + "/") for other in paths))
    return {"python": python, "paths": own, "inside": Path(__file__).with_name("inside.py").read_text(encoding="utf-8")}
