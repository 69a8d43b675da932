"""Every wheel that the tools need where there is no network: ours, built here, and what they depend on.

    python scripts/wheelhouse.py --python 3.11 --arch aarch64                      into wheelhouse/py3.11-aarch64
    python scripts/wheelhouse.py --python 3.11 --arch aarch64 --npu                with torch-npu, and the torch that it takes
    python scripts/wheelhouse.py --python 3.10 --arch x86_64 --torch-free          what needs no torch
    python scripts/wheelhouse.py --python 3.11 --arch x86_64 --plan                resolves and lists, downloads nothing

Versions are those of constraints.txt. Wheels alone: nothing is compiled where they are installed. requirements.txt and
SHA256SUMS lie beside them, and the command that installs them is printed. torch's wheels on PyPI are the CUDA builds, three
gigabytes with what they need: for the CPU build, which NPUs take too, give the index that has it:

    --index https://download.pytorch.org/whl/cpu
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

from packaging.requirements import Requirement

import workspace
from workspace import ALONE, TOOLS, interpreter

ROOT = workspace.ROOT
GLIBC = (
    28  # the newest that is asked for, as in Debian 10, Ubuntu 20.04, openEuler 20.03; megatron-core's and torch's wheels need it
)
TORCH_NPU = "2.10.0"  # of CANN 9.0.0, as in docker/Dockerfile.npu
# No wheel is published: one is built here, pure Python, for those who take the extra.
FROM_SOURCE = {"langdetect": "ifeval", "rouge-score": "lm-eval", "sqlitedict": "lm-eval", "word2number": "lm-eval"}
SOURCE_ONLY = {"flash": "flash-attn has an sdist alone, which is compiled against the CUDA and torch that are there"}
LEFT_OUT = {"npu": "for --npu", "testing": "tests"} | SOURCE_ONLY
PIP = "pip>=25.1,<27"
# pip evaluates markers of the machine it runs on, whatever --platform says (pypa/pip#11664).
AS_IF = "import platform, sys; from pip._internal.cli.main import main; platform.machine = lambda: {!r}; sys.exit(main())"


@dataclass(frozen=True)
class Target:
    """Where the wheels are installed."""

    python: str
    arch: str

    def flags(self) -> list[str]:
        tags = [f"manylinux_2_{minor}_{self.arch}" for minor in range(GLIBC, 16, -1)] + [f"manylinux2014_{self.arch}"]
        platforms = [word for tag in tags for word in ("--platform", tag)]
        return ["--only-binary=:all:", *platforms, "--python-version", self.python, "--implementation", "cp"]


@dataclass(frozen=True)
class Wheel:
    name: str
    version: str
    file: str
    sha256: str
    path: Path | None = None  # on this disk


class Unresolved(Exception):
    """pip's own words, and which wheel is not to be had."""


def requirements(names: Iterable[str], torch_free: bool, npu: str | None, tests: bool) -> list[str]:
    """Our packages with their extras, at the versions that stand here, and what their tests take."""
    ours = workspace.packages()
    out = []
    for package in ours.values():
        folder = package.folder.name
        ways = [how for how in ALONE.get(folder, ()) if not (how.torch and torch_free)]
        if (names and folder not in names) or (torch_free and not ways):
            continue
        extras = sorted({extra for how in ways for extra in how.extras} if torch_free else set(package.extras) - set(LEFT_OUT))
        if npu and "npu" in package.extras:
            extras.append("npu")
        out.append(f"{package.name}[{','.join(extras)}]=={package.version}" if extras else f"{package.name}=={package.version}")
        out += [tool for how in ways if tests for tool in how.tools]
    return list(dict.fromkeys([*out, *(TOOLS if tests else ()), *([f"torch-npu=={npu}"] if npu else [])]))


def constraints(npu: str | None) -> list[str]:
    """Those of the repository; torch-npu brings the torch of its own X.Y.Z."""
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[:1].isalnum()]
    if npu is None:
        return lines
    release = re.match(r"\d+\.\d+\.\d+", npu)
    return [line for line in lines if not line.startswith("torch==")] + [f"torch=={release[0] if release else npu}"]


