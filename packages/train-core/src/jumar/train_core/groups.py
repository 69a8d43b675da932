"""Which ranks do what together: megatron-core's order, tensor parallelism fastest and pipeline stages slowest."""

from __future__ import annotations

from itertools import product

from jumar.train_core.job import Job

Groups = list[list[int]]


def rank_groups(job: Job) -> dict[str, Groups]:
    """The groups of each kind that has more than one rank in it.

    Outside experts ranks are numbered tp, cp, dp, pp (first fastest); experts number the same ranks etp, ep, dp, pp.
    """
    layout = job.layout
    dense = {"tp": layout.tp, "cp": layout.cp, "dp": layout.dp, "pp": layout.pp}
    found = {name: groups(dense, name) for name in dense}
    if job.spec.moe is not None:
        experts = {"etp": layout.expert_tp, "ep": layout.ep, "expert dp": job.expert_dp, "pp": layout.pp}
        found |= {name: groups(experts, name) for name in ("etp", "ep", "expert dp")}
    return {name: made for name, made in found.items() if len(made[0]) > 1}


def groups(sizes: dict[str, int], name: str) -> Groups:
    """The ranks that differ in their `name` coordinate alone. sizes: of each coordinate, the fastest first."""
    strides, step = {}, 1
    for coordinate, size in sizes.items():
        strides[coordinate], step = step, step * size
    others = [[i * strides[c] for i in range(size)] for c, size in reversed(sizes.items()) if c != name]
    bases = [sum(offsets) for offsets in product(*others)]
    return [[base + i * strides[name] for i in range(sizes[name])] for base in bases]
