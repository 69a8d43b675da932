"""DDP, the optimizer, and one step of it: gradients finished, their norm, clipping, the update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.optimizer import ChainedOptimizer, MegatronOptimizer
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig

from jumar.device import Ops
from jumar.train_core.features import ddp
from jumar.train_core.features import optimizer as optimizer_settings
from jumar.train_core.job import Job
from jumar.train_core.model.config import DTYPES


@dataclass(frozen=True, slots=True)
class Trainee:
    """What a step works on: the bare chunks, the same wrapped for data parallelism, and their optimizer."""

    config: TransformerConfig
    chunks: list[LanguageModule]
    model: list[DistributedDataParallel]
    optimizer: MegatronOptimizer


def wrap(job: Job, config: TransformerConfig, chunks: list[LanguageModule], ops: Ops) -> Trainee:
    """DDP and AdamW around model chunks, and the hooks that megatron-core's schedules look for in the configuration."""
    halves = [Float16Module(config, chunk) if config.bf16 or config.fp16 else chunk for chunk in chunks]
    settings = DistributedDataParallelConfig(grad_reduce_in_fp32=True, **ddp(job))
    model = [
        DistributedDataParallel(config=config, ddp_config=settings, module=half, disable_bucketing=i > 0)
        for i, half in enumerate(halves)
    ]
    for wrapped in model:
        wrapped.broadcast_params()
    optim = job.recipe.optim
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            adam_beta1=optim.beta1,
            adam_beta2=optim.beta2,
            adam_eps=optim.eps,
            clip_grad=optim.clip_grad,
            bf16=config.bf16,
            fp16=config.fp16,
            params_dtype=DTYPES[job.recipe.train.precision],
            loss_scale=optim.loss_scale,
            initial_loss_scale=optim.initial_loss_scale,
            **optimizer_settings(job),
        ),
        model,
    )
    for part in parts(optimizer):
        use_device_adamw(part.optimizer, ops)
        prime(part.optimizer)
    if config.fp16:  # megatron-core gives experts a scale of their own, and scales their loss by the other one
        for part in _every(optimizer):
            part.grad_scaler = _every(optimizer)[0].grad_scaler
    _hook(config, settings, model, optimizer)
    return Trainee(config, chunks, model, optimizer)


def _hook(config: Any, settings: Any, model: list[Any], optimizer: Any) -> None:
    def one_or_all(functions: list[Any]) -> Any:
        return functions[0] if len(functions) == 1 else functions

    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    if settings.overlap_grad_reduce:
        config.no_sync_func = one_or_all([chunk.no_sync for chunk in model])
        if len(model) > 1:
            config.grad_sync_func = [chunk.start_grad_sync for chunk in model]
    if settings.overlap_param_gather and len(model) > 1:
        config.param_sync_func = [chunk.start_param_sync for chunk in model]


def parts(optimizer: MegatronOptimizer) -> list[Any]:
    """The optimizers of a chain (dense parameters, experts), without those that have no parameters on this rank."""
    return [part for part in _every(optimizer) if part.optimizer is not None and not getattr(part, "is_stub_optimizer", False)]


def _every(optimizer: MegatronOptimizer) -> list[Any]:
    """Those as well: what is summed over ranks, they sum with the others."""
    return list(optimizer.chained_optimizers) if isinstance(optimizer, ChainedOptimizer) else [optimizer]


def use_device_adamw(adam: torch.optim.Optimizer, ops: Ops) -> None:
    """Makes torch's AdamW compute its step by the device's operation. Its state keeps torch's names.

    The number of the step is written anew for every parameter: after loading, megatron-core's states share one tensor, which
    torch's own step would count up once a parameter, in silence.
    """

    @torch.no_grad()
    def step(_closure: Any = None) -> None:
        for group in adam.param_groups:
            by_step: dict[int, list[torch.Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_step.setdefault(_start(adam.state[parameter], parameter), []).append(parameter)
            for count, params in by_step.items():
                states = [adam.state[parameter] for parameter in params]
                ops.adamw(
                    params,
                    [parameter.grad for parameter in params],  # type: ignore[misc]  # there are none without
                    [state["exp_avg"] for state in states],
                    [state["exp_avg_sq"] for state in states],
                    count + 1,
                    lr=group["lr"],
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    eps=group["eps"],
                    weight_decay=group["weight_decay"],
                )
                for state in states:
                    state["step"] = torch.tensor(float(count + 1))

    adam.step = step  # type: ignore[assignment, method-assign]


def _start(state: dict[str, Any], parameter: torch.Tensor) -> int:
    """How many steps a parameter has had; a new one gets its state."""
    if "exp_avg" not in state:
        state["step"] = torch.tensor(0.0)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
    return int(state["step"])


def prime(adam: torch.optim.Optimizer) -> None:
    """Gives every parameter its state: what is saved before the first update, or loaded, has a place."""
    for group in adam.param_groups:
        for parameter in group["params"]:
            _start(adam.state[parameter], parameter)


@dataclass(frozen=True, slots=True)
class Update:
    """What became of a step. grad_norm: before clipping; not finite: nothing was changed."""

    applied: bool
    grad_norm: float


@torch.no_grad()
def update(optimizer: MegatronOptimizer, lr: float, weight_decay: float) -> Update:
    """One optimizer step with gradients that are ready. Nothing changes if their norm is not finite, or fp16 overflowed."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_mult", 1.0)
        group["weight_decay"] = weight_decay * group.get("wd_mult", 1.0)  # megatron-core leaves this to its scheduler
    if _overflowed(optimizer):
        return Update(False, math.inf)
    norm = float(optimizer.get_grad_norm())
    if not math.isfinite(norm):
        return Update(False, norm)
    for part in parts(optimizer):
        parameters = part.get_parameters()
        if parameters and part.config.clip_grad > 0:
            clip_grad_by_total_norm_fp32(parameters, part.config.clip_grad, norm)
    return Update(bool(optimizer.step_with_ready_grads()), norm)


def _overflowed(optimizer: MegatronOptimizer) -> bool:
    """Brings gradients to where they are used. In fp16, whether one of them is not finite: then the scale goes down by itself."""
    scaler = getattr(_every(optimizer)[0], "grad_scaler", None)
    if scaler is None:
        return bool(optimizer.prepare_grads())
    found = False
    for part in _every(optimizer):
        if not part.is_stub_optimizer:
            part._copy_model_grads_to_main_grads()
        found |= part._unscale_main_grads_and_check_for_nan()
    scaler.update(found)  # once, after all of them were unscaled
    return found


def balancing(trainee: Trainee) -> list[torch.Tensor]:
    """The routers' balancing biases, which move when gradients are finished, before anyone knows whether the step counts."""
    found = [getattr(module, "expert_bias", None) for chunk in trainee.chunks for module in chunk.modules()]
    return [bias for bias in found if bias is not None]
