"""What `jumar migrate` prints runs: the commands as processes, on a tiny model and text."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jumar.chain.migrate import migrate
from jumar.schema.indexed import IndexedWriter
from jumar.schema.registry import families
from training import model_dir

SCRIPTS = Path(__file__).resolve().parents[2] / "packages/jumar/tests/scripts"
MODULES = {"jumar-train": "jumar.train_core", "jumar-data": "jumar.data_prep", "jumar-convert": "jumar.ckpt_convert"}


def run(command: str, home: Path) -> subprocess.CompletedProcess[str]:
    """A printed command, its program as a module of this Python."""
    program, *words = shlex.split(re.sub(r"\\\n", " ", command))
    line = [sys.executable, "-m", MODULES[program], *words]
    return subprocess.run(line, cwd=home, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)


def test_a_recipe_passes_a_dry_run(tmp_path: Path) -> None:
    model_dir(tmp_path / "model")
    (tmp_path / "data").mkdir()
    with IndexedWriter(tmp_path / "data/corpus_text_document", np.uint16) as writer:
        for number in range(100):
            writer.add(np.arange(40) % (number % 50 + 3))
    (made,) = migrate(SCRIPTS / "pretrain_ms.sh").made
    for name, content in made.files.items():
        (tmp_path / name).write_text(content)
    done = run(made.commands[0] + " --dry-run --device cpu", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tp: 2" in done.stdout
    assert "40 steps of 8 samples" in done.stdout


@pytest.mark.parametrize("name", ["convert_to_megatron", "data_pretrain"])
def test_a_command_does_its_work(name: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models

    family = families()["llama"]
    hf = model_dir(tmp_path / "hf")
    save_file(
        {key: np.ones(shape, np.float32) for key, shape in family.hf_tensors(family.spec(family.tiny)).items()},
        hf / "model.safetensors",
    )
    (tmp_path / "tok").mkdir()
    tokenizer = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.save(str(tmp_path / "tok/tokenizer.json"))
    (tmp_path / "tok/tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n')
    (made,) = migrate(SCRIPTS / f"{name}.sh").made
    (tmp_path / "dataset").mkdir()
    done = run(made.commands[0], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("done")
