"""Which checkpoints of a run are there, and which are whole: by complete.json, which lists an iteration's files."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jumar.train_core.run.writing import checksum

ITERATION = re.compile(r"iter_(\d{7,})")
COMPLETE = "complete.json"


def iterations(root: Path | None) -> list[Path]:
    """Published checkpoints under a run directory, the newest first."""
    if root is None or not root.is_dir():
        return []
    found = {int(name[1]): path for path in root.iterdir() if (name := ITERATION.fullmatch(path.name)) and path.is_dir()}
    return [found[step] for step in sorted(found, reverse=True)]


def newest(root: Path | None) -> dict[str, Any] | None:
    """What complete.json says of the newest checkpoint of a run whose files are there; None where there is none."""
    for path in iterations(root):
        if damage(path, content=False) is None:
            return read_facts(path)
    return None


def damage(path: Path, rank: int = 0, ranks: int = 1, *, content: bool = True) -> str | None:
    """What is wrong with a checkpoint, by the sizes and checksums that it was published with; None if nothing is.

    Each of `ranks` reads its share of the files; content: False looks at their sizes only.
    """
    try:
        files = read_facts(path)["files"]
        for name in sorted(files)[rank::ranks] if content else files:
            size, crc = files[name]
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes of {size}"
            if content and checksum(file)[1] != crc:
                return f"{name} has other bytes than were written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        return f"{COMPLETE} cannot be read: {fault}"
    return None


def facts_text(facts: Mapping[str, Any]) -> str:
    """complete.json: facts, and a checksum of them."""
    return json.dumps({**facts, "crc32": _crc_of(facts)}, indent=2) + "\n"


def read_facts(path: Path) -> dict[str, Any]:
    """Of a checkpoint's directory. Raises OSError, or ValueError where it is not what was written."""
    facts: dict[str, Any] = json.loads((path / COMPLETE).read_text())
    if facts.pop("crc32", None) != _crc_of(facts):
        raise ValueError("it has other bytes than were written")
    return facts


def _crc_of(facts: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())
