"""Features that spread a model over ranks: tensor, sequence, pipeline and context parallelism."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jumar.train_core.features.base import Feature, Problem, Settings
from jumar.train_core.job import Job


def _tensor_check(job: Job) -> Iterator[Problem]:
    spec, tp = job.spec, job.layout.tp
    parts = {
        "attention heads": spec.num_heads,
        "KV heads": spec.num_kv_heads,
        "columns of the MLP (ffn_size)": spec.ffn_size,
        "columns of the shared experts": spec.moe.shared_ffn_size if spec.moe else 0,
    }
    for what, count in parts.items():
        if count % tp:
            more = " (checkpoints hold whole KV groups, so none is shared by two ranks)" if what == "KV heads" else ""
            yield Problem(
                f"parallel.tp={tp} does not divide the model's {count} {what}{more}",
                f"choose parallel.tp among the divisors of {count}",
            )


def _sequence_check(job: Job) -> Iterator[Problem]:
    tp, cp, seq_len = job.layout.tp, job.layout.cp, job.recipe.data.seq_len
    if job.sequence_parallel and tp == 1:
        yield Problem("parallel.sequence_parallel has no effect: tp=1", "set parallel.tp, or leave sequence_parallel out")
    elif job.sequence_parallel and seq_len % (tp * cp):
        yield Problem(
            f"data.seq_len {seq_len} cannot be shared out over tp={tp}"
            + (f" x cp={cp}" if cp > 1 else "")
            + " (sequence parallel)",
            f"set data.seq_len to a multiple of {tp * cp}, or parallel.sequence_parallel=false",
        )
    layers = range(job.spec.num_layers + job.spec.mtp_layers)
    if not job.sequence_parallel and tp > 1 and any(job.spec.is_moe_layer(layer) for layer in layers):
        yield Problem(
            f"experts at tp={tp} need sequence parallelism: without it every rank would send the same tokens",
            "leave parallel.sequence_parallel out",
        )


def _virtual_check(job: Job) -> Iterator[Problem]:
    pp, vpp, micro = job.layout.pp, job.layout.vpp, job.micro_batches
    if vpp > 1 and micro % pp:
        size = job.recipe.train.micro_batch_size * job.layout.dp * pp
        yield Problem(
            f"vpp={vpp}: {micro} micro batches a step are not a multiple of pp={pp}",
            f"set train.global_batch_size to a multiple of {size} (micro_batch_size x dp x pp)",
        )


def _virtual(job: Job) -> Settings:
    # With the default, batched sends, megatron-core computes wrong gradients in this schedule and says nothing.
    return {"virtual_pipeline_model_parallel_size": job.layout.vpp, "overlap_p2p_comm": True, "batch_p2p_comm": False}


def _uneven_check(job: Job) -> Iterator[Problem]:
    if job.layout.noop_layers and job.layout.pp == 1:
        yield Problem("parallel.noop_layers has no effect: pp=1", "leave parallel.noop_layers out, or set parallel.pp")


def _uneven(job: Job) -> Settings:
    """megatron-core's rows: stage by stage of the model's order, which is row vpp_rank * pp + pp_rank."""
    rows: list[list[str]] = []
    for chunk in sorted(job.chunks, key=lambda c: (c.vpp, c.pp)):
        row = ["embedding"] if chunk.first else []
        row += ["decoder" for slot in chunk.slots if slot is not None]
        if chunk.last:
            row += ["mtp"] * job.spec.mtp_layers + ["loss"]
        rows.append(row)
    return {"pipeline_model_parallel_layout": rows}


def _context_check(job: Job) -> Iterator[Problem]:
    cp, seq_len = job.layout.cp, job.recipe.data.seq_len
    if cp > 1 and seq_len % (2 * cp):
        yield Problem(
            f"data.seq_len {seq_len} cannot be cut into 2 x cp = {2 * cp} equal pieces (the zigzag split)",
            f"set data.seq_len to a multiple of {2 * cp}",
        )


def _sized(name: str, field: str, **more: Any) -> Feature:
    """A feature that is a parallel size, active above 1."""
    short = field.split(".")[1]
    return Feature(name=name, fields=(field,), active=lambda job: getattr(job.layout, short) > 1, **more)


LAYOUT = (
    _sized(
        "tensor parallelism",
        "parallel.tp",
        check=_tensor_check,
        settings=lambda job: {"tensor_model_parallel_size": job.layout.tp},
    ),
    Feature(
        name="sequence parallelism",
        fields=("parallel.sequence_parallel",),
        active=lambda job: job.sequence_parallel,
        check=_sequence_check,
        settings=lambda job: {"sequence_parallel": True},
    ),
    _sized("pipeline parallelism", "parallel.pp", settings=lambda job: {"pipeline_model_parallel_size": job.layout.pp}),
    _sized(
        "interleaved pipeline",
        "parallel.vpp",
        needs=("pipeline parallelism",),
        check=_virtual_check,
        settings=_virtual,
    ),
    Feature(
        name="uneven stages",
        fields=("parallel.layers_per_stage", "parallel.noop_layers"),
        active=lambda job: job.layout.pp > 1 and bool(job.layout.layers_per_stage or job.layout.noop_layers),
        needs=("pipeline parallelism",),
        check=_uneven_check,
        settings=_uneven,
    ),
    _sized(
        "context parallelism",
        "parallel.cp",
        check=_context_check,
        settings=lambda job: {"context_parallel_size": job.layout.cp},
    ),
    Feature(
        name="loss per token",
        fields=("train.loss",),
        active=lambda job: job.recipe.train.loss == "token",
        settings=lambda job: {"calculate_per_token_loss": True},
    ),
)
