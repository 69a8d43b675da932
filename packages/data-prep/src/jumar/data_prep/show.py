"""What people and scripts see of a result."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jumar.schema.cli import escaped, human_bytes, print_json, say, stderr

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

if TYPE_CHECKING:
    from jumar.data_prep.datasets import Dataset
    from jumar.data_prep.finish import Finished
    from jumar.data_prep.job import Job


def _out(text: str) -> None:
    """A line of data, whatever characters are in it."""
    sys.stdout.write(escaped(text) + "\n")


def finished(done: Finished, job: Job, seconds: float, as_json: bool) -> None:
    """A run's outcome: data on standard output, what a person should look at on standard error."""
    report = done.report
    if as_json:
        print_json(_as_json(done, job.output, seconds))
        return
    word = "already done:" if done.already else "done"
    if "tokens" not in report:  # a shard
        _out(f"{word} {done.outputs[0]}: {report['records']['kept']:,} samples; join the shards: jumar-data merge {job.output}")
        return
    records, tokens = report["records"], report["tokens"]
    if records["rejected"] or records["dropped"]:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in list(report["rejects"].items())[:3])
        say("warning", f"{records['rejected'] + records['dropped']:,} of {records['read']:,} records are left out: {reasons}")
        say("hint", f"see {job.beside('rejects.jsonl')}", "bold cyan")
    share = f", {tokens['trained'] / max(tokens['total'], 1):.1%} trained" if "trained" in tokens else ""
    cut = f"; {records['truncated']:,} truncated" if records["truncated"] else ""
    cut += f"; {records['split']:,} split" if records["split"] else ""
    made_of = f"{records['kept']:,} records, {records['samples']:,} samples, {tokens['total']:,} tokens"
    _out(f"{word} {job.output}: {made_of}{share}{cut}")
    if report["packing"]:
        packing = report["packing"]
        _out(f"packed {packing['samples']:,} samples of {job.seq_len:,}, {packing['efficiency']:.1%} full")
    _out(f"report {job.beside('report.html')}")


def _as_json(done: Finished, prefix: Path, seconds: float) -> dict[str, Any]:
    """`samples` and `tokens` are in the report too; a shard's are known when it is merged."""
    report = {name: value for name, value in done.report.items() if name != "samples"}
    counts = {"samples": report["records"]["samples"], "tokens": report["tokens"]["total"]} if "tokens" in report else {}
    about = {"out": str(prefix), "already_done": done.already, "seconds": round(seconds, 3)}
    return {**about, **counts, "outputs": done.outputs, "report": report}


def merged(done: Finished | Dataset, seconds: float, as_json: bool) -> None:
    """What came of joining."""
    from jumar.data_prep.datasets import Dataset as Joined

    if isinstance(done, Joined):
        one(done, seconds, as_json)
        return
    word, report = "already done:" if done.already else "done", done.report
    where = Path(done.outputs[0]).parent / report["output"]
    if as_json:
        print_json(_as_json(done, where, seconds))
        return
    _out(f"{word} {where}: {report['records']['kept']:,} records, {report['tokens']['total']:,} tokens")


def one(dataset: Dataset, seconds: float, as_json: bool) -> None:
    """What `blend` and `merge` wrote."""
    if as_json:
        print_json({"already_done": dataset.already, "seconds": round(seconds, 3), **_made(dataset)})
        return
    _say_made(dataset)


def parts(datasets: list[Dataset], names: list[str], seconds: float, as_json: bool) -> None:
    """What `split` wrote."""
    if as_json:
        already = all(dataset.already for dataset in datasets)
        found = [{"name": name, **_made(dataset)} for name, dataset in zip(names, datasets, strict=True)]
        print_json({"already_done": already, "seconds": round(seconds, 3), "parts": found})
        return
    for dataset in datasets:
        _say_made(dataset)


def _made(dataset: Dataset) -> dict[str, Any]:
    tokens = int(dataset.main.lengths.sum(dtype="int64"))
    return {"out": str(dataset.prefix), "documents": dataset.documents, "tokens": tokens}


def _say_made(dataset: Dataset) -> None:
    facts, word = _made(dataset), "already done:" if dataset.already else "done"
    _out(f"{word} {facts['out']}: {facts['documents']:,} documents, {facts['tokens']:,} tokens")


def inspection(facts: dict[str, Any], as_json: bool) -> None:
    """What a dataset is."""
    if as_json:
        print_json(facts)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    width = 16
    for name, value in _facts(facts).items():
        console.print(Text(f"{name:{width}}{escaped(str(value))}"))
    keys = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("key", "type", "sequences", "tokens", "size"):
        keys.add_column(column, justify="left" if column in ("key", "type") else "right")
    for name, key in facts["keys"].items():
        keys.add_row(name, key["dtype"], f"{key['sequences']:,}", f"{key['tokens']:,}", human_bytes(key["bytes"]))
    console.print()
    console.print(keys)
    for sample in facts.get("samples", []):
        console.print(Text(f"\nsample {sample['index']} {sample['key']}", style="bold"))
        shown = [(CONTROLS.sub(_visible, text), "black on green" if trained else "") for text, trained in sample["segments"]]
        console.print(Text.assemble(*shown))


def _visible(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _facts(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of an inspection in words."""
    out: dict[str, Any] = {"path": facts["prefix"], "kind": facts["kind"]}
    lengths = next(iter(facts["keys"].values())).get("lengths")
    manifest = facts.get("manifest") or {}
    out |= {"samples": f"{facts['sequences']:,} in {facts['documents']:,} documents", "tokens": f"{facts['tokens']:,}"}
    if lengths:
        out["lengths"] = "{min:,} to {max:,}; half up to {p50:,}, 9 of 10 up to {p90:,}".format(**lengths)
    share = facts.get("trained_share")
    if share is not None:
        out["trained"] = f"{share:.1%}" if isinstance(share, float) else ", ".join(f"{k} {v:.1%}" for k, v in share.items())
    if facts.get("padding_share") is not None:
        out["padding"] = f"{facts['padding_share']:.1%}"
    if "borders" in facts:
        out["borders"] = facts["borders"]
    if "sub_samples" in facts:
        out["sub-samples"] = f"{facts['sub_samples']['mean']:g} a sample, at most {facts['sub_samples']['max']}"
    if not facts["looked_at"]["all"]:
        out["looked at"] = f"{facts['looked_at']['sequences']:,} of {facts['looked_at']['of']:,} samples for these shares"
    out["made by"] = f"{manifest['tool']} {manifest['version']}" if manifest else "not known: no manifest"
    if "note" in facts:
        out["note"] = facts["note"]
    return out


def reported(facts: dict[str, Any], as_json: bool) -> None:
    """Where a report page is."""
    if as_json:
        print_json(facts)
        return
    _out(f"{'already done:' if facts['already_done'] else 'report'} {facts['out']}")


def templates(as_json: bool) -> None:
    """The templates that have a name."""
    from jumar.schema.slots import MISSING, template_names

    if as_json:
        print_json({"templates": template_names(), "missing": MISSING})
        return
    for name in template_names():
        _out(name)
    for name, reason in MISSING.items():
        stderr().print(f"not here: {name}: {reason}", soft_wrap=True, highlight=False, markup=False)
