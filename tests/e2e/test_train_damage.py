"""Damaged checkpoints, a full disk, losses that are not finite."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jumar.schema.indexed import IndexedWriter
from jumar.schema.recipe import load_recipe
from training import (
    ENVIRONMENT,
    INPUT,
    SEQ_LEN,
    TWO,
    Ended,
    Run,
    Settings,
    command,
    environment,
    finish,
    make_run,
    tensors,
    train,
)

pytestmark = pytest.mark.timeout(1200)  # processes on a machine that others use as well


def flip(path: Path, at: float) -> None:
    """Other bits at that share of a file."""
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 0x10
    path.write_bytes(content)


def test_damaged_checkpoints_are_passed_over_and_written_again(tmp_path: Path) -> None:
    run = finish(make_run(tmp_path, {"save.every": 2, "save.keep": 1, "train.steps": 8}).having({"save.keep": None}))
    assert run.steps() == [2, 4, 6, 8]
    good = {step: tensors(run.path / f"iter_{step:07d}") for step in (6, 8)}
    again = run.copied("again", until=6, settings={"save.keep": 2})
    flip(again.path / "iter_0000006/__0_0.distcp", 0.5)
    (again.path / "iter_0000004/.metadata").unlink()
    (again.path / "iter_0000007.partial").mkdir()
    (again.path / "iter_0000001.removing").mkdir()
    ended = train(again)
    assert ended.code == 0, ended.err
    assert "iter_0000006 is damaged (__0_0.distcp has other bytes than were written); going back to the one before" in ended.err
    assert "iter_0000004 is damaged (.metadata is missing); going back to the one before" in ended.err
    assert again.learned() == run.learned()
    assert {step: tensors(again.path / f"iter_{step:07d}") for step in (6, 8)} == good
    assert (again.steps(), again.left_over()) == ([6, 8], [])

    lost = run.copied("lost", until=4)
    for step, name in ((2, "common.pt"), (4, "complete.json")):
        flip(lost.path / f"iter_{step:07d}" / name, 0.3)
    ended = train(lost)
    assert ended.code == INPUT
    assert f"error: no checkpoint under {lost.path} can be read" in ended.err
    assert "hint: move them away to start anew" in ended.err
    assert lost.steps() == [2, 4]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["truncated", "missing", "no complete.json", "tracker"])
def test_each_damage_on_two_ranks(tmp_path: Path, what: str) -> None:
    run = finish(make_run(tmp_path, TWO), 2)
    newest = run.path / "iter_0000006"
    for name in sorted(path.name for path in newest.iterdir()) if what in ("truncated", "missing") else [what]:
        again = run.copied(f"{what} {name}", until=6)
        file = again.path / "iter_0000006" / name
        if what == "truncated":
            file.write_bytes(file.read_bytes()[:-2])  # the last byte of a text is the end of its line
        elif what == "missing":
            file.unlink()
        elif what == "tracker":
            (again.path / "latest_checkpointed_iteration.txt").write_text("77")
        else:
            (again.path / "iter_0000006/complete.json").unlink()
        ended = train(again, 2)
        assert ended.code == 0, ended.err
        if what != "tracker":
            assert "iter_0000006 is damaged" in ended.err, name
            assert again.learned() == run.learned()
        shutil.rmtree(again.path)


@pytest.mark.slow
def test_keep_one_does_not_forget_the_last_that_is_whole(tmp_path: Path) -> None:
    """A damaged newer one counts for nothing."""
    run = finish(make_run(tmp_path, {"save.every": 2, "train.steps": 8}))
    again = run.copied("again", until=8)
    flip(again.path / "iter_0000008/__0_1.distcp", 0.1)
    shutil.rmtree(again.path / "iter_0000006")
    ended = train(again.having({"train.steps": 7}))
    assert ended.code == 0, ended.err
    assert "at step 8, train.steps is 7" in ended.err, "its files are there; what is in them is looked at when it is needed"
    few = again.having({"train.steps": 5, "save.keep": 1})
    (again.path / "iter_0000008").rename(again.path / "iter_0000007")
    (again.path / "iter_0000007/complete.json").unlink()
    finish(few)
    assert few.steps() == [5, 7]


def limited(run: Run, nproc: int | None, size: int) -> Ended:
    """Runs it with no file allowed beyond `size` bytes: as a full disk, anywhere."""
    done = subprocess.run(
        command(run, nproc),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    return Ended(done.returncode, done.stderr, 0)


SIZES: list[tuple[int | None, bool, int]] = [(2, False, 150_000), (2, True, 150_000), (None, False, 150_000), (2, False, 30_000)]


@pytest.mark.parametrize(
    "nproc, background, size",
    [pytest.param(*each, marks=pytest.mark.slow if number else ()) for number, each in enumerate(SIZES)],
)
def test_a_full_disk(tmp_path: Path, nproc: int | None, background: bool, size: int) -> None:
    """For files of data, and (at 30 kB) for those that rank 0 writes besides."""
    run = finish(make_run(tmp_path, {"train.steps": 3, "schedule.decay_steps": 6}))
    more = run.having({"train.steps": 6, "save.every": 1, "save.background": background})
    ended = limited(more, nproc, size)
    assert (ended.code, run.ended()["code"]) == (ENVIRONMENT, ENVIRONMENT), ended.err
    assert "iter_0000004 cannot be written: " in ended.err
    assert "Traceback" not in ended.err
    assert ended.err.count("error:") == 1
    assert (run.steps(), run.left_over()) == ([3], [])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of few bytes."""
    where = tmp_path / "disk"
    where.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", where], check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield where
    subprocess.run(["umount", "-l", where], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("free", [1_000, 60_000, 700_000, 1_500_000, 2_000_000])
def test_a_disk_that_is_full_at_any_moment(tmp_path: Path, small_disk: Path, free: int) -> None:
    run = make_run(tmp_path)
    run.values["save"]["path"] = str(small_disk / "run")
    run.values["data"]["cache"] = str(tmp_path / "cache")
    run = Run(tmp_path, {**run.values, "train": {**run.values["train"], "steps": 3}})
    (tmp_path / "run.yaml").unlink(missing_ok=True)
    finish(run.write(), 2)
    room = shutil.disk_usage(small_disk).free
    more = run.having({"train.steps": 6})
    with (small_disk / "filler").open("wb") as file:
        file.write(b"x" * (room - free))
    ended = train(more, 2)
    assert ended.code == ENVIRONMENT, ended.err
    assert run.steps() == [3]
    assert [name for name in run.left_over() if name.endswith(".partial")] == []
    (small_disk / "filler").unlink()
    finish(more, 2)


# Losses that are not finite: one token's embedding is infinite, and only some steps meet it.

BAD = 96


def with_a_bad_token(folder: Path, settings: Settings, *, family: str = "llama", every: int = 4) -> Run:
    """Weights with an infinite row, and documents of exactly one sample each, of which one in `every` holds its token."""
    import torch
    from safetensors.torch import save_file

    from jumar.schema.registry import families

    run = make_run(folder, {"train.steps": 8, "save.every": 1, "train.global_batch_size": 2, **settings}, family=family)
    kind = families()[family]
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * 0.05
        for name, shape in kind.hf_tensors(kind.spec(kind.tiny)).items()
    }
    weights["model.embed_tokens.weight"][BAD] = float("inf")
    save_file(weights, Path(run.values["model"]["path"]) / "model.safetensors", metadata={"format": "pt"})
    run.values["load"] = {"path": run.values["model"]["path"]}
    prefix = folder / "odd/b_text_document"
    prefix.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    with IndexedWriter(prefix, np.uint16) as writer:
        for number in range(200):
            tokens = rng.integers(0, BAD, SEQ_LEN)
            if number % (every * 2) == 0:
                tokens[5] = BAD
            writer.add(tokens)
    run.values["data"] = {"train": str(prefix), "seq_len": SEQ_LEN}
    return run.write()


