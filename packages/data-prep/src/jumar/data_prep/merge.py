"""The shards of a run joined: the same bytes as of a run that was never sharded; and datasets, one behind the other."""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jumar.data_prep.finish import DONE, RUN, Finished, Keys, complete, finished_before, nothing_kept, refuse_existing
from jumar.data_prep.job import Job
from jumar.data_prep.store import Store, discard, journal, read_facts
from jumar.data_prep.templating import special_words
from jumar.data_prep.tokenizer import Tokenizer, identity, open_tokenizer
from jumar.schema.errors import Exit, ToolError, writing
from jumar.schema.options import path

if TYPE_CHECKING:
    from jumar.data_prep.datasets import Dataset

COPY_BYTES = 1 << 20


def merge(prefixes: list[str], output: Path | None, *, force: bool, say: Callable[[str, str], None]) -> Finished | Dataset:
    """Joins the shards PREFIX.shard-*-of-N of one prefix, or several datasets.

    ToolError if a shard is missing, unfinished, or of another run.
    """
    if len(prefixes) == 1 and (folders := shard_folders(path(prefixes[0]))):
        return merge_shards(folders, output or Path(prefixes[0]), force=force)
    if output is None:
        raise ToolError(
            f"{prefixes[0]}: no shards of it are there, and -o does not say where datasets are joined",
            hint="jumar-data merge A B -o AB",
            code=Exit.USAGE,
        )
    from jumar.data_prep.combine import concatenate
    from jumar.data_prep.datasets import find_dataset

    return concatenate([find_dataset(prefix) for prefix in prefixes], output, force=force)


def shard_folders(prefix: Path) -> list[Path]:
    """The folders of a prefix's shards, in order."""
    found = [path for path in prefix.parent.glob(f"{prefix.name}.shard-*-of-*") if _number(path)]
    return sorted(found, key=_number)


def _number(path: Path) -> tuple[int, int]:
    match = re.fullmatch(r".*\.shard-(\d+)-of-(\d+)", path.name)
    return (int(match[2]), int(match[1])) if match else (0, 0)


def merge_shards(folders: list[Path], output: Path, *, force: bool) -> Finished:
    """The finished run of all its shards' folders, which stay."""
    facts, about = _one_run(folders)
    recipe: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in facts["recipe"].items()}
    found = {"tokenizer": Path(about["tokenizer"]), "template": about["template"]}
    job = Job(**{**recipe, **found}, inputs=(), output=output, force=force)
    if done := finished_before(job, facts):
        return done
    discard(job.work)
    refuse_existing(job)
    keys = Keys(tuple(about["keys"]), about["ones"], np.dtype(about["dtype"]))
    with writing(output):
        return _merged(folders, job, keys, facts, about)


def _merged(folders: list[Path], job: Job, keys: Keys, facts: dict[str, Any], about: dict[str, Any]) -> Finished:
    store = Store(job.work, facts, keys.names, documents=job.split_sentences)
    try:
        for folder, entry, offsets in _in_order(folders):
            for name, size in entry["bytes"].items():
                _copy(folder / name, offsets.get(name, 0), size, store, name)
            store.append_entry(entry)
        if not store.totals.kept:
            raise nothing_kept(job, store, about["sources"])
        tokenizer = _tokenizer(job, facts)
        tokenizer.treat_as_special(special_words(job))
        return complete(job, store, about["sources"], about["sizes"], keys, tokenizer, facts)
    finally:
        store.close()


def _tokenizer(job: Job, facts: dict[str, Any]) -> Tokenizer:
    """That of the shards. Raises ToolError where it is not, or is another one by now."""
    if not job.tokenizer.exists():
        hint = "merge on a machine that has it, or make it be found there"
        raise ToolError(f"the tokenizer of the shards is not there: {job.tokenizer}", hint=hint)
    tokenizer = open_tokenizer(job.tokenizer, engine="tokenizers", eod=job.eod)
    if identity(tokenizer) != facts["tokenizer_sha256"]:
        hint = "put the old one back, or make the shards again with --force"
        raise ToolError(f"{job.tokenizer} is another tokenizer than the shards were made with", hint=hint)
    return tokenizer


def _one_run(folders: list[Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What all the shards are of."""
    of = _number(folders[-1])[0]
    missing = sorted(set(range(1, of + 1)) - {i for n, i in map(_number, folders) if n == of})
    name = folders[-1].name.rsplit("-of-", 1)[0].rsplit("-", 1)[0]
    if missing or len(folders) != of:
        what = f"shard {missing[0]} of {of} is missing" if missing else f"shards of {of} and of other numbers are there"
        raise ToolError(f"{folders[-1].parent / name}*: {what}", hint=f"run it: --shard {missing[0] if missing else 1}/{of}")
    first: dict[str, Any] = {}
    for folder in folders:
        if not (folder / DONE).is_file():
            n, i = _number(folder)
            raise ToolError(f"{folder} is not finished", hint=f"run the same command with --shard {i}/{n} to go on with it")
        facts = {name: value for name, value in read_facts(folder).items() if name != "shard"}
        first = first or facts
        if facts != first:
            raise ToolError(f"{folder} is of another run than {folders[0]}", hint="make it again with --force")
    return first, json.loads((folders[0] / RUN).read_text(encoding="utf-8"))


def _in_order(folders: list[Path]) -> Iterator[tuple[Path, dict[str, Any], dict[str, int]]]:
    """(folder, journal entry, where its bytes begin in each file) of all shards' blocks, by their numbers."""

    def entries(folder: Path) -> Iterator[tuple[int, Path, dict[str, Any], dict[str, int]]]:
        offsets: dict[str, int] = {}
        for entry, _ in journal(folder):
            yield entry["block"], folder, entry, dict(offsets)
            for name, size in entry["bytes"].items():
                offsets[name] = offsets.get(name, 0) + size

    for _, folder, entry, offsets in heapq.merge(*map(entries, folders), key=lambda item: item[0]):
        yield folder, entry, offsets


def _copy(path: Path, offset: int, size: int, store: Store, name: str) -> None:
    with path.open("rb") as file:
        file.seek(offset)
        while size:
            piece = file.read(min(size, COPY_BYTES))
            if not piece:
                raise ToolError(f"{path} is cut: {size} bytes are missing", hint="make this shard again with --force")
            store.file(name).write(piece)
            size -= len(piece)
    store.file(name).flush()
