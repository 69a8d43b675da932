"""How commands stand in scripts: behind ssh and mpirun, in other encodings; lm-eval's own spellings."""

from __future__ import annotations

from pathlib import Path

import pytest

from jumar.chain.facts import RAW
from jumar.chain.migrate import Migrated, migrate
from jumar.data_prep.inputs import COMPRESSIONS, KINDS

TRAIN = "pretrain_gpt.py --tokenizer-name-or-path m --data-path d --train-iters 9 --lr 1e-3"


def written(tmp_path: Path, text: str | bytes) -> Migrated:
    (tmp_path / "run.sh").write_bytes(text if isinstance(text, bytes) else text.encode())
    return migrate(tmp_path / "run.sh")


@pytest.mark.parametrize(
    "before, behind",
    [
        ('ssh $h "cd /w; nohup torchrun --nproc_per_node 2 ', ' > log 2>&1 &"'),
        ("ssh -p 22 -o BatchMode=yes user@node1 'source env.sh && torchrun --nproc_per_node 2 ", "'"),
        ("ssh -t node1 torchrun --nproc_per_node 2 ", ""),
        ("for h in a b; do ssh $h bash -c 'torchrun --nproc_per_node 2 ", "'; done"),
    ],
)
def test_what_another_machine_is_given_is_read(before: str, behind: str, tmp_path: Path) -> None:
    found = written(tmp_path, before + TRAIN + behind)
    assert found.made[0].commands == ("jumar-train pretrain run.yaml --nproc 2",)
    assert not found.unknown


def test_mpirun_says_the_ranks(tmp_path: Path) -> None:
    for launcher in ("mpirun -np 4 --allow-run-as-root", "mpiexec -n 4"):
        found = written(tmp_path, f"{launcher} python {TRAIN}")
        assert found.made[0].commands == ("jumar-train pretrain run.yaml --nproc 4",)
        assert not any("stand before the command" in text for _, text in found.notes)


def test_a_script_in_a_chinese_encoding_is_read_and_told(tmp_path: Path) -> None:
    text = f"# 训练\ntorchrun {TRAIN} --save 模型/输出\n"
    found = written(tmp_path, text.encode("gbk"))
    assert "path: 模型/输出" in found.made[0].files["run.yaml"]
    assert (1, "the script is not UTF-8: read as gb18030; look at the paths that are not ASCII") in found.notes
    found = written(tmp_path, f"torchrun {TRAIN} --save données\n".encode("latin-1"))
    assert "path: données" in found.made[0].files["run.yaml"]
    assert any("read as latin-1" in text for _, text in found.notes)
    assert not any("UTF-8" in text for _, text in written(tmp_path, text).notes)


def test_a_command_that_is_shown_and_then_started(tmp_path: Path) -> None:
    found = written(tmp_path, f'CMD="torchrun {TRAIN}"\n/bin/echo $CMD\necho $CMD | tee log\neval $CMD')
    assert len(found.made) == 1
    assert not any("is no program" in text for _, text in found.notes)


@pytest.mark.parametrize(
    "given, command",
    [
        ("pretrained=hf,dtype=float16", "jumar-eval run hf --dtype fp16 --tasks mmlu --data benchmarks"),
        ("pretrained=hf,dtype=auto,trust_remote_code=True", "jumar-eval run hf --tasks mmlu --data benchmarks"),
        ("pretrained=hf --device cuda:0", "jumar-eval run hf --device cuda --tasks mmlu --data benchmarks"),
        ("pretrained=hf,peft=adapter", None),
        ("pretrained=hf,dtype=float64", None),
    ],
)
def test_arguments_of_lm_eval(given: str, command: str | None, tmp_path: Path) -> None:
    (made,) = written(tmp_path, f"lm-eval run --model hf --model_args {given} --tasks mmlu").made
    assert not made.of("unknown")
    assert bool(made.of("refused")) is (command is None)
    if command is not None:
        assert made.commands == (command,)
    if "cuda" in given:
        assert "number 0: by CUDA_VISIBLE_DEVICES" in next(each.why for each in made.verdicts if each.flag == "--device")


def test_raw_files_are_those_that_jumar_data_reads() -> None:
    assert set(RAW) == {*KINDS, *COMPRESSIONS}
