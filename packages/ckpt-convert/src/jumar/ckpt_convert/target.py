"""Where output goes: written into a directory beside its place, then renamed, so that a target is whole or not there."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jumar.ckpt_convert.formats.megatron import TRACKER
from jumar.ckpt_convert.journal import NAME as JOURNAL
from jumar.ckpt_convert.journal import refuse_second_writer
from jumar.schema.cli import human_bytes
from jumar.schema.errors import Exit, ToolError
from jumar.schema.manifest import NAME as MANIFEST
from jumar.schema.manifest import read_manifest

OWN_SUFFIXES = (".safetensors", ".json", ".txt", ".jinja", ".model", ".py", ".md", ".tiktoken")
OWN_NAMES = (JOURNAL, "LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "merges", "vocab")
WEIGHTS = re.compile(
    r"(iter_\d+|release)/mp_rank_[\d_]+/model_optim_rng\.pt|[^/]+\.safetensors|pytorch_model[^/]*\.bin|[^/]+\.index\.json"
)
REPLACED = ".replaced"
"""The old target while it gives way: inside the new one, since beside it a directory of that name may be somebody's."""


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

    def states(self, facts: Mapping[str, Any], sources: Collection[Path]) -> bool:
        """Whether the target is finished, its manifest says these facts, and no source file changed since.

        The last because a manifest identifies its inputs by their headers only.
        """
        try:
            manifest = read_manifest(self.dst)
            made_ns = (self.dst / MANIFEST).stat().st_mtime_ns
        except (ToolError, OSError):
            return False
        same = manifest is not None and all(manifest.get(k) == v for k, v in facts.items())
        return same and all(file.stat().st_ctime_ns <= made_ns for file in sources)

    def claim(self, *, resume: bool, force: bool, outputs: Collection[str] | None = None) -> None:
        """Makes sure that the target may be written, before anything is. Raises ToolError (3) if it may not.

        outputs: paths of what will be written; None: not known yet. With `force`, these and weights are replaced, but
        nothing else that lies there.
        """
        if os.path.lexists(self.dst) and not self.dst.is_dir():
            raise ToolError(f"{self.dst} is a file, expected a directory", hint="choose another target")
        if os.path.ismount(self.dst):
            raise ToolError(
                f"{self.dst} is a mount point, which cannot be put in its place by renaming",
                hint=f"name a directory inside it, such as {self.dst / 'model'}",
            )
        entries = sorted(p.name for p in self.dst.iterdir()) if self.dst.is_dir() else []
        if entries and not force:
            raise ToolError(f"{self.dst} is not empty ({', '.join(entries[:4])})", hint="add --force to replace it")
        ours = any(n in entries for n in (MANIFEST, TRACKER, "config.json")) or any(n.startswith("iter_") for n in entries)
        if entries and not ours:
            raise ToolError(
                f"{self.dst} does not look like a checkpoint ({', '.join(entries[:4])}); --force does not delete that",
                hint="choose another target, or empty it yourself",
            )
        foreign = self._foreign(outputs)
        if foreign or len([n for n in entries if n.startswith("iter_")]) > 1:
            what = f"holds what this conversion does not write: {', '.join(foreign[:4])}"
            what = what if foreign else "holds several iterations"
            raise ToolError(
                f"{self.dst} {what}; --force does not delete that", hint="choose another target, or empty it yourself"
            )
        self._claim_staging(resume=resume, force=force)

    def _foreign(self, outputs: Collection[str] | None) -> list[str]:
        """Files of the target that are neither weights nor what will be written (or, where that is not known, could be)."""
        found = (p.relative_to(self.dst) for p in sorted(self.dst.rglob("*")) if not p.is_dir() or p.is_symlink())
        written = {MANIFEST, TRACKER, JOURNAL, *(outputs or ())}
        names = [p.as_posix() for p in found if p.parts[0] != REPLACED]
        left = [n for n in names if n not in written and not WEIGHTS.fullmatch(n)]
        if outputs is not None:
            return left
        return [n for n in left if n.count("/") > 1 or not (n.endswith(OWN_SUFFIXES) or Path(n).name.split(".")[0] in OWN_NAMES)]

    def _claim_staging(self, *, resume: bool, force: bool) -> None:
        if not os.path.lexists(self.staging):
            return
        begun = (self.staging / JOURNAL).is_file()
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

    def check_space(self, nbytes: int) -> None:
        """Raises ToolError (4) if the disk cannot hold `nbytes` beside what a stopped run has already written."""
        home = self.dst.resolve().parent
        while not home.exists():
            home = home.parent
        written = sum(f.stat().st_blocks * 512 for f in self.staging.rglob("*") if f.is_file()) if self.staging.exists() else 0
        free = shutil.disk_usage(home).free
        if nbytes - written > free:
            raise ToolError(
                f"{home}: {human_bytes(nbytes - written)} needed, {human_bytes(free)} free",
                hint="make room, or choose a target on another disk",
                code=Exit.ENVIRONMENT,
            )

    def finish(self, sidecars: Mapping[str, bytes | Path]) -> None:
        """Adds the small files and puts the whole in its place. Stopped at any point, it can be done again, or tidied."""
        for name, content in sidecars.items():
            path = self.staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        old = self.staging / REPLACED
        if self.dst.exists() and any(self.dst.iterdir()):
            if old.exists():
                shutil.rmtree(old)
            os.rename(self.dst, old)
        elif self.dst.exists():
            self.dst.rmdir()
        os.rename(self.staging, self.dst)
        _sync_directory(self.dst.parent)
        self.tidy()

    def tidy(self) -> None:
        """Removes what a finished run that was stopped at its very end has left: its journal, and what it replaced."""
        (self.dst / JOURNAL).unlink(missing_ok=True)
        if (self.dst / REPLACED).exists():
            shutil.rmtree(self.dst / REPLACED)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
