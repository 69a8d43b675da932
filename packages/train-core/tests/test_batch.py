"""Micro batches: the same global batch whatever the layout, and nothing lost or read twice after a stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.utils import get_batch_on_this_cp_rank

from data_jobs import VOCAB, make_data, make_job
from data_ranks import FORK, PATIENCE_S, python_path
from jumar.device import cpu, cuda, npu
from jumar.schema.errors import Exit, ToolError
from jumar.train_core.data.batch import Batches, sample_numbers, split_for_cp, workers_for
from jumar.train_core.data.pretrain import datasets
from jumar.train_core.recipe import Data, Source

SEQ_LEN = 16


class Numbered:
    """Sample n is all n. `bad` samples raise, `lethal` ones end the process."""

    dataset_path = "numbers"

    def __init__(self, size: int = 1000, *, bad: int = -1, lethal: int = -1, fault: Exception | None = None) -> None:
        self.size, self.bad, self.lethal, self.fault = size, bad, lethal, fault

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> dict[str, Any]:
        if number == self.bad:
            assert self.fault is not None
            raise self.fault
        if number == self.lethal:
            os.kill(os.getpid(), signal.SIGKILL)
        tokens = torch.full((SEQ_LEN,), number)
        return {"tokens": tokens, "labels": tokens, "loss_mask": torch.ones(SEQ_LEN), "position_ids": torch.arange(SEQ_LEN)}


def batches(dataset: Any, **changes: Any) -> Batches:
    settings = {"global_batch_size": 8, "micro_batch_size": 2, "dp_rank": 0, "dp_size": 2, "vocab_size": VOCAB, **changes}
    return Batches(dataset, **settings)


@given(dp=st.integers(1, 6), micro=st.integers(1, 4), count=st.integers(1, 4), start=st.integers(0, 50), steps=st.integers(0, 4))
def test_any_number_of_ranks_reads_the_same(dp: int, micro: int, count: int, start: int, steps: int) -> None:
    size = dp * micro * count
    stop = start + steps * size + size // 2
    ranks = [
        list(sample_numbers(start, stop, global_batch_size=size, micro_batch_size=micro, dp_rank=rank, dp_size=dp))
        for rank in range(dp)
    ]
    for step in range(steps):
        parts = [batch for rank in ranks for batch in rank[step * count : (step + 1) * count]]
        begin = start + step * size
        assert sorted(n for batch in parts for n in batch) == list(range(begin, begin + size))
        for m in range(count):
            for rank in range(dp):
                first = begin + (m * dp + rank) * micro
                assert ranks[rank][step * count + m] == list(range(first, first + micro))
    assert all(len(rank) == steps * count for rank in ranks)


def test_sizes_that_do_not_fit() -> None:
    for changes in ({"dp_size": 3}, {"dp_rank": 2}, {"micro_batch_size": 3}):
        with pytest.raises(ValueError, match="global batch of 8"):
            next(batches(Numbered(), **changes))


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_at_any_step(workers: int) -> None:
    """A second run that begins where the first one stopped, in the middle of read-ahead, gives what was left."""
    with batches(Numbered(50), workers=workers) as whole:
        everything = [batch["tokens"][:, 0].tolist() for batch in whole]
        assert whole.consumed == 48  # what is left of a global batch is not given
    assert len(everything) == 12
    for stop in range(12) if not workers else (0, 5, 11):
        with batches(Numbered(50), workers=workers) as first:
            before = [next(first)["tokens"][:, 0].tolist() for _ in range(stop)]
            consumed = first.consumed
        assert consumed == stop // 2 * 8
        with batches(Numbered(50), workers=workers, consumed=consumed, dp_size=2) as second:
            after = [batch["tokens"][:, 0].tolist() for batch in second]
        assert before[: stop // 2 * 2] + after == everything


def test_another_number_of_ranks_goes_on(tmp_path: Path) -> None:
    seen = []
    for dp in (1, 2, 4):
        parts = [batches(Numbered(), consumed=24, stop=40, dp_size=dp, dp_rank=rank) for rank in range(dp)]
        seen.append(sorted(n for part in parts for batch in part for n in batch["tokens"][:, 0].tolist()))
    assert seen == [list(range(24, 40))] * 3


@pytest.mark.parametrize("workers", [0, 1])
def test_shapes(tmp_path: Path, workers: int) -> None:
    prefix = make_data(tmp_path / "x")
    found = datasets(make_job(tmp_path, Data(train=prefix, seq_len=SEQ_LEN)))
    with batches(found.train, workers=workers) as given_out:
        batch = next(given_out)
    assert {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()} == {
        "tokens": (torch.int64, (2, SEQ_LEN)),
        "labels": (torch.int64, (2, SEQ_LEN)),
        "loss_mask": (torch.float32, (2, SEQ_LEN)),
        "position_ids": (torch.int64, (2, SEQ_LEN)),
    }
    assert torch.equal(batch["tokens"][:, 1:], batch["labels"][:, :-1])
    assert torch.equal(batch["tokens"][0], found.train[0]["tokens"])
    batch["tokens"] += 1  # the loop may write into what it was given


def test_evaluation_begins_again(tmp_path: Path) -> None:
    prefix = make_data(tmp_path / "x")
    found = datasets(make_job(tmp_path, Data(train=prefix, split=(1, 1), seq_len=SEQ_LEN), eval_every=2, eval_batches=3))
    rounds = [[b["tokens"].tolist() for b in batches(found.valid, stop=24, dp_size=1)] for _ in range(2)]
    assert rounds[0] == rounds[1]
    assert len(rounds[0]) == 12


@pytest.mark.parametrize("workers", [0, 2])
def test_a_token_that_the_model_does_not_have(tmp_path: Path, workers: int) -> None:
    sources = tuple(Source(prefix=make_data(tmp_path / name, 30, first=first)) for name, first in (("low", 0), ("high", 990)))
    found = datasets(make_job(tmp_path, Data(train=sources, seq_len=SEQ_LEN)))
    with batches(found.train, vocab_size=1000, workers=workers) as given_out, pytest.raises(ToolError) as raised:
        for _ in given_out:
            pass
    assert f"{tmp_path}/high: token id 10" in raised.value.message
    assert "vocabulary is 0 to 999" in raised.value.message
    assert raised.value.code is Exit.INPUT
    with batches(found.train, vocab_size=1030, workers=workers) as given_out:
        assert len(list(given_out)) == 20


@pytest.mark.parametrize("workers", [0, 1])
def test_faults_of_a_reader_arrive(workers: int) -> None:
    faults = [
        (ToolError("this is wrong", hint="do that", code=Exit.CHECK_FAILED), "this is wrong", Exit.CHECK_FAILED),
        (OSError(5, "Input/output error"), "sample 8 of numbers: .*Input/output error", Exit.ENVIRONMENT),
    ]
    for fault, text, code in faults:
        with batches(Numbered(bad=8, fault=fault), workers=workers) as given_out:
            next(given_out)
            next(given_out)
            with pytest.raises(ToolError, match=text) as raised:
                next(given_out)
            assert raised.value.code is code
    with batches(Numbered(bad=0, fault=KeyError("a bug")), workers=workers) as given_out, pytest.raises(KeyError, match="a bug"):
        next(given_out)


def test_a_reader_that_is_killed() -> None:
    with batches(Numbered(lethal=32), workers=1) as given_out, pytest.raises(ToolError, match="reads data ahead died") as raised:
        for _ in given_out:
            pass
    assert raised.value.code is Exit.ENVIRONMENT
    assert "data.workers" in str(raised.value.hint)
    with pytest.raises(StopIteration):
        next(given_out)


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_readers_end_and_leave_signals_to_the_loop() -> None:
    before = children()
    given_out = batches(Numbered(100_000), workers=2)
    next(given_out)
    started = children() - before
    assert len(started) == 2
    for pid in started:
        os.kill(int(pid), signal.SIGTERM)
        os.kill(int(pid), signal.SIGINT)
    time.sleep(0.2)
    for _ in range(30):
        next(given_out)
    given_out.close()
    given_out.close()
    assert not children() & started
    with pytest.raises(StopIteration):
        next(given_out)


def test_readers_end_with_the_last_batch() -> None:
    before = children()
    given_out = batches(Numbered(), workers=2, consumed=8, stop=30)
    for left in range(4, 0, -1):
        assert len(children() - before) == 2, left
        next(given_out)
    assert children() == before
    assert given_out.consumed == 24
    with pytest.raises(StopIteration):
        next(given_out)


def test_a_loop_that_ends_without_closing() -> None:
    code = """
