"""Scores of all documents together (log-likelihoods over bytes, ...) in two runs, and the error of their difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jumar.schema.errors import ToolError

Pair = tuple[float, float]
"""Of one document: what is summed, and its weight (words, bytes, instructions)."""


@dataclass(frozen=True, slots=True)
class Pooled:
    """of: the score of a ratio of sums; slope: its derivative. A larger ratio is better, whatever the score."""

    of: Callable[[float], float]
    slope: Callable[[float], float]


def _perplexity(ratio: float) -> float:
    """Infinite where no number holds it: by words, of a language that has no spaces."""
    try:
        return math.exp(-ratio)
    except OverflowError:
        return math.inf


PERPLEXITY = Pooled(_perplexity, lambda ratio: -_perplexity(ratio))
BITS = Pooled(lambda ratio: -ratio / math.log(2), lambda ratio: -1 / math.log(2))
SHARE = Pooled(lambda ratio: ratio, lambda ratio: 1.0)
METRICS = {
    "word_perplexity": PERPLEXITY,
    "byte_perplexity": PERPLEXITY,
    "bits_per_byte": BITS,
    "inst_level_strict_acc": SHARE,
    "inst_level_loose_acc": SHARE,
}


OF_TEXTS = ("word_perplexity", "byte_perplexity", "bits_per_byte")


def pair_of(value: Sequence[float]) -> Pair:
    """A document's value in samples, ours or lm-eval's: [sum, weight], or a truth for each instruction; else ToolError (3)."""
    if isinstance(value, list) and all(isinstance(each, bool) for each in value):
        return float(sum(value)), float(len(value))
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(each, int | float) for each in value):
        raise ToolError(f"a sample's score is {value!r:.60}, expected [sum, weight]", hint="score it again")
    return float(value[0]), float(value[1])


def ratio(pairs: Sequence[Pair]) -> float:
    weight = math.fsum(w for _, w in pairs)
    return math.fsum(v for v, _ in pairs) / weight if weight else 0.0


def difference_stderr(metric: Pooled, first: Sequence[Pair], second: Sequence[Pair]) -> float | None:
    """Of the second score less the first, over the same documents; None of fewer than two.

    By linearisation (Cochran, Sampling Techniques, sec. 6.3 and 6.19): the variance of a ratio is that of what each document adds
    to it. With equal weights it is the standard error of the mean of differences.
    """
    count = len(first)
    if count < 2:
        return None
    parts = [b - a for a, b in zip(_added(metric, first), _added(metric, second), strict=True)]
    return math.sqrt(count / (count - 1)) * math.hypot(*parts)  # perplexities by words can be huge, and their squares none


def _added(metric: Pooled, pairs: Sequence[Pair]) -> list[float]:
    """How far each document moves the score."""
    whole, weight = ratio(pairs), math.fsum(w for _, w in pairs)
    return [metric.slope(whole) * (v - whole * w) / weight if weight else 0.0 for v, w in pairs]
