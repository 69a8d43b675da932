"""Weights into a run and out of it: from every format, and back to transformers, which then trains and computes the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jumar.schema.recipe import load_recipe
from training import DONE, ENVIRONMENT, INPUT, Run, Settings, environment, finish, make_run, token_file, train

CONVERT = str(Path(sys.executable).with_name("jumar-convert"))
pytestmark = pytest.mark.timeout(1200)  # processes on a machine that others use as well
LEARN = {"train.steps": 3, "train.eval_every": 3, "train.eval_batches": 2, "schedule.warmup_steps": 1, "schedule.kind": "linear"}


def convert(*words: Any) -> None:
    done = subprocess.run([CONVERT, *map(str, words)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def hugging_face(folder: Path, family: str = "qwen2", **changes: Any) -> Path:
    """A model as transformers saves it, with random weights everywhere, biases and norms too."""
    transformers = pytest.importorskip("transformers")
    import torch

    from jumar.schema.registry import families

    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(**{**families()[family].tiny, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def of_hugging_face(folder: Path, **settings: Any) -> Run:
    run = make_run(folder, {**LEARN, **settings, "load.path": str(hugging_face(folder / "hf"))})
    del run.values["model"]
    return run.write()


def loaded(path: Path) -> Any:
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def samples(run: Run) -> tuple[list[Any], list[Any]]:
    """What the run's steps train on, and what it evaluates."""
    from jumar.train_core.data.pretrain import datasets
    from jumar.train_core.job import resolve
    from jumar.train_core.recipe import Recipe

    job = resolve(load_recipe(Recipe, run.recipe, []), world=2, device="cpu")
    data, batch = datasets(job), job.recipe.train.global_batch_size
    steps = [[data.train[i] for i in range(step * batch, (step + 1) * batch)] for step in range(job.recipe.train.steps)]
    return steps, [data.valid[i] for i in range(batch * job.recipe.train.eval_batches)]


def loss_of(model: Any, batch: list[Any]) -> Any:
    import torch

    logits = model(torch.stack([sample["tokens"] for sample in batch])).logits
    labels = torch.stack([sample["labels"] for sample in batch])
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def test_transformers_and_adamw_train_the_same(tmp_path: Path) -> None:
    """Three steps: clipping, the schedule, no decay of biases and norms; and what was trained talks in transformers."""
    decay = 0.3
    run = of_hugging_face(tmp_path, **{"optim.weight_decay": decay, "parallel.tp": 2})
    finish(run, 2)
    convert("to-hf", run.path, tmp_path / "back")

    import torch

    model = loaded(tmp_path / "hf")
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    assert any(name.endswith("bias") for name, _ in model.named_parameters())
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8)
    steps, evaluated = samples(run)
    ours = run.metrics("loss", "grad_norm", "lr")
    for number, (batch, rate) in enumerate(zip(steps, (0.003, 0.0015, 0.0), strict=True), 1):
        for group in adam.param_groups:
            group["lr"] = rate
        adam.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        assert ours[number] == pytest.approx((loss.item(), norm.item(), rate), rel=1e-5)
    back = loaded(tmp_path / "back")
    for (name, mine), theirs in zip(model.named_parameters(), back.parameters(), strict=True):
        # Where a gradient is next to nothing, rounding decides Adam's first steps, which are 3e-3 long.
        assert (mine - theirs).abs().max() < 5e-5, name
        assert (mine - theirs).abs().mean() < 1e-7, name
    with torch.no_grad():
        assert loss_of(back, evaluated).item() == pytest.approx(run.metrics("eval_loss")[3][0], abs=2e-6)


@pytest.mark.slow
def test_every_format_and_layout_begins_with_the_same_loss(tmp_path: Path) -> None:
    base = of_hugging_face(tmp_path)
    one = {"train.steps": 1, "schedule.warmup_steps": 0, "train.eval_every": None, "train.eval_batches": 10}
    first = finish(base.having(one, "first"))
    convert("to-megatron", tmp_path / "hf", tmp_path / "torch", "--tp", "2")
    convert("to-megatron", tmp_path / "hf", tmp_path / "dist", "--pp", "2", "--format", "torch_dist")
    for name, source, layout in (
        ("a", "torch", {"parallel.pp": 2}),
        ("b", "torch", {"parallel.tp": 2}),
        ("c", "dist", {"parallel.tp": 2}),
        ("d", "dist", {}),
        ("e", "hf", {"parallel.cp": 2}),
    ):
        other = finish(base.having({**one, **layout, "load.path": str(tmp_path / source)}, name), 2)
        assert other.metrics("loss", "grad_norm")[1] == pytest.approx(first.metrics("loss", "grad_norm")[1], rel=2e-6), name
    trained = finish(base.having({}, "trained"), 2)
    other = finish(base.having({**one, "load.path": str(trained.path), "parallel.tp": 2}, "f"), 2)
    convert("to-hf", trained.path, tmp_path / "back")
    again = finish(base.having({**one, "load.path": str(tmp_path / "back")}, "g"))
    assert other.metrics("loss")[1] == pytest.approx(again.metrics("loss")[1], rel=2e-6)
    assert other.metrics("loss")[1] != first.metrics("loss")[1]


