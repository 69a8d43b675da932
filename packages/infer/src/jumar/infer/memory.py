"""How much memory is free, and whether what is asked for fits: said before it is filled, not after."""

from __future__ import annotations

import os
from pathlib import Path

from jumar.device import Device
from jumar.device.accelerator import Accelerator
from jumar.schema.cli import human_bytes
from jumar.schema.errors import Exit, ToolError

HIERARCHIES = (  # of control groups: name in /proc/self/cgroup, mount, limit, usage; https://docs.kernel.org/admin-guide/cgroup-v2.html
    ("", "sys/fs/cgroup", "memory.max", "memory.current"),
    ("memory", "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
CACHED = ("inactive_file", "active_file", "total_inactive_file", "total_active_file")


def free_bytes(device: Device) -> int:
    """What can still be taken on this process's device."""
    if isinstance(device, Accelerator):
        return int(device.api().mem_get_info()[0])
    if device.host:  # which the ranks of this machine share
        return host_free_bytes() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    memory = device.memory()
    return max(memory.total_bytes - memory.allocated_bytes, 0)


def host_free_bytes(root: Path = Path("/")) -> int:
    """Of the machine, and no more than its control groups leave; files that are cached count as free. root stands for /."""
    found: float = _table(root / "proc/meminfo").get("MemAvailable:", 0) * 1024
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        for name, mount, limit, usage in HIERARCHIES:
            top = root / mount
            folder = top / path.lstrip("/")
            if name in names.split(","):
                levels = [folder, *folder.parents]
                found = min([found, *(_left(level, limit, usage) for level in levels[: levels.index(top) + 1])])
    return int(max(found, 0))


def _left(folder: Path, limit: str, usage: str) -> float:
    most = _text(folder / limit).strip()
    if not most.isdigit():  # "max", or no such file
        return float("inf")
    stat = _table(folder / "memory.stat")
    total = [stat[name] for name in CACHED[2:] if name in stat] or [stat.get(name, 0) for name in CACHED[:2]]
    return int(most) - int(_text(folder / usage).strip() or 0) + sum(total)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    words = (line.split() for line in _text(path).splitlines())
    return {found[0]: int(found[1]) for found in words if len(found) >= 2 and found[1].isdigit()}


def check_fits(what: str, needed: int, free: int, device: str, hint: str) -> None:
    """Raises ToolError (4) where more is needed than is free."""
    if needed > free:
        message = f"{what} need {human_bytes(needed)}, and {human_bytes(free)} of memory are free on {device}"
        raise ToolError(message, hint=hint, code=Exit.ENVIRONMENT)
