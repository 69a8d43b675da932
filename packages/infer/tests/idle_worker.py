"""torchrun idle_worker.py DIR SECONDS: the first rank asks after it has been silent for longer than a group waits by default."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

import torch.distributed as dist

from jumar.infer import Engine, Sampling
from jumar.infer.engine import Limits
from jumar.infer.followers import follow, leading


def main(directory: str, seconds: str) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=float(seconds) / 2))
    engine = Engine.open(directory, Limits(max_batch=2, cache_tokens=512), device="cpu")
    if dist.get_rank():
        follow(engine)
    else:
        with leading(engine):
            time.sleep(float(seconds))
            print(engine.generate([[1, 2, 3]], Sampling(max_new_tokens=8, ignore_eos=True))[0].output)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
