"""Whether `megatron.core` is the engine that this package was built for. Nothing of it is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from jumar.schema.errors import Exit
from jumar.train_core.features.base import Problem

DIST, LOWEST, BELOW = "megatron-core", (0, 16, 1), (0, 17)
WANTED = f"{DIST} >=0.16.1,<0.17"
INSTALL = f'pip install "{DIST}>=0.16.1,<0.17"'


def check_engine() -> Iterator[Problem]:
    """megatron-core is there, of a right version, not shadowed by another copy, and not patched by mindspeed."""
    version, home = installed()
    if version is None or home is None:
        yield Problem(f"{WANTED} is not installed", INSTALL, code=Exit.ENVIRONMENT)
        return
    if not LOWEST <= _numbers(version) < BELOW:
        yield Problem(f"{DIST} {version} is installed, expected {WANTED}", INSTALL, code=Exit.ENVIRONMENT)
    found = imported_from()
    if found is not None and found.resolve() != home.resolve():
        entry = found.parent.parent
        yield Problem(
            f"megatron.core would be imported from {found}, not from {DIST} {version} in {home.parent.parent}",
            f"remove {entry} from PYTHONPATH: {_where(entry)}",
            code=Exit.ENVIRONMENT,
        )
    if "mindspeed" in sys.modules:
        by = getattr(sys.modules["mindspeed"], "__file__", None) or "a namespace package"
        yield Problem(
            f"mindspeed is imported before training begins ({by}), and patches megatron-core",
            _patcher() or "take its import out of sitecustomize.py, usercustomize.py or the .pth file that starts it",
            code=Exit.ENVIRONMENT,
        )


def installed() -> tuple[str | None, Path | None]:
    """Version and `megatron/core` of the installed distribution."""
    try:
        dist = distribution(DIST)
    except PackageNotFoundError:
        return None, None
    return dist.version, Path(str(dist.locate_file("megatron/core")))


def imported_from() -> Path | None:
    """The directory that `import megatron.core` takes, or has taken.

    Found by looking, as importlib's own search would import a `megatron/__init__.py` that shadows the right one.
    """
    loaded = getattr(sys.modules.get("megatron.core"), "__file__", None)
    if loaded is not None:
        return Path(loaded).parent
    folders = [Path(entry or ".") / "megatron" for entry in sys.path]
    whole = [folder for folder in folders if (folder / "__init__.py").is_file()]  # goes before folders that are merely there
    return next((folder / "core" for folder in whole or folders if (folder / "core").is_dir()), None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".") if part.isdigit())


def _where(entry: Path) -> str:
    """How the entry comes to be looked at first."""
    at = next((i for i, path in enumerate(sys.path) if path and Path(path).resolve() == entry.resolve()), None)
    return f"it is entry {at} of sys.path" if at is not None else "an installed .pth file or import hook leads there"


def _patcher() -> str | None:
    """The file that imports mindspeed when Python starts."""
    for folder in (Path(path) for path in sys.path if path):
        for file in (folder / "sitecustomize.py", folder / "usercustomize.py", *sorted(folder.glob("*.pth"))):
            try:
                if "import mindspeed" in file.read_text(encoding="utf-8"):
                    return f"{file} imports it: take that line out"
            except (OSError, UnicodeDecodeError):
                continue
    return None
