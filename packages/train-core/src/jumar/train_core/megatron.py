"""What megatron-core 0.16 needs mended, on each device. `mend` is called once, by main, before a model is built.

Three kinds: what is wrong or missing everywhere, what makes it run where there is no CUDA, and the one place where a device's
operations are reached through no module of ours. Each item says what happens without it; tests/parity holds a run for each that
would be wrong.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._device import _device_constructors

from jumar.device import Ops


def mend(device: str, ops: Ops) -> None:
    """Patches this process for the type of its torch.device, "cpu", "cuda" or "npu", and its operations. Again: for others.

    On an NPU the device package has already mapped torch.cuda to torch.npu (torch_npu.contrib.transfer_to_npu).
    """
    if device not in _DONE:
        _DONE.add(device)
        if device == "cpu":
            _cuda_is_the_cpu()
            _gloo_like_nccl()
        warnings.filterwarnings(
            "ignore", module=r"megatron\.core"
        )  # that apex and TransformerEngine are not there, a dozen times
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
        _without_triton()
        if device != "cuda":
            _without_compiler()
            _tensor_types()
        _megatron(device)
    _permute_by(ops)


_DONE: set[str] = set()


def _without_triton() -> None:
    """mamba_mixer imports inference kernels written in triton, which only CUDA has: ModuleNotFoundError."""
    name = "megatron.core.inference.contexts.attention_context.triton.tensor_ops"
    try:
        import triton  # noqa: F401
    except ImportError:
        stand_in: Any = types.ModuleType(name)
        stand_in.tensor_get_slice_after = stand_in.tensor_masked_update = stand_in.tensor_merge = None
        sys.modules.setdefault(name, stand_in)


def _without_compiler() -> None:
    """Its jit_fuser is torch.compile: twenty seconds for one forward, and more modules to import than the rest of it has."""
    name = "megatron.core.jit"
    if name in sys.modules:  # and so have its decorators been
        torch.compiler.set_stance("force_eager")
        return
    stand_in: Any = types.ModuleType(name)
    stand_in.jit_fuser = stand_in.noop_decorator = lambda function: function
    stand_in.enable_jit_fuser = stand_in.disable_jit_fuser = lambda: None
    sys.modules[name] = stand_in


def _megatron(device: str) -> None:
    from megatron.core import tensor_parallel
    from megatron.core.models.gpt import gpt_model
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
    from megatron.core.tensor_parallel import cross_entropy, mappings, random
    from megatron.core.transformer import multi_latent_attention, multi_token_prediction
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    mappings._reduce = _reduce
    if not isinstance(stock_roll := multi_token_prediction.roll_tensor, functools.partial):
        gpt_model.roll_tensor = multi_token_prediction.roll_tensor = functools.partial(_roll, stock_roll)
    cross_entropy.VocabParallelCrossEntropy.calculate_logits_max = staticmethod(_logits_max)
    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None  # never bound without TransformerEngine: NameError in every router
    if not isinstance(multi_latent_attention.TELinear, type):
        multi_latent_attention.HAVE_TE = False  # true in error, TELinear being a stand-in: TypeError in isinstance
    if not random.HAVE_TE:
        _checkpoint_without_fp8(random)
    _adam_steps(DistributedOptimizer)
    if device == "cpu":
        random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)
        random._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: torch.get_rng_state()
        token_dispatcher.maybe_move_tensor_to_cpu = _splits_on_cpu  # the stock one asks is_cuda, and all_to_all needs a list
    if device == "npu":
        # The stock one goes through torch.cuda's own queue of calls and list of generators, which torch-npu does not map as such.
        random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.cuda.set_rng_state(state)
    for noisy in ("transformer_layer",):  # "Unknown MLP type", of ours
        logging.getLogger(f"megatron.core.transformer.{noisy}").setLevel(logging.ERROR)
    if device == "cpu":
        # There is one generator, so what it warns of ("CPU RNG state changed within GPU RNG context") is as it should be.
        logging.getLogger(tensor_parallel.random.__name__).setLevel(logging.ERROR)


def _reduce(input_: Tensor, group: Any) -> Tensor:
    """All-reduce. The stock one returns a tensor that is not contiguous as it came, unreduced, without a word."""
    assert group is not None
    if group.size() == 1:
        return input_
    whole = input_.contiguous()
    dist.all_reduce(whole, group=group)
    return whole


def _roll(
    stock: Callable[..., tuple[Tensor, Tensor]],
    tensor: Tensor,
    *,
    cp_group: Any = None,
    packed_seq_params: Any = None,
    **settings: Any,
) -> tuple[Tensor, Tensor]:
    """Labels, or the mask of the loss, moved on by one for multi-token prediction; and, of a mask, its tokens.

    The stock one counts those of one CP rank alone, by which the loss per micro batch is then divided; and by 0, which makes
    every gradient NaN, where no token of a micro batch is trained. In packed rows (of one row only, as the stock one has them)
    what comes from the next document is not trained.
    """
    rolled, count = stock(tensor, cp_group=cp_group, **settings)
    if not tensor.is_floating_point():
        return rolled, count
    if packed_seq_params is not None:
        rolled = rolled.masked_fill(packed_seq_params.last, 0.0)
        count = rolled.sum()
    if cp_group is not None and cp_group.size() > 1:
        count = count.clone()
        dist.all_reduce(count, group=cp_group)
        count = count / cp_group.size()  # losses of the ranks are added up
    return rolled, count.clamp(min=1.0 / (cp_group.size() if cp_group is not None else 1))


def _logits_max(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits in float32 and the greatest of each token. The stock one also looks for its place: seven times as long."""
    logits = logits.float()
    return logits, logits.amax(-1)


