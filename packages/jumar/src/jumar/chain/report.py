"""What a migration says: commands, recipes, every flag in its class."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from jumar.chain.migrate import Migrated
from jumar.chain.shell.words import Line
from jumar.chain.tables import CLASSES
from jumar.chain.verdicts import Made, Verdict
from jumar.schema.cli import escaped

GROUPED = ("refused", "default", "no effect")
NARROW, WIDE, PIPED = 60, 140, 110
"""Columns: the fewest and the most that are written for, and those where there is no terminal."""
PARTS = re.compile(r"(?:'[^']*'|[^\s'])+")


def as_json(migrated: Migrated) -> dict[str, Any]:
    """All of it, for machines."""
    return {
        "jobs": [
            {
                "program": made.job.program,
                **_place(made.job.line),
                "refused": made.job.refused,
                "commands": list(made.commands),
                "files": made.files,
                "flags": [_flag(each) for each in made.verdicts],
                "faults": list(made.faults),
            }
            for made in migrated.made
        ],
        "notes": [{**_place(line), "text": text} for line, text in migrated.notes],
    }


def _flag(each: Verdict) -> dict[str, Any]:
    said = {"class" if key == "kind" else key: value for key, value in asdict(each).items()}
    return {**said, **_place(each.line)}


def _place(line: int) -> dict[str, Any]:
    """A line, and its file where that is not the script itself."""
    return {"line": int(line), **({"file": line.file} if isinstance(line, Line) and line.file else {})}


def lines(migrated: Migrated, *, whole: bool, written: bool) -> Iterator[str]:
    """For people. whole: nothing keeps commands and recipes from being shown; written: recipes lie in files already."""
    width = max(NARROW, min(WIDE, shutil.get_terminal_size((PIPED, 24)).columns))
    for number, made in enumerate(migrated.made):
        if number:
            yield ""
        for line in _job(made, width, whole=whole, written=written):
            yield "\n".join(map(escaped, line.split("\n")))


def _job(made: Made, width: int, *, whole: bool, written: bool) -> Iterator[str]:
    yield f"line {made.job.line}: {made.job.program}"
    if made.job.refused:
        yield from ("", *_hanging("refused as a whole: ", made.job.refused, width))
    if whole:
        for command in made.commands:
            yield from ("", *command_lines(command, width))
        for name, content in made.files.items():
            if not written:
                yield from ("", f"{name}:", *content.splitlines())
    seen = "\n".join(made.files.values()) if whole and not written else ""
    for kind in CLASSES:
        found = made.of(kind)
        rows = [each for each in found if not _beside(each, seen)]
        if found:
            yield from ("", _counted(kind, len(found), len(found) - len(rows)))
            yield from _grouped(rows, width) if kind in GROUPED else _one_by_one(rows, width)


def _counted(kind: str, count: int, seen: int) -> str:
    flags = f"{kind}: {count} {'flag' if count == 1 else 'flags'}"
    return f"{flags}, {seen} of them beside their fields above" if seen else flags


def _beside(each: Verdict, recipe: str) -> bool:
    """Whether a flag stands beside its field in a recipe that was shown, and nothing more is to be said of it."""
    return each.kind == "mapped" and not each.why and bool(re.search(rf"# (.*, )?{re.escape(each.flag)}$", recipe, re.MULTILINE))


def command_lines(command: str, width: int) -> list[str]:
    """A command as it is typed: options with their values go to the next line where one is full."""
    parts: list[str] = []
    for word in PARTS.findall(command):
        if parts and not word.startswith("-") and parts[-1].startswith("-") and " " not in parts[-1]:
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    found = [parts[0]]
    for part in parts[1:]:
        if len(found[-1]) + len(part) + 3 > width:
            found[-1] += " \\"
            found.append(f"    {part}")
        else:
            found[-1] += f" {part}"
    return found


def _one_by_one(found: list[Verdict], width: int) -> Iterator[str]:
    """A row for each: its line, the flag, what it is here. What is too long for its column goes below."""
    numbers = max((len(str(int(each.line))) for each in found), default=0)
    lengths = [len(_spelled(each)) for each in found]
    flags = max((length for length in lengths if length <= width // 2), default=width // 4)
    file = ""
    for each in found:
        if (own := each.line.file if isinstance(each.line, Line) else "") != file:
            yield f"  {own or 'the script'}"
            file = own
        said = each.ours + (f" ({each.why})" if each.ours and each.why else each.why)
        front = f"  {int(each.line):>{numbers}}  {_spelled(each):<{flags}}  "
        behind = numbers + flags + 6
        if len(front) > behind:
            yield front.rstrip()
            front = " " * behind
        yield from _hanging(front, said, width)


def _hanging(front: str, text: str, width: int) -> list[str]:
    """`front` and a text that goes on below its own beginning; on words alone, so that values can be copied."""
    indent = " " * len(front)
    room = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(text, width, initial_indent=front, subsequent_indent=indent, **room) or [front.rstrip()]  # type: ignore[arg-type]


def _grouped(found: list[Verdict], width: int) -> Iterator[str]:
    """Flags that have one reason, under it."""
    for why in dict.fromkeys(each.why for each in found):
        yield from _hanging("  ", why, width)
        flags = ", ".join(_told(each).replace(" ", "\0") for each in found if each.why == why)
        wrapped = textwrap.wrap(flags, width - 6, break_long_words=False, break_on_hyphens=False)
        yield from (f"      {line}".replace("\0", " ") for line in wrapped)


def _told(each: Verdict) -> str:
    """A flag under its reason: with its line where something is to be done about it."""
    return f"{_spelled(each)} (line {each.line})" if each.kind == "refused" else _spelled(each)


def _spelled(each: Verdict) -> str:
    return f"{each.flag} {each.values}".rstrip()
