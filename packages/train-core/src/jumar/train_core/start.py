"""`jumar-train pretrain` and `sft`: one process that checks and launches, or one of the ranks."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from jumar.schema.cli import print_json, say, say_error
from jumar.schema.errors import Exit, ToolError
from jumar.schema.recipe import load_recipe
from jumar.train_core.data import blends, tuning_plan
from jumar.train_core.data.prepared import prepared
from jumar.train_core.data.tuning_plan import with_steps
from jumar.train_core.exit_file import Ended, ExitFile
from jumar.train_core.job import Job, Task, find_model, resolve
from jumar.train_core.launch import LAUNCHED, PATIENCE_S, QUIET, Place, alone, launch, place
from jumar.train_core.nodes import Nodes, nodes
from jumar.train_core.parent import STARTED_BY, die_with_parent
from jumar.train_core.recipe import EITHER, Recipe
from jumar.train_core.run.beside import check_same_run, differences
from jumar.train_core.run.complete import iterations, read_facts, step_here


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended. recipe: None of a dry run; already: an earlier run has done all steps; speaks: of several ranks the
    one that says so."""

    code: int
    recipe: Recipe | None = None
    already: bool = False
    speaks: bool = True


def start(
    task: Task,
    path: Path,
    sets: Sequence[str],
    *,
    nproc: int | None,
    device: str,
    dry_run: bool = False,
    as_json: bool = False,
    apart: bool = False,
) -> Outcome:
    """Everything of a command. as_json: how a dry run is printed; apart: a single rank, too, is a process of its own.

    Raises ToolError for what is wrong, on rank 0 alone where all see it.
    """
    here, machines = place(os.environ), nodes(os.environ)
    if here is None or dry_run:
        recipe = load_recipe(Recipe, path, sets, instead=EITHER)
        world = here.world if here is not None and nproc is None else (nproc or machines.nproc or 1) * machines.count
        if dry_run:
            if here is None or here.rank == 0:
                _dry_run(task, recipe, world, device, as_json)
            return Outcome(0)
        return _start(task, recipe, path, sets, world, device, machines, apart)
    if nproc is not None and nproc != here.world:
        raise ToolError(
            f"--nproc {nproc} under torchrun with {here.world} ranks", hint="leave --nproc out: torchrun starts the ranks"
        )
    try:
        return _rank(task, here, path, sets, device)
    except KeyboardInterrupt:
        if here.rank or here.launched:  # it is said once
            sys.exit(Exit.INTERRUPTED)
        raise


def _dry_run(task: Task, recipe: Recipe, world: int, device: str, as_json: bool) -> None:
    from jumar.device.opening import known_devices
    from jumar.train_core import show
    from jumar.train_core.dry_run import report

    known_devices(device)
    job = _resolve(task, recipe, world, device)
    _say_problems(job, dry=True)
    _say_going_on(job)
    found = report(job, recipe)
    print_json(found) if as_json else show.dry_run(found)


def _inputs(job: Job) -> tuple[dict[str, Any], ...]:
    """The files of its data."""
    return tuning_plan.inputs(tuning_plan.plan(job)) if job.task == "sft" else blends.inputs(blends.plan(job))


def _say_going_on(job: Job) -> None:
    """What a run would find in its directory, or on this node's part of it. Raises ToolError for a run of another model."""
    root, steps = job.recipe.save.path, job.recipe.train.steps
    step = step_here(root)
    if root is None or step is None:
        return
    left = NOTHING_LEFT
    if step < steps:
        left = f"a run goes on from there for {steps - step} steps"
    for said in (check_same_run if step < steps else differences)(job, root, _inputs(job)):
        say("warning", said)
    say("note", f"{root} is at step {step}, train.steps is {steps}: {left}; to begin anew, set another save.path")


def _start(
    task: Task, recipe: Recipe, path: Path, sets: Sequence[str], world: int, device: str, machines: Nodes, apart: bool
) -> Outcome:
    """Checks everything, then launches the ranks of this machine, or is the only one."""
    ended, nproc = ExitFile(recipe.save.path), world // machines.count
    if world == 1 and not apart:  # before torch is imported, which reads it then
        os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    try:
        job = _resolve(task, recipe, world, device)
        _say_problems(job)
    except ToolError as fault:
        ended.write(fault.code, fault.message, machines.rank * nproc)
        raise
    if (step := done_before(job)) is not None:
        return _already_done(job, step, ended)
    try:
        name = _prepare(device, nproc, tell=True)
    except ToolError as fault:
        ended.write(fault.code, fault.message, machines.rank * nproc)
        raise
    if world == 1 and not apart:
        os.environ.update(alone(os.environ))
        return Outcome(_train(job, name, 0, ended), recipe)
    arguments = [task, str(path), "--device", name, *(word for item in sets for word in ("--set", item))]
    return Outcome(launch(nproc, arguments, recipe.save.path, nodes=machines), recipe, speaks=machines.rank == 0)


