"""What a training run needs beside the weights to go on: optimizer state and counters of a `torch_dist` checkpoint.

megatron-core saves the state of each parameter under the parameter's own name and shape (`optimizer.state.exp_avg.NAME`) if the
optimizer is not distributed, or is with `fully_reshardable`. Then it can be cut anew like the weights. Its other ways
(`dp_reshardable`, `fully_sharded_model_space`) are flat pieces of buffers, whose meaning depends on the run that saved them.
Source: megatron/core/optimizer/{optimizer,distrib_optimizer}.py, dist_checkpointing/optimizer.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jumar.ckpt_convert.plan import SourceBox
from jumar.ckpt_convert.tensors import TensorRef

PREFIX = "optimizer.state."
STATE = re.compile(r"(?:chained_\d+\.)?optimizer\.state\.([a-z][a-z0-9_]*)\.(.+)")
OTHERS = re.compile(r"(chained_\d+\.)?(optimizer\b|rng_state\b|rerun_state_machine|opt_param_scheduler).*")
FLAT = re.compile(r"(chained_\d+\.)?optimizer\.distributed\..*")
OWN = frozenset({"args", "iteration", "checkpoint_version", "content_metadata", "rng_state", "rerun_state_machine"})
COPIES = ("fp32_param", "param", "master_param")
"""States that are a parameter's fp32 copy."""
LAYOUT_BOUND = "save it once more with --dist-ckpt-optim-fully-reshardable, or without --use-distributed-optimizer"


@dataclass(frozen=True, slots=True)
class TrainingState:
    """The state that can be carried to another layout, and what there is besides.

    kinds:   name of a state ("exp_avg", "fp32_param") -> HF tensor -> where its boxes lie
    common:  plain values of `common.pt`: parameter groups, schedule, counters
    facts:   plain values of its `content_metadata`
    bare:    parameters that have no state at all: frozen ones
    refused: why the optimizer state that is there cannot be carried; None if it can, or if there is none
    rng:     whether there is RNG state, which belongs to ranks and is never carried
    """

    kinds: Mapping[str, Mapping[str, list[SourceBox]]] = field(default_factory=dict)
    common: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    bare: tuple[str, ...] = ()
    refused: str | None = None
    rng: bool = False

    @property
    def files(self) -> list[Path]:
        """Every file that holds state, once."""
        boxes = (box for kind in self.kinds.values() for found in kind.values() for box in found)
        return list(dict.fromkeys(box.file for box in boxes))

    @property
    def there(self) -> bool:
        return bool(self.kinds) or self.refused is not None

    def notes(self, carried: bool) -> list[str]:
        """What a user should know before a conversion. carried: whether the target takes the optimizer state."""
        said = []
        if self.refused:
            said.append(f"the optimizer state is not carried: {self.refused}")
        elif self.kinds and not carried:
            said.append(
                "the optimizer state is not carried: of Megatron's formats only torch_dist takes it (--format torch_dist)"
            )
        if self.bare and carried:
            some = ", ".join(self.bare[:4]) + (" ..." if len(self.bare) > 4 else "")
            said.append(f"{len(self.bare)} tensors of the model have no optimizer state (were they frozen?): {some}")
        if self.rng and carried and self.kinds:
            said.append("RNG state is not carried: it belongs to the ranks of the run that saved it")
        return said


def names_by_kind(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Kind of state -> name of the model's tensor -> name of the state's tensor."""
    kinds: dict[str, dict[str, str]] = {}
    for name in names:
        if match := STATE.fullmatch(name):
            kinds.setdefault(match[1], {})[match[2]] = name
    return kinds


def lacking(kinds: Mapping[str, Mapping[str, str]]) -> str | None:
    """A parameter that has one of Adam's moments and not the other. fp32 parameters have no fp32 copy."""
    moments = {kind: names.keys() for kind, names in kinds.items() if kind not in COPIES}
    every = set().union(*moments.values())
    for kind, names in moments.items():
        if missing := sorted(every - names):
            return f"{missing[0]} has no {kind}"
    stray = sorted({name for kind, names in kinds.items() if kind in COPIES for name in names} - every) if every else []
    return f"{stray[0]} has an fp32 copy and no moments" if stray else None


def carried_common(common: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The plain values of `common.pt` that a target takes over; and the names of those that are not plain."""
    offered = {name: value for name, value in common.items() if name not in OWN and not str(name).startswith("model")}
    return {n: v for n, v in offered.items() if is_plain(v)}, [str(n) for n, v in offered.items() if not is_plain(v)]


def is_plain(value: Any) -> bool:
    """Whether a value is made of plain Python values and tensors."""
    if isinstance(value, dict):
        return all(is_plain(key) and is_plain(item) for key, item in value.items())
    if type(value) in (list, tuple):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, TensorRef)
