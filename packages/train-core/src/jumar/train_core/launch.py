"""Starting the ranks of one machine, and saying how they ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil  # type: ignore[import-untyped,unused-ignore]

from jumar.schema.errors import Exit, ToolError
from jumar.train_core.exit_file import Ended, ExitFile
from jumar.train_core.nodes import Nodes
from jumar.train_core.parent import STARTED_BY
from jumar.train_core.run.complete import step_here
from jumar.train_core.run.stop import Stop

LAUNCHED = "JUMAR_TRAIN_LAUNCHED"
"""Set for ranks that `launch` started, to the number of machines: it has checked the recipe and said what there is to say."""

ALONE = Nodes()

QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
"""On one machine, where torch's c10d has nothing to warn of but that 127.0.0.1 has no name without a network."""
PATIENCE_S = float(os.environ.get("JUMAR_COLLECTIVE_TIMEOUT_S", 1800))
"""How long a rank waits for the others, in a collective or before the first one, until it gives up."""
ASKED = Stop.SIGNALS
"""Signals by which somebody asks a run to stop; torchrun ends the other ranks with SIGTERM when one has failed."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which rank a process is."""

    rank: int
    world: int
    launched: bool


def place(environ: Mapping[str, str]) -> Place | None:
    """This process's rank, from torchrun's variables; None where there are none.

    A pod of a PyTorchJob has RANK and WORLD_SIZE before torchrun, which count machines.
    """
    if "PET_NNODES" in environ and "LOCAL_RANK" not in environ:
        return None
    try:
        return Place(int(environ["RANK"]), int(environ["WORLD_SIZE"]), LAUNCHED in environ)
    except (KeyError, ValueError):
        return None


def alone(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of a run of one process, which needs no torchrun."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    one = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    return one | {"MASTER_ADDR": environ.get("MASTER_ADDR", "127.0.0.1"), "MASTER_PORT": environ.get("MASTER_PORT", str(port))}


def launch(
    nproc: int, arguments: Sequence[str], run: Path | None, *, module: str = "jumar.train_core", nodes: Nodes = ALONE
) -> int:
    """Runs `python -m MODULE ARGUMENTS` as `nproc` ranks on this machine and returns the run's exit code.

    run: the run's directory, whose exit.json the ranks write. nodes: this machine among others, which do the same. SIGTERM,
    SIGINT and SIGUSR1 are passed to every rank of this machine once, and the ranks are waited for; a second one ends them.
    Raises ToolError (4) if a rank was killed, and what another machine has said of the end.
    """
    ended, first = ExitFile(run), nodes.rank * nproc
    mine = range(first, first + nproc)
    with tempfile.TemporaryDirectory(prefix="jumar-train-") as folder:
        failures = Path(folder) / "failures.json"
        torchrun = ["jumar.train_core.torchrun", str(os.getpid()), str(failures), str(nproc)]
        command = [sys.executable, "-m", *torchrun, module, *arguments]
        quiet = QUIET if nodes.count == 1 else {}
        environ = {**quiet, **os.environ, LAUNCHED: str(nodes.count), "PET_NNODES": str(nodes.count)}
        with _Signals() as signals:
            # A session of its own: Ctrl-C in a terminal reaches this process alone, and from here each rank once.
            process = subprocess.Popen(command, env=environ, start_new_session=True)
            signals.started(process)
            code = process.wait()
            while code < 0 and _left_by(process.pid):  # they end by themselves, and save first what there is to save
                time.sleep(0.2)
        found: dict[str, Any] = json.loads(failures.read_text(encoding="utf-8")) if failures.exists() else {}
    try:
        outcome = _outcome(code, found, ended.read(), signals.received, run, mine)
    except ToolError as fault:
        ended.write(fault.code, fault.message, first)
        raise
    ended.write(outcome, "", first)  # where no rank could
    told = ended.read()
    if told is not None and told.message and told.rank not in mine:
        raise ToolError(f"rank {told.rank}: {told.message}", hint="the log of its machine says more", code=Exit(told.code))
    return outcome


class _Signals:
    """Passes what asks a run to stop on to its ranks, while inside."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.received = 0
        self._before: dict[int, Any] = {}

    def started(self, process: subprocess.Popen[bytes]) -> None:
        """From now on there is someone to pass them on to."""
        self.process = process
        if self.received:
            process.terminate()

    def __enter__(self) -> _Signals:
        for number in ASKED:
            self._before[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self.received += 1
        if self.process is None:
            return
        # To the ranks and not to torchrun, which would end them 30 seconds later, in the middle of a checkpoint.
        ranks = _ranks(self.process.pid)
        for rank in ranks:
            _send(rank, number if self.received == 1 else signal.SIGKILL)
        if self.received > 1 or not ranks:
            self.process.terminate()


def _ranks(parent: int) -> list[int]:
    """Process ids of the ranks: torchrun's children."""
    try:
        return [child.pid for child in psutil.Process(parent).children()]
    except psutil.Error:
        return []


def _left_by(torchrun: int) -> bool:
    """Whether there are ranks yet of a torchrun that is gone. Those that nobody has buried have no environment."""
    for each in psutil.process_iter():
        try:
            if each.environ().get(STARTED_BY) == str(torchrun):
                return True
        except (psutil.Error, OSError):
            continue
    return False


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _outcome(
    code: int, failures: Mapping[str, Any], ended: Ended | None, signals: int, run: Path | None, mine: range | None = None
) -> int:
    """The exit code of a run, from what its ranks wrote and from those of this machine's (`mine`; None: all)."""
    if signals > 1:
        return Exit.INTERRUPTED
    codes = {int(rank): int(failure["exitcode"]) for rank, failure in failures.items()}
    killed = {rank: -code for rank, code in codes.items() if code < 0 and -code not in ASKED}
    elsewhere = ended is not None and mine is not None and ended.rank not in mine
    if killed and (ended is None or elsewhere or ended.code in (Exit.OK, Exit.BUG)):
        raise _dead(f"rank {min(killed)}", killed[min(killed)], run)
    if ended is not None and (ended.code or code == 0):
        return ended.code
    if code == 0:
        return Exit.OK
    if code < 0 and not signals:
        raise _dead("torchrun, which starts the ranks,", -code, run)
    own = [codes[rank] for rank in sorted(codes) if codes[rank] > 0]
    return own[0] if own else Exit.INTERRUPTED if signals else Exit.BUG


def _dead(who: str, number: int, run: Path | None) -> ToolError:
    why = {signal.SIGKILL: "out of memory?", signal.SIGSEGV: "a fault in native code", signal.SIGBUS: "is shared memory full?"}
    known = f" ({why[signal.Signals(number)]})" if number in why else ""
    step = step_here(run)
    again = f"the same command goes on from step {step}" if step else "the same command begins again: no checkpoint is there"
    more = "; a smaller train.micro_batch_size or features.recompute takes less memory" if number == signal.SIGKILL else ""
    return ToolError(f"{who} was killed by signal {number}{known}", hint=again + more, code=Exit.ENVIRONMENT)
