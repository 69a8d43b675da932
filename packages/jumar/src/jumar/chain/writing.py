"""The files of a migration: all beside their places first, then renamed, so that none is ever half there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from jumar.schema.errors import Exit, ToolError


def write(files: Mapping[Path, str], *, force: bool) -> list[Path]:
    """Those that were written; the others lay there already, with the same bytes.

    Raises ToolError for one that is there with another content (unless `force`), and where there is no room or no permission.
    """
    contents = {path: content.encode("utf-8") for path, content in files.items()}
    try:
        left = [path for path, content in contents.items() if not (path.is_file() and path.read_bytes() == content)]
        there = [path for path in left if path.exists() and not (force and path.is_file())]
        if there:
            what = "another content" if there[0].is_file() else "no file"
            hint = "choose another -o" + (", or add --force to replace it" if there[0].is_file() else "")
            raise ToolError(f"{there[0]} is there, {'with ' if there[0].is_file() else 'and is '}{what}", hint=hint)
        _renamed({path: contents[path] for path in left})
    except OSError as fault:
        where = fault.filename2 or fault.filename or next(iter(files))
        said = f"{where}: {fault.strerror or fault}"
        raise ToolError(said, hint="is there room, and may you write there? choose another -o", code=Exit.ENVIRONMENT) from None
    return left


def _renamed(contents: Mapping[Path, bytes]) -> None:
    parts = {path: path.with_name(f"{path.name}.part") for path in contents}
    try:
        for path, part in parts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(contents[path])
                file.flush()
                os.fsync(file.fileno())
        for path, part in parts.items():
            os.replace(part, path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
