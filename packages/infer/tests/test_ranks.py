"""A model over several processes answers as one process does."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

import idle_worker
import infer_models
import ranks_worker
from jumar.infer import Engine, Sampling
from jumar.infer.conversation import open_template
from jumar.infer.engine import Limits
from jumar.infer.group import join
from jumar.schema.errors import Exit, ToolError
from serving import Running, start

PROMPTS = [infer_models.random_ids(n, seed=n) for n in (5, 40, 17)]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


ENVIRON = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def launch(*words: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=ENVIRON, input=stdin)


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


@pytest.mark.slow
def test_two_ranks_write_one_file_once(hf: Path, tmp_path: Path) -> None:
    """The first decides whether it is there, and writes; the other computes what it computes."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the rope"}\n{"prompt": "a jumar"}\n')
    words = ("generate", hf, tmp_path / "prompts.jsonl", "--max-new-tokens", 8, "--device", "cpu", "--cache-tokens", 512)
    for already in (False, True):
        done = launch("-m", "jumar.infer", *words, "--pp", 2, "-o", tmp_path / "out.jsonl", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["already_done"] is already
    alone = Engine.open(hf, device="cpu").generate(["the rope", "a jumar"], Sampling(max_new_tokens=8))
    assert [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [r.text for r in alone]
    other = launch("-m", "jumar.infer", *words, "--pp", 2, "--seed", 1, "-o", tmp_path / "out.jsonl")
    assert other.returncode != 0
    assert "was not made of these files with these options" in other.stderr


def test_chat_over_two_ranks(tmp_path: Path) -> None:
    """The first reads and writes, the other computes what it is told; the model keeps keys and states."""
    infer_models.llama_with_tokenizer(tmp_path / "hf", "nemotron_h", max_position_embeddings=512)
    words = ("chat", tmp_path / "hf", "--max-new-tokens", "8", "--device", "cpu", "--cache-tokens", "512")
    done = launch("-m", "jumar.infer", *words, "--pp", 2, stdin="hello\nand then?\n")
    engine, talk = Engine.open(tmp_path / "hf", device="cpu"), list[dict]()
    assert engine.tokenizer is not None
    for text in ("hello", "and then?"):
        talk.append({"role": "user", "content": text})
        prompt = open_template(engine.tokenizer).prompt(talk)
        talk.append({"role": "assistant", "content": engine.generate([prompt], Sampling(max_new_tokens=8))[0].text})
    assert (done.returncode, done.stdout) == (0, f"{talk[1]['content']}\n{talk[3]['content']}\n"), done.stderr


@pytest.mark.slow
def test_people_may_be_silent_for_longer_than_a_group_waits(tmp_path: Path) -> None:
    """A hybrid, whose states lie where the first rank says."""
    infer_models.make(tmp_path / "hf", "nemotron_h")
    done = launch(idle_worker.__file__, tmp_path / "hf", 12)
    alone = Engine.open(tmp_path / "hf", device="cpu")
    first, second = (r.output for r in alone.generate([[1, 2, 3], [4, 5]], Sampling(max_new_tokens=8, ignore_eos=True)))
    assert (done.returncode, done.stdout) == (0, f"{[first, second]}\n{[first]}\n"), done.stderr


@pytest.fixture
def served(hf: Path, tmp_path: Path) -> Iterator[Running]:
    """Tensor parallel over two; its model never ends an answer by itself."""
    infer_models.llama_with_tokenizer(tmp_path / "hf", max_position_embeddings=8192)
    (tmp_path / "hf/generation_config.json").write_text('{"eos_token_id": []}')
    running = start(tmp_path / "hf", tmp_path, "--cache-tokens", "16384", "--max-tokens", "8000", python=TORCHRUN)
    yield running
    running.process.terminate()
    running.process.wait(60)


def rank_of(served: Running, rank: int) -> int:
    """The process of a rank."""
    children = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text().split()
    (found,) = [int(child) for child in children if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text()]
    return found


def cpu_s(process: int) -> float:
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
def test_a_server_over_two_ranks(served: Running) -> None:
    """It answers as one process does, several at a time; does nothing while nobody asks; SIGTERM lets answers be finished."""
    prompts = [f"the rope {i}" for i in range(6)]
    alone = [request.text for request in Engine.open(served.hf, device="cpu").generate(prompts, Sampling(max_new_tokens=30))]
    assert len(set(alone)) > 3
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(served.client.completions.create, model="tiny", prompt=one, max_tokens=30) for one in prompts]
        assert [one.result().choices[0].text for one in asked] == alone
    used = [cpu_s(rank_of(served, rank)) for rank in (0, 1)]
    time.sleep(4)
    assert cpu_s(rank_of(served, 1)) - used[1] < 0.2
    assert cpu_s(rank_of(served, 0)) - used[0] < 0.5
    stream = served.client.completions.create(model="tiny", prompt="a", max_tokens=400, stream=True)
    chunks = [next(stream)]
    served.process.terminate()
    chunks += stream
    assert chunks[-1].choices[0].finish_reason == "length"
    served.process.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize("rank", (0, 1))
def test_a_rank_that_dies_ends_all(rank: int, served: Running, tmp_path: Path) -> None:
    stream = served.client.completions.create(model="tiny", prompt="a", max_tokens=7000, stream=True)
    next(stream)
    os.kill(rank_of(served, rank), signal.SIGKILL)
    with pytest.raises((openai.APIError, httpx.TransportError)):
        list(stream)
    assert served.process.wait(60) == 1  # torchrun's code
    log = (tmp_path / "log").read_text()
    assert "error: the processes of this model have lost one another" in log
    assert "this is a bug" not in log


def test_stages_that_do_not_fit_the_processes() -> None:
    with pytest.raises(ToolError, match="2 stages cannot share one process") as fault:
        join({}, 2, "gloo")
    assert fault.value.code == Exit.USAGE
