"""What megatron-core 0.16.1 needs mended to run GPTModel forward on a CPU over gloo, without TransformerEngine."""

from types import SimpleNamespace

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.tensor_parallel.random import initialize_rng_tracker
from megatron.core.transformer import multi_latent_attention
from megatron.core.transformer.moe import grouped_gemm_util, moe_utils


def grouped_matmul(
    tokens_TH: torch.Tensor, weight_EHF: torch.Tensor, tokens_per_expert: torch.Tensor, trans_b: bool
) -> torch.Tensor:
    """grouped_gemm's `gmm` in plain torch: the tokens of each expert, already sorted, times its weight."""
    assert not trans_b
    parts = tokens_TH.split(tokens_per_expert.tolist())
    return torch.cat([part @ weight for part, weight in zip(parts, weight_EHF, strict=True)])


def mend() -> None:
    """Patch this process, before a model is built."""
    torch.cuda.current_device = lambda: torch.device("cpu")  # where it puts every buffer it makes
    torch.cuda.synchronize = lambda *_args, **_kwargs: None  # what dist_checkpointing calls before it writes
    torch.Tensor.cuda = lambda self, *_args, **_kwargs: self  # how it moves a tied embedding of two pipeline stages
    initialize_rng_tracker(inference_rng_tracker=True)  # dropout's tracker for training saves CUDA generators
    moe_utils.te_general_gemm = None  # the router asks for it, and without TransformerEngine it is never bound
    multi_latent_attention.HAVE_TE = False  # True in error: the import succeeds on stand-ins, and isinstance fails
    grouped_gemm_util.grouped_gemm = SimpleNamespace()  # not None: "installed"
    grouped_gemm_util.ops = SimpleNamespace(gmm=grouped_matmul)  # a CUDA extension


def mend_training() -> None:
    """What optimizers and their state need besides: they ask for the device "cuda", and for types by CUDA's names."""
    for name in ("tensor", "zeros", "ones", "empty", "zeros_like", "empty_like"):
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    plain = torch.Tensor.type

    def type_(self: torch.Tensor, *args: object, **kwargs: object) -> object:
        said = plain(self, *args, **kwargs)
        return said.replace("torch.", "torch.cuda.") if not args and not kwargs else said

    torch.Tensor.type = type_
    load = DistributedOptimizer._set_main_param_and_optimizer_states

    def with_step(self: DistributedOptimizer, parameter: torch.Tensor, tensors: dict) -> None:
        """torch's Adam has a step for each parameter, which the loader expects among what it is given."""
        group, order = self.model_param_group_index_map[parameter]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        load(self, parameter, {"step": state["step"], **tensors})

    DistributedOptimizer._set_main_param_and_optimizer_states = with_step


def _on_cpu(factory: object) -> object:
    def made(*args: object, **kwargs: object) -> torch.Tensor:
        if kwargs.get("device") in ("cuda", torch.device("cuda")):
            kwargs["device"] = "cpu"
        return factory(*args, **kwargs)

    return made