def build_from_source(wanted: list[str], pins: list[str], into: Path) -> list[str]:
    """Wheels of what is published as source alone, where an extra that needs it is asked for. Returns their requirements."""
    built = []
    for name, extra in FROM_SOURCE.items():
        if not any(extra in Requirement(line).extras for line in wanted):
            continue
        exact = next(line for line in pins if workspace.canonical(Requirement(line).name) == name)
        words = ["wheel", "--quiet", "--no-deps", "--disable-pip-version-check", "--wheel-dir", into, exact]
        environment = os.environ | {"PIP_BUILD_CONSTRAINT": str(ROOT / "constraints.txt")}
        subprocess.run([sys.executable, "-m", "pip", *map(str, words)], check=True, env=environment)
        if not list(into.glob(f"{name.replace('-', '_')}-*-none-any.whl")):
            raise Unresolved(f"{exact} is not pure Python: a wheel that is built here is for this machine alone")
        built.append(exact)
    return built


@functools.cache
def recent_pip() -> tuple[tempfile.TemporaryDirectory[str], Path]:
    """(Folder, which lasts as long as this process; the wheel in it) of a pip that resolves without downloading the wheels."""
    folder = tempfile.TemporaryDirectory()
    words = ["download", "--quiet", "--no-deps", "--disable-pip-version-check", "--dest", folder.name, PIP]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    return folder, next(Path(folder.name).glob("pip-*.whl"))


def pip(target: Target, *words: object) -> subprocess.CompletedProcess[str]:
    """pip as it would run there: under that Python, whose markers it evaluates, and taken for that machine."""
    python = interpreter(f"python{target.python}")
    if python is None:
        sys.exit(f"error: python{target.python} is not here; pip resolves for the Python that runs it\nhint: install it")
    command = [python, "-c", AS_IF.format(target.arch), *words, "--retries", "8", "--disable-pip-version-check"]
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    environment["PYTHONPATH"] = str(recent_pip()[1])
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment)


def resolve(target: Target, wanted: list[str], pins: list[str], ours: Path, indexes: Iterable[str] = ()) -> list[Wheel]:
    """What pip would install there. ours: the folder of our wheels. Raises Unresolved."""
    with tempfile.TemporaryDirectory() as scratch:
        report, limits = Path(scratch, "report.json"), Path(scratch, "constraints.txt")
        limits.write_text("\n".join(pins))
        words = ["install", "--dry-run", "--ignore-installed", "--progress-bar", "off"]
        words += ["--report", str(report), "--target", str(Path(scratch, "none"))]
        more = [word for index in indexes for word in ("--extra-index-url", index)]
        done = pip(target, *words, *target.flags(), "--constraint", limits, "--find-links", ours, *more, *wanted)
        if done.returncode:
            raise Unresolved(explained(done.stdout + done.stderr, target))
        items = json.loads(report.read_text())["install"]
    return sorted((wheel_of(item) for item in items), key=lambda wheel: wheel.name)


def wheel_of(item: dict) -> Wheel:
    address = urlparse(item["download_info"]["url"])
    path = Path(unquote(address.path))
    digest = item["download_info"]["archive_info"].get("hashes", {}).get("sha256", "")
    name, version = item["metadata"]["name"], item["metadata"]["version"]
    return Wheel(workspace.canonical(name), version, path.name, digest, path if address.scheme == "file" else None)


def explained(said: str, target: Target) -> str:
    """What pip prints of a resolution that failed, with the names of what has no wheel first.

    A pinned distribution without any is a conflict in pip's words: between whoever needs it and the pin.
    """
    missing = re.findall(r"No matching distribution found for (\S+)", said)
    conflict = re.search(r"The conflict is caused by:\n((?:    .*\n)+)", said)
    pinned = re.findall(r"The user requested \(constraint\) (\S+)", conflict[1]) if conflict else []
    lines = [f"no wheel of {name} for Python {target.python} on {target.arch}" for name in dict.fromkeys(missing + pinned)]
    lines += ["or what asks for it does not take the version of constraints.txt"] if pinned else []
    errors = [line for line in said.splitlines() if line.startswith("ERROR") and "Ignored the following" not in line]
    return "\n".join([*lines, *([conflict[0].rstrip()] if conflict else []), *errors]) or said


