"""What a command says before it launches: of the run that it would go on with; fields that take one another's place."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from jobs import make_recipe, token_file, write_recipe
from jumar.schema.errors import Exit, ToolError
from jumar.schema.indexed import IndexedWriter
from jumar.train_core.data import blends
from jumar.train_core.job import resolve
from jumar.train_core.run.beside import write_beside
from jumar.train_core.run.complete import facts_text
from jumar.train_core.start import Outcome, start

LIKE = {"steps": 10, "precision": "fp32"}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    made = make_recipe(tmp_path)
    values = {"model": {"path": str(made.model.path)}, "data": {"train": str(made.data.train), "seq_len": 32}}
    values |= {"train": {"steps": 10, "global_batch_size": 8}, "save": {"path": str(tmp_path / "run")}}
    return write_recipe(tmp_path / "recipe.yaml", values)


def dry_run(recipe: Path, *sets: str, task: str = "pretrain") -> None:
    assert start(task, recipe, sets, nproc=None, device="cpu", dry_run=True).code == 0  # type: ignore[arg-type]


def test_a_dry_run_is_on_any_disk(recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1024))
    dry_run(recipe)
    assert re.search(r"^warning: save\.path .*: a checkpoint takes about .* are free; make room", capsys.readouterr().err)
    with pytest.raises(ToolError, match="a checkpoint takes about") as fault:
        start("pretrain", recipe, [], nproc=None, device="cpu")
    assert fault.value.code == Exit.ENVIRONMENT


def test_a_dry_run_says_from_where_a_run_would_go_on(tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dry_run(recipe)
    assert capsys.readouterr().err == ""
    job, root = resolve(make_recipe(tmp_path), world=1, device="cpu"), tmp_path / "run"
    root.mkdir()
    write_beside(job, root, blends.inputs(blends.plan(job)))
    (root / "latest_checkpointed_iteration.txt").write_text("9")
    dry_run(recipe)
    assert capsys.readouterr().err == "", "the tracker names what is not there"
    for step, files in ((4, {}), (6, {"gone": [1, 0]})):
        (root / f"iter_{step:07d}").mkdir()
        (root / f"iter_{step:07d}/complete.json").write_text(facts_text({"step": step, "files": files}))
    dry_run(recipe)
    told = "is at step 4, train.steps is 10: a run goes on from there for 6 steps; to begin anew, set another save.path"
    assert capsys.readouterr().err == f"note: {root} {told}\n"
    token_file(tmp_path / "data/a", documents=50)
    dry_run(recipe)
    warning, _note = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: the data is not what the run began with (a_text_document.idx, a_text_document.bin)")
    dry_run(recipe, "train.steps=4")
    assert "train.steps is 4: nothing is left to do" in capsys.readouterr().err
    with pytest.raises(ToolError, match="holds a run of another model: num_layers 4 there, 2 here") as fault:
        dry_run(recipe, "model.config.num_hidden_layers=2")
    assert fault.value.code == Exit.INPUT


def test_a_run_that_is_done_is_left_alone(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is imported, launched or written; with other settings it is another run, and that is an error."""

    def again(*sets: str) -> Outcome:
        return start("pretrain", recipe, sets, nproc=None, device="cpu")

    job, root = resolve(make_recipe(tmp_path), world=1, device="cpu"), tmp_path / "run"
    (root / "iter_0000010").mkdir(parents=True)
    (root / "iter_0000010/complete.json").write_text(facts_text({"step": 10, "files": {}, "unevaluated": False}))
    write_beside(job, root, blends.inputs(blends.plan(job)))
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"train": dict(LIKE, global_batch_size=8)}))
    assert again().already
    assert json.loads((root / "exit.json").read_text())["code"] == 0
    (root / ".lock").write_text("process 1 on elsewhere\n")
    before = {path: path.stat().st_mtime_ns for path in [root, *root.iterdir()]}
    ended = again("parallel.tp=1", "log.every=3", "train.micro_batch_size=4", "data.cache=elsewhere")
    assert (ended.code, ended.already) == (0, True)
    assert capsys.readouterr().err.count(f"already done: {root} is at step 10, train.steps is 10: nothing is left to do") == 2
    imports_no_engine(tmp_path, recipe)
    with monkeypatch.context() as torchrun:
        torchrun.setenv("WORLD_SIZE", "2")
        torchrun.setenv("LOCAL_WORLD_SIZE", "2")
        for rank in ("1", "0"):  # neither waits for the other
            torchrun.setenv("RANK", rank)
            torchrun.setenv("LOCAL_RANK", rank)
            ended = again()
            assert (ended.code, ended.already, ended.speaks) == (0, True, rank == "0")
        assert capsys.readouterr().err.count("already done") == 1
    for setting, said in (
        ("optim.lr=0.5", "optim.lr was the default, and is 0.5"),
        ("train.seed=5", "train.seed was 1234"),
        ("train.precision=bf16", 'train.precision was "fp32", and is the default'),
    ):
        with pytest.raises(ToolError, match=re.escape(f"{root} has all its 10 steps, and was another run: {said}")) as fault:
            again(setting)
        assert fault.value.code == Exit.INPUT
        assert fault.value.hint == "set another save.path to begin anew, or train.steps above 10 to go on from there"
    assert {path: path.stat().st_mtime_ns for path in [root, *root.iterdir()]} == before
    token_file(tmp_path / "data/a", documents=50)
    with pytest.raises(ToolError, match="the data is not what the run began with"):
        again()


def imports_no_engine(tmp_path: Path, recipe: Path) -> None:
    """Neither does a dry run: with torch it would take seconds, and megatron-core, a right one or not, would have its say."""
    text = "raise RuntimeError('imported')"
    for name in ("torch", "megatron"):
        (tmp_path / "elsewhere" / name).mkdir(parents=True)
        (tmp_path / "elsewhere" / name / "__init__.py").write_text(text)
    path = os.pathsep.join([str(tmp_path / "elsewhere"), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, "-m", "jumar.train_core", "pretrain", str(recipe), "--device", "cpu", "--dry-run"]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == done.stderr.count("nothing is left to do") == 1


def test_epochs_in_the_place_of_the_recipe_s_steps(tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("input_ids", "attention_mask", "labels"):
        with IndexedWriter(tmp_path / f"t_packed_{key}_document", np.int32) as writer:
            for number in range(20):
                writer.add(np.ones(4 + number % 3))
    sets = [f"data.train={tmp_path}/t"]
    dry_run(recipe, *sets, task="sft")
    assert "10 steps of 8 samples = at most" in capsys.readouterr().out
    dry_run(recipe, *sets, "train.epochs=6", task="sft")
    out = capsys.readouterr().out
    assert "15 steps of 8 samples = at most" in out
    assert "epochs: 6.0" in out
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"train": {"steps": 10, "epochs": 6}}))
    with pytest.raises(ToolError, match=r"train\.epochs and train\.steps both") as fault:
        dry_run(recipe, *sets, task="sft")
    assert "--set train.epochs=2 takes train.steps out" in (fault.value.hint or "")
