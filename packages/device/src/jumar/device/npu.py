"""Ascend NPUs through torch-npu: HCCL between processes, Ascend's fused kernels inside.

Where torch-npu is merely installed, `import torch` itself fails without CANN's libraries: `missing` says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jumar.device.accelerator import Accelerator
from jumar.device.base import Missing

if TYPE_CHECKING:
    import torch

    from jumar.device.checks import Check
    from jumar.device.ops.table import Ops

SET_ENV = "source /usr/local/Ascend/ascend-toolkit/set_env.sh"
ADVISED = {
    # Ranks that compile kernels or read data first arrive late: the default of 120 s is short for a first step
    # (CANN environment variable reference).
    "HCCL_CONNECT_TIMEOUT": "1800",
    # More of the dispatch in its second stage; 1 is the default, and 2 what they recommend (Ascend Extension for PyTorch).
    "TASK_QUEUE_ENABLE": "2",
    # Less fragmentation where tensors' sizes change from step to step (Ascend Extension for PyTorch, environment variables).
    "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
    # megatron-core asks for it with sequence parallelism, whatever the device.
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",
}


class Npu(Accelerator):
    """Ascend NPUs."""

    name: ClassVar[str] = "npu"
    backend: ClassVar[str] = "hccl"

    def api(self) -> Any:
        """torch.npu, which importing torch_npu brings."""
        import_module("torch_npu")
        import torch

        return getattr(torch, self.name)

    def missing(self) -> Missing | None:
        """torch-npu, CANN's libraries, a visible NPU."""
        if find_spec("torch_npu") is None:
            pair = "torch and torch-npu of its row in docs/versions.md"
            return Missing("torch-npu is not installed", f"install CANN, {SET_ENV}, then {pair}")
        try:
            api = self.api()
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            return Missing(f"torch-npu does not load: {first}", f"{SET_ENV}; torch-npu X.Y.Z needs torch X.Y.Z")
        if not api.is_available():
            visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
            seen = "" if visible is None else f" (ASCEND_RT_VISIBLE_DEVICES={visible})"
            return Missing(
                f"torch-npu sees no NPU{seen}", "npu-smi info must list one; in a container pass /dev/davinci* through"
            )
        return None

    def activate(self, local_rank: int = 0) -> torch.device:
        """Also redirects torch.cuda's names to the NPU, for megatron-core, which calls them (torch_npu.contrib)."""
        device = super().activate(local_rank)
        import_module("torch_npu.contrib.transfer_to_npu")
        return device

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """See ADVISED."""
        return {key: value for key, value in ADVISED.items() if key not in environ}

    def has_bf16(self) -> bool:
        """Not the first Ascend 910, nor the 310P."""
        return bool(self.api().is_bf16_supported())

    def ops(self) -> Ops:
        """Ascend's kernels; what they lack falls back to the reference."""
        from jumar.device.ops.npu import NPU_OPS

        return NPU_OPS

    def checks(self, root: Path = Path("/"), environ: Mapping[str, str] | None = None) -> Iterator[Check]:
        """Driver, CANN, versions, devices, HCCL; then those of the host."""
        from jumar.device.checks import host_checks
        from jumar.device.checks_npu import npu_checks

        environ = os.environ if environ is None else environ
        yield from npu_checks(root, environ)
        yield from host_checks(root, environ)


DEVICE = Npu()
