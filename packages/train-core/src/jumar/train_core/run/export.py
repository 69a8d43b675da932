"""Hugging Face directories of a run's checkpoints: RUN/hf_iter_0000100, made of RUN/iter_0000100 by another process meanwhile.

One conversion at a time; the others wait. The name does not begin with `iter_`, which readers of a Megatron directory look for. A
directory appears whole: jumar-convert writes it as hf_iter_0000100.partial.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch.distributed as dist

from jumar.schema.errors import Exit, ToolError
from jumar.train_core.job import Job
from jumar.train_core.run.complete import Whole, all_iterations, step_of, whole
from jumar.train_core.run.gathered import gather_weights
from jumar.train_core.run.nodes import Nodes
from jumar.train_core.run.ranks import disk
from jumar.train_core.run.stop import Stop

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
LOOK_S = 1.0
"""How often ranks that wait for the last conversion ask one another whether somebody was asked to stop."""


def hf_of(iteration: Path) -> Path:
    """RUN/iter_0000100 -> RUN/hf_iter_0000100."""
    return iteration.with_name(f"hf_{iteration.name}")


def removed(path: Path) -> None:
    """A directory is gone, and never half of it there under a name that counts."""
    if path.is_dir():
        trash = path.with_name(path.name + ".removing")
        path.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Conversion:
    """One that goes on. source: what is read, the iteration itself or what was brought together of it; errors: its messages."""

    iteration: Path
    source: Path
    process: subprocess.Popen[bytes]
    errors: IO[bytes]

    def fault(self) -> ToolError | None:
        """What became of it, once it has ended; None: all is well."""
        self.errors.seek(0)
        said = COLOURS.sub("", self.errors.read().decode(errors="replace")).splitlines()
        self.errors.close()
        if (code := self.process.returncode) == 0:
            return None
        text = next((line.removeprefix("error: ") for line in said if line.startswith("error: ")), "; ".join(said[-3:]))
        if code < 0:
            text, code = f"its process was killed by signal {-code} (out of memory?)", Exit.ENVIRONMENT
        here = self.iteration.parent
        again = f"jumar-convert to-hf {here} {hf_of(self.iteration)} --iteration {step_of(self.iteration)}"
        return ToolError(
            f"{hf_of(self.iteration)} cannot be made: {text}",
            hint=f"the checkpoint is whole; the same command makes what is missing, or: {again}",
            code=Exit(code) if code in set(Exit) else Exit.BUG,
        )


class Exports:
    """What `save.hf` asks for. Rank 0 converts; where nodes have disks of their own, the weights are brought to its node."""

    def __init__(self, job: Job, nodes: Nodes, say: Callable[[str, str], None]) -> None:
        self.recipe, self.root, self.nodes, self.say = job.recipe, job.recipe.save.path, nodes, say
        self.waiting: list[tuple[Path, Path]] = []
        self.now: Conversion | None = None
        self.faults: dict[Path, ToolError] = {}

    def wanted(self, step: int) -> bool:
        """Whether the checkpoint of this step gets a directory."""
        hf = self.recipe.save.hf
        return hf is True or (hf == "end" and step >= self.recipe.train.steps)

    def add(self, found: Whole) -> None:
        """Converts a published iteration, as soon as its turn comes. Collective; that there is no room for it is only told."""
        path, source = found.path, found.path
        if self.nodes.count > 1:
            try:
                source = gather_weights(self.nodes, path, found.holders)
            except ToolError as fault:
                self._failed(path, fault)
                return
        if self.nodes.rank == 0:
            self.waiting.append((path, source))
        self.poll()

    def make_up(self, until: int) -> list[str]:
        """Converts those checkpoints up to a step that lack their directories, the newest first; returns the directories.

        Collective. One that is on another node, which was the first before, is not made again.
        """
        made = []
        paths = all_iterations(self.nodes, self.root) if self.recipe.save.hf else []
        for path in [path for path in paths if (step := step_of(path)) <= until and self.wanted(step)]:
            found = whole(self.nodes, path, content=False)
            if isinstance(found, str):
                continue
            if not any(self.nodes.each(lambda path=path: hf_of(path).is_dir())):  # type: ignore[misc]
                self.add(found)
                made.append(str(hf_of(path)))
            if self.recipe.save.hf == "end":
                break
        return made

    def holds(self, iteration: Path) -> bool:
        """Whether it is being read just now."""
        return self.now is not None and self.now.iteration == iteration

    def forget(self, iteration: Path) -> None:
        """Of an iteration that is not kept."""
        for each in [each for each in self.waiting if each[0] == iteration]:
            self.waiting.remove(each)
            self._tidy(*each)
        self.faults.pop(iteration, None)
        removed(hf_of(iteration))

    def poll(self) -> None:
        """Says what has become of a conversion that has ended since, and begins the next."""
        if self.now is not None and self.now.process.poll() is not None:
            done, self.now = self.now, None
            fault = done.fault()
            self._tidy(done.iteration, done.source)
            if fault is None:
                self.faults.pop(done.iteration, None)
                self.say("saved", str(hf_of(done.iteration)))
            else:
                self._failed(done.iteration, fault)
        if self.now is None and self.waiting:
            self._start(*self.waiting.pop(0))

    def _failed(self, iteration: Path, fault: ToolError) -> None:
        self.faults[iteration] = fault
        self.say("warning", fault.message)

    def _start(self, iteration: Path, source: Path) -> None:
        words = ["to-hf", str(source), str(hf_of(iteration)), "--dtype", self.recipe.train.precision, "--threads", "1"]
        try:
            errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed when it has been read
            process = subprocess.Popen(
                [sys.executable, "-m", "jumar.train_core.converter", str(os.getpid()), *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,  # Ctrl-C in a terminal is for the run
            )
        except OSError as fault:
            self._failed(iteration, disk(fault))
        else:
            self.now = Conversion(iteration, source, process, errors)

    def _tidy(self, iteration: Path, source: Path) -> None:
        """Nothing of it is left but what is whole."""
        hf = hf_of(iteration)
        shutil.rmtree(hf.with_name(hf.name + ".partial"), ignore_errors=True)
        if source != iteration:
            shutil.rmtree(source, ignore_errors=True)

    def finish(self, stop: Stop) -> None:
        """Waits for all conversions, in short collectives: a long one is longer than a collective may last. Collective.

        Raises ToolError on all ranks: for a directory that could not be made, with the converter's exit code; where a rank was
        asked to stop meanwhile (75).
        """
        going, asked = self.recipe.save.hf is not False, False
        while going and not asked:
            if self.now is not None:
                with suppress(subprocess.TimeoutExpired):
                    self.now.process.wait(LOOK_S)
            self.poll()
            everyone: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, (self.now is not None, stop.asked))
            going, asked = any(busy for busy, _ in everyone), any(stopped for _, stopped in everyone)
        if self.now is not None:
            self.faults[self.now.iteration] = ToolError(
                f"stopped before {hf_of(self.now.iteration)} was made",
                hint="the checkpoint is whole; the same command makes what is missing",
                code=Exit.STOPPED,
            )
        fault: list[Any] = [next(reversed(self.faults.values()), None)]
        dist.broadcast_object_list(fault, src=0)
        if fault[0] is not None:
            raise fault[0]

    def close(self) -> None:
        """Ends a conversion that goes on; of what waits, what was brought together is removed."""
        if self.now is not None:
            self.now.process.kill()
            self.now.process.wait()
            self.now.errors.close()
            self._tidy(self.now.iteration, self.now.source)
            self.now = None
        while self.waiting:
            self._tidy(*self.waiting.pop())
