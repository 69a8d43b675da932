"""The two example pipelines on a tiny model: through the commands' JSON, and through the Python APIs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from jumar.schema.manifest import HEAD_BYTES
from jumar.schema.registry import families
from making import chats, make_tokenizer, write_jsonl

ROOT = Path(__file__).parents[2]
SHELL, PYTHON = ["bash", "examples/pipeline.sh"], [sys.executable, "examples/pipeline.py"]
MADE = ("megatron", "data/chats", "scores-before", "run", "hf", "answers.jsonl", "scores-after")
RECIPE: dict[str, Any] = {
    "optim": {"lr": 3.0e-3, "weight_decay": 0.0},
    "schedule": {"warmup_steps": 1},
    "train": {"steps": 3, "global_batch_size": 2, "precision": "fp32"},
}
DONE, USAGE, INPUT, CHECK_FAILED = 0, 2, 3, 5
pytestmark = pytest.mark.timeout(1800)  # a pipeline is ten processes, most of which import torch


@dataclass(frozen=True)
class Given:
    """What a pipeline is given."""

    model: Path
    chats: Path
    recipe: Path

    def run(self, script: list[str], out: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """A script, with this interpreter's commands."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        known = {"PATH": path, "RECIPE": str(self.recipe), "SEQ_LEN": "128", "DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
        line = [*script, str(self.model), str(self.chats), str(out)]
        environment = {**os.environ, **known, "PYTHONWARNINGS": "ignore", **variables}
        return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=900)


def make(folder: Path) -> Given:
    """A Llama of random weights with a tokenizer and a chat template, twelve conversations, three steps of training."""
    model, family = make_tokenizer(folder / "model"), families()["llama"]
    config = {**family.tiny, "vocab_size": 400, "max_position_embeddings": 512}
    (model / "config.json").write_text(json.dumps(config))
    (model / "generation_config.json").write_text(json.dumps({"max_new_tokens": 8}))
    shapes, drawn = family.hf_tensors(family.spec(config)), np.random.default_rng(0)
    tensors = {name: np.ones(shape) if len(shape) == 1 else drawn.normal(0, 0.05, shape) for name, shape in shapes.items()}
    save_file({name: tensor.astype(np.float32) for name, tensor in tensors.items()}, model / "model.safetensors")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return Given(model, write_jsonl(folder / "chats.jsonl", chats(12)), folder / "recipe.yaml")


