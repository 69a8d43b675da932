"""What of a layout does not fit models with state-space layers."""

from __future__ import annotations

from collections.abc import Iterator

from jumar.schema.spec import Ssm
from jumar.train_core.features.base import Problem
from jumar.train_core.job import Job


def check_ssm(job: Job) -> Iterator[Problem]:
    """Nothing for a model without such layers."""
    spec, layout, ssm = job.spec, job.layout, job.spec.ssm
    if ssm is None:
        return
    yield from _check_sizes(ssm, layout.tp, layout.cp)
    if layout.vpp > 1:
        yield Problem(
            f"parallel.vpp={layout.vpp}: megatron-core has no interleaved pipeline for models with state-space layers",
            "leave parallel.vpp out",
        )
    if spec.pattern and layout.noop_layers:
        yield Problem(
            f"parallel.noop_layers {list(layout.noop_layers)}: "
            f"the pattern {spec.pattern!r:.60} has a letter for each layer, and none for these",
            "leave parallel.noop_layers out; parallel.layers_per_stage shares layers out unevenly",
        )
    if not spec.pattern and spec.activation != "silu":
        yield Problem(
            f"the activation of the convolution is {spec.activation}, the operations have silu",
            "does config.json belong to these weights (hidden_act)?",
        )


def _check_sizes(ssm: Ssm, tp: int, cp: int) -> Iterator[Problem]:
    """Heads and groups over TP; then over CP, which exchanges tokens for heads."""
    for what, count in (("state-space heads", ssm.num_heads), ("groups of state-space heads", ssm.num_groups)):
        if count % tp:
            yield Problem(
                f"parallel.tp={tp} does not divide the model's {count} {what}",
                f"choose parallel.tp among the divisors of {count}",
            )
    if ssm.proj_bias and tp > 1:
        yield Problem(
            f"parallel.tp={tp}: a bias of the state-space layers' projections (use_bias) is trained at tp=1 only, as checkpoints "
            "do not save it piece by piece",
            "set parallel.tp=1, and parallel.pp, parallel.cp or more data-parallel ranks instead",
        )
    if ssm.num_heads % tp or ssm.num_groups % tp or cp == 1:
        return
    heads, groups = ssm.num_heads // tp, ssm.num_groups // tp
    whose = f" of a rank at tp={tp}" if tp > 1 else ""
    if heads % cp:
        yield Problem(
            f"parallel.cp={cp} does not divide the {heads} state-space heads{whose}, for which it exchanges tokens",
            f"choose parallel.cp among the divisors of {heads}",
        )
    elif groups % cp and cp % groups:
        yield Problem(
            f"parallel.cp={cp} and {groups} groups of state-space heads{whose}: neither divides the other",
            f"choose parallel.cp among the divisors of {groups}, or a multiple of it that divides {heads}",
        )
