"""Conversations as samples: epoch after epoch in another order, padded to the longest that must have one length.

Sample numbers count over the whole run, so that where a run has got to is one number (data/batch.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm
from typing import Any

import numpy as np
import numpy.typing as npt

from jumar.train_core.data.conversations import IGNORED, Sample, outside
from jumar.train_core.data.pretrain import Datasets, same_everywhere
from jumar.train_core.data.together import all_ranks
from jumar.train_core.data.tuning_plan import Plan, Share, inputs, plan
from jumar.train_core.job import Job

Numbers = npt.NDArray[np.int64]
NOTHING = Sample(np.empty(0, np.int64), np.empty(0, np.int64), None)


class Order:
    """Which sequence each sample is.

    shares: of one part; seed: None: as they lie in the files; weighted: samples in all, where shares are drawn by weights
    """

    def __init__(self, shares: Sequence[Share], seed: int | None, weighted: int = 0) -> None:
        self.seed = seed
        self._sizes = np.array([len(share) for share in shares], np.int64)
        self._epochs: dict[tuple[int, int], Numbers] = {}
        self._drawn: tuple[Any, Numbers] | None = None
        if any(share.weight is not None for share in shares):
            self._drawn = _draw([share.weight or 0.0 for share in shares], weighted)

    def __len__(self) -> int:
        """Sequences of an epoch."""
        return int(self._sizes.sum())

    def __getitem__(self, sample: int) -> tuple[int, int]:
        """(share, sequence of it)."""
        if self._drawn is not None:
            share = int(self._drawn[0][sample])
            return share, self._at(share, int(self._drawn[1][sample]), int(self._sizes[share]))
        number = self._at(-1, sample, len(self))
        share = int(np.searchsorted(self._sizes.cumsum(), number, "right"))
        return share, number - int(self._sizes[:share].sum())

    def _at(self, share: int, sample: int, size: int) -> int:
        epoch, at = divmod(sample, size)
        if self.seed is None:
            return at
        if (share, epoch) not in self._epochs:
            if len(self._epochs) > 2 * len(self._sizes):
                self._epochs.clear()
            # RandomState: numpy promises that its numbers stay as they are (NEP 19)
            self._epochs[share, epoch] = np.random.RandomState([self.seed, share + 1, epoch]).permutation(size)
        return int(self._epochs[share, epoch][at])


def _draw(weights: Sequence[float], samples: int) -> tuple[Any, Numbers]:
    """For each sample its share, and which one of that share it is: at every moment as near to the weights as can be."""
    from megatron.core.datasets import helpers

    share, number = np.zeros(samples, np.int16), np.zeros(samples, np.int64)
    helpers.build_blending_indices(share, number, np.array(weights, np.float64), len(weights), samples, False)
    return share, number


class Tuning:
    """The samples of one part of a run, to be read a micro batch at once.

    shares:   what it draws from
    samples:  how many it has; those from `whole` on are empty: of an evaluation that ends in the midst of a global batch
    unit:     a padded length is a multiple of it, or seq_len
    seq_len:  of packed rows, and the longest
    together: all micro batches of a step have one length, for stages and experts of several ranks
    numbered: documents are given of single conversations too: experts must know what is padding
    """

    def __init__(
        self,
        shares: Sequence[Share],
        *,
        samples: int,
        whole: int | None = None,
        seed: int | None,
        unit: int,
        seq_len: int,
        together: bool,
        numbered: bool = False,
    ) -> None:
        self.shares, self.samples, self.unit, self.seq_len, self.together = shares, samples, unit, seq_len, together
        self.whole = samples if whole is None else whole
        self.packed = numbered or any(share.source.borders != "none" for share in shares)
        self.order = Order(shares, seed, samples)

    def __len__(self) -> int:
        return self.samples

    def micro_batch(self, numbers: Sequence[int], step: Sequence[int], vocab_size: int) -> dict[str, npt.NDArray[Any]]:
        """The samples of these numbers; `step`: those of the global batch that they are of.

        tokens, labels, position_ids int64 and loss_mask float32, each [b, s]; tokens_here int64 [b], without padding; of packed
        rows documents int64 [b, s]. Raises ToolError for a token id that the model does not have.
        """
        samples = [self._sample(number, vocab_size) for number in numbers]
        longest = max(self._length(number) for number in (step if self.together else numbers))
        width = min(-(-max(longest, 1) // self.unit) * self.unit, self.seq_len)
        shape = len(numbers), width
        tokens, labels = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
        documents = np.zeros(shape, np.int64)
        for row, sample in enumerate(samples):
            size = len(sample.tokens)
            tokens[row, :size], labels[row, :size] = sample.tokens, sample.targets
            documents[row, :size] = 1 if sample.documents is None else sample.documents
        mask = labels != IGNORED
        batch: dict[str, npt.NDArray[Any]] = {
            "tokens": tokens,
            "labels": np.where(mask, labels, 0),
            "loss_mask": mask.astype(np.float32),
            "position_ids": np.broadcast_to(np.arange(width), shape).copy(),
            "tokens_here": np.count_nonzero(documents, axis=1),
        }
        return batch | ({"documents": documents} if self.packed else {})

    def _length(self, number: int) -> int:
        if number >= self.whole:
            return 0
        share, at = self.order[number]
        return int(self.shares[share].source.lengths[self.shares[share].first + at])

    def _sample(self, number: int, vocab_size: int) -> Sample:
        if number >= self.whole:
            return NOTHING
        at, sequence = self.order[number]
        share = self.shares[at]
        sample = share.source[share.first + sequence]
        for key, ids in (("input_ids", sample.tokens), ("labels", sample.targets[sample.targets != IGNORED])):
            if len(bad := ids[(ids < 0) | (ids >= vocab_size)]):
                raise outside(share.source.prefix, key, int(bad[0]), share.first + sequence, vocab_size)
        return sample


def unit_of(job: Job) -> int:
    """What a padded length is a multiple of: the recipe's wish, and what the layout cuts it into."""
    layout, cut = job.layout, 1
    if layout.cp > 1:
        cut = 2 * layout.cp
    if job.sequence_parallel:
        cut = lcm(cut, layout.cp * layout.tp)
    return lcm(cut, job.recipe.data.pad_to_multiple_of)


