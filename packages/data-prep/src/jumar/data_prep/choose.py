"""Which format a run's records are in: as the command line says, or as the first records look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jumar.data_prep.detect import USABLE, Detected, detect
from jumar.data_prep.job import Job, usage
from jumar.data_prep.mapping import Mapping, parse_map
from jumar.schema.errors import ToolError


def choose_mapping(job: Job, sample: Sequence[dict[str, Any]], say: Callable[[str, str], None]) -> Mapping | None:
    """The mapping of a run; None for pretraining, whose column has a flag of its own. Says what was taken for what, and why."""
    if job.command == "pretrain":
        return None
    among = USABLE[job.command]
    if job.format not in ("auto", *among):
        raise usage(f"--format {job.format!r}: expected auto, {', '.join(among)}", f"for example --format {among[0]}")
    if job.format != "auto" or not sample:
        return parse_map(job.map, job.format if job.format != "auto" else among[0])
    found = _detected(job, sample)
    if found.pairwise != (job.command == "pairwise") and job.command in ("sft", "pairwise"):
        other, have = ("pairwise", "two answers, one preferred") if found.pairwise else ("sft", "one answer each")
        raise ToolError(f"these records have {have} ({found.why})", hint=f"use jumar-data {other}")
    say("note", f"read as {found.format}: {found.why}")
    return found.mapping


def _detected(job: Job, sample: Sequence[dict[str, Any]]) -> Detected:
    try:
        return detect(sample, job.command, job.map)
    except ToolError:
        if job.command != "sft":
            raise
        try:  # pairs have columns of their own
            found = detect(sample, "pairwise", job.map)
        except ToolError:
            found = None
        if found is None:
            raise
        return found
