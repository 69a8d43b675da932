"""The shards of a run on a Ray cluster: each a task, on whatever machine; then merged here.

All machines must see the inputs, the tokenizer and the output under the same paths (shared storage).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from jumar.data_prep.finish import Finished
from jumar.data_prep.job import Job
from jumar.data_prep.merge import merge_shards, shard_folders
from jumar.data_prep.pipeline import made_before, run
from jumar.schema.errors import Exit, ToolError


def run_on_ray(job: Job, *, say: Callable[[str, str], None]) -> Finished:
    """Does a job as `job.shards` tasks (0: one for each CPU of the cluster) and merges them.

    ToolError if Ray is not installed, the cluster cannot be reached, or a shard fails.
    """
    try:
        import ray
    except ImportError:
        raise ToolError("--engine ray needs ray", hint='pip install "jumar-data-prep[ray]"', code=Exit.ENVIRONMENT) from None
    if "-" in job.inputs:
        raise ToolError(
            "standard input cannot be read on a cluster", hint="name files that all its machines see", code=Exit.USAGE
        )
    if done := made_before(replace(job, engine="local", shards=0)):
        return done
    began = not ray.is_initialized()
    if began:
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as fault:
            raise ToolError(
                f"Ray: {fault}", hint="RAY_ADDRESS names the cluster, `ray status` tells whether it is up", code=Exit.ENVIRONMENT
            ) from None
    try:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        shards = job.shards or int(resources.get("CPU", 1))
        task = ray.remote(num_cpus=1, max_retries=3)(_shard)
        asked = [task.remote(replace(job, engine="local", shards=0, shard=(i, shards), workers=1)) for i in range(shards)]
        for said in _all(ray, asked):
            for word, text in said:
                say(word, text)
    finally:
        if began:
            ray.shutdown()
    folders = [folder for folder in shard_folders(job.output) if folder.name.endswith(f"-of-{shards}")]
    done = merge_shards(folders, job.output, force=job.force)
    for folder in folders:
        shutil.rmtree(folder)
    return done


def _shard(job: Job) -> tuple[list[tuple[str, str]], ToolError | None]:
    """One shard, on a machine of the cluster: what it has to say, and what stopped it."""
    said: list[tuple[str, str]] = []
    try:
        run(job, say=lambda word, text: said.append((word, text)))
    except ToolError as fault:
        return said, ToolError(fault.message, hint=fault.hint, code=fault.code)
    return said, None


def _all(ray: Any, asked: list[Any]) -> list[list[tuple[str, str]]]:
    try:
        answers = ray.get(asked)
    except ray.exceptions.RayError as fault:
        raise ToolError(
            f"a shard was lost: {str(fault).splitlines()[0]}",
            hint="run the same command again: shards that are finished are kept",
            code=Exit.ENVIRONMENT,
        ) from None
    for _, stopped in answers:
        if stopped is not None:
            raise stopped
    notes: list[list[tuple[str, str]]] = []
    for said, _ in answers:
        notes.append([line for line in said if all(line not in before for before in notes)])
    return notes
