"""`jumar-convert COMMAND --help` against the two imports that every typer command pays for, in the same run.

    python benchmarks/startup.py [--rounds 10]

Medians of wall and CPU seconds of whole processes, and the ratio to `python -c "import typer, rich"`.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

PEER = [sys.executable, "-c", "import typer, rich.markdown, typer.rich_utils"]
COMMAND = str(Path(sys.executable).with_name("jumar-convert"))


def once(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    rows = {"import typer, rich": PEER}
    rows |= {f"jumar-convert {c} --help": [COMMAND, c, "--help"] for c in ("to-megatron", "to-hf", "verify", "inspect")}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for turn in range(rounds + 1):
        for name, command in rows.items():
            seconds = once(command)
            if turn:  # the first warms up
                taken[name].append(seconds)
    print(f"| median of {rounds} | wall, s | CPU-s | over the peer |\n| --- | --- | --- | --- |")
    peer = statistics.median(cpu for _, cpu in taken["import typer, rich"])
    for name, seconds in taken.items():
        wall, cpu = (statistics.median(column) for column in zip(*seconds, strict=True))
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {cpu / peer:.2f} |")


if __name__ == "__main__":
    main()
