"""Each package's own tests, the package installed as its users install it: from its wheel, into an empty environment of its own
that holds only what it declares.

    python scripts/packages_alone.py                                        every package, on this Python
    python scripts/packages_alone.py --python python3.10 --torch-free       those that need no torch, on another
    python scripts/packages_alone.py --quick schema infer                   without the tests marked `matrix`; these packages
    python scripts/packages_alone.py --offline --torch-free                 from a wheelhouse, with the network cut

The siblings that a package declares are installed from their wheels too, the rest from the index within constraints.txt.
A Python that is not here is skipped aloud.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import offline
import wheelhouse
import workspace
from workspace import ALONE, TOOLS, Alone

ROOT = workspace.ROOT
PLACE = ROOT / ".venv-alone"


@dataclass(frozen=True)
class Source:
    """Where wheels come from. offline: from that folder alone, and with the network cut where the machine permits it."""

    wheels: Path
    offline: bool = False
    prefix: tuple[str, ...] = ()  # of every command that is run in an environment


def environment() -> dict[str, str]:
    """Of the processes that run in an environment: nothing of this one's, and nothing that is not in constraints.txt."""
    left_out = ("PYTHONPATH", "VIRTUAL_ENV")
    pins = dict.fromkeys(("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"), str(ROOT / "constraints.txt"))
    return {name: value for name, value in os.environ.items() if name not in left_out} | pins


