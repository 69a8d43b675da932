"""How a token chooses its experts, by the traits of the model.

megatron-core's router ranks a group by the sum of its best experts and always normalises sigmoid scores; DeepSeek-V2 ranks a
group by its best one, and whether scores are normalised is a setting of each model.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.moe.moe_utils import (
    MoEAuxLossAutoScaler,
    compute_routing_scores_for_aux_loss,
    save_to_aux_losses_tracker,
    z_loss_func,
)
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from jumar.schema.spec import ModelSpec, Moe


def choose(logits: Tensor, moe: Moe, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """logits [tokens, experts] to weights [tokens, experts] (zero where not chosen) and the choice, bool of the same shape.

    https://arxiv.org/abs/2405.04434 (groups), https://arxiv.org/abs/2408.15664 (the bias, which only chooses).
    """
    scores = logits.float().softmax(-1) if moe.score == "softmax" else logits.float().sigmoid()
    ranks = scores if bias is None else scores + bias
    if moe.num_groups > 1:
        ranks = ranks.masked_fill(~_in_best_groups(ranks, moe), float("-inf"))
    chosen = ranks.topk(moe.top_k, dim=-1).indices
    weights = scores.gather(-1, chosen)
    if moe.norm_topk and moe.top_k > 1:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    weights = (weights * moe.scaling_factor).to(logits.dtype)
    here = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, chosen, True)
    return torch.zeros_like(logits).scatter(-1, chosen, weights), here


def _in_best_groups(ranks: Tensor, moe: Moe) -> Tensor:
    """Whether each expert is in one of the `topk_groups` best groups of its token."""
    groups = ranks.reshape(*ranks.shape[:-1], moe.num_groups, -1)
    score = groups.amax(-1) if moe.group_score == "max" else groups.topk(2, dim=-1).values.sum(-1)
    best = score.topk(moe.topk_groups, dim=-1).indices
    kept = torch.zeros_like(score, dtype=torch.bool).scatter(-1, best, True)
    return kept.unsqueeze(-1).expand_as(groups).flatten(-2)


class Router(TopKRouter):  # type: ignore[misc]  # megatron-core has no types
    """megatron-core's router (gating, the balancing losses, the bias and its counts) with our choice.

    Under the loss per token every gradient is divided by the loss's tokens in the global batch, so what routers add is multiplied
    by as many. megatron-core takes those of the rank: too few by tp * cp, and too many by those that the loss leaves out.
    """

    loss_tokens: float | Tensor = 1.0
    """Tokens of the loss in a micro batch, on the average over the global batch; set before every training pass."""

    def __init__(self, *args: Any, spec: ModelSpec, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert spec.moe is not None
        self.moe = spec.moe

    def attach_and_log_load_balancing_loss(
        self, activation: Tensor, aux_loss_coeff: float, aux_loss: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        if self.calculate_per_token_loss:
            kwargs["valid_token_count"] = Router.loss_tokens
        out: Tensor = super().attach_and_log_load_balancing_loss(activation, aux_loss_coeff, aux_loss, *args, **kwargs)
        return out

    def apply_z_loss(self, logits: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """https://arxiv.org/abs/2202.08906: the mean over tokens without padding, of all ranks that a sequence is cut over."""
        coefficient = self.config.moe_z_loss_coeff
        if not coefficient or not self.training or not torch.is_grad_enabled():
            return logits
        share = coefficient / self.tp_cp_group.size()
        if padding_mask is None:
            loss = z_loss_func(logits, share)
        else:
            valid = (~padding_mask).to(logits.dtype)
            tokens = valid.sum()
            torch.distributed.all_reduce(tokens, group=self.tp_cp_group)
            loss = coefficient * (logits.logsumexp(-1).square() * valid).sum() / tokens.clamp(min=1)
        out: Tensor = MoEAuxLossAutoScaler.apply(logits, loss * (Router.loss_tokens if self.calculate_per_token_loss else 1))
        layers = self.config.num_layers + (self.config.mtp_num_layers or 0)
        save_to_aux_losses_tracker("z_loss", loss / share, self.layer_number, layers)
        return out

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """logits [S, B, experts] to weights and choice, [S * B, experts]. padding_mask: bool [S, B]; it is not balanced."""
        seq, batch = logits.shape[:2]
        padding = None if padding_mask is None else padding_mask.flatten()
        logits = self.apply_z_loss(logits.flatten(0, 1), padding)
        probs, routing_map = choose(logits, self.moe, self.expert_bias)
        if self.training and torch.is_grad_enabled() and self.is_aux_loss_enabled():
            choice, scores = compute_routing_scores_for_aux_loss(logits, self.topk, self.score_function, padding_mask=padding)
            told = padding is not None
            probs = self._apply_aux_loss(probs, scores, choice, with_padding_mask=told)
            probs = self._apply_seq_aux_loss(probs, scores, choice, seq, batch, with_padding_mask=told)
        self._apply_expert_bias(routing_map if padding is None else routing_map & ~padding[:, None])
        return probs, routing_map
