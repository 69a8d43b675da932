"""Values and recipes as YAML, each field with the flags that said it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

SECTIONS = ("model", "load", "data", "parallel", "optim", "schedule", "train", "save", "log", "features")


def shown(value: object) -> str:
    """A value as a recipe has it, on one line."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        digits = f"{value:.15g}"
        mantissa, sign, exponent = digits.partition("e")
        return f"{mantissa}{'' if '.' in mantissa else '.0'}{sign}{exponent}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(shown(each) for each in value)}]"
    if isinstance(value, str):
        return _quoted(value)
    return str(value)


def _quoted(value: str) -> str:
    plain = (
        value
        and not set(value) & set("\n\t#,[]{}&*!|>'\"%@`\\")
        and ": " not in value
        and value == value.strip()
        and value[0] not in "-?:"
    )
    return (
        value if plain and yaml.safe_load(value) == value and not value.endswith(":") else json.dumps(value, ensure_ascii=False)
    )


def recipe_text(fields: Mapping[str, Any], sources: Mapping[str, Sequence[str]], head: Sequence[str]) -> str:
    """A recipe. fields: dotted name -> value; sources: dotted name -> what is written beside it; head: comments above all."""
    lines = [f"# {line}" for line in head]
    for section in SECTIONS:
        own = {path: value for path, value in fields.items() if path.startswith(section + ".")}
        if own:
            lines += [f"{section}:", *_section(own, sources, section + ".", "  ")]
    return "\n".join(lines) + "\n"


def _section(own: Mapping[str, Any], sources: Mapping[str, Sequence[str]], prefix: str, indent: str) -> list[str]:
    lines: list[str] = []
    inner: dict[str, dict[str, Any]] = {}
    for path, value in own.items():
        name = path.removeprefix(prefix)
        if "." in name:
            inner.setdefault(name.split(".")[0], {})[path] = value
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(_beside(f"{indent}{name}:", sources.get(path, ())))
            lines += [f"{indent}  - {shown(each)}" for each in value]
        else:
            lines.append(_beside(f"{indent}{name}: {shown(value)}", sources.get(path, ())))
    for name, more in inner.items():
        lines += [f"{indent}{name}:", *_section(more, sources, f"{prefix}{name}.", indent + "  ")]
    return lines


def _beside(line: str, sources: Sequence[str]) -> str:
    return f"{line:<40} # {', '.join(sources)}" if sources else line
