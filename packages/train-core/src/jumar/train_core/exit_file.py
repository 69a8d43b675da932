"""RUN/exit.json: how a run ended, for who cannot see the exit code of a rank (torchrun returns 1 for every failure)."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NAME = "exit.json"


@dataclass(frozen=True, slots=True)
class Ended:
    """code: as in docs/contracts.md, 14; rank: who said so."""

    code: int
    message: str
    rank: int


class ExitFile:
    """The exit.json of a run's directory (None: the run has none), and whether it was written since this object was made."""

    def __init__(self, run: Path | None) -> None:
        self.path = None if run is None else run / NAME
        self._before = self._stamp()

    def _stamp(self) -> tuple[int, int, int] | None:
        if self.path is None:
            return None
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def read(self) -> Ended | None:
        """What was written since; None where nothing was, as one that is older tells of another run."""
        return None if self._stamp() in (None, self._before) else self.told()

    def told(self) -> Ended | None:
        """What it says, whenever it was written."""
        if self.path is None:
            return None
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            return Ended(int(content["code"]), str(content["message"]), int(content["rank"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def confirm(self) -> None:
        """Says that the run is done, where it does not say so already."""
        told = self.told()
        if told is None or told.code:
            self.write(0, "", 0)

    def write(self, code: int, message: str, rank: int) -> None:
        """Says how a run ended, unless somebody has said so already. That it cannot be written is no fault of its own."""
        if self.path is None or self.read() is not None:
            return
        beside = self.path.with_name(f".{NAME}.{rank}.{os.getpid()}")
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps({"code": code, "message": message, "rank": rank}) + "\n", encoding="utf-8")
            beside.replace(self.path)
