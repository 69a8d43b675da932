"""Values of training flags: those that contradict each other, those that no run can have, several machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from jumar.chain.migrate import migrate
from jumar.chain.verdicts import Made
from jumar.schema.recipe import read_file

RUN = "torchrun --nproc_per_node 2 pretrain_gpt.py --tokenizer-name-or-path m --data-path d --lr 1e-3 "


def made(home: Path, text: str) -> Made:
    (home / "run.sh").write_text(text)
    (found,) = migrate(home / "run.sh").made
    return found


def kinds(found: Made, flag: str) -> list[str]:
    return [each.kind for each in found.verdicts if each.flag == flag]


@pytest.mark.parametrize(
    "flags, refused, said",
    [
        ("--train-iters 9 --fp16 --bf16", "--bf16", "train.precision is fp16 by --fp16: give one of them"),
        ("--train-iters 9 --bf16 --fp16 --initial-loss-scale 4", "--fp16", "train.precision is bf16"),
        ("--train-iters 9 --lr-warmup-iters 2 --lr-warmup-fraction 0.4", "--lr-warmup-fraction", "schedule.warmup_steps is 2"),
        ("--train-iters 9 --train-samples 4", "--train-samples", "train.steps is 9 by --train-iters"),
        ("--train-iters 9 --tensor-model-parallel-size -2", "--tensor-model-parallel-size", "parallel.tp is 1 or more, got -2"),
        ("--train-iters 0", "--train-iters", "train.steps is 1 or more, got 0"),
        ("--train-iters 9 --clip-grad nan", "--clip-grad", "expected a number, got 'nan'"),
        ("--train-iters 9 --adam-eps inf", "--adam-eps", "expected a number, got 'inf'"),
        ("--train-iters 9 --adam-beta1 1.0", "--adam-beta1", "0 or more, less than 1"),
        ("--start-weight-decay 0.1 --end-weight-decay 0.2", "--end-weight-decay", "does not change"),
        ("--start-weight-decay 0.1 --end-weight-decay 0.1 --weight-decay 0.3", "--weight-decay", "is 0.1 by"),
        ("--main-grads-dtype bf16", "--main-grads-dtype", "summed in fp32"),
    ],
)
def test_what_no_run_can_have_is_refused(flags: str, refused: str, said: str, tmp_path: Path) -> None:
    found = made(tmp_path, RUN + flags)
    (why,) = [each.why for each in found.verdicts if each.flag == refused and each.kind == "refused"]
    assert said in why


@pytest.mark.parametrize(
    "flags, decay",
    [
        ("--weight-decay-incr-style constant", 0.01),
        ("--start-weight-decay 0.1 --end-weight-decay 0.1 --weight-decay-incr-style cosine", 0.1),
        ("--main-grads-dtype fp32 --exp-avg-dtype fp32", 0.01),
        ("--moe-token-drop-policy probs", 0.01),
        ("--lr-warmup-iters 3 --train-iters 10 --lr-warmup-fraction 0.3", 0.01),
    ],
)
def test_values_that_change_nothing_pass(flags: str, decay: float, tmp_path: Path) -> None:
    found = made(tmp_path, RUN + flags)
    assert not found.of("refused")
    assert not found.of("unknown")
    (tmp_path / "run.yaml").write_text(found.files["run.yaml"])
    assert read_file(tmp_path / "run.yaml")["optim"]["weight_decay"] == decay


def test_modules_that_the_model_has_not_are_not_recomputed(tmp_path: Path) -> None:
    selective = RUN + "--recompute-granularity selective --recompute-modules "
    assert "modules: [mlp]" in made(tmp_path, selective + "moe mlp").files["run.yaml"]
    assert "modules: [moe]" in made(tmp_path, selective + "moe moe_act --num-experts 4").files["run.yaml"]
    assert kinds(made(tmp_path, selective + "moe"), "--recompute-modules") == ["no effect"]


def test_a_launchers_flag_in_both_spellings_is_one(tmp_path: Path) -> None:
    found = made(tmp_path, RUN.replace("--nproc_per_node 2", "--nproc_per_node 2 --nproc-per-node 4"))
    assert kinds(found, "--nproc_per_node") == ["no effect"]
    assert found.commands[-1].endswith("--nproc 4")
    assert kinds(made(tmp_path, RUN.replace("node 2", "node 0")), "--nproc_per_node") == ["refused"]


RENDEZVOUS = "torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint $HOST:29500 pretrain_gpt.py"
THERE = (
    "PET_NNODES=2 PET_NODE_RANK=$NODE_RANK PET_MASTER_ADDR=$HOST PET_MASTER_PORT=29500 jumar-train pretrain run.yaml --nproc 8"
)


@pytest.mark.parametrize(
    "spelling", [RENDEZVOUS, RENDEZVOUS.replace("rdzv_endpoint ", "rdzv-endpoint=").replace("rdzv_b", "rdzv-b")]
)
def test_the_endpoint_of_several_machines(spelling: str, tmp_path: Path) -> None:
    found = made(tmp_path, RUN.replace("torchrun --nproc_per_node 2 pretrain_gpt.py", spelling))
    assert found.commands == (THERE,)
    assert any("PET_NODE_RANK is 0 to 1" in text for _, text in found.notes)
    host = "$(scontrol show hostnames $A | head -n 1)"
    found = made(tmp_path, f"HOST={host}\n" + RUN.replace("torchrun --nproc_per_node 2 pretrain_gpt.py", spelling))
    assert f'PET_MASTER_ADDR="{host}" PET_MASTER_PORT=29500' in found.commands[0]


@pytest.mark.parametrize("line", ["#SBATCH --nodes=4", "#SBATCH -N 4", "#SBATCH --exclusive -N4"])
def test_machines_that_slurm_is_asked_for(line: str, tmp_path: Path) -> None:
    text = f"#!/bin/bash\n{line}\n" + RUN.replace("torchrun", "srun torchrun --nnodes $SLURM_NNODES")
    assert made(tmp_path, text).commands[-1].startswith("PET_NNODES=4 ")