import sys, test_batch
first, second = (test_batch.batches(test_batch.Numbered(), workers=2) for _ in range(2))
next(first)
sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=PATIENCE_S, env=python_path(), check=False)
    assert done.returncode == 7


def test_workers_by_device() -> None:
    assert [workers_for(None, cpu.DEVICE), workers_for(None, npu.DEVICE)] == [0, 2]
    assert [workers_for(0, cuda.DEVICE), workers_for(3, cpu.DEVICE)] == [0, 3]


# --- context parallelism


def megatrons(rank: int, world: int, store: str, batch: dict[str, torch.Tensor], answers: Any) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
    part = get_batch_on_this_cp_rank(dict(batch), dist.group.WORLD)
    answers.put((rank, {key: value.tolist() for key, value in part.items()}))
    dist.barrier()


@pytest.mark.parametrize("size", [2, 4])
def test_the_same_cut_as_megatron(size: int, tmp_path: Path) -> None:
    batch = next(batches(Numbered()))
    batch["tokens"] = torch.arange(2 * SEQ_LEN).view(2, SEQ_LEN)
    answers = FORK.Queue()
    args = [(rank, size, str(tmp_path / "store"), batch, answers) for rank in range(size)]
    processes = [FORK.Process(target=megatrons, args=each, daemon=True) for each in args]
    for process in processes:
        process.start()
    wanted = dict(answers.get(timeout=PATIENCE_S) for _ in processes)
    for process in processes:
        process.join(PATIENCE_S)
    for rank in range(size):
        assert {key: part.tolist() for key, part in split_for_cp(batch, rank, size).items()} == wanted[rank]
    assert batch["tokens"].shape == (2, SEQ_LEN)
    assert split_for_cp(batch, 0, 1).keys() == batch.keys()


def test_a_length_that_cannot_be_cut() -> None:
    with pytest.raises(ToolError, match="16 tokens do not divide into 2 \\* cp = 6 chunks") as raised:
        split_for_cp(next(batches(Numbered())), 0, 3)
    assert "multiple of 6" in str(raised.value.hint)
