"""A model over several processes answers as one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import infer_models
import ranks_worker
from jumar.infer import Engine, Sampling
from jumar.infer.engine import Limits
from jumar.infer.group import join
from jumar.schema.errors import Exit, ToolError

PROMPTS = [infer_models.random_ids(n, seed=n) for n in (5, 40, 17)]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def launch(*words: object) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run([*TORCHRUN, *map(str, words)], capture_output=True, text=True, timeout=280, env=environ)


def assert_same(models: dict[str, tuple[str, dict]], home: Path) -> None:
    for name, (model_type, changes) in models.items():
        infer_models.make(home / name, model_type, **changes)
    directories = [home / name for name in models]
    done = launch(ranks_worker.__file__, home / "report", json.dumps(PROMPTS), *directories)
    assert done.returncode == 0, done.stderr
    reports = [json.loads((home / f"report.{rank}").read_text()) for rank in (0, 1)]
    assert reports[0] == reports[1]
    for directory in directories:
        alone = Engine.open(directory, Limits(max_batch=2, chunk=32, cache_tokens=512), device="cpu")
        expected = alone.generate(PROMPTS, Sampling(max_new_tokens=8, ignore_eos=True, logprobs=0))
        for pp in (1, 2):
            for request, (output, logs) in zip(expected, reports[0][f"{directory} {pp}"], strict=True):
                assert output == request.output
                assert logs == pytest.approx([p.logprob for p in request.logprobs], abs=1e-4)


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    assert_same({name: (name, {}) for name in ("qwen2", "deepseek_v3", "nemotron_h")}, tmp_path)


@pytest.mark.slow
def test_two_ranks_are_one_process_for_every_family(tmp_path: Path) -> None:
    assert_same(infer_models.FAMILIES, tmp_path)


@pytest.mark.slow
def test_the_command_under_torchrun(hf: Path, tmp_path: Path) -> None:
    words = ("generate", hf, "-p", "the rope", "--max-new-tokens", 8, "--device", "cpu", "--cache-tokens", 512)
    done = launch("-m", "jumar.infer", *words, "--pp", 2)
    assert done.stdout == Engine.open(hf, device="cpu").generate(["the rope"], Sampling(max_new_tokens=8))[0].text + "\n"
    assert "over pp 2" in done.stderr
    drawn = launch("-m", "jumar.infer", *words, "--temperature", 1.5, "--num-return", 2)
    assert drawn.returncode == 0, drawn.stderr
    assert len(drawn.stdout.splitlines()) == 2
    assert "one process" in launch("-m", "jumar.infer", "chat", hf, "--device", "cpu").stderr


def test_stages_that_do_not_fit_the_processes() -> None:
    with pytest.raises(ToolError, match="2 stages cannot share one process") as fault:
        join({}, 2, "gloo")
    assert fault.value.code == Exit.USAGE
