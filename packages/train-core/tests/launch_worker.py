"""Stands in for a rank: `python -m launch_worker WHAT DIRECTORY`, started by `launch`."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from jumar.train_core.exit_file import ExitFile

RANK = int(os.environ["RANK"])


def main(what: str, run: Path) -> int:
    ended = ExitFile(run)
    (run / f"rank{RANK}").write_text(
        " ".join(os.environ[k] for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "JUMAR_TRAIN_LAUNCHED"))
    )
    if what == "fail":  # as a layout that one rank cannot build
        if RANK == 1:
            ended.write(3, "does not fit", RANK)
        time.sleep(0.5)
        return 3
    if what == "quiet":  # a code, and no word of it
        return 4
    if what == "killed":
        if RANK == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    if what == "wait":
        return wait(run, ended)
    ended.write(0, "", RANK)
    return 0


def wait(run: Path, ended: ExitFile) -> int:
    """Counts the signals that come within a second of the first, then is stopped with a checkpoint saved, as all are."""
    heard: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda n, _frame: heard.append(n))
    (run / f"ready{RANK}").touch()
    while not heard:
        time.sleep(0.05)
    time.sleep(1)
    (run / f"heard{RANK}").write_text(" ".join(str(n) for n in heard))
    ended.write(75, "", RANK)
    while not all((run / f"heard{rank}").exists() for rank in range(int(os.environ["WORLD_SIZE"]))):
        time.sleep(0.05)  # torchrun ends the others when the first one is gone
    return 75


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
