"""What CUDA and NPU devices share: torch gives both the same module, `torch.cuda` and its mirror `torch.npu`."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from jumar.device.base import Device, Memory
from jumar.device.peaks import dense_peak
from jumar.schema.errors import Exit, ToolError

if TYPE_CHECKING:
    import torch


class Accelerator(Device):
    """A device with a module in torch."""

    @abstractmethod
    def api(self) -> Any:
        """The module: `torch.cuda`, or one with the same functions."""

    def count(self) -> int:
        """Devices that this process sees; 0 where the device is not available."""
        return int(self.api().device_count()) if self.available() else 0

    def activate(self, local_rank: int = 0) -> torch.device:
        """Make device number `local_rank` the current one."""
        import torch

        missing = self.missing()
        if missing is not None:
            raise ToolError(f"device {self.name} cannot be used: {missing.what}", hint=missing.hint, code=Exit.ENVIRONMENT)
        seen = self.count()
        if local_rank >= seen:
            raise ToolError(
                f"local rank {local_rank} has no device: this process sees {seen} {self.name} device(s)",
                hint=f"start at most {seen} processes on this machine (--nproc {seen}), or make more devices visible",
                code=Exit.ENVIRONMENT,
            )
        self.api().set_device(local_rank)
        return torch.device(self.name, local_rank)

    def synchronize(self) -> None:
        """Wait for the current device."""
        self.api().synchronize()

    def memory(self) -> Memory:
        """The allocator's counts, and the memory of the current device."""
        api = self.api()
        return Memory(int(api.memory_allocated()), int(api.max_memory_allocated()), int(api.mem_get_info()[1]))

    def reset_peak_memory(self) -> None:
        """Count the allocator's peak from now on."""
        self.api().reset_peak_memory_stats()

    def seed(self, seed: int) -> None:
        """Seed the CPU's and every visible device's generator."""
        import torch

        torch.manual_seed(seed)
        self.api().manual_seed_all(seed)

    def rng_state(self) -> torch.Tensor:
        """State of the current device's generator."""
        state: torch.Tensor = self.api().get_rng_state()
        return state

    def set_rng_state(self, state: torch.Tensor) -> None:
        """Take the current device's generator back."""
        self.api().set_rng_state(state)

    def peak_flops(self, dtype_name: str) -> float | None:
        """By the name of the current device; see `peaks`."""
        return dense_peak(str(self.api().get_device_name()), dtype_name)
