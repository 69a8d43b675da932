"""Each mend of megatron-core taken away again: the row named after it must then fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist

from train_worker import replaced

TRAPS: dict[str, Callable[[], AbstractContextManager[None]]] = {}


def trap(made: Callable[[], Iterator[None]]) -> Callable[[], AbstractContextManager[None]]:
    TRAPS[made.__name__] = contextmanager(made)
    return TRAPS[made.__name__]


@trap
def batched_sends() -> Iterator[None]:
    """The interleaved schedule with megatron-core's default of how stages send."""
    from jumar.train_core.model import config

    settings = config.settings

    def stock(job: Any) -> dict[str, Any]:
        return settings(job) | ({"overlap_p2p_comm": False, "batch_p2p_comm": True} if job.layout.vpp > 1 else {})

    with replaced(config, "settings", stock):
        yield


@trap
def rotary_key() -> Iterator[None]:
    """Latent attention without the sum of the shared rotary key's gradient (Megatron-LM 1699)."""
    from jumar.train_core.model import attention

    class Identity:
        @staticmethod
        def apply(x: torch.Tensor) -> torch.Tensor:
            return x

    with replaced(attention, "SumGradient", Identity):
        yield


@trap
def latent_norms() -> Iterator[None]:
    """Norms of latents summed over TP where each rank has the whole gradient."""
    from jumar.train_core.model import build

    make = build._chunk

    def unmarked(*args: Any) -> Any:
        model = make(*args)
        for parameter in model.parameters():
            if hasattr(parameter, "average_gradients_across_tp_domain"):
                del parameter.average_gradients_across_tp_domain
        return model

    with replaced(build, "_chunk", unmarked):
        yield


@trap
def stock_reduce() -> Iterator[None]:
    """megatron-core's all-reduce, which leaves out tensors that are not contiguous."""
    from megatron.core.tensor_parallel import mappings

    def stock(input_: torch.Tensor, group: Any) -> torch.Tensor:
        if group.size() == 1:
            return input_
        dist.all_reduce(input_.contiguous(), group=group)
        return input_

    with replaced(mappings, "_reduce", stock):
        yield


@trap
def shared_step() -> Iterator[None]:
    """torch's own AdamW, whose parameters share one step counter after megatron-core has loaded it."""
    from jumar.train_core.run import checkpoint, optimizer, optimizer_state

    take = checkpoint.take

    def sharing(trainee: Any, loaded: Any, updates: int) -> None:
        take(trainee, loaded, updates)
        step = torch.tensor(float(updates))
        for slot in optimizer_state.slots(trainee):
            slot.state["step"] = step

    with replaced(checkpoint, "take", sharing), replaced(optimizer, "use_device_adamw", lambda adam, ops: None):
        yield


@trap
def padded_rows() -> Iterator[None]:
    """Rows that pad the vocabulary take part in the softmax."""
    from jumar.train_core.model import build

    with replaced(build, "_without_padding", lambda real, module, inputs, out: out):
        yield


@trap
def router_tokens() -> Iterator[None]:
    """Routers' losses weighed by a rank's own tokens."""
    from megatron.core.transformer.moe.router import TopKRouter

    from jumar.train_core.model.router import Router

    balance = TopKRouter.attach_and_log_load_balancing_loss
    with (
        replaced(Router, "attach_and_log_load_balancing_loss", balance),
        replaced(Router, "apply_z_loss", TopKRouter.apply_z_loss),
    ):
        yield


@trap
def experts_unmarked() -> Iterator[None]:
    """Experts with their own TP taken for ordinary parameters where EP is 1."""
    from jumar.train_core.model import build

    with replaced(build, "_mark_experts", lambda model: None):
        yield


@trap
def world_is_cp() -> Iterator[None]:
    """Sequences cut over all ranks where only some belong to the context-parallel group."""
    from jumar.train_core.data import batch

    split = batch.split_for_cp

    def over_world(part: Any, rank: int, size: int) -> Any:
        return split(part, dist.get_rank(), dist.get_world_size())

    with replaced(batch, "split_for_cp", over_world):
        yield


@trap
def no_zigzag() -> Iterator[None]:
    """Sequences cut into as many pieces as there are ranks."""
    from jumar.train_core.data import batch

    def straight(part: Any, rank: int, size: int) -> Any:
        return {key: value.chunk(size, dim=1)[rank] for key, value in part.items()}

    with replaced(batch, "split_for_cp", straight):
        yield


@trap
def local_tokens() -> Iterator[None]:
    """A context-parallel rank's loss divided by the rank's own tokens."""
    from jumar.train_core.tasks import lm

    def stock(mask: torch.Tensor, losses: torch.Tensor) -> Any:
        total, count = (losses.float() * mask).sum(), mask.sum()
        return total / count.clamp(min=1), {"loss": torch.stack((total.detach(), count))}

    with replaced(lm, "loss_per_micro_batch", stock):
        yield


@trap
def all_decayed() -> Iterator[None]:
    """Weight decay of norms and biases too."""
    from jumar.train_core.run import loop

    update = loop.update

    def decaying(optimizer: Any, lr: float, weight_decay: float) -> Any:
        for group in optimizer.param_groups:
            group["wd_mult"] = 1.0
        return update(optimizer, lr, weight_decay)

    with replaced(loop, "update", decaying):
        yield


@trap
def unmasked_prediction() -> Iterator[None]:
    """Multi-token prediction that is not told the loss mask."""
    from megatron.core.models.gpt.gpt_model import GPTModel

    forward = GPTModel.forward

    def unmasked(self: Any, *args: Any, loss_mask: Any = None, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    with replaced(GPTModel, "forward", unmasked):
        yield


@trap
def own_predictions() -> Iterator[None]:
    """megatron-core's count of a micro batch's predictions: those of one context-parallel rank."""
    from megatron.core.models.gpt import gpt_model

    with replaced(gpt_model, "roll_tensor", gpt_model.roll_tensor.args[0]):
        yield


@trap
def bias_in_evaluation() -> Iterator[None]:
    """Evaluation with gradients enabled: the balancing bias counts its tokens."""
    from jumar.train_core.run import loop

    class Torch:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        no_grad = torch.enable_grad

    with replaced(loop, "torch", Torch()):
        yield
