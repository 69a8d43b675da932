"""Trains recipes with the CPU's operations and with the NPU's on CPU tensors, many in one launch.

torchrun --nproc-per-node N npu_train_worker.py ROWS.json REPORT.json

ROWS.json is a list of {"name", "recipe", "on": "cpu" or "npu", "packed": attention gets its batch as packed sequences, "wrong": a
name in WRONG}. REPORT.json holds for each: losses and norms, how often each kernel ran, or the error that ended it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import warnings
from contextlib import nullcontext
from dataclasses import replace as but
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jumar.device import Ops, open_device
from jumar.device.cpu import Cpu
from jumar.device.testing.npu_numerics import RAN
from jumar.device.testing.npu_stand_in import npu_device, npu_operations
from jumar.device.testing.wrong_calls import Change, Meddling, at, called, rename, replace, without
from jumar.schema.recipe import validate
from jumar.train_core.job import resolve
from jumar.train_core.recipe import Recipe
from jumar.train_core.run.main import engine, run
from jumar.train_core.run.stop import Stop

ATTENTION, EXPERTS = "npu_fusion_attention", "npu_grouped_matmul"
WRONG: dict[str, tuple[str, Change]] = {
    "a name that is not there": ("npu_rms_norm", called("npu_rms_normal")),
    "pre_tokens for pre_tockens": (ATTENTION, rename("pre_tockens", "pre_tokens")),
    "the layout of another tensor": (ATTENTION, at(4, "BNSD")),
    "the mask the other way round": (ATTENTION, replace(atten_mask=lambda mask: ~mask)),
    "no mask": (ATTENTION, without("atten_mask")),
    "aligned at the start": (ATTENTION, replace(sparse_mode=2)),
    "all of the mask": (ATTENTION, replace(sparse_mode=1)),
    "a window of one more": (ATTENTION, replace(pre_tockens=lambda n: n + 1)),
    "lengths of queries off by one": (ATTENTION, replace(actual_seq_qlen=lambda ends: [n - 1 for n in ends[:-1]] + ends[-1:])),
    "lengths for their sums": (ATTENTION, replace(actual_seq_qlen=lambda ends: ends[:1] * len(ends))),
    "no scale": (ATTENTION, without("scale")),
    "turned the other way": ("npu_rotary_mul", at(2, lambda sin: -sin)),
    "halves for pairs": ("npu_rotary_mul", replace(rotary_mode="half")),
    "the wrong half": ("npu_swiglu", at(0, lambda x: x.roll(x.shape[-1] // 2, -1))),
    "epsilon called eps": ("npu_rms_norm", rename("epsilon", "eps")),
    "counts for their sums": (EXPERTS, replace(group_list=lambda ends: ends.diff(prepend=ends[:1] * 0))),
    "int32 sums": (EXPERTS, replace(group_list=lambda ends: ends.int())),
    "int64 order": ("npu_moe_token_unpermute", at(1, lambda order: order.long())),
    "the inverse order": ("npu_moe_token_unpermute", at(1, lambda order: order.argsort().int())),
    "experts as floats": ("npu_moe_token_permute", at(1, lambda chosen: chosen.float())),
    "powers of this step": ("npu_apply_adam_w", at(0, lambda power: power * 0.9)),
    "no decay": ("npu_apply_adam_w", at(3, 0.0)),
}


def packed(ops: Ops) -> Ops:
    """The table with attention that is given its batch as packed sequences: TND, as tuning will."""

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **settings: Any) -> torch.Tensor:
        ends = [torch.arange(t.shape[0] + 1, dtype=torch.int32) * t.shape[1] for t in (q, k)]
        flat = (t.flatten(0, 1) for t in (q, k, v))
        return ops.attention(*flat, cu_seqlens_q=ends[0], cu_seqlens_k=ends[1], **settings).unflatten(0, q.shape[:2])

    return but(ops, attention=attention)


class Recorder:
    """Takes the place of Metrics, and writes nothing."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def start(self, step: int) -> None: ...
    def say(self, word: str, text: str) -> None: ...
    def close(self) -> None: ...

    def log(self, step: int, values: dict[str, Any]) -> None:
        if "loss" in values:
            self.steps.append(values)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *fault: object) -> None: ...


class WithOps(Cpu):
    """The CPU with a table that a row chooses."""

    def __init__(self, ops: Ops) -> None:
        self.table = ops

    def ops(self) -> Ops:
        return self.table


def run_row(row: dict[str, Any], where: torch.device, stop: Stop) -> dict[str, Any]:
    from jumar.train_core.megatron import mend
    from jumar.train_core.run.groups import model_parallel

    job = resolve(validate(Recipe, row["recipe"], row["name"]), world=dist.get_world_size(), device="cpu")
    ops = (npu_device() if row["on"] == "npu" else open_device("cpu")).ops()
    hardware, recorder = WithOps(packed(ops) if row["packed"] else ops), Recorder()
    mend(where.type, hardware.ops())
    RAN.clear()
    wrong = npu_operations(Meddling(*WRONG[row["wrong"]])) if row["wrong"] else nullcontext()
    with wrong, warnings.catch_warnings(record=True) as said, model_parallel(job, hardware):
        warnings.simplefilter("always")
        run(job, hardware, where, stop, recorder)
    report = {key: [record[key] for record in recorder.steps] for key in ("loss", "grad_norm")}
    return report | {"ran": dict(RAN), "said": sorted({str(w.message) for w in said if "no NPU kernel" in str(w.message)})}


def main() -> None:
    rows, report = json.loads(Path(sys.argv[1]).read_text()), {}
    torch.set_num_threads(1)
    with Stop() as stop, engine(npu_device()) as (hardware, where):
        logging.getLogger("megatron").setLevel(logging.ERROR)
        from jumar.train_core.run.groups import joined

        with joined(hardware):
            for row in rows:
                try:
                    report[row["name"]] = run_row(row, where, stop)
                except Exception as fault:  # noqa: BLE001  # the report says it, and a wrong call is to end so
                    report[row["name"]] = {"error": f"{type(fault).__name__}: {fault}", "trace": traceback.format_exc()}
                    if dist.get_world_size() > 1:  # the other ranks may wait for this one
                        break
            if dist.get_rank() == 0:
                Path(sys.argv[2]).write_text(json.dumps(report))
            if any("error" in found for found in report.values()) and dist.get_world_size() > 1:
                os._exit(1)


if __name__ == "__main__":
    main()