@dataclass(frozen=True)
class Ran:
    """A pipeline that has run to its end."""

    given: Given
    out: Path
    said: str
    shown: str


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The Python pipeline."""
    folder = tmp_path_factory.mktemp("pipeline")
    given = make(folder)
    done = given.run(PYTHON, folder / "out")
    assert done.returncode == DONE, done.stderr
    return Ran(given, folder / "out", done.stderr, done.stdout)


def times(out: Path) -> dict[str, int]:
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in sorted(out.rglob("*"))}


def words(said: str, out: Path) -> list[str]:
    """Which steps were done, and which were already."""
    lines = [line for line in said.splitlines() if line.startswith(("done:", "already done:"))]
    return [line.replace(f"{out}/", "") for line in lines if not line.endswith(")") and "train.steps" not in line]


def weights(folder: Path) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in load_file(folder / "model.safetensors").items()}


def scores(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())["results"]
    return found


def manifest(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def identity(path: Path, head: int = HEAD_BYTES) -> dict[str, Any]:
    """A file as manifests have it, but for its name."""
    with path.open("rb") as file:
        told = {"size": path.stat().st_size, "head_sha256": hashlib.sha256(file.read(head)).hexdigest()}
        return told | ({"spread_sha256": hashlib.sha256(rest).hexdigest()} if (rest := file.read()) else {})


def inputs(found: dict[str, Any], key: str = "inputs") -> list[dict[str, Any]]:
    return [{name: value for name, value in each.items() if name != "name"} for each in found[key]]


def test_the_pipeline_trains_answers_and_scores(ran: Ran) -> None:
    assert words(ran.said, ran.out) == [f"done: {name}" for name in MADE]
    lines = [json.loads(line) for line in ran.shown.splitlines() if line.startswith("{")]
    assert [line["messages"][0]["content"] for line in lines] == ["What is a jumar?", "上升器是什么？"]
    losses = [json.loads(line)["loss"] for line in (ran.out / "run/metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    before, after = (scores(ran.out / f"scores-{when}")["conversations"]["bits_per_byte,none"] for when in ("before", "after"))
    assert after < before
    assert ran.shown.splitlines()[-1] == f"conversations bits_per_byte: {before:.4f} -> {after:.4f}"


def test_manifests_tell_which_made_which(ran: Ran) -> None:
    """Every output names its inputs, as the step before left them."""
    out, given = ran.out, ran.given
    shards, trained = manifest(out / "megatron/manifest.json"), manifest(out / "run/manifest.json")
    tuned, data = manifest(out / "hf/manifest.json"), manifest(out / "data/chats.manifest.json")
    assert inputs(shards) == [identity(given.model / "model.safetensors", 1 << 16)]
    assert inputs(data) == [identity(given.chats)]
    (shard,) = (out / "megatron").glob("iter_*/mp_rank_*/*.pt")
    assert inputs(trained, "load") == [identity(shard)]
    assert {each["name"] for each in trained["inputs"]} <= set(data["outputs"])
    for each in trained["inputs"]:
        assert {**identity(out / "data" / each["name"]), "name": each["name"]} == each
    assert (trained["recipe"]["command"], trained["recipe"]["optim"]) == ("sft", {"lr": 3.0e-3, "weight_decay": 0.0})
    files = {path.name: path for path in (out / "run").glob("iter_*/*")}
    assert tuned["inputs"]
    for each in tuned["inputs"]:
        path = files[Path(each["name"]).name]
        assert each == {**identity(path, 1 << 16), "name": path.relative_to(out / "run").as_posix()}
    answered, scored = manifest(out / "answers.jsonl.manifest.json"), manifest(out / "scores-after/manifest.json")
    for found in (answered, scored):
        assert identity(out / "hf/model.safetensors") in inputs(found)
    assert identity(given.chats) in inputs(scored)
    assert identity(shard) in inputs(manifest(out / "scores-before/manifest.json"))
    hashes = {found["tokenizer_sha256"] for found in (shards, data, trained, tuned)}
    assert len(hashes) == 1


def test_each_pipeline_finds_what_the_other_has_done(ran: Ran) -> None:
    """The commands and the APIs make the same thing, down to the manifests: nothing is made again, and no file is touched."""
    before = times(ran.out)
    for script in (SHELL, PYTHON):
        again = ran.given.run(script, ran.out)
        assert again.returncode == DONE, again.stderr
        assert words(again.stderr, ran.out) == [f"already done: {name}" for name in MADE]
        assert times(ran.out) == before
    assert "step 1/3" not in again.stderr


def cases(ran: Ran, folder: Path) -> dict[str, tuple[Given, Path, dict[str, str], int, str, int]]:
    """What goes wrong -> what is given, where to, variables, exit code, what is said, and how many steps come before."""
    given, out = ran.given, folder / "out"
    cut, talk, wrong = folder / "cut", folder / "talk.jsonl", folder / "wrong.yaml"
    shutil.copytree(given.model, cut)
    os.truncate(cut / "model.safetensors", 1000)
    talk.write_text("not JSON\n" * 3)
    wrong.write_text(yaml.safe_dump(RECIPE | {"optim": {"learning_rate": 1}}))
    low, odd = ({"FAIL_UNDER": f"conversations.{score}"} for score in ("bits_per_byte=5", "acc=0"))
    return {
        "missing": (replace(given, model=folder / "none"), out, {}, INPUT, "none does not exist", 0),
        "cut": (replace(given, model=cut), out, {}, INPUT, "model.safetensors", 0),
        "records": (replace(given, chats=talk), out, {}, INPUT, "none of 3 records can be used", 1),
        "recipe": (replace(given, recipe=wrong), ran.out, {}, USAGE, "unknown key optim.learning_rate", 3),
        "score": (given, ran.out, low, CHECK_FAILED, "which is not 5 better", len(MADE)),
        "name": (given, ran.out, odd, USAGE, "there is no such score", len(MADE)),
    }


QUICK = {("cut", "python"), ("records", "shell"), ("recipe", "shell"), ("score", "python")}


@pytest.mark.parametrize(
    "case, script",
    [
        pytest.param(case, name, id=f"{case}-{name}", marks=[] if (case, name) in QUICK else [pytest.mark.slow])
        for case in ("missing", "cut", "records", "recipe", "score", "name")
        for name in ("python", "shell")
    ],
)
def test_a_step_that_fails_ends_the_pipeline_with_its_code(ran: Ran, tmp_path: Path, case: str, script: str) -> None:
    """A model that is not there, a cut file of weights, conversations that are none, a wrong key, a score that is too low."""
    before = times(ran.out)
    given, out, variables, code, said, steps = cases(ran, tmp_path)[case]
    ended = given.run(PYTHON if script == "python" else SHELL, out, **variables)
    assert ended.returncode == code, ended.stderr
    assert said in ended.stderr
    assert [line.partition(": ")[2] for line in words(ended.stderr, out)] == list(MADE[:steps])
    assert "Traceback" not in ended.stderr
    assert times(ran.out) == before


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{}, {"TP": "2"}], ids=["one process", "tp2"])
def test_both_make_the_same(ran: Ran, tmp_path: Path, variables: dict[str, str]) -> None:
    """From the beginning, each by itself: weights bit for bit, answers and scores."""
    ways = []
    for name, script in (("python", PYTHON), ("shell", SHELL)):
        out = tmp_path / name
        done = ran.given.run(script, out, **variables)
        assert done.returncode == DONE, done.stderr
        losses = [json.loads(line)["loss"] for line in (out / "run/metrics.jsonl").read_text().splitlines()]
        found = [scores(out / f"scores-{when}") for when in ("before", "after")]
        ways.append((weights(out / "hf"), losses, found, (out / "answers.jsonl").read_bytes()))
        for path in (*(out / f"{name}/manifest.json" for name in ("megatron", "run", "hf")), out / "data/chats.manifest.json"):
            ways[-1] += (path.read_bytes(),)
    assert ways[0] == ways[1]
    assert variables or ways[0][0] == weights(ran.out / "hf")


@pytest.mark.slow
def test_finished_steps_are_not_taken_for_others(tmp_path: Path) -> None:
    """With another recipe, or other conversations, what is there is of something else: that is said, and nothing is touched."""
    given, out = make(tmp_path / "given"), tmp_path / "out"
    assert given.run(PYTHON, out).returncode == DONE
    before = times(out)
    given.recipe.write_text(yaml.safe_dump(RECIPE | {"optim": {"lr": 1.0e-3, "weight_decay": 0.0}}))
    for script in (PYTHON, SHELL):
        other = given.run(script, out)
        assert other.returncode == INPUT
        assert f"{out}/run has all its 3 steps, and was another run: optim.lr was 0.003, and is 0.001" in other.stderr
        assert len(words(other.stderr, out)) == 3
    write_jsonl(given.chats, chats(13))
    for script in (PYTHON, SHELL):
        other = given.run(script, out)
        assert other.returncode == INPUT
        assert "chats.manifest.json is of another run" in other.stderr
    assert times(out) == before
