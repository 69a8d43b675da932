"""Index maps on disk: a directory that is whole or not there, whoever builds it, on however many file systems.

ROOT/KEY holds what was built from all that KEY is a hash of. It is filled beside its place and renamed, so that a killed run
leaves nothing that looks finished, and of two jobs that build the same the second one throws its own away. No lock: file
systems of clusters do not all have them.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jumar.schema.errors import Exit, ToolError

if TYPE_CHECKING:
    from jumar.train_core.data.together import Ranks

LIST = "complete.json"
STALE_S = 2 * 24 * 3600
"""Age in seconds at which a half-filled directory is a killed run's, whatever builds slowly."""
VISIBLE_S = 60
"""For how many seconds a network file system may hide what another node has just written."""
ELSEWHERE = "set data.cache to a directory that can be written, the same path on every node"


@dataclass(frozen=True, slots=True)
class IndexCache:
    """One set of index maps. root: where sets are kept; key: this one's name; what: it is, for errors."""

    root: Path
    key: str
    what: str = "the index maps of the data"

    @property
    def folder(self) -> Path:
        return self.root / self.key

    def facts(self) -> dict[str, Any] | None:
        """What its builder noted; None where the set is not there, or any file of it is missing or was cut."""
        try:
            listed: dict[str, Any] = json.loads((self.folder / LIST).read_text(encoding="utf-8"))
            whole = all((self.folder / name).stat().st_size == size for name, size in listed["files"].items())
        except (OSError, ValueError, KeyError):
            return None
        return listed["facts"] if whole else None

    def build(self, fill: Callable[[Path], dict[str, Any]]) -> None:
        """Fills the directory by `fill`, which returns what `facts` shall return. Raises ToolError where it cannot be written."""
        staging = self.root / f"{self.key}.{uuid.uuid4().hex}.tmp"
        try:
            staging.mkdir(parents=True)
            self._write(staging, fill(staging))
            self._put_in_place(staging)
        except OSError as fault:
            text = f"{self.what} cannot be written to {self.root}: {fault.strerror or fault}"
            raise ToolError(text, hint=ELSEWHERE, code=Exit.ENVIRONMENT) from None
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self._sweep()

    def _write(self, staging: Path, facts: dict[str, Any]) -> None:
        files = sorted(path for path in staging.iterdir())
        listed = {"facts": facts, "files": {path.name: path.stat().st_size for path in files}}
        (staging / LIST).write_text(json.dumps(listed, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for path in (*files, staging / LIST, staging):  # else a power cut may leave the name and lose what is in it
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def _put_in_place(self, staging: Path) -> None:
        """A directory can be renamed onto an empty one or none: whoever comes second finds it filled.

        A damaged set is mended file by file, its list last, and never taken away: of the same key the same bytes are built, so
        that who reads a file, and who mends it at the same time, may have either.
        """
        try:
            staging.rename(self.folder)
        except OSError:
            if not self.folder.is_dir():
                raise
            if self.facts() is None:
                for path in sorted(staging.iterdir(), key=lambda path: path.name == LIST):
                    path.replace(self.folder / path.name)

    def _sweep(self) -> None:
        """Removes what killed runs left."""
        digits = "[0-9a-f]" * 32
        for path in self.root.glob(f"{digits}.{digits}.tmp"):
            try:
                if time.time() - path.stat().st_mtime > STALE_S:
                    shutil.rmtree(path, ignore_errors=True)
            except FileNotFoundError:
                continue

    def wait(self, seconds: float = VISIBLE_S) -> dict[str, Any]:
        """`facts` of a set that another process has just built, or builds. Raises ToolError if it does not come into sight."""
        end = time.monotonic() + seconds
        while (facts := self.facts()) is None:
            if time.monotonic() > end:
                text = f"{self.folder} was built by another rank and cannot be seen here after {seconds:g} s"
                raise ToolError(text, hint=ELSEWHERE, code=Exit.ENVIRONMENT)
            time.sleep(0.5)
            if self.root.is_dir():
                os.listdir(self.root)  # a network file system looks again
        return facts


def builders(root: Path, ranks: Ranks, without: list[int]) -> bool:
    """Whether this rank shall build: the lowest rank of each file system among those `without` the maps. Collective.

    Which ranks share a file system is not asked of host names, but seen: a rank leaves a mark in `root`, and who finds it has
    the same directory. A mark that comes into sight late costs a second build of the same, no more.
    """
    mine = False
    while without:
        leader = without[0]
        mark = ranks.gather(lambda leader=leader: _leave_mark(root) if ranks.rank == leader else "")[leader]  # type: ignore[misc]
        sees = ranks.gather(lambda mark=mark: (root / mark).exists())  # type: ignore[misc]
        if ranks.rank == leader:
            mine = True
            (root / mark).unlink(missing_ok=True)
        without = [rank for rank in without if not sees[rank] and rank != leader]
    return mine


def _leave_mark(root: Path) -> str:
    name = f".{uuid.uuid4().hex}.mark"
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    except OSError as fault:
        text = f"the index maps of the data cannot be written to {root}: {fault.strerror or fault}"
        raise ToolError(text, hint=ELSEWHERE, code=Exit.ENVIRONMENT) from None
    return name