@pytest.mark.slow
def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    run = of_hugging_face(tmp_path)
    small = hugging_face(tmp_path / "small", hidden_size=32)
    ended = train(run.having({"model.path": str(small)}, "other"), 2)
    assert ended.code == INPUT
    assert "the model of the recipe has" in ended.err
    other = Path(run.folder / "other")
    assert sorted(path.name for path in other.iterdir()) == [".lock", "exit.json"]


def test_layers_of_prediction_that_transformers_does_not_save(tmp_path: Path) -> None:
    """Its config.json still counts them; the hint is right."""
    hf = hugging_face(tmp_path / "hf", "deepseek_v3")
    run = make_run(tmp_path, {"load.path": str(hf), "train.steps": 1, "schedule.warmup_steps": 0}, family="deepseek_v3")
    del run.values["model"]
    ended = train(run.write())
    assert ended.code == INPUT
    assert "hf holds 0 layers of multi-token prediction, config.json says 1" in ended.err
    hint = "model.config.num_nextn_predict_layers=0"
    assert f"--set {hint}" in ended.err
    assert train(run, None, hint).code == DONE
    assert json.loads((run.path / "hf/config.json").read_text())["num_nextn_predict_layers"] == 0


@pytest.mark.slow
def test_a_run_of_another_model_or_precision_is_not_gone_on_with(tmp_path: Path) -> None:
    run = finish(make_run(tmp_path))
    before = (run.path / "manifest.json").read_text()
    ended = train(run.having({"model.config": {"num_hidden_layers": 2}, "train.steps": 7}))
    assert ended.code == INPUT
    assert "holds a run of another model: num_layers 4 there, 2 here" in ended.err
    ended = train(run.having({"train.precision": "bf16", "train.steps": 7}))
    assert ended.code == INPUT
    assert "was trained in fp32, train.precision is bf16" in ended.err
    assert run.steps() == [3, 6]
    assert (run.path / "manifest.json").read_text() == before


@pytest.mark.slow
def test_other_data_and_another_seed_are_said(tmp_path: Path) -> None:
    run = finish(make_run(tmp_path))
    names = [each["name"] for each in json.loads((run.path / "manifest.json").read_text())["inputs"]]
    assert names == ["a_text_document.idx", "a_text_document.bin"]
    token_file(tmp_path / "data/a_text_document", seed=1)
    shutil.rmtree(tmp_path / "data/cache")
    ended = train(run.having({"train.steps": 7, "train.seed": 5}), 2)
    assert ended.code == DONE, ended.err
    text = " ".join(ended.err.split())
    assert "warning: train.seed was 1234 when the run began, and is 5" in text
    assert "warning: the data is not what the run began with (a_text_document.idx, a_text_document.bin)" in text
    again = train(run.having({"train.steps": 8, "train.seed": 5}), 2)
    assert "warning" not in again.err, "what it was changed to is now what the run is"


@pytest.mark.slow
def test_nothing_left_to_do(tmp_path: Path) -> None:
    run = finish(make_run(tmp_path, {"save.optimizer": False}))
    ended = train(run.having({"train.steps": 4}), 2)
    assert ended.code == DONE
    assert f"{run.path} is at step 6, train.steps is 4: nothing is left to do" in ended.err
    assert run.steps() == [3, 6]
    ended = train(run.having({"train.steps": 7}))
    assert ended.code == INPUT
    assert "has no optimizer state" in ended.err


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"parallel.tp": 2}, {"parallel.pp": 2}], ids=["tp2", "pp2"])
@pytest.mark.parametrize("kind", ["hf", "megatron"])
def test_a_rank_reads_its_slices_only(tmp_path: Path, kind: str, settings: Settings) -> None:
    """By the kernel's count, which reads some MB ahead of each slice."""
    hf = hugging_face(tmp_path / "hf", "llama", vocab_size=1_600_000)
    if kind == "megatron":
        convert("to-megatron", hf, tmp_path / "megatron", "--pp", "2")
    files = sorted(path for path in (tmp_path / kind).rglob("*") if path.suffix in (".safetensors", ".pt"))
    size = sum(path.stat().st_size for path in files)
    assert size > 800e6
    run = make_run(tmp_path, {**settings, "load.path": str(tmp_path / kind)}, family="llama", model={"vocab_size": 1_600_000})
    worker, report = Path(__file__).with_name("slices_worker.py"), tmp_path / "shares.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, str(worker), str(run.recipe), str(report), *map(str, files)], check=True, env=environment())
    shares = json.loads(report.read_text())
    assert shares == pytest.approx([0.5, 0.5], abs=0.05)


@pytest.mark.slow
def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = make_run(tmp_path)
    run.values["save"]["path"] = str(tmp_path / "file/run")
    ended = train(run.write())
    assert ended.code == ENVIRONMENT
    assert "step" not in ended.err
