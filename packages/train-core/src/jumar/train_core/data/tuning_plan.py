"""What a recipe's `data` section names for tuning: which conversations train, which are held out. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from pathlib import Path
from typing import Any

from jumar.schema.errors import Exit, ToolError
from jumar.train_core.data.blends import PARTS, identified, split_shares, weights_of
from jumar.train_core.data.conversations import Conversations, open_conversations
from jumar.train_core.data.end import eod_id
from jumar.train_core.job import Job
from jumar.train_core.recipe import Data, Recipe, Source


@dataclass(frozen=True, slots=True)
class Share:
    """Sequences first to last of a dataset. weight: of the part's samples, those that come from here; None: by their number."""

    source: Conversations
    first: int
    last: int
    weight: float | None = None

    def __len__(self) -> int:
        return self.last - self.first


Plan = dict[str, tuple[Share, ...]]
"""Of "train", "valid" and "test" those that there are."""


def plan(job: Job) -> Plan:
    """Opens the data files of a job. Raises ToolError naming the recipe's field."""
    shares = plan_of(job.recipe.data)
    by_eos = any(share.source.borders == "eos" for part in shares.values() for share in part)
    end = eod_id(job, "packed rows whose borders are EOS tokens") if by_eos else None
    return {
        kind: tuple(replace(share, source=replace(share.source, eos_id=end)) if by_eos else share for share in part)
        for kind, part in shares.items()
    }


def plan_of(data: Data) -> Plan:
    if data.train is None:
        hint = "set data.train to the prefix that jumar-data sft was given"
        raise ToolError("the recipe names no data", hint=hint, code=Exit.USAGE)
    if data.split is None:
        named = {"train": data.train, "valid": data.valid, "test": data.test}
        return {kind: _whole(data, kind, given) for kind, given in named.items() if given}
    if data.valid is not None or data.test is not None:
        text = "data.split cuts validation and test data out of data.train, and the recipe also names data.valid or data.test"
        raise ToolError(text, hint="leave out one of the two", code=Exit.USAGE)
    shares, whole, found = split_shares(data.split), _whole(data, "train", data.train), {}
    begin = 0.0
    for kind, share in zip(PARTS, shares, strict=True):
        end = begin + share / sum(shares)
        cut = tuple(replace(each, first=round(begin * len(each)), last=round(end * len(each))) for each in whole)
        begin = end
        if share:
            if not sum(map(len, cut)):
                hint = "give it a larger share, or data of its own"
                raise ToolError(f"data.split gives {kind} none of the {sum(map(len, whole))} sequences", hint=hint)
            found[kind] = tuple(each for each in cut if len(each))
    return found


def _whole(data: Data, kind: str, given: Path | tuple[Source, ...]) -> tuple[Share, ...]:
    sources = (Source(prefix=given),) if isinstance(given, Path) else given
    if not sources:
        raise ToolError(f"data.{kind} is an empty list", hint="give a prefix, or a list of {prefix, weight}", code=Exit.USAGE)
    opened = [open_conversations(f"data.{kind}", source.prefix, data.borders) for source in sources]
    weights: Sequence[float | None] = [source.weight for source in sources]
    if any(weight is not None for weight in weights):
        weights = weights_of(weights, [len(each) for each in opened], kind)
    return tuple(Share(each, 0, len(each), weight) for each, weight in zip(opened, weights, strict=True))


def inputs(planned: Plan) -> tuple[dict[str, Any], ...]:
    """The files of a plan, identified as manifests have it."""
    return identified(reader for part in planned.values() for share in part for reader in share.source.keys.values())


def with_steps(recipe: Recipe) -> Recipe:
    """train.steps from train.epochs: as many as give every training sequence that often, the last step perhaps from the next one.

    Raises ToolError where the data cannot be opened, or is drawn by weights, which have no epochs.
    """
    epochs, batch = recipe.train.epochs, recipe.train.global_batch_size
    if epochs is None:
        return recipe
    if not 0 < epochs < inf or batch < 1:
        raise ToolError(f"train.epochs is {epochs:g}, expected more than 0", hint="set train.epochs=1", code=Exit.USAGE)
    if recipe.train.steps != type(recipe.train)().steps:
        hint = "leave one out of the recipe, or set one: --set train.epochs=2 takes train.steps out"
        raise ToolError("train.epochs and train.steps both say how long to train", hint=hint, code=Exit.USAGE)
    train = plan_of(recipe.data)["train"]
    if any(share.weight is not None for share in train):
        raise ToolError("train.epochs: data drawn by weights has none", hint="set train.steps, or leave the weights out")
    steps = max(1, ceil(epochs * sum(map(len, train)) / batch))
    return replace(recipe, train=replace(recipe.train, steps=steps))
