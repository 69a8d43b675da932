"""What jumar-convert prints: tables for people, one JSON object for pipes."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jumar.ckpt_convert.convert import Plan
from jumar.ckpt_convert.verification import Report
from jumar.schema.cli import escaped, human_bytes, print_json
from jumar.schema.registry import families as all_families

MANY = 24


def _console() -> Console:
    """Standard output, where names and paths stand as they are: brackets and colons mean nothing, and a pipe folds nothing."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 1000
    return console


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _say(console: Console, colour: str, word: str, text: str) -> None:
    """A coloured word, then plain text (never read as markup)."""
    console.print(Text.assemble((word, colour), f" {escaped(text)}"), soft_wrap=True)


def _print(console: Console, table: Table) -> None:
    """A table; in a pipe its lines end where their text ends."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        console.print(line.rstrip(), soft_wrap=True)


def _already(console: Console, target: object) -> None:
    _say(console, "green", "already done", f"{target}: the same source and options (--force writes it again)")


def _proof(plan: Plan) -> str:
    facts = plan.facts
    parts = [f"every byte of {facts['hf_tensors']} tensors is used exactly once and every target byte is filled"]
    counted = {
        "replicas": "replicas over ranks",
        "padding_elements": "padding elements",
        "source_padding_elements": "padding elements of the source left out",
        "dropped": "declared drops",
        "zeros": "zeros by declaration",
    }
    for key, text in counted.items():
        if facts.get(key):
            parts.append(f"{facts[key]} {text}")
    return "; ".join(parts)


def _count(files: int) -> str:
    return "1 file" if files == 1 else f"{files} files"


def _casts(made: Plan) -> list[str]:
    return [*made.changes] + [f"{count} tensors cast from {old} to {new}" for (old, new), count in made.casts.items()]


def plan(made: Plan, as_json: bool) -> None:
    """The plan: files with their sizes, the proof, what is not bit-exact."""
    if as_json:
        files = [{"path": f.path, "bytes": f.size, "tensors": len(f.records)} for f in made.files]
        casts = [{"from": a, "to": b, "tensors": n} for (a, b), n in made.casts.items()]
        sidecars = sorted(map(str, made.sidecars))
        facts = {"files": files, "sidecars": sidecars, "bytes": made.nbytes, "counts": dict(made.facts), "casts": casts}
        print_json(facts | ({"changes": list(made.changes)} if made.changes else {}))
        return
    console = _console()
    table = _table("file", "size", "tensors", "copies", right=("size", "tensors", "copies"))
    for file in made.files[:MANY]:
        copies = sum(len(r.copies) for r in file.records)
        table.add_row(file.path, human_bytes(file.size), str(len(file.records)), str(copies))
    _print(console, table)
    if len(made.files) > MANY:
        console.print(f"... and {len(made.files) - MANY} more files")
    beside = ", ".join(sorted(map(str, made.sidecars))[:12])
    _say(console, "cyan", "planned", f"{_count(len(made.files))}, {human_bytes(made.nbytes)}; beside them {beside}")
    _say(console, "green", "proven", _proof(made))
    for cast in _casts(made):
        _say(console, "yellow", "not bit-exact", cast)


def result(made: Plan, dst: Path, written: bool, seconds: float, as_json: bool) -> None:
    """What a conversion did."""
    if as_json:
        print_json({"out": str(dst), "already_done": not written, "seconds": round(seconds, 3), **made.facts})
        return
    console = _console()
    if not written:
        _already(console, dst)
        return
    rate, size = human_bytes(made.facts["bytes"] / max(seconds, 1e-9)), human_bytes(made.nbytes)
    _say(console, "green", "done", f"{dst}: {_count(made.facts['files'])}, {size} in {seconds:.1f} s ({rate}/s)")
    _say(console, "green", "proven", _proof(made))
    for cast in _casts(made):
        _say(console, "yellow", "not bit-exact", cast)


def _number(value: float | None) -> float | None:
    """JSON has no infinity."""
    return None if value is None or math.isinf(value) else value


def report(found: Report, first: str, second: str, as_json: bool) -> None:
    """What `verify` found."""
    if as_json:
        differences = [{"name": d.name, "what": d.what, "largest": _number(d.largest)} for d in found.differences]
        print_json({"same": found.same, "equal": found.equal, "bytes": found.nbytes, "differences": differences})
        return
    console = _console()
    if found.differences:
        table = _table("tensor", "difference", "largest", right=("largest",))
        for d in found.differences[:MANY]:
            table.add_row(escaped(d.name), d.what, "" if d.largest is None else f"{d.largest:.3g}")
        _print(console, table)
        count = len(found.differences)
        if count > MANY:
            console.print(f"... and {count - MANY} more")
        _say(console, "red", "different", f"{first} and {second}: {count} differences, {found.equal} tensors equal")
        return
    replicas = f", {found.replicas} replicas" if found.replicas else ""
    size = human_bytes(found.nbytes)
    _say(console, "green", "equal", f"{first} and {second}: {found.equal} tensors, {size}, byte for byte{replicas}")


def description(facts: dict[str, Any], as_json: bool) -> None:
    """What `inspect` found."""
    if as_json:
        print_json(facts)
        return
    console = _console()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="cyan")
    table.add_column(overflow="fold")
    spec = facts["spec"]
    rows: list[tuple[str, Any]] = [
        ("path", ", ".join(facts["path"])),
        ("format", facts["format"]),
        ("family", facts["model_type"]),
        ("parameters", f"{facts['parameters']:,}"),
        ("weights", f"{human_bytes(facts['bytes'])} in {_count(facts['files'])}"),
        ("dtypes", ", ".join(f"{k} ({v} tensors)" for k, v in facts["dtypes"].items())),
        ("iteration", facts.get("iteration")),
        ("layout", facts.get("layout")),
        ("dialect", " ".join(filter(None, (facts.get("dialect"), facts.get("mla_mm_split") and "mla_mm_split"))) or None),
        ("experts", facts.get("expert_layout")),
        ("vocabulary", _vocabulary(facts)),
        ("optimizer", _optimizer(facts.get("optimizer"))),
        ("LoRA", _lora(facts["lora"]) if "lora" in facts else None),
        ("config, tokenizer", facts["hf_files"] or "none beside the weights"),
        ("dropped", f"{len(facts['dropped'])} entries that are no weights" if facts["dropped"] else None),
    ]
    for key, value in rows:
        if value is not None:
            table.add_row(key, escaped(str(value)))
    for key, value in spec.items():
        if key not in ("model_type", "vocab_size"):
            table.add_row(f"  {key}", _plain(value))
    _print(console, table)
    if "ranks" in facts:
        ranks = _table("rank", "weights", right=("weights",))
        for name, size in list(facts["ranks"].items())[:MANY]:
            ranks.add_row(name, human_bytes(size))
        _print(console, ranks)
        if len(facts["ranks"]) > MANY:
            console.print(f"... and {len(facts['ranks']) - MANY} more ranks")


def _optimizer(found: dict[str, Any] | None) -> str | None:
    if not found:
        return None
    if found["carried"]:
        return f"{human_bytes(found['bytes'])}: {', '.join(found['carried'])}; goes along to torch_dist"
    if found.get("refused"):
        return f"not carried along: {found['refused']}"
    return f"{human_bytes(found['bytes'])} in {_count(found['files'])}, which no conversion carries along"


def _vocabulary(facts: dict[str, Any]) -> str:
    size, padded = facts["spec"]["vocab_size"], facts.get("padded_vocab_size")
    return str(size) if padded in (None, size) else f"{size}, padded to {padded}"


def _lora(facts: dict[str, Any]) -> str:
    ranks, scales = (",".join(f"{n:g}" for n in facts[key]) for key in ("rank", "scale"))
    return f"rank {ranks}, alpha / rank {scales}, on {facts['modules']} modules: {', '.join(facts['targets'])}"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value[:16])) + ("..." if len(value) > 16 else "")
    return str(value)


def families(as_json: bool) -> None:
    """The families, with what they are made of and the dialects in which they exist."""
    found = all_families()
    if as_json:
        print_json({n: {"architecture": f.architecture, "dialects": list(f.dialects)} for n, f in found.items()})
        return
    table = _table("model_type", "architecture", "dialects")
    for name, family in found.items():
        table.add_row(name, family.architecture, ", ".join(family.dialects))
    _print(_console(), table)


def gguf(facts: dict[str, Any], as_json: bool) -> None:
    """What importing a GGUF file did."""
    if as_json:
        print_json(facts)
        return
    console = _console()
    if facts["already_done"]:
        _already(console, facts["out"])
        return
    types = ", ".join(f"{n} {kind}" for kind, n in facts["types"].items())
    size = human_bytes(facts["bytes"])
    _say(console, "green", "done", f"{facts['out']}: {facts['tensors']} tensors, {size} in {facts['seconds']:.1f} s")
    _say(console, "yellow", "not bit-exact", f"dequantised from {types} to {facts['dtype']}")
