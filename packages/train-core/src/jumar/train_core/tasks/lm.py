"""Language modelling: the forward step and the loss of pretraining."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

Batch = dict[str, Any]
"""tokens, labels, position_ids int64 and loss_mask float32, each [micro batch, tokens of this context-parallel rank]; of packed
rows `packed`, which is all that a stage between the first and the last gets."""


def forward_step(per_token: bool) -> Callable[[Iterator[Batch], Any], tuple[Tensor, Callable[[Tensor], Any]]]:
    """The forward step that megatron-core's schedules call, for the loss per token or per micro batch."""

    def step(batches: Iterator[Batch], model: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
        batch = next(batches)
        about = batch.get("packed")
        if "tokens" not in batch:
            return model(None, None, None, packed_seq_params=about), _no_loss
        out = model(
            batch["tokens"],
            batch["position_ids"],
            None,
            labels=batch["labels"],
            loss_mask=batch["loss_mask"].clone(),
            packed_seq_params=about,
        )
        return out, partial(loss_per_token if per_token else loss_per_micro_batch, batch["loss_mask"])

    return step


def _no_loss(_out: Tensor) -> Any:
    raise AssertionError("a stage without labels was asked for a loss")


def loss_per_token(mask: Tensor, losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The sum of the losses of this rank's tokens and their number; megatron-core divides by that of the global batch."""
    total = (losses.float() * mask).sum()
    count = mask.sum()
    return total, count.to(torch.int), {"loss": torch.stack((total.detach(), count))}


def loss_per_micro_batch(mask: Tensor, losses: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean over the micro batch's tokens on all context-parallel ranks.

    megatron-core's own divides by the tokens of one of them: with a loss mask its gradient is 4 % off.
    """
    total = (losses.float() * mask).sum()
    count = mask.sum()
    everywhere = count.clone()
    group = parallel_state.get_context_parallel_group()
    if group.size() > 1:
        dist.all_reduce(everywhere, group=group)
    return total / everywhere.clamp(min=1), {"loss": torch.stack((total.detach(), count))}
