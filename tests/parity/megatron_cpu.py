"""What megatron-core 0.16.1 needs mended to run GPTModel forward on a CPU over gloo, without TransformerEngine."""

from types import SimpleNamespace

import torch
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
    torch.compiler.set_stance("force_eager")  # its jit_fuser is torch.compile: twenty seconds for one forward
    initialize_rng_tracker(inference_rng_tracker=True)  # dropout's tracker for training saves CUDA generators
    moe_utils.te_general_gemm = None  # the router asks for it, and without TransformerEngine it is never bound
    multi_latent_attention.HAVE_TE = False  # True in error: the import succeeds on stand-ins, and isinstance fails
    grouped_gemm_util.grouped_gemm = SimpleNamespace()  # not None: "installed"
    grouped_gemm_util.ops = SimpleNamespace(gmm=grouped_matmul)  # a CUDA extension
