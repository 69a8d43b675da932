"""Processes that build datasets at the same time. They are forked: megatron-core's import, of seconds, is there already."""

from __future__ import annotations

import multiprocessing
import os
import queue
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from jumar.schema.errors import ToolError
from jumar.train_core.data import index_cache, pretrain
from jumar.train_core.job import Job

FORK = multiprocessing.get_context("fork")
PATIENCE_S = 120


def run_all(jobs: Sequence[Job], store: Path | None = None, *, together: bool = False) -> list[dict[str, Any]]:
    """`datasets` of each job in a process of its own: {"tokens", "built": roots of the caches that it built} or {"error"}.

    store: they are ranks of one group, which meet at this file. together: who builds waits until all have built.
    """
    answers = FORK.Queue()
    barrier = FORK.Barrier(len(jobs)) if together else None
    args = [(rank, len(jobs), job, store, barrier, answers) for rank, job in enumerate(jobs)]
    processes = [FORK.Process(target=_rank, args=each, daemon=True) for each in args]
    for process in processes:
        process.start()
    try:
        seen = dict(answers.get(timeout=PATIENCE_S) for _ in processes)
    except queue.Empty:
        pytest.fail(f"no answer after {PATIENCE_S} s; exit codes {[process.exitcode for process in processes]}")
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    return [seen[rank] for rank in range(len(jobs))]


def python_path() -> dict[str, str]:
    """The environment of a Python that finds what this one finds."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}


def _rank(rank: int, world: int, job: Job, store: Path | None, barrier: Any, answers: Any) -> None:
    built: list[str] = []
    pretrain._build = _watched(pretrain._build, built, barrier)  # type: ignore[assignment]
    index_cache.VISIBLE_S = 5
    if store is not None:
        dist.init_process_group("gloo", store=dist.FileStore(str(store), world), rank=rank, world_size=world)
    try:
        train = pretrain.datasets(job).train
        answer = {"tokens": [train[i]["tokens"].tolist() for i in range(len(train))], "built": built}
    except ToolError as fault:
        answer = {"error": fault.message, "hint": fault.hint}
    except (IndexError, RuntimeError) as fault:
        answer = {"error": str(fault)}
    if store is not None:
        dist.destroy_process_group()
    answers.put((rank, answer))


def _watched(build: Callable[..., dict[str, Any]], built: list[str], barrier: Any) -> Callable[..., dict[str, Any]]:
    def watched(job: Job, found: Any, folder: Path) -> dict[str, Any]:
        facts = build(job, found, folder)
        built.append(str(folder.parent))
        if barrier is not None:
            barrier.wait(PATIENCE_S)
        return facts

    return watched
