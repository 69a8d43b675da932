"""Families by model_type: one file each in `families/`, and those of third parties through the entry point `jumar.families`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from jumar.schema import families as _folder
from jumar.schema.errors import Exit, ToolError
from jumar.schema.family import Family


@cache
def families() -> dict[str, Family]:
    """Every family by its model_type. An entry point's object is a Family, or a module whose `FAMILY` is one."""
    found: dict[str, Family] = {}
    for module in sorted(pkgutil.iter_modules(_folder.__path__), key=lambda m: m.name):
        family = importlib.import_module(f"{_folder.__name__}.{module.name}").FAMILY
        found[family.model_type] = family
    for entry in entry_points(group="jumar.families"):
        try:
            loaded: Any = entry.load()
        except Exception as fault:
            raise ToolError(
                f"the family {entry.name!r} of {entry.value} cannot be imported: {fault}",
                hint="mend or uninstall the package that provides it",
                code=Exit.ENVIRONMENT,
            ) from fault
        family = getattr(loaded, "FAMILY", loaded)
        if not isinstance(family, Family):
            raise ToolError(
                f"entry point {entry.name!r} ({entry.value}) is not a Family",
                hint="mend or uninstall the package",
                code=Exit.ENVIRONMENT,
            )
        if family.model_type in found:
            raise ToolError(
                f"two packages provide the family {family.model_type!r}; one is {entry.value}",
                hint="uninstall one of them",
                code=Exit.ENVIRONMENT,
            )
        found[family.model_type] = family
    return found


def family_of(model_type: str, where: str | None = None) -> Family:
    """The family of a model_type. Raises ToolError naming `where` it is from, and those that are known."""
    try:
        return families()[model_type]
    except KeyError:
        known = ", ".join(families())
        raise ToolError(
            (f"{where}: " if where else "") + f"model_type {model_type!r} is not known",
            hint=f"known: {known}; another package can add a family (entry point jumar.families)",
        ) from None


def family_of_config(config: Mapping[str, Any], where: str) -> Family:
    """The family that a config.json names."""
    if not isinstance(config.get("model_type"), str):
        raise ToolError(f"{where}: no model_type", hint="is this a Hugging Face model directory?")
    return family_of(config["model_type"], where)