def install(python: Path, source: Source, *wanted: str) -> None:
    pip = [*source.prefix, sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--retries", "8"]
    settings = environment()
    if source.offline:
        pip.append("--no-index")
        settings = {name: value for name, value in settings.items() if name != "PIP_FIND_LINKS"} | {"PIP_CONFIG_FILE": os.devnull}
    subprocess.run([*pip, "--find-links", str(source.wheels), *wanted], check=True, env=settings, cwd=PLACE)


def faults_of_installation(python: Path, expected: set[str], torch: bool) -> list[str]:
    """What came along without being declared, and what is missing."""
    listing = "from importlib.metadata import distributions as d; print(*sorted({x.metadata['Name'].lower() for x in d()}))"
    asked = [python, "-I", "-c", listing]  # -I: not what lies in this directory
    done = subprocess.run(asked, check=True, capture_output=True, text=True, env=environment())
    here = set(map(workspace.canonical, done.stdout.split()))
    ours = {name for name in here if name == "jumar" or name.startswith("jumar-")}
    faults = [f"came along: {name}" for name in sorted(ours - expected)]
    faults += [f"is missing: {name}" for name in sorted(expected - ours)]
    heavy = () if torch else ("torch", "torch-npu", "transformers", "megatron-core")
    return faults + [f"came along: {name}" for name in heavy if name in here]


def faults_of_tests(report: Path) -> tuple[int, list[str]]:
    """(Tests that ran, what is wrong with them) by pytest's JUnit file: none ran, or one was skipped for a missing sibling."""
    cases = list(ET.parse(report).getroot().iter("testcase"))
    skips = [(case, skip) for case in cases for skip in case.iter("skipped")]
    faults = [
        f"{case.get('classname')}::{case.get('name')} is skipped: {skip.get('message')}"
        for case, skip in skips
        if re.search(r"\bjumar\b", skip.get("message") or "")
    ]
    ran = len(cases) - len(skips)
    return ran, faults if ran else [*faults, "no test ran"]


def check(package: workspace.Package, how: Alone, python: str, source: Source, quick: bool, workers: int) -> list[str]:
    """Installs a package, asks its commands for help, runs its tests. Returns what is wrong."""
    home = PLACE / package.folder.name
    shutil.rmtree(home, ignore_errors=True)
    subprocess.run([python, "-m", "venv", "--without-pip", home], check=True)
    inside = home / "bin/python"
    name = f"{package.name}[{','.join(how.extras)}]" if how.extras else package.name
    install(inside, source, f"{name}=={package.version}")

    ours = workspace.packages()
    faults = faults_of_installation(inside, workspace.closure(package.name, how.extras, ours), how.torch)
    for command in package.commands:
        asked = [*source.prefix, home / "bin" / command, "--help"]
        done = subprocess.run(asked, capture_output=True, text=True, env=environment(), cwd=home)
        if done.returncode or "Usage:" not in done.stdout:
            faults.append(f"{command} --help: exit code {done.returncode}: {done.stderr.strip()[-500:]}")

    tests = package.folder / "tests"
    if tests.exists() and not faults:
        install(inside, source, *TOOLS, *how.tools)
        faults += run_tests(inside, source, [tests / file for file in how.tests] or [tests], quick, workers)
    if not faults:
        shutil.rmtree(home)
    return faults


def run_tests(inside: Path, source: Source, paths: Sequence[Path], quick: bool, workers: int) -> list[str]:
    report = PLACE / "report.xml"
    report.unlink(missing_ok=True)
    chosen = "not slow and not matrix" if quick else "not slow"
    side_by_side = ["-n", str(workers), "--dist", "worksteal"] if workers > 1 else []
    command = [*source.prefix, inside, "-m", "pytest", "-q", "-rs", *side_by_side, "-m", chosen, f"--junitxml={report}", *paths]
    path = f"{inside.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, cwd=ROOT, env=environment() | {"PATH": path})
    faults = [] if done.returncode == 0 else [f"pytest: exit code {done.returncode}"]
    return faults + (faults_of_tests(report)[1] if report.exists() else [])


def online(ours: dict[str, workspace.Package]) -> Source:
    wheels = PLACE / "wheels"
    if not wheels.exists():
        workspace.build(list(ours.values()), wheels)
    return Source(wheels)


def source_of(python: str, names: Sequence[str], torch_free: bool) -> Source:
    """A wheelhouse for this machine, and a network that is cut."""
    asked = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    version = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    into = PLACE / f"wheelhouse-{version}"
    into.mkdir(parents=True)
    wanted = wheelhouse.requirements(names, torch_free, None, tests=True)
    try:
        wheels = wheelhouse.fill(wheelhouse.Target(version, platform.machine()), wanted, wheelhouse.constraints(None), into)
    except wheelhouse.Unresolved as error:
        sys.exit(f"error: {error}")
    print(f"{len(wheels)} wheels for Python {version} in {into.relative_to(ROOT)}", file=sys.stderr)
    if offline.way():
        return Source(into, True, (sys.executable, str(ROOT / "scripts/offline.py")))
    print("the network is not cut: this machine permits no namespace for that", file=sys.stderr)
    return Source(into, True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="PACKAGE", help="folders below packages/; all by default")
    parser.add_argument("--python", action="append", help="a Python to install on; may be given again (default: this one)")
    parser.add_argument("--torch-free", action="store_true", help="only what needs no torch")
    parser.add_argument("--offline", action="store_true", help="install from a wheelhouse with --no-index, with the network cut")
    parser.add_argument("--quick", action="store_true", help="without the tests marked `matrix`")
    parser.add_argument("--workers", type=int, default=2, help="tests at a time")
    options = parser.parse_args()
    ours = workspace.packages()
    folders = {package.folder.name: package for package in ours.values()}
    unknown = sorted(set(options.names) - set(folders))
    if unknown:
        parser.error(f"no such package: {', '.join(unknown)}; there are {', '.join(folders)}")

    shutil.rmtree(PLACE, ignore_errors=True)
    faults = []
    for name in options.python or [sys.executable]:
        python = workspace.interpreter(name)
        if python is None:
            print(f"skipped: the packages alone on {name}, which is not installed here", file=sys.stderr)
            continue
        source = source_of(python, options.names, options.torch_free) if options.offline else online(ours)
        for folder, package in folders.items():
            for how in ALONE[folder] if folder in (options.names or folders) else []:
                if how.torch and options.torch_free:
                    continue
                title = f"{folder}[{','.join(how.extras)}] alone on {Path(name).name}"
                print(f"== {title}", flush=True)
                start = time.monotonic()
                found = check(package, how, python, source, options.quick, options.workers)
                faults += [f"{title}: {fault}" for fault in found]
                print(f"== {title}: {'FAILED' if found else 'done'} in {time.monotonic() - start:.0f} s", flush=True)
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
