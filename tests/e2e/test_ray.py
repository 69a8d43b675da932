"""jumar-data on a Ray cluster (a local one): the same bytes as one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from making import chats, cli, contents, make_tokenizer, write_jsonl


def test_shards_on_a_cluster_make_the_bytes_of_one_run(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason='the extra [ray] is not installed: pip install "jumar-data-prep[ray]"')
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    files = [write_jsonl(tmp_path / "a.jsonl", chats(300), broken=40), write_jsonl(tmp_path / "b.jsonl.gz", chats(200, 1))]
    made = {}
    for engine in ("local", "ray"):
        (tmp_path / engine).mkdir()
        line = ["sft", *files, "-o", tmp_path / engine / "x", "--tokenizer", tokenizer, "--seq-len", 256, "--pack"]
        line += ["--block-size", "8KiB", "--engine", engine, "--json", *(["--shards", 3] if engine == "ray" else [])]
        done = subprocess.run(
            [sys.executable, "-m", "jumar.data_prep", *map(str, line)],
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
            env={**os.environ, "RAY_DISABLE_IMPORT_WARNING": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["report"]["records"]["rejected"] == 7
        made[engine] = contents(tmp_path / engine)
    assert made["ray"] == made["local"]


def test_what_is_done_is_not_done_again_on_whatever_cluster(tmp_path: Path) -> None:
    """None is asked: there is none at that address."""
    pytest.importorskip("ray", reason='the extra [ray] is not installed: pip install "jumar-data-prep[ray]"')
    line = ["sft", write_jsonl(tmp_path / "a.jsonl", chats(9)), "--tokenizer", make_tokenizer(tmp_path / "hf"), "-o"]
    assert cli(*line, tmp_path / "x").returncode == 0
    nowhere = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    done = cli(*line, tmp_path / "x", "--engine", "ray", "--shards", 5, env=nowhere)
    assert (done.returncode, done.stdout.split(":")[0]) == (0, "already done"), done.stderr