def _already_done(job: Job, step: int, ended: ExitFile) -> Outcome:
    say("already done", f"{job.recipe.save.path} is at step {step}, train.steps is {job.recipe.train.steps}: {NOTHING_LEFT}")
    ended.confirm()
    return Outcome(Exit.OK, job.recipe, already=True)


def done_before(job: Job) -> int | None:
    """The step of a run that has done all there is to do; None where something is left, or nodes have disks of their own.

    Raises ToolError (3) where it was of another recipe, of other data or of other weights.
    """
    root, save, steps = job.recipe.save.path, job.recipe.save, job.recipe.train.steps
    step = step_here(root) if save.storage == "shared" else None
    if root is None or step is None or step < steps:
        return None
    newest, *older = [path for path in iterations(root) if int(path.name[5:]) <= step]
    directories = [newest, *older] if save.hf is True else [newest] if save.hf else []
    if read_facts(newest)["unevaluated"] or not all((root / f"hf_{path.name}").is_dir() for path in directories):
        return None
    if other := differences(job, root, _inputs(job)):
        raise ToolError(
            f"{root} has all its {step} steps, and was another run: {'; '.join(other)}",
            hint=f"set another save.path to begin anew, or train.steps above {step} to go on from there",
        )
    return step


def _rank(task: Task, here: Place, path: Path, sets: Sequence[str], device: str) -> Outcome:
    """One rank. What all ranks find wrong is said by the first of each machine."""
    parent = _torchrun(here)
    if parent is not None:  # else ranks would go on without it, or wait for it
        die_with_parent(signal.SIGKILL, parent)
    ended = ExitFile(None)
    try:
        recipe = load_recipe(Recipe, path, sets, instead=EITHER)
        ended = ExitFile(recipe.save.path)
        job = _resolve(task, recipe, here.world, device)
        if not here.launched:
            _say_problems(job, quiet=here.rank > 0)
        name = _prepare(device, here.world, tell=here.rank == 0 and not here.launched)
    except ToolError as fault:
        if os.environ.get("LOCAL_RANK", str(here.rank)) != "0":
            sys.exit(fault.code)
        ended.write(fault.code, fault.message, here.rank)
        _machines_agree(fault)
        if here.rank:  # of another machine, which may lack what rank 0 has
            fault.message = f"rank {here.rank} on {socket.gethostname()}: {fault.message}"
        raise
    if not here.launched and (outcome := _left_alone(job, here, ended)) is not None:
        return outcome
    try:
        _machines_agree(None)
    except ToolError as fault:
        ended.write(fault.code, fault.message, here.rank)
        raise
    return Outcome(_train(job, name, here.rank, ended, parent), recipe, speaks=here.rank == 0)


def _left_alone(job: Job, here: Place, ended: ExitFile) -> Outcome | None:
    """How a rank ends whose run is done already; None where something is left to do, or ranks are on several machines, which may
    not see the same of it."""
    if os.environ.get("LOCAL_WORLD_SIZE") != str(here.world):
        return None
    try:
        step = done_before(job)
    except ToolError as fault:
        if here.rank:
            sys.exit(fault.code)
        raise
    if step is None:
        return None
    return _already_done(job, step, ended) if here.rank == 0 else Outcome(Exit.OK, job.recipe, already=True, speaks=False)


def _torchrun(here: Place) -> int | None:
    """The process id of the torchrun that started this rank; None where another program did."""
    if here.launched and STARTED_BY in os.environ:
        return int(os.environ[STARTED_BY])
    return os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None


def _resolve(task: Task, recipe: Recipe, world: int, device: str) -> Job:
    if task == "sft":
        recipe = with_steps(prepared(recipe, lambda: find_model(recipe)[0]))
    return resolve(recipe, world=world, device=device, task=task)


_STORES: list[object] = []
NOTHING_LEFT = "nothing is left to do"


