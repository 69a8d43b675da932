"""Losses that are computed inside layers, for the log: those of routers, and of multi-token prediction."""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_utils import clear_aux_losses_tracker, get_moe_layer_wise_logging_tracker
from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

from jumar.train_core.job import Job

BALANCING = {
    "micro_batch": "load_balancing_loss",
    "sequence": "seq_load_balancing_loss",
}


def inner_losses(job: Job, where: torch.device) -> dict[str, float]:
    """Means over layers and micro batches, without their coefficients. Every rank calls it; megatron-core's books are cleared."""
    found: dict[str, float] = {}
    layout, moe = job.layout, job.recipe.features.moe
    tracked = get_moe_layer_wise_logging_tracker()
    names = []
    if job.spec.moe is not None:
        kind = BALANCING.get(moe.balancing)
        names = [(kind, layout.dp)] if kind else []
        names += [("z_loss", layout.dp * layout.tp * layout.cp)] if moe.z_loss else []
    layers = sum(job.spec.is_moe_layer(i) for i in range(job.spec.num_layers + job.spec.mtp_layers))
    for name, ranks in names if layers else ():
        mine = tracked[name]["values"].sum() if name in tracked else torch.zeros((), device=where)
        found[name] = _everywhere(mine, where) / (ranks * layers * job.micro_batches)
    clear_aux_losses_tracker()
    if job.spec.mtp_layers:
        values = MTPLossLoggingHelper.tracker.get("values")
        mine = values.nan_to_num().mean() if values is not None else torch.zeros((), device=where)
        found["mtp_loss"] = _everywhere(mine, where) / (layout.dp * layout.tp * layout.cp * job.micro_batches)
        if values is not None:  # stages before the last have none
            MTPLossLoggingHelper.clean_loss_in_tracker()
    return found


def _everywhere(mine: torch.Tensor, where: torch.device) -> float:
    total = mine.detach().float().to(where).reshape(1).clone()
    dist.all_reduce(total)
    return total.item()
