"""The Device protocol: what the tools ask of the hardware, and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch

    from jumar.device.checks import Check
    from jumar.device.ops.table import Ops


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of this process on its device, in bytes. CPU: resident set, its peak, and the machine's memory."""

    allocated_bytes: int
    peak_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Missing:
    """Why a device cannot be used: what is missing, and what to type."""

    what: str
    hint: str


class Device(ABC):
    """One kind of hardware. Objects have no state: making one, or asking `available`, touches no device."""

    name: ClassVar[str]  # what --device says; the torch.device is what `activate` returns
    backend: ClassVar[str]  # of torch.distributed
    host: ClassVar[bool] = False  # the machine's own processors and memory, which all its ranks share

    @abstractmethod
    def missing(self) -> Missing | None:
        """What keeps this device from being used here; None if nothing does. Never raises."""

    def available(self) -> bool:
        """Whether this device can be used here."""
        return self.missing() is None

    @abstractmethod
    def count(self) -> int:
        """Devices that this process sees; 1 for the CPU, 0 where the device is not available."""

    @abstractmethod
    def activate(self, local_rank: int = 0) -> torch.device:
        """Prepare the process for its device and make it the current one. Called once, before any tensor is made.

        Raises ToolError (4) if the device is missing or there are fewer devices than ranks.
        """

    @abstractmethod
    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Variables that the vendor's documents advise and `environ` does not set. The caller sets and shows them."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the device has done all that was queued."""

    @abstractmethod
    def memory(self) -> Memory:
        """Memory in use now, and its peak since the start or `reset_peak_memory`."""

    @abstractmethod
    def reset_peak_memory(self) -> None:
        """Count the peak from now on."""

    @abstractmethod
    def seed(self, seed: int) -> None:
        """Seed the generators of the CPU and of every device that this process sees."""

    @abstractmethod
    def rng_state(self) -> torch.Tensor:
        """State of the current device's generator, uint8 on the CPU."""

    @abstractmethod
    def set_rng_state(self, state: torch.Tensor) -> None:
        """Take the generator back to what `rng_state` returned."""

    @abstractmethod
    def peak_flops(self, dtype_name: str) -> float | None:
        """Dense peak of one device in FLOP/s for "bfloat16", "float16" or "float32"; None if it is not known."""

    def has_bf16(self) -> bool:
        """Whether the current device computes bfloat16 itself, and does not emulate it. Asked after `activate`."""
        return True

    @abstractmethod
    def ops(self) -> Ops:
        """The table of operations for tensors on this device."""

    @abstractmethod
    def checks(self, root: Path = Path("/"), environ: Mapping[str, str] | None = None) -> Iterator[Check]:
        """What a doctor would look at; never raises. `root` stands for / and `environ` for os.environ (tests)."""
