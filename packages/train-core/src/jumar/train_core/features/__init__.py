"""The features of a run as objects. Adding one is adding an object to a tuple here, or to the entry point `jumar.features`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal

from jumar.schema.errors import Exit, ToolError
from jumar.train_core.features.base import Feature, Problem
from jumar.train_core.features.experts import EXPERTS
from jumar.train_core.features.layout import LAYOUT
from jumar.train_core.features.optimizer import OPTIMIZER
from jumar.train_core.features.recompute import RECOMPUTE
from jumar.train_core.job import Job

__all__ = ["FEATURES", "Feature", "Problem", "active", "all_features", "check", "ddp", "optimizer", "settings"]

FEATURES: tuple[Feature, ...] = (*LAYOUT, *EXPERTS, *OPTIMIZER, *RECOMPUTE)


@cache
def all_features() -> tuple[Feature, ...]:
    """Ours, and those that other packages bring through the entry point `jumar.features`."""
    found = list(FEATURES)
    for entry in entry_points(group="jumar.features"):
        feature = entry.load()
        if not isinstance(feature, Feature) or feature.name in {other.name for other in found}:
            raise ToolError(
                f"entry point {entry.name!r} ({entry.value}) is not a Feature with a name of its own",
                hint="mend or uninstall the package that provides it",
                code=Exit.ENVIRONMENT,
            )
        found.append(feature)
    return tuple(found)


def active(job: Job) -> tuple[Feature, ...]:
    """The features that a job uses."""
    return tuple(feature for feature in all_features() if feature.active(job))


def check(job: Job) -> Iterator[Problem]:
    """What does not fit: what a feature lacks or cannot go with, then what it says itself."""
    names = {feature.name for feature in active(job)}
    for feature in all_features():
        if feature.name in names:
            for other in feature.needs:
                if other not in names:
                    yield Problem(f"{feature.name} ({_fields(feature)}) needs {other}", f"set {_fields_of(other)}")
            for other in feature.conflicts:
                if other in names:
                    hint = f"leave {_fields(feature)} or {_fields_of(other)} out"
                    yield Problem(f"{feature.name} ({_fields(feature)}) does not go with {other}", hint)
        yield from feature.check(job)


def settings(job: Job) -> dict[str, Any]:
    """The fields of megatron-core's TransformerConfig that the features of a job set."""
    return _merged(job, "settings")


def ddp(job: Job) -> dict[str, Any]:
    """Those of its DistributedDataParallelConfig."""
    return _merged(job, "ddp")


def optimizer(job: Job) -> dict[str, Any]:
    """Those of its OptimizerConfig."""
    return _merged(job, "optimizer")


def _merged(job: Job, hook: Literal["settings", "ddp", "optimizer"]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    setter: dict[str, str] = {}
    for feature in active(job):
        for name, value in getattr(feature, hook)(job).items():
            if name in merged:
                raise RuntimeError(f"two features set {name}: {setter[name]} and {feature.name}")
            merged[name], setter[name] = value, feature.name
    return merged


def _fields(feature: Feature) -> str:
    return ", ".join(feature.fields)


def _fields_of(name: str) -> str:
    return _fields(next(feature for feature in all_features() if feature.name == name))


def owners(features: Iterable[Feature]) -> dict[str, list[str]]:
    """Recipe field -> the names of the features that own it."""
    found: dict[str, list[str]] = {}
    for feature in features:
        for name in feature.fields:
            found.setdefault(name, []).append(feature.name)
    return found
