"""Trains many recipes in one launch: a process group is joined once, model parallel groups are made anew for every row.

torchrun --nproc-per-node N train_worker.py ROWS.json OUT_DIR

ROWS.json is a list of {"name": ..., "task": "pretrain" or "sft", "parts": [recipe, ...], "stop_at": null, "trap": null,
"gradients": true, "batches": false}.
The parts of a row run one after another; the first is asked to stop at step `stop_at`, the next goes on. OUT_DIR gets
NAME.json: losses, norms, inner losses, and of experts the smallest margin of a choice; and NAME.npz: the first step's gradients
by Hugging Face names. A row that fails ends the launch and leaves NAME.error: who started it goes on with the rows after it.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from jumar.device import open_device
from jumar.schema.recipe import validate
from jumar.train_core.checks import check, raise_first
from jumar.train_core.job import Job, resolve
from jumar.train_core.recipe import Recipe
from jumar.train_core.run.main import engine, run
from jumar.train_core.run.stop import Stop

ROW_TIMEOUT_S = int(os.environ.get("ROW_TIMEOUT_S", "120"))


class Recorder:
    """Takes the place of Metrics, and asks the run to stop at a step."""

    def __init__(self, stop: Stop, stop_at: int | None) -> None:
        self.rows: list[dict[str, Any]] = []
        self.stop, self.stop_at = stop, stop_at

    def start(self, step: int) -> None: ...
    def close(self) -> None: ...

    def say(self, word: str, text: str) -> None:
        print(f"{word}: {text}", file=sys.stderr)

    def log(self, step: int, values: dict[str, Any]) -> None:
        self.rows.append({"step": step, **values})
        self.stop.asked = self.stop.asked or step + 1 == self.stop_at  # is looked at with the sums of the next step

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_fault: object) -> None: ...


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class Gradients:
    """Takes the gradients of the first step, when they are finished, not yet clipped, and whole on some rank."""

    def __init__(self, job: Job) -> None:
        self.job, self.trainee, self.found = job, None, None
        self.replicas = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        from jumar.train_core.run import loop, optimizer

        wrap, update = optimizer.wrap, loop.update

        def wrapping(*args: Any) -> Any:
            self.trainee = wrap(*args)
            return self.trainee

        def updating(*args: Any) -> Any:
            if self.found is None:
                self.found = self.take()
            return update(*args)

        with replaced(optimizer, "wrap", wrapping), replaced(loop, "update", updating):
            yield

    def take(self) -> dict[str, np.ndarray]:
        """Name -> gradient, on rank 0; empty elsewhere. Ranks that hold the same piece must have the same numbers."""
        from jumar.train_core.run.weights import local, place_by_name

        for chunk in self.trainee.model:
            gather_shards(chunk)
        here = place_by_name(self.trainee.chunks)
        scale = float(self.trainee.optimizer.get_loss_scale()) if self.trainee.config.fp16 else 1.0
        pieces = []
        for placed in local(self.job):
            parameter = here[placed.key, placed.name]
            if not isinstance(parameter, torch.nn.Parameter):
                continue
            grad = parameter.main_grad.float().reshape(placed.geometry.shape) / scale
            for box in placed.geometry.boxes:
                part = grad[tuple(slice(a, a + n) for a, n in zip(box.at, box.extent, strict=True))]
                order = sorted(range(len(box.axes)), key=lambda axis: box.axes[axis])
                moved = part.reshape([box.size[axis] for axis in order])
                back = moved.permute([order.index(axis) for axis in range(len(order))])
                pieces.append((placed.sources[box.part], box.start, back.numpy().copy()))
        everyone: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(pieces, everyone)
        return self.together([piece for rank in everyone for piece in rank]) if everyone is not None else {}

    def together(self, pieces: list[tuple[str, tuple[int, ...], np.ndarray]]) -> dict[str, np.ndarray]:
        shapes = self.job.family.hf_tensors(self.job.spec)
        whole: dict[str, np.ndarray] = {}
        for name, start, piece in pieces:
            target = whole.setdefault(name, np.full(shapes[name], np.nan, np.float32))
            view = target[tuple(slice(a, a + n) for a, n in zip(start, piece.shape, strict=True))]
            known = ~np.isnan(view)
            if known.any():
                apart = np.abs(view[known] - piece[known]).max() / max(np.abs(piece).max(), 1e-12)
                self.replicas = max(self.replicas, float(apart))
            view[...] = piece
        return whole


def gather_shards(chunk: Any) -> None:
    """With the distributed optimizer a rank has finished its own part of each bucket alone."""
    if not chunk.ddp_config.use_distributed_optimizer:
        return
    for group in chunk.bucket_groups + chunk.expert_parallel_bucket_groups:
        ranks = group.intra_distributed_optimizer_instance_group
        for bucket in group.buckets:
            own = bucket.grad_data.chunk(ranks.size())[ranks.rank()].clone()
            dist.all_gather_into_tensor(bucket.grad_data, own, group=ranks)


def forget(watch: Gradients | None) -> None:
    """Lets go of a row's model, and so of its process groups, which have a dozen threads each: a hundred rows would crawl."""
    from megatron.core.distributed import DistributedDataParallel
    from megatron.core.transformer.moe.moe_utils import get_moe_layer_wise_logging_tracker
    from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

    get_moe_layer_wise_logging_tracker().clear()  # which also keeps the size of the first model that a process trains
    MTPLossLoggingHelper.tracker.clear()
    if watch is not None:
        watch.trainee = None
    gc.collect()
    for each in [each for each in gc.get_objects() if isinstance(each, DistributedDataParallel)]:
        vars(each).clear()  # a circle through autograd, which the collector does not see
    gc.collect()


