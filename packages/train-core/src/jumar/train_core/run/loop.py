"""The training loop: batches, schedule, optimizer, metrics, checkpoints, in that order, until the steps are done."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from jumar.device import Device
from jumar.schema.errors import Exit, ToolError
from jumar.train_core.data.conversations import IGNORED
from jumar.train_core.estimate import flops_per_token
from jumar.train_core.job import Job
from jumar.train_core.model.router import Router
from jumar.train_core.run.checkpoint import FULL_NAMES, Checkpoints, Progress
from jumar.train_core.run.experts import inner_losses
from jumar.train_core.run.groups import is_reporting_rank
from jumar.train_core.run.metrics import Rates
from jumar.train_core.run.optimizer import Trainee, balancing, update
from jumar.train_core.run.schedule import learning_rate
from jumar.train_core.run.stop import Stop
from jumar.train_core.tasks.lm import Batch, forward_step


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What an evaluation reads: `begin` gives its micro batches anew; count: global batches."""

    begin: Callable[[], Iterable[Batch]]
    count: int


@dataclass(slots=True)
class Totals:
    """Sums over the ranks of one step: losses, tokens of the loss, ranks asked to stop, and tokens without padding."""

    loss_sum: float
    tokens: int
    stops: int
    read: int

    @property
    def loss(self) -> float:
        return self.loss_sum / self.tokens if self.tokens else math.nan


