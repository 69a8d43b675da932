"""Datasets and jobs for tests of data: documents whose tokens say where they stand, so that a sample tells what it is of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jumar.schema.indexed import IndexedWriter
from jumar.schema.registry import family_of
from jumar.train_core.job import Job, resolve
from jumar.train_core.recipe import Data, Model, Recipe, Train

VOCAB = 50_000


def make_data(prefix: Path, documents: int = 60, *, first: int = 0, seed: int = 0, longest: int = 40) -> Path:
    """Every token of document d is first + d."""
    lengths = np.random.default_rng(seed).integers(1, longest, documents)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with IndexedWriter(prefix, np.uint16) as writer:
        for number, length in enumerate(lengths):
            writer.add(np.full(length, first + number))
    return prefix


def model_dir(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {**family_of("llama").tiny, "vocab_size": VOCAB, **changes}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def make_job(folder: Path, data: Data, *, world: int = 1, **train: Any) -> Job:
    """A job of a small model; `folder` is for its config.json."""
    settings = {"steps": 10, "global_batch_size": 8, **train}
    recipe = Recipe(model=Model(path=model_dir(folder / "model")), data=data, train=Train(**settings))
    return resolve(recipe, world=world, device="cpu")
