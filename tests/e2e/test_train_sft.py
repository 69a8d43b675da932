"""`jumar-train sft` from a raw file to a Hugging Face directory, as people start it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from training import DONE, TRAIN, Run, environment, model_dir

pytestmark = pytest.mark.timeout(900)  # processes on a machine that others use as well
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>"]


def tokenizer(folder: Path) -> int:
    """Bytes, and the tokens of the template; returns their number."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    made.save(str(folder / "tokenizer.json"))
    facts = {"eos_token": "<|end|>", "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))
    return made.get_vocab_size()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    hf = model_dir(tmp_path / "hf", max_position_embeddings=128)
    vocabulary = tokenizer(hf)
    model_dir(tmp_path / "hf", max_position_embeddings=128, vocab_size=vocabulary)
    rows = [{"instruction": f"How much is {n} and {n}?", "output": f"It is {2 * n}."} for n in range(40)]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": {"path": str(hf)},
        "data": {"train": str(tmp_path / "talks.jsonl"), "pack": True, "seq_len": 96, "split": [90, 10]},
        "train": {"epochs": 2, "global_batch_size": 4, "precision": "fp32", "eval_every": 100},
        "save": {"path": str(tmp_path / "run"), "hf": "end"},
    }
    return Run(tmp_path, values).write()


def test_a_raw_file_under_torchrun(run: Run) -> None:
    """The first rank prepares, the other waits for it; what comes out is a model with its tokenizer and template."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line = [*start, "-m", "jumar.train_core", "sft", str(run.recipe), "--device", "cpu"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == DONE, done.stderr
    assert done.stderr.count("preparing") == 1
    assert run.ended()["code"] == DONE
    learned = run.learned()
    assert learned[max(learned)][0] < learned[1][0]
    assert len(run.metrics("eval_loss")) == 1
    (made,) = run.path.glob("hf_iter_*")
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in made.iterdir()
    }
    again = subprocess.run([TRAIN, "sft", str(run.recipe), "--device", "cpu"], capture_output=True, text=True, env=environment())
    assert again.returncode == DONE
    assert "nothing is left to do" in again.stderr


def test_what_is_no_conversation(run: Run, tmp_path: Path) -> None:
    (tmp_path / "talks.jsonl").write_text('{"x": 1}\n')
    done = subprocess.run([TRAIN, "sft", str(run.recipe), "--device", "cpu"], capture_output=True, text=True, env=environment())
    assert done.returncode not in (DONE, 1)
    assert "jumar-data could not prepare" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "cache").iterdir()] == []
