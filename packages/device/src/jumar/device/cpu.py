"""The CPU: gloo between processes, plain torch inside. What works here is what the other devices must do."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from jumar.device.base import Device, Memory, Missing

if TYPE_CHECKING:
    import torch

    from jumar.device.checks import Check
    from jumar.device.ops.table import Ops


class Cpu(Device):
    """The CPU."""

    name: ClassVar[str] = "cpu"
    backend: ClassVar[str] = "gloo"
    host: ClassVar[bool] = True

    def missing(self) -> Missing | None:
        """Nothing ever is."""
        return None

    def count(self) -> int:
        """One, however many cores: ranks on a CPU share it."""
        return 1

    def activate(self, local_rank: int = 0) -> torch.device:
        """The device "cpu", for any rank."""
        import torch

        return torch.device("cpu")

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """OMP_NUM_THREADS: the cores shared among the ranks of this machine, else every rank starts a thread a core."""
        ranks = environ.get("LOCAL_WORLD_SIZE", "1")
        cores = len(os.sched_getaffinity(0))
        advised = {"OMP_NUM_THREADS": str(max(1, cores // max(1, int(ranks)) if ranks.isdigit() else 1))}
        return {key: value for key, value in advised.items() if key not in environ}

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def memory(self) -> Memory:
        """Resident set of this process (VmRSS, VmHWM of /proc/self/status) and the machine's memory."""
        status = _kilobytes("/proc/self/status")
        total = _kilobytes("/proc/meminfo").get("MemTotal", 0)
        resident = status.get("VmRSS", 0)
        return Memory(resident, max(resident, status.get("VmHWM", 0)), total)

    def reset_peak_memory(self) -> None:
        """Reset VmHWM, as proc(5) says; some containers forbid it, and the peak then counts from the start."""
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def seed(self, seed: int) -> None:
        """Seed torch's generator."""
        import torch

        torch.manual_seed(seed)

    def rng_state(self) -> torch.Tensor:
        """State of torch's generator."""
        import torch

        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        """Take torch's generator back."""
        import torch

        torch.set_rng_state(state)

    def peak_flops(self, dtype_name: str) -> float | None:
        """Not known."""
        return None

    def ops(self) -> Ops:
        """Plain torch, with its fused AdamW."""
        from jumar.device.ops.cpu import CPU_OPS

        return CPU_OPS

    def checks(self, root: Path = Path("/"), environ: Mapping[str, str] | None = None) -> Iterator[Check]:
        """torch, cores, memory, shared memory, limits, interfaces, ports."""
        from jumar.device.checks import host_checks

        yield from host_checks(root, os.environ if environ is None else environ)


def _kilobytes(path: str) -> dict[str, int]:
    """The `name: n kB` lines of a file in /proc, in bytes; nothing where there is no such file."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {f[0].rstrip(":"): int(f[1]) * 1024 for f in fields if len(f) == 3 and f[2] == "kB"}


DEVICE = Cpu()
