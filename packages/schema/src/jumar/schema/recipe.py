"""Recipes: a YAML or TOML file, then `--set a.b=c`, validated once into frozen dataclasses.

Unknown keys are refused with the nearest known one.
Values of `--set` are read as YAML: `--set train.steps=20`, `--set load.path=null`. A null where a field has none is its default.
"""

from __future__ import annotations

import difflib
import json
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jumar.schema.errors import Exit, ToolError

T = TypeVar("T")
NAMES: dict[Any, str] = {int: "int", float: "float", bool: "bool", str: "str", Path: "path", type(None): "null", Any: "any"}
EXAMPLES: dict[Any, str] = {int: "1", float: "0.5", bool: "true", str: "NAME", Path: "PATH", type(None): "null", Any: "1"}


def load_recipe(kind: type[T], path: Path | None, sets: Iterable[str] = (), *, instead: Iterable[tuple[str, str]] = ()) -> T:
    """The recipe at `path` (None: all defaults) as a `kind`, with `sets` laid over it.

    instead: pairs of fields that say the same in two ways: of `sets`, the one takes the other out of the file.
    Raises ToolError (exit 2) saying which key is wrong.
    """
    values = read_file(path) if path is not None else {}
    laid = list(sets)
    for item in laid:
        apply_set(values, item)
    named = {item.partition("=")[0].strip() for item in laid}
    for pair in instead:
        for one, other in (pair, pair[::-1]):
            if one in named and other not in named and _value_at(values, one.split(".")) is not None:
                _take_out(values, other)
    for key in named:
        if _value_at(values, key.split(".")) is None and not _may_be_null(kind, key):
            _take_out(values, key)
    where = str(path) if path is not None else "--set"
    return validate(kind, values, where)


def _value_at(values: Any, keys: Sequence[str | int]) -> Any:
    """What stands there in nested values; None where nothing does."""
    for key in keys:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def _take_out(values: dict[str, Any], key: str) -> None:
    *sections, name = key.split(".")
    section = _value_at(values, sections)
    if isinstance(section, dict):
        section.pop(name, None)


def _may_be_null(kind: Any, key: str) -> bool:
    """Also where there is no such field: that is said elsewhere."""
    for name in key.split("."):
        inner = next(filter(is_dataclass, _types(kind)), None)
        hints = get_type_hints(inner) if inner is not None else {}
        if name not in hints:
            return True
        kind = hints[name]
    return kind is Any or type(None) in get_args(kind)


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
        hint = "mend the file there; a text that holds : or {{ stands in quotes"
        raise ToolError(f"{path}: {fault}", hint=hint, code=Exit.USAGE) from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        what = f"{path}: a {type(values).__name__}, expected keys and values"
        raise ToolError(what, hint="write a key and its value in each line, KEY: VALUE", code=Exit.USAGE)
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
            raise ToolError(f"--set {item!r}: {key} is a value, not a section", hint=f"--set {key}=...", code=Exit.USAGE)
    try:
        here[keys[-1]] = _parse_yaml(text) if text.strip() else ""
    except ValueError as fault:
        raise ToolError(f"--set {item!r}: {fault}", hint="quote a text that is no YAML", code=Exit.USAGE) from None


def validate(kind: type[T], values: Mapping[str, Any], where: str, *, sets: bool = True) -> T:
    """Plain values as a frozen dataclass, types checked by pydantic. sets: whether --set is there to mend them."""
    from pydantic import TypeAdapter, ValidationError

    _refuse_unknown(kind, values, where, "")
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as fault:
        raise _wrong_types(kind, values, where, [each["loc"] for each in fault.errors()], sets) from None


