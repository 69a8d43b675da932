"""Checkpoints of a run: torch_dist directories that appear whole or not at all, and finding the newest that is whole.

    RUN/latest_checkpointed_iteration.txt   the newest
    RUN/iter_0000100/                       megatron-core's torch_dist files, and complete.json: their sizes and checksums
    RUN/hf_iter_0000100/                    the same for Hugging Face, if the recipe asks for it (export.py)
    RUN/hf/                                 config, tokenizer, template: all that conversion and inference need besides
    RUN/manifest.json

A directory is written as iter_0000100.partial and renamed when every file is on the disk. Where nodes have disks of their own,
all of this is on each; its iterations hold the files of its ranks, and those that rank 0 writes for all.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from torch.distributed.checkpoint.filesystem import FileSystemReader

from jumar.device import Device
from jumar.schema.errors import Exit, ToolError
from jumar.schema.megatron_args import to_args
from jumar.train_core.job import Job
from jumar.train_core.run.beside import replace_file, sync, write_beside
from jumar.train_core.run.complete import COMPLETE, Whole, all_iterations, facts_text, iterations, whole
from jumar.train_core.run.export import Exports, hf_of, removed
from jumar.train_core.run.gathered import gathered
from jumar.train_core.run.optimizer import Trainee, parts
from jumar.train_core.run.optimizer_state import take, updates, wanted
from jumar.train_core.run.ranks import disk, on_rank_0
from jumar.train_core.run.stop import Stop
from jumar.train_core.run.weights import placement
from jumar.train_core.run.writing import Results, Sums, checksum

TRACKER = "latest_checkpointed_iteration.txt"
OPTIMIZER_METADATA = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
    "chained_optim_avoid_prefix": True,  # the names do not tell whether a rank has experts
}
WRITER = re.compile(r"inline_container|iostream|PytorchStreamWriter")
"""Words of torch where a file cannot be written."""
FULL_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come: steps, samples and tokens of the loss, and steps in a row without a finite loss.

    unevaluated: the evaluation of this step is still to be done, as a stop came first
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    skipped: int = 0
    unevaluated: bool = False


class Checkpoints:
    """The checkpoints of one run directory. Every method is called on every rank."""

    def __init__(
        self,
        job: Job,
        trainee: Trainee,
        device: Device,
        say: Callable[[str, str], None],
        inputs: Sequence[Mapping[str, Any]],
        exports: Exports,
    ) -> None:
        assert job.recipe.save.path is not None
        self.job, self.trainee, self.device, self.say, self.inputs = job, trainee, device, say, inputs
        self.root, self.nodes, self.exports = job.recipe.save.path, exports.nodes, exports
        self.queue = AsyncCallsQueue()
        self.partial: Path | None = None
        self.newest: Path | None = None

    def save(self, progress: Progress, *, wait: bool = False) -> None:
        """Writes a checkpoint, in the background if the recipe says so and not `wait`. One that is under way is waited for.

        Raises ToolError (4) on all ranks where it cannot be written; then nothing of it is left, and those before are whole.
        """
        self.finish()
        final = self.root / f"iter_{progress.step:07d}"
        partial = final.with_name(final.name + ".partial")
        self.nodes.each(lambda: self._begin(partial))
        results, written = Results(), [Sums() for _ in self.nodes.hosts]
        facts = self._facts(progress)  # now: training goes on while it is written
        with self._heard(partial):
            request = dist_checkpointing.save(self._state(progress), str(partial), async_sharded_save=True)
            request.finalize_fns.insert(0, lambda: self._written(partial, results, bool(request.async_fn), written))
            request.add_finalize_fn(lambda: self._publish(partial, final, facts, written))
            if self.job.recipe.save.background and not wait:
                self.partial = partial
                self.queue.schedule_async_request(request)
            else:
                request.execute_sync()

    def poll(self, *, wait: bool = False) -> None:
        """Publishes a checkpoint that the background has finished, and says what became of conversions."""
        self.exports.poll()
        if self.partial is not None:
            with self._heard(self.partial):
                if self.queue.maybe_finalize_async_calls(blocking=wait):
                    self.partial = None

    def finish(self) -> None:
        """Waits for a checkpoint that is under way."""
        self.poll(wait=True)

    @contextmanager
    def _heard(self, partial: Path) -> Iterator[None]:
        """A full disk, from wherever it is told: what rank 0 writes besides, megatron-core writes by itself."""
        try:
            yield
        except (OSError, RuntimeError) as fault:
            if isinstance(fault, OSError) or WRITER.search(str(fault)):
                raise self._cannot(partial, disk(fault).message if isinstance(fault, OSError) else str(fault)) from fault
            raise

    def _begin(self, partial: Path) -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_beside(self.job, self.root, self.inputs)

    def _written(self, partial: Path, results: Results, own: bool, written: list[Sums]) -> None:
        """What all ranks wrote into `partial`, by node; raises what one could not. own: whether this rank had to write."""
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, results.outcome() if own else (None, {}))
        for rank, (fault, sums) in enumerate(everyone):
            if fault is not None:
                raise self._cannot(partial, f"rank {rank}: {fault}")
            written[self.nodes.of[rank]] |= sums

    def _cannot(self, partial: Path, why: str) -> ToolError:
        if self.nodes.lead:
            shutil.rmtree(partial, ignore_errors=True)
        hint = f"make room on the disk of {self.root}, or set save.keep; then the same command goes on from the checkpoint before"
        return ToolError(f"{partial.with_suffix('')} cannot be written: {why}", hint=hint, code=Exit.ENVIRONMENT)

    def _publish(self, partial: Path, final: Path, facts: Mapping[str, Any], written: list[Sums]) -> None:
        """First it is whole on every node, then it has its name on every node, and only then the trackers say so."""
        dist.barrier()
        common = self._common(partial, written)
        self._on_every_node(partial, lambda: self._complete(partial, facts, written, common))
        self._on_every_node(partial, lambda: self._rename(partial, final), undo=final)
        self._on_every_node(partial, lambda: replace_file(self.root / TRACKER, str(facts["step"])))
        self.nodes.each(lambda: self._forget_old(final))
        self.newest = final
        self.say("saved", str(final))
        if self.exports.wanted(facts["step"]):
            everywhere = frozenset(range(self.nodes.count))
            of_ranks = {name: frozenset((node,)) for node, sums in enumerate(written) for name in sums}
            self.exports.add(Whole(final, {}, {**dict.fromkeys(common, everywhere), **of_ranks}))

    def _common(self, partial: Path, written: list[Sums]) -> dict[str, bytes]:
        """What rank 0 alone wrote, such as the metadata: every node gets it. Empty where there is one node."""
        if self.nodes.count == 1:
            return {}
        return on_rank_0(lambda: {path.name: path.read_bytes() for path in partial.iterdir() if path.name not in written[0]})

    def _complete(self, partial: Path, facts: Mapping[str, Any], written: list[Sums], common: Mapping[str, bytes]) -> None:
        """complete.json of this node, and everything in the directory is on the disk."""
        for name, content in common.items() if self.nodes.here else ():
            (partial / name).write_bytes(content)
        here = written[self.nodes.here]
        own = {path.name: checksum(path) for path in sorted(partial.iterdir()) if path.name not in here}
        others = {name: each for sums in written for name, each in sums.items() if name not in here}
        lists = {"files": here | own, **({"elsewhere": others} if others else {})}
        listed = {what: dict(sorted(files.items())) for what, files in lists.items()}
        (partial / COMPLETE).write_text(facts_text({**facts, **listed}))
        for name in (*own, COMPLETE):
            sync(partial / name)
        sync(partial)

    def _rename(self, partial: Path, final: Path) -> None:
        removed(hf_of(final))
        shutil.rmtree(final, ignore_errors=True)  # a damaged one, which was passed over
        partial.rename(final)
        sync(self.root)

    def _on_every_node(self, partial: Path, work: Callable[[], None], undo: Path | None = None) -> None:
        """A step of publishing. Where a node cannot do it, nothing is left of it on any, and ToolError (4) is raised."""

        def tried() -> None:
            try:
                work()
            except OSError as fault:
                raise self._cannot(partial, disk(fault).message) from None

        try:
            self.nodes.each(tried)
        except ToolError:
            for path in (partial, undo) if self.nodes.lead else ():
                shutil.rmtree(path, ignore_errors=True) if path is not None else None
            raise

    def _facts(self, progress: Progress) -> dict[str, Any]:
        recipe = self.job.recipe
        scaler = next((part.grad_scaler for part in parts(self.trainee.optimizer) if getattr(part, "grad_scaler", None)), None)
        return {
            **asdict(progress),
            "updates": updates(self.trainee),
            "loss_scale": {name: float(value) for name, value in scaler.state_dict().items()} if scaler else {},
            "ranks": _ranks(self.job),
            "precision": recipe.train.precision,
            "optimizer": recipe.save.optimizer,
        }

    def _forget_old(self, newest: Path) -> None:
        """Those before `newest` that are too many, but for one that is being converted, whose turn is the next time. Later ones
        are damaged, and no reason to forget one that is whole."""
        if (keep := self.job.recipe.save.keep) is not None:
            found = iterations(self.root)
            for path in found[found.index(newest) :][keep:]:
                if not self.exports.holds(path):
                    self.exports.forget(path)
                    removed(path)

    def finish_exports(self, stop: Stop) -> None:
        """Waits for the Hugging Face directories, and forgets what was kept for their sake. Collective."""
        self.exports.finish(stop)
        if (newest := self.newest) is not None:
            self.nodes.each(lambda: self._forget_old(newest))

    def restore(self) -> Progress | None:
        """Goes back to the newest checkpoint that is whole over all nodes; None where there is none. Others are passed over,
        aloud."""
        found = all_iterations(self.nodes, self.root)
        for path in found:
            seen = whole(self.nodes, path)
            if isinstance(seen, Whole):
                return self._load(seen)
            self.say("warning", f"{path} is damaged ({seen}); going back to the one before")
        if found:
            raise ToolError(
                f"no checkpoint under {self.root} can be read",
                hint="move them away to start anew, or give another save.path",
            )
        return None

    def _load(self, found: Whole) -> Progress:
        path, facts = found.path, found.facts
        new_run = f"to start from its weights, set load.path={path.parent} and another save.path"
        if not facts["optimizer"]:
            raise ToolError(f"{path} has no optimizer state: a run cannot go on from it", hint=new_run, code=Exit.INPUT)
        if facts["precision"] != (precision := self.job.recipe.train.precision):
            raise ToolError(
                f"{path} was trained in {facts['precision']}, train.precision is {precision}",
                hint=f"set train.precision={facts['precision']}; {new_run}",
            )
        same_ranks = facts["ranks"] == _ranks(self.job)
        model = self._model()
        state: dict[str, Any] = dict(model)
        if same_ranks:
            state["rng"] = self._rng_state()
        with gathered(self.nodes, path, found.holders) as (here, strategy):
            names = on_rank_0(lambda: set(FileSystemReader(str(here)).read_metadata().state_dict_metadata))
            state["optimizer"] = wanted(self.trainee, model, names)
            # Not every rank asks for every parameter that it holds: the main replica of one may be left out.
            loaded = dist_checkpointing.load(state, str(here), strategy, validate_access_integrity=False)
        for key, chunk in zip(_keys(self.trainee), self.trainee.chunks, strict=True):
            absent = chunk.load_state_dict(loaded[key], strict=False).missing_keys
            if absent := [name for name in absent if not name.endswith("_extra_state")]:
                raise AssertionError(f"no weights for {absent[:4]}")
        take(self.trainee, loaded["optimizer"], facts["updates"])
        for part in parts(self.trainee.optimizer) if facts["loss_scale"] else ():
            saved = facts["loss_scale"]
            part.grad_scaler.load_state_dict(
                {
                    name: int(value) if name != "scale" else torch.tensor([value], device=part.grad_scaler.scale.device)
                    for name, value in saved.items()
                }
            )
        if same_ranks:
            self._set_rng(loaded["rng"][0])
        return Progress(**{field.name: facts[field.name] for field in fields(Progress)})

    def _model(self) -> dict[str, Any]:
        metadata = {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
        chunks = zip(_keys(self.trainee), self.trainee.chunks, strict=True)
        return {key: chunk.sharded_state_dict(metadata=metadata) for key, chunk in chunks}

    def _state(self, progress: Progress) -> dict[str, Any]:
        """Everything of a checkpoint, as Megatron-LM names it."""
        model = self._model()
        state: dict[str, Any] = {**model, "rng": self._rng_state()}
        if self.job.recipe.save.optimizer:
            metadata = {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True), **OPTIMIZER_METADATA}
            state["optimizer"] = self.trainee.optimizer.sharded_state_dict(model, is_loading=False, metadata=metadata)
        args = to_args(placement(self.job), dtype=FULL_NAMES[self.job.recipe.train.precision], iteration=progress.step)
        args["consumed_train_samples"] = progress.samples
        return state | {"args": argparse.Namespace(**args), "checkpoint_version": 3.0, "iteration": progress.step}

    def _rng_state(self) -> ShardedObject:
        return ShardedObject("rng_state", [self._rng()], (dist.get_world_size(),), (dist.get_rank(),), replica_id=0)

    def _rng(self) -> dict[str, Any]:
        tracked = {name: state.clone() for name, state in get_cuda_rng_tracker().get_states().items()}
        return {"cpu": torch.get_rng_state(), "device": self.device.rng_state(), "tracked": tracked}

    def _set_rng(self, saved: dict[str, Any]) -> None:
        torch.set_rng_state(saved["cpu"])
        self.device.set_rng_state(saved["device"])
        get_cuda_rng_tracker().set_states(saved["tracked"])


def _keys(trainee: Trainee) -> list[str]:
    return ["model"] if len(trainee.chunks) == 1 else [f"model{i}" for i in range(len(trainee.chunks))]


def _ranks(job: Job) -> dict[str, int]:
    """What decides which rank holds what: random states are those of a rank, and go back to the same ranks only."""
    layout = job.layout
    sizes = {name: getattr(layout, name) for name in ("tp", "pp", "vpp", "cp", "ep", "dp")}
    return {**sizes, "etp": layout.expert_tp}
