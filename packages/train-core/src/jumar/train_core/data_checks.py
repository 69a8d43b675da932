"""What a run reads: its datasets against its model and its evaluations. `data.blends` says whether they are there and whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jumar.schema.errors import ToolError
from jumar.schema.manifest import read_manifest_file, tokenizer_sha256
from jumar.train_core.data.blends import PARTS, TEXT, Plan, draws, plan
from jumar.train_core.features.base import Problem, without_effect
from jumar.train_core.job import Job


def check_data(job: Job) -> Iterator[Problem]:
    """The datasets: there, whole, of this model's tokenizer, and what the evaluations need."""
    data, train = job.recipe.data, job.recipe.train
    if train.eval_every is not None and data.valid is None and not (data.split and sum(data.split[1:2]) > 0):
        yield Problem(f"train.eval_every={train.eval_every} without validation data", "set data.valid, or data.split=[98, 1, 1]")
    if train.eval_every is None:
        hint = "set train.eval_every, or leave data.valid out"
        yield from without_effect(job, ("data.valid",), "train.eval_every is not set", hint)
    try:
        planned = plan(job)
    except ToolError as fault:
        yield Problem(fault.message, fault.hint or "make the dataset again", code=fault.code)
        return
    yield from _check_lengths(job, planned)
    for kind, prefix in _prefixes(planned):
        yield from _check_manifest(job, f"data.{kind}", prefix)


def _check_lengths(job: Job, planned: Plan) -> Iterator[Problem]:
    """Samples that are longer than all that they are cut from would be the same tokens over and over."""
    seq_len = job.recipe.data.seq_len
    for draw in draws(planned):
        if draw.samples and (tokens := int(draw.lengths.sum(dtype=np.int64))) <= seq_len:
            yield Problem(
                f"data.{'split' if planned.split else draw.kind}: the {draw.kind} documents of {draw.reader.prefix} have "
                f"{tokens:,} tokens, a sample takes data.seq_len + 1 = {seq_len + 1:,}",
                "give more data, or set data.seq_len lower",
                warning=True,
            )


def _prefixes(planned: Plan) -> Iterator[tuple[str, Path]]:
    for kind, blend in zip(PARTS, planned.blends, strict=True):
        for reader in blend.readers if blend is not None else ():
            yield kind, reader.prefix


def _check_manifest(job: Job, key: str, prefix: Path) -> Iterator[Problem]:
    """What the dataset's own manifest says against the model: a larger vocabulary, another tokenizer, another length."""
    names = (prefix.name, prefix.name.removesuffix(TEXT))
    try:
        manifests = [read_manifest_file(prefix.with_name(name + ".manifest.json")) for name in names]
    except ToolError as fault:
        yield Problem(f"{key}: {fault.message}", fault.hint or "remove it to go on without")
        return
    manifest = next((found for found in manifests if found is not None), {})
    vocab, length, made_with = (manifest.get(name) for name in ("vocab_size", "seq_len", "tokenizer_sha256"))
    if isinstance(vocab, int) and vocab > job.spec.vocab_size:
        yield Problem(
            f"{key}: {prefix} was made with a vocabulary of {vocab}, the model has {job.spec.vocab_size}",
            "make the dataset with this model's tokenizer",
        )
    if isinstance(length, int) and length != job.recipe.data.seq_len:
        yield Problem(
            f"{key}: {prefix} was made for samples of {length} tokens, data.seq_len is {job.recipe.data.seq_len}",
            f"set data.seq_len={length}",
        )
    own = tokenizer_sha256(job.hf) if job.hf is not None else None
    if isinstance(made_with, str) and own is not None and made_with != own:
        yield Problem(
            f"{key}: {prefix} was made with another tokenizer ({made_with[:12]}) than the model's ({own[:12]})",
            "make the dataset with this model's tokenizer, unless the two differ in nothing but their files",
            warning=True,
        )
