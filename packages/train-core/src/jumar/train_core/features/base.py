"""What a feature is: the recipe fields that it owns, what it needs and refuses, and where it hooks into megatron-core."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from jumar.schema.errors import Exit
from jumar.train_core.job import Job
from jumar.train_core.recipe import Recipe

Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that does not fit, with the numbers, and what to change. A warning lets the run start.

    local: of this machine, which may not be the run's: a dry run warns of it.
    """

    message: str
    hint: str
    warning: bool = False
    code: Exit = Exit.INPUT
    local: bool = False


def never(job: Job) -> Iterator[Problem]:
    """No check of its own."""
    return iter(())


def nothing(job: Job) -> Settings:
    """No fields of that configuration."""
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One feature.

    fields:    the recipe fields that it owns, dotted; each belongs to one feature
    active:    whether a job uses it
    needs:     features that must be active with it
    conflicts: features that must not
    check:     what else does not fit; asked of every job, so that fields without effect are found as well
    settings, ddp, optimizer: fields of megatron-core's TransformerConfig, DistributedDataParallelConfig and OptimizerConfig
        that it sets, where it is active
    """

    name: str
    fields: tuple[str, ...]
    active: Callable[[Job], bool]
    needs: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    check: Callable[[Job], Iterable[Problem]] = never
    settings: Callable[[Job], Settings] = nothing
    ddp: Callable[[Job], Settings] = nothing
    optimizer: Callable[[Job], Settings] = nothing


def value(recipe: Recipe, path: str) -> Any:
    """A recipe's value by its dotted name; None inside a section that is not there."""
    here: Any = recipe
    for name in path.split("."):
        here = None if here is None else getattr(here, name)
    return here


def default(path: str) -> Any:
    """The value of a field where the recipe says nothing."""
    return value(Recipe(), path)


def is_set(job: Job, path: str) -> bool:
    """Whether a field differs from its default."""
    return bool(value(job.recipe, path) != default(path))


def without_effect(job: Job, paths: Iterable[str], why: str, hint: str | None = None) -> Iterator[Problem]:
    """A problem for each of these fields that is set, though nothing looks at it."""
    for path in paths:
        if is_set(job, path):
            yield Problem(f"{path} = {value(job.recipe, path)} has no effect: {why}", hint or f"leave {path} out")


def leaves(section: Any, prefix: str) -> Iterator[str]:
    """The dotted names of a section's fields, those of sections inside it by themselves."""
    for f in fields(section):
        inner = getattr(section, f.name)
        if is_dataclass(inner):
            yield from leaves(inner, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name
