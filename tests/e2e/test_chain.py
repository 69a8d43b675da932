"""The whole chain: transformers, shards, training in several layouts, and back; asked and scored wherever it stands."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

import chain
from chain import LR, STEPS, Chain, Reference, Way
from jumar.schema.registry import families
from training import TWO, Run

pytestmark = pytest.mark.timeout(1800)  # processes on a machine that others use as well
TP2, PP2, EP2 = (Way(f"{size}2", ("--" + size, "2"), {f"parallel.{size}": 2}) for size in ("tp", "pp", "ep"))
CP2 = Way("cp2", ("--format", "torch_dist", "--pp", "2"), {"parallel.cp": 2})
DP2 = Way("dp2", ("--dialect", "te"), TWO)
WAYS = {
    **dict.fromkeys(families(), (TP2, PP2)),
    "llama": (TP2, PP2, CP2, DP2),
    "qwen3": (TP2, PP2, CP2, DP2),
    "mixtral": (EP2, TP2, CP2, DP2),
    "deepseek_v2": (TP2, EP2, CP2, DP2),
    "mamba2": (TP2, PP2, CP2, DP2),
}
REFERENCE, LAYOUTS = 1e-4, 5e-5
"""Log-probabilities of transformers' code, and of weights that another layout has trained."""


def check(made: Chain, ways: tuple[Way, ...]) -> None:
    """Every stage that holds the same weights says the same; what was trained says what transformers says of it, and evaluates
    to what the trainer said; all layouts have trained the same."""
    made.begin()
    first = made.ask("hf", made.hf)
    as_in_transformers(made, "hf", Reference(made.hf))
    shards = [made.shards(way) for way in ways]
    for path in shards:
        assert made.ask(path.name, path) == first
    runs = [made.trained(way, source) for way, source in zip(ways, [*shards[1:], made.hf], strict=True)]
    for run in runs:
        back = made.back(run)
        trained = made.ask(run.path.name, run.path)
        assert (trained.logprobs - first.logprobs).abs().max() > 0.5, "nothing is trained"
        assert trained.samples != first.samples
        assert chain.apart(made.hf, back)[0] < (STEPS + 2) * LR, "it began with other weights"
        assert made.ask(back.name, back) == trained
        reference = Reference(back)
        as_in_transformers(made, run.path.name, reference)
        ((told,),) = run.metrics("eval_loss").values()
        gap = abs(reference.eval_loss(made.held_out) - told)
        print(f"{made.family} {run.path.name}: evaluated to {told}, {gap:.1e} from transformers")
        assert gap < (5e-6 if made.precision == "fp32" else 2e-3)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (back / name).read_bytes() == (made.hf / name).read_bytes()
    for one, other in combinations(runs, 2) if made.precision == "fp32" else ():
        trained_alike(made, one, other)


def as_in_transformers(made: Chain, stage: str, reference: Reference) -> None:
    answers = made.stages[stage]
    gap = (answers.logprobs - reference.logprobs()).abs().max().item()
    print(f"{made.family} {stage}: {gap:.1e} from transformers")
    assert gap < REFERENCE
    assert answers.chosen == reference.chosen()


def trained_alike(made: Chain, one: Run, other: Run) -> None:
    """Within the tolerances of docs/correctness.md."""
    a, b = (run.metrics("loss", "grad_norm") for run in (one, other))
    assert list(a) == list(b) == list(range(1, STEPS + 1))
    loss = max(abs(a[step][0] - b[step][0]) for step in a)
    norm = max(abs(a[step][1] / b[step][1] - 1) for step in a)
    largest, mean = chain.apart(*(made.folder / f"hf-{run.path.name}" for run in (one, other)))
    answers = [made.stages[run.path.name] for run in (one, other)]
    said = (answers[0].logprobs - answers[1].logprobs).abs().max().item()
    print(
        f"{made.family} {one.path.name} {other.path.name}: loss {loss:.1e}, norm {norm:.1e}, "
        f"weights {largest:.1e} (mean {mean:.1e}), log-probabilities {said:.1e}"
    )
    assert loss < 2e-6
    assert norm < 1e-5
    assert (largest < 1e-5, mean < 1e-7) == (True, True)
    assert said < LAYOUTS
    assert answers[0].chosen == answers[1].chosen


@pytest.mark.parametrize("family", ["deepseek_v2"])
def test_the_whole_chain(family: str, tmp_path: Path) -> None:
    check(Chain(family, tmp_path), WAYS[family][:2])


@pytest.mark.slow
@pytest.mark.parametrize("family", WAYS)
def test_in_more_layouts(family: str, tmp_path: Path) -> None:
    """Every family; some also from torch_dist, and from TransformerEngine's names."""
    check(Chain(family, tmp_path), WAYS[family])


@pytest.mark.slow
def test_in_half_precision(tmp_path: Path) -> None:
    """Tied embeddings, of which two stages hold one each; losses of two layouts are those of docs/correctness.md."""
    made = Chain("qwen2", tmp_path, changes={"tie_word_embeddings": True}, precision="bf16")
    check(made, (TP2, PP2))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama"])
def test_as_commands(family: str, tmp_path: Path) -> None:
    """Each tool as it is typed, in a process of its own, the trainer with its launcher."""
    check(Chain(family, tmp_path, tool=chain.as_typed, forked=False), WAYS[family][:2])
