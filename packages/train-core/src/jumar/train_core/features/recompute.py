"""Recomputation: activations made again in the backward pass, https://arxiv.org/abs/2205.05198."""

from __future__ import annotations

from collections.abc import Iterator

from jumar.train_core.features.base import Feature, Problem, Settings
from jumar.train_core.job import Job
from jumar.train_core.recipe import Recompute

FIELD = "features.recompute."


def _check(job: Job) -> Iterator[Problem]:
    wanted = job.recipe.features.recompute
    if wanted is None:
        return
    if wanted.granularity == "full":
        yield from _unused(wanted, ("modules",))
        counts = [sum(slot is not None for slot in chunk.slots) for chunk in job.chunks]
        where = "a model chunk" if job.layout.vpp > 1 else "a pipeline stage" if job.layout.pp > 1 else "the model"
        if not 1 <= wanted.layers <= max(counts):
            yield Problem(
                f"{FIELD}layers is {wanted.layers}, {where} has {max(counts)} layers",
                f"set {FIELD}layers to a number from 1 to {max(counts)}",
            )
        elif wanted.method == "uniform" and (odd := [count for count in counts if count % wanted.layers]):
            yield Problem(
                f"{FIELD}layers is {wanted.layers}, {where} has {odd[0]} layers, which are no whole number of such units",
                f"set {FIELD}layers=1, or {FIELD}method=block",
            )
        elif wanted.method == "uniform" and wanted.layers > 1 and job.spec.mtp_layers:
            yield Problem(
                f"{FIELD}layers is {wanted.layers}: with multi-token prediction units are single layers",
                f"set {FIELD}layers=1, or {FIELD}method=block",
            )
        return
    yield from _unused(wanted, ("method", "layers"))
    yield from _modules(job, wanted.modules)


def _unused(wanted: Recompute, names: tuple[str, ...]) -> Iterator[Problem]:
    for name in names:
        if getattr(wanted, name) != getattr(Recompute(), name):
            yield Problem(
                f"{FIELD}{name} has no effect: {FIELD}granularity is {wanted.granularity}",
                f"leave {FIELD}{name} out, or set {FIELD}granularity={'full' if name != 'modules' else 'selective'}",
            )


def _modules(job: Job, modules: tuple[str, ...]) -> Iterator[Problem]:
    spec, names = job.spec, FIELD + "modules"
    moe, grouped = spec.moe, job.recipe.features.moe.grouped_gemm
    kinds = {spec.layer_kind(layer) for layer in range(spec.num_layers)}
    if not modules or len(set(modules)) < len(modules):
        yield Problem(f"{names} is {list(modules)}, expected one name or more, each once", f"set {names}=[core_attn]")
    reasons = {
        "moe": (moe is None, "this model has no experts"),
        "moe_act": (
            moe is None or not grouped,
            "this model has no experts" if moe is None else "features.moe.grouped_gemm is off",
        ),
        "shared_experts": (moe is None or not moe.shared_ffn_size, "this model has no shared experts"),
        "mla_up_proj": (spec.mla is None, "this model has no latent attention"),
        "mlp": (
            (moe is not None and not moe.dense_layers) or not kinds & {"block", "mlp"},
            "every layer of this model holds experts" if moe is not None else "this model has no MLP",
        ),
        "core_attn": (not kinds & {"block", "attention"}, "this model has no attention"),
        "layernorm": (kinds == {"ssm"}, "norms before state-space layers are kept"),
    }
    for name in modules:
        wrong, why = reasons.get(name, (False, ""))
        if wrong:
            yield Problem(f"{names}: {name} cannot be recomputed: {why}", f"take {name} out of {names}")
    inside = [name for name in ("moe_act", "shared_experts") if name in modules]
    if "moe" in modules and inside:
        yield Problem(f"{names}: moe holds {' and '.join(inside)} already", f"take {', '.join(inside)} out, or moe")


def _settings(job: Job) -> Settings:
    wanted = job.recipe.features.recompute
    assert wanted is not None
    if wanted.granularity == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": list(wanted.modules)}
    return {"recompute_granularity": "full", "recompute_method": wanted.method, "recompute_num_layers": wanted.layers}


RECOMPUTE = (
    Feature(
        name="recomputation",
        fields=("features.recompute",),
        active=lambda job: job.recipe.features.recompute is not None,
        check=_check,
        settings=_settings,
    ),
)
