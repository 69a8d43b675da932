"""New datasets of finished ones: put together, split, blended. Whole documents move, all keys at once, in bounded memory.

What goes where is a list of runs (dataset, first document, end); a run is one copy of bytes. `split` and `blend` hold the plan in
memory: 10 bytes a document.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jumar.data_prep.datasets import PACKED, Dataset, files_of, load
from jumar.schema.errors import Exit, ToolError, refused_by_system
from jumar.schema.indexed import CHUNK, IndexedReader, write_index
from jumar.schema.manifest import identify, manifest_text, states

Array = npt.NDArray[Any]
Runs = Callable[[], Iterator[tuple[int, int, int]]]

STRATEGIES = ("concat", "interleave_under", "interleave_over")
DRAWN = 1000
"""Draws at a time, as in Hugging Face's interleave_datasets: the same seed and weights give the same order."""
OUT_OF_PROPORTION = 1000
CARRIED = ("model", "seq_len", "template", "template_sha256", "tokenizer_sha256", "vocab_size")
"""Facts of manifests that hold of the new dataset where all inputs agree on them."""


def concatenate(datasets: Sequence[Dataset], out: Path, *, force: bool = False) -> Dataset:
    """One after another. Raises ToolError if their keys, dtypes, tokenizers or packed lengths differ."""
    _alike(datasets)

    def runs() -> Iterator[tuple[int, int, int]]:
        return ((i, 0, d.documents) for i, d in enumerate(datasets))

    facts = _facts(datasets, out, {"command": "concat"})
    if done := _already(datasets, {out: facts}, force):
        return done[0]
    with _placed(datasets, [out], force) as staged:
        _write(datasets, runs, staged, out, facts)
    return _again(datasets[0], out)


