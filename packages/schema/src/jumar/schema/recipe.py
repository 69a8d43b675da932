"""Recipes: a YAML or TOML file, then `--set a.b=c`, validated once into frozen dataclasses.

Unknown keys are refused with the nearest known one.
Values of `--set` are read as YAML: `--set train.steps=20`, `--set load.path=null`.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from jumar.schema.errors import Exit, ToolError

T = TypeVar("T")


def load_recipe(kind: type[T], path: Path | None, sets: Iterable[str] = ()) -> T:
    """The recipe at `path` (None: all defaults) as a `kind`, with `sets` laid over it.

    Raises ToolError (exit 2) saying which key is wrong.
    """
    values = read_file(path) if path is not None else {}
    for item in sets:
        apply_set(values, item)
    where = str(path) if path is not None else "--set"
    return validate(kind, values, where)


def read_file(path: Path) -> dict[str, Any]:
    """A recipe file as plain values; the suffix says YAML or TOML."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ToolError(f"{path} does not exist", hint="give the path of a YAML or TOML file", code=Exit.USAGE) from None
    except (UnicodeDecodeError, OSError) as fault:
        why = "it is not text in UTF-8" if isinstance(fault, UnicodeDecodeError) else str(fault.strerror)
        raise ToolError(f"{path} is not a recipe: {why}", hint="give the path of a YAML or TOML file", code=Exit.USAGE) from None
    try:
        values = _parse_toml(text) if path.suffix == ".toml" else _parse_yaml(text)
    except ValueError as fault:
        raise ToolError(f"{path}: {fault}", code=Exit.USAGE) from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ToolError(f"{path}: a {type(values).__name__}, expected keys and values", code=Exit.USAGE)
    return values


def _parse_toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def _parse_yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML's own takes the last of two equal keys, without a word."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            lines: dict[Any, int] = {}
            for key, _ in node.value:
                name, line = self.construct_object(key, deep=True), key.start_mark.line + 1
                if name in lines and name != "<<":
                    raise ValueError(f"{name!r} stands in lines {lines[name]} and {line}: one of the two would have no effect")
                lines[name] = line
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            return found

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as fault:
        said = " ".join(str(fault).split()).replace(' in "<unicode string>",', "")
        raise ValueError(f"not YAML: {said}") from None


def apply_set(values: dict[str, Any], item: str) -> None:
    """Lays one `a.b=c` over nested values, in place."""
    path, sign, text = item.partition("=")
    keys = path.strip().split(".")
    if not sign or not all(keys):
        raise ToolError(f"--set {item!r}: expected KEY=VALUE", hint="for example --set train.steps=20", code=Exit.USAGE)
    here = values
    for key in keys[:-1]:
        if here.get(key) is None:  # absent, or an empty section
            here[key] = {}
        here = here[key]
        if not isinstance(here, dict):
            raise ToolError(f"--set {item!r}: {key} is a value, not a section", code=Exit.USAGE)
    try:
        here[keys[-1]] = _parse_yaml(text) if text.strip() else ""
    except ValueError as fault:
        raise ToolError(f"--set {item!r}: {fault}", code=Exit.USAGE) from None


def validate(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Plain values as a frozen dataclass, types checked by pydantic."""
    from pydantic import TypeAdapter, ValidationError

    _refuse_unknown(kind, values, where, "")
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as fault:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']} (got {e['input']!r:.60})" for e in fault.errors()]
        raise ToolError(f"{where}: " + "; ".join(lines), code=Exit.USAGE) from None


def _types(hint: Any) -> Iterator[Any]:
    """A type, and those that it is made of: of `Path | tuple[Source, ...]` also Source."""
    yield hint
    for part in get_args(hint):
        yield from _types(part)


def _refuse_unknown(kind: Any, values: Mapping[str, Any], where: str, prefix: str) -> None:
    hints = get_type_hints(kind)
    known = [f.name for f in fields(kind)]
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(known)}"
            raise ToolError(f"{where}: unknown key {prefix}{key}", hint=hint, code=Exit.USAGE)
        inner = next(filter(is_dataclass, _types(hints[key])), None)
        for item in value if isinstance(value, list) else [value]:
            if inner is not None and isinstance(item, Mapping):
                _refuse_unknown(inner, item, where, f"{prefix}{key}.")
