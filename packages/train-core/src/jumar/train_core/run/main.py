"""One rank of a run: device, engine, weights, data, loop. Nothing of megatron-core is imported before it is mended."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from jumar.device import Device, open_device
from jumar.schema.errors import Exit
from jumar.train_core.job import Job
from jumar.train_core.run.stop import Stop

if TYPE_CHECKING:
    import torch

    from jumar.train_core.run.checkpoint import Progress
    from jumar.train_core.run.export import Exports
    from jumar.train_core.run.metrics import Metrics
    from jumar.train_core.run.nodes import Nodes


def train(job: Job, device: str, parent: int | None = None) -> int:
    """Runs this rank to the end and returns its exit code: 0 done, 75 stopped with a checkpoint saved, 130 stopped without.

    parent: the torchrun that it is to end with.
    """
    with Stop(parent) as stop, engine(open_device(device)) as (hardware, where):
        from torch.distributed.checkpoint.api import CheckpointException

        from jumar.train_core.data.batch import reader_died
        from jumar.train_core.run.claim import claimed
        from jumar.train_core.run.groups import joined, model_parallel
        from jumar.train_core.run.nodes import nodes_of
        from jumar.train_core.run.ranks import lost

        try:
            with joined(hardware):
                nodes = nodes_of(job.recipe.save.storage, job.recipe.save.path)
                with claimed(job.recipe.save.path, nodes), model_parallel(job, hardware):
                    progress = run(job, hardware, where, stop, nodes=nodes)
        except (RuntimeError, CheckpointException) as fault:
            if stop.asked and not stop.holds:
                raise KeyboardInterrupt from None  # the others were asked as well
            if isinstance(fault, RuntimeError) and (died := reader_died(fault)) is not None:
                raise died from None
            if (gone := lost(fault)) is not None:
                stop.last_word()
                raise gone from None
            raise
    if progress.step >= job.recipe.train.steps and not progress.unevaluated:
        return Exit.OK
    return Exit.STOPPED if job.recipe.save.path is not None and progress.step else Exit.INTERRUPTED


@contextmanager
def engine(hardware: Device) -> Iterator[tuple[Device, torch.device]]:
    """Activates the device and mends megatron-core for it, once a process."""
    where = hardware.activate(int(os.environ.get("LOCAL_RANK", "0")))
    from jumar.train_core.megatron import mend

    mend(where.type, hardware.ops())
    yield hardware, where


def run(job: Job, hardware: Device, where: torch.device, stop: Stop, metrics: Any = None, nodes: Nodes | None = None) -> Progress:
    """Builds, loads and trains. metrics: takes the place of the run's own (benchmarks, tests). nodes: None: one disk for all."""
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state

    from jumar.train_core.data.batch import Batches, workers_for
    from jumar.train_core.model.build import build
    from jumar.train_core.parallel.packed import own_part
    from jumar.train_core.run.beside import check_same_run
    from jumar.train_core.run.checkpoint import Checkpoints, Progress
    from jumar.train_core.run.complete import all_iterations, newest
    from jumar.train_core.run.export import Exports
    from jumar.train_core.run.loop import HeldOut, Loop
    from jumar.train_core.run.nodes import one_disk
    from jumar.train_core.run.optimizer import wrap
    from jumar.train_core.run.weights import initialise, load_weights

    recipe, rank = job.recipe, dist.get_rank()
    if recipe.train.deterministic:
        torch.use_deterministic_algorithms(True)
    metrics = metrics or own_metrics(job, hardware, rank)
    root = recipe.save.path
    nodes = nodes or one_disk()
    exports = Exports(job, nodes, metrics.say)
    before = found.facts if (found := newest(nodes, root)) is not None else None
    if before is not None and before["step"] >= recipe.train.steps and not before["unevaluated"]:
        _finished(job, before["step"], metrics, stop, exports)
        return Progress(before["step"])
    data = datasets_of(job)
    going_on = bool(all_iterations(nodes, root))
    if root is not None and going_on:
        for said in dict.fromkeys(text for each in nodes.each(lambda: check_same_run(job, root, data.inputs)) for text in each):
            metrics.say("warning", said)
    config, chunks = build(job, hardware.ops(), where)
    if not going_on:
        if recipe.load.path is not None:
            load_weights(job, chunks, recipe.load.path, recipe.load.iteration)
        else:
            initialise(job, chunks)
    trainee = wrap(job, config, chunks, hardware.ops())
    trainee.optimizer.reload_model_params()
    saved = Checkpoints(job, trainee, hardware, metrics.say, data.inputs, exports) if root is not None else None
    progress = (saved.restore() if saved is not None and going_on else None) or Progress()

    group = parallel_state.get_data_parallel_group()
    cp = parallel_state.get_context_parallel_group()

    def batches(dataset: Any, consumed: int = 0, stop: int | None = None) -> Any:
        with torch.random.fork_rng(devices=()):  # every DataLoader takes a seed from the generator that dropout uses on a CPU
            made = Batches(
                dataset,
                global_batch_size=recipe.train.global_batch_size,
                micro_batch_size=recipe.train.micro_batch_size,
                dp_rank=group.rank(),
                dp_size=group.size(),
                vocab_size=job.spec.vocab_size,
                consumed=consumed,
                stop=stop,  # its readers end there by themselves
                workers=workers_for(recipe.data.workers, hardware),
            )
        open_batches.callback(made.close)
        return (own_part(batch, cp.rank(), cp.size()) for batch in made)

    with metrics, closing(exports), ExitStack() as open_batches:
        metrics.start(progress.step)
        if progress.step:
            metrics.say("note", f"going on after step {progress.step} of {root}")
            exports.make_up(progress.step)
        loop = Loop(job, trainee, hardware, where, stop)
        held_out = {}
        for name, dataset in (("eval", data.valid), ("test", data.test)):
            if dataset is not None:
                count = min(recipe.train.eval_batches, max(1, len(dataset) // recipe.train.global_batch_size))
                once = count * recipe.train.global_batch_size
                held_out[name] = HeldOut(partial(batches, dataset, stop=once), count)
        progress = loop.run(progress, batches(data.train, progress.samples), held_out, metrics, saved)
        if progress.step < recipe.train.steps:
            kept = f"; the same command goes on from {root}" if root is not None and progress.step else ", nothing is saved"
            metrics.say("stopped", f"after step {progress.step}{kept}")
        elif saved is not None:
            saved.finish_exports(stop)
        return progress


def datasets_of(job: Job) -> Any:
    """What the job's task reads. Collective."""
    if job.task == "pretrain":
        from jumar.train_core.data.pretrain import datasets
    else:
        from jumar.train_core.data.tuning import datasets
    return datasets(job)


def _finished(job: Job, step: int, metrics: Any, stop: Stop, exports: Exports) -> None:
    """A run that has all its steps: what is left to do is Hugging Face directories, if anything."""
    stop.holds = True
    with closing(exports):
        missing = exports.make_up(step)
        left = f"what is left to do is {', '.join(missing)}" if missing else "nothing is left to do"
        metrics.say(
            "note" if missing else "already done",
            f"{job.recipe.save.path} is at step {step}, train.steps is {job.recipe.train.steps}: {left}",
        )
        exports.finish(stop)


def own_metrics(job: Job, hardware: Device, rank: int) -> Metrics:
    """RUN/metrics.jsonl, the console, and what else the recipe asks for."""
    from dataclasses import asdict

    from jumar.train_core.run.metrics import Metrics

    about = {"recipe": asdict(job.recipe), "model_type": job.spec.model_type, "device": hardware.name, "ranks": job.world}
    return Metrics(job.recipe.save.path, job.recipe.log, steps=job.recipe.train.steps, rank=rank, about=about)
