"""What a recipe's `data` section names: which files, which share of each, how many samples of what for.

No torch here, so that a recipe can be checked before anything is launched.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jumar.schema.errors import Exit, ToolError
from jumar.schema.indexed import CHUNK, IndexedReader, strip_suffix
from jumar.schema.manifest import identify
from jumar.train_core.job import Job
from jumar.train_core.recipe import Data, Source

PARTS = ("train", "valid", "test")
"""In the order of megatron-core's Split."""
TEXT = "_text_document"


@dataclass(frozen=True, slots=True)
class Blend:
    """Datasets to draw from. readers: one each; weights: their shares, which add up to 1; None of a single dataset."""

    readers: tuple[IndexedReader, ...]
    weights: tuple[float, ...] | None

    @property
    def prefixes(self) -> list[str]:
        """Absolute, so that the same files have the same name wherever a run is started."""
        return [str(reader.prefix.absolute()) for reader in self.readers]


@dataclass(frozen=True, slots=True)
class Plan:
    """The samples of a run. blends and samples: of training, validation and test.

    split: shares of the documents, of any sum, where all three parts are of one blend, which is then the first of `blends`
    """

    blends: tuple[Blend | None, ...]
    samples: tuple[int, ...]
    split: tuple[float, ...] | None


def inputs(planned: Plan) -> tuple[dict[str, Any], ...]:
    """The files of a plan, identified as manifests have it."""
    return identified(reader for blend in planned.blends if blend for reader in blend.readers)


def identified(readers: Iterable[IndexedReader]) -> tuple[dict[str, Any], ...]:
    """Their files, each once, as manifests have them."""
    once = {reader.idx: reader for reader in readers}
    return tuple(identify(path) for reader in once.values() for path in (reader.idx, reader.bin))


@dataclass(frozen=True, slots=True)
class Draw:
    """One dataset of one part: `lengths` of its own documents (those of a split as megatron-core cuts it), which are `share` of
    all; `weight` of the part's `samples` come from it."""

    kind: str
    reader: IndexedReader
    lengths: Any
    share: float
    weight: float
    samples: int


def plan(job: Job) -> Plan:
    """Opens and checks the data files of a job. Raises ToolError naming the recipe's field."""
    data, train = job.recipe.data, job.recipe.train
    if data.train is None:
        raise ToolError("the recipe names no data", hint="set data.train to the prefix of a .bin/.idx dataset", code=Exit.USAGE)
    if data.split is not None and (data.valid is not None or data.test is not None):
        text = "data.split cuts validation and test data out of data.train, and the recipe also names data.valid or data.test"
        raise ToolError(text, hint="leave out one of the two", code=Exit.USAGE)
    evaluated = train.eval_batches * train.global_batch_size
    samples = (train.steps * train.global_batch_size, evaluated if train.eval_every else 0, evaluated)
    if data.split is not None:
        split, blend = split_shares(data.split), _blend("train", data.train)
        wanted = tuple(n if share else 0 for n, share in zip(samples, split, strict=True))
        planned = Plan((blend, None, None), wanted, split)
        _check_parts(planned)
        return planned
    blends = tuple(_blend(name, given) if given else None for name, given in _named(data))
    return Plan(blends, tuple(n if blend else 0 for n, blend in zip(samples, blends, strict=True)), None)


def _named(data: Data) -> list[tuple[str, Path | tuple[Source, ...] | None]]:
    return [("train", data.train), ("valid", data.valid), ("test", data.test)]


def split_shares(given: Sequence[float]) -> tuple[float, ...]:
    """Three shares, of which the first is not 0."""
    whole = sum(given)
    if not 1 <= len(given) <= len(PARTS) or any(not share >= 0 for share in given) or not 0 < whole < math.inf or not given[0]:
        text = f"data.split is {list(given)}, expected shares of training, validation and test documents"
        raise ToolError(text, hint="write [98, 1, 1], or [99, 1] without test data", code=Exit.USAGE)
    return (*map(float, given), 0.0, 0.0)[: len(PARTS)]


def _blend(name: str, given: Path | tuple[Source, ...]) -> Blend:
    sources = (Source(prefix=given),) if isinstance(given, Path) else given
    if not sources:
        raise ToolError(f"data.{name} is an empty list", hint="give a prefix, or a list of {prefix, weight}", code=Exit.USAGE)
    readers = tuple(open_source(f"data.{name}", source.prefix) for source in sources)
    shares = weights_of([source.weight for source in sources], [int(r.lengths.sum(dtype=np.int64)) for r in readers], name)
    return Blend(readers, shares if len(readers) > 1 else None)


