"""Optimizer state out of a checkpoint, whatever optimizer and layout wrote it.

Every optimizer of megatron-core saves `optimizer.state.exp_avg.NAME` in the shape of the parameter. Of the float32 weights the
distributed one says `param`, the others `fp32_param`, and nothing where parameters are float32 themselves. What each of them
reads back is its own form alone; so here it is read by us.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from jumar.train_core.run.optimizer import Trainee, parts

PREFIX = "optimizer.state."
MAIN = ("fp32_param", "param")
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Slot:
    """State of one parameter on this rank.

    main: its float32 weights; None where it is float32 itself
    part: what of the flat parameter the state is for
    """

    parameter: Tensor
    main: Tensor | None
    state: dict[str, Tensor]
    part: slice

    def targets(self) -> dict[str, Tensor]:
        found = {name: self.state[name] for name in MOMENTS}
        return found if self.main is None else {**found, MAIN[0]: self.main}


def slots(trainee: Trainee) -> Iterator[Slot]:
    """All that this rank keeps state for. Needs `prime`."""
    whole = slice(None)
    for part in parts(trainee.optimizer):
        adam = part.optimizer
        if isinstance(part, DistributedOptimizer):
            for parameter, (group, order) in part.model_param_group_index_map.items():
                main = adam.param_groups[group]["params"][order]
                here = part._get_model_param_range_map(parameter)["param"]
                own = None if parameter.dtype == torch.float32 else main
                yield Slot(parameter, own, adam.state[main], slice(here.start, here.end))
            continue
        halves = zip(getattr(part, "float16_groups", ()), getattr(part, "fp32_from_float16_groups", ()), strict=True)
        mains = {id(main): half for group in halves for half, main in zip(*group, strict=True)}
        for group in adam.param_groups:
            for main in group["params"]:
                half = mains.get(id(main))
                yield Slot(main if half is None else half, None if half is None else main, adam.state[main], whole)


def wanted(trainee: Trainee, model: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """What to ask a checkpoint for. model: the chunks' sharded state; names: the tensors that are there."""
    main = next((name for name in MAIN if any(key.startswith(f"{PREFIX}{name}.") for key in names)), None)
    sharded = {id(each.data): each for each in nested_values(extract_sharded_tensors_and_factories(model)[0])}
    asked: dict[str, Any] = {}
    for number, slot in enumerate(slots(trainee)):
        place = sharded[id(slot.parameter)]
        for name in slot.targets():
            key = f"{PREFIX}{main if name == MAIN[0] else name}.{place.key}"
            new: dict[str, Any] = {"key": key, "data": torch.empty_like(slot.parameter, dtype=torch.float32)}
            if isinstance(place, ShardedTensor):
                new["dtype"] = torch.float32
            asked[f"{number} {name}"] = replace(place, **new)
    return asked


@torch.no_grad()
def take(trainee: Trainee, loaded: dict[str, Tensor], updates: int) -> None:
    """Puts what `wanted` asked for into its place. updates: steps that were taken."""
    for number, slot in enumerate(slots(trainee)):
        for name, target in slot.targets().items():
            target.copy_(loaded[f"{number} {name}"].flatten()[slot.part].view_as(target))
        slot.state["step"] = torch.tensor(float(updates))


def updates(trainee: Trainee) -> int:
    """Steps that the optimizer has taken: those that were skipped do not count."""
    return next((int(slot.state["step"]) for slot in slots(trainee)), 0)
