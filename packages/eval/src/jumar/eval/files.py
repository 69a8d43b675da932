"""Rows of the files in which benchmarks are published: csv, tsv, jsonl, json, parquet, txt; jsonl and csv also as .gz."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jumar.schema.errors import Exit, ToolError

Row = dict[str, Any]
csv.field_size_limit(1 << 30)


def read_rows(path: Path, *, columns: Sequence[str] = (), rows: str | None = None) -> list[Row]:
    """All rows of a file, whose name says what it is.

    columns: of a CSV file without header; rows: of a JSON object the key under which they are
    Raises ToolError: 3 with the line of what is damaged, 4 for Parquet without pyarrow.
    """
    suffix = [s for s in path.suffixes if s != ".gz"][-1:] or [""]
    readers: dict[str, Callable[[], list[Row]]] = {
        ".csv": lambda: _csv(path, columns, ","),
        ".tsv": lambda: _csv(path, columns, "\t"),
        ".jsonl": lambda: _jsonl(path),
        ".json": lambda: _json(path, rows),
        ".parquet": lambda: _parquet(path),
        ".txt": lambda: [{"text": _text(path)}],
    }
    if suffix[0] not in readers:
        raise ToolError(f"{path}: files of this kind are not read", hint=f"known: {', '.join(readers)}")
    found = readers[suffix[0]]()
    if not found:
        raise ToolError(f"{path} holds no rows", hint="fetch the file again")
    return found


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise ToolError(f"{path} is not UTF-8: {fault}", hint="fetch the file again, or convert it: iconv -t UTF-8") from None
    except gzip.BadGzipFile as fault:
        hint = f"fetch the file again; if it is not compressed, rename it: {path.name.removesuffix('.gz')}"
        raise ToolError(f"{path} is damaged, or no gzip: {fault}", hint=hint) from None
    except (EOFError, zlib.error) as fault:
        raise ToolError(f"{path} is cut or damaged: {fault}", hint=f"fetch the file again; gzip -t {path} checks it") from None
    except OSError as fault:
        raise ToolError(f"{path} cannot be read: {fault}", hint="check the path and its permissions") from None


def _csv(path: Path, columns: Sequence[str], separator: str) -> list[Row]:
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=separator, strict=True)
    names, out = list(columns), []
    try:
        for cells in reader:
            if not cells:
                continue
            if not names:
                names = cells
                if twice := sorted({name for name in names if names.count(name) > 1}):
                    what = f"{path}:{reader.line_num}: the column {twice[0]!r} is there twice"
                    raise ToolError(what, hint="is the file in the published layout?")
                continue
            if len(cells) != len(names):
                what = f"{path}:{reader.line_num}: {len(cells)} columns, expected {len(names)}: {', '.join(names)}"
                raise ToolError(what, hint="is the file in the published layout?")
            out.append(dict(zip(names, cells, strict=True)))
    except csv.Error as fault:
        raise ToolError(f"{path}:{reader.line_num}: not CSV: {fault}", hint="fetch the file again") from None
    return out


def _jsonl(path: Path) -> list[Row]:
    out = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            out.append(_object(line, f"{path}:{number}"))
    return out


def _object(line: str, where: str) -> Row:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as fault:
        raise ToolError(f"{where}: not JSON: {fault}", hint="fetch the file again") from None
    _check_characters(line, found, where)
    if not isinstance(found, dict):
        raise ToolError(f"{where}: a {type(found).__name__}, expected an object", hint="is the file in the published layout?")
    return found


def _check_characters(text: str, found: Any, where: str) -> None:
    """Raises ToolError for half a character, which JSON can write (`\\ud800`), and no tokenizer or server takes."""
    if "\\ud" in text.lower():
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError as fault:
            what = f"{where}: half a character: U+{ord(fault.object[fault.start]):04X}"
            raise ToolError(what, hint="write whole characters") from None


def _json(path: Path, key: str | None) -> list[Row]:
    try:
        found = json.loads(text := _text(path))
    except (ValueError, RecursionError) as fault:
        raise ToolError(f"{path}: not JSON: {fault}", hint="fetch the file again") from None
    _check_characters(text, found, str(path))
    if key is not None and isinstance(found, dict):
        found = found.get(key)
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        where = f"under {key!r}" if key else "in it"
        raise ToolError(f"{path}: {where} is no list of objects", hint="is the file in the published layout?")
    return found


def _parquet(path: Path) -> list[Row]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ToolError(
            f"{path}: Parquet needs pyarrow, which is not installed",
            hint='pip install "jumar-eval[parquet]"',
            code=Exit.ENVIRONMENT,
        ) from None
    try:
        found: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as fault:
        raise ToolError(f"{path} cannot be read: {fault}", hint="fetch the file again") from None
    return found