def download(target: Target, wheels: list[Wheel], into: Path, indexes: Iterable[str] = ()) -> None:
    """Into a folder, each as it was resolved: by version and SHA-256."""
    others = [wheel for wheel in wheels if not (into / wheel.file).exists()]
    with tempfile.TemporaryDirectory() as scratch:
        listing = Path(scratch, "requirements.txt")
        listing.write_text("".join(f"{w.name}=={w.version} --hash=sha256:{w.sha256}\n" for w in others))
        links = [word for folder in {w.path.parent for w in others if w.path} for word in ("--find-links", folder)]
        more = [word for index in indexes for word in ("--extra-index-url", index)]
        words = ["download", "--no-deps", "--quiet", "--require-hashes", "--dest", into, "--requirement", listing]
        done = pip(target, *words, *target.flags(), *links, *more)
    if done.returncode:
        sys.exit(f"error: pip download: {done.stderr}")


def build_ours(wanted: list[str], pins: list[str], into: Path) -> None:
    """Our wheels, and those that nobody publishes."""
    workspace.build(list(workspace.packages().values()), into)
    for exact in build_from_source(wanted, pins, into):
        print(f"built from source, there being no wheel: {exact}", file=sys.stderr)


def fill(target: Target, wanted: list[str], pins: list[str], into: Path, indexes: Iterable[str] = ()) -> list[Wheel]:
    """An empty folder becomes the wheelhouse. Raises Unresolved."""
    build_ours(wanted, pins, into)
    wheels = resolve(target, wanted, pins, into, indexes)
    for path in {*into.iterdir()} - {into / wheel.file for wheel in wheels}:
        path.unlink()  # ours that nobody asked for
    download(target, wheels, into, indexes)
    write_lists(into, wanted)
    return wheels


def write_lists(into: Path, wanted: list[str]) -> None:
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(into.glob("*.whl"))]
    (into / "SHA256SUMS").write_text("".join(lines))
    (into / "requirements.txt").write_text("".join(f"{line}\n" for line in wanted))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="PACKAGE", help="folders below packages/; all by default")
    parser.add_argument("--python", required=True, choices=("3.10", "3.11"))
    parser.add_argument("--arch", required=True, choices=("aarch64", "x86_64"))
    parser.add_argument("--npu", nargs="?", const=TORCH_NPU, metavar="VERSION", help=f"with torch-npu (default {TORCH_NPU})")
    parser.add_argument("--torch-free", action="store_true", help="only what needs no torch")
    parser.add_argument("--tests", action="store_true", help="with what the tests take")
    parser.add_argument("--index", action="append", default=[], help="another index, beside pip's own; may be given again")
    parser.add_argument("--plan", action="store_true", help="resolve and list; download nothing")
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    if options.npu and options.torch_free:
        parser.error("--npu and --torch-free take each other out")
    unknown = set(options.names) - {package.folder.name for package in workspace.packages().values()}
    if unknown:
        parser.error(f"no such package: {', '.join(sorted(unknown))}")

    target = Target(options.python, options.arch)
    wanted = requirements(options.names, options.torch_free, options.npu, options.tests)
    with tempfile.TemporaryDirectory() as scratch:
        into = Path(scratch) if options.plan else options.out or ROOT / f"wheelhouse/py{target.python}-{target.arch}"
        into.mkdir(parents=True, exist_ok=True)
        if not options.plan and any(into.iterdir()):
            sys.exit(f"error: {into} is not empty\nhint: remove it, or give another with --out")
        try:
            if options.plan:
                build_ours(wanted, constraints(options.npu), into)
                wheels = resolve(target, wanted, constraints(options.npu), into, options.index)
                print("\n".join(wheel.file for wheel in wheels))
            else:
                wheels = fill(target, wanted, constraints(options.npu), into, options.index)
        except Unresolved as error:
            sys.exit(f"error: {error}")
    print(f"{len(wheels)} wheels for Python {target.python} on {target.arch}", file=sys.stderr)
    for extra, reason in SOURCE_ONLY.items():
        print(f"left out: the extra [{extra}]: {reason}", file=sys.stderr)
    if not options.plan:
        print(f"cd {into} && sha256sum --check --quiet SHA256SUMS")
        print(f"python{target.python} -m pip install --no-index --find-links . --requirement requirements.txt")


if __name__ == "__main__":
    main()
