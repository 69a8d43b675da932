"""Options that several commands share, stated once: a dataclass whose fields are options, what their help says, and paths."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from jumar.schema.errors import Exit, ToolError


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command with groups of options: typer sees every field of a parameter that is a dataclass, in its place.

    Parameters are keyword-only; the modules of command and dataclasses do without `from __future__ import annotations`.
    """
    groups: dict[str, Any] = {}
    shown: dict[str, tuple[Any, Any]] = {}
    for name, own in inspect.signature(command).parameters.items():
        if is_dataclass(own.annotation):
            groups[name] = own.annotation
            shown |= {field.name: (field.type, field.default) for field in fields(own.annotation)}
        else:
            shown[name] = own.annotation, own.default

    @functools.wraps(command)
    def spread(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    kind = inspect.Parameter.KEYWORD_ONLY
    spread.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind, default=default, annotation=type_) for name, (type_, default) in shown.items()]
    )
    spread.__annotations__ = {name: type_ for name, (type_, _) in shown.items()}
    return spread


def path(text: str) -> Path:
    """A path that was typed. Raises ToolError (2) for an empty one, which would be the working directory."""
    return Path(named(text))


def named(text: str) -> str:
    """The same for what may be a path, and is kept as it was typed."""
    if not str(text):
        raise ToolError("a path is empty", hint="is a variable of your script not set?", code=Exit.USAGE)
    return text


def refuse_not_utf8(file: Path) -> None:
    """ToolError for a path that libraries which take text alone cannot open."""
    try:
        str(file).encode()
    except UnicodeEncodeError:
        hint = "rename the directory, or reach it through a link whose name is UTF-8"
        raise ToolError(f"{str(file)!r}: a path that is not UTF-8", hint=hint) from None


def one_of(*names: str, group: str | None = None) -> str:
    """What an option may be, for its help: "auto, cpu, cuda or npu." group: and the names of these entry points."""
    *most, last = [*names, *sorted(point.name for point in entry_points(group=group))] if group else names
    return f"{', '.join(most)} or {last}." if most else f"{last}."
