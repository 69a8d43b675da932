"""Conversions that are stopped, and what they leave beside their place."""

from __future__ import annotations

from pathlib import Path

from failing import Run, run

JOURNAL = "journal.jsonl"

AT_ONCE = """
import jumar.ckpt_convert.execute as execute
write = execute.Executor._write
def write_and_commit(self, files, *item):
    write(self, files, *item)
    self._commit(files)
execute.Executor._write = write_and_commit
"""
"""Each record is synced and put into the journal before the next one is begun."""


def journal(dst: Path) -> Path:
    return Path(f"{dst}.partial") / JOURNAL


def lines(dst: Path) -> int:
    """How much is done, in lines of the journal."""
    return journal(dst).read_bytes().count(b"\n") if journal(dst).exists() else 0


def resume(source: Path, dst: Path, *flags: object) -> Run:
    return run("to-megatron", source, dst, "--tp", 2, "--pp", 2, "--resume", *flags)