def _splits_on_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def _checkpoint_without_fp8(random: Any) -> None:
    """Recomputed norms ask TransformerEngine for its FP8 state: NameError where it is not installed."""
    init = random.CheckpointWithoutOutput.__init__
    random.CheckpointWithoutOutput.__init__ = lambda self, fp8=False: init(self, None)
    random.FP8GlobalStateManager = types.SimpleNamespace(is_fp8_enabled=lambda: False)


def _adam_steps(kind: Any) -> None:
    """torch's Adam keeps a step for each parameter, which the loader of optimizer state does not expect: KeyError 'step'."""
    load = kind._set_main_param_and_optimizer_states

    def with_step(self: Any, parameter: Any, tensors: dict[str, Any]) -> None:
        group, order = self.model_param_group_index_map[parameter]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        load(self, parameter, {**({"step": state["step"]} if "step" in state else {}), **tensors})

    kind._set_main_param_and_optimizer_states = with_step


@dataclass(frozen=True, slots=True)
class _Rows:
    """Where a device's `permute` put the k choices of each token. The dispatcher hands it on to `unpermute`, unread."""

    order: Tensor
    k: int


def _permute_by(ops: Ops) -> None:
    """The all-to-all dispatcher sorts its tokens by expert, and puts them back, with the device's operations.

    Not where a device has none of its own (plain torch is what megatron-core has, and a little faster), and not where tokens may
    differ in their number of experts: the all-gather dispatcher brings no probs, a capacity brings num_out_tokens as a tensor.
    megatron-core's switch for it, moe_permute_fusion, wants TransformerEngine, and kernels for those cases too.
    """
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    from jumar.device.ops.reference import REFERENCE

    stock, back = moe_utils.permute, moe_utils.unpermute

    def permute(
        tokens: Tensor, routing_map: Tensor, probs: Tensor | None = None, num_out_tokens: Any = None, **settings: Any
    ) -> tuple[Tensor, Tensor | None, Any]:
        if probs is None or not isinstance(num_out_tokens, int) or any(settings.values()) or not len(tokens):
            out: tuple[Tensor, Tensor | None, Any] = stock(tokens, routing_map, probs, num_out_tokens, **settings)
            return out
        k = num_out_tokens // len(tokens)
        falling = torch.arange(routing_map.shape[1], 0, -1, device=tokens.device, dtype=torch.float32)
        chosen = (routing_map * falling).topk(k).indices  # a token's experts in order, without waiting for the device
        permuted, order = ops.permute(tokens, chosen)
        weights = probs.gather(1, chosen).flatten()
        return permuted, torch.empty_like(weights).index_copy(0, order.long(), weights), _Rows(order, k)

    def unpermute(permuted: Tensor, rows: Any, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(rows, _Rows):
            return ops.unpermute(permuted, rows.order, k=rows.k)
        out: Tensor = back(permuted, rows, *args, **kwargs)
        return out

    own = ops.permute is not REFERENCE.permute
    token_dispatcher.permute, token_dispatcher.unpermute = (permute, unpermute) if own else (stock, back)


def _tensor_types() -> None:
    """Gradient clipping and optimizers compare `Tensor.type()` with CUDA's names; other devices have others."""
    plain = torch.Tensor.type

    def type_(self: Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        said = plain(self, dtype, *args, **kwargs) if dtype is not None else plain(self)
        return "torch.cuda." + said.rsplit(".", 1)[1] if dtype is None else said

    torch.Tensor.type = type_  # type: ignore[method-assign, assignment]


# What follows is for the CPU alone: megatron-core names the device "cuda" in a few hundred places.


class _Event:
    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...
    def record(self, *_args: Any) -> None: ...
    def wait(self, *_args: Any) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True

    def elapsed_time(self, _other: Any) -> float:
        return 0.0


class _Stream:
    cuda_stream = 0

    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...
    def wait_stream(self, *_args: Any) -> None: ...
    def wait_event(self, *_args: Any) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True

    def record_event(self, event: _Event | None = None) -> _Event:
        return event or _Event()

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_exc: Any) -> None: ...


def _cuda_is_the_cpu() -> None:
    """torch.cuda answers for the CPU. `torch.cuda.is_available()` stays false."""
    cuda: Any = torch.cuda
    stream = _Stream()
    answers: dict[str, Callable[..., Any]] = {
        "current_device": lambda: torch.device("cpu"),
        "current_stream": lambda *_a, **_k: stream,
        "default_stream": lambda *_a, **_k: stream,
        "get_device_capability": lambda *_a, **_k: (0, 0),
        "get_device_properties": lambda *_a, **_k: types.SimpleNamespace(name="cpu", multi_processor_count=1, total_memory=0),
        "get_rng_state": lambda *_a, **_k: torch.get_rng_state(),
        "set_rng_state": lambda state, *_a, **_k: torch.set_rng_state(state),
        "manual_seed": lambda seed: torch.default_generator.manual_seed(seed),
        "is_current_stream_capturing": lambda: False,
        "memory_allocated": lambda *_a, **_k: 0,
        "max_memory_allocated": lambda *_a, **_k: 0,
        "memory_stats": lambda *_a, **_k: {},
        "stream": lambda _stream=None: _Stream(),
        **{name: lambda *_a, **_k: None for name in ("set_device", "set_stream", "synchronize", "empty_cache")},
    }
    for name, answer in answers.items():
        setattr(cuda, name, answer)
    cuda.Stream, cuda.Event = _Stream, _Event
    cuda.random.get_rng_state = cuda.get_rng_state
    for name in ("range_push", "range_pop", "mark"):
        setattr(cuda.nvtx, name, lambda *_a, **_k: None)
    _device_constructors()  # remembers the functions below as they are: `with torch.device("meta")` asks
    for name in ("tensor", "as_tensor", "empty", "zeros", "ones", "full", "arange", "rand", "randn", "randint", "empty_like"):
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    for name in ("zeros_like", "ones_like", "full_like", "empty_strided"):
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    tensor: Any = torch.Tensor
    tensor.cuda = tensor.pin_memory = lambda self, *_a, **_k: self
    tensor.record_stream = lambda self, _stream: None
    tensor.to = _to_cpu(tensor.to)
    torch.nn.Module.cuda = lambda self, device=None: self  # type: ignore[method-assign]
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")


def _is_cuda(device: Any) -> bool:
    return (isinstance(device, torch.device) and device.type == "cuda") or (isinstance(device, str) and device.startswith("cuda"))


def _on_cpu(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(factory)
    def made(*args: Any, **kwargs: Any) -> Tensor:
        kwargs.pop("pin_memory", None)
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
        return factory(*args, **kwargs)

    return made


def _to_cpu(to: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(to)
    def moved(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args and _is_cuda(args[0]):
            args = ("cpu", *args[1:])
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
        return to(self, *args, **kwargs)

    return moved


def _gloo_like_nccl() -> None:
    """Gloo gathers and scatters equal parts only (experts under ETP have unequal ones), and bars without devices."""
    gather, scatter, barrier = dist.all_gather, dist.reduce_scatter, dist.barrier

    def all_gather(parts: list[Tensor], own: Tensor, group: Any = None, async_op: bool = False) -> Any:
        if len({part.shape for part in parts}) == 1:
            return gather(parts, own, group=group, async_op=async_op)
        padded = own.new_zeros((max(part.shape[0] for part in parts), *own.shape[1:]))
        padded[: own.shape[0]] = own
        buffers = [torch.empty_like(padded) for _ in parts]
        gather(buffers, padded, group=group)
        for part, buffer in zip(parts, buffers, strict=True):
            part.copy_(buffer[: part.shape[0]])
        return None

    def reduce_scatter(
        own: Tensor, parts: list[Tensor], op: Any = dist.ReduceOp.SUM, group: Any = None, async_op: bool = False
    ) -> Any:
        if len({part.shape for part in parts}) == 1:
            return scatter(own, parts, op=op, group=group, async_op=async_op)
        whole = torch.cat(parts)
        dist.all_reduce(whole, op=op, group=group)
        own.copy_(torch.split(whole, [part.shape[0] for part in parts])[dist.get_rank(group)])
        return None

    def bar(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("device_ids", None)
        return barrier(*args, **kwargs)

    seam: Any = dist
    seam.all_gather, seam.reduce_scatter, seam.barrier = all_gather, reduce_scatter, bar
