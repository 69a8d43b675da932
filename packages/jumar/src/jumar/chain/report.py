"""What a migration says: commands, recipes, every flag in its class."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from jumar.chain.migrate import Migrated
from jumar.chain.tables import CLASSES
from jumar.chain.verdicts import Made, Verdict

GROUPED = ("default", "no effect")
WIDTH = 110


def as_json(migrated: Migrated) -> dict[str, Any]:
    """All of it, for machines."""
    return {
        "jobs": [
            {
                "program": made.job.program,
                "line": made.job.line,
                "commands": list(made.commands),
                "files": made.files,
                "flags": [{"class" if key == "kind" else key: value for key, value in asdict(v).items()} for v in made.verdicts],
                "faults": list(made.faults),
            }
            for made in migrated.made
        ],
        "notes": [{"line": line, "text": text} for line, text in migrated.notes],
    }


def lines(migrated: Migrated, *, whole: bool, written: bool) -> Iterator[str]:
    """For people. whole: nothing keeps commands and recipes from being shown; written: recipes lie in files already."""
    for number, made in enumerate(migrated.made):
        if number:
            yield ""
        yield from _job(made, whole=whole, written=written)


def _job(made: Made, *, whole: bool, written: bool) -> Iterator[str]:
    yield f"line {made.job.line}: {made.job.program}"
    if whole:
        for command in made.commands:
            yield from ("", *command.splitlines())
        for name, content in made.files.items():
            if not written:
                yield from ("", f"{name}:", *content.splitlines())
    for kind in CLASSES:
        if found := made.of(kind):
            yield from ("", f"{kind}: {len(found)} {'flag' if len(found) == 1 else 'flags'}")
            yield from _grouped(found) if kind in GROUPED else _one_by_one(found)


def _one_by_one(found: list[Verdict]) -> Iterator[str]:
    rows = [
        (f"line {each.line}", _spelled(each), each.ours + (f" ({each.why})" if each.ours and each.why else each.why))
        for each in found
    ]
    widths = [min(max(len(row[column]) for row in rows), 48) for column in range(2)]
    for row in rows:
        yield f"  {row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}".rstrip()


def _grouped(found: list[Verdict]) -> Iterator[str]:
    """Flags that have one reason, under it."""
    for why in dict.fromkeys(each.why for each in found):
        yield f"  {why}"
        flags = ", ".join(_spelled(each).replace(" ", "\0") for each in found if each.why == why)
        wrapped = textwrap.wrap(flags, WIDTH - 6, break_long_words=False, break_on_hyphens=False)
        yield from (f"      {line}".replace("\0", " ") for line in wrapped)


def _spelled(each: Verdict) -> str:
    return f"{each.flag} {each.values}".rstrip()