def evaluated(job: Job, shares: Sequence[Share]) -> int:
    """Samples of one evaluation: all that there are, or as many as the recipe asks for at most."""
    train = job.recipe.train
    return min(sum(map(len, shares)), train.eval_batches * train.global_batch_size)


def datasets(job: Job) -> Datasets:
    """The datasets of a job. Collective, where torch.distributed is initialised: all ranks call it and raise the same fault.

    Nothing is written: what is kept of an order is one epoch's numbers. Raises ToolError: no such data, or other data on
    another node.
    """
    with all_ranks() as ranks:
        found: list[Plan] = []

        def look() -> tuple[str, tuple[dict[str, Any], ...]]:
            found.append(plan(job))
            shares = [share for part in found[0].values() for share in part]
            seen = [(str(share.source.prefix.absolute()), share.first, share.last) for share in shares]
            return str(seen), inputs(found[0])

        everyone = ranks.gather(look)
        same_everywhere(everyone)
    parts = {kind: _part(job, kind, shares) for kind, shares in found[0].items()}
    return Datasets(parts["train"], parts.get("valid"), parts.get("test"), everyone[0][1])


def _part(job: Job, kind: str, shares: Sequence[Share]) -> Tuning:
    recipe = job.recipe
    settings: dict[str, Any] = {
        "unit": unit_of(job),
        "seq_len": recipe.data.seq_len,
        "together": job.layout.pp > 1 or job.layout.ep > 1,
        "numbered": job.spec.moe is not None,
    }
    batch = recipe.train.global_batch_size
    if kind == "train":
        seed = recipe.train.seed if recipe.data.shuffle else None
        return Tuning(shares, samples=recipe.train.steps * batch, seed=seed, **settings)
    whole = evaluated(job, shares)
    return Tuning(shares, samples=-(-whole // batch) * batch, whole=whole, seed=None, **settings)
