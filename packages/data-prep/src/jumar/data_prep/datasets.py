"""Finished datasets, ours or foreign: finding one by any of its names, knowing its kind, describing what is in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jumar.schema.errors import ToolError
from jumar.schema.indexed import CHUNK, IndexedReader, strip_suffix
from jumar.schema.manifest import read_manifest_file
from jumar.schema.options import path as typed

Array = npt.NDArray[Any]
Group = tuple[str, str, str]
"""(name of the prefix, "" or "_packed", "document" or "sentence" or "")."""

PRETRAINING, TUNING, PACKED, PAIRWISE = "pretraining text", "tuning", "packed tuning", "pairwise"
PROMPTS, PROCESS_REWARD = "prompts", "process reward"
KNOWN = (
    "chosen_input_ids",
    "chosen_labels",
    "rejected_input_ids",
    "rejected_labels",
    "input_ids",
    "attention_mask",
    "labels",
    "text",
)
ONE_KEY = re.compile(rf"(?P<name>.+?)_(?P<key>{'|'.join(KNOWN)})_(?P<level>document|sentence)")
PACKED_KEY = re.compile(r"(?P<name>.+)_packed_(?P<key>.+)_(?P<level>document|sentence)")
TWINS = (
    ("input_ids", "attention_mask", "labels"),
    ("chosen_input_ids", "chosen_labels"),
    ("rejected_input_ids", "rejected_labels"),
)
"""Keys whose sequences are equally long."""
IGNORED = -100
LOOKED_AT = 10_000
"""Sequences whose content a description is made from; of lengths, `CHUNK`."""


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A prefix and the files that belong to it. kind: one of the names above, `borders` of packed tuning: "neat" or "plain".

    already: of what a call was to make: an earlier one has made it.
    """

    prefix: Path
    packed: str
    level: str
    keys: dict[str, IndexedReader]
    kind: str
    borders: str | None
    manifest: dict[str, Any] | None
    already: bool = False

    @property
    def main(self) -> IndexedReader:
        """The key that is counted by: token ids."""
        return next(
            (self.keys[key] for key in ("input_ids", "chosen_input_ids") if key in self.keys), next(iter(self.keys.values()))
        )

    @property
    def documents(self) -> int:
        """Documents, of which every key has as many."""
        return len(self.main.documents) - 1

    def path(self, key: str, prefix: Path) -> Path:
        """Where a key's files lie under a prefix, without their suffix."""
        return path_of(prefix, self.packed, self.level, key)


def find_dataset(text: str) -> Dataset:
    """The dataset of a prefix (data/alpaca), with `_packed`, or with the name of one of its files, with suffix or without.

    Raises ToolError if there is none, if the name stands for several, or if its keys do not belong together.
    """
    path = strip_suffix(typed(text))
    folder, name = path.parent, path.name
    stems = sorted(file.stem for file in folder.glob("*.idx")) if folder.is_dir() else []
    found = {name: _of_file(name)} if name in stems else files_of(name, stems)
    if not found:
        raise _nothing(path, name, stems)
    if name in stems:
        (group, key), *_ = found.values()
        if key not in ("", "text"):  # the file's siblings belong to it
            found |= {stem: (other, k) for stem, (other, k) in files_of(group[0], stems).items() if other == group}
    groups = {group for group, _ in found.values()}
    if len(groups) > 1:
        names = ", ".join(str(folder / stem) for stem in found)
        raise ToolError(f"{path} stands for several datasets: {names}", hint="give the whole name of one of their files")
    ((name, packed, level),) = groups
    return load(folder / name, packed, level, [key for _, key in found.values()])


def load(prefix: Path, packed: str, level: str, names: Sequence[str]) -> Dataset:
    """The dataset of these keys. Raises ToolError if they do not belong together."""
    order = sorted(names, key=lambda key: (KNOWN.index(key) if key in KNOWN else len(KNOWN), key))
    keys = {key: IndexedReader(path_of(prefix, packed, level, key)) for key in order}
    _agree(prefix, keys)
    manifest = read_prefix_manifest(prefix)
    return Dataset(prefix, packed, level, keys, *_kind(keys, manifest), manifest)


def path_of(prefix: Path, packed: str, level: str, key: str) -> Path:
    """A key's files without their suffix; a key without a name is the prefix itself."""
    return prefix.with_name(f"{prefix.name}{packed}_{key}_{level}" if key else prefix.name)


