"""Features of models with experts, and of multi-token prediction."""

from __future__ import annotations

from collections.abc import Iterator

from jumar.train_core.features.base import Feature, Problem, Settings, is_set, without_effect
from jumar.train_core.job import Job

BALANCING = {"micro_batch": "aux_loss", "sequence": "seq_aux_loss", "none": "none"}
MOE = "features.moe."


def _has_experts(job: Job) -> bool:
    return job.spec.moe is not None


def _parallel_check(job: Job) -> Iterator[Problem]:
    moe, ep, etp = job.spec.moe, job.layout.ep, job.layout.expert_tp
    if moe is None:
        yield from without_effect(job, ("parallel.ep", "parallel.etp"), "this model has no experts")
        return
    if moe.num_experts % ep:
        yield Problem(
            f"the model's {moe.num_experts} experts cannot be shared out over parallel.ep={ep}",
            f"choose parallel.ep among the divisors of {moe.num_experts}",
        )
    if moe.ffn_size % etp:
        yield Problem(
            f"parallel.etp={etp} does not divide the {moe.ffn_size} columns of an expert",
            f"choose parallel.etp among the divisors of {moe.ffn_size}",
        )


def _parallel(job: Job) -> Settings:
    return {"expert_model_parallel_size": job.layout.ep, "expert_tensor_parallel_size": job.layout.expert_tp}


def _dense_check(*names: str) -> tuple[str, ...]:
    return tuple(MOE + name for name in names)


def _dispatch_check(job: Job) -> Iterator[Problem]:
    if job.spec.moe is None:
        yield from without_effect(job, _dense_check("dispatcher", "grouped_gemm"), "this model has no experts")


def _balance_check(job: Job) -> Iterator[Problem]:
    moe, wanted = job.spec.moe, job.recipe.features.moe
    if moe is None:
        names = _dense_check("balancing", "aux_loss", "z_loss", "bias_rate")
        yield from without_effect(job, names, "this model has no experts")
        return
    for name in ("aux_loss", "z_loss", "bias_rate"):
        if (number := getattr(wanted, name)) is not None and number < 0:
            yield Problem(f"{MOE}{name} is {number}, expected 0 or more", f"set {MOE}{name}=0, or more")
    if wanted.balancing == "none":
        yield from without_effect(job, (MOE + "aux_loss",), f"{MOE}balancing is none")
    elif is_set(job, MOE + "balancing") and not _coefficient(job):
        yield Problem(
            f"{MOE}balancing = {wanted.balancing} has no effect: the coefficient of its loss is 0",
            f"set {MOE}aux_loss=0.001, or leave balancing out",
        )
    if not moe.score_bias:
        yield from without_effect(job, (MOE + "bias_rate",), "the model's router has no balancing bias")


def _coefficient(job: Job) -> float:
    assert job.spec.moe is not None
    wanted = job.recipe.features.moe.aux_loss
    return job.spec.moe.aux_loss_coef if wanted is None else wanted


def _balance(job: Job) -> Settings:
    wanted, moe = job.recipe.features.moe, job.spec.moe
    assert moe is not None
    settings = {
        "moe_router_load_balancing_type": BALANCING[wanted.balancing],
        "moe_aux_loss_coeff": 0.0 if wanted.balancing == "none" else _coefficient(job),
        "moe_z_loss_coeff": wanted.z_loss or None,
    }
    return settings | ({"moe_router_bias_update_rate": wanted.bias_rate} if moe.score_bias else {})


def _mtp_check(job: Job) -> Iterator[Problem]:
    if not job.spec.mtp_layers:
        yield from without_effect(job, ("features.mtp_loss",), "this model has no multi-token-prediction layers")
    if job.recipe.features.mtp_loss < 0:
        yield Problem(f"features.mtp_loss is {job.recipe.features.mtp_loss}, expected 0 or more", "leave features.mtp_loss out")


EXPERTS = (
    Feature(
        name="expert parallelism",
        fields=("parallel.ep", "parallel.etp"),
        active=_has_experts,
        check=_parallel_check,
        settings=_parallel,
    ),
    Feature(
        name="token dispatch",
        fields=(MOE + "dispatcher",),
        active=_has_experts,
        check=_dispatch_check,
        settings=lambda job: {"moe_token_dispatcher_type": job.recipe.features.moe.dispatcher},
    ),
    Feature(
        name="grouped GEMM",
        fields=(MOE + "grouped_gemm",),
        active=lambda job: _has_experts(job) and job.recipe.features.moe.grouped_gemm,
        settings=lambda job: {"moe_grouped_gemm": True},
    ),
    Feature(
        name="balancing of experts",
        fields=tuple(MOE + name for name in ("balancing", "aux_loss", "z_loss", "bias_rate")),
        active=_has_experts,
        check=_balance_check,
        settings=_balance,
    ),
    Feature(
        name="multi-token prediction",
        fields=("features.mtp_loss",),
        active=lambda job: job.spec.mtp_layers > 0,
        check=_mtp_check,
        settings=lambda job: {"mtp_loss_scaling_factor": job.recipe.features.mtp_loss},
    ),
)
