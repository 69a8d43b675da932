"""Pretraining datasets: megatron-core's samples, blends and splits, with index maps that are safe on any file system.

megatron-core builds index maps on rank 0 and lets all others read the files, which nodes without a common file system do not
have; it asks for the data by its name alone, and takes half a file for a whole one. Here its classes build in memory, and the
files are ours (index_cache.py). What they hold, and so every sample, is what megatron-core would have made.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import megatron.core
import numpy as np
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.utils import Split

from jumar.schema.errors import Exit, ToolError
from jumar.train_core.data.blends import Plan, fingerprint, inputs, plan
from jumar.train_core.data.end import eod_id
from jumar.train_core.data.index_cache import IndexCache, builders
from jumar.train_core.data.together import all_ranks
from jumar.train_core.job import Job

SURPLUS = (0.005, 0.05, 0.5, 5.0)
"""Samples more than asked for, of each dataset of a blend: megatron-core's own, and more where a blend rounds to more."""
MAPS = {
    GPTDataset: ("document_index", "sample_index", "shuffle_index"),
    BlendedDataset: ("dataset_index", "dataset_sample_index"),
}


@dataclass(frozen=True, slots=True)
class Datasets:
    """What a run reads. train, valid, test: indexable by sample number; None where the recipe asks for none.

    valid and test hold one evaluation each, which begins at sample 0 every time.
    inputs: name, size and sha256 of the head of every .idx and .bin, each once, in the order of the recipe: for the manifest,
            and for a resumed run to see that its data was exchanged
    """

    train: Any
    valid: Any
    test: Any
    inputs: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class TokenIds:
    """What GPTDataset asks of a tokenizer where documents are token ids already. It has no padding: samples are full."""

    eod: int | None
    vocab_size: None = None

    @property
    def unique_identifiers(self) -> dict[str, str]:
        """A part of the names of index maps, which do not depend on a tokenizer."""
        return {"class": type(self).__name__}


class Alone(BlendedMegatronDatasetBuilder):  # type: ignore[misc]
    """megatron-core's builder for one process, whatever its rank: without barriers, and without "first on rank 0"."""

    def _build_megatron_datasets_parallel(self, prefixes: Any, split: Any, sizes_per_dataset: Any) -> list[list[Any]]:
        pairs = zip(prefixes, sizes_per_dataset, strict=True)
        built = [self._build_megatron_dataset_splits(prefix, split, sizes, False) for prefix, sizes in pairs]
        return [list(part) for part in zip(*built, strict=True)]

    @staticmethod
    def build_generic_dataset(cls: Any, is_built_on_rank: Any, synchronize_ranks: bool, *args: Any) -> Any:
        return cls(*args)


