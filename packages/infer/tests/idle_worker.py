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
            for prompts in ([[1, 2, 3], [4, 5]], [[1, 2, 3]]):  # the third has the place of one that is done
                print([r.output for r in engine.generate(prompts, Sampling(max_new_tokens=8, ignore_eos=True))])


if __name__ == "__main__":
    main(*sys.argv[1:])
