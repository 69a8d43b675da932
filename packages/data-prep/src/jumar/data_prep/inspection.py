"""What a dataset is, whoever wrote it: facts, samples as text, and the report page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jumar.data_prep.datasets import IGNORED, PACKED, PAIRWISE, Dataset, describe, find_dataset, spread
from jumar.data_prep.report import BINS, SHOWN_TOKENS, segments
from jumar.data_prep.report_html import report_html
from jumar.data_prep.tokenizer import Tokenizer, identity, open_tokenizer
from jumar.schema.cli import dist_version
from jumar.schema.errors import Exit, ToolError

SHOWN = 3


def inspect(prefix: str, tokenizer: Path | None, show: int) -> dict[str, Any]:
    """`describe`'s facts, and `samples` if asked for.

    ToolError if samples are asked for without a tokenizer, or the tokenizer is not the one that made the dataset.
    """
    dataset = find_dataset(prefix)
    facts = describe(dataset)
    if show and tokenizer is None:
        raise ToolError("--show needs to know the words", hint="add --tokenizer DIR", code=Exit.USAGE)
    if tokenizer is not None:
        opened = open_tokenizer(tokenizer, engine="tokenizers")
        refuse_other(dataset, opened)
        facts["samples"] = samples(dataset, opened, show)
    return facts


def refuse_other(dataset: Dataset, tokenizer: Tokenizer) -> None:
    """ToolError if a dataset says that another tokenizer made it, or holds ids that this one has not."""
    made_by = (dataset.manifest or {}).get("tokenizer_sha256")
    if made_by is not None and made_by != identity(tokenizer):
        raise ToolError(
            f"{dataset.prefix} was made with another tokenizer than {tokenizer.directory} (tokenizer_sha256 differs)",
            hint="name the directory that it was made with",
        )
    top = max((int(dataset.main[int(i)].max(initial=0)) for i in spread(len(dataset.main), 100)), default=0)
    if top >= tokenizer.facts.size:
        raise ToolError(
            f"{dataset.prefix} holds id {top}, and the vocabulary of {tokenizer.directory} has {tokenizer.facts.size}",
            hint="name the tokenizer that it was made with",
        )


def samples(dataset: Dataset, tokenizer: Tokenizer, count: int) -> list[dict[str, Any]]:
    """The first samples as text: {"index", "key", "segments": [[text, trained], ...]}; a pair is two."""
    keys = dataset.keys
    if dataset.kind == PAIRWISE:
        shown = [(f"{side}_input_ids", f"{side}_labels") for side in ("chosen", "rejected")]
    elif "input_ids" in keys:
        aligned = "labels" in keys and np.array_equal(keys["labels"].lengths, keys["input_ids"].lengths)
        shown = [("input_ids", "labels" if aligned else "")]
    else:
        shown = [(name, "") for name in keys]
    out = []
    for index in range(min(count, len(dataset.main))):
        for ids_key, labels_key in shown:
            ids = np.asarray(keys[ids_key][index])[:SHOWN_TOKENS]
            labels = np.asarray(keys[labels_key][index])[:SHOWN_TOKENS] if labels_key in keys else None
            out.append({"index": index, "key": ids_key, "segments": segments(ids, labels, tokenizer)})
    return out


def report(prefix: str, tokenizer: Path | None, output: Path | None, *, force: bool) -> dict[str, Any]:
    """Writes the report page of a dataset (default: PREFIX.report.html) and says where.

    The page that the dataset's own run has written tells more, and stays unless `force`. ToolError for any other that is there.
    """
    dataset = find_dataset(prefix)
    target = output or Path(f"{dataset.prefix}.report.html")
    opened = open_tokenizer(tokenizer, engine="tokenizers") if tokenizer else None
    if opened:
        refuse_other(dataset, opened)
    if output is None and not force and _of_its_run(dataset, target):
        return {"out": str(target), "already_done": True}
    content = report_html(_facts(dataset, opened))
    if target.exists() and not force:
        if target.is_file() and target.read_bytes() == content.encode():
            return {"out": str(target), "already_done": True}
        raise ToolError(f"{target} is there, with another content", hint="name another with -o, or add --force to replace it")
    beside = target.with_name(target.name + ".part")
    beside.write_text(content, encoding="utf-8")
    beside.replace(target)
    return {"out": str(target), "already_done": False}


def _of_its_run(dataset: Dataset, page: Path) -> bool:
    """Whether a page is the one that the run which made the dataset has written, of the PREFIX.report.json beside it."""
    run = dataset.prefix.with_name(f"{dataset.prefix.name}.report.json")
    try:
        return page.read_text(encoding="utf-8") == report_html(json.loads(run.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):  # one is not there, or is somebody's own
        return False


def _facts(dataset: Dataset, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """As much of a run's report as the finished files tell."""
    told = describe(dataset)
    lengths = np.asarray(dataset.main.lengths[:])
    edges = _edges(int(lengths.max(initial=1)))
    content = told.get("trained_share")
    trained = content if isinstance(content, float) else None
    padding = int(told["tokens"] * told.get("padding_share", 0))
    return {
        "tool": "jumar-data",
        "command": dataset.kind,
        "version": dist_version("jumar-data-prep"),
        "output": dataset.prefix.name,
        "settings": {"kind": dataset.kind, **{f"{name} type": key["dtype"] for name, key in told["keys"].items()}},
        "sources": [_source(dataset, told, padding, trained)],
        "tokens": {"total": told["tokens"] - padding, "padding": padding}
        | ({"trained": int(told["tokens"] * trained)} if trained is not None else {}),
        "lengths": {
            "edges": edges,
            "counts": np.histogram(lengths, edges)[0].tolist(),
            "seq_len": None,
            **told["keys"][next(iter(told["keys"]))].get("lengths", {}),
        },
        "label_share": _label_share(dataset),
        "packing": _packing(dataset, told),
        "samples": [
            {"source": dataset.prefix.name, "line": sample["index"] + 1, "segments": sample["segments"]}
            for sample in (samples(dataset, tokenizer, SHOWN) if tokenizer else [])
        ],
    }