def weights_of(given: Sequence[float | None], tokens: Sequence[int], name: str = "train") -> tuple[float, ...]:
    """Each dataset's share of the samples. One without a weight has its share of all tokens; the others divide what is left,
    in proportion to their weights."""
    for weight in given:
        if weight is not None and not 0 < weight < math.inf:
            hint = "a weight is a positive number; leave out data that shall not be drawn from"
            raise ToolError(f"data.{name}: weight {weight}", hint=hint, code=Exit.USAGE)
    whole, stated = sum(tokens), math.fsum(weight for weight in given if weight is not None)
    sized = math.fsum(n / whole for n, weight in zip(tokens, given, strict=True) if weight is None)
    left = 1 - sized if stated else 0.0
    return tuple(n / whole if weight is None else left * weight / stated for n, weight in zip(tokens, given, strict=True))


def open_source(where: str, prefix: Path) -> IndexedReader:
    """A pretraining dataset: PREFIX as it is, without .bin or .idx, or with `_text_document` behind it.

    Raises ToolError saying what lies there instead.
    """
    bare = strip_suffix(prefix)
    for name in (bare.name, bare.name + TEXT):
        found = bare.parent / name
        if any(found.with_name(name + end).is_file() for end in (".idx", ".bin")):
            return _checked(IndexedReader(found))
    folder = prefix if prefix.is_dir() else bare.parent
    there = sorted(path.stem for path in folder.glob("*.idx")) if folder.is_dir() else []
    alike = [name for name in there if name.startswith(bare.name)] or there
    text = f"{where}: no dataset {prefix} (neither {bare.name}.idx nor {bare.name}{TEXT}.idx)"
    if any(name.startswith(f"{bare.name}_packed_") for name in there):
        raise ToolError(f"{text}; {bare.name}_packed_*.idx is tuning data", hint="make pretraining data: jumar-data pretrain")
    hint = f"{folder} has {', '.join(alike[:5])}" + (", ..." if len(alike) > 5 else "") if alike else f"{folder} has no .idx file"
    raise ToolError(text, hint=hint)


def _checked(reader: IndexedReader) -> IndexedReader:
    if reader.dtype.kind not in "iu":
        raise ToolError(
            f"{reader.prefix}: numbers of {reader.dtype}, expected token ids (uint16 or int32)", hint="make it with jumar-data"
        )
    if not reader.lengths.any():
        raise ToolError(f"{reader.prefix} holds no token", hint="see the report of jumar-data for why records were left out")
    return reader


def draws(planned: Plan) -> Iterator[Draw]:
    """Part by part, what each draws from."""
    shares = [share / sum(planned.split) for share in planned.split] if planned.split else [1.0] * len(PARTS)
    begin = 0.0
    for kind, blend, share, samples in zip(PARTS, planned.blends, shares, planned.samples, strict=True):
        whole = planned.blends[0] if planned.split and share else blend
        for reader, weight in zip(whole.readers, whole.weights or (1.0,), strict=True) if whole is not None else ():
            first, last = (round(at * len(reader)) for at in (begin, begin + share))
            yield Draw(kind, reader, reader.lengths[first:last], share, weight, samples)
        if planned.split:
            begin += share


def _check_parts(planned: Plan) -> None:
    """Each part that is drawn from has tokens in each dataset; of an empty one megatron-core would count epochs forever."""
    for draw in draws(planned):
        if draw.samples and not draw.lengths.any():
            documents = f"{len(draw.lengths)} of the {len(draw.reader)} documents of {draw.reader.prefix}"
            text = f"data.split gives {draw.kind} {documents}: no token"
            raise ToolError(text, hint="give it a larger share, or data of its own")


def fingerprint(plan: Plan, **facts: Any) -> str:
    """32 hex digits of all that index maps depend on: the length of every document, shares, numbers of samples, `facts`."""
    blends = [
        blend and [blend.weights, *zip(blend.prefixes, map(_lengths_sha256, blend.readers), strict=True)] for blend in plan.blends
    ]
    content = {"blends": blends, "samples": plan.samples, "split": plan.split, **facts}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _lengths_sha256(reader: IndexedReader) -> str:
    """All of them, not the head of the file: 4 bytes a document are read as fast as the disk gives them."""
    digest = hashlib.sha256()
    for start in range(0, len(reader), CHUNK):
        digest.update(reader.lengths[start : start + CHUNK].tobytes())
    return digest.hexdigest()
