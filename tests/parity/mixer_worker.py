"""Logits of a packed sample and of its documents one by one, by state-space layers: mixer_worker.py MODEL_DIR REPORT."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jumar.device import open_device
from jumar.schema.recipe import validate
from jumar.train_core.job import resolve
from jumar.train_core.recipe import Recipe
from jumar.train_core.run.main import engine

LENGTHS = (1, 11, 3, 17)


def main() -> None:
    model, report = sys.argv[1], Path(sys.argv[2])
    values: dict[str, Any] = {"model": {"path": model}, "load": {"path": model}, "data": {"seq_len": 32}}
    values["train"] = {"steps": 1, "global_batch_size": 1, "precision": "fp32"}
    job = resolve(validate(Recipe, values, "packed"), world=1, device="cpu")
    with engine(open_device("cpu")) as (hardware, where):
        from jumar.train_core.model.build import build
        from jumar.train_core.parallel.packed import packed
        from jumar.train_core.run.groups import joined, model_parallel
        from jumar.train_core.run.weights import load_weights

        with joined(hardware), model_parallel(job, hardware), torch.no_grad():
            _, chunks = build(job, hardware.ops(), where)
            load_weights(job, chunks, Path(model), None)
            tokens = torch.randint(job.spec.vocab_size, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))
            numbers = np.repeat(np.arange(1, len(LENGTHS) + 1), LENGTHS)[None]
            together = chunks[0](tokens, None, None, packed_seq_params=packed(numbers))
            alone = torch.cat([chunks[0](document, None, None) for document in tokens.split(LENGTHS, 1)], 1)
            whole = chunks[0](tokens, None, None)
    real = job.spec.vocab_size
    apart = {name: float((together - other)[..., :real].abs().max()) for name, other in (("alone", alone), ("whole", whole))}
    report.write_text(json.dumps(apart))


if __name__ == "__main__":
    main()
