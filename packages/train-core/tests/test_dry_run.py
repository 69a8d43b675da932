"""The report of --dry-run, and the groups of ranks in it against megatron-core's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs import FAMILIES, make_job, token_file
from jumar.train_core import show
from jumar.train_core.dry_run import report
from jumar.train_core.groups import groups, rank_groups


def test_groups_are_megatrons() -> None:
    """In the default order of initialize_model_parallel, tp-cp-ep-dp-pp."""
    from megatron.core.parallel_state import RankGenerator

    for tp, cp, dp, pp in [(2, 2, 2, 2), (1, 2, 3, 2), (2, 1, 1, 4), (3, 2, 1, 1)]:
        dense = RankGenerator(tp=tp, ep=1, dp=dp, pp=pp, cp=cp, order="tp-cp-ep-dp-pp")
        experts = RankGenerator(tp=tp, ep=cp, dp=dp, pp=pp, cp=1, order="tp-cp-ep-dp-pp")
        for name in ("tp", "cp", "dp", "pp"):
            assert groups({"tp": tp, "cp": cp, "dp": dp, "pp": pp}, name) == dense.get_ranks(name)
        for name, theirs in {"etp": "tp", "ep": "ep", "expert dp": "dp", "pp": "pp"}.items():
            assert groups({"etp": tp, "ep": cp, "expert dp": dp, "pp": pp}, name) == experts.get_ranks(theirs)


def test_groups_of_a_job(tmp_path: Path) -> None:
    job = make_job(tmp_path, "mixtral", world=8, parallel={"tp": 2, "pp": 2, "ep": 2})
    assert rank_groups(job) == {
        "tp": [[0, 1], [2, 3], [4, 5], [6, 7]],
        "dp": [[0, 2], [1, 3], [4, 6], [5, 7]],
        "pp": [[0, 4], [1, 5], [2, 6], [3, 7]],
        "ep": [[0, 1], [2, 3], [4, 5], [6, 7]],
        "expert dp": [[0, 2], [1, 3], [4, 6], [5, 7]],
    }
    assert rank_groups(make_job(tmp_path)) == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_reported(tmp_path: Path, family: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = report(make_job(tmp_path, family, world=4, parallel={"tp": 2, "pp": 2}))
    assert [stage["layers"] for stage in made["stages"]] == [[[0, 1]], [[2, 3]]]
    show.dry_run(made)
    assert f"{made['parameters']['total']:,} parameters" in capsys.readouterr().out


def test_the_recipe_is_what_differs(tmp_path: Path) -> None:
    made = report(make_job(tmp_path, features__recompute={}, log__every=5, optim__lr=3e-4))
    assert made["recipe"]["features"] == {
        "recompute": {"granularity": "selective", "method": "uniform", "layers": 1, "modules": ["core_attn"]}
    }
    assert made["recipe"]["log"] == {"every": 5}
    assert "optim" not in made["recipe"]
    assert made["recipe"]["model"] == {"path": str(tmp_path / "hf")}


def test_steps(tmp_path: Path) -> None:
    sets: dict[str, Any] = {"train__eval_every": 4, "train__eval_batches": 3, "data__split": [1, 1], "save__every": 3}
    made = report(make_job(tmp_path, **sets))
    assert made["steps"] == {
        "steps": 10,
        "samples_per_step": 8,
        "tokens_per_step": 256,
        "tokens": 2560,
        "evaluations": 3,  # after 4, 8 and 10
        "checkpoints": 4,  # after 3, 6, 9 and 10
        "at_most": False,
    }


def test_data_of_a_blend(tmp_path: Path) -> None:
    """40 x 32 tokens and 120 x 32, without weights: samples in proportion, each read equally often."""
    token_file(tmp_path / "data/a")
    token_file(tmp_path / "data/b", documents=120)
    blend = [{"prefix": str(tmp_path / "data/a")}, {"prefix": str(tmp_path / "data/b")}]
    first, second = report(make_job(tmp_path, data__train=blend))["data"]["train"]
    assert (first["documents"], first["tokens"], first["samples"], first["share"]) == (40, 1280, 40, 0.25)
    assert (second["documents"], second["tokens"], second["samples"], second["share"]) == (120, 3840, 120, 0.75)
    assert first["epochs"] == second["epochs"] == 80 / 160
    weighted = [{**source, "weight": weight} for source, weight in zip(blend, (3, 1), strict=True)]
    first, second = report(make_job(tmp_path, data__train=weighted))["data"]["train"]
    assert (first["share"], first["epochs"], second["share"], second["epochs"]) == (0.75, 80 * 0.75 / 40, 0.25, 80 * 0.25 / 120)


def test_data_of_a_split(tmp_path: Path) -> None:
    made = report(make_job(tmp_path, data__split=[3, 1], train__eval_every=5, train__eval_batches=1))["data"]
    assert [(kind, row["samples"], row["part"]) for kind, rows in made.items() for row in rows] == [
        ("train", 30, 0.75),
        ("valid", 10, 0.25),
    ]


def test_what_people_read(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    show.dry_run(report(make_job(Path("DIR"), "mixtral", world=8, parallel={"tp": 2, "pp": 2, "ep": 2, "vpp": 2})))
    assert capsys.readouterr().out == GOLDEN


GOLDEN = """\
recipe
model: {path: DIR/hf}
data: {train: DIR/data/a, seq_len: 32}
parallel: {tp: 2, pp: 2, vpp: 2, ep: 2}
train: {steps: 10, precision: fp32}
save: {path: DIR/run}

resolved
{model: mixtral, ranks: 8, tp: 2, pp: 2, vpp: 2, cp: 1, dp: 2, ep: 2, etp: 1, expert_dp: 2, sequence_parallel: true,
  micro_batches: 4, padded_vocab: 132}

features
tensor parallelism, sequence parallelism, pipeline parallelism, interleaved pipeline, loss per token, expert
parallelism, token dispatch, grouped GEMM, balancing of experts, distributed optimizer

ranks that work together
       tp  [0, 1] [2, 3] [4, 5] [6, 7]
       dp  [0, 2] [1, 3] [4, 6] [5, 7]
       pp  [0, 4] [1, 5] [2, 6] [3, 7]
       ep  [0, 1] [2, 3] [4, 5] [6, 7]
expert dp  [0, 2] [1, 3] [4, 6] [5, 7]

stages, one rank of each, memory in MiB
 stage  layers  parameters  weights  grads  optim  activ  logits  total
 ──────────────────────────────────────────────────────────────────────
 0      0 2         91,008     0.35   0.35   0.35   0.39    0.00   1.43
 1      1 3         91,072     0.35   0.35   0.35   0.24    0.02   1.30
362,432 parameters, 214,976 for one token; 1.285e+06 operations (FLOP) a token
Stage 0 needs most. Memory is estimated, without what the device itself needs.

train data
 prefix                    documents  tokens  samples   share  epochs
 ────────────────────────────────────────────────────────────────────
 DIR/data/a_text_document         40   1,280       40  100.0%    2.00

steps
10 steps of 8 samples = 256 tokens; 2,560 tokens in all; 0 evaluations, 1 checkpoint
"""
