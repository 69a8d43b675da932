"""Where output goes: written into a directory beside its place, then renamed, so that a target is whole or not there."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jumar.ckpt_convert.journal import NAME as JOURNAL
from jumar.ckpt_convert.journal import is_journal, names_plan, refuse_second_writer
from jumar.schema.cli import human_bytes
from jumar.schema.errors import Exit, ToolError
from jumar.schema.manifest import NAME as MANIFEST
from jumar.schema.manifest import differing, read_manifest
from jumar.schema.manifest import states as manifest_states

REPLACED = ".replaced"
"""The old target while it gives way: inside the new one, since beside it a directory of that name may be somebody's."""
TOLD = ("version", "inputs", "recipe", "layout", "dialect")
"""Facts of a manifest that say why a conversion is another one; the others follow from these."""


class Target:
    """An output directory. `staging` is its name with `.partial`; it stays there, resumable, when a run is stopped.

    A link is followed: what it points to is written, beside where that lies.
    """

    def __init__(self, dst: Path, sources: Sequence[Path]) -> None:
        self.dst = dst = Path(os.path.realpath(dst))
        if not dst.name:
            raise ToolError(f"{dst} cannot be a target", hint="name a directory to be made")
        self.staging = dst.with_name(dst.name + ".partial")
        for source in sources:
            outer = source.resolve()
            for inner in (dst, self.staging):
                if inner == outer or inner.is_relative_to(outer) or outer.is_relative_to(inner):
                    hint = "choose another target"
                    raise ToolError(f"the target {inner} and the source {source} lie in one another", hint=hint)
        if _working_directory().is_relative_to(dst):
            raise ToolError(
                f"the target {dst} is or holds the working directory, which would be replaced",
                hint="change to another directory, and name it from there",
                code=Exit.USAGE,
            )
        self._force, self._why = False, ""

    def refuse_own(self, sources: Iterable[Path]) -> None:
        """Raises ToolError if a source file, links followed, lies in the target: it would be gone before it is read."""
        for file in sources:
            if file.resolve().is_relative_to(self.dst):
                hint = "choose another target"
                raise ToolError(f"the source file {file} lies in the target {self.dst}", hint=hint)

    def states(self, facts: Mapping[str, Any], sources: Collection[Path], *, head: int) -> bool:
        """Whether the target is finished, its manifest says these facts, and no source changed since. head: as `identify`."""
        told = {key: facts[key] for key in TOLD if key in facts}
        if found := differing(self.dst / MANIFEST, told, sources, head=head):
            self._why = f", made of other files or with other options: {', '.join(found[:4])}"
        return manifest_states(self.dst / MANIFEST, facts, sources, head=head)

    def claim(self, *, resume: bool, force: bool) -> None:
        """Makes sure that the target may be written, before anything is. Raises ToolError (3) if it may not.

        With `force`, what an earlier conversion wrote is replaced: the files that its manifest lists, and nothing else.
        """
        self._force = force
        self._check_place()
        self._claim_staging(resume=resume, force=force)

    def _check_place(self) -> None:
        """Raises ToolError (3) for what `claim` may not replace."""
        if os.path.lexists(self.dst) and not self.dst.is_dir():
            raise ToolError(f"{self.dst} is a file, expected a directory", hint="choose another target")
        if os.path.ismount(self.dst):
            raise ToolError(
                f"{self.dst} is a mount point, which cannot be put in its place by renaming",
                hint=f"name a directory inside it, such as {self.dst / 'model'}",
            )
        entries = sorted(p.name for p in self.dst.iterdir()) if self.dst.is_dir() else []
        if entries:
            self._check_replaceable(entries, self._force)

    def _check_replaceable(self, entries: Sequence[str], force: bool) -> None:
        """Raises ToolError unless all that lies there is what the manifest of an earlier conversion lists."""
        manifest = read_manifest(self.dst)
        some, yours = ", ".join(entries[:4]), "choose another target, or empty it yourself"
        if manifest is None:
            word = "; --force does not delete that" if force else ""
            raise ToolError(f"{self.dst} is not empty ({some}), and no conversion wrote it{word}", hint=yours)
        found = (p.relative_to(self.dst) for p in sorted(self.dst.rglob("*")) if not p.is_dir() or p.is_symlink())
        listed = {MANIFEST, JOURNAL, *manifest.get("outputs", ())}
        foreign = [p.as_posix() for p in found if p.parts[0] != REPLACED and p.as_posix() not in listed]
        foreign += [p.relative_to(self.dst).as_posix() for p in _foreign(self.dst / REPLACED)]
        if foreign:
            named = ", ".join(foreign[:4])
            raise ToolError(
                f"{self.dst} holds what the conversion did not write: {named}; --force does not delete that", hint=yours
            )
        if not force:
            raise ToolError(f"{self.dst} is not empty ({some}){self._why}", hint="add --force to replace it")

    def _claim_staging(self, *, resume: bool, force: bool) -> None:
        if not os.path.lexists(self.staging):
            return
        begun = is_journal(self.staging / JOURNAL)
        if not begun and not (self.staging.is_dir() and not any(self.staging.iterdir())):
            raise ToolError(f"{self.staging} is in the way, and is not ours", hint="move it, or choose another target")
        if begun:
            refuse_second_writer(self.staging)
        if begun and not resume and not force:
            raise ToolError(
                f"{self.staging} holds a run that was stopped",
                hint="add --resume to go on with it, or --force to start over",
            )
        if not resume:
            shutil.rmtree(self.staging)

    def drop_stopped(self, plan: str) -> None:
        """Removes what a stopped run of this plan has left, which cannot be gone on with."""
        if names_plan(self.staging / JOURNAL, plan):
            refuse_second_writer(self.staging)
            shutil.rmtree(self.staging)

    def check_space(self, nbytes: int) -> None:
        """Raises ToolError (4) if the disk cannot hold `nbytes` beside what a stopped run has already written."""
        home = self.dst.resolve().parent
        while not home.exists():
            home = home.parent
        written = sum(f.stat().st_blocks * 512 for f in self.staging.rglob("*") if f.is_file()) if self.staging.exists() else 0
        free = shutil.disk_usage(home).free
        if not shutil.disk_usage(home).total:
            raise ToolError(f"{home} is no place for files", hint="choose another target", code=Exit.ENVIRONMENT)
        if nbytes - written > free:
            raise ToolError(
                f"{home}: {human_bytes(nbytes - written)} needed, {human_bytes(free)} free",
                hint="make room, or choose a target on another disk",
                code=Exit.ENVIRONMENT,
            )

    def finish(self, sidecars: Mapping[str, bytes | Path], *, resumable: bool = True) -> None:
        """Adds the small files and puts the whole in its place. Stopped at any point, it can be done again, or tidied.

        Raises ToolError (3) for what has appeared in its place since `claim`, and must not be lost.
        """
        for name, content in sidecars.items():
            path = self.staging / name
            for directory in reversed([p for p in path.parents if p.is_relative_to(self.staging)][:-1]):
                directory.mkdir(exist_ok=True)  # `staging` itself is not made again if it is gone
            path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        try:
            self._check_place()
        except ToolError as fault:
            again = "with --resume" if resumable else "again"
            raise ToolError(
                f"while the conversion ran: {fault.message}", hint=f"move that away, then run the same command {again}"
            ) from None
        old = self.staging / REPLACED
        if self.dst.exists() and any(self.dst.iterdir()):
            _remove_listed(old)
            os.rename(self.dst, old)
        elif self.dst.exists():
            self.dst.rmdir()
        os.rename(self.staging, self.dst)
        _sync_directory(self.dst.parent)
        self.tidy()

    def tidy(self) -> None:
        """Removes what a finished run that was stopped at its very end has left: its journal, and what it replaced.

        Raises ToolError (3) for what came into the old target at the last moment, and is kept.
        """
        (self.dst / JOURNAL).unlink(missing_ok=True)
        _remove_listed(self.dst / REPLACED)


