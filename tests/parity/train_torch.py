"""Trains transformers' models with torch's AdamW on batches that were written down: what jumar-train is compared with.

python train_torch.py JOBS.json REPORT.json

A process of its own: megatron-core's mends for the CPU are not applied here. JOBS.json: {"model": DIR, "batches": [...],
"per_step": micro batches a step, "lr", "weight_decay", "clip_grad", "eps"} each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM


def curve(job: dict[str, Any]) -> dict[str, list[float]]:
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="eager").train()
    model.get_input_embeddings().padding_idx = None  # a token as any other here; torch would give it no gradient
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": job["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=job["lr"], betas=(0.9, 0.95), eps=job["eps"])
    losses, norms = [], []
    for start in range(0, len(job["batches"]), job["per_step"]):
        adam.zero_grad()
        micro = [
            {key: torch.tensor(value) for key, value in batch.items()} for batch in job["batches"][start:][: job["per_step"]]
        ]
        count = sum(batch["loss_mask"].sum() for batch in micro)
        total = torch.zeros(())
        for batch in micro:
            logits = model(batch["tokens"].long(), use_cache=False).logits
            each = cross_entropy(logits.flatten(0, 1), batch["labels"].long().flatten(), reduction="none")
            loss = (each * batch["loss_mask"].flatten()).sum() / count
            loss.backward()
            total += loss.detach()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), job["clip_grad"])))
        losses.append(float(total))
        adam.step()
    return {"loss": losses, "grad_norm": norms}


def main() -> None:
    torch.set_num_threads(1)
    jobs = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([curve(job) for job in jobs]))


if __name__ == "__main__":
    main()
