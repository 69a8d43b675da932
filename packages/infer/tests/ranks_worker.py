"""torchrun ranks_worker.py REPORT PROMPTS_JSON DIR...: answers over two ranks, tensor parallel and in stages."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist

from jumar.infer import Engine, Sampling
from jumar.infer.engine import Limits


def main(report: str, prompts: str, *directories: str) -> None:
    found: dict[str, list] = {}
    for directory in directories:
        for pp in (1, 2):
            engine = Engine.open(directory, Limits(max_batch=2, chunk=32, cache_tokens=512), device="cpu", pp=pp)
            requests = engine.generate(json.loads(prompts), Sampling(max_new_tokens=8, ignore_eos=True, logprobs=0))
            found[f"{directory} {pp}"] = [[r.output, [p.logprob for p in r.logprobs]] for r in requests]
    Path(f"{report}.{os.environ['RANK']}").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