def bad_steps(run: Run, world: int) -> list[int]:
    """The steps that meet the token."""
    from jumar.train_core.data.pretrain import datasets
    from jumar.train_core.job import resolve
    from jumar.train_core.recipe import Recipe

    job = resolve(load_recipe(Recipe, run.recipe, []), world=world, device="cpu")
    data, batch = datasets(job).train, job.recipe.train.global_batch_size
    return [n // batch + 1 for n in range(job.recipe.train.steps * batch) if bool((data[n]["tokens"] == BAD).any())]


def trained(checkpoint: Path) -> dict[str, Any]:
    """Weights, moments, biases: what a step changes."""
    return {name: value for name, value in tensors(checkpoint).items() if not name.startswith("rng_state")}


SKIP = {"train.on_nan": "skip", "train.max_skipped": 5}
SKIPS: list[tuple[str, str, int | None, Settings]] = [
    ("ep2, with a bias, overlapped", "deepseek_v3", 2, {"parallel.ep": 2, **TWO, "train.steps": 5}),
    ("ep2, eight steps", "deepseek_v3", 2, {"parallel.ep": 2, **TWO}),
    ("one process", "llama", None, {}),
    ("tp2", "llama", 2, {"parallel.tp": 2}),
    ("pp2, experts on one stage only", "deepseek_v3", 2, {"parallel.pp": 2}),
    ("dp2 overlapped bf16", "llama", 2, {**TWO, "train.precision": "bf16"}),
    ("tp2 fp16", "llama", 2, {"parallel.tp": 2, "train.precision": "fp16", "optim.initial_loss_scale": 1024.0}),
]


@pytest.mark.parametrize(
    "family, nproc, settings",
    [pytest.param(*rest, id=name, marks=() if number == 0 else pytest.mark.slow) for number, (name, *rest) in enumerate(SKIPS)],
)
def test_a_skipped_step_changes_nothing(tmp_path: Path, family: str, nproc: int | None, settings: Settings) -> None:
    run = with_a_bad_token(tmp_path, {**SKIP, **settings}, family=family)
    bad, steps = bad_steps(run, nproc or 1), run.values["train"]["steps"]
    assert len(set(bad)) > 1
    assert 1 not in bad
    assert len(set(bad)) < steps - 1
    finish(run, nproc)
    states = {step: trained(run.path / f"iter_{step:07d}") for step in range(1, steps + 1)}
    for step in range(2, steps + 1):
        assert (states[step] == states[step - 1]) == (step in bad), step
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["skipped"]] == sorted(set(bad))
    assert all(line["loss"] is None and line["nonfinite"]["loss"] == "nan" for line in lines if line["skipped"])
    assert json.loads((run.path / f"iter_{steps:07d}/complete.json").read_text())["samples"] == 2 * steps

    again = finish(run.copied("again", until=max(bad) if max(bad) < steps else min(bad)), nproc)
    assert again.learned() == run.learned()


