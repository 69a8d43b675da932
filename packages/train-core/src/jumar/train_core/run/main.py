"""One rank of a run: device, engine, weights, data, loop. Nothing of megatron-core is imported before it is mended."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from jumar.device import Device, open_device
from jumar.schema.errors import Exit
from jumar.train_core.job import Job
from jumar.train_core.run.stop import Stop

if TYPE_CHECKING:
    import torch

    from jumar.train_core.run.checkpoint import Progress
    from jumar.train_core.run.metrics import Metrics


def train(job: Job, device: str) -> int:
    """Runs this rank to the end and returns its exit code: 0 done, 75 stopped with a checkpoint saved, 130 stopped without."""
    with Stop() as stop, engine(open_device(device)) as (hardware, where):
        from jumar.train_core.run.groups import joined, model_parallel

        with joined(hardware), model_parallel(job, hardware):
            progress = run(job, hardware, where, stop)
    if progress.step >= job.recipe.train.steps:
        return Exit.OK
    return Exit.STOPPED if job.recipe.save.path is not None else Exit.INTERRUPTED


@contextmanager
def engine(hardware: Device) -> Iterator[tuple[Device, torch.device]]:
    """Activates the device and mends megatron-core for it, once a process."""
    where = hardware.activate(int(os.environ.get("LOCAL_RANK", "0")))
    from jumar.train_core.megatron import mend

    mend(hardware.name)
    yield hardware, where


def run(job: Job, hardware: Device, where: torch.device, stop: Stop, metrics: Any = None) -> Progress:
    """Builds, loads and trains. metrics: takes the place of the run's own (benchmarks, tests)."""
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state

    from jumar.train_core.data.batch import Batches, split_for_cp, workers_for
    from jumar.train_core.data.pretrain import datasets
    from jumar.train_core.model.build import build
    from jumar.train_core.run.checkpoint import Checkpoints, Progress
    from jumar.train_core.run.loop import Loop
    from jumar.train_core.run.optimizer import wrap
    from jumar.train_core.run.weights import initialise, load_weights

    recipe, rank = job.recipe, dist.get_rank()
    if recipe.train.deterministic:
        torch.use_deterministic_algorithms(True)
    metrics = metrics or own_metrics(job, hardware, rank)
    data = datasets(job)
    config, chunks = build(job, hardware.ops(), where)
    going_on = recipe.save.path is not None and has_checkpoint(job)
    if not going_on:
        if recipe.load.path is not None:
            load_weights(job, chunks, recipe.load.path, recipe.load.iteration)
        else:
            initialise(job, chunks)
    trainee = wrap(job, config, chunks, hardware.ops())
    trainee.optimizer.reload_model_params()
    saved = Checkpoints(job, trainee, hardware, partial(metrics.say, "warning")) if recipe.save.path is not None else None
    progress = (saved.restore() if saved is not None and going_on else None) or Progress()

    group = parallel_state.get_data_parallel_group()
    cp = parallel_state.get_context_parallel_group()

    def batches(dataset: Any, consumed: int = 0) -> Any:
        made = Batches(
            dataset,
            global_batch_size=recipe.train.global_batch_size,
            micro_batch_size=recipe.train.micro_batch_size,
            dp_rank=group.rank(),
            dp_size=group.size(),
            vocab_size=job.spec.vocab_size,
            consumed=consumed,
            workers=workers_for(recipe.data.workers, hardware.name),
        )
        open_batches.callback(made.close)
        return (split_for_cp(batch, cp.rank(), cp.size()) for batch in made)

    with metrics, ExitStack() as open_batches:
        metrics.start(progress.step)
        loop = Loop(job, trainee, hardware, where, stop)
        return loop.run(progress, batches(data.train, progress.samples), lambda: batches(data.valid), metrics, saved)


def own_metrics(job: Job, hardware: Device, rank: int) -> Metrics:
    """RUN/metrics.jsonl, the console, and what else the recipe asks for."""
    from dataclasses import asdict

    from jumar.train_core.run.metrics import Metrics

    about = {"recipe": asdict(job.recipe), "model_type": job.spec.model_type, "device": hardware.name, "ranks": job.world}
    return Metrics(job.recipe.save.path, job.recipe.log, steps=job.recipe.train.steps, rank=rank, about=about)


def has_checkpoint(job: Job) -> bool:
    """Whether the run's directory holds a checkpoint, as rank 0 sees it."""
    import torch.distributed as dist

    from jumar.train_core.run.checkpoint import iterations

    assert job.recipe.save.path is not None
    box = [bool(iterations(job.recipe.save.path)) if dist.get_rank() == 0 else False]
    dist.broadcast_object_list(box, src=0)
    return bool(box[0])
