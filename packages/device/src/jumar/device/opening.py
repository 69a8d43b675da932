"""Finding a device by name, or the best one here."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from jumar.device.base import Device
from jumar.schema.errors import Exit, ToolError

GROUP = "jumar.devices"
PREFERRED = ("npu", "cuda")  # then those of third parties, and the CPU last


def open_device(name: str = "auto") -> Device:
    """The device called `name`; "auto" is the first available of npu, cuda, those of third parties, cpu.

    Devices are found through the entry points of the group `jumar.devices`, whose values are `Device` objects.
    Raises ToolError: 2 for a name that nothing registers, 4 for a device that is not available here.
    """
    points = known_devices(name)
    _import_torch()
    if name == "auto":
        return _best(points)
    device = _load(points[name])
    missing = device.missing()
    if missing is not None:
        raise ToolError(f"device {name} cannot be used: {missing.what}", hint=missing.hint, code=Exit.ENVIRONMENT)
    return device


def known_devices(name: str) -> dict[str, EntryPoint]:
    """All that are registered, whether they can be used here or not; torch is not imported. Raises ToolError (2) if `name`,
    which may be "auto", is none of them."""
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name != "auto" and name not in points:
        raise ToolError(
            f"there is no device {name!r}; known are {', '.join(sorted(points))}, and auto",
            hint="give one of them, or install the package that brings the device",
            code=Exit.USAGE,
        )
    return points


def _import_torch() -> None:
    try:
        import_module("torch")
    except (ImportError, OSError, RuntimeError) as error:  # torch-npu without CANN breaks torch's own import
        raise ToolError(
            f"torch cannot be imported: {str(error).splitlines()[0]}",
            hint="is torch-npu installed without CANN? source its set_env.sh, or export TORCH_DEVICE_BACKEND_AUTOLOAD=0",
            code=Exit.ENVIRONMENT,
        ) from error


def _best(points: dict[str, EntryPoint]) -> Device:
    others = sorted(set(points) - {*PREFERRED, "cpu"})
    for name in (*PREFERRED, *others, "cpu"):
        if name in points and (device := _load(points[name])).available():
            return device
    raise ToolError(
        "no device is registered, not even the CPU",
        hint="jumar-device is not installed properly: pip install --force-reinstall jumar-device",
        code=Exit.ENVIRONMENT,
    )


def _load(point: EntryPoint) -> Device:
    device = point.load()
    if not isinstance(device, Device):
        raise ToolError(
            f"device {point.name}: {point.value} is {device!r}, not a jumar.device.Device",
            hint=f"its package must name an instance of a subclass of Device in the group {GROUP}",
            code=Exit.ENVIRONMENT,
        )
    return device