STOPS = [pytest.param(None, {}), pytest.param(2, {"parallel.tp": 2}), pytest.param(2, {"parallel.pp": 2}), pytest.param(2, TWO)]


@pytest.mark.slow
@pytest.mark.parametrize("nproc, settings", STOPS)
def test_it_stops_at_the_first(tmp_path: Path, nproc: int | None, settings: Settings) -> None:
    run = with_a_bad_token(tmp_path, {**settings, "save.background": True})
    first = min(bad_steps(run, nproc or 1))
    ended = train(run, nproc)
    assert (ended.code, run.ended()["code"]) == (INPUT, INPUT)
    assert f"error: step {first}: the loss is nan" in ended.err
    assert ended.err.count("error:") == 1
    assert (run.steps()[-1], run.left_over()) == (first - 1, [])


@pytest.mark.slow
def test_it_stops_when_nothing_else_is_left(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"optim.lr": 1e30, "schedule.warmup_steps": 0, "train.on_nan": "skip", "train.max_skipped": 2})
    ended = train(run, 2)
    assert ended.code == INPUT
    assert ", 3 steps in a row" in ended.err


@pytest.mark.slow
@pytest.mark.parametrize(
    "family, nproc, settings", [("llama", None, {}), ("mixtral", 2, {"parallel.ep": 2}), ("deepseek_v3", 2, {"parallel.pp": 2})]
)
def test_fp16_lowers_its_scale_and_goes_on(tmp_path: Path, family: str, nproc: int | None, settings: Settings) -> None:
    fp16 = {"train.precision": "fp16", "optim.initial_loss_scale": 2.0**26, "train.steps": 16, "save.every": 4}
    run = finish(make_run(tmp_path, {**fp16, **settings}, family=family), nproc)
    lines = run.metrics("loss_scale", "skipped")
    skipped = [step for step in lines if lines[step][1]]
    assert skipped
    assert skipped[0] == 1
    for step in range(2, 17):  # it falls by half at most, with skipped steps alone, and never rises
        before, after = lines[step - 1][0], lines[step][0]
        assert after in ((before, before / 2) if step in skipped else (before,))
    assert lines[16][0] < 2.0**26
    assert run.metrics("loss")[16] < run.metrics("loss")[1]
    again = finish(run.copied("again", until=4), nproc)
    assert again.metrics("loss_scale", "skipped", "loss") == run.metrics("loss_scale", "skipped", "loss")


@pytest.mark.slow
@pytest.mark.parametrize(
    "family, settings",
    [("deepseek_v3", {"parallel.ep": 2, **TWO}), ("llama", TWO), ("llama", {"parallel.tp": 2}), ("mixtral", {"parallel.pp": 2})],
)
def test_an_evaluation_changes_nothing(tmp_path: Path, family: str, settings: Settings) -> None:
    run = make_run(tmp_path, {**settings, "model.hidden_dropout": 0.1}, family=family)
    finish(run, 2)
    other = finish(run.having({"train.eval_every": 1, "train.eval_batches": 2}, "other"), 2)
    assert other.learned() == run.learned()
    assert len(other.metrics("eval_loss")) == 6
    assert trained(other.path / "iter_0000006") == trained(run.path / "iter_0000006")
