"""Write constraints.txt: what pip resolves today for requirements-dev.txt, on every Python given, oldest first.

    python3 scripts/update_constraints.py python3.10 python3.11

Nothing is installed: pip only resolves. Where the Pythons get different versions, the lines carry markers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ["hatchling"]  # the packages are built with it, in an environment that these constraints pin too
PINNED_BY_TORCH = ("nvidia-", "cuda-", "triton")  # the CUDA builds of torch name exact versions themselves
HEADER = """\
# The exact versions that the tests run with. Written by scripts/update_constraints.py.
# torch is named without a local version: 2.13.0 matches the CPU and the CUDA builds alike.
"""


def resolve(python: str, scratch: Path) -> tuple[str, dict[str, str]]:
    """(Python's "3.x", {distribution: version}) that pip would install for requirements-dev.txt."""
    venv = scratch / "venv"
    subprocess.run([python, "-m", "venv", "--clear", venv], check=True)
    pip = [venv / "bin/python", "-m", "pip", "install", "--quiet", "--retries", "8"]
    subprocess.run([*pip, "--upgrade", "pip"], check=True)  # resolving without downloads needs a recent pip
    report = scratch / "report.json"
    wanted = ["--requirement", "requirements-dev.txt", *BUILD]
    subprocess.run([*pip, "--dry-run", "--ignore-installed", "--report", report, *wanted], check=True, cwd=ROOT)

    answer = json.loads(report.read_text())
    ours = [item for item in answer["install"] if "dir_info" not in item["download_info"]]
    versions = {item["metadata"]["name"]: item["metadata"]["version"].partition("+")[0] for item in ours}
    kept = {name: version for name, version in versions.items() if not name.startswith(PINNED_BY_TORCH)}
    return answer["environment"]["python_version"], kept


def lines(name: str, resolved: list[tuple[str, dict[str, str]]]) -> list[str]:
    """The constraints of one distribution: one line for each run of Pythons that agree on its version."""
    runs: list[list[str]] = []  # [version, first Python of the run]
    for python, versions in resolved:
        version = versions.get(name)
        if version is not None and (not runs or runs[-1][0] != version):
            runs.append([version, python])
    out = []
    for i, (version, first) in enumerate(runs):
        bounds = [f'python_version >= "{first}"'] * (i > 0)
        bounds += [f'python_version < "{runs[i + 1][1]}"'] if i + 1 < len(runs) else []
        out.append("; ".join([f"{name}=={version}", *([" and ".join(bounds)] if bounds else [])]))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="+", metavar="PYTHON", help="an interpreter: python3.10")
    pythons = parser.parse_args().pythons
    if missing := [python for python in pythons if shutil.which(python) is None]:
        parser.error(f"no such interpreter: {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as scratch:
        resolved = [resolve(python, Path(scratch)) for python in pythons]
    names = sorted({name for _, versions in resolved for name in versions}, key=str.lower)
    text = HEADER + "".join(f"{line}\n" for name in names for line in lines(name, resolved))
    (ROOT / "constraints.txt").write_text(text)
    print(f"constraints.txt: {len(names)} distributions, Python {', '.join(p for p, _ in resolved)}", file=sys.stderr)


if __name__ == "__main__":
    main()
