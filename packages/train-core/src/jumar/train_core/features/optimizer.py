"""Features of data parallelism: the distributed optimizer, and communication that goes on beside computation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from jumar.train_core.features.base import Feature, Problem, Settings
from jumar.train_core.job import Job


def _spread(job: Job) -> bool:
    """Whether several ranks hold the same parameters. Where none do, the distributed optimizer copies every one thrice a step."""
    return job.layout.dp * job.layout.cp > 1 or (job.spec.moe is not None and job.expert_dp > 1)


def _alone(field: str) -> Callable[[Job], Iterable[Problem]]:
    """One warning where there is no other rank to overlap with: a recipe for many ranks is tried on one first."""

    def check(job: Job) -> Iterator[Problem]:
        if getattr(job.recipe.features, field) and not _spread(job):
            yield Problem(f"features.{field} has no effect: dp x cp is 1", f"leave features.{field} out", warning=True)

    return check


def _both(job: Job) -> Settings:
    return {"use_distributed_optimizer": True}


OPTIMIZER = (
    Feature(
        name="distributed optimizer",
        fields=("features.distributed_optimizer",),
        active=lambda job: job.recipe.features.distributed_optimizer and _spread(job),
        ddp=_both,
        optimizer=_both,
    ),
    Feature(
        name="overlapped gradient reduction",
        fields=("features.overlap_grad_reduce",),
        active=lambda job: job.recipe.features.overlap_grad_reduce and _spread(job),
        check=_alone("overlap_grad_reduce"),
        ddp=lambda job: {"overlap_grad_reduce": True},
    ),
    Feature(
        name="overlapped parameter gathering",
        fields=("features.overlap_param_gather",),
        active=lambda job: job.recipe.features.overlap_param_gather and _spread(job),
        needs=("distributed optimizer", "overlapped gradient reduction"),
        check=_alone("overlap_param_gather"),
        ddp=lambda job: {"overlap_param_gather": True},
        optimizer=lambda job: {"overlap_param_gather": True},
    ),
)
