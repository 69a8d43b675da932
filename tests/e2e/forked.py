"""`jumar-train` as forks of one process that has imported torch and megatron-core, which takes most of the time of a tiny run.

A fork begins where the command does, in cli.main, with arguments, variables and streams of its own. What a test has to say of
the command itself, of its launcher or of signals, it says of the real one.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from unittest import mock

from jumar.train_core.launch import QUIET

CONTEXT = multiprocessing.get_context("forkserver")
COMMAND = "jumar-train"


def start(
    words: Sequence[str], out: Path, env: Mapping[str, str], *, cwd: Path | None = None, script: Path | None = None
) -> ForkServerProcess:
    """`jumar-train WORDS`, or `python SCRIPT WORDS`. out: what it prints, on both streams; env: all of its variables."""
    _server()
    line = [COMMAND if script is None else str(script), *map(str, words)]
    process = CONTEXT.Process(target=_run, args=(line, out, dict(env), cwd or Path.cwd()), name=str(out))
    process.start()
    return process


def start_ranks(
    ranks: int, words: Sequence[str], out: Path, env: Mapping[str, str], *, script: Path | None = None
) -> list[ForkServerProcess]:
    """As many, with what torchrun would set for them. Ranks after the first print to OUT.1 and so on."""
    common = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    places = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    return [start(words, printed(out, rank), {**env, **place}, script=script) for rank, place in enumerate(places)]


def printed(out: Path, rank: int) -> Path:
    return out.with_name(f"{out.name}.{rank}") if rank else out


def end(started: Sequence[ForkServerProcess], timeout: float, *, together: bool = False) -> list[int]:
    """Their exit codes. Who is not soon enough is killed; together: also those that would wait for one that has failed."""
    until = time.monotonic() + timeout
    try:
        while going := [each for each in started if each.exitcode is None]:
            left = until - time.monotonic()
            assert left > 0, "\n---\n".join(
                [f"still there after {timeout} s", *(Path(each.name).read_text() for each in started)]
            )
            if together and any(each.exitcode for each in started):
                break
            connection.wait([each.sentinel for each in going], left)
    finally:
        for each in started:
            each.kill()
            each.join()
    return [int(each.exitcode or 0) for each in started]


def who_failed(codes: Sequence[int]) -> int:
    """The rank that failed, of several of which the others were killed then."""
    return next((rank for rank, code in enumerate(codes) if code not in (0, -signal.SIGKILL)), 0)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _server() -> None:
    """Starts the process that all are forked from, if it is not there."""
    CONTEXT.set_forkserver_preload(["forked_imports"])
    here, path = str(Path(__file__).parent), os.environ.get("PYTHONPATH")
    variables = {"PYTHONPATH": os.pathsep.join(filter(None, [here, path])), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    variables |= QUIET  # as the command does before it imports torch
    with mock.patch.dict(os.environ, variables):
        forkserver.ensure_running()


def _run(line: Sequence[str], out: Path, env: Mapping[str, str], cwd: Path) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.argv = list(line)
    if line[0] != COMMAND:
        runpy.run_path(line[0], run_name="__main__")
        return
    from jumar.train_core import cli

    cli.main()
