"""Ranks of two nodes without shared storage are killed at random moments: what goes on is the undisturbed run, bit by bit.

Thirty kills in ten rounds; JUMAR_KILL_SEED begins another series.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from cluster import PER_NODE, Cluster
from jumar.schema.indexed import IndexedWriter
from training import DONE, INTERRUPTED, STOPPED, TWO, Run, Settings, make_run

pytestmark = pytest.mark.timeout(3600)  # processes on a machine that others use as well
SEED = int(os.environ.get("JUMAR_KILL_SEED", "0"))
ROUNDS, KILLS, STEPS = 10, 3, 8
LAYOUTS: dict[str, Settings] = {
    "dp2": {**TWO, "save.background": True},
    "pp2": {"parallel.pp": 2, "save.background": True},
    "tuned": {"features.distributed_optimizer": True},
}


def conversations(prefix: Path) -> Path:
    """Packed rows of two conversations."""
    rng = np.random.default_rng(0)
    for key in ("input_ids", "attention_mask", "labels"):
        with IndexedWriter(prefix.with_name(f"{prefix.name}_packed_{key}_document"), np.int32) as writer:
            for _ in range(40):
                writer.add(np.repeat([1, 2], 16) if key == "attention_mask" else rng.integers(0, 97, 32))
    return prefix


def run_of(folder: Path, layout: str) -> Run:
    """Dropout: its masks, too, must be those of the undisturbed run."""
    often = {"train.steps": STEPS, "save.every": 1, "save.keep": 3, "model.hidden_dropout": 0.1}
    run = make_run(folder, {**PER_NODE, **often, **LAYOUTS[layout]})
    if layout == "tuned":
        run.values["data"] = {"train": str(conversations(folder / "talks")), "seq_len": 32}
    return run.write()


def disturb(cluster: Cluster, run: Run, within: float, rng: random.Random) -> str:
    """Starts it, kills one rank at a random moment, and waits until all have ended."""
    started = cluster.start(run, env={"JUMAR_COLLECTIVE_TIMEOUT_S": "40"})  # for whom waits a rank whose peer never came?
    moment, victim = rng.uniform(0.3, 0.8 * within), rng.randrange(2)
    number = rng.choice([signal.SIGKILL, signal.SIGTERM])
    end = time.monotonic() + moment
    while time.monotonic() < end and all(each.poll() is None for each in started):
        time.sleep(0.01)
    alive = started[victim].poll() is None
    if alive:
        started[victim].send_signal(number)
    ended = cluster.end(run, started, within=180)
    allowed = {DONE, STOPPED, INTERRUPTED, -number, 4}
    assert {each.code for each in ended} <= allowed, [each.code for each in ended] + cluster.err()
    return f"{number.name} to rank {victim} after {moment:.1f} s, {'' if alive else 'too late, '}{[each.code for each in ended]}"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(ROUNDS))
def test_kills_at_random_moments(tmp_path: Path, number: int) -> None:
    rng = random.Random(1000 * SEED + number)
    layout = list(LAYOUTS)[(SEED + number) % len(LAYOUTS)]
    run = run_of(tmp_path, layout)
    task = "sft" if layout == "tuned" else "pretrain"
    whole = Cluster.made(tmp_path, agents=False, task=task)
    before = time.monotonic()
    ended = whole.train(run)
    assert [each.code for each in ended] == [DONE, DONE], whole.err()
    seconds = time.monotonic() - before
    hurt = Cluster(tuple(tmp_path / name for name in ("hurt one", "hurt two")), agents=False, task=task)
    for folder in hurt.folders:
        folder.mkdir()
    for _ in range(KILLS):
        print(disturb(hurt, run, seconds, rng))
    ended = hurt.train(run)
    assert [each.code for each in ended] == [DONE, DONE], hurt.err()
    assert hurt.left_over() == []
    assert hurt.steps() == whole.steps()
    one, two = whole.tensors(STEPS), hurt.tensors(STEPS)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
    assert hurt.learned() == whole.learned()
    for folder in hurt.folders:
        shutil.rmtree(folder)
