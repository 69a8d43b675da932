"""The recipe as `jumar-train schema` prints it: every field with its default, type and meaning, read from the dataclasses."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from textwrap import dedent
from typing import Any, Union, get_args, get_origin, get_type_hints

from jumar.schema.recipe import type_text
from jumar.train_core.recipe import Recipe

ENTRY = re.compile(r"([a-z]\w*(?:, [a-z]\w*)*):\s+(\S.*)")


def schema_text() -> str:
    """A commented YAML of every field at its default. Read as a recipe, it is the default recipe."""
    return "\n".join(_section(Recipe, Recipe(), "")) + "\n"


def json_schema() -> dict[str, Any]:
    """The recipe's JSON schema, for editors."""
    from pydantic import TypeAdapter

    return TypeAdapter(Recipe).json_schema()


def described(kind: type) -> tuple[str, dict[str, str]]:
    """A dataclass's docstring as (what it is, {field: what it says}). Names that share a line share their text."""
    doc = kind.__doc__ or ""
    first, _, rest = doc.partition("\n")
    lines = [first, *dedent(rest).splitlines()]
    text: list[str] = []
    meanings: dict[str, str] = {}
    names: list[str] = []
    for line in lines:
        known = {f.name for f in fields(kind)}
        entry = ENTRY.fullmatch(line)
        if entry and set(entry[1].split(", ")) <= known:
            names = entry[1].split(", ")
            meanings |= dict.fromkeys(names, entry[2])
        elif line.startswith(" ") and names:
            meanings |= {name: f"{meanings[name]} {line.strip()}" for name in names}
        else:
            names = []
            text.append(line)
    return " ".join(" ".join(text).split()), meanings


def _section(kind: type, value: Any, indent: str) -> Iterator[str]:
    """Lines of a section; `value` None: the section is not there by default, and its lines are comments."""
    mark = "" if value is not None else "# "
    hints, (_, meanings) = get_type_hints(kind), described(kind)
    for f in fields(kind):
        inner = _section_of(hints[f.name])
        here = _default(f) if value is None else getattr(value, f.name)
        meaning, kinds = meanings.get(f.name), type_text(hints[f.name])
        if inner is None:
            note = f"{meaning} ({kinds})" if meaning else kinds
            yield f"{indent}{mark}{f.name}: {_yaml(here)}  # {note}"
            continue
        about = meaning or described(inner)[0]
        yield f"{indent}{mark}{f.name}:{' null' if here is None else ''}  # {about}"
        yield from _section(inner, here, indent + "  ")


def _default(f: Field[Any]) -> Any:
    if f.default is not MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not MISSING else "..."


def _section_of(kind: Any) -> type | None:
    """The dataclass that a field is (or may be), unless it is one in a list."""
    options = [kind, *get_args(kind)] if get_origin(kind) in (Union, types.UnionType) else [kind]
    return next((option for option in options if is_dataclass(option) and isinstance(option, type)), None)


def _yaml(value: Any) -> str:
    """A value on one line of YAML, which PyYAML reads back as the same."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, dict):
        return "{}" if not value else str(value)
    if isinstance(value, float):
        return _number(value)
    return str(value)


def _number(value: float) -> str:
    """1e-8 is a string to YAML 1.1, 1.0e-08 a number."""
    text = repr(value)
    mantissa, _, exponent = text.partition("e")
    return text if not exponent else f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent}"
