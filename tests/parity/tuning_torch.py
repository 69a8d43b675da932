"""Tunes transformers' models one conversation at a time, without padding or packing: what jumar-train sft is compared with.

python tuning_torch.py JOBS.json REPORT.json

JOBS.json: {"model": DIR, "steps": [[{"tokens", "labels"}, ...], ...], "lr", "weight_decay", "clip_grad", "eps"} each; labels are
not shifted. The report has losses, norms, and where the first step's gradients are: {"loss", "grad_norm", "gradients": FILE.npz}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM


def curve(job: dict[str, Any], gradients: Path) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=torch.float32, attn_implementation="eager"
    ).eval()  # no dropout
    model.get_input_embeddings().padding_idx = None  # a token as any other here; torch would give it no gradient
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": job["weight_decay"]},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=job["lr"], betas=(0.9, 0.95), eps=job["eps"])
    losses, norms = [], []
    for talks in job["steps"]:
        adam.zero_grad()
        count = sum(label != -100 for talk in talks for label in talk["labels"][1:])
        total = 0.0
        for talk in talks:
            logits = model(torch.tensor([talk["tokens"]]), use_cache=False).logits[0, :-1]
            loss = cross_entropy(logits, torch.tensor(talk["labels"][1:]), ignore_index=-100, reduction="sum") / count
            loss.backward()
            total += float(loss.detach())
        if not losses:
            named = {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}
            np.savez(gradients, **named)
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), job["clip_grad"])))
        losses.append(total)
        adam.step()
    return {"loss": losses, "grad_norm": norms, "gradients": str(gradients)}


def main() -> None:
    torch.set_num_threads(1)
    report = Path(sys.argv[2])
    jobs = json.loads(Path(sys.argv[1]).read_text())
    found = [curve(job, report.with_name(f"{number}.npz")) for number, job in enumerate(jobs)]
    report.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
