"""megatron-core's own dist_checkpointing on both sides: saves what jumar is to read, and loads what jumar has written.

torchrun --nproc-per-node 4 dist_worker.py REPORT.json JOBS.json --tp 2 --pp 2

JOBS.json is a list of objects: {"do": "save", "shards": MEGATRON_DIR, "hf": HF_DIR, "out": DIR, "singleton": false}, where the
shards are of this layout; or {"do": "load", "dist": ITERATION_DIR, "hf": HF_DIR}. "every_layer": true says that experts are in
every layer by a frequency and not by a list, so that layers are stacked.

And of a training run, with its optimizer: {"do": "train", "shards": ..., "hf": ..., "out": DIR, "distributed": true,
"bf16": false, "sharding": "fully_reshardable"} saves weights and a random state of Adam; {"do": "resume", "dist":
ITERATION_DIR, "hf": ..., "out": DIR, ...} loads what jumar made of it, and saves it again as it is in memory.
"""

from __future__ import annotations

import argparse
import json
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import no_compiler  # noqa: F401

# isort: split
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.safe_globals import register_safe_globals

from gpt_model import build, read_config
from megatron_cpu import mend, mend_training
from megatron_worker import forward, load_on_every_rank, reference_logits, shard_file


def sharded(chunks: list, metadata: dict) -> dict:
    """The sharded state dict of this rank's chunks, as megatron.training makes it."""
    metadata = metadata | {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
    states = {}
    for number, chunk in enumerate(chunks):
        runs_mtp = getattr(chunk, "mtp", None) is not None
        chunk.mtp_process = runs_mtp  # it decides whether the embedding there is a copy
        states["model" if len(chunks) == 1 else f"model{number}"] = chunk.sharded_state_dict(metadata=metadata)
        chunk.mtp_process = False
    return states


def save(job: dict, layout: dict) -> dict:
    hf = read_config(Path(job["hf"]))
    chunks = build(hf, **layout, every_layer=job.get("every_layer", False))
    file = shard_file(Path(job["shards"]), pp=layout["pp"], ep=layout["ep"])
    _, error = load_on_every_rank(chunks, file)
    register_safe_globals()
    if error:
        return {"error": error}
    args = torch.load(file, weights_only=True)["args"]
    metadata = {"singleton_local_shards": job.get("singleton", False)}
    out = Path(job["out"])
    if dist.get_rank() == 0:
        out.mkdir(parents=True)
    dist.barrier()
    states = sharded(chunks, metadata) | {"args": args, "checkpoint_version": 3.0, "iteration": 1}
    dist_checkpointing.save(states, str(out), content_metadata=metadata)
    return {}


def load(job: dict, layout: dict) -> dict:
    """max_diff and scale of the logits after a strict load."""
    hf = read_config(Path(job["hf"]))
    tokens = torch.randint(hf["vocab_size"], (2, 24), generator=torch.Generator().manual_seed(0))
    chunks = build(hf, **layout, every_layer=job.get("every_layer", False))
    for chunk in chunks:
        for parameter in chunk.parameters():
            parameter.data.fill_(float("nan"))  # what is not loaded shows
    register_safe_globals()
    metadata = dist_checkpointing.load_content_metadata(job["dist"]) or {}
    loaded = dist_checkpointing.load(sharded(chunks, metadata), job["dist"])
    for key, chunk in zip(["model"] if len(chunks) == 1 else [f"model{i}" for i in range(len(chunks))], chunks, strict=True):
        chunk.load_state_dict(loaded[key], strict=True)
    logits = forward(chunks, tokens)
    row = [{"args": loaded["args"].num_layers}]
    last = dist.get_world_size() - 1
    if dist.get_rank() == last:
        reference = reference_logits(Path(job["hf"]), tokens)
        row[0]["max_diff"] = (logits[..., : hf["vocab_size"]] - reference).abs().max().item()
        row[0]["scale"] = reference.abs().max().item()
    dist.broadcast_object_list(row, src=last)
    return row[0]


@torch.enable_grad()  # the wrapper hooks itself into the graph
def trainer(job: dict, layout: dict) -> tuple[list, list, object]:
    """Model chunks, their modules, and the optimizer over their distributed data parallel wrappers."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.transformer.module import Float16Module

    chunks = build(read_config(Path(job["hf"])), **layout, every_layer=job.get("every_layer", False))
    half, distributed = job.get("bf16", False), job.get("distributed", True)
    for chunk in chunks:
        chunk.config.bf16 = half
        if half:
            chunk.config.params_dtype = torch.bfloat16
    ddp = DistributedDataParallelConfig(use_distributed_optimizer=distributed, grad_reduce_in_fp32=True)
    wrapped = [
        DistributedDataParallel(c.config, ddp, Float16Module(c.config, c) if half else c, disable_bucketing=i > 0)
        for i, c in enumerate(chunks)
    ]
    config = OptimizerConfig(
        optimizer="adam",
        lr=1e-3,
        bf16=half,
        params_dtype=torch.bfloat16 if half else torch.float32,
        use_distributed_optimizer=distributed,
    )
    optimizer = get_megatron_optimizer(config, wrapped)
    inner = list(getattr(optimizer, "chained_optimizers", [optimizer]))
    generator = torch.Generator().manual_seed(dist.get_rank())
    for one in inner:
        for group in one.optimizer.param_groups:
            for parameter in group["params"]:
                one.optimizer.state[parameter] = dict(
                    step=torch.tensor(7.0),
                    exp_avg=torch.randn(parameter.shape, generator=generator),
                    exp_avg_sq=torch.rand(parameter.shape, generator=generator),
                )
    return chunks, inner, optimizer


def optimizer_metadata(job: dict) -> dict:
    metadata = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
    if job.get("distributed", True):
        metadata["distrib_optim_sharding_type"] = job.get("sharding", "fully_reshardable")
    return metadata


def save_run(job: dict, chunks: list, optimizer: object, args: argparse.Namespace) -> None:
    metadata = optimizer_metadata(job)
    groups = {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
    states = sharded(chunks, metadata)
    states["optimizer"] = optimizer.sharded_state_dict(dict(states), metadata=metadata | groups)
    states |= {"args": args, "checkpoint_version": 3.0, "iteration": 7, "opt_param_scheduler": {"num_steps": 56, "max_lr": 1e-3}}
    out = Path(job["out"])
    if dist.get_rank() == 0:
        out.mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save(states, str(out), content_metadata=metadata)


def train(job: dict, layout: dict) -> dict:
    chunks, _, optimizer = trainer(job, layout)
    file = shard_file(Path(job["shards"]), pp=layout["pp"], ep=layout["ep"])
    with torch.serialization.safe_globals([argparse.Namespace]):
        payload = torch.load(file, weights_only=True)
    for key, chunk in zip(["model"] if len(chunks) == 1 else [f"model{i}" for i in range(len(chunks))], chunks, strict=True):
        chunk.load_state_dict(payload[key], strict=True)
    for one in getattr(optimizer, "chained_optimizers", [optimizer]):
        one.reload_model_params()
    payload["args"].consumed_train_samples = 56
    save_run(job, chunks, optimizer, payload["args"])
    return {}


def resume(job: dict, layout: dict) -> dict:
    register_safe_globals()
    chunks, inner, optimizer = trainer(job, layout)
    for one in inner:  # what is not loaded shows; Adam's own state must be there, and may not be NaN to be initialised
        for state in one.optimizer.state.values():
            state |= {"exp_avg": torch.zeros_like(state["exp_avg"]), "exp_avg_sq": torch.zeros_like(state["exp_avg_sq"])}
    metadata = dist_checkpointing.load_content_metadata(job["dist"]) or {}
    groups = {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
    states = sharded(chunks, metadata)
    states["optimizer"] = optimizer.sharded_state_dict(dict(states), is_loading=True, metadata=metadata | groups)
    loaded = dist_checkpointing.load(states, job["dist"])
    for key, chunk in zip(["model"] if len(chunks) == 1 else [f"model{i}" for i in range(len(chunks))], chunks, strict=True):
        chunk.load_state_dict(loaded[key], strict=True)
    optimizer.load_state_dict(loaded["optimizer"])
    save_run(job, chunks, optimizer, loaded["args"])
    return {
        "iteration": loaded["iteration"],
        "scheduler": loaded["opt_param_scheduler"],
        "samples": loaded["args"].consumed_train_samples,
        "step": next(float(s["step"]) for one in inner for s in one.optimizer.state.values()),
    }


DO = {"save": save, "load": load, "train": train, "resume": resume}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("jobs", type=Path)
    for name in ("tp", "pp", "vpp", "ep"):
        parser.add_argument(f"--{name}", type=int, default=1)
    parser.add_argument("--etp", type=int, help="default: as --tp")
    parser.add_argument("--grouped", action="store_true", help="experts as weight1 and weight2")
    args = parser.parse_args()
    layout = {name: getattr(args, name) for name in ("tp", "pp", "vpp", "ep", "etp", "grouped")}
    layout["etp"] = args.etp or args.tp

    jobs = json.loads(args.jobs.read_text())
    mend()
    if any(job["do"] in ("train", "resume") for job in jobs):
        mend_training()  # after which no forward is run: it takes another way by the types' names
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))  # a hang is a failure
    parallel_state.initialize_model_parallel(
        args.tp,
        args.pp,
        virtual_pipeline_model_parallel_size=args.vpp if args.vpp > 1 else None,
        expert_model_parallel_size=args.ep,
        expert_tensor_parallel_size=layout["etp"],
    )
    with torch.no_grad():
        report = [DO[job["do"]](job, layout) for job in jobs]
    if dist.get_rank() == 0:
        args.report.write_text(json.dumps(report, indent=1))
    dist.destroy_process_group()


if __name__ == "__main__":  # dist_checkpointing starts processes that import this file
    main()
