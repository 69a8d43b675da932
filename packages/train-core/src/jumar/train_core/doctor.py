"""What a doctor would look at before a training: the engine, the extras, the way ranks are started, and the device."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jumar.train_core.engine_check import WANTED, check_engine, imported_from, installed

if TYPE_CHECKING:
    from jumar.device import Check

EXTRAS = {"convert": "jumar.ckpt_convert", "tensorboard": "tensorboard", "wandb": "wandb"}
LEAST_PYTHON = (3, 10)


def examine(device: str, environ: Mapping[str, str] | None = None) -> Iterator[Check]:
    """The trainer's own checks, then the device's. device: as `--device` says; auto: the best here, and why not the others."""
    environ = os.environ if environ is None else environ
    yield from trainer_checks()
    yield from device_checks(device, environ)


def trainer_checks() -> Iterator[Check]:
    """Python, megatron-core, torchrun, extras."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield _needed("python", python, ">=3.10", sys.version_info >= LEAST_PYTHON, "use Python 3.10 or newer")
    faults = list(check_engine())
    for fault in faults:
        yield _needed("megatron-core", fault.message, WANTED, False, fault.hint)
    if not faults:
        number, home = installed()
        yield _needed("megatron-core", f"{number} in {imported_from() or home}", WANTED, True)
    for name in ("einops", "psutil"):
        there = find_spec(name) is not None
        yield _needed(name, _version(name) if there else "not installed", "installed", there, f"pip install {name}")
    usable = find_spec("torch") is not None and find_spec("torch.distributed.run") is not None
    yield _needed("torchrun", "usable" if usable else "no torch.distributed.run", "usable", usable, "pip install torch")
    for extra, module in EXTRAS.items():
        there = find_spec(module) is not None
        hint = "" if there else f'pip install "jumar-train-core[{extra}]"'
        yield _optional(f"extra [{extra}]", "installed" if there else "not installed", there, hint)


def device_checks(name: str, environ: Mapping[str, str]) -> Iterator[Check]:
    """The checks of a device, those of one that is not usable too; with auto, a line for each device that is passed over."""
    from jumar.device import open_device

    devices = _devices()
    if name == "auto":
        name = open_device("auto").name
        for other, device in devices.items():
            if other != name and (missing := device.missing()) is not None:
                yield _optional(f"device {other}", f"not used: {missing.what}", False, missing.hint)
    if name not in devices:
        open_device(name)  # says which there are
    yield from devices[name].checks(Path("/"), environ)


def _devices() -> dict[str, Any]:
    """Every registered device, usable or not."""
    return {point.name: point.load() for point in entry_points(group="jumar.devices")}


def _version(dist: str) -> str:
    try:
        return version(dist)
    except PackageNotFoundError:
        return "of unknown version"


def _needed(name: str, got: str, expected: str, fine: bool, hint: str = "") -> Check:
    from jumar.device import Check

    return Check(name, "ok" if fine else "fail", got, expected, "" if fine else hint)


def _optional(name: str, got: str, fine: bool, hint: str = "") -> Check:
    from jumar.device import Check

    return Check(name, "ok" if fine else "info", got, "optional", hint)
