"""What a run would be: the report of `--dry-run`, as data, and as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jumar.train_core.data import tuning_plan
from jumar.train_core.data.blends import PARTS, draws, plan
from jumar.train_core.estimate import active_parameters, flops_per_token, ranks, whole_parameters
from jumar.train_core.features import active, ddp, optimizer, settings
from jumar.train_core.groups import rank_groups
from jumar.train_core.job import Job
from jumar.train_core.recipe import Data, Recipe, Source


def report(job: Job, given: Recipe | None = None) -> dict[str, Any]:
    """Plain values: recipe, derived sizes, features, groups, stages, parameters, data and steps.

    given: the recipe as it was written, where the job's has other words for it: prefixes for raw files, steps for epochs.
    """
    given = given or job.recipe
    data = _tuning(job, _written(job.recipe.data, given.data)) if job.task == "sft" else _data(job)
    return {
        "recipe": changed(given, Recipe()),
        "derived": _derived(job),
        "features": [feature.name for feature in active(job)],
        "megatron": {"config": settings(job), "ddp": ddp(job), "optimizer": optimizer(job)},
        "groups": rank_groups(job),
        "stages": [_stage(rank) for rank in ranks(job)],
        "parameters": {
            "total": whole_parameters(job.family, job.spec),
            "active": active_parameters(job.family, job.spec),
            "flops_per_token": flops_per_token(job.spec, job.recipe.data.seq_len),
        },
        "data": data,
        "steps": _steps(job)
        | {"at_most": any(row.get("borders") == "none" for row in data["train"])},  # some samples are shorter
    }


def changed(section: Any, usual: Any) -> dict[str, Any]:
    """A recipe's fields that differ from the defaults, as plain values."""
    found: dict[str, Any] = {}
    for f in fields(section):
        here, default = getattr(section, f.name), getattr(usual, f.name, None)
        if here == default:
            continue
        if is_dataclass(here) and is_dataclass(default):
            found[f.name] = changed(here, default)
        else:
            found[f.name] = _plain(here)
    return found


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {key: _plain(inner) for key, inner in asdict(value).items() if inner is not None}
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _derived(job: Job) -> dict[str, Any]:
    layout, spec = job.layout, job.spec
    derived: dict[str, Any] = {
        "model": spec.model_type,
        "ranks": job.world,
        **{name: getattr(layout, name) for name in ("tp", "pp", "vpp", "cp", "dp")},
    }
    if spec.moe is not None:
        derived |= {"ep": layout.ep, "etp": layout.expert_tp, "expert_dp": job.expert_dp}
    return derived | {
        "sequence_parallel": job.sequence_parallel,
        "micro_batches": job.micro_batches,
        "padded_vocab": job.padded_vocab,
    }


def _stage(rank: Any) -> dict[str, Any]:
    names = ("weights", "gradients", "optimizer", "activations", "logits", "total")
    return {
        "stage": rank.stage,
        "layers": [list(chunk) for chunk in rank.layers],
        "parameters": rank.parameters,
        "of_experts": rank.experts,
        "bytes": {name: getattr(rank, f"{name}_bytes") for name in names},
    }


def _data(job: Job) -> dict[str, list[dict[str, Any]]]:
    """For training, validation and test: each dataset, what it holds, and how often it is read."""
    seq_len = job.recipe.data.seq_len
    found: dict[str, list[dict[str, Any]]] = {}
    for draw in draws(plan(job)):
        tokens = int(draw.lengths.sum(dtype=np.int64))
        samples = tokens // seq_len
        row = {"prefix": str(draw.reader.prefix), "documents": len(draw.lengths), "tokens": tokens, "part": draw.share}
        row |= {"samples": samples, "share": draw.weight, "epochs": draw.samples * draw.weight / samples if samples else None}
        found.setdefault(draw.kind, []).append(row)
    return found


def _written(data: Data, given: Data) -> dict[Path, Path]:
    """How the recipe calls what a prefix is of."""
    pairs = ((getattr(data, name), getattr(given, name)) for name in PARTS)
    return {mine: theirs for one, other in pairs for mine, theirs in zip(_paths(one), _paths(other), strict=True)}


def _paths(given: Path | tuple[Source, ...] | None) -> list[Path]:
    return [each.prefix for each in given] if isinstance(given, tuple) else [given] if given else []


def _tuning(job: Job, written: Mapping[Path, Path]) -> dict[str, list[dict[str, Any]]]:
    """Likewise for conversations; `documents` are sequences as they lie in the files."""
    train = job.recipe.train
    drawn = {"train": train.steps * train.global_batch_size}
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, shares in tuning_plan.plan(job).items():
        whole = sum(map(len, shares))
        samples = drawn.get(kind, min(whole, train.eval_batches * train.global_batch_size))
        for share in shares:
            weight = len(share) / whole if share.weight is None else share.weight
            prefix = share.source.prefix
            row = {"prefix": str(written.get(prefix, prefix)), "documents": len(share), "borders": share.source.borders}
            row |= {"tokens": int(share.source.lengths[share.first : share.last].sum(dtype=np.int64)), "samples": len(share)}
            row |= {"part": len(share) / len(share.source), "share": weight, "epochs": samples * weight / len(share)}
            found.setdefault(kind, []).append(row)
    return found


def _steps(job: Job) -> dict[str, int]:
    train = job.recipe.train
    return {
        "steps": train.steps,
        "samples_per_step": train.global_batch_size,
        "tokens_per_step": job.tokens_per_step,
        "tokens": train.steps * job.tokens_per_step,
        "evaluations": -(-train.steps // train.eval_every) if train.eval_every else 0,  # and one at the end
        "checkpoints": _checkpoints(job),
    }


def _checkpoints(job: Job) -> int:
    save, steps = job.recipe.save, job.recipe.train.steps
    if save.path is None:
        return 0
    return -(-steps // save.every) if save.every else 1
