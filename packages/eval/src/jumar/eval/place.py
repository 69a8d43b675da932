"""OUT belongs to one run at a time, and is written once the model is open; what killed runs leave is gone on with."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jumar.schema.cli import dist_version
from jumar.schema.errors import Exit, ToolError, writing
from jumar.schema.manifest import NAME, identify_all, manifest_text, read_manifest, states

LOCK, RESULTS = ".lock", "results.json"
SERVED = "served"
"""In a recipe: the name of an endpoint's model, which is known once it is asked."""
OURS = (
    "samples_*.jsonl",
    "samples_*.jsonl.part",
    "scores_*.csv",
    "results.json",
    "results.json.part",
    "report.html",
    "report.html.part",
    NAME + ".part",
    NAME,
)
"""What a run writes; the manifest goes last, so that a removal that was cut short can be repeated."""


class Place:
    """The directory of a run. Made before the model is opened: raises ToolError where the run could not begin.

    recipe, inputs: what must be the same for a run to be gone on with; more of it is known once the model is open (`begin`)
    resume: go on; force: remove what is there
    Raises ToolError: 2 where there is something else, 4 where another run holds it, or it cannot be written.
    """

    def __init__(
        self, out: Path, recipe: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]], *, resume: bool, force: bool
    ) -> None:
        self.out, self.recipe, self.inputs, self.resume, self.force = out, recipe, inputs, resume, force
        self._lock: int | None = None
        if out.is_dir():
            self._claim()
        self._check()

    def begin(self, served: str | None = None) -> None:
        """The directory, with its manifest. Another run may have been faster since: it is looked again.

        served: the name of the model that an endpoint answers with
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._claim()
        if served is not None:
            self.recipe = {**self.recipe, SERVED: served}
        self._check(opened=True)
        if self.force:
            for pattern in OURS:
                for path in self.out.glob(pattern):
                    path.unlink()
        facts = {"recipe": self.recipe, "inputs": list(self.inputs)}
        write_whole(self.out / NAME, manifest_text(tool="jumar-eval", version=dist_version("jumar-eval"), **facts))

    def close(self) -> None:
        """Lets others have it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _claim(self) -> None:
        """File systems without locks are let pass."""
        lock = os.open(self.out / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: what it forks does not keep it
        except (BlockingIOError, PermissionError):
            holder = os.pread(lock, 200, 0).decode(errors="replace").strip()
            os.close(lock)
            hint = "wait for it, stop it, or give another directory"
            raise ToolError(f"{self.out} is in use by another run ({holder})", hint=hint, code=Exit.ENVIRONMENT) from None
        except OSError:
            pass
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._lock = lock

    def _check(self, *, opened: bool = False) -> None:
        out = self.out
        if not out.exists():
            self._check_parent()
            return
        if out.is_dir() and not {path.name for path in out.iterdir()} - {
            LOCK,
            NAME + ".part",
        }:  # the latter of a run killed there
            return
        there = self._manifest() if out.is_dir() else None
        if there == {}:
            return
        if there is None or there.get("tool") != "jumar-eval":
            raise ToolError(f"{out} is there, and is no run of jumar-eval", hint="give another directory", code=Exit.USAGE)
        if self.force:
            return
        was = there.get("recipe", {})
        keys = sorted({*was, *self.recipe} - (set() if opened else {SERVED}))
        differing = [key for key in keys if was.get(key) != self.recipe.get(key)]
        other = _other_files(there.get("inputs", ()), self.inputs)
        if not self.resume:
            what = f" of other settings: {', '.join(differing)}" if differing else f" of other files: {', '.join(other[:4])}"
            same = not differing and not other
            hint = "--resume goes on with it, --force removes it" if same else "give another directory; --force removes it"
            raise ToolError(f"{out} holds a run{'' if same else what}", hint=hint, code=Exit.USAGE)
        if differing:
            told = ", ".join(_told(key, was.get(key), self.recipe.get(key)) for key in differing)
            hint = "ask as it did, or give another directory"
            raise ToolError(f"{out} was begun with other settings: {told}", hint=hint, code=Exit.USAGE)
        if other:
            hint = "--force begins again, or give another directory"
            raise ToolError(f"{out} was begun with other files: {', '.join(other[:4])}", hint=hint)

    def _manifest(self) -> dict[str, Any] | None:
        """Of a run that is there; empty where it is damaged, to be removed, and stands among nothing but what runs write."""
        try:
            return read_manifest(self.out)
        except ToolError as fault:
            if self.force and all(any(path.match(each) for each in (*OURS, LOCK)) for path in self.out.iterdir()):
                return {}
            raise ToolError(fault.message, hint="--force begins again", code=fault.code) from None

    def _check_parent(self) -> None:
        """Whether it could be made: to be known before a model is opened."""
        above = next(path for path in self.out.absolute().parents if path.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            what = "is no directory" if not above.is_dir() else "cannot be written"
            raise ToolError(f"{self.out} cannot be made: {above} {what}", hint="give another directory", code=Exit.ENVIRONMENT)


def _told(key: str, was: Any, now: Any) -> str:
    """A setting that differs, with both values where they can be read."""
    if isinstance(was, Mapping) or isinstance(now, Mapping):
        return key
    return f"{key} ({json.dumps(was, ensure_ascii=False)}, now {json.dumps(now, ensure_ascii=False)})"


def _other_files(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of files that are not what they were, or were not there, or are no more; of a manifest that has none, none."""
    if not before:
        return []
    return sorted({each["name"] for each in before if each not in now} | {each["name"] for each in now if each not in before})


def done_before(out: Path, asked: Mapping[str, Any], inputs: Sequence[Path], roots: Sequence[Path]) -> bool:
    """Whether a directory holds the results of the same run. Its documents follow from what is asked and the files.

    inputs: all files that decide the scores, which must not have changed since; roots: below which they have their names
    """
    try:
        there = read_manifest(out) if (out / RESULTS).is_file() else None
    except ToolError:
        return False
    if there is None or there.get("tool") != "jumar-eval" or "inputs" not in there:
        return False
    facts = {"version": dist_version("jumar-eval"), "inputs": identify_all(inputs, *roots)}
    was = {key: value for key, value in there.get("recipe", {}).items() if key != "documents"}
    return was == json.loads(json.dumps(dict(asked))) and states(out / NAME, facts, inputs)


def write_whole(path: Path, text: str) -> None:
    """Beside its place, on the disk, then renamed."""
    part = path.with_name(path.name + ".part")
    with writing(path):
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
