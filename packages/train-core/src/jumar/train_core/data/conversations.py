"""Tuning data on disk: PREFIX[_packed]_{input_ids,attention_mask,labels}_document, as jumar-data and MindSpeed-LLM write it.

One sequence is a conversation, or a packed row of several. Labels are not shifted, -100 where nothing is trained. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from jumar.schema.errors import ToolError
from jumar.schema.indexed import CHUNK, IndexedReader, strip_suffix
from jumar.schema.manifest import read_manifest_file

Numbers = npt.NDArray[np.int64]
Borders = Literal["mask", "eos", "none"]
KEYS = ("input_ids", "attention_mask", "labels")
IGNORED = -100
LOOKED_AT = 100
"""Sequences by which files without a manifest are judged."""
AGAIN = "make the dataset again: jumar-data sft"


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence. tokens: [n]; targets: [n], the label of each next token, -100 where there is none to learn;
    documents: [n], numbers that change where another conversation begins, 0 on padding; None where there is one alone."""

    tokens: Numbers
    targets: Numbers
    documents: Numbers | None


@dataclass(frozen=True, slots=True, eq=False)
class Conversations:
    """A tuning dataset.

    prefix:  as it was found, without key and `_packed`
    keys:    input_ids, attention_mask, labels
    borders: how a packed row says where conversations begin: the attention mask counts them, or each ends with an EOS; none:
             sequences are single conversations
    eos_id:  for borders by EOS
    """

    prefix: Path
    keys: Mapping[str, IndexedReader]
    borders: Borders
    manifest: Mapping[str, Any]
    eos_id: int | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        return self.keys["input_ids"].lengths

    def __getitem__(self, number: int) -> Sample:
        tokens, mask, labels = (self.keys[key][number].astype(np.int64) for key in KEYS)
        documents = None if self.borders == "none" else mask if self.borders == "mask" else self._by_eos(tokens, labels)
        targets = np.full_like(tokens, IGNORED)
        targets[:-1] = labels[1:]
        if documents is not None:
            targets[:-1][documents[1:] != documents[:-1]] = IGNORED
        return Sample(tokens, targets, documents)

    def _by_eos(self, tokens: Numbers, labels: Numbers) -> Numbers:
        """A document ends with each EOS; the same token over and over at the end, not trained, is padding."""
        documents = np.ones_like(tokens)
        documents[1:] += np.cumsum(tokens[:-1] == self.eos_id)
        other = np.flatnonzero((tokens != tokens[-1]) | (labels != IGNORED))
        begin = int(other[-1]) + 1 if len(other) else 0
        if len(tokens) - begin > 1:
            documents[begin:] = 0
        return documents

    def trained(self, first: int, last: int) -> Numbers:
        """Tokens with a label of each sequence from first to last."""
        return np.array([np.count_nonzero(row != IGNORED) for row in self.keys["labels"].sequences(first, last)], np.int64)


def outside(prefix: Path, key: str, value: int, sequence: int, vocab_size: int) -> ToolError:
    """A number that is no token of the model's. key: which of KEYS it is in."""
    what, also = ("label", ", or -100 where nothing is trained") if key == "labels" else ("token id", "")
    return ToolError(
        f"{prefix}: {what} {value} in sequence {sequence}; the model's vocabulary is 0 to {vocab_size - 1}{also}",
        hint="the data was made with another tokenizer: make it again with the model's (jumar-data sft --tokenizer)",
    )


def first_outside(reader: IndexedReader, vocab_size: int, also: int | None, most: int) -> tuple[int, int] | None:
    """The first number of a file that is neither a token of the model's nor `also`, and its sequence; reads block by block, and
    ends after `most` numbers."""
    ends, start, before = reader.lengths.cumsum(dtype=np.int64), 0, 0
    while start < len(reader) and before < most:
        stop = max(start + 1, int(np.searchsorted(ends, before + CHUNK, "right")))
        values = reader.values(start, stop)
        bad = (values < 0) | (values >= vocab_size)
        if also is not None:
            bad &= values != also
        if bad.any():
            at = int(bad.argmax())
            return int(np.searchsorted(ends, before + at, "right")), int(values[at])
        start, before = stop, int(ends[stop - 1])
    return None