def _source(dataset: Dataset, told: dict[str, Any], padding: int, trained: float | None) -> dict[str, Any]:
    records = {"records": told["documents"], "kept": told["documents"], "rejected": 0}
    tokens = {"tokens": told["tokens"] - padding, "trained": int(told["tokens"] * (trained or 0))}
    return {"name": dataset.prefix.name, **records, **tokens, "bytes": told["bytes"]}


def _edges(top: int) -> list[int]:
    step = max(1, -(-top // BINS))
    return [*range(0, top, step), top + 1]


def _label_share(dataset: Dataset) -> dict[str, Any] | None:
    labels = dataset.keys.get("labels") or dataset.keys.get("chosen_labels")
    if labels is None or not len(labels):
        return None
    shares = [float((labels[int(i)] != IGNORED).mean()) for i in spread(len(labels), 10_000)]
    edges = np.linspace(0, 1, 21)
    return {"edges": [round(float(edge), 2) for edge in edges], "counts": np.histogram(shares, edges)[0].tolist()}


def _packing(dataset: Dataset, told: dict[str, Any]) -> dict[str, Any] | None:
    sub = told.get("sub_samples")
    if dataset.kind != PACKED or not sub:
        return None
    picked = spread(len(dataset.main), 10_000)
    counts = np.bincount([int(dataset.keys["attention_mask"][int(i)].max(initial=0)) for i in picked])
    used = told["tokens"] * (1 - told.get("padding_share", 0))
    length = told["tokens"] // max(len(dataset.main), 1)
    return {
        "samples": len(dataset.main),
        "sub_samples": sub.get("total", round(sub["mean"] * len(dataset.main))),
        "efficiency": used / max(told["tokens"], 1),
        "lower_bound": -(-int(used) // max(length, 1)),
        "per_sample": {"edges": [*range(1, len(counts) + 1)], "counts": counts[1:].tolist()},
    }
