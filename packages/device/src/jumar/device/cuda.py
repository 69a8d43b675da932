"""NVIDIA GPUs (and what else torch calls cuda): NCCL between processes, SDPA and FlashAttention inside."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jumar.device.accelerator import Accelerator
from jumar.device.base import Missing

if TYPE_CHECKING:
    from jumar.device.checks import Check
    from jumar.device.ops.table import Ops

ADVISED = {
    # With tensor parallelism, one queue keeps a collective that was launched first ahead of the matmul that should
    # run beside it (Megatron-LM, --tp-comm-overlap and sequence parallelism).
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    # A hung or failed collective ends the process instead of waiting for ever (torch.distributed, NCCL variables).
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    # Less fragmentation where tensors' sizes change from step to step (torch, notes on CUDA memory management).
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
}


class Cuda(Accelerator):
    """CUDA devices."""

    name: ClassVar[str] = "cuda"
    backend: ClassVar[str] = "nccl"

    def api(self) -> Any:
        """torch.cuda."""
        import torch

        return torch.cuda

    def missing(self) -> Missing | None:
        """A CUDA build of torch, a driver, a visible GPU."""
        import torch

        if torch.version.cuda is None and torch.version.hip is None:
            return Missing(
                f"torch {torch.__version__} is built without CUDA", "install a CUDA build: https://pytorch.org/get-started"
            )
        if not torch.cuda.is_available():
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            seen = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
            return Missing(f"torch sees no NVIDIA GPU{seen}", "nvidia-smi must list one, and its driver must suit this torch")
        return None

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """See ADVISED."""
        return {key: value for key, value in ADVISED.items() if key not in environ}

    def has_bf16(self) -> bool:
        """From compute capability 8.0 on."""
        return bool(self.api().is_bf16_supported(including_emulation=False))

    def ops(self) -> Ops:
        """SDPA, FlashAttention if it is installed, grouped and fused kernels of torch."""
        from jumar.device.ops.cuda import CUDA_OPS

        return CUDA_OPS

    def checks(self, root: Path = Path("/"), environ: Mapping[str, str] | None = None) -> Iterator[Check]:
        """Driver, CUDA, GPUs, NCCL; then those of the host."""
        from jumar.device.checks import host_checks
        from jumar.device.checks_cuda import cuda_checks

        environ = os.environ if environ is None else environ
        yield from cuda_checks(root, environ)
        yield from host_checks(root, environ)


DEVICE = Cuda()
