"""The plan of a `torch_dist` checkpoint: the chunks that each rank of a layout would have saved."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from jumar.ckpt_convert.checkpoint import Checkpoint
from jumar.ckpt_convert.convert import Plan, megatron_plan, prepare_megatron
from jumar.ckpt_convert.formats.dist_metadata import NAME as METADATA
from jumar.ckpt_convert.formats.torch_dist import (
    COMMON,
    FORMAT,
    DistFile,
    Saved,
    common_bytes,
    format_bytes,
    index_bytes,
    rank_files,
)
from jumar.ckpt_convert.plan import Coverage, compose
from jumar.ckpt_convert.training_state import PREFIX
from jumar.schema.distributed import Spelling, check, default_spelling, pieces, states
from jumar.schema.errors import ToolError
from jumar.schema.parallel import ParallelLayout
from jumar.schema.placement import ExpertLayout


def plan_dist(
    source: Checkpoint,
    layout: ParallelLayout,
    *,
    dialect: str = "mcore",
    expert_layout: ExpertLayout = "sequential",
    vocab_divisible_by: int = 1,
    dtype: str | None = None,
    stacked: bool | None = None,
    optimizer: bool = True,
) -> Plan:
    """The plan of a `torch_dist` checkpoint. Any layout can load it; `layout` says in which chunks, and files, it lies.

    stacked:   whether layers are stacked into one tensor; None: as megatron-core would for such a model
    optimizer: carry the source's optimizer state and counters, if it has any that can be carried
    The others are those of `plan_megatron`.
    """
    job = prepare_megatron(source, layout, dialect, expert_layout, vocab_divisible_by, dtype)
    placement = job.placement
    if job.fusion:
        raise ToolError(
            "torch_dist is not written with a LoRA in it",
            hint="merge it (--merge), or write it with --format torch",
        )
    spelling = default_spelling(placement) if stacked is None else Spelling(stacked)
    check(placement, spelling)
    coverage, casts, padding = Coverage(), Counter[tuple[str, str]](), 0
    training = source.training if optimizer else None
    states_of = training.kinds if training else {}
    held = {kind: Coverage() for kind in states_of}
    files: list[DistFile] = []
    saved: set[tuple[str, tuple[int, ...]]] = set()
    objects: set[str] = set()
    for rank, shard in enumerate(placement.shards):
        chunks = []
        for piece in pieces(placement, shard, spelling):
            coverage.add(piece.geometry, piece.sources)
            if (piece.key, piece.start) in saved:
                continue  # the same on another rank, which has saved it
            saved.add((piece.key, piece.start))
            cast = None if piece.keep_dtype else job.cast
            record = compose(piece.key, piece.geometry, piece.sources, source.sources, cast, source.deltas)
            casts.update(record.casts)
            padding += record.padding
            stored = replace(record, stored=piece.size)
            chunks.append(Saved(piece.key, piece.shape, piece.start, stored))
            for kind, found in states_of.items():
                if any(name in found for name in piece.sources):
                    held[kind].add(piece.geometry, piece.sources)
                    name = f"{PREFIX}{kind}.{piece.key}"
                    record = compose(name, piece.geometry, piece.sources, found, None)
                    chunks.append(Saved(name, piece.shape, piece.start, replace(record, stored=piece.size)))
        own = [name for name in states(placement, shard, spelling) if name not in objects]
        objects.update(own)
        files += rank_files(job.folder, rank, chunks, own)
    coverage.prove(source.tensors)
    for kind, found in states_of.items():
        held[kind].prove({name: source.tensors[name] for name in found})
    common: dict[str, Any] = {"args": job.namespace(), "checkpoint_version": 3.0, "iteration": job.number}
    spelled = {"singleton_local_shards": False, "non_homogeneous_layers": not spelling.stacked}
    if training and training.kinds:
        common |= training.common
        spelled = {**training.facts, **spelled, "chained_optim_avoid_prefix": True}
    common["content_metadata"] = spelled
    carried = bool(states_of) if optimizer else None
    sidecars = {
        f"{job.folder}/{COMMON}": common_bytes(common),
        f"{job.folder}/{METADATA}": index_bytes(files),
        f"{job.folder}/{FORMAT}": format_bytes(),
    }
    return megatron_plan(job, files, sidecars, coverage, padding, casts, form="torch_dist", carried=carried)
