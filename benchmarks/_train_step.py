"""One side of benchmarks/train.py: makes the model, then a step for each line on standard input, and says what it cost.

python _train_step.py transformers|jumar SHAPE.json      prints {"cpu_s", "wall_s", "loss"} a step
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

STACK = ExitStack()
Step = Callable[[torch.Tensor], float]


def transformers_step(shape: dict) -> Step:
    """As a user of transformers writes it: SDPA, torch's fused AdamW, clipping."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(shape["model"], attn_implementation="sdpa")
    model = AutoModelForCausalLM.from_pretrained(shape["model"], config=config, dtype=torch.float32).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=True)

    def step(batch: torch.Tensor) -> float:
        total = 0.0
        for rows in batch.split(shape["micro_batch"]):
            logits = model(input_ids=rows[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
            (loss * len(rows) / len(batch)).backward()
            total += loss.item() * len(rows) / len(batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def jumar_step(shape: dict) -> Step:
    """The trainer's own step, fed by hand."""
    from jumar.device import open_device
    from jumar.train_core.job import resolve
    from jumar.train_core.recipe import Data, Load, Optim, Recipe, Train
    from jumar.train_core.run.main import engine
    from jumar.train_core.run.stop import Stop

    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    recipe = Recipe(
        load=Load(path=Path(shape["model"])),
        data=Data(seq_len=shape["seq_len"]),
        optim=Optim(lr=3e-4),
        train=Train(precision="fp32", global_batch_size=shape["batch"], micro_batch_size=shape["micro_batch"]),
    )
    job = resolve(recipe, world=1, device="cpu")
    hardware = open_device("cpu")
    _, where = STACK.enter_context(engine(hardware))
    from jumar.train_core.model.build import build
    from jumar.train_core.run.checkpoint import Progress
    from jumar.train_core.run.groups import model_parallel
    from jumar.train_core.run.loop import Loop
    from jumar.train_core.run.optimizer import wrap
    from jumar.train_core.run.weights import load_weights

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    STACK.enter_context(model_parallel(job, hardware))
    config, chunks = build(job, hardware.ops(), where)
    load_weights(job, chunks, recipe.load.path, None)
    loop = Loop(job, wrap(job, config, chunks, hardware.ops()), hardware, where, Stop())
    positions = torch.arange(shape["seq_len"])

    def step(batch: torch.Tensor) -> float:
        def micro(rows: torch.Tensor) -> dict[str, torch.Tensor]:
            tokens, labels = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
            places = positions.expand(len(rows), -1)
            return {"tokens": tokens, "labels": labels, "loss_mask": torch.ones(tokens.shape), "position_ids": places}

        return loop.step(Progress(), iter([micro(rows) for rows in batch.split(shape["micro_batch"])]))[1]["loss"]

    return step


def main() -> None:
    torch.set_num_threads(1)
    shape = json.loads(Path(sys.argv[2]).read_text())
    step = {"transformers": transformers_step, "jumar": jumar_step}[sys.argv[1]](shape)
    print("ready", flush=True)
    for number in map(int, sys.stdin):
        seed = torch.Generator().manual_seed(number)
        batch = torch.randint(shape["vocab"], (shape["batch"], shape["seq_len"] + 1), generator=seed)
        cpu, wall = time.process_time(), time.perf_counter()
        loss = step(batch)
        cost = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall, "loss": loss}
        print(json.dumps(cost), flush=True)


if __name__ == "__main__":
    main()
