"""Jobs of tiny models, for tests of what is known before anything is launched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jumar.schema.indexed import IndexedWriter
from jumar.schema.recipe import apply_set, validate
from jumar.schema.registry import families, family_of
from jumar.train_core.features import Problem
from jumar.train_core.job import Job, resolve
from jumar.train_core.recipe import Recipe

FAMILIES = tuple(families())
STATES = tuple(name for name, family in families().items() if family.spec(family.tiny).ssm is not None)
DENSE = tuple(name for name in FAMILIES if families()[name].spec(families()[name].tiny).moe is None)
EXPERTS = tuple(name for name in FAMILIES if name not in DENSE)


def model_dir(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """A directory with the tiny config.json of a family."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**family_of(family).tiny, **changes}), encoding="utf-8")
    return folder


def token_file(prefix: Path, documents: int = 40, length: int = 32) -> Path:
    """A pretraining dataset of `documents` x `length` tokens."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with IndexedWriter(prefix.with_name(prefix.name + "_text_document"), np.uint16) as writer:
        for number in range(documents):
            writer.add(np.arange(number, number + length) % 131)
    return prefix


def make_recipe(folder: Path, family: str = "llama", **sets: Any) -> Recipe:
    """A recipe that fits one rank; `sets`: fields by their names with __ for the dot."""
    values: dict[str, Any] = {
        "model": {"path": str(model_dir(folder / "hf", family))},
        "data": {"train": str(token_file(folder / "data/a")), "seq_len": 32},
        "train": {"steps": 10, "global_batch_size": 8, "precision": "fp32"},
        "save": {"path": str(folder / "run")},
    }
    for name, value in sets.items():
        apply_set(values, f"{name.replace('__', '.')}={json.dumps(value, default=str)}")
    return validate(Recipe, values, "test")


def make_job(folder: Path, family: str = "llama", *, world: int = 1, **sets: Any) -> Job:
    return resolve(make_recipe(folder, family, **sets), world=world, device="cpu")


def texts(problems: list[Problem] | Any, *, warnings: bool = False) -> str:
    """The problems' messages and hints, those that are no warnings, on lines."""
    return "\n".join(f"{p.message}\n  {p.hint}" for p in problems if p.warning == warnings)


def write_recipe(path: Path, values: Mapping[str, Any]) -> Path:
    import yaml

    path.write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
    return path