def _of_file(stem: str) -> tuple[Group, str]:
    """What a file's name says it is; a name that says nothing is a prefix and key of its own."""
    match = PACKED_KEY.fullmatch(stem) or ONE_KEY.fullmatch(stem)
    if not match:
        return (stem, "", ""), ""
    return (match["name"], "_packed" if match.re is PACKED_KEY else "", match["level"]), match["key"]


def files_of(name: str, stems: Iterable[str]) -> dict[str, tuple[Group, str]]:
    """The files of a prefix: {stem: (group, key)}. alpaca_zh's are not alpaca's."""
    bare = name.removesuffix("_packed")
    asked = "_packed" if bare != name else "(?:_packed)?"
    pattern = re.compile(rf"{re.escape(bare)}(?P<packed>{asked})_(?P<key>.+)_(?P<level>document|sentence)")
    found: dict[str, tuple[Group, str]] = {}
    for stem in stems:
        match = pattern.fullmatch(stem)
        if not match or "packed_" in match["key"]:
            continue
        if match["packed"] or match["key"] in KNOWN or not match["key"].endswith(tuple(f"_{key}" for key in KNOWN)):
            found[stem] = (bare, match["packed"], match["level"]), match["key"]
    return found


def _nothing(path: Path, name: str, stems: list[str]) -> ToolError:
    names = set(stems) | {_of_file(stem)[0][0] for stem in stems}
    near = get_close_matches(name, sorted(names), n=4, cutoff=0.4) or sorted({_of_file(stem)[0][0] for stem in stems})[:4]
    hint = (
        "did you mean " + " or ".join(str(path.parent / n) for n in near) + "?" if near else f"no .idx file is in {path.parent}"
    )
    return ToolError(f"{path}: no dataset of this name, neither {name}.idx nor {name}[_packed]_*_document.idx", hint=hint)


def read_prefix_manifest(prefix: Path) -> dict[str, Any] | None:
    """PREFIX.manifest.json; None where there is none, or one of another project. ToolError if it is damaged."""
    return read_manifest_file(prefix.with_name(prefix.name + ".manifest.json"))


def _agree(prefix: Path, keys: dict[str, IndexedReader]) -> None:
    """ToolError unless the keys have the same documents and, where they are twins, the same lengths."""
    hint = "the files are of different runs: make the dataset again, or give the whole name of one of them"
    (first, main), *others = keys.items()
    for key, reader in others:
        if len(reader) != len(main):
            text = f"{prefix}: {len(main)} sequences of {first}, but {len(reader)} of {key}"
            raise ToolError(text, hint=hint)
        if not same(main.documents, reader.documents):
            raise ToolError(f"{prefix}: {first} and {key} are not cut into the same documents", hint=hint)
    for twins in TWINS:
        there = [key for key in twins if key in keys]
        for key in there[1:]:
            if same(keys[there[0]].lengths, keys[key].lengths) or (key == "labels" and _answers(keys)):
                continue
            at = next(i for i in range(len(main)) if keys[there[0]].lengths[i] != keys[key].lengths[i])
            lengths = keys[there[0]].lengths[at], keys[key].lengths[at]
            text = f"{prefix}: sequence {at} has {lengths[0]} numbers in {there[0]}, but {lengths[1]} in {key}"
            raise ToolError(text, hint=hint)


def same(one: Array, other: Array) -> bool:
    """Whether two arrays, mapped perhaps, hold the same."""
    if len(one) != len(other):
        return False
    return all(np.array_equal(one[at : at + CHUNK], other[at : at + CHUNK]) for at in range(0, len(one), CHUNK))


def _answers(keys: dict[str, IndexedReader]) -> bool:
    """Whether `labels` are the tokens of an answer (a further column of prompts), not a mask of input_ids."""
    return not any((sequence == IGNORED).any() for sequence in keys["labels"].sequences(0, 100))


