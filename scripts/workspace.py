"""The packages as the scripts see them: what they need of one another, their wheels, how each is tested alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass(frozen=True)
class Package:
    """A folder below packages/ with its pyproject.toml."""

    folder: Path
    project: dict[str, Any]
    forced: dict[str, str]  # files beside the code that go into the wheel: theirs here -> theirs there

    @property
    def name(self) -> str:
        return str(self.project["name"])

    @property
    def version(self) -> str:
        return str(self.project["version"])

    @property
    def imports(self) -> str:
        """The package that it brings, as a path below src: jumar/schema."""
        (folder,) = (path.parent for path in self.folder.glob("src/jumar/*/__init__.py"))
        return folder.relative_to(self.folder / "src").as_posix()

    @property
    def commands(self) -> tuple[str, ...]:
        return tuple(self.project.get("scripts", {}))

    @property
    def extras(self) -> dict[str, list[str]]:
        return dict(self.project.get("optional-dependencies", {}))

    def requirements(self, extras: Iterable[str] = ()) -> list[str]:
        return [*self.project.get("dependencies", ()), *(line for extra in extras for line in self.extras[extra])]


def packages(root: Path = ROOT) -> dict[str, Package]:
    """Name of the distribution -> package, those that others need first."""
    found = []
    for path in sorted(root.glob("packages/*/pyproject.toml")):
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
        forced = settings["tool"]["hatch"]["build"]["targets"]["wheel"].get("force-include", {})
        found.append(Package(path.parent, settings["project"], forced))
    left = {package.name: package for package in found}
    out: dict[str, Package] = {}
    while left:
        ready = [name for name, package in left.items() if not siblings(package, left) - {name}]
        assert ready, f"packages that need one another: {', '.join(left)}"
        out |= {name: left.pop(name) for name in ready}
    return out


def siblings(package: Package, ours: Iterable[str]) -> set[str]:
    """Which of ours it names, be it in an extra."""
    return {canonical(Requirement(line).name) for line in package.requirements(package.extras)} & set(ours)


def closure(name: str, extras: Iterable[str], ours: dict[str, Package]) -> set[str]:
    """Which of ours come with a package and these extras of it, itself among them."""
    seen: set[tuple[str, str]] = set()
    todo = [(name, extra) for extra in ("", *extras)]
    while todo:
        at = todo.pop()
        if at in seen:
            continue
        seen.add(at)
        package = ours[at[0]]
        for line in package.extras[at[1]] if at[1] else package.requirements():
            wanted = Requirement(line)
            if canonical(wanted.name) in ours:
                todo += [(canonical(wanted.name), extra) for extra in ("", *wanted.extras)]
    return {of for of, _ in seen}


def build(chosen: Sequence[Package], into: Path, *targets: str) -> list[Path]:
    """Wheels (and sdists) of packages, by hatchling as it is installed here. Returns the files."""
    into.mkdir(parents=True, exist_ok=True)
    made = []
    for package in chosen:
        for target in targets or ("wheel",):
            command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", into.resolve()]
            done = subprocess.run(command, cwd=package.folder, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"error: {package.folder.name} cannot be built\n{done.stdout}{done.stderr}")
            stem = f"{package.name.replace('-', '_')}-{package.version}"
            made.append(into / (f"{stem}-py3-none-any.whl" if target == "wheel" else f"{stem}.tar.gz"))
            assert made[-1].exists(), made[-1]
    return made


# --- alone

TOOLS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis")
MODELS = ("transformers", "safetensors")  # with which the tests of what opens checkpoints make some


@dataclass(frozen=True)
class Alone:
    """How a package is installed and tested alone. tests: files of its tests, all of them if none is named."""

    extras: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    torch: bool = False


ALONE = {
    "schema": [Alone(("chat", "cli"))],
    "ckpt-convert": [Alone(("gguf",))],
    "data-prep": [Alone(("fast", "gigatoken", "sentences"))],
    "eval": [
        # what an endpoint's scores take
        Alone(("ifeval", "parquet"), tests=("test_compare.py", "test_data.py", "test_ifeval.py", "test_sandbox.py")),
        Alone(("ifeval", "local", "parquet"), tools=(*MODELS, "pandas"), torch=True),  # pandas: the peer of few-shot files
    ],
    "device": [Alone(("testing",), torch=True)],
    "infer": [Alone(("serve", "transformers"), tools=(*MODELS, "httpx", "openai", "peft", "pexpect"), torch=True)],
    "train-core": [Alone(("convert", "tensorboard"), torch=True)],
    "jumar": [Alone(torch=True)],
}


def interpreter(name: str) -> str | None:
    """A Python that starts: a path, or by its name on PATH or among those of pyenv."""
    of_pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    others = [] if os.sep in name else sorted(of_pyenv.glob(f"{name.removeprefix('python')}.*/bin/python"))
    for candidate in (name, *others):
        try:
            subprocess.run([candidate, "-c", ""], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return str(candidate)
    return None
