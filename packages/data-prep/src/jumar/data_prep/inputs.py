"""From the command line's words to the files that are read, each with its kind."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jumar.data_prep.streams import STANDARD_INPUT, UTF8_BOM, open_source, refuse_utf16, standard_input
from jumar.schema.errors import Exit, ToolError
from jumar.schema.options import path as typed

KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",  # sniffed: jsonl, array or values
    ".txt": "text",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
COMPRESSIONS = {".gz": "gz", ".zst": "zst"}
TABLES = ("parquet", "arrow")
_FIRST_LINE_BYTES = 64 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True)
class Input:
    """One file to read.

    path: None is the standard input.
    name: how messages call it: the path as it was given; "standard input".
    kind: "jsonl", "array" (one JSON array), "values" (JSON values one after another, each of any number of lines), "text",
          "csv", "tsv", "parquet" or "arrow".
    compression: None, "gz" or "zst".
    size: bytes on disk; None of the standard input.
    """

    path: Path | None
    name: str
    kind: str
    compression: str | None
    size: int | None


def find_inputs(arguments: list[str]) -> list[Input]:
    """The files that are meant, in order: files, folders (what is known below them), globs, `-`; one given twice is read twice.

    Raises ToolError on what does not exist, matches nothing, or is of no known kind; on text in UTF-16.
    """
    inputs: list[Input] = []
    for argument in arguments:
        if argument == "-":
            if any(i.path is None for i in inputs):
                hint = "name it once"
                raise ToolError("the standard input (-) is given twice: it can be read once", hint=hint, code=Exit.USAGE)
            inputs.append(_standard_input())
        else:
            inputs += map(_input, _paths(argument))
    return inputs


def _paths(argument: str) -> list[Path]:
    path = typed(argument)
    if path.is_dir():
        found = sorted(_below(path), key=str)
        if not found:
            raise ToolError(f"{argument}: no file below this folder is of a known kind", hint=f"known: {_known()}")
        return found
    if path.exists():
        return [path]
    if glob.has_magic(argument):
        matched = [
            p for name in sorted(glob.glob(argument, recursive=True)) for p in ([Path(name)] if Path(name).is_file() else [])
        ]
        if not matched:
            raise ToolError(
                f"{argument}: no file matches", hint="quote the pattern if the shell should leave it alone; ** goes into folders"
            )
        return matched
    raise ToolError(f"{argument}: no such file or folder", hint="is it spelled right, and seen from this directory?")


def _below(folder: Path) -> Iterator[Path]:
    for directory, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        yield from (Path(directory, n) for n in names if not n.startswith(".") and _kind(Path(n))[0] is not None)


def _kind(path: Path) -> tuple[str | None, str | None]:
    """(kind or None, compression or None) by the name's suffixes."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    kind = KINDS.get((path.with_suffix("") if compression else path).suffix.lower())
    return (None, None) if compression and kind in TABLES else (kind, compression)


def _known() -> str:
    return f"{' '.join(KINDS)}, and of those that are text also {' '.join('*' + c for c in COMPRESSIONS)}"


def _input(path: Path) -> Input:
    kind, compression = _kind(path)
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ToolError(f"{str(path)!r}: a file's name that is not UTF-8", hint="rename it") from None
    if kind is None:
        raise ToolError(f"{path}: what kind of file is this? Its name does not end as a known one", hint=f"known: {_known()}")
    if not path.is_file():
        raise ToolError(f"{path} is not a file", hint="to read a pipe, give - and feed it to the standard input")
    if kind not in TABLES:
        with open_source(path, compression) as source:
            head = source.peek(4)
            refuse_utf16(head, str(path))
            if kind == "json":
                while (line := source.readline(_FIRST_LINE_BYTES)) and line.isspace():
                    pass
                kind = _json_kind(line, whole=line.endswith(b"\n") or len(line) < _FIRST_LINE_BYTES)
    return Input(path, str(path), kind, compression, path.stat().st_size)


def _json_kind(first_line: bytes, *, whole: bool) -> str:
    """Whether JSON that begins with this line is an array, lines or values. whole: False if the line goes on."""
    text = first_line.strip()
    if text.startswith(b"["):
        return "array"
    if not whole or not text:
        return "jsonl"
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return "values"
    return "jsonl"


def _standard_input() -> Input:
    stream = standard_input()
    while (head := stream.peek()) and head.isspace():
        stream.read(len(head))
    refuse_utf16(head, STANDARD_INPUT)
    if head.startswith((b"PAR1", b"ARROW1")):
        what = "Parquet" if head.startswith(b"PAR1") else "Arrow"
        raise ToolError(f"the standard input is {what}, which cannot be read as it comes", hint="name the file")
    if head.startswith((_GZIP, _ZSTD)):
        tool = "gzip" if head.startswith(_GZIP) else "zstd"
        raise ToolError("the standard input is compressed", hint=f"decompress it on the way: {tool} -dc FILE | jumar-data ... -")
    head = head.removeprefix(UTF8_BOM).lstrip()
    first, newline, _ = head.partition(b"\n")
    kind = _json_kind(first, whole=bool(newline)) if head.startswith((b"[", b"{")) else "text"
    return Input(None, STANDARD_INPUT, kind, None, None)