def _foreign(replaced: Path) -> list[Path]:
    """Files of a replaced target that its manifest does not list."""
    if replaced.is_symlink() or not replaced.is_dir():
        return [replaced] if os.path.lexists(replaced) else []  # somebody's own, that has the name
    manifest = read_manifest(replaced) or {}
    listed = {replaced / name for name in (MANIFEST, JOURNAL, *manifest.get("outputs", ()))}
    inner = replaced / REPLACED
    files = (p for p in sorted(replaced.rglob("*")) if (not p.is_dir() or p.is_symlink()) and not p.is_relative_to(inner))
    return [p for p in files if p not in listed] + _foreign(inner)


def _remove_listed(replaced: Path) -> None:
    """Removes a replaced target, file by file. Raises ToolError for what its manifest does not list: that is kept."""
    if not os.path.lexists(replaced):
        return
    foreign = _foreign(replaced)
    if not foreign:
        directories = [p for p in replaced.rglob("*") if p.is_dir() and not p.is_symlink()]
        files = [p for p in replaced.rglob("*") if p not in directories]
        for path in sorted(files, key=lambda p: p.name == MANIFEST):  # last, so that a run that is stopped here can be tidied
            path.unlink()
        for path in (*sorted(directories, reverse=True), replaced):
            with contextlib.suppress(OSError):  # somebody whose working directory it is has written something
                path.rmdir()
        foreign = [replaced] if replaced.exists() else []
    if foreign:
        raise ToolError(
            f"{foreign[0]} came there while the old target was replaced, and is kept",
            hint="move it to another place, then run the same command again",
        )


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except OSError:  # somebody removed it
        return Path("/")


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
