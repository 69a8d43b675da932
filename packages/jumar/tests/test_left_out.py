"""What a script leaves unsaid of a model: named where Megatron-LM's default is not what config.json says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jumar.chain.migrate import migrate
from jumar.schema.registry import families

TRAIN = "torchrun --nproc_per_node 2 pretrain_gpt.py --tokenizer-name-or-path model --data-path d --train-iters 9 --lr 1e-3 "
DENSE = "--normalization RMSNorm --swiglu --disable-bias-linear --untie-embeddings-and-output-weights "
WHOLE = DENSE + "--use-rotary-position-embeddings --group-query-attention --num-query-groups 4 "
LLAMA = {**families()["llama"].tiny, "tie_word_embeddings": False, "num_attention_heads": 8, "num_key_value_heads": 4}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def notes(home: Path, flags: str, config: dict[str, Any] | None = None, *, model: str | None = None) -> list[str]:
    if config is not None:
        (home / "model").mkdir(exist_ok=True)
        (home / "model/config.json").write_text(json.dumps(config))
    (home / "run.sh").write_text(TRAIN + flags)
    return [text for _, text in migrate(home / "run.sh", model=model).notes if "config.json" in text]


@pytest.mark.parametrize(
    "flag, said",
    [
        ("--normalization RMSNorm", "--normalization (LayerNorm there, RMSNorm here)"),
        ("--swiglu", "--swiglu and its like (gelu there, gated silu here)"),
        ("--disable-bias-linear", "--disable-bias-linear (biases there, none here)"),
        ("--untie-embeddings-and-output-weights", "--untie-embeddings-and-output-weights (tied there, not here)"),
        ("--use-rotary-position-embeddings", "--position-embedding-type (learned there, rope here)"),
        ("--group-query-attention", "--group-query-attention (8 KV heads there, 4 here)"),
    ],
)
def test_a_default_that_is_not_this_model_s_is_named(flag: str, said: str, home: Path) -> None:
    assert notes(home, WHOLE, LLAMA) == []
    (note,) = notes(home, WHOLE.replace(flag, ""), LLAMA)
    assert note.endswith(f"whose model is trained: {said}")


def test_all_of_them_are_one_note(home: Path) -> None:
    (note,) = notes(home, DENSE, dict(families()["qwen3_moe"].tiny))
    assert "--num-experts (none there" in note
    assert "--qk-layernorm (no norms" in note
    assert "--add-qkv-bias (no biases" in notes(home, WHOLE, dict(families()["qwen2"].tiny))[0]
    assert notes(home, "--use-checkpoint-args", LLAMA) == []


def test_a_model_that_is_not_here_is_told(home: Path) -> None:
    (note,) = notes(home, WHOLE)
    assert note == "the architecture is not compared with config.json: model is not here; --model DIR names one that is"
    (note,) = notes(home, WHOLE, model="elsewhere")
    assert note == "the architecture is not compared with config.json: elsewhere is not here"


def test_where_the_files_of_tensorboard_are_is_told(home: Path) -> None:
    (home / "run.sh").write_text(TRAIN + "--save runs/a --tensorboard-dir logs/tb")
    (made,) = migrate(home / "run.sh").made
    (found,) = [each for each in made.verdicts if each.flag == "--tensorboard-dir"]
    assert (found.ours, found.why) == ("log.tensorboard: true", "its files are in runs/a/tensorboard, and not in logs/tb")


def test_norms_of_another_kind_are_refused(home: Path) -> None:
    """They multiply by 1 + weight, and no Llama does."""
    notes(home, "", LLAMA)
    (home / "run.sh").write_text(TRAIN + WHOLE + "--apply-layernorm-1p")
    (made,) = migrate(home / "run.sh").made
    assert [(each.flag, each.why.partition(":")[0]) for each in made.of("refused")] == [
        ("--apply-layernorm-1p", "it is not so by the model's config.json")
    ]