class Loop:
    """Runs a trainee over batches. One object a run; `run` returns how far it came."""

    def __init__(self, job: Job, trainee: Trainee, device: Device, where: torch.device, stop: Stop) -> None:
        self.job, self.trainee, self.device, self.where, self.stop = job, trainee, device, where, stop
        self.forward_step = forward_step(job.recipe.train.loss == "token")
        self.schedule = get_forward_backward_func()
        flops = flops_per_token(job.spec, job.recipe.data.seq_len)
        self.rates = Rates(flops, device.peak_flops(FULL_NAMES[job.recipe.train.precision]), job.world)

    def run(
        self,
        progress: Progress,
        batches: Iterator[Batch],
        held_out: Mapping[str, HeldOut],
        metrics: Any,
        saved: Checkpoints | None,
    ) -> Progress:
        """Trains from `progress` on to the last step, or to where it is asked to stop.

        batches: micro batches; held_out: of "eval" and "test" those that there are.
        """
        recipe, last = self.job.recipe, self.job.recipe.train.steps
        saved_at = progress.step
        self.stop.holds = True
        stops = self._stops()
        if progress.unevaluated and not stops:
            progress, stops = self._evaluated(progress, held_out, metrics)
            saved_at = -1
        while progress.step < last and not stops:
            started, trained = time.perf_counter(), progress.tokens
            progress, values = self.step(progress, batches)
            stops = values.pop("stops")
            values |= self.rates.step(values.pop("read"), time.perf_counter() - started)
            metrics.log(progress.step, values)
            if (fault := self._judge(progress, values, progress.tokens - trained)) is not None:
                if saved is not None:
                    saved.finish()
                raise fault
            if self._due(progress.step, held_out):
                progress = replace(progress, unevaluated=True)
                if not stops:
                    progress, stops = self._evaluated(progress, held_out, metrics)
            if saved is not None:
                saved.poll()
                if (every := recipe.save.every) and progress.step % every == 0 and progress.step < last and not stops:
                    with self.gathered():
                        saved.save(progress)
                    saved_at = progress.step
        if saved is not None:
            if saved_at != progress.step:
                with self.gathered():
                    saved.save(progress, wait=True)
            saved.finish()
        return progress

    def _due(self, step: int, held_out: Mapping[str, HeldOut]) -> list[str]:
        """What is evaluated after a step: validation data every few steps and at the end, test data at the end."""
        every, last = self.job.recipe.train.eval_every, step == self.job.recipe.train.steps
        now = {"eval": every is not None and (step % every == 0 or last), "test": last}
        return [name for name, due in now.items() if due and name in held_out]

    def _evaluated(self, progress: Progress, held_out: Mapping[str, HeldOut], metrics: Any) -> tuple[Progress, int]:
        """The evaluations of this step, and how many ranks were asked to stop meanwhile; then they are put off."""
        found, stops = {}, 0
        for name in self._due(progress.step, held_out):
            if stops:
                return progress, stops
            loss, stops = self.evaluate(held_out[name])
            if loss is None:
                return progress, stops
            found[name] = {f"{name}_loss": loss, f"{name}_perplexity": math.exp(min(loss, 700))}
        for values in found.values():
            metrics.log(progress.step, values)
        return replace(progress, unevaluated=False), stops

    def _stops(self) -> int:
        """How many ranks were asked to stop."""
        asked = torch.tensor([float(self.stop.asked)], device=self.where)
        dist.all_reduce(asked)
        return round(asked.item())

    def step(self, progress: Progress, batches: Iterator[Batch]) -> tuple[Progress, dict[str, Any]]:
        """One optimizer step, and what there is to say of it."""
        recipe, number = self.job.recipe, progress.step + 1
        for chunk in self.trainee.model:
            chunk.train()
            chunk.zero_grad_buffer()
        self.trainee.optimizer.zero_grad()
        biases = [(bias, bias.clone()) for bias in balancing(self.trainee)]
        totals = self._pass(batches, forward_only=False)
        rate = learning_rate(number, recipe.train.steps, recipe.optim, recipe.schedule)
        finite = math.isfinite(totals.loss)
        done = update(self.trainee.optimizer, rate, recipe.optim.weight_decay) if finite else None
        applied = done is not None and done.applied
        for bias, before in biases if not applied else ():
            bias.copy_(before)
        norm = done.grad_norm if done is not None else math.nan
        skipped = 0 if applied else progress.skipped + 1
        after = Progress(number, progress.samples + recipe.train.global_batch_size, progress.tokens + totals.tokens, skipped)
        values = {"loss": totals.loss, "grad_norm": norm, "lr": rate, "tokens": after.tokens, "skipped": skipped}
        values["memory_bytes"] = self.device.memory().peak_bytes
        if self.trainee.config.fp16:
            values["loss_scale"] = float(self.trainee.optimizer.get_loss_scale())
        return after, values | inner_losses(self.job, self.where) | {"stops": totals.stops, "read": totals.read}

    def _judge(self, progress: Progress, values: Mapping[str, Any], trained: int) -> ToolError | None:
        """What the recipe says of a loss or gradient that is not finite. The same on all ranks. trained: tokens of the loss."""
        train, skipped, loss, norm = self.job.recipe.train, progress.skipped, values["loss"], values["grad_norm"]
        falls = self.trainee.config.fp16 and self.job.recipe.optim.loss_scale is None
        overflow = falls and math.isfinite(loss)  # the scale goes down by itself
        if not skipped or (overflow and skipped <= max(train.max_skipped, 40)):
            return None
        if train.on_nan == "skip" and skipped <= train.max_skipped:
            return None
        if not trained:
            return ToolError(
                f"step {progress.step}: no token of its samples is trained, all their labels are {IGNORED}",
                hint="look at the data (jumar-data inspect), or set train.global_batch_size higher; train.on_nan=skip goes on",
            )
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradient is {norm}"
        return ToolError(
            f"step {progress.step}: {what}" + (f", {skipped} steps in a row" if skipped > 1 else ""),
            hint="lower optim.lr or lengthen schedule.warmup_steps; train.on_nan=skip leaves single steps out",
            code=Exit.INPUT,
        )

    def evaluate(self, held_out: HeldOut) -> tuple[float | None, int]:
        """The mean loss per token over an evaluation's batches, None if a stop came first, and how many ranks were asked to."""
        found, source = [0.0, 0], iter(held_out.begin())
        with self.gathered(), torch.no_grad():
            for chunk in self.trainee.model:
                chunk.eval()
            for number in range(held_out.count):
                totals = self._pass(source, forward_only=True)
                found = [found[0] + totals.loss_sum, found[1] + totals.tokens]
                if totals.stops and number + 1 < held_out.count:
                    return None, totals.stops
        return found[0] / found[1] if found[1] else math.nan, totals.stops

    def _pass(self, batches: Iterator[Batch], *, forward_only: bool) -> Totals:
        """The micro batches of one global batch through the pipeline, and the sums over all ranks."""
        job, model = self.job, self.trainee.model
        micro = [self._to_device(next(batches)) for _ in range(job.micro_batches)]
        if not forward_only and job.spec.moe is not None:
            Router.loss_tokens = self._tokens(micro) / (job.micro_batches * job.layout.dp)
        feeds = [
            iter(micro if _needs_batch(chunk) else [_only_packed(batch) for batch in micro]) for chunk in self.trainee.chunks
        ]
        results = self.schedule(
            forward_step_func=self.forward_step,
            data_iterator=feeds if len(feeds) > 1 else feeds[0],
            model=model if len(model) > 1 else model[0],
            num_microbatches=job.micro_batches,
            seq_length=micro[0]["tokens"].shape[1] * job.layout.cp,  # with stages, the same of all
            micro_batch_size=job.recipe.train.micro_batch_size,
            forward_only=forward_only,
        )
        mine = torch.zeros(4, dtype=torch.float64)
        if results and is_reporting_rank():
            mine[:2] = torch.stack([result["loss"] for result in results]).cpu().double().sum(0)
            mine[3] = sum(_read(batch, job.layout.cp) for batch in micro)
        mine[2] = float(self.stop.asked)
        sums = mine.float().to(self.where) if self.where.type != "cpu" else mine  # some devices have no float64
        dist.all_reduce(sums)
        loss_sum, tokens, stops, read = sums.tolist()
        return Totals(loss_sum, round(tokens), round(stops), round(read))

    def _tokens(self, micro: list[Batch]) -> torch.Tensor:
        """Tokens of the loss in the global batch."""
        count = torch.stack([batch["loss_mask"].sum() for batch in micro]).sum()
        dist.all_reduce(count, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        return count

    def _to_device(self, batch: Batch) -> Batch:
        """tokens_here is for the host."""
        there = (name for name in batch if name != "tokens_here")
        return batch | {name: batch[name].to(self.where, non_blocking=True) for name in there}

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Parameters whole on every rank; with overlap_param_gather they otherwise are only when the next pass needs them."""
        chunks = [chunk for chunk in self.trainee.model if chunk.ddp_config.overlap_param_gather]
        for chunk in chunks:
            chunk.disable_forward_pre_hook(param_sync=True)
        try:
            yield
        finally:
            for chunk in chunks:
                chunk.enable_forward_pre_hook()


def _needs_batch(chunk: Any) -> bool:
    return bool(chunk.pre_process or chunk.post_process or getattr(chunk, "mtp_process", False))


def _only_packed(batch: Batch) -> Batch:
    """What a stage between the first and the last needs."""
    return {name: batch[name] for name in ("packed",) if name in batch}


def _read(batch: Batch, cp: int) -> float:
    """This rank's share of a micro batch's tokens without padding."""
    return float(batch["tokens_here"].sum()) / cp if "tokens_here" in batch else batch["tokens"].numel()
