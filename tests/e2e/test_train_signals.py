"""Asked to stop, killed, frozen: nothing hangs, the code is right, and the next run goes on exactly."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import psutil
import pytest

from training import (
    DONE,
    ENVIRONMENT,
    INTERRUPTED,
    STOPPED,
    TWO,
    Going,
    Run,
    command,
    environment,
    finish,
    going,
    make_run,
    torchrun,
    train,
)

pytestmark = pytest.mark.timeout(1200)  # processes on a machine that others use as well
ENDLESS = {"train.steps": 4000, "save.every": 4000, "schedule.decay_steps": 40}
SOON = 90
"""Seconds within which everything ends, on a machine that others use as well: a few where it is ours."""


def endless(folder: Path, **settings: object) -> Run:
    """A run that is still going on whenever a test disturbs it."""
    return make_run(folder, {**ENDLESS, **settings})


def on_again(run: Run) -> None:
    """It goes on after its newest checkpoint, and as one does that had never been stopped."""
    at = run.steps()[-1]
    assert str(at) == (run.path / "latest_checkpointed_iteration.txt").read_text()
    more = {"schedule.decay_steps": 40, "save.every": 4000}
    shorter = run.having({"train.steps": at + 2, **more})
    ended = train(shorter, 2)
    assert ended.code == DONE, ended.err
    assert min(int(step) for step in re.findall(r"step (\d+)/", ended.err)) == at + 1


def test_sigterm_then_on_bit_for_bit(tmp_path: Path) -> None:
    """Of the launcher; during a step."""
    run = make_run(tmp_path, {"train.steps": 30, "save.every": 100, "model.hidden_dropout": 0.1, **TWO})
    with going(run, 2) as one:
        ended = one.at_step(4).send(signal.SIGTERM).ends(SOON)
    assert (ended.code, run.ended()["code"]) == (STOPPED, STOPPED)
    (at,) = run.steps()
    assert 4 <= at < 30
    assert f"stopped: after step {at}; the same command goes on from {run.path}" in ended.err
    finish(run, 2)
    never = finish(run.having({}, "never"), 2)
    assert run.learned() == never.learned()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("to", ["launcher", "one rank", "one process"])
def test_each_signal(tmp_path: Path, number: signal.Signals, to: str) -> None:
    run = endless(tmp_path)
    with going(run, None if to == "one process" else 2) as one:
        one.at_step(2)
        one.ranks()[1].send_signal(number) if to == "one rank" else one.send(number)
        ended = one.ends(SOON)
    assert (ended.code, run.ended()["code"], run.left_over()) == (STOPPED, STOPPED, [])
    on_again(run)


@pytest.mark.slow
def test_under_torchrun(tmp_path: Path) -> None:
    run = endless(tmp_path)
    with Going(run, torchrun(run, 2)) as one:
        one.at_step(2).send(signal.SIGTERM).ends(SOON)
    assert run.ended()["code"] == STOPPED
    on_again(run)


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [None, 2])
def test_ctrl_c_in_a_terminal(tmp_path: Path, nproc: int | None) -> None:
    run = endless(tmp_path)
    first, *rest = command(run, nproc)
    shell = pexpect.spawn(first, rest, env=environment(), timeout=300, encoding="utf-8", dimensions=(40, 200))
    shell.expect(r"step [2-9]/4000")
    shell.sendintr()
    shell.expect(r"stopped:\x1b\[0m after step")
    shell.expect(pexpect.EOF)
    shell.close()
    assert (shell.exitstatus, run.ended()["code"]) == (STOPPED, STOPPED)
    on_again(run)


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [None, 2])
def test_a_second_ctrl_c_in_a_terminal(tmp_path: Path, nproc: int | None) -> None:
    """While a step hangs: a rank is frozen, or the process itself slow."""
    run = endless(tmp_path, **({"train.global_batch_size": 20000} if nproc is None else {}))
    first, *rest = command(run, nproc)
    shell = pexpect.spawn(first, rest, env=environment(), timeout=300, encoding="utf-8", dimensions=(40, 200))
    watch = Going.__new__(Going)
    watch.run = run
    if nproc is None:
        while not (run.path / "metrics.jsonl").exists():
            time.sleep(0.05)
        time.sleep(3)
    else:
        shell.expect(r"step [2-9]/4000")
        watch.ranks()[1].send_signal(signal.SIGSTOP)
    shell.sendintr()
    time.sleep(1)
    shell.sendintr()
    shell.expect(pexpect.EOF, timeout=SOON)
    shell.close()
    assert shell.exitstatus == INTERRUPTED
    end = time.monotonic() + SOON
    while watch.everyone():
        assert time.monotonic() < end
        time.sleep(0.1)
    assert run.steps() == []


@pytest.mark.parametrize("nproc", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_before_the_first_step_nothing_is_saved(tmp_path: Path, nproc: int | None) -> None:
    run = endless(tmp_path)
    with going(run, nproc) as one:
        one.until(lambda: (run.path / ".lock").exists())  # ranks have joined; they build and read now
        ended = one.send(signal.SIGTERM).ends(SOON)
    assert (ended.code, run.ended()["code"]) == (INTERRUPTED, INTERRUPTED), ended.err
    assert run.steps() == []
    assert "Traceback" not in ended.err


@pytest.mark.slow
def test_at_start_up_of_a_run_that_goes_on(tmp_path: Path) -> None:
    """What was saved stays as it is."""
    run = finish(make_run(tmp_path))
    longer = run.having({"train.steps": 4000, "save.every": 4000})
    with going(longer, 2) as one:
        time.sleep(2)
        one.until(lambda: "process" in (run.path / ".lock").read_text() and not (run.path / "exit.json").exists())
        ended = one.send(signal.SIGTERM).ends(SOON)
    assert ended.code in (INTERRUPTED, STOPPED)
    assert run.steps()[:2] == [3, 6]


@pytest.mark.slow
@pytest.mark.parametrize("background", [False, True])
def test_during_a_save(tmp_path: Path, background: bool) -> None:
    run = endless(tmp_path, **{"save.every": 1, "save.keep": 2, "save.background": background})
    with going(run, 2) as one:
        one.until(lambda: run.path.is_dir() and run.left_over() and run.steps())
        ended = one.send(signal.SIGTERM).ends(SOON)
    assert (ended.code, run.left_over()) == (STOPPED, [])
    assert len(run.steps()) == 2
    on_again(run)


@pytest.mark.slow
def test_during_an_evaluation_which_is_put_off(tmp_path: Path) -> None:
    """It ends at once, and the next run evaluates before it goes on."""
    settings = {"train.steps": 3, "train.eval_every": 2, "train.eval_batches": 4000, "data.split": [10, 80, 10]}
    run = make_run(tmp_path, settings)
    with going(run, 2) as one:
        one.at_step(2)
        time.sleep(1)
        ended = one.send(signal.SIGTERM).ends(SOON)
    assert ended.code == STOPPED
    assert run.steps() == [2]
    few = run.having({"train.eval_batches": 3})
    finish(few, 2)
    never = finish(few.having({}, "never"), 2)
    assert few.learned() == never.learned()
    assert few.metrics("eval_loss") == never.metrics("eval_loss")
    assert few.metrics("test_loss") == never.metrics("test_loss")
    assert (sorted(few.metrics("eval_loss")), sorted(few.metrics("test_loss"))) == ([2, 3], [3])


def test_a_killed_rank_in_a_step(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"train.steps": 4000, "save.every": 2, "save.keep": 1})
    with going(run, 2) as one:
        one.until(lambda: run.path.is_dir() and run.steps())
        one.ranks()[1].kill()
        ended = one.ends(SOON)
    assert (ended.code, run.ended()["code"]) == (ENVIRONMENT, ENVIRONMENT)
    assert "error: rank 1 was killed by signal 9" in ended.err
    found = re.search(r"hint: the same command goes on from step (\d+)", ended.err)
    assert found
    assert int(found[1]) in run.steps()
    assert "Traceback" not in ended.err


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("background", [False, True])
def test_a_killed_rank_in_a_save(tmp_path: Path, rank: int, background: bool) -> None:
    """Ten thousand rows more make it last."""
    run = endless(
        tmp_path, **{"save.every": 1, "save.keep": 1, "save.background": background, "model.config": {"vocab_size": 50_000}}
    )
    with going(run, 2) as one:
        one.until(lambda: run.path.is_dir() and run.steps() and [name for name in run.left_over() if name.endswith(".partial")])
        one.ranks()[rank].kill()
        ended = one.ends(SOON)
    assert ended.code == ENVIRONMENT
    assert f"rank {rank} was killed by signal 9" in ended.err
    on_again(run)
    assert run.left_over() == []


@pytest.mark.slow
def test_a_killed_writer_in_the_background(tmp_path: Path) -> None:
    run = endless(tmp_path, **{"save.every": 1, "save.background": True, "model.config": {"vocab_size": 400_000}})
    with going(run, 2) as one:
        one.until(lambda: run.path.is_dir() and run.steps() and [name for name in run.left_over() if name.endswith(".partial")])
        found: list[psutil.Process] = []

        def writing() -> bool:
            children = one.ranks()[1].children()
            found[:] = [child for child in children if child.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)]
            return bool(found)  # one that is done waits for its rank to see it

        one.until(writing)
        found[0].kill()
        ended = one.ends(SOON)
    assert (ended.code, run.ended()["code"]) == (ENVIRONMENT, ENVIRONMENT)
    assert "cannot be written: rank 1: the process that writes it was killed" in ended.err
    assert run.left_over() == []


@pytest.mark.slow
def test_a_killed_data_worker(tmp_path: Path) -> None:
    run = endless(tmp_path, **{"data.workers": 1})
    with going(run, 2) as one:
        children = one.at_step(2).ranks()[1].children()
        children[0].kill()
        ended = one.ends(SOON)
    assert (ended.code, run.ended()["code"]) == (ENVIRONMENT, ENVIRONMENT)
    assert "error: rank 1: a process that reads data ahead died" in ended.err
    assert ended.err.count("error:") == 1


def test_a_directory_in_use_and_a_killed_launcher(tmp_path: Path) -> None:
    """A second run is refused and does no harm to the first; whose launcher dies then, and its ranks save and end."""
    run = endless(tmp_path)
    with going(run, 2) as one:
        second = train(one.at_step(2).run)
        assert second.code == ENVIRONMENT
        assert f"{run.path} is in use by another run (process " in second.err
        assert not (run.path / "exit.json").exists()
        one.send(signal.SIGKILL).ends(SOON)
    assert run.ended()["code"] == STOPPED
    assert len(run.steps()) == 1


@pytest.mark.slow
def test_a_killed_torchrun(tmp_path: Path) -> None:
    run = endless(tmp_path)
    with Going(run, torchrun(run, 2)) as one:
        one.at_step(2).send(signal.SIGKILL).ends(SOON)
    assert run.ended()["code"] == STOPPED
    on_again(run)


def test_a_launcher_killed_while_ranks_start(tmp_path: Path) -> None:
    """With its process group, as who gives up on a command does. Ranks would wait for a store that ended with torchrun, where
    Python hears no signal."""
    run = endless(tmp_path)
    with going(run, 2) as one:
        one.until(lambda: len(one.ranks()) == 2)
        os.killpg(one.process.pid, signal.SIGKILL)
        one.ends(30)
    assert not run.path.exists()


@pytest.mark.slow
@pytest.mark.parametrize("who", ["launcher", "launcher's torchrun", "torchrun"])
def test_killed_at_any_moment_until_it_trains(tmp_path: Path, who: str) -> None:
    """Every half second. No rank stays; those that train save first."""
    run = endless(tmp_path)
    for moment in itertools.count(1):
        shutil.rmtree(run.path, ignore_errors=True)
        with Going(run, torchrun(run, 2) if who == "torchrun" else command(run, 2)) as one:
            time.sleep(moment / 2)
            trains = "step 2/" in one.err
            started = psutil.Process(one.process.pid).children() if who == "launcher's torchrun" else []
            if started:
                started[0].kill()
            else:
                os.killpg(one.process.pid, signal.SIGKILL)
            ended = one.ends(SOON if who == "torchrun" else 30)  # who it was is not known to ranks that ask too late
        if started:
            assert ended.code == (STOPPED if run.steps() else ENVIRONMENT), ended.err
            assert run.steps() or "error: torchrun, which starts the ranks, was killed by signal 9" in ended.err
            assert "Traceback" not in ended.err
        if trains:
            break
    assert run.ended()["code"] == STOPPED
    assert len(run.steps()) == 1


@pytest.mark.slow
def test_a_killed_rank_under_torchrun(tmp_path: Path) -> None:
    run = endless(tmp_path)
    with Going(run, torchrun(run, 2)) as one:
        one.at_step(2).ranks()[1].kill()
        ended = one.ends(SOON)
    assert run.ended()["code"] == ENVIRONMENT
    assert "error: another rank has ended" in ended.err
    assert "this is a bug" not in ended.err


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_frozen_rank(tmp_path: Path, rank: int) -> None:
    """Groups have a time-out of a minute at least; torchrun waits half a minute for who does not listen."""
    run = endless(tmp_path)
    with going(run, 2, env={"JUMAR_COLLECTIVE_TIMEOUT_S": "5"}) as one:
        one.at_step(2).ranks()[rank].send_signal(signal.SIGSTOP)
        ended = one.ends(SOON + 100)
    assert (ended.code, run.ended()["code"]) == (ENVIRONMENT, ENVIRONMENT)
    assert "another rank has not answered in time" in ended.err
    assert ended.err.count("error:") == 1


@pytest.fixture(autouse=True)
def _nothing_goes_on(tmp_path: Path) -> Iterator[None]:
    """No process outlives its test."""
    yield
    left = [
        path for path in Path("/proc").glob("[0-9]*/cmdline") if path.parent.name != str(os.getpid()) and _holds(path, tmp_path)
    ]
    assert left == []


def _holds(path: Path, folder: Path) -> bool:
    try:
        return str(folder).encode() in path.read_bytes()
    except OSError:
        return False


assert sys.platform == "linux"
