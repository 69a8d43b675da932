"""Wheels of torch-npu from the package index, for tests: of each only the files that say what its operators take.

A wheel is never installed or imported: merely installed, it breaks `import torch` where there is no CANN.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

CACHE = Path.home() / ".cache" / "jumar-tests" / "torch-npu"
TRIES = 3
PINNED = "2.13.0"
# The last release of each minor, by the torch that it is for.
RELEASES = {
    "2.1": "2.1.0.post17",
    "2.3": "2.3.1.post6",
    "2.4": "2.4.0.post4",
    "2.5": "2.5.1.post1",
    "2.6": "2.6.0.post5",
    "2.7": "2.7.1.post11",
    "2.8": "2.8.0.post5",
    "2.9": "2.9.1",
    "2.10": "2.10.0.post7",
    "2.11": "2.11.0.post3",
    "2.12": "2.12.0.post3",
    "2.13": "2.13.0",
    "2.14": "2.14.0",
}
YAMLS = (
    "torch_npu/csrc/aten/npu_native_functions_by_codegen.yaml",
    "torch_npu/csrc/aten/npu_native_functions.yaml",
)
META = "torch_npu/op_plugin/meta/_meta_registrations.py"
OLD_META = "torch_npu/meta/_meta_registrations.py"  # before it moved
# What maps torch.cuda to torch.npu: transfer_to_npu, and the names in __all__ that it copies.
MAPPING = (
    "torch_npu/contrib/transfer_to_npu.py",
    "torch_npu/npu/__init__.py",
    "torch_npu/npu/random.py",
    "torch_npu/_init/patches/monkey_patches.py",
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "linux_x86_64")


def torch_npu_wheel(release: str = PINNED) -> Path:
    """A zip file with the members YAMLS and META of that release. Fetched once, about 40 MB; then from CACHE.

    Raises RuntimeError with pip's words if the index does not give it.
    """
    return _trimmed(release, f"torch_npu-{release}.zip", (*YAMLS, META, OLD_META))


def torch_npu_mapping(release: str = PINNED) -> dict[str, str]:
    """The sources MAPPING of that release, by their paths in the wheel. Fetched and kept as `torch_npu_wheel` does."""
    with zipfile.ZipFile(_trimmed(release, f"torch_npu-{release}-mapping.zip", MAPPING)) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def _trimmed(release: str, name: str, members: tuple[str, ...]) -> Path:
    kept = CACHE / name
    if kept.exists():
        return kept
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=f".{release}-") as folder:
        trimmed = Path(folder) / "trimmed.zip"
        with (
            zipfile.ZipFile(_download(release, Path(folder))) as wheel,
            zipfile.ZipFile(trimmed, "w", zipfile.ZIP_DEFLATED) as out,
        ):
            for member in sorted(set(wheel.namelist()) & set(members)):
                out.writestr(member, wheel.read(member))
        trimmed.replace(kept)
    return kept


def _download(release: str, folder: Path) -> Path:
    """The whole wheel, for CPython 3.11, or 3.10 where there is none: what it says of operators is the same."""
    said = ""
    for attempt in range(1, TRIES + 1):
        for python in ("3.11", "3.10"):
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary=:all:",
                "--dest",
                str(folder),
            ]
            command += ["--python-version", python, *(word for p in PLATFORMS for word in ("--platform", p))]
            done = subprocess.run([*command, f"torch-npu=={release}"], capture_output=True, text=True, timeout=240)
            wheels = list(folder.glob("*.whl"))
            if done.returncode == 0 and wheels:
                return wheels[0]
            said = done.stderr.strip()
        if attempt < TRIES:
            time.sleep(2 * attempt)
    raise RuntimeError(f"torch-npu {release} is needed, and pip could not fetch it in {TRIES} tries: {said[-2000:]}")
