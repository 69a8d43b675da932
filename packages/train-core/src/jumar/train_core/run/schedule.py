"""The learning rate as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from jumar.train_core.recipe import Optim, Schedule


def learning_rate(step: int, steps: int, optim: Optim, schedule: Schedule) -> float:
    """The learning rate of optimizer step `step`, from 1 to `steps`.

    A linear warm-up from 0 reaches optim.lr at step warmup_steps; then the curve goes down to schedule.min_lr at decay_steps.
    wsd: https://arxiv.org/abs/2404.06395.
    """
    peak, low = optim.lr, schedule.min_lr
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    end = schedule.decay_steps or steps
    if schedule.kind == "constant":
        return peak
    if step >= end:
        return low
    if schedule.kind == "wsd":
        length = schedule.wsd_steps or 0
        return peak if step <= end - length else _fall(schedule.wsd_decay, (step - (end - length)) / length, peak, low)
    return _fall(schedule.kind, (step - schedule.warmup_steps) / (end - schedule.warmup_steps), peak, low)


def _fall(curve: str, done: float, peak: float, low: float) -> float:
    """From `peak` at done=0 to `low` at done=1."""
    if curve == "exponential":  # as in Megatron-LM
        share = 2 * 0.5**done - 1
    elif curve == "minus_sqrt":
        share = 1 - math.sqrt(done)
    elif curve == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * done))
    else:
        share = 1 - done
    return float(low + (peak - low) * share)
