"""A small tokenizer, records, and ways to run jumar-data, for the tests of whole runs."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jumar.data_prep.finish import Finished
from jumar.data_prep.job import Job
from jumar.data_prep.pipeline import run

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = "a tensor has shape and rank; shards are joined 模型 数据 并行 训练 🎉 \n write read count + -".split(" ")


def make_tokenizer(folder: Path, *, eos: str | None = "<|im_end|>", template: str | None = CHATML) -> Path:
    """A directory with a byte-level BPE of 400 tokens and a chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"pad_token": "<|endoftext|>"}
    config |= {"eos_token": eos} if eos else {}
    config |= {"chat_template": template} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def text(lot: random.Random, most: int = 40) -> str:
    return " ".join(lot.choices(WORDS, k=lot.randint(1, most))).strip() or "a"


def chats(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Conversations of one to four exchanges, some with a system turn."""
    lot = random.Random(seed)
    out = []
    for _ in range(count):
        turns = [{"role": "system", "content": text(lot, 8)}] if lot.random() < 0.3 else []
        for _ in range(lot.randint(1, 4)):
            turns += [{"role": "user", "content": text(lot)}, {"role": "assistant", "content": text(lot)}]
        out.append({"messages": turns})
    return out


def write_jsonl(path: Path, records: list[Any], *, broken: int = 0) -> Path:
    """A file of JSON lines, every `broken`-th of which is not JSON."""
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    for i in range(broken - 1, len(lines), broken or 1):
        lines[i] = lines[i][:-3] if broken else lines[i]
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def do(command: str, *inputs: Path, **options: Any) -> Finished:
    """A run in this process. What it says goes to `said`, if that is given."""
    said = options.pop("said", [])
    return run(Job(command, tuple(map(str, inputs)), **options), say=lambda word, line: said.append((word, line)))


def cli(*arguments: object, cwd: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """A run of the command as a process of its own."""
    line = [sys.executable, "-m", "jumar.data_prep", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120, cwd=cwd, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
