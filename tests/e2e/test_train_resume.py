"""A run that was stopped and goes on is the run that was never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from training import TWO, Settings, close, finish, make_run, tensors, token_file

pytestmark = pytest.mark.timeout(1200)  # processes on a machine that others use as well
DROPOUT: Settings = {"model.hidden_dropout": 0.1}
EVAL: Settings = {"train.eval_every": 2, "train.eval_batches": 1, "data.split": [60, 20, 20]}
FP16: Settings = {"train.precision": "fp16", "optim.initial_loss_scale": 2.0**17}
CASES: list[tuple[str, str, int | None, Settings]] = [
    ("dp2 overlapped bf16", "qwen2", 2, {**TWO, **EVAL, "train.precision": "bf16", "save.background": True}),
    ("ep2 fp16 with a bias", "deepseek_v3", 2, {**FP16, **DROPOUT, "parallel.ep": 2}),
]
MORE: list[tuple[str, str, int | None, Settings]] = [
    ("one process, dropout, in the background", "llama", None, {**DROPOUT, **EVAL, "save.background": True}),
    ("tp2", "llama", 2, {"parallel.tp": 2, **DROPOUT}),
    ("tp2 without sequence parallelism", "gemma2", 2, {"parallel.tp": 2, "parallel.sequence_parallel": False}),
    ("pp2", "llama", 2, {"parallel.pp": 2, **DROPOUT, **EVAL}),
    ("pp2 vpp2 bf16", "llama", 2, {"parallel.pp": 2, "parallel.vpp": 2, "train.precision": "bf16"}),
    ("pp2, experts on one stage only, fp16", "deepseek_v3", 2, {"parallel.pp": 2, **FP16}),
    ("cp2", "llama", 2, {"parallel.cp": 2, **TWO}),
    ("dp2 without the distributed optimizer", "llama", 2, {"features.distributed_optimizer": False}),
    ("dp2 fp16 in the background", "llama", 2, {**TWO, **FP16, "save.background": True}),
    ("one process bf16", "llama", None, {"train.precision": "bf16"}),
    ("one process fp16", "mixtral", None, {**FP16}),
    ("ep2 overlapped bf16", "mixtral", 2, {**TWO, "parallel.ep": 2, "train.precision": "bf16"}),
    ("tp2 etp1 experts", "mixtral", 2, {"parallel.tp": 2, "parallel.etp": 1}),
    ("tp2 etp2 experts", "mixtral", 2, {"parallel.tp": 2, "parallel.etp": 2, **DROPOUT}),
    ("tied, pp2", "qwen3", 2, {"parallel.pp": 2, "model.config": {"tie_word_embeddings": True}}),
    ("workers", "llama", 2, {"data.workers": 2, **TWO}),
]


def parameters(cases: list[tuple[str, str, int | None, Settings]], *marks: pytest.MarkDecorator) -> list[object]:
    return [pytest.param(*rest, id=name, marks=marks) for name, *rest in cases]


@pytest.mark.parametrize("family, nproc, settings", [*parameters(CASES), *parameters(MORE, pytest.mark.slow)])
def test_on_the_same_ranks_bit_for_bit(tmp_path: Path, family: str, nproc: int | None, settings: Settings) -> None:
    run = finish(make_run(tmp_path, settings, family=family), nproc)
    assert run.steps() == [3, 6]
    again = finish(run.copied("again", until=3), nproc)
    assert again.learned() == run.learned()
    for key in ("eval_loss", "test_loss"):
        assert again.metrics(key) == run.metrics(key)
    one, other = tensors(run.path / "iter_0000006"), tensors(again.path / "iter_0000006")
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


def test_test_data_is_evaluated_as_validation_data_is_but_once(tmp_path: Path) -> None:
    same = str(token_file(tmp_path / "held_out_text_document", documents=20, seed=1))
    settings = {"data.split": None, "data.valid": same, "data.test": same, "train.eval_every": 4, "train.eval_batches": 2}
    run = finish(make_run(tmp_path, settings))
    assert sorted(run.metrics("eval_loss")) == [4, 6]
    assert run.metrics("test_loss", "test_perplexity") == {6: run.metrics("eval_loss", "eval_perplexity")[6]}


LAYOUTS: list[tuple[str, str, tuple[int | None, Settings], tuple[int | None, Settings]]] = [
    ("dp2 to tp2", "llama", (2, TWO), (2, {"parallel.tp": 2})),
]
MORE_LAYOUTS = [
    ("ep2 to one", "deepseek_v3", (2, {"parallel.ep": 2}), (None, {})),
    ("tp2 to pp2", "llama", (2, {"parallel.tp": 2}), (2, {"parallel.pp": 2})),
    ("one to dp2", "llama", (None, {}), (2, TWO)),
    ("pp2 vpp2 to one", "qwen3", (2, {"parallel.pp": 2, "parallel.vpp": 2}), (None, {})),
    ("one to pp2, experts on one stage only", "deepseek_v3", (None, {}), (2, {"parallel.pp": 2})),
    ("ep2 to tp2 etp1", "mixtral", (2, {"parallel.ep": 2, **TWO}), (2, {"parallel.tp": 2, "parallel.etp": 1})),
    ("tp2 etp1 to ep2", "mixtral", (2, {"parallel.tp": 2, "parallel.etp": 1}), (2, {"parallel.ep": 2})),
    ("tp2 etp2 to cp2", "mixtral", (2, {"parallel.tp": 2, "parallel.etp": 2}), (2, {"parallel.cp": 2})),
    ("dp2 to plain dp2", "llama", (2, TWO), (2, {"features.distributed_optimizer": False})),
]


@pytest.mark.parametrize(
    "family, before, after",
    [
        *(pytest.param(*rest, id=name) for name, *rest in LAYOUTS),
        *(pytest.param(*rest, id=name, marks=pytest.mark.slow) for name, *rest in MORE_LAYOUTS),
    ],
)
def test_on_another_layout_but_for_rounding(
    tmp_path: Path, family: str, before: tuple[int | None, Settings], after: tuple[int | None, Settings]
) -> None:
    """The vocabulary of 131 is padded to 132 under tp=2."""
    base = make_run(tmp_path, {"train.steps": 8, "save.every": 4}, family=family, model={"vocab_size": 131})
    run = finish(base.having(before[1]), before[0])
    killed = run.copied("killed", until=4)
    other = finish(base.having({**after[1], "save.path": str(killed.path)}), after[0])
    close(run.metrics("loss", "grad_norm", "lr"), other.metrics("loss", "grad_norm", "lr"))
