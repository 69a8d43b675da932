"""The journal of a conversion: what is written and synced, so that a killed run can go on."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jumar.schema.errors import Exit, ToolError

if TYPE_CHECKING:
    from jumar.ckpt_convert.execute import TargetFile

NAME = "journal.jsonl"


class Journal:
    """What is done, a line a record, so that a killed run can go on. The first line names the plan that the lines belong to."""

    def __init__(self, directory: Path, fingerprint: str, resume: bool) -> None:
        self.path = directory / NAME
        self.done: dict[tuple[int, int], int] = {}
        directory.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab", buffering=0)
        _lock(self._file.fileno(), directory)
        if not resume or not self._read(fingerprint):
            os.truncate(self.path, 0)
            self._file.write(_named(fingerprint))

    def _read(self, fingerprint: str) -> bool:
        """Takes up what is done. False if the process died before it wrote its first line."""
        content = self.path.read_bytes()
        lines = content.split(b"\n")
        torn = lines.pop()  # the last line, if the process died while writing it
        if not lines:
            return False
        try:
            same = json.loads(lines[0]).get("plan") == fingerprint
            self.done = {(int(file), int(record)): int(crc) for file, record, crc in map(json.loads, lines[1:])}
        except (ValueError, TypeError, AttributeError):
            raise damaged(self.path) from None
        if not same:
            raise ToolError(
                f"{self.path.parent} was begun with other sources or options",
                hint="give the options of the first run, or start over with --force instead of --resume",
            )
        if torn:
            os.truncate(self.path, len(content) - len(torn))
        return True

    def check(self, files: Sequence[TargetFile]) -> None:
        """Raises ToolError if the journal says of anything that is not there that it was written."""
        for index, number in self.done:
            if not 0 <= index < len(files) or not 0 <= number < len(files[index].records):
                raise damaged(self.path)
        for index in sorted({index for index, _ in self.done}):
            path = self.path.parent / files[index].path
            if not path.is_file() or path.stat().st_size != files[index].size:
                raise ToolError(f"{path} is not as the stopped run left it", hint="start over with --force instead of --resume")

    def add(self, entries: Sequence[tuple[int, int, int]]) -> None:
        self._file.write("".join(json.dumps(e) + "\n" for e in entries).encode())

    def close(self) -> None:
        self._file.close()


def damaged(journal: Path) -> ToolError:
    return ToolError(f"{journal} is damaged", hint="start over with --force instead of --resume")


def is_journal(path: Path) -> bool:
    """Whether a file is the journal of a run that was stopped (perhaps before its first line)."""
    first = _first_line(path)
    if first is None:
        return False
    try:
        return not first.endswith(b"\n") or "plan" in json.loads(first)
    except (ValueError, TypeError):
        return False


def names_plan(path: Path, fingerprint: str) -> bool:
    """Whether a file is the journal of this plan."""
    return _first_line(path) == _named(fingerprint)


def _named(fingerprint: str) -> bytes:
    return (json.dumps({"plan": fingerprint}) + "\n").encode()


def _first_line(path: Path) -> bytes | None:
    if not path.is_file() or path.is_symlink():
        return None
    with path.open("rb") as file:
        return file.readline(1000)


def refuse_second_writer(directory: Path) -> None:
    """Raises ToolError (4) if another process is writing into a staging directory."""
    journal = directory / NAME
    if journal.exists():
        with journal.open("rb") as file:
            _lock(file.fileno(), directory)


def _lock(fd: int, directory: Path) -> None:
    """Takes the lock of a journal; ToolError (4) if another process has it. File systems without locks are let pass."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ToolError(
            f"another process is writing {directory}", hint="wait until it is done, or stop it", code=Exit.ENVIRONMENT
        ) from None
    except OSError:
        pass
