"""Where a task's documents lie, and the documents: rows of files brought to the fields that the task knows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jumar.eval.cells import as_pandas
from jumar.eval.files import Row, read_rows
from jumar.eval.task import Layout, Task
from jumar.eval.template import value_of
from jumar.schema.errors import ToolError

Doc = dict[str, Any]
SUBJECT = "{subject}"


@dataclass(frozen=True, slots=True)
class Found:
    """The files of one subject (None: the task has none), in one layout. folder: what its patterns are below."""

    subject: str | None
    layout: Layout
    folder: Path
    test: tuple[Path, ...]
    shots: tuple[Path, ...]


def find(task: Task, data: Path) -> list[Found]:
    """The files of every subject, in the order of their names. Raises ToolError (3) that says what is expected where."""
    if data.is_file():
        layout = _layout_of(task, data)
        return [Found(None, layout, data.parent, (data,), (data,) if layout.shots == layout.test else ())]
    for folder in _folders(task, data):
        for layout in task.layouts:
            if found := [f for f in _subjects(folder, layout) if _wanted(task, f.subject)]:
                return found
    raise ToolError(f"no data of {task.task} in {data}", hint=f"expected {expected(task, data)}")


def _wanted(task: Task, subject: str | None) -> bool:
    return subject not in task.without and (not task.only or subject in task.only)


def absent(task: Task, found: Sequence[Found]) -> list[str]:
    """Subjects that the task names and whose files are not there."""
    named = {subject for subjects in task.groups.values() for subject in subjects} | set(task.subjects)
    return sorted(named - set(task.without) - {each.subject for each in found if each.subject is not None})


def expected(task: Task, data: Path) -> str:
    """What `find` looks for, and where it is published."""
    folder = data / task.folders[0] if task.folders else data
    patterns = [str(folder / layout.test.replace(SUBJECT, "SUBJECT")) for layout in task.layouts]
    return " or ".join(patterns) + (f" (published at {task.source})" if task.source else "")


def _layout_of(task: Task, path: Path) -> Layout:
    for layout in task.layouts:
        if Path(layout.test).suffix in path.suffixes and SUBJECT not in layout.test:
            return layout
    raise ToolError(f"{path} is no file of {task.task}", hint="give the directory that holds its data")


def _folders(task: Task, data: Path) -> list[Path]:
    """Where to look: the folders that bear one of the task's names; the directory itself if it does, or the task has none."""
    if not data.is_dir():
        raise ToolError(f"there is no directory {data}", hint="give the one that holds the benchmarks: --data DIR")
    below = {path.name.lower(): path for path in sorted(data.iterdir()) if path.is_dir()}
    here = not task.folders or data.resolve().name.lower() in {name.lower() for name in task.folders}
    return [below[name.lower()] for name in task.folders if name.lower() in below] + [data] * here


def _subjects(folder: Path, layout: Layout) -> list[Found]:
    tests = _matching(folder, layout.test)
    shots = _matching(folder, layout.shots) if layout.shots else {}
    return [
        Found(subject, layout, folder, tuple(paths), tuple(shots.get(subject, ())))
        for subject, paths in sorted(tests.items(), key=str)
    ]


def _matching(folder: Path, pattern: str) -> dict[str | None, list[Path]]:
    """Subject -> files."""
    found: dict[str | None, list[Path]] = {}
    inner = re.escape(pattern).replace(re.escape(SUBJECT), "(.+)", 1).replace(re.escape("*"), "[^/]*")
    paths = [path for end in ("", ".gz") for path in folder.glob(pattern.replace(SUBJECT, "*") + end)]
    for path in sorted(paths):
        name = path.relative_to(folder).as_posix()
        if (match := re.fullmatch(inner, name) or re.fullmatch(inner, name.removesuffix(".gz"))) and path.is_file():
            if not path.name.isprintable():  # bytes that are no UTF-8 among them
                raise ToolError(f"{str(path)!r}: a name that is no text", hint="rename the file")
            found.setdefault(match[1] if match.groups() else None, []).append(path)
    return found


def documents(task: Task, found: Found) -> tuple[list[Doc], list[Doc]]:
    """(documents, those that worked examples are taken from). ToolError (3) names the file and the row that is at fault."""
    docs = _read(task, found, found.test, found.layout.only)
    if task.worked:
        return docs, [dict(example) for example in task.worked]
    return docs, _read(task, found, found.shots, found.layout.shots_only) if found.shots else docs


def _read(task: Task, found: Found, paths: tuple[Path, ...], only: str | None) -> list[Doc]:
    out = []
    for path in paths:
        rows = cot_prompts(path) if path.suffix == ".txt" and path in found.shots else None
        if rows is None:
            rows = read_rows(path, columns=found.layout.columns, rows=found.layout.rows)
        if found.layout.cells == "pandas" and path not in found.shots:
            rows = as_pandas(rows)
        for number, row in enumerate(rows, 1):
            where = f"{path}: row {number}"
            if only is None or _value(only, row, row, where):
                out.append(document(task, found, row, where))
    return out


def _value(expression: str, values: Mapping[str, Any], row: Row, where: str) -> Any:
    """Raises ToolError (3) that names the row and its columns."""
    try:
        return value_of(expression)(values)
    except ToolError as fault:
        raise fault.at(where, f" (its columns: {', '.join(map(str, row))})") from None


def document(task: Task, found: Found, row: Row, where: str) -> Doc:
    """A row's fields, with its subject."""
    name = found.subject
    subject = {} if name is None else {"subject": task.subjects.get(name, name.replace("_", " "))}
    values: Mapping[str, Any] = {**subject, "set": name, **row}
    if not found.layout.fields:
        return {**subject, **row}
    return {**subject, **{name: _value(source, values, row, where) for name, source in found.layout.fields.items()}}


def cot_prompts(path: Path) -> list[Row]:
    """Worked examples in BIG-Bench Hard's files: below a rule of dashes what the task is, then `Q: ...` and `A: ...`."""
    text = path.read_text(encoding="utf-8").replace("\r\n", "\n")
    about, *blocks = re.split(r"\n\nQ: ", text.rpartition("-----\n")[2].strip("\n"))
    rows = []
    for block in blocks:
        question, found, answer = block.partition("\nA: ")
        if not found:
            raise ToolError(f"{path}: an example has no answer", hint="each is Q: ..., and in a line of its own A: ...")
        steps = answer.removeprefix("Let's think step by step.\n").rstrip("\n")
        rows.append({"about": about, "input": question, "target": answer_in(steps), "steps": steps})
    return rows


def answer_in(steps: str) -> str:
    """What a worked answer comes to."""
    return steps.rpartition("the answer is ")[2].removesuffix(".").strip()