def _kind(keys: dict[str, IndexedReader], manifest: dict[str, Any] | None) -> tuple[str, str | None]:
    """(kind, borders of packed samples). Process reward cannot be told from tuning without a manifest."""
    command = ((manifest or {}).get("recipe") or {}).get("command")
    if "chosen_input_ids" in keys or "rejected_input_ids" in keys:
        return PAIRWISE, None
    if "input_ids" not in keys:
        return PRETRAINING, None
    if "labels" not in keys or command == "prompts" or not same(keys["input_ids"].lengths, keys["labels"].lengths):
        return PROMPTS, None
    if command == "process-reward":
        return PROCESS_REWARD, None
    lengths, mask = keys["input_ids"].lengths, keys.get("attention_mask")
    if mask is None or not len(lengths) or lengths.min() != lengths.max():
        return TUNING, None
    if any((sequence != 1).any() for sequence in mask.sequences(0, 100)):
        return PACKED, "neat"
    return (PACKED, "plain") if len(lengths) > 1 else (TUNING, None)


def describe(dataset: Dataset) -> dict[str, Any]:
    """What `inspect` shows, as plain values. Of large datasets, content is looked at in evenly spread sequences; it says so."""
    main = dataset.main
    picked = spread(len(main), LOOKED_AT)
    facts: dict[str, Any] = {
        "prefix": str(dataset.prefix),
        "kind": dataset.kind,
        "sequences": len(main),
        "documents": dataset.documents,
        "tokens": _total(main),
        "bytes": sum(reader.nbytes + reader.idx.stat().st_size for reader in dataset.keys.values()),
        "keys": {key: _describe_key(reader) for key, reader in dataset.keys.items()},
        "looked_at": {"sequences": len(picked), "of": len(main), "all": len(picked) == len(main)},
        **_content(dataset, picked),
    }
    if dataset.borders:
        facts["borders"] = {"neat": "numbered by attention_mask", "plain": "not stored: at each EOS"}[dataset.borders]
    if dataset.kind in (TUNING, PACKED) and dataset.manifest is None:
        facts["note"] = "without a manifest, data of a process reward cannot be told from tuning data"
    if dataset.manifest is not None:
        facts["manifest"] = dataset.manifest
    return facts


def _total(reader: IndexedReader) -> int:
    return sum(int(reader.lengths[at : at + CHUNK].sum(dtype=np.int64)) for at in range(0, len(reader), CHUNK))


def spread(count: int, most: int) -> Array:
    """At most `most` indices below `count`, evenly spread."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.int64)


def _describe_key(reader: IndexedReader) -> dict[str, Any]:
    lengths, tokens = reader.lengths, _total(reader)
    facts = {
        "file": str(reader.prefix),
        "dtype": str(reader.dtype),
        "sequences": len(reader),
        "tokens": tokens,
        "bytes": reader.nbytes,
    }
    if not len(reader):
        return facts
    chunks = range(0, len(lengths), CHUNK)
    seen = lengths[spread(len(lengths), CHUNK)]
    p50, p90, p99 = (int(value) for value in np.percentile(seen, (50, 90, 99), method="inverted_cdf"))
    return facts | {
        "lengths": {
            "min": min(int(lengths[at : at + CHUNK].min()) for at in chunks),
            "max": max(int(lengths[at : at + CHUNK].max()) for at in chunks),
            "mean": round(tokens / len(lengths), 2),
            "p50": p50,
            "p90": p90,
            "p99": p99,
            "looked_at": len(seen),
        }
    }


def _content(dataset: Dataset, picked: Array) -> dict[str, Any]:
    """Shares of trained tokens and of padding, and sub-samples, in the sequences picked."""
    if not len(picked):
        return {}
    keys = dataset.keys
    facts: dict[str, Any] = {}
    if dataset.kind != PROMPTS:
        trained = {key: _share(keys[key], picked, lambda s: s != IGNORED) for key in keys if key.endswith("labels")}
        facts["trained_share"] = trained["labels"] if list(trained) == ["labels"] else trained or None
    if "attention_mask" in keys and dataset.borders != "plain":
        facts["padding_share"] = _share(keys["attention_mask"], picked, lambda s: s == 0)
    if dataset.borders == "neat":
        counts = [int(keys["attention_mask"][i].max(initial=0)) for i in picked]
        whole = {"total": sum(counts)} if len(picked) == len(dataset.main) else {}
        facts["sub_samples"] = {"mean": round(sum(counts) / len(counts), 2), "max": max(counts), **whole}
    return {name: value for name, value in facts.items() if value is not None}


def _share(reader: IndexedReader, picked: Array, wanted: Any) -> float | None:
    total = found = 0
    for i in picked:
        sequence = reader[i]
        total, found = total + sequence.size, found + int(wanted(sequence).sum())
    return round(found / total, 6) if total else None