def open_conversations(where: str, path: Path, borders: Borders | None = None) -> Conversations:
    """The tuning dataset of a prefix, with or without `_packed`, or with the name of one of its files.

    where: the recipe's field, for errors; borders: None: as its manifest or, without one, its content says.
    Raises ToolError: nothing there, a key missing, keys that do not belong together.
    """
    if not path.name:
        raise ToolError(
            f"{where}: {path} is a directory, expected a prefix", hint="give the prefix that jumar-data sft was given"
        )
    prefix, packed = _named(strip_suffix(path))
    stems = {key: f"{prefix.name}{packed}_{key}_document" for key in KEYS}
    found = [key for key in KEYS if prefix.with_name(stems[key] + ".idx").is_file()]
    if not found:
        raise _nothing(where, path, prefix)
    if missing := [stems[key] for key in KEYS if key not in found]:
        raise ToolError(
            f"{where}: {prefix.parent} has no {' and no '.join(f'{stem}.idx' for stem in missing)}",
            hint=f"tuning data has three keys, {', '.join(KEYS)}: copy all of its files, or {AGAIN}",
        )
    keys = {key: IndexedReader(prefix.with_name(stems[key])) for key in KEYS}
    _agree(where, prefix, keys)
    manifest = read_manifest_file(prefix.with_name(prefix.name + ".manifest.json")) or {}
    return Conversations(prefix, keys, borders or _borders(keys, manifest), manifest)


def _named(path: Path) -> tuple[Path, str]:
    """The bare prefix, and "_packed" or "" as its files are called."""
    name = path.name
    for key in KEYS:
        name = name.removesuffix(f"_{key}_document")
    bare = name.removesuffix("_packed")
    plain = any(path.with_name(f"{bare}_{key}_document.idx").is_file() for key in KEYS)
    packed = any(path.with_name(f"{bare}_packed_{key}_document.idx").is_file() for key in KEYS)
    return path.with_name(bare), "_packed" if packed or not plain else ""


def _nothing(where: str, path: Path, prefix: Path) -> ToolError:
    folder = prefix.parent
    there = sorted(each.stem for each in folder.glob("*.idx")) if folder.is_dir() else []
    text = f"{where}: no tuning data {path} ({prefix.name}_packed_input_ids_document.idx is not there)"
    if any(name.startswith(f"{prefix.name}_packed_chosen") for name in there):
        return ToolError(text, hint=f"{prefix} is pairwise data; {AGAIN}")
    if {f"{prefix.name}_text_document", prefix.name} & set(there):
        return ToolError(text, hint=f"{prefix} is pretraining text: jumar-train pretrain, or {AGAIN}")
    known = sorted({name.split("_packed_")[0] for name in there})
    return ToolError(text, hint=f"{folder} has {', '.join(known[:5])}" if known else f"{folder} has no .idx file; {AGAIN}")


def _agree(where: str, prefix: Path, keys: Mapping[str, IndexedReader]) -> None:
    first = keys["input_ids"]
    for key, reader in keys.items():
        if reader.dtype.kind not in "iu" or (key == "labels" and reader.dtype.kind != "i"):
            raise ToolError(f"{where}: {reader.prefix} holds numbers of {reader.dtype}, expected int32", hint=AGAIN)
        if len(reader) != len(first):
            text = f"{where}: {prefix} has {len(first)} sequences of input_ids, but {len(reader)} of {key}"
            raise ToolError(text, hint=f"the files are of different runs: {AGAIN}")
        for start in range(0, len(first), CHUNK):
            other = np.flatnonzero(reader.lengths[start : start + CHUNK] != first.lengths[start : start + CHUNK])
            if len(other):
                at = start + int(other[0])
                text = f"{where}: sequence {at} of {prefix} has {first.lengths[at]} input_ids, but {reader.lengths[at]} {key}"
                raise ToolError(text, hint=f"the files are of different runs: {AGAIN}")
    if not first.lengths.any():
        raise ToolError(f"{where}: {prefix} holds no token", hint="see the report of jumar-data for why records were left out")


def _borders(keys: Mapping[str, IndexedReader], manifest: Mapping[str, Any]) -> Borders:
    """Rows of one length, and more than one of them, are packed. Their mask counts, or (MindSpeed-LLM's --pack) is 1 all over."""
    if manifest:
        return "mask" if "packed" in manifest else "none"
    lengths = keys["input_ids"].lengths
    if lengths.min() != lengths.max():
        return "none"
    if any((mask != 1).any() for mask in keys["attention_mask"].sequences(0, LOOKED_AT)):
        return "mask"
    return "eos" if len(lengths) > 1 else "none"