def split(
    dataset: Dataset, out: Path, parts: Sequence[float], names: Sequence[str], seed: int | None = None, *, force: bool = False
) -> list[Dataset]:
    """Parts of a dataset by documents, as OUT_NAME: consecutive without a seed, else drawn with it; each in the data's order."""
    if len(parts) != len(names) or len(set(names)) != len(names) or not parts:
        raise ToolError(
            f"{len(parts)} parts, {len(names)} names {list(names)}: expected a name of its own for each",
            hint="name as many as there are parts: --parts 0.9,0.1 --names train,valid",
            code=Exit.USAGE,
        )
    if bad := [name for name in names if not name or "/" in name]:
        raise ToolError(f"part {bad[0]!r}: expected a name without /", hint="for example --names train,valid", code=Exit.USAGE)
    if min(parts) <= 0:
        hint = "leave it out, with its name"
        raise ToolError(f"parts {list(parts)}: {min(parts):g} is no share, expected more than 0", hint=hint, code=Exit.USAGE)
    if abs(sum(parts) - 1) > 1e-6:
        hint = "for example 0.98 and 0.02"
        raise ToolError(f"parts {list(parts)} make {sum(parts):g}, expected shares that make 1", hint=hint, code=Exit.USAGE)
    count = dataset.documents
    ends = [round(count * float(share)) for share in np.cumsum(parts)]
    order = np.arange(count) if seed is None else np.random.Generator(np.random.PCG64(seed)).permutation(count)
    prefixes = [out.with_name(f"{out.name}_{name}") for name in names]
    chosen = [np.sort(order[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    for name, share, documents in zip(names, parts, chosen, strict=True):
        if not len(documents):
            hint = "give it a larger part"
            raise ToolError(f"part {name}: {share:g} of {count} documents is none", hint=hint)
    recipes = [{"command": "split", "part": name, "share": float(share)} for name, share in zip(names, parts, strict=True)]
    facts = {p: _facts([dataset], p, recipe, seed) for p, recipe in zip(prefixes, recipes, strict=True)}
    if done := _already([dataset], facts, force):
        return done
    with _placed([dataset], prefixes, force) as staged:
        for prefix, documents in zip(prefixes, chosen, strict=True):
            plan = np.zeros(len(documents), np.int16), documents
            _write([dataset], partial(_runs, *plan), staged, prefix, facts[prefix])
    return [_again(dataset, prefix) for prefix in prefixes]


def blend(
    datasets: Sequence[Dataset],
    weights: Sequence[float] | None,
    out: Path,
    strategy: str | int = "interleave_under",
    seed: int = 1234,
    *,
    force: bool = False,
) -> Dataset:
    """Documents drawn from datasets with probabilities `weights`, each dataset in its own order.

    strategy: "concat" (no weights), "interleave_under" (until the first is used up), "interleave_over" (until all are, those
    used up begin again), or how many documents to draw. Meaning and order are those of Hugging Face's interleave_datasets.
    """
    if strategy == "concat":
        if weights is not None:
            raise ToolError("weights have no effect when datasets are put together whole", hint="leave them out", code=Exit.USAGE)
        return concatenate(datasets, out, force=force)
    if not isinstance(strategy, int) and strategy not in STRATEGIES:
        names = ", ".join(STRATEGIES)
        raise ToolError(
            f"strategy {strategy!r}: expected {names}, or a number of documents",
            hint=f"--strategy {STRATEGIES[1]}",
            code=Exit.USAGE,
        )
    if isinstance(strategy, int) and strategy < 1:
        raise ToolError(f"{strategy} documents: expected 1 or more", hint="say how many are to be drawn", code=Exit.USAGE)
    _alike(datasets)
    shares = _shares(weights, len(datasets))
    counts = [dataset.documents for dataset in datasets]
    recipe = {"command": "blend", "strategy": strategy, "weights": [round(float(share), 12) for share in shares]}
    facts = _facts(datasets, out, recipe, seed)
    if done := _already(datasets, {out: facts}, force):
        return done[0]
    source, document = draw(counts, shares, strategy, seed)
    with _placed(datasets, [out], force) as staged:
        _write(datasets, partial(_runs, source, document), staged, out, facts)
    return _again(datasets[0], out)


def _again(like: Dataset, out: Path) -> Dataset:
    return load(out, like.packed, like.level, list(like.keys))


def _shares(weights: Sequence[float] | None, count: int) -> Array:
    given = np.array([1.0] * count if weights is None else list(weights), np.float64)
    if len(given) != count or not np.isfinite(given).all() or (given <= 0).any():
        text = f"weights {given.tolist()} for {count} datasets: expected a positive number for each"
        raise ToolError(text, hint="leave a dataset out that is not to be drawn from", code=Exit.USAGE)
    shares: Array = given / given.sum()
    return shares


def draw(counts: Sequence[int], shares: Array, strategy: str | int, seed: int) -> tuple[Array, Array]:
    """The order of a blend: [documents] int16 dataset and [documents] int64 document of each place."""
    if not all(counts):
        raise ToolError(f"dataset {list(counts).index(0) + 1} has no documents", hint="leave it out")
    likely = max(count / share for count, share in zip(counts, shares, strict=True))
    if strategy == "interleave_over" and likely > OUT_OF_PROPORTION * sum(counts):
        text = f"about {likely:.3g} documents would be drawn from {sum(counts):,} until each was drawn once"
        raise ToolError(text, hint="raise the smallest weight, or say how many documents to draw")
    rng, seen, drawn, total = np.random.default_rng(seed), np.zeros(len(counts), np.int64), [], 0
    ends = np.full(len(counts), -1)  # where each is used up
    while True:
        source = rng.choice(len(counts), size=DRAWN, p=shares).astype(np.int16)
        for i, count in enumerate(counts):
            places = np.flatnonzero(source == i)
            if ends[i] < 0 and seen[i] + len(places) >= count:
                ends[i] = total + places[count - seen[i] - 1] + 1
            seen[i] += len(places)
        drawn.append(source)
        total += DRAWN
        if isinstance(strategy, int):
            stop = strategy
        elif strategy == "interleave_under":
            stop = int(ends[ends >= 0].min(initial=np.iinfo(np.int64).max))
        else:
            stop = int(ends.max()) if (ends >= 0).all() else np.iinfo(np.int64).max
        if stop <= total:
            break
    whole = np.concatenate(drawn)[:stop]
    document = np.empty(len(whole), np.int64)
    for i, count in enumerate(counts):
        places = np.flatnonzero(whole == i)
        document[places] = np.arange(len(places)) % count
    return whole, document


def _runs(source: Array, document: Array) -> Iterator[tuple[int, int, int]]:
    """Neighbouring documents of one dataset as runs."""
    for at in range(0, len(source), CHUNK):
        sources, documents = source[at : at + CHUNK], document[at : at + CHUNK]
        breaks = np.flatnonzero((np.diff(sources) != 0) | (np.diff(documents) != 1)) + 1
        starts, stops = np.concatenate(([0], breaks)), np.concatenate((breaks, [len(sources)]))
        for i, first, length in zip(sources[starts].tolist(), documents[starts].tolist(), (stops - starts).tolist(), strict=True):
            yield i, first, first + length


def _alike(datasets: Sequence[Dataset]) -> None:
    """ToolError unless the datasets can be one."""
    if not datasets:
        raise ToolError("no datasets", hint="name two or more", code=Exit.USAGE)
    one = datasets[0]
    for other in datasets[1:]:
        for what, get in (
            ("keys", lambda d: ", ".join(sorted(d.keys))),
            ("kind", lambda d: d.kind),
            ("level", lambda d: d.level),
            ("dtypes", lambda d: ", ".join(f"{key} {reader.dtype}" for key, reader in sorted(d.keys.items()))),
            ("modes", lambda d: ", ".join(sorted(k for k, r in d.keys.items() if r.modes is not None and len(r)))),
            ("borders of sub-samples", lambda d: d.borders),
            ("packed length", lambda d: int(d.main.lengths[0]) if d.kind == PACKED else None),
        ):
            if get(one) != get(other):
                text = f"{what}: {get(one) or 'none'} in {one.prefix}, but {get(other) or 'none'} in {other.prefix}"
                raise ToolError(text, hint="make both with the same options")
        hashes = [(d.manifest or {}).get("tokenizer_sha256") for d in (one, other)]
        if all(hashes) and hashes[0] != hashes[1]:
            text = f"{one.prefix} and {other.prefix} were made with different tokenizers, say their manifests"
            raise ToolError(text, hint="make both with the same tokenizer")


def _there(like: Dataset, prefix: Path) -> list[Path]:
    """What lies at a prefix: files of its keys, whichever they are, and what tells of them."""
    stems = {file.stem for end in ("bin", "idx") for file in prefix.parent.glob(f"*.{end}")}
    names = {stem for stem, (group, _) in files_of(prefix.name, stems).items() if group[1] == like.packed}
    names |= {like.path(key, prefix).name for key in like.keys}
    files = [f"{name}.{end}" for name in sorted(names) for end in ("bin", "idx")]
    files += [f"{prefix.name}.{end}" for end in ("manifest.json", "report.json", "report.html", "rejects.jsonl")]
    return [path for name in files if (path := prefix.with_name(name)).exists()]


@contextmanager
def _placed(datasets: Sequence[Dataset], prefixes: Sequence[Path], force: bool) -> Iterator[Path]:
    """A folder beside the outputs; what is in it when all is done is renamed to its place, manifests last."""
    one, folder = datasets[0], prefixes[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    old = [file for prefix in prefixes for file in _there(one, prefix)]
    if old and not force:
        raise ToolError(f"{old[0]} is there already", hint="choose another output, or add --force to replace it")
    staged = folder / f".{prefixes[0].name}.{os.getpid()}.part"
    staged.mkdir()
    try:
        yield staged
    except OSError as fault:
        shutil.rmtree(staged, ignore_errors=True)
        raise refused_by_system(fault, prefixes[0]) from None
    try:
        new = {file.name for file in staged.iterdir()}
        for path in old:
            if path.name not in new or path.suffix == ".json":  # no manifest beside files that are half replaced
                path.unlink(missing_ok=True)
        for file in sorted(staged.iterdir(), key=lambda f: (f.name.endswith(".manifest.json"), f.suffix == ".idx", f.name)):
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _facts(datasets: Sequence[Dataset], out: Path, recipe: dict[str, Any], seed: int | None = None) -> dict[str, Any]:
    """What the manifest of a new dataset says, but for its counts."""
    from jumar.schema.cli import dist_version

    one = datasets[0]
    files = (file for dataset in datasets for reader in dataset.keys.values() for file in (reader.idx, reader.bin))
    inputs = [identify(file) for file in files]  # packed datasets of as many samples have the same index
    carried = {}
    for name in CARRIED:
        values = [(dataset.manifest or {}).get(name) for dataset in datasets]
        if all(value == values[0] for value in values):
            carried[name] = values[0]
    commands = {((dataset.manifest or {}).get("recipe") or {}).get("command") for dataset in datasets}
    command = commands.pop() if len(commands) == 1 else None  # of what made the data: its kind may hang on that
    return {
        "tool": "jumar-data",
        "version": dist_version("jumar-data-prep"),
        "inputs": inputs,
        "outputs": sorted(f"{one.path(key, out).name}.{end}" for key in one.keys for end in ("bin", "idx")),
        "recipe": recipe | ({"command": command, "made_by": recipe["command"]} if command else {}),
        "kind": one.kind,
        "seed": seed,
        **carried,
    }


def _already(datasets: Sequence[Dataset], made: Mapping[Path, dict[str, Any]], force: bool) -> list[Dataset]:
    """The datasets that are to be made, where the same call has made them all of the same files; else none."""
    sources = [file for dataset in datasets for reader in dataset.keys.values() for file in (reader.idx, reader.bin)]
    for prefix, facts in made.items():
        outputs = all(prefix.with_name(name).is_file() for name in facts["outputs"])
        if force or not outputs or not states(prefix.with_name(f"{prefix.name}.manifest.json"), facts, sources):
            return []
    return [replace(_again(datasets[0], prefix), already=True) for prefix in made]


def _write(datasets: Sequence[Dataset], runs: Runs, staged: Path, out: Path, facts: dict[str, Any]) -> None:
    one, counts = datasets[0], {}
    for key in one.keys:
        counts[key] = _write_key([dataset.keys[key] for dataset in datasets], runs, staged / one.path(key, out).name)
    text = manifest_text(**facts, counts=counts[next(iter(counts))])
    (staged / f"{out.name}.manifest.json").write_text(text, encoding="utf-8")


def _write_key(readers: Sequence[IndexedReader], runs: Runs, path: Path) -> dict[str, int]:
    """One key's .bin and .idx. Lengths and documents go through files: an index may be larger than memory."""
    names = [path.with_name(path.name + end) for end in (".lengths", ".ends", ".modes")]
    modes = any(reader.modes is not None for reader in readers)
    sequences = tokens = 0
    with ExitStack() as stack:
        out, lengths, ends, kinds = (
            stack.enter_context(file.open("wb")) for file in (path.with_name(path.name + ".bin"), *names)
        )
        ends.write(np.zeros(1, "<i8").tobytes())
        for i, first, stop in runs():
            reader = readers[i]
            begin, end = int(reader.documents[first]), int(reader.documents[stop])
            step = CHUNK if reader.contiguous else 1024  # where sequences lie apart, they are gathered in memory
            for at in range(begin, end, step):
                upto = min(at + step, end)
                values = reader.values(at, upto)
                out.write(values.data)
                lengths.write(reader.lengths[at:upto].tobytes())
                if modes:
                    kinds.write((reader.modes[at:upto] if reader.modes is not None else np.zeros(upto - at, "i1")).tobytes())
                tokens += values.size
            for at in range(first + 1, stop + 1, CHUNK):
                ends.write((reader.documents[at : min(at + CHUNK, stop + 1)] - begin + sequences).tobytes())
            sequences += end - begin
    arrays = [
        np.memmap(name, kind, "r") if name.stat().st_size else np.empty(0, kind)
        for name, kind in zip(names, ("<i4", "<i8", "i1"), strict=True)
    ]
    write_index(path.with_name(path.name + ".idx"), readers[0].dtype, arrays[0], arrays[1], arrays[2] if modes else None)
    documents = len(arrays[1]) - 1
    del arrays
    for name in names:
        name.unlink()
    return {"documents": documents, "sequences": sequences, "tokens": tokens}
