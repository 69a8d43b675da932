"""PREFIX.report.json: what became of every record, and what the tokens look like. No timings: same inputs, same bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jumar.data_prep.job import Job
from jumar.data_prep.render import IGNORED
from jumar.data_prep.store import HASHES, TRAINED, Store
from jumar.data_prep.tokenizer import Tokenizer
from jumar.schema.cli import dist_version

LONGEST = 1 << 20  # lengths above are counted as this
BINS = 32
EXACT = 8 << 20  # samples whose hashes are compared all; of more, every n-th hash is
SHOWN_TOKENS = 600
CHUNK = 1 << 20


def build_report(
    job: Job,
    store: Store,
    sources: list[str],
    sizes: list[int],
    keys: tuple[str, ...],
    dtype: np.dtype[Any],
    tokenizer: Tokenizer,
    packing: dict[str, Any] | None,
    reasons: Counter[str],
) -> dict[str, Any]:
    """The report of a run whose work folder holds all of it."""
    totals, counts = store.totals, store.totals.counts
    trained = store.array(TRAINED, np.int32)
    lengths = trained if job.command == "pretrain" else store.array(f"{keys[0]}.len", np.int32)
    own = {i: Counter(totals.sources.get(i, {})) for i in range(len(sources))}
    tokens = sum(s["tokens"] for s in own.values())
    filled = packing["samples"] * (job.seq_len or 0) if packing else tokens
    labelled = job.command in ("sft", "pairwise", "process-reward")
    return {
        "tool": "jumar-data",
        "command": job.command,
        "version": dist_version("jumar-data-prep"),
        "output": str(job.output.name),
        "settings": _settings(job, tokenizer),
        "records": {
            "read": totals.read,
            "kept": totals.read - totals.rejected - counts["dropped"],
            "samples": totals.kept,
            "rejected": totals.rejected,
            "blank": totals.blank,
            **{name: counts[name] for name in ("truncated", "split", "dropped")},
        },
        "rejects": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        "faults": totals.faults,
        "sources": [
            {"name": name, **{k: own[i][k] for k in ("records", "kept", "rejected", "tokens", "trained")}, "bytes": sizes[i]}
            for i, name in enumerate(sources)
        ],
        "tokens": {
            "total": tokens,
            **({"trained": sum(s["trained"] for s in own.values())} if labelled else {}),
            "padding": filled - tokens,
            "lost": counts["lost"],
        },
        "lengths": _lengths(lengths, job.seq_len),
        "label_share": _label_share(trained, store, keys) if labelled else None,
        "packing": packing and {**packing, "per_sample": _per_sample(packing["per_sample"])},
        "duplicates": _duplicates(store.array(HASHES, np.uint64)),
        "samples": _samples(job, store, sources, keys, dtype, tokenizer),
    }


def _settings(job: Job, tokenizer: Tokenizer) -> dict[str, Any]:
    """Options that are not at their defaults, and the vocabulary."""
    recipe = {name: value for name, value in job.recipe().items() if name not in ("command", "map", "keys")}
    shown = {"tokenizer": tokenizer.directory.resolve().name, "vocabulary": tokenizer.facts.size, **recipe}
    if job.command not in ("pretrain", "process-reward"):
        shown.setdefault("template", job.template)
    return shown


def _pieces(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (np.asarray(array[at : at + CHUNK]) for at in range(0, len(array), CHUNK))


def _lengths(lengths: NDArray[Any], seq_len: int | None) -> dict[str, Any]:
    """Distribution of sample lengths in tokens."""
    counts = np.zeros(LONGEST + 1, np.int64)
    longest, total = 0, 0
    for piece in _pieces(lengths):
        counts += np.bincount(np.minimum(piece, LONGEST), minlength=LONGEST + 1)
        longest, total = max(longest, int(piece.max())), total + int(piece.sum(dtype=np.int64))
    below = np.cumsum(counts)

    def percentile(share: float) -> int:
        return int(np.searchsorted(below, share * below[-1]))

    top = seq_len if seq_len is not None else max(percentile(0.99) * 5 // 4, BINS)
    step = -(-top // BINS)
    edges = [*range(0, top, step), top]
    there = np.flatnonzero(counts)
    at = np.clip(np.searchsorted(np.array(edges), there, side="right") - 1, 0, len(edges) - 2)
    binned = np.bincount(at, weights=counts[there], minlength=len(edges) - 1).astype(np.int64)
    return {
        "edges": edges,
        "counts": binned.tolist(),
        "above": int(counts[edges[-1] + 1 :].sum()),
        "seq_len": seq_len,
        "min": int(there[0]),
        "max": longest,
        "mean": round(total / max(int(below[-1]), 1), 2),
        "p50": percentile(0.5),
        "p90": percentile(0.9),
        "p99": percentile(0.99),
    }


def _label_share(trained: NDArray[Any], store: Store, keys: tuple[str, ...]) -> dict[str, Any]:
    """How much of each sample is trained."""
    edges = np.linspace(0, 1, 21)
    counts = np.zeros(20, np.int64)
    lengths = [store.array(f"{key}.len", np.int32) for key in keys if not key.endswith("labels")]
    for at in range(0, len(trained), CHUNK):
        of_all = sum(np.asarray(n[at : at + CHUNK]) for n in lengths)
        counts += np.histogram(np.asarray(trained[at : at + CHUNK]) / of_all, edges)[0]
    return {"edges": [round(float(edge), 2) for edge in edges], "counts": counts.tolist()}


def _per_sample(counted: Counter[int]) -> dict[str, Any]:
    top = max(counted)
    step = -(-top // BINS)
    edges = list(range(1, top + step + 1, step))
    counts = [sum(counted[n] for n in range(edge, edge + step)) for edge in edges[:-1]]
    return {"edges": edges, "counts": counts}


def _duplicates(hashes: NDArray[Any]) -> dict[str, Any]:
    """Samples that an earlier one equals, token for token (by a 64-bit hash)."""
    step = -(-len(hashes) // EXACT)
    kept = [piece[piece % np.uint64(step) == 0] if step > 1 else piece for piece in _pieces(hashes)]
    chosen = np.sort(np.concatenate(kept)) if kept else np.empty(0, np.uint64)
    repeated = int(np.count_nonzero(chosen[1:] == chosen[:-1]))
    share = repeated / max(len(chosen), 1)
    return {"records": round(share * len(hashes)), "share": round(share, 6), "estimated": step > 1}


def _samples(
    job: Job, store: Store, sources: list[str], keys: tuple[str, ...], dtype: np.dtype[Any], tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """The first samples as text, each piece with whether it is trained."""
    out = []
    for shown in store.totals.shown:
        for ids_key, labels_key in _shown_keys(job.command, keys):
            lengths = store.array(f"{ids_key}.len", np.int32)
            at = shown["sample"]
            begin, end = (int(np.asarray(lengths[:n]).sum(dtype=np.int64)) for n in (at, at + 1))
            end = min(end, begin + SHOWN_TOKENS)
            ids = np.asarray(store.array(f"{ids_key}.bin", dtype)[begin:end])
            labels = np.asarray(store.array(f"{labels_key}.bin", dtype)[begin:end]) if labels_key else None
            name = f"{sources[shown['source']]}" + (f" ({ids_key.split('_')[0]})" if ids_key.count("_") > 1 else "")
            out.append({"source": name, "line": shown["line"], "segments": segments(ids, labels, tokenizer)})
    return out


def _shown_keys(command: str, keys: tuple[str, ...]) -> list[tuple[str, str | None]]:
    if command == "pairwise":
        return [(keys[0], keys[1]), (keys[2], keys[3])]
    return [(keys[0], "labels" if command in ("sft", "process-reward") else None)]


def segments(ids: NDArray[Any], labels: NDArray[Any] | None, tokenizer: Tokenizer) -> list[list[Any]]:
    """[text, trained] of each run of tokens that are trained or not."""
    trained = np.zeros(len(ids), bool) if labels is None else labels != IGNORED
    borders = [0, *(np.flatnonzero(trained[1:] != trained[:-1]) + 1).tolist(), len(ids)]
    return [[tokenizer.decode(ids[a:b]), bool(trained[a])] for a, b in pairwise(borders) if b > a]
