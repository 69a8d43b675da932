"""Memory: what a conversion holds does not depend on how large the model is."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import failing
from failing import model, ok

MIB = 1 << 20
LIMIT = 150 * MIB
LINES = {
    "to-megatron": ["--tp", "2", "--pp", "2"],
    "to-megatron, cast": ["--tp", "4", "--dtype", "fp16"],
    "to-hf": ["--max-shard-size", "100MB"],
    "reshard": ["--tp", "4", "--pp", "2", "--dialect", "te"],
    "verify": [],
}


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, tuple[Path, Path]]]:
    """MB -> a model of that size, as Hugging Face directory and as Megatron shards."""
    root = tmp_path_factory.mktemp("memory")
    made = {}
    for layers, megabytes in ((8, 300), (18, 600)):
        shape = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=layers, num_attention_heads=16, vocab_size=16000)
        hf = model(root / f"hf-{megabytes}", dtype="BF16", **shape)
        assert megabytes * 0.9e6 < (hf / "model.safetensors").stat().st_size < megabytes * 1.1e6
        made[megabytes] = hf, failing.megatron(root / f"mcore-{megabytes}", hf, tp=2, pp=2)
    yield made
    shutil.rmtree(root)


def anonymous_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0  # it has just ended


def highest(*args: object) -> int:
    """The most anonymous memory that a command held, in bytes: looked at every 20 ms. Pages of mapped files are not counted."""
    running = failing.started([failing.COMMAND, *map(str, args)])
    seen = [0]
    while running.process.poll() is None:
        seen.append(anonymous_bytes(running.process.pid))
        time.sleep(0.02)
    ok(running.wait())
    assert len(seen) > 10, "ended before it could be looked at"
    return max(seen)


@pytest.mark.slow
@pytest.mark.parametrize("name", LINES)
def test_memory_does_not_grow_with_the_model(name: str, sizes: dict[int, tuple[Path, Path]], tmp_path: Path) -> None:
    held = {}
    for megabytes, (hf, mcore) in sizes.items():
        command = "to-megatron" if name == "reshard" else name.split(",")[0]
        source = mcore if name in ("to-hf", "reshard") else hf
        held[megabytes] = highest(command, source, mcore if name == "verify" else tmp_path / "out", *LINES[name])
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    print(f"{name}: " + ", ".join(f"{size} MB: {count / MIB:.0f} MiB" for size, count in held.items()))
    assert max(held.values()) < LIMIT
    assert held[600] < held[300] + 10 * MIB, "it grows with the model"