@contextmanager
def margins(found: list[float]) -> Iterator[None]:
    """The smallest difference between the last expert that was chosen and the first that was not, as a share of the former."""
    from jumar.train_core.model import router

    choose, groups, score_aux = router.choose, router._in_best_groups, router.compute_routing_scores_for_aux_loss

    def gap(ranks: torch.Tensor, count: int) -> None:
        if count < ranks.shape[-1]:
            best = ranks.topk(count + 1, dim=-1).values
            least, other = best[..., -2], best[..., -1]
            found[0] = min(found[0], float(((least - other) / least.abs()).nan_to_num(nan=9, posinf=9).min()))

    def choosing(logits: torch.Tensor, moe: Any, bias: torch.Tensor | None) -> Any:
        with torch.no_grad():
            scores = logits.float().softmax(-1) if moe.score == "softmax" else logits.float().sigmoid()
            ranks = scores if bias is None else scores + bias
            if moe.num_groups > 1:
                parts = ranks.reshape(*ranks.shape[:-1], moe.num_groups, -1)
                score = parts.amax(-1) if moe.group_score == "max" else parts.topk(2, dim=-1).values.sum(-1)
                gap(score, moe.topk_groups)
                ranks = ranks.masked_fill(~groups(ranks, moe), float("-inf"))
            gap(ranks, moe.top_k)
        return choose(logits, moe, bias)

    def scoring(logits: torch.Tensor, topk: int, score_function: str, **settings: Any) -> Any:
        """The balancing loss counts a choice of its own, without groups and bias."""
        choice, scores = score_aux(logits, topk, score_function, **settings)
        gap(scores.detach(), topk)
        return choice, scores

    with replaced(router, "choose", choosing), replaced(router, "compute_routing_scores_for_aux_loss", scoring):
        yield


@contextmanager
def batches(found: list[dict[str, list[Any]]]) -> Iterator[None]:
    """What the model is fed, in order."""
    from jumar.train_core.parallel import packed as module

    split = module.split_for_cp

    def splitting(batch: Any, rank: int, size: int) -> Any:
        found.append({key: value.tolist() for key, value in batch.items() if key != "position_ids"})
        return split(batch, rank, size)

    with replaced(module, "split_for_cp", splitting):
        yield


def run_row(row: dict[str, Any], hardware: Any, where: Any, stop: Stop) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    from jumar.train_core.run.groups import model_parallel
    from train_traps import TRAPS

    began, records, grads = time.perf_counter(), [], None
    margin, fed = [9.0], []
    for number, values in enumerate(row["parts"]):
        job = resolve(validate(Recipe, values, row["name"]), world=dist.get_world_size(), device="cpu", task=row["task"])
        if dist.get_rank() == 0:
            raise_first(check(job))
        stop.asked = stop.holds = False
        recorder = Recorder(stop, row.get("stop_at") if not number else None)
        watch = Gradients(job) if row.get("gradients") and not number else None
        with ExitStack() as stack:
            if row.get("trap"):
                stack.enter_context(TRAPS[row["trap"]]())
            stack.enter_context(margins(margin) if job.spec.moe is not None else nullcontext())
            stack.enter_context(batches(fed) if row.get("batches") else nullcontext())
            stack.enter_context(watch.watching() if watch is not None else nullcontext())
            stack.enter_context(model_parallel(job, hardware))
            run(job, hardware, where, stop, recorder)
        forget(watch)
        records += recorder.rows
        grads = watch or grads
    steps = [record for record in records if "loss" in record]
    inner = {key for key in steps[-1] if key.endswith("_loss")}
    report: dict[str, Any] = {
        "loss": [record["loss"] for record in steps],
        "grad_norm": [record["grad_norm"] for record in steps],
        "inner": {key: [record[key] for record in steps] for key in sorted(inner)},
        "eval": [record["eval_loss"] for record in records if "eval_loss" in record],
        "replicas": grads.replicas if grads is not None else 0.0,
        "margin": margin[0] if margin[0] < 9 else None,
        "seconds": time.perf_counter() - began,
        "batches": fed,
    }
    return report, grads.found or {} if grads is not None else {}


def main() -> None:
    rows, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    torch.set_num_threads(1)
    with Stop() as stop, engine(open_device("cpu")) as (hardware, where):
        logging.getLogger("megatron").setLevel(logging.ERROR)
        from jumar.train_core.run.groups import joined

        with joined(hardware):
            for row in rows:
                faulthandler.dump_traceback_later(ROW_TIMEOUT_S, exit=True)
                try:
                    report, grads = run_row(row, hardware, where, stop)
                except BaseException:  # noqa: BLE001  # it is told, whatever it is
                    with (out / f"{row['name']}.error").open("a") as file:
                        file.write(f"rank {dist.get_rank()}\n{traceback.format_exc()}\n")
                    os._exit(1)  # the other ranks are inside a collective: torchrun ends them
                if dist.get_rank() == 0:
                    np.savez(out / f"{row['name']}.npz", **grads)
                    (out / f"{row['name']}.json").write_text(json.dumps(report))
            faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":  # checkpoints are written by processes that import this file
    main()