def _wrong_types(
    kind: Any, values: Mapping[str, Any], where: str, places: Iterable[Sequence[str | int]], sets: bool
) -> ToolError:
    """What is wrong at these places, in our words: pydantic tells of each type that a field may have why it is not of it."""
    found: dict[tuple[str | int, ...], Any] = dict(_field_at(kind, place) for place in places)
    deepest = [path for path in found if not any(other != path and other[: len(path)] == path for other in found)]
    said, hints = [], []
    for path in deepest:
        name, value, wanted = ".".join(map(str, path)) or "recipe", _value_at(values, path), found[path]
        missing = bool(path) and path[-1] not in (_value_at(values, path[:-1]) or ())
        got = "is missing" if missing else f"is {json.dumps(value, ensure_ascii=False, default=str):.60}"
        said.append(f"{name} {got}, expected {type_text(wanted)}")
        example = example_of(wanted, a_list=isinstance(value, list))
        shell = f"'{example}'" if set(example) & set(" [{*") else example
        settable = sets and all(isinstance(key, str) for key in path)
        hints.append(f"--set {name}={shell}" if settable else ": ".join([*map(str, path[-1:]), example]))
    return ToolError(f"{where}: {'; '.join(said)}", hint=f"for example {(' ' if sets else ', ').join(hints)}", code=Exit.USAGE)


def _field_at(kind: Any, place: Sequence[str | int]) -> tuple[tuple[str | int, ...], Any]:
    """The field that a place of pydantic's is in or at, which also names types of a union and numbers of a list; and its type."""
    path: tuple[str | int, ...] = ()
    passed: tuple[int, ...] = ()
    for key in place:
        inner = next(filter(is_dataclass, _types(kind)), None)
        if isinstance(key, int):
            passed = (key,)
        elif inner is not None and key in (hints := get_type_hints(inner)):
            path, passed, kind = (*path, *passed, key), (), hints[key]
    return path, kind


def type_text(kind: Any) -> str:
    """`int`, `path or null`, `full | selective`, `list of float`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(option) for option in args)
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin is tuple:
        return f"list of {type_text(args[0])}"
    if origin is dict:
        return "keys and values"
    if is_dataclass(kind):
        return "{" + ", ".join(f.name for f in fields(kind)) + "}"
    return NAMES.get(kind, str(kind))


def example_of(kind: Any, *, a_list: bool = False) -> str:
    """A value of a type, as YAML on one line. a_list: where a list is possible among others."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        lists = [option for option in args if get_origin(option) is tuple]
        return example_of(lists[0] if a_list and lists else args[0])
    if origin is Literal:
        return str(args[0])
    if origin is tuple:
        return f"[{', '.join([example_of(args[0])] * (2 if args[0] in (int, float) else 1))}]"
    if origin is dict:
        return "{}"
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        needed = [f for f in fields(kind) if f.default is f.default_factory is MISSING] or fields(kind)[:1]
        return "{" + ", ".join(f"{f.name}: {example_of(hints[f.name])}" for f in needed) + "}"
    return EXAMPLES.get(kind, "VALUE")


def _types(hint: Any) -> Iterator[Any]:
    """A type, and those that it is made of: of `Path | tuple[Source, ...]` also Source."""
    yield hint
    for part in get_args(hint):
        yield from _types(part)


def _refuse_unknown(kind: Any, values: Mapping[str, Any], where: str, prefix: str) -> None:
    """Keys that there are not, and paths that are empty, at any depth."""
    hints = get_type_hints(kind)
    known = [f.name for f in fields(kind)]
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(known)}"
            raise ToolError(f"{where}: unknown key {prefix}{key}", hint=hint, code=Exit.USAGE)
        if value == "" and Path in _types(hints[key]):  # which would be the working directory
            hint = f"is a variable of your script not set? --set {prefix}{key}=PATH"
            raise ToolError(f"{where}: {prefix}{key} is empty, expected {type_text(hints[key])}", hint=hint, code=Exit.USAGE)
        inner = next(filter(is_dataclass, _types(hints[key])), None)
        for item in value if isinstance(value, list) else [value]:
            if inner is not None and isinstance(item, Mapping):
                _refuse_unknown(inner, item, where, f"{prefix}{key}.")
