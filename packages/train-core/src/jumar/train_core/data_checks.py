"""What a run reads: its datasets against its model and its evaluations. `data.blends` says whether they are there and whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jumar.schema.errors import ToolError
from jumar.schema.manifest import read_manifest_file, template_sha256, tokenizer_sha256
from jumar.train_core.data import tuning_plan
from jumar.train_core.data.blends import PARTS, TEXT, Plan, draws, plan
from jumar.train_core.data.conversations import IGNORED, Conversations, first_outside, outside
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
    names = ("data.eod_mask_loss",) if job.task == "sft" else TUNING_ONLY
    yield from without_effect(job, names, f"{job.task} has no use for it")
    try:
        yield from _check_tuning(job, tuning_plan.plan(job)) if job.task == "sft" else _check_documents(job, plan(job))
    except ToolError as fault:
        yield Problem(fault.message, fault.hint or "make the dataset again", code=fault.code)


TUNING_ONLY = ("data.borders", "data.pack", "data.template", "data.shuffle", "data.pad_to_multiple_of", "train.epochs")


def _check_documents(job: Job, planned: Plan) -> Iterator[Problem]:
    yield from _check_lengths(job, planned)
    for kind, prefix in _prefixes(planned):
        key = f"data.{kind}"
        manifest = _manifest(prefix, prefix.name, prefix.name.removesuffix(TEXT))
        yield from _check_manifest(job, key, prefix, manifest)
        length = manifest.get("seq_len")
        if isinstance(length, int) and length != job.recipe.data.seq_len:
            yield Problem(
                f"{key}: {prefix} was made for samples of {length} tokens, data.seq_len is {job.recipe.data.seq_len}",
                f"set data.seq_len={length}",
            )


def _check_tuning(job: Job, planned: tuning_plan.Plan) -> Iterator[Problem]:
    """Conversations: that they fit into a sample, that something of them is trained, and what their manifests say."""
    if job.recipe.data.pad_to_multiple_of < 1:
        yield Problem(
            f"data.pad_to_multiple_of is {job.recipe.data.pad_to_multiple_of}, expected 1 or more",
            "set data.pad_to_multiple_of=8",
        )
    seen: set[Path] = set()
    for kind, shares in planned.items():
        for share in shares:
            source, key = share.source, f"data.{kind}"
            if source.prefix not in seen:
                seen.add(source.prefix)
                yield from _check_rows(job, key, source)
                yield from _check_manifest(job, key, source.prefix, source.manifest)
                yield from _check_ids(job, key, source)
                yield from _check_template(job, key, source)
            yield from _check_labels(key, share)


def _check_rows(job: Job, key: str, source: Conversations) -> Iterator[Problem]:
    """Lengths: every row of packed data is a sample as it is; a conversation has seq_len tokens at most."""
    seq_len, lengths = job.recipe.data.seq_len, source.lengths
    packed = source.borders != "none"
    if packed and (lengths != seq_len).any():
        at = int(np.flatnonzero(lengths != seq_len)[0])
        yield Problem(
            f"{key}: row {at} of {source.prefix}, which is packed, has {lengths[at]} tokens, data.seq_len is {seq_len}",
            f"set data.seq_len={lengths[at]}, or pack it anew: jumar-data sft --pack --seq-len {seq_len}; or, if nothing is "
            "packed and all have one length, data.borders=none",
        )
    elif not packed and (too_long := int(np.count_nonzero(lengths > seq_len))):
        at = int(np.flatnonzero(lengths > seq_len)[0])
        yield Problem(
            f"{key}: {too_long:,} of the {len(lengths):,} conversations of {source.prefix} are longer than data.seq_len "
            f"{seq_len}; number {at} has {lengths[at]:,} tokens",
            f"set data.seq_len={int(lengths.max())}, or make it anew: jumar-data sft --seq-len {seq_len} --long truncate",
        )


NUMBERS_READ = 1 << 26
"""Of each file of a dataset, how many are read before a launch."""


def _check_ids(job: Job, key: str, source: Conversations) -> Iterator[Problem]:
    """Of files whose manifest does not tell their vocabulary the first part is looked at; the rest is when it is trained on."""
    if isinstance(source.manifest.get("vocab_size"), int):
        return
    for name, also in (("input_ids", None), ("labels", IGNORED)):
        if found := first_outside(source.keys[name], job.spec.vocab_size, also, NUMBERS_READ):
            fault = outside(source.prefix, name, found[1], found[0], job.spec.vocab_size)
            yield Problem(f"{key}: {fault.message}", fault.hint or "")


def _check_labels(key: str, share: tuning_plan.Share) -> Iterator[Problem]:
    """What has no label trains nothing. Of large data the first part is looked at."""
    ends = share.source.lengths[share.first : share.last].cumsum(dtype=np.int64)
    count = int(np.searchsorted(ends, NUMBERS_READ)) + 1
    trained = share.source.trained(share.first, min(share.first + count, share.last))
    empty = np.flatnonzero(trained == 0)
    if not len(empty):
        return
    of = "packed rows" if share.source.borders != "none" else "conversations"
    what = f"of the {'first ' if len(trained) < len(share) else ''}{len(trained):,} {of} of {share.source.prefix}"
    if len(empty) == len(trained):
        hint = "make it anew: jumar-data sft; its report says how many tokens are trained"
        yield Problem(f"{key}: none {what} has a token to train (all labels are -100)", hint)
    else:
        yield Problem(
            f"{key}: {len(empty):,} {what} have no token to train (all labels are -100), the first is number "
            f"{share.first + int(empty[0])}",
            "they cost time and teach nothing; the report of jumar-data says why",
            warning=True,
        )


def _check_template(job: Job, key: str, source: Conversations) -> Iterator[Problem]:
    own = template_sha256(job.hf) if job.hf is not None else None
    made_with = source.manifest.get("template_sha256")
    if isinstance(made_with, str) and own is not None and made_with != own:
        yield Problem(
            f"{key}: {source.prefix} was made with another chat template ({made_with[:12]}) than the model's ({own[:12]})",
            "the tuned model answers by the template of its data: jumar-data sft --template auto takes the model's",
            warning=True,
        )


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


def _manifest(prefix: Path, *names: str) -> Mapping[str, Any]:
    """The first that there is under these names."""
    manifests = [read_manifest_file(prefix.with_name(name + ".manifest.json")) for name in names]
    return next((found for found in manifests if found is not None), {})


def _check_manifest(job: Job, key: str, prefix: Path, manifest: Mapping[str, Any]) -> Iterator[Problem]:
    """What a dataset's own manifest says against the model: a larger vocabulary, another tokenizer."""
    vocab, made_with = (manifest.get(name) for name in ("vocab_size", "tokenizer_sha256"))
    if isinstance(vocab, int) and vocab > job.spec.vocab_size:
        yield Problem(
            f"{key}: {prefix} was made with a vocabulary of {vocab}, the model has {job.spec.vocab_size}",
            "make the dataset with this model's tokenizer",
        )
    own = tokenizer_sha256(job.hf) if job.hf is not None else None
    if isinstance(made_with, str) and own is not None and made_with != own:
        yield Problem(
            f"{key}: {prefix} was made with another tokenizer ({made_with[:12]}) than the model's ({own[:12]})",
            "make the dataset with this model's tokenizer; data.any_tokenizer=true if the two differ in nothing but their files",
            warning=job.recipe.data.any_tokenizer,
        )
