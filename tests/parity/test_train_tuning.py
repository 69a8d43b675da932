"""jumar-train sft against transformers on single conversations: padded to a batch, packed with numbers, packed with EOS borders.

The order of samples is that of the files, so which conversations a step has is known without our code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import harness
import train_runs
import tuning_data
from train_rows import QUIET, Row
from train_runs import Place
from tuning_data import Talk

STEPS, BATCH = 6, 8
OPTIM = {"lr": 3e-3, "weight_decay": 0.1, "clip_grad": 0.5, "eps": 1e-4}
CASES = tuple(
    (variant, data)
    for variant, kinds in {
        "llama": ("talks", "packed", "eos"),
        "gemma2": ("talks", "packed"),
        "gpt2": ("packed",),
        "deepseek_v2_dense": ("talks", "packed"),
        "mixtral": ("talks", "packed"),
        "mamba2": ("packed",),
        "nemotron_h": ("packed",),
    }.items()
    for data in kinds
)
QUICK = {("llama", "packed"), ("llama", "eos"), ("gemma2", "talks"), ("deepseek_v2_dense", "packed"), ("mixtral", "packed")}
PARAMS = [pytest.param(case, id="-".join(case), marks=[] if case in QUICK else [pytest.mark.slow]) for case in CASES]
Curves = dict[tuple[str, str], tuple[train_runs.Report, dict[str, Any]]]


def optim(variant: str) -> dict[str, float]:
    """State-space models learn slower, and have smaller gradients."""
    return OPTIM | ({"lr": 1e-2, "clip_grad": 0.3} if variant in ("mamba2", "nemotron_h") else {})


def row(variant: str, data: str) -> Row:
    same = {f"optim.{name}": value for name, value in optim(variant).items()} | (QUIET if variant == "mixtral" else {})
    same |= {"data.train": data, "data.shuffle": False, "data.eod_id": tuning_data.EOD, "train.global_batch_size": BATCH}
    return Row(name=f"{variant}-{data}", variant=variant, world=1, task="sft", same=same, steps=STEPS)


def steps(data: str) -> list[list[Talk]]:
    """The conversations of each step."""
    talks, rows = tuning_data.everything()
    samples = [[talk] for talk in talks] if data == "talks" else rows
    return [[talk for sample in samples[at : at + BATCH] for talk in sample] for at in range(0, STEPS * BATCH, BATCH)]


@pytest.fixture(scope="session")
def curves(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Curves:
    """Of the cases that are selected."""
    called = [item.callspec.params.get("case") for item in request.session.items if hasattr(item, "callspec")]
    cases = [case for case in CASES if case in called]
    place = Place(train_runs.shared(tmp_path_factory, request) / "tuning")
    out, report = place.root / "out", place.root / "report.json"
    rows = [row(*case) for case in cases]
    with place.locked("curves"):
        if not report.exists():
            train_runs.launch([train_runs.job(place, each, out) for each in rows], 1, out)
            with_torch(place, cases, report)
    ours = {case: train_runs.read(out, each.name) for case, each in zip(cases, rows, strict=True)}
    assert not any(each.error for each in ours.values()), next(each.error for each in ours.values() if each.error)
    return {case: (ours[case], found) for case, found in zip(cases, json.loads(report.read_text()), strict=True)}


def with_torch(place: Place, cases: list[tuple[str, str]], report: Path) -> None:
    jobs = [
        {"model": str(place.model(variant)), "steps": [[vars(talk) for talk in step] for step in steps(data)], **optim(variant)}
        for variant, data in cases
    ]
    listed = place.root / "jobs.json"
    listed.write_text(json.dumps(jobs))
    harness.run(Path(__file__).with_name("tuning_torch.py"), listed, report)


@pytest.mark.parametrize("case", PARAMS)
def test_the_loss_is_that_of_single_conversations(case: tuple[str, str], curves: Curves) -> None:
    ours, theirs = curves[case]
    losses, norms = (np.abs(np.subtract(ours.values[key], theirs[key])) for key in ("loss", "grad_norm"))
    print(f"{'-'.join(case)}: loss {losses.max():.1e}, norm {(norms / theirs['grad_norm']).max():.1e}")
    assert len(losses) == STEPS
    assert ours.values["loss"][-1] < ours.values["loss"][0] - 0.05
    assert max(ours.values["grad_norm"]) > optim(case[0])["clip_grad"], "nothing is clipped"
    assert losses.max() < 1e-5
    assert (norms / theirs["grad_norm"]).max() < 1e-4


@pytest.mark.parametrize("case", PARAMS)
def test_the_gradient_is_the_sum_of_those_of_single_conversations(case: tuple[str, str], curves: Curves) -> None:
    ours, theirs = curves[case]
    with np.load(theirs["gradients"]) as arrays:
        wanted = dict(arrays)
    if case[0] == "nemotron_h":  # its files name the decoder after its paper, transformers' module as everywhere
        wanted = {name.replace("model.", "backbone.", 1): grad for name, grad in wanted.items()}
    shared = sorted(set(wanted) & set(ours.gradients))
    assert len(shared) > 10
    sizes = {name: np.abs(wanted[name]).max() for name in shared}
    apart = {name: np.abs(ours.gradients[name] - wanted[name]).max() / size for name, size in sizes.items() if size > 1e-6}
    worst = max(apart, key=apart.__getitem__)
    print(f"{'-'.join(case)}: {worst} {apart[worst]:.1e}")
    assert apart[worst] < 1e-4, worst


def test_the_data_tells_conversations_from_rows() -> None:
    """Rows hold several conversations, some turn is not trained, and some row is not full: else nothing above would show."""
    talks, rows = tuning_data.everything()
    assert max(map(len, rows)) > 2
    assert any(-100 in talk.labels[len(talk.labels) // 2 :] for talk in talks)
    assert any(sum(len(talk.tokens) for talk in each) < tuning_data.SEQ_LEN for each in rows)
