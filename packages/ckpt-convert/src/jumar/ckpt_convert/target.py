"""Where output goes: written into a directory beside its place, then renamed, so that a target is whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jumar.ckpt_convert.execute import JOURNAL
from jumar.ckpt_convert.formats.megatron import TRACKER
from jumar.schema.cli import human_bytes
from jumar.schema.errors import Exit, ToolError
from jumar.schema.manifest import NAME as MANIFEST
from jumar.schema.manifest import read_manifest

OWN_SUFFIXES = (".safetensors", ".json", ".jsonl", ".txt", ".jinja", ".model", ".py", ".md", ".bin", ".tiktoken")
OWN_NAMES = ("hf", "release", "LICENSE", "NOTICE")


class Target:
    """An output directory. `staging` is its name with `.partial`; it stays there, resumable, when a run is stopped."""

    def __init__(self, dst: Path, sources: Sequence[Path]) -> None:
        self.dst = dst = Path(os.path.abspath(dst))
        if not dst.name:
            raise ToolError(f"{dst} cannot be a target", hint="name a directory to be made")
        self.staging = dst.with_name(dst.name + ".partial")
        for source in sources:
            inner, outer = dst.resolve(), source.resolve()
            if inner == outer or inner.is_relative_to(outer) or outer.is_relative_to(inner):
                raise ToolError(f"the target {dst} and the source {source} lie in one another", hint="choose another target")

    def states(self, facts: Mapping[str, Any]) -> bool:
        """Whether the target is finished and its manifest says these facts: then there is nothing to do."""
        try:
            manifest = read_manifest(self.dst)
        except (ToolError, OSError):
            return False
        return manifest is not None and all(manifest.get(k) == v for k, v in facts.items())

    def claim(self, *, resume: bool, force: bool) -> None:
        """Makes sure that the target may be written, before anything is. Raises ToolError (3) if it may not."""
        if self.dst.exists() and not self.dst.is_dir():
            raise ToolError(f"{self.dst} is a file, expected a directory", hint="choose another target")
        entries = sorted(p.name for p in self.dst.iterdir()) if self.dst.is_dir() else []
        if entries and not force:
            raise ToolError(f"{self.dst} is not empty ({', '.join(entries[:4])})", hint="add --force to replace it")
        ours = any(n in entries for n in (MANIFEST, TRACKER, "config.json")) or any(n.startswith("iter_") for n in entries)
        if entries and not ours:
            raise ToolError(
                f"{self.dst} does not look like a checkpoint ({', '.join(entries[:4])}); --force does not delete that",
                hint="choose another target, or empty it yourself",
            )
        foreign = [n for n in entries if not n.startswith("iter_") and n not in OWN_NAMES and not n.endswith(OWN_SUFFIXES)]
        if foreign or len([n for n in entries if n.startswith("iter_")]) > 1:
            what = f"holds what no conversion wrote: {', '.join(foreign[:4])}" if foreign else "holds several iterations"
            raise ToolError(
                f"{self.dst} {what}; --force does not delete that", hint="choose another target, or empty it yourself"
            )
        if (self.staging / JOURNAL).exists() and not resume and not force:
            raise ToolError(
                f"{self.staging} holds a run that was stopped",
                hint="add --resume to go on with it, or --force to start over",
            )
        if self.staging.exists() and not resume:
            if any(self.staging.iterdir()) and not (self.staging / JOURNAL).exists():
                raise ToolError(f"{self.staging} is in the way, and is not ours", hint="move it, or choose another target")
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
        """Adds the small files and puts the whole in its place."""
        for name, content in sidecars.items():
            path = self.staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        (self.staging / JOURNAL).unlink(missing_ok=True)
        old = self.dst.with_name(self.dst.name + ".old")
        if self.dst.exists() and any(self.dst.iterdir()):
            os.rename(self.dst, old)
        elif self.dst.exists():
            self.dst.rmdir()
        os.rename(self.staging, self.dst)
        _sync_directory(self.dst.parent)
        if old.exists():
            shutil.rmtree(old)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
