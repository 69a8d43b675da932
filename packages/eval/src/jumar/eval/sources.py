"""The templates and expressions of a task: which keys hold them, whether they are any, where one that is at fault stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jumar.eval.task import Task
from jumar.eval.template import SourceFault, text_of, value_of
from jumar.schema.errors import Exit

Compile = Callable[[str], object]


def sources(task: Task) -> Iterator[tuple[str, Compile, str]]:
    """(key, what makes a function of it, its text): ("layouts.0.fields.gold", value_of, "answer")."""
    texts: dict[str, Any] = {key: getattr(task, key) for key in ("prompt", "description", "baked", "program")}
    if task.haystack is not None:
        texts |= {"haystack.needle": task.haystack.needle, "haystack.question": task.haystack.question}
    values: dict[str, Any] = {key: getattr(task, key) for key in ("target", "shot_target", "ending", "choices")}
    for number, layout in enumerate(task.layouts):
        values |= {f"layouts.{number}.fields.{name}": text for name, text in layout.fields.items()}
        values |= {f"layouts.{number}.{key}": getattr(layout, key) for key in ("only", "shots_only")}
    for number, how in enumerate(task.answers):
        values |= {f"answers.{number}.read.{i}": text for i, text in enumerate(how.read)}
    for found, compiled in ((texts, text_of), (values, value_of)):
        yield from ((key, compiled, text) for key, text in found.items() if isinstance(text, str) and text)


def check_sources(task: Task, path: Path | str) -> None:
    """Raises ToolError (2) for a text that is no Jinja, with its key."""
    for key, compiled, text in sources(task):
        try:
            compiled(text)
        except SourceFault as fault:
            found = fault.at(f"{path}: {key}")
            found.code = Exit.USAGE
            raise found from None


@contextmanager
def in_files(tasks: Mapping[str, Task]) -> Iterator[None]:
    """Faults of templates with the file and the key where they stand. tasks: by their files."""
    try:
        yield
    except SourceFault as fault:
        for path, task in tasks.items():
            for key, _, text in sources(task):
                if text == fault.source:
                    raise fault.at(f"{path}: {key}") from None
        raise