def datasets(job: Job) -> Datasets:
    """The datasets of a job. Collective, where torch.distributed is initialised: all ranks call it and raise the same fault.

    Index maps are built once on every file system, under `data.cache` or `cache/` beside the data, and mapped by all ranks.
    Raises ToolError: no such data, data that differs between nodes, a cache that cannot be written.
    """
    with all_ranks() as ranks:
        found: list[_Found] = []

        def look() -> tuple[str, tuple[dict[str, Any], ...], bool]:
            found.append(mine := _look(job))
            return mine.cache.key, mine.inputs, mine.cache.facts() is not None

        everyone = ranks.gather(look)
        (mine,) = found
        same_everywhere([(key, inputs) for key, inputs, _ in everyone])
        chosen = builders(mine.cache.root, ranks, [rank for rank, (_, _, there) in enumerate(everyone) if not there])
        ranks.gather(lambda: mine.cache.build(lambda folder: _build(job, mine, folder)) if chosen else None)
        parts: list[Any] = []
        ranks.gather(lambda: parts.extend(_parts(job, mine, str(mine.cache.folder), mine.cache.wait()["surplus"])))
    train, valid, test = parts
    return Datasets(train, valid, test, mine.inputs)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a rank sees of the data."""

    plan: Plan
    cache: IndexCache
    inputs: tuple[dict[str, Any], ...]
    tokens: TokenIds


def _look(job: Job) -> _Found:
    try:
        importlib.import_module("megatron.core.datasets.helpers")
    except ImportError as fault:
        command = 'python -c "from megatron.core.datasets.utils import compile_helpers; compile_helpers()"'
        text = f"megatron-core's index helpers are not compiled here: {fault}"
        raise ToolError(text, hint=f"{command} (needs make and a C++ compiler)", code=Exit.ENVIRONMENT) from None
    planned, data = plan(job), job.recipe.data
    assert planned.blends[0] is not None
    root = data.cache or planned.blends[0].readers[0].prefix.parent / "cache"
    key = fingerprint(planned, seed=job.recipe.train.seed, seq_len=data.seq_len, megatron=megatron.core.__version__)
    end = eod_id(job, "data.eod_mask_loss") if data.eod_mask_loss else None
    return _Found(planned, IndexCache(root, key), inputs(planned), TokenIds(end))


def same_everywhere(seen: list[tuple[str, tuple[dict[str, Any], ...]]]) -> None:
    """Ranks that read other data would train on other samples of the same number, and nothing would say so."""
    (key, inputs), hint = seen[0], "copy the data to every node again"
    for rank, (other_key, others) in enumerate(seen):
        for mine, theirs in zip(inputs, others, strict=True):
            if mine != theirs:
                text = f"{mine['name']} is not the same file on ranks 0 and {rank}: {mine['size']:,} and {theirs['size']:,} bytes"
                raise ToolError(text, hint=hint)
        if other_key != key:
            raise ToolError(f"ranks 0 and {rank} do not see the same documents, or under other paths", hint=hint)


def _config(job: Job, found: _Found, cache: str, surplus: float) -> GPTDatasetConfig:
    planned, data = found.plan, job.recipe.data
    blends = [
        (blend.prefixes, blend.weights and list(blend.weights)) if blend and wanted else None
        for blend, wanted in zip(planned.blends, planned.samples, strict=True)
    ]
    given: dict[str, Any] = {"blend_per_split": blends}
    if planned.split is not None:
        given = {"blend": blends[0], "split": ",".join(np.format_float_positional(share, trim="-") for share in planned.split)}
    config = GPTDatasetConfig(
        **given,
        random_seed=job.recipe.train.seed,
        sequence_length=data.seq_len,
        path_to_cache=cache,
        tokenizer=found.tokens,
        mid_level_dataset_surplus=surplus,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=data.eod_mask_loss,
        create_attention_mask=False,
    )
    if config.split_matrix is not None:  # of what is not asked for, no maps
        config.split_matrix = [ends if n else None for ends, n in zip(config.split_matrix, planned.samples, strict=True)]
    return config


def _parts(job: Job, found: _Found, cache: str, surplus: float) -> list[Any]:
    """Training, validation and test data; maps are in memory where `cache` is empty, else those of that directory."""
    config = _config(job, found, cache, surplus)
    with _quiet():
        parts: list[Any] = Alone(GPTDataset, list(found.plan.samples), lambda: True, config).build()
    return parts


@contextmanager
def _quiet() -> Iterator[None]:
    """megatron-core warns that maps in memory are not saved: here that is how it is meant."""
    loggers = [logging.getLogger(kind.__module__) for kind in MAPS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _build(job: Job, found: _Found, folder: Path) -> dict[str, Any]:
    """Builds all maps and saves them under the names by which megatron-core looks for them."""
    for surplus in SURPLUS:
        try:
            parts = [part for part in _parts(job, found, "", surplus) if part is not None]
            break
        except IndexError:  # "the blend oversamples the contributing datasets"
            if surplus == SURPLUS[-1]:
                raise
    blended = [part for part in parts if isinstance(part, BlendedDataset)]
    for each in (*parts, *(source for part in blended for source in part.datasets)):
        split: Split = each.split if isinstance(each, BlendedDataset) else each.index_split
        stem = folder / f"{each.unique_description_hash}-{type(each).__name__}-{split.name}-"
        for name in MAPS[type(each)]:
            np.save(f"{stem}{name}.npy", getattr(each, name))
        Path(f"{stem}description.txt").write_text(each.unique_description, encoding="utf-8")
    return {"surplus": surplus}
