"""save.hf: the Hugging Face directories that a run makes of its checkpoints while it trains."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from jumar.schema.registry import families
from training import DONE, ENVIRONMENT, INPUT, STOPPED, Run, Settings, finish, going, make_run, train, weights

pytestmark = pytest.mark.timeout(1200)  # processes on a machine that others use as well
PP2: Settings = {"parallel.pp": 2, "save.hf": True}
BESIDE = {"tokenizer.json": "{}", "chat_template.jinja": "{{ messages }}", "generation_config.json": '{"eos_token_id": 2}'}
LARGE: Settings = {"model.config": {"vocab_size": 100_000}}
"""Its conversion lasts for a second or two."""


def having_files(run: Run) -> Run:
    """A model with what lies beside weights."""
    for name, text in BESIDE.items():
        (Path(run.values["model"]["path"]) / name).write_text(text)
    return run


def exported(run: Run) -> list[int]:
    return sorted(int(path.name[8:]) for path in run.path.glob("hf_iter_???????"))


def converting(one: Any) -> list[psutil.Process]:
    return [each for each in psutil.Process(one.process.pid).children(recursive=True) if "jumar.ckpt_convert" in each.cmdline()]


@pytest.fixture(autouse=True)
def _nothing_goes_on(tmp_path: Path) -> Iterator[None]:
    """No conversion outlives its run."""
    yield
    assert [each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(each.info["cmdline"] or ())] == []


def same_as_by_hand(run: Run, step: int) -> dict[str, Any]:
    """The directory is what jumar-convert makes of the checkpoint; returns its tensors."""
    from safetensors.torch import load_file

    hand = run.folder / f"by hand {step}"
    words = ["to-hf", str(run.path), str(hand), "--iteration", str(step)]
    subprocess.run([sys.executable, "-m", "jumar.ckpt_convert", *words], check=True, capture_output=True)
    made, expected = (load_file(path / "model.safetensors") for path in (run.path / f"hf_iter_{step:07d}", hand))
    assert made.keys() == expected.keys()
    assert all(made[name].dtype == expected[name].dtype and bool((made[name] == expected[name]).all()) for name in made)
    return made


@pytest.mark.slow
def test_of_every_checkpoint(tmp_path: Path) -> None:
    """In bf16, of a model whose config says something else."""
    import torch
    from transformers import AutoModelForCausalLM

    settings = {**PP2, "train.precision": "bf16", "model.config": {"torch_dtype": "float32"}, "save.background": True}
    run = finish(having_files(make_run(tmp_path, settings)), 2)
    assert (run.steps(), exported(run)) == ([3, 6], [3, 6])
    early, late = (same_as_by_hand(run, step) for step in (3, 6))
    assert any(bool((early[name] != late[name]).any()) for name in early)
    made = run.path / "hf_iter_0000006"
    model = AutoModelForCausalLM.from_pretrained(made, torch_dtype="auto")
    state = model.state_dict()
    assert model.dtype == torch.bfloat16
    assert all(bool((state[name] == late[name]).all()) for name in late)
    norm = weights(run.path / "iter_0000006")["decoder.final_layernorm.weight"]
    assert norm[2] == late["model.norm.weight"].view(torch.uint8).numpy().tobytes()
    assert {name: (made / name).read_text() for name in BESIDE} == BESIDE


@pytest.mark.slow
@pytest.mark.parametrize("family", ["deepseek_v3", "mixtral", "gemma2", "qwen3"])
def test_of_each_kind_of_model(tmp_path: Path, family: str) -> None:
    run = finish(make_run(tmp_path, {**PP2, "train.precision": "bf16"}, family=family), 2)
    for step in (3, 6):
        same_as_by_hand(run, step)


@pytest.mark.slow
def test_of_the_last_alone(tmp_path: Path) -> None:
    run = finish(make_run(tmp_path, {"save.hf": "end"}))
    assert exported(run) == [6]


@pytest.mark.slow
def test_those_that_are_not_kept_go(tmp_path: Path) -> None:
    """A conversion goes on for longer than steps between checkpoints; what it reads is not taken away."""
    settings = {"save.hf": True, "save.keep": 1, "save.every": 1, "train.steps": 10, **LARGE}
    ended = train(run := make_run(tmp_path, settings))
    assert ended.code == DONE, ended.err
    assert "warning" not in ended.err
    assert (run.steps(), exported(run), run.left_over()) == ([10], [10], [])


@pytest.mark.parametrize("model", [{}, pytest.param(LARGE, marks=pytest.mark.slow)])
def test_a_killed_conversion(tmp_path: Path, model: Settings) -> None:
    """Nothing is left of it, the checkpoint is there, and the same command makes what is missing."""
    run = make_run(tmp_path, {"save.hf": "end", "train.steps": 1, "schedule.warmup_steps": 0, **model})
    with going(run) as one:
        one.until(lambda: converting(one) and (not model or (run.path / "hf_iter_0000001.partial").is_dir()))
        (process,) = converting(one)
        assert process.nice() == 10
        process.kill()
        ended = one.ends(60)
    assert (ended.code, run.ended()["code"]) == (ENVIRONMENT, ENVIRONMENT)
    assert "warning: " in ended.err
    assert "hf_iter_0000001 cannot be made: its process was killed by signal 9" in ended.err
    assert (run.steps(), exported(run), run.left_over()) == ([1], [], [])
    ended = train(run)
    assert ended.code == DONE
    assert f"what is left to do is {run.path}/hf_iter_0000001" in ended.err
    assert (exported(run), run.left_over()) == ([1], [])
    same_as_by_hand(run, 1)
    if model:
        assert "nothing is left to do" in train(run).err


@pytest.mark.slow
@pytest.mark.parametrize("nproc, number", [(None, signal.SIGTERM), (2, signal.SIGTERM), (2, signal.SIGKILL)])
def test_a_run_that_ends_meanwhile(tmp_path: Path, nproc: int | None, number: int) -> None:
    """Its conversion ends with it, in a step or when nothing else is left to do; what it had not made is made by the next."""
    run = make_run(
        tmp_path, {"save.hf": True, "train.steps": 4000, "save.every": 2, "save.keep": 2, "schedule.warmup_steps": 0, **LARGE}
    )
    with going(run, nproc) as one:
        one.until(lambda: list(run.path.glob("hf_iter_*.partial")))
        one.send(number) if number == signal.SIGTERM else one.ranks()[0].kill()
        ended = one.ends(60)
    at = run.steps()[-1]
    if number == signal.SIGTERM:
        assert (ended.code, run.left_over()) == (STOPPED, [])
        assert at not in exported(run)
    for step in exported(run):  # what has its name is whole
        same_as_by_hand(run, step)
        shutil.rmtree(run.folder / f"by hand {step}")
    few = run.having({"train.steps": at})
    finish(few, nproc)
    assert exported(run) == run.steps()

    shutil.rmtree(run.path / f"hf_iter_{at:07d}")
    with going(few, nproc) as one:
        one.until(lambda: converting(one))
        ended = one.send(signal.SIGTERM).ends(60)
    assert (ended.code, run.ended()["code"]) == (STOPPED, STOPPED)
    assert f"hf_iter_{at:07d} was made" in ended.err
    assert at not in exported(run)
    assert run.left_over() == []


@pytest.mark.slow
def test_a_directory_in_the_way(tmp_path: Path) -> None:
    """A fault of the conversion is told while training goes on, and at the end."""
    run = make_run(tmp_path, {"save.hf": True})
    finish(run.having({"save.hf": False, "train.steps": 3, "schedule.decay_steps": 6}))
    (run.path / "hf_iter_0000006").touch()
    ended = train(run.write())
    assert (ended.code, run.ended()["code"]) == (INPUT, INPUT)
    assert "hf_iter_0000006 is a file" in ended.err
    assert (run.steps(), run.left_over()) == ([3, 6], [])
    assert (run.path / "hf_iter_0000003").is_dir(), "made up for"
    assert json.loads((run.path / "hf_iter_0000003/config.json").read_text())["model_type"] in families()
