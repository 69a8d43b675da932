"""A checkpoint as training on NPUs leaves it, converted where there is neither torch_npu nor megatron."""

from __future__ import annotations

import argparse
import enum
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import harness
from as_on_npu import modules, npu_reducer


class ModelType(enum.Enum):
    encoder_or_decoder = 1


class AttnBackend(enum.IntFlag):
    auto = 5


class RerunState(enum.Enum):
    NOT_RUNNING_YET = 0


def as_trained(path: Path) -> None:
    """Saves a shard again with what a training run adds to it: optimizer, scheduler, random states, rerun state, live args."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        shard = torch.load(path, weights_only=True)
    args = shard["args"]
    args.model_type, args.attention_backend = ModelType.encoder_or_decoder, AttnBackend.auto
    args.rank, args.world_size, args.data_path = 3, 4, ["1.0", "corpus_text_document"]
    weights = list(shard["model"].values())
    moments = {i: {"exp_avg": torch.randn_like(w), "exp_avg_sq": torch.rand_like(w)} for i, w in enumerate(weights)}
    shard |= {
        "optimizer": {"optimizer": {"state": moments, "param_groups": [{"lr": 1e-4, "params": list(moments)}]}},
        "opt_param_scheduler": {"max_lr": 1e-4, "num_steps": 128},
        "rng_state": [
            {
                "random_rng_state": random.getstate(),
                "np_rng_state": np.random.get_state(),
                "torch_rng_state": torch.get_rng_state(),
                "cuda_rng_state": torch.get_rng_state(),
                "rng_tracker_states": {"model-parallel-rng": torch.get_rng_state()},
            }
        ],
        "rerun_state_machine": {"mode": RerunState.NOT_RUNNING_YET},
    }
    shard["model"] = {name: torch.nn.Parameter(w) if i % 2 else w for i, (name, w) in enumerate(shard["model"].items())}
    with (
        npu_reducer(npu_format=2),
        modules(
            megatron__core__enums={"ModelType": ModelType},
            megatron__core__transformer__enums={"AttnBackend": AttnBackend},
            megatron__core__rerun_state_machine={"RerunState": RerunState},
        ),
    ):
        torch.save(shard, path)


@pytest.mark.compat(
    "read",
    "torch-npu 2.7.1",
    "`mp_rank_*` shards saved on NPUs",
    "with its reducer, RNG state and the training stacks' enums in `args`; the file is made by the test from that reducer",
)
def test_shards_of_an_npu_run_come_back_whole(hf: Callable[[str], Path], tmp_path: Path) -> None:
    source, trained, back = hf("qwen2"), tmp_path / "trained", tmp_path / "back"
    harness.convert(source, trained, {"tp": 2, "pp": 2})
    for shard in sorted(trained.glob("iter_*/*/model_optim_rng.pt")):
        as_trained(shard)
    harness.run("-m", "jumar.ckpt_convert", "to-hf", trained, back)
    harness.run("-m", "jumar.ckpt_convert", "verify", source, back)
    harness.run("-m", "jumar.ckpt_convert", "to-megatron", trained, tmp_path / "resharded", "--pp", "4")
    harness.run("-m", "jumar.ckpt_convert", "verify", source, tmp_path / "resharded")

    with torch.serialization.safe_globals([argparse.Namespace]):
        shard = torch.load(next((tmp_path / "resharded").glob("iter_*/*/model_optim_rng.pt")), weights_only=True)
    assert shard["args"].data_path == ["1.0", "corpus_text_document"], "plain args of the run go along"
    assert not hasattr(shard["args"], "model_type"), "classes and enums do not"


def test_neither_torch_nor_torch_npu_is_imported(hf: Callable[[str], Path], tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    harness.convert(hf("qwen2"), trained, {"tp": 1})
    as_trained(next(trained.glob("iter_*/*/model_optim_rng.pt")))
    program = (
        "import sys; from jumar.ckpt_convert import open_checkpoint, plan_hf, run_plan; from pathlib import Path\n"
        "run_plan(plan_hf(open_checkpoint(sys.argv[1])), Path(sys.argv[2]))\n"
        "print(sorted({'torch', 'torch_npu', 'megatron', 'transformers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, trained, tmp_path / "back"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
