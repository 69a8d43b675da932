"""torchrun as a library: `python -m jumar.train_core.torchrun PID FAILURES.json NPROC MODULE ARGS...`.

Started by `launch`, whose process id comes first. Among several machines it reads PET_NODE_RANK, PET_MASTER_ADDR and
PET_MASTER_PORT itself.

torchrun's own command prints a page about every rank that ended with a code; here that goes into FAILURES.json, and to who reads
it: {"1": {"exitcode": -9, "pid": 4711, "timestamp": 1700000000}}, by rank.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from jumar.train_core.parent import STARTED_BY, die_with_parent


def main(arguments: list[str]) -> int:
    """0 if every rank returned 0, else 1. Ends with `launch`; then the ranks end as well, see `run.stop`."""
    launcher, failures, count, *command = arguments
    die_with_parent(signal.SIGKILL, int(launcher))
    os.environ[STARTED_BY] = str(os.getpid())
    signal.signal(signal.SIGUSR1, lambda *_: None)  # Slurm sends it to every process of a job; the ranks have it from `launch`
    from torch.distributed import run as library
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    torchrun: Any = library  # it has no types
    for name in ("torch.distributed", "torch.distributed.elastic.agent.server.api"):  # the latter sets a level of its own
        logging.getLogger(name).setLevel(logging.CRITICAL)
    alone = ["--standalone"] if os.environ["PET_NNODES"] == "1" else []
    try:
        torchrun.run(torchrun.parse_args([*alone, "--nproc-per-node", count, "-m", *command]))
    except ChildFailedError as fault:
        found: dict[str, Any] = {
            str(rank): {"exitcode": failure.exitcode, "pid": failure.pid, "timestamp": failure.timestamp}
            for rank, failure in fault.failures.items()
        }
        Path(failures).write_text(json.dumps(found), encoding="utf-8")
        return 1
    except SignalException:  # `launch` knows: it has sent it on
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
