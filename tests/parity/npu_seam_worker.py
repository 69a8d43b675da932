"""`mend("npu")` as a whole, without an NPU: what it patches, and that the dispatcher's permutation is the stock one's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from jumar.device.ops.npu import NPU_OPS
from jumar.device.ops.reference import REFERENCE
from jumar.device.testing.npu_numerics import RAN
from jumar.device.testing.npu_stand_in import npu_device
from jumar.train_core.megatron import mend


def npu_type(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
    """What an NPU's tensor says of itself."""
    return PLAIN_TYPE(self).replace("torch.", "torch.npu.") if dtype is None else PLAIN_TYPE(self, dtype, *args, **kwargs)


PLAIN_TYPE = torch.Tensor.type
SIZES = (  # tokens, experts, experts a token
    (5, 4, 2, torch.float32),
    (7, 3, 3, torch.float32),
    (9, 16, 1, torch.float32),
    (33, 64, 4, torch.float32),
    (33, 64, 6, torch.float32),
    (33, 16, 4, torch.bfloat16),
)


def permuted(module: Any, tokens: int, experts: int, k: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Through the dispatcher's two functions: what goes to the experts, what comes back, and gradients of it."""
    torch.manual_seed(tokens + experts + k)
    x = torch.randn(tokens, 6).to(dtype).requires_grad_()
    probs = torch.rand(tokens, experts).requires_grad_()
    here = torch.zeros(tokens, experts, dtype=torch.bool).scatter(1, torch.rand(tokens, experts).topk(k).indices, True)
    sent, weights, rows = module.permute(x, here, probs=probs, num_out_tokens=tokens * k, fused=False, drop_and_pad=False)
    back = module.unpermute((sent * weights[:, None]).to(dtype), rows, restore_shape=x.shape, routing_map=here, fused=False)
    return [sent, weights, back, *torch.autograd.grad((back * torch.randn(back.shape)).sum(), (x, probs))]


def same_permutation(module: Any, stock: Any) -> None:
    """To the bit where no sum has more than four terms: more, and torch's sum and its scatter_add add in another order."""
    own = replace(REFERENCE, name="another's", permute=lambda x, indices: REFERENCE.permute(x, indices))
    for ops, kernels in ((NPU_OPS, 1), (own, 0)):
        mend("npu", ops)
        for tokens, experts, k, dtype in SIZES:
            RAN.clear()
            got, want = (permuted(functions, tokens, experts, k, dtype) for functions in (module, stock))
            assert RAN["npu_moe_token_permute"] == RAN["npu_moe_token_unpermute_grad"] == kernels
            near = 0.0 if k <= 4 and dtype == torch.float32 else 2e-6 if dtype == torch.float32 else 3e-2
            torch.testing.assert_close(got, want, atol=near, rtol=near)
            assert torch.equal(got[0], want[0])
            assert torch.equal(got[1], want[1])


def left_to_stock(module: Any, stock: Any) -> None:
    """Where tokens may differ in their number of experts."""
    mend("npu", NPU_OPS)
    RAN.clear()
    x, probs = torch.randn(4, 6), torch.rand(4, 3)
    here = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 1]], dtype=torch.bool)
    sent, weights, rows = module.permute(x, here, probs=probs, num_out_tokens=torch.tensor(5))
    assert torch.equal(sent, stock.permute(x, here)[0])
    assert torch.equal(module.unpermute(sent, rows, restore_shape=x.shape), stock.unpermute(sent, rows, restore_shape=x.shape))
    assert weights.shape == (5,)
    assert module.permute(x, here, num_out_tokens=5)[0].shape == (5, 6)
    padded = module.permute(x, here, probs=probs, num_out_tokens=6, drop_and_pad=True)
    assert torch.equal(padded[0], stock.permute(x, here, probs=probs, num_out_tokens=6, drop_and_pad=True)[0])
    assert module.permute(x[:0], here[:0], probs=probs[:0], num_out_tokens=0)[0].shape == (0, 6)
    assert not RAN
    mend("npu", REFERENCE)
    assert module.permute is stock.permute
    assert module.unpermute is stock.unpermute


def mended() -> None:
    """What mend("npu") leaves behind, as far as a CPU can tell."""
    from megatron.core.tensor_parallel import mappings, random
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    x = torch.ones(2)
    assert x.type() == "torch.cuda.FloatTensor"
    assert x.bfloat16().type() == "torch.cuda.BFloat16Tensor"
    assert x.type(torch.float64).dtype == torch.float64
    states: list[torch.Tensor] = []
    torch.cuda.set_rng_state = states.append  # type: ignore[assignment]
    random._set_cuda_rng_state(torch.get_rng_state())
    assert len(states) == 1
    assert moe_utils.te_general_gemm is None
    assert mappings._reduce.__module__ == "jumar.train_core.megatron"
    assert token_dispatcher.maybe_move_tensor_to_cpu is moe_utils.maybe_move_tensor_to_cpu
    assert torch.zeros(1).to("cpu").device.type == "cpu"
    assert not torch.cuda.is_available()


def main() -> None:
    torch.set_num_threads(1)
    npu_device().ops()  # kernels from here on are the stand-in's
    torch.Tensor.type = npu_type  # type: ignore[method-assign, assignment]
    mend("npu", NPU_OPS)
    mended()
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    same_permutation(token_dispatcher, moe_utils)
    left_to_stock(token_dispatcher, moe_utils)


if __name__ == "__main__":
    main()
