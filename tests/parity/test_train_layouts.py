"""The parity matrix: every layout computes what one process computes, from the same weights and the same data, on gloo.

What is compared over 20 steps: losses, norms of the gradient before clipping, and the first step's gradient of every tensor (a
wrong gradient may show in neither of the former). Rows are in train_rows.py. All rows of a number of ranks are one launch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import harness
import train_runs
from train_rows import ROWS, TRAPPED, Row
from train_runs import Place, Report

pytestmark = pytest.mark.timeout(3600)  # the first test of a launch waits for all of its rows
EVERY = (*ROWS, *TRAPPED)
Runs = Callable[[Row], Report]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Runs:
    """A row's report. The first that asks launches all rows of its kind that this session has selected."""
    place = Place(train_runs.shared(tmp_path_factory, request) / "layouts")
    called = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    asked = {params["row"].name for params in called if isinstance(params.get("row"), Row)}
    wanted = [row for row in EVERY if row.name in asked]

    def run(row: Row) -> Report:
        out = place.root / "out"
        with place.locked(f"launch-{row.world}-{row.slow}"):
            if not any((out / f"{row.name}.{kind}").exists() for kind in ("json", "error")):
                rows = [each for each in train_runs.needed(wanted, ROWS) if each.world == row.world and each.slow == row.slow]
                train_runs.launch([train_runs.job(place, each, out) for each in rows], row.world, out)
        return train_runs.read(out, row.name)

    return run


def expected(row: Row) -> Row:
    return next(each for each in ROWS if each.name == row.like) if row.like else train_runs.reference(row)


def params(rows: tuple[Row, ...]) -> list[object]:
    return [pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.slow else []) for row in rows]


@pytest.mark.parametrize("row", params(ROWS))
def test_a_layout_computes_what_one_process_computes(row: Row, runs: Runs) -> None:
    found, wanted = runs(row), runs(expected(row))
    assert wanted.error is None, wanted.error
    assert found.error is None, found.error
    margin = wanted.values["margin"]
    assert margin is None or margin > train_runs.MARGIN, f"the reference has a token between two experts: {margin:.1e}"
    falls = 0.2 if len(wanted.values["loss"]) == 20 and "optim.lr" not in row.same else 0
    assert wanted.values["loss"][-1] < wanted.values["loss"][0] - falls, "it does not learn"
    apart = train_runs.difference(found, wanted)
    print(f"{row.name}: {apart}")
    assert len(found.values["loss"]) == row.steps
    assert apart.within(row), str(apart)
    if row.gradient is not None:
        for name, values in wanted.values["inner"].items():
            # The logged loss of multi-token prediction is the mean of the ranks' own means, which masks make differ.
            close = 1e-2 if name == "mtp_loss" and "data.eod_mask_loss" in row.same else 1e-5
            assert np.allclose(found.values["inner"][name], values, rtol=close, atol=1e-6), name
        assert np.allclose(found.values["eval"], wanted.values["eval"], atol=row.loss), "losses of evaluations"


@pytest.mark.parametrize("row", params(TRAPPED))
def test_without_its_mend_the_row_differs(row: Row, runs: Runs) -> None:
    found, wanted = runs(row), runs(expected(row))
    assert found.error is None, found.error
    assert wanted.error is None, wanted.error
    apart = train_runs.difference(found, wanted)
    print(f"{row.name}: {apart}")
    assert not apart.within(row), "nothing shows: is the mend still needed?"


def test_every_row_has_a_name_of_its_own_and_something_to_be_compared_with() -> None:
    names = [row.name for row in EVERY]
    assert sorted(set(names)) == sorted(names)
    assert all(expected(row) for row in EVERY)
    assert len(TRAPPED) == 15, "a trap names a row that is not there"


def test_a_row_that_fails_is_told_from_those_after_it(tmp_path: Path) -> None:
    place, out = Place(tmp_path), tmp_path / "out"
    bad = Row(name="bad", world=2, changes={"data.seq_len": 30, "parallel.cp": 2}, steps=1)
    good = Row(name="good", world=2, changes={"parallel.cp": 2}, steps=1)
    train_runs.launch([train_runs.job(place, row, out) for row in (bad, good)], 2, out)
    assert "cannot be cut into" in (train_runs.read(out, "bad").error or "")
    assert train_runs.read(out, "good").error is None


def test_a_sum_over_ranks_of_what_is_not_contiguous(tmp_path: Path) -> None:
    """megatron-core gives it back as it came, without a word."""
    worker, report = Path(__file__).with_name("train_reduce.py"), tmp_path / "report.json"
    harness.run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, worker, report)
    found = json.loads(report.read_text())
    assert found["mended"] == {"sum": [3.0], "gradient": [3.0]}
    assert found["stock"] != found["mended"], "megatron-core does it right: is the mend still needed?"
