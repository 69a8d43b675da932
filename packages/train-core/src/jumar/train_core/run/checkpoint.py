"""Checkpoints of a run: torch_dist directories that appear whole or not at all, and finding the newest that is whole.

    RUN/latest_checkpointed_iteration.txt   the newest
    RUN/iter_0000100/                       megatron-core's torch_dist files, and complete.json: what must be there
    RUN/hf/                                 config, tokenizer, template: all that conversion and inference need besides
    RUN/manifest.json

A directory is written as iter_0000100.partial and renamed when every file is on the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

from jumar.device import Device
from jumar.schema.errors import Exit, ToolError
from jumar.schema.megatron_args import to_args
from jumar.train_core.job import Job
from jumar.train_core.run.beside import write_beside
from jumar.train_core.run.optimizer import Trainee, parts, prime
from jumar.train_core.run.weights import placement

ITERATION = re.compile(r"iter_(\d{7,})")
COMPLETE = "complete.json"
TRACKER = "latest_checkpointed_iteration.txt"
OPTIMIZER_METADATA = {"distrib_optim_sharding_type": "fully_reshardable", "distrib_optim_fully_reshardable_mem_efficient": False}
FULL_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come: optimizer steps, samples and tokens of the loss, and steps in a row without a finite loss."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    skipped: int = 0


class Checkpoints:
    """The checkpoints of one run directory. Every method is called on every rank."""

    def __init__(self, job: Job, trainee: Trainee, device: Device, say: Callable[[str], None]) -> None:
        assert job.recipe.save.path is not None
        self.job, self.trainee, self.device, self.say = job, trainee, device, say
        self.root = job.recipe.save.path
        self.queue = AsyncCallsQueue()

    def save(self, progress: Progress, *, wait: bool = False) -> None:
        """Writes a checkpoint, in the background if the recipe says so and not `wait`. One that is under way is waited for."""
        self.finish()
        final = self.root / f"iter_{progress.step:07d}"
        partial = final.with_name(final.name + ".partial")
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            write_beside(self.job, self.root)
        dist.barrier()
        background = self.job.recipe.save.background and not wait
        request = dist_checkpointing.save(self._state(progress, loading=False), str(partial), async_sharded_save=background)
        if request is None:
            self._publish(partial, final, progress)
            return
        request.add_finalize_fn(lambda: self._publish(partial, final, progress))
        self.queue.schedule_async_request(request)

    def poll(self) -> None:
        """Publishes a checkpoint that the background has finished."""
        self.queue.maybe_finalize_async_calls(blocking=False)

    def finish(self) -> None:
        """Waits for a checkpoint that is under way."""
        self.queue.maybe_finalize_async_calls(blocking=True)

    def _publish(self, partial: Path, final: Path, progress: Progress) -> None:
        dist.barrier()
        if dist.get_rank() == 0:
            files = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
            facts: dict[str, Any] = {
                "step": progress.step,
                "samples": progress.samples,
                "tokens": progress.tokens,
                "skipped": progress.skipped,
            }
            facts |= {"ranks": _ranks(self.job), "optimizer": self.job.recipe.save.optimizer, "files": files}
            (partial / COMPLETE).write_text(json.dumps(facts, indent=2) + "\n")
            for path in partial.iterdir():
                _sync(path)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            _sync(self.root)
            _replace(self.root / TRACKER, str(progress.step))
            self._forget_old()
        dist.barrier()

    def _forget_old(self) -> None:
        if (keep := self.job.recipe.save.keep) is not None:
            for path in iterations(self.root)[keep:]:
                trash = path.with_name(path.name + ".removing")  # never half of one under a name that counts
                path.rename(trash)
                shutil.rmtree(trash, ignore_errors=True)

    def restore(self) -> Progress | None:
        """Goes back to the newest checkpoint that is whole; None where there is none. A damaged one is passed over, aloud."""
        found = [str(path) for path in iterations(self.root)] if dist.get_rank() == 0 else []
        for path in map(Path, _from_rank_0(found)):
            fault = _from_rank_0(damage(path) if dist.get_rank() == 0 else None)
            if fault is None:
                try:
                    return self._load(path)
                except ToolError:
                    raise
                except Exception as wrong:  # noqa: BLE001  # whatever torch makes of a damaged file; it is said
                    fault = f"{type(wrong).__name__}: {str(wrong).splitlines()[0] if str(wrong) else ''}"
            self.say(f"{path} is damaged ({fault}); going back to the one before")
        if found:
            raise ToolError(
                f"no checkpoint under {self.root} can be read",
                hint="move them away to start anew, or give another save.path",
            )
        return None

    def _load(self, path: Path) -> Progress:
        facts = json.loads((path / COMPLETE).read_text())
        if not facts["optimizer"]:
            raise ToolError(
                f"{path} has no optimizer state: a run cannot go on from it",
                hint=f"to start from its weights, set load.path={path.parent} and another save.path",
                code=Exit.INPUT,
            )
        same_ranks = facts["ranks"] == _ranks(self.job)
        for part in parts(self.trainee.optimizer):
            prime(part.optimizer)
        state = self._state(Progress(), loading=True, rng=same_ranks)
        loaded = dist_checkpointing.load(state, str(path))
        for key, chunk in zip(_keys(self.trainee), self.trainee.chunks, strict=True):
            absent = chunk.load_state_dict(loaded[key], strict=False).missing_keys
            if absent := [name for name in absent if not name.endswith("_extra_state")]:
                raise AssertionError(f"no weights for {absent[:4]}")
        self.trainee.optimizer.load_state_dict(loaded["optimizer"])
        if same_ranks:
            self._set_rng(loaded["rng"][0])
        return Progress(facts["step"], facts["samples"], facts["tokens"], facts["skipped"])

    def _state(self, progress: Progress, *, loading: bool, rng: bool = True) -> dict[str, Any]:
        metadata = {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
        model = {
            key: chunk.sharded_state_dict(metadata=metadata)
            for key, chunk in zip(_keys(self.trainee), self.trainee.chunks, strict=True)
        }
        state: dict[str, Any] = dict(model)
        if loading or self.job.recipe.save.optimizer:
            state["optimizer"] = self.trainee.optimizer.sharded_state_dict(
                model, is_loading=loading, metadata=metadata | OPTIMIZER_METADATA
            )
        if rng:
            where = ((dist.get_world_size(),), (dist.get_rank(),))
            state["rng"] = ShardedObject("rng_state", [self._rng()], *where, replica_id=0)
        if not loading:
            dtype = FULL_NAMES[self.job.recipe.train.precision]
            args = to_args(placement(self.job), dtype=dtype, iteration=progress.step)
            args["consumed_train_samples"] = progress.samples
            state |= {"args": argparse.Namespace(**args), "checkpoint_version": 3.0, "iteration": progress.step}
        return state

    def _rng(self) -> dict[str, Any]:
        tracked = {name: state.clone() for name, state in get_cuda_rng_tracker().get_states().items()}
        return {"cpu": torch.get_rng_state(), "device": self.device.rng_state(), "tracked": tracked}

    def _set_rng(self, saved: dict[str, Any]) -> None:
        torch.set_rng_state(saved["cpu"])
        self.device.set_rng_state(saved["device"])
        get_cuda_rng_tracker().set_states(saved["tracked"])


def iterations(root: Path) -> list[Path]:
    """Published checkpoints under a run directory, the newest first."""
    if not root.is_dir():
        return []
    found = {int(name[1]): path for path in root.iterdir() if (name := ITERATION.fullmatch(path.name)) and path.is_dir()}
    return [found[step] for step in sorted(found, reverse=True)]


def damage(path: Path) -> str | None:
    """What is missing of a checkpoint, by the sizes that it was published with; None if nothing is."""
    try:
        facts = json.loads((path / COMPLETE).read_text())
        for name, size in facts["files"].items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes of {size}"
    except (OSError, ValueError, KeyError, TypeError) as fault:
        return f"{COMPLETE} cannot be read: {fault}"
    return None


def _keys(trainee: Trainee) -> list[str]:
    return ["model"] if len(trainee.chunks) == 1 else [f"model{i}" for i in range(len(trainee.chunks))]


def _ranks(job: Job) -> dict[str, int]:
    """What decides which rank holds what: random states are those of a rank, and go back to the same ranks only."""
    layout = job.layout
    sizes = {name: getattr(layout, name) for name in ("tp", "pp", "vpp", "cp", "ep", "dp")}
    return {**sizes, "etp": layout.expert_tp}


def _from_rank_0(value: Any) -> Any:
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(path: Path, text: str) -> None:
    """A small file's new content, whole or not at all."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    _sync(beside)
    beside.rename(path)
