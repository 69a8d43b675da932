"""Weights into model chunks: from a checkpoint of any format and layout, or random. Each rank reads only its slices."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.common.language_module.language_module import LanguageModule
from torch import Tensor

from jumar.schema.errors import ToolError
from jumar.schema.parallel import Shard
from jumar.schema.placement import Placed, Placement
from jumar.schema.weights import Geometry
from jumar.train_core.job import Job
from jumar.train_core.run.fresh import Fresh, Kind
from jumar.train_core.run.loaded import open_weights

DECODER = re.compile(r"decoder\.layers\.(\d+)\.")


def placement(job: Job) -> Placement:
    """Which tensors each rank's model holds, by megatron-core's names, as boxes of Hugging Face tensors."""
    return Placement(
        family=job.family,
        spec=job.spec,
        layout=job.layout,
        vocab_divisible_by=job.recipe.model.vocab_divisible_by,
    )


def this_rank() -> Shard:
    """This process's place among those that hold different weights."""
    return Shard(
        "",
        tp=parallel_state.get_tensor_model_parallel_rank(),
        pp=parallel_state.get_pipeline_model_parallel_rank(),
        ep=parallel_state.get_expert_model_parallel_rank(),
        etp=parallel_state.get_expert_tensor_parallel_rank(),
    )


def load_weights(job: Job, chunks: list[LanguageModule], path: Path, iteration: int | None) -> None:
    """Fills the chunks from a checkpoint. Raises ToolError (3) where it is not of this model, (4) without the extra [convert]."""
    checkpoint = open_weights(path, iteration)
    check_prediction(job, checkpoint.spec.mtp_layers, path)
    wanted = job.family.hf_tensors(job.spec)
    for name, shape in checkpoint.tensors.items():
        if name in wanted and tuple(shape) != tuple(wanted[name]):
            raise ToolError(
                f"{path}: {name} is {list(shape)}, the model of the recipe has {list(wanted[name])}",
                hint=f"does model.path ({job.hf}) belong to these weights? look with jumar-convert inspect {path}",
            )
    fill(job, chunks, checkpoint.read_placed)


def check_prediction(job: Job, held: int, path: Path) -> None:
    """Whether the layers of multi-token prediction are there: transformers saves none, and leaves config.json as it was."""
    if job.spec.mtp_layers <= held:
        return
    said, other = (job.family.write(spec) for spec in (job.spec, replace(job.spec, mtp_layers=held)))
    key = next(key for key in said if said[key] != other.get(key))
    raise ToolError(
        f"{path} holds {held} layers of multi-token prediction, config.json says {job.spec.mtp_layers}",
        hint=f"to train without them: --set model.config.{key}={held}",
    )


def initialise(job: Job, chunks: list[LanguageModule]) -> None:
    """Random weights: the same for a seed under every layout, since each Hugging Face tensor has a generator of its own."""
    fresh = Fresh(job.spec, job.recipe.model.init_std or job.config.get("initializer_range") or 0.02)
    shapes = job.family.hf_tensors(job.spec)

    @lru_cache(maxsize=4)
    def tensor(name: str, kind: Kind) -> Tensor:
        digest = hashlib.sha256(f"{job.recipe.train.seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
        return fresh.draw(kind, shapes[name], generator)

    def read(placed: Placed) -> Tensor:
        kind = fresh.kind(placed.name)
        return assemble(placed.geometry, [tensor(source, kind) for source in placed.sources])

    fill(job, chunks, read)


def assemble(geometry: Geometry, sources: list[Tensor]) -> Tensor:
    """A Megatron tensor from whole Hugging Face tensors, its padding zero."""
    made = torch.zeros(geometry.shape)
    for box in geometry.boxes:
        part = sources[box.part][tuple(slice(a, a + n) for a, n in zip(box.start, box.size, strict=True))]
        order = sorted(range(len(box.axes)), key=lambda axis: box.axes[axis])
        moved = part.permute(order).reshape(box.extent)
        made[tuple(slice(a, a + n) for a, n in zip(box.at, box.extent, strict=True))] = moved
    return made.reshape(geometry.stored)


@torch.no_grad()
def fill(job: Job, chunks: list[LanguageModule], read: Callable[[Placed], Tensor]) -> None:
    """Copies every tensor of this rank to its place, and proves that none was left out on either side."""
    here = place_by_name(chunks)
    filled: set[tuple[str, str]] = set()
    for placed in local(job):
        target = here.get((placed.key, placed.name))
        if target is None:
            raise AssertionError(f"the model has no {placed.key} {placed.name}")
        value = read(placed)
        if value.shape != target.shape:
            raise AssertionError(f"{placed.name}: {tuple(value.shape)} for {tuple(target.shape)}")
        target.copy_(value)
        filled.add((placed.key, placed.name))
    if left := sorted(set(here) - filled):
        raise AssertionError(f"no weights for {left[:4]}")


def local(job: Job) -> Iterator[Placed]:
    """The tensors of this rank, under the local numbers that its layers have here: no-op slots are no layers and have none."""
    numbers: dict[str, dict[int, int]] = {}
    stage = this_rank().pp
    for chunk, key in zip((c for c in job.chunks if c.pp == stage), placement(job).keys, strict=True):
        there = [slot for slot, layer in enumerate(chunk.slots) if layer is not None]
        numbers[key] = {slot: number for number, slot in enumerate(there)}
    for placed in placement(job).tensors(this_rank()):
        if found := DECODER.match(placed.name):
            number = numbers[placed.key][int(found[1])]
            placed = replace(placed, name=f"decoder.layers.{number}.{placed.name[found.end() :]}")
        yield placed


def place_by_name(chunks: list[LanguageModule]) -> dict[tuple[str, str], Any]:
    """(state-dict key, name) -> parameter or persistent buffer."""
    keys = ["model"] if len(chunks) == 1 else [f"model{i}" for i in range(len(chunks))]
    found: dict[tuple[str, str], Any] = {}
    for key, chunk in zip(keys, chunks, strict=True):
        state = {name: x for name, x in chunk.state_dict(keep_vars=True).items() if isinstance(x, Tensor)}
        found |= {(key, name): x for name, x in state.items() if not name.endswith("_extra_state")}
    return found