def _machines_agree(fault: ToolError | None) -> None:
    """Under torchrun on several machines, whether all can begin: else one would wait for another until its time is out.

    fault: what is wrong on this one. Raises ToolError (4) where there is nothing wrong here, but on another machine.
    """
    number, count = (int(os.environ.get(name, default)) for name, default in (("GROUP_RANK", "0"), ("GROUP_WORLD_SIZE", "1")))
    if count == 1 or os.environ.get("LOCAL_RANK") != "0":
        return
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        turn = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"jumar machines {turn}", next(rendezvous("env://", timeout=timedelta(seconds=PATIENCE_S)))[0])
        _STORES.append(store)  # without an agent rank 0 itself serves it: others may still be asking
        store.set(str(number), "" if fault is None else f"{fault.message} (on {socket.gethostname()})")
        told = [store.get(str(each)).decode() for each in range(count)] if fault is None else []
    except RuntimeError as gone:
        told = [str(gone).splitlines()[0]] if fault is None else []
    if said := next(filter(None, told), None):
        raise ToolError(f"another machine cannot begin: {said}", hint="look at its own messages", code=Exit.ENVIRONMENT)


def _train(job: Job, device: str, rank: int, ended: ExitFile, parent: int | None = None) -> int:
    """The engine, and the note of how it ended."""
    from jumar.train_core.run.main import train

    apart = job.recipe.save.storage == "per_node"
    speaks = rank == 0 or (apart and os.environ.get("LOCAL_RANK") == "0")  # on its disk
    try:
        code = int(train(job, device, parent))
    except ToolError as fault:
        if (said := _said(fault, rank, speaks, ended)) is not None:
            sys.exit(said)
        raise ToolError(f"rank {rank}: {fault.message}" if rank else fault.message, hint=fault.hint, code=fault.code) from fault
    except KeyboardInterrupt:
        ended.write(Exit.INTERRUPTED, "stopped before the first step", rank)
        raise
    except BaseException as fault:
        ended.write(Exit.BUG, repr(fault), rank)
        raise
    if speaks or code:
        ended.write(code, "", rank)
    return code


def _said(fault: ToolError, rank: int, speaks: bool, ended: ExitFile) -> int | None:
    """The code to end with in silence, where another rank or `launch` says why; None where this rank is to speak.

    What all ranks find wrong is said once, and that a rank is lost only if that rank does not say itself.
    """
    from jumar.train_core.run.claim import InUse
    from jumar.train_core.run.ranks import Lost

    if isinstance(fault, InUse):
        return None if speaks else fault.code
    if isinstance(fault, Lost):
        if (told := _told(ended, 0 if fault.late and speaks else 2)) is not None:
            return told.code
        if os.environ.get(LAUNCHED) == "1" and not fault.late:  # else the lost rank may be another machine's
            return fault.code
    elif not speaks and (told := _told(ended, 1)) is not None and told.message == fault.message:
        return fault.code
    ended.write(fault.code, fault.message, rank)
    return None


def _told(ended: ExitFile, seconds: float) -> Ended | None:
    """What another rank has said of the end, within that time."""
    end = time.monotonic() + seconds
    while (told := ended.read()) is None and time.monotonic() < end:
        time.sleep(0.05)
    return told


def _say_problems(job: Job, *, dry: bool = False, quiet: bool = False) -> None:
    """Every problem as a line for people; raises ToolError for the first fault, if there is one.

    dry: on any machine, which needs neither the engine nor the disk of a run.
    """
    from jumar.train_core.checks import check
    from jumar.train_core.engine_check import check_engine

    problems = [*(() if dry else check_engine()), *check(job)]
    if dry:
        problems = [replace(p, warning=True) if p.local else p for p in problems]
    faults = [ToolError(p.message, hint=p.hint, code=p.code) for p in problems if not p.warning]
    if not quiet:
        for problem in problems:
            if problem.warning:
                say("warning", f"{problem.message}; {problem.hint}")
        for fault in faults[1:]:
            say_error(fault)
    if faults:
        raise faults[0]


def _prepare(name: str, world: int, *, tell: bool) -> str:
    """Sets the variables that the device's vendor advises, before torch is imported; returns the device's name."""
    from jumar.device import open_device

    device = open_device(name)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if not device.host and local > device.count():  # ranks on a CPU share it
        raise ToolError(
            f"{local} ranks on this machine, which has {device.count()} devices {device.name!r}",
            hint=f"--nproc {device.count()}, or more machines under torchrun",
            code=Exit.ENVIRONMENT,
        )
    advised = device.environment({"LOCAL_WORLD_SIZE": str(world), **os.environ})
    if world > 1:
        advised.setdefault("OMP_NUM_THREADS", "1")
    new = {key: value for key, value in advised.items() if key not in os.environ}
    os.environ.update(new)
    if new and tell:
        say("environment", " ".join(f"{key}={value}" for key, value in sorted(new.items())), "bold cyan")
    return device.name
