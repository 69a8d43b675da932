"""What a doctor looks at on a machine with NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from jumar.device.checks import GIB, Check, interface_checks, run_checks


def cuda_checks(root: Path, environ: Mapping[str, str]) -> Iterator[Check]:
    """Driver, torch's CUDA, GPUs and their peers, NCCL. `root` stands for /."""

    def driver() -> Iterator[Check]:
        file = root / "proc/driver/nvidia/version"
        if not file.exists():
            yield Check(
                "NVIDIA driver",
                "fail",
                "not loaded",
                "a driver",
                "install it, or start the container with --gpus all; then nvidia-smi",
            )
            return
        yield Check("NVIDIA driver", "ok", file.read_text().splitlines()[0].removeprefix("NVRM version: ").strip())

    def interfaces() -> Iterator[Check]:
        found = interface_checks(root, environ, ("NCCL_SOCKET_IFNAME",))
        yield from (check for check in found if check.name == "NCCL_SOCKET_IFNAME")

    every = {
        "NVIDIA driver": driver,
        "CUDA of torch": _torch_cuda,
        "GPUs": _devices,
        "GPU peers": _peers,
        "NCCL": _nccl,
        "NCCL_SOCKET_IFNAME": interfaces,
    }
    return run_checks(every)


def _torch_cuda() -> Iterator[Check]:
    import torch

    found = torch.version.cuda
    if found is None:
        hint = "install a CUDA build: https://pytorch.org/get-started"
        yield Check("CUDA of torch", "fail", f"torch {torch.__version__} has none", "a CUDA build", hint)
    else:
        yield Check("CUDA of torch", "ok", found)


def _devices() -> Iterator[Check]:
    import torch

    if not torch.cuda.is_available():
        yield Check("GPUs", "fail", "none", "one or more", "nvidia-smi; is CUDA_VISIBLE_DEVICES empty?")
        return
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        yield Check(f"GPU {index}", "ok", f"{about.name}, {about.total_memory / GIB:.0f} GiB, sm_{about.major}{about.minor}")


def _peers() -> Iterator[Check]:
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return
    apart = [(a, b) for a in range(count) for b in range(count) if a != b and not torch.cuda.can_device_access_peer(a, b)]
    if apart:
        yield Check(
            "GPU peers",
            "warn",
            f"{len(apart)} pairs do not see one another",
            "all",
            "nvidia-smi topo -m; tensor parallelism is slow",
        )
    else:
        yield Check("GPU peers", "ok", f"all {count} see one another")


def _nccl() -> Iterator[Check]:
    import torch

    if torch.version.cuda is None:
        return
    found: tuple[int, ...] = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    yield Check("NCCL", "ok", ".".join(map(str, found)))
