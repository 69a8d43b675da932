"""What format records are in, by their columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from jumar.data_prep.cells import Row, listed
from jumar.data_prep.mapping import COLUMNS, FORMATS, Mapping, parse_map
from jumar.schema.errors import Exit, ToolError

LOOKED_AT = 100
NEEDS = {
    "alpaca": "instruction and output (input, history, system; for pairs chosen and rejected instead of output)",
    "sharegpt": 'conversations, a list of {"from": ..., "value": ...} (system, tools; for pairs chosen and rejected)',
    "messages": 'messages, a list of {"role": ..., "content": ...} (tools; for pairs chosen and rejected)',
    "steps": "input, and value: a list",
    "text": "text",
}
_CHATS = ("alpaca", "sharegpt", "messages")
USABLE = {"pretrain": ("text",), "sft": _CHATS, "pairwise": _CHATS, "prompts": _CHATS, "process-reward": ("steps",)}
_QUESTIONS = ("instruction", "prompt", "question", "query", "problem", "input")
_ANSWERS = ("output", "response", "answer", "completion", "target", "solution")
_TEXTS = ("content", "contents", "raw_content", "body", "document", "passage")


@dataclass(frozen=True, slots=True)
class Detected:
    """format: one of `mapping.FORMATS`; pairwise: whether each record has two answers; why: one sentence for the user."""

    format: str
    pairwise: bool
    why: str
    mapping: Mapping


def detect(rows: Sequence[Row], command: str | None = None, items: Sequence[str] = ()) -> Detected:
    """The format of the first 100 records.

    command: what is to be done with them, a key of USABLE: formats that do not serve it are not thought of; None: all are.
    items:   what the user says of the columns, as `parse_map` has it; formats without such columns are not thought of either.
    Columns that stand in more than half of the records count: records without them are found when they are read.
    Columns named history, system or tools are read. Raises ToolError (usage) if no format fits, or several do.
    """
    rows, among = rows[:LOOKED_AT], USABLE[command] if command else FORMATS
    if not rows:
        raise ToolError("there is no record to tell the format by", hint=f"say it: --format {'|'.join(among)}", code=Exit.USAGE)
    counts = Counter(column for row in rows for column in row)
    found, refused = [], []
    for format in among:
        try:
            mapping = parse_map(items, format)
        except ToolError as error:
            refused.append(error)
            continue
        shapes = {column: _shape(rows, column, mapping) for column, count in counts.items() if 2 * count > len(rows)}
        if fit := _FINDERS[format](_Seen(mapping, shapes, command)):
            found.append(Detected(format, fit[0], "", _completed(mapping, fit[1])))
    if len(refused) == len(among):
        raise refused[0]
    if items:  # what --map says of roles fits two formats that differ only in how they spell them
        found = found[:1]
    if len(found) != 1:
        raise _undecided(rows, counts, [d.format for d in found], among, command)
    used = [c for c in found[0].mapping.columns.values() if c and 2 * counts[c] > len(rows)]
    fewest = min(counts[c] for c in used)
    share = "all" if fewest == len(rows) else fewest
    return replace(found[0], why=f"column{'s' * (len(used) > 1)} {', '.join(used)} in {share} of the first {len(rows)} records")


def _completed(mapping: Mapping, columns: dict[str, str]) -> Mapping:
    """With the columns that were found elsewhere than it says."""
    return replace(mapping, columns={**mapping.columns, **columns})


def _shape(rows: Sequence[Row], column: str, mapping: Mapping) -> str:
    """What a column holds: "text", "turns" (a message or a list of them), "texts" (two of them), "list" or "other"."""
    found = next((row[column] for row in rows if row.get(column) not in (None, "", [])), "")
    value = listed(found)
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, dict) and mapping.tags and mapping.tags["role_tag"] in first:
        return "turns"
    if isinstance(found, str):
        return "text"
    if isinstance(value, list):
        return "texts" if len(value) == 2 and all(isinstance(v, str) for v in value) else "list"
    return "other"


@dataclass(frozen=True, slots=True)
class _Seen:
    mapping: Mapping
    shapes: dict[str, str]
    command: str | None

    def at(self, name: str) -> str | None:
        """The shape of the column that holds this."""
        return self.shapes.get(self.mapping.columns[name] or "")

    def pairs(self, shape: str) -> bool:
        return self.at("chosen") == self.at("rejected") == shape

    def first(self, name: str, shape: str, *others: str) -> dict[str, str] | None:
        """Which column holds this: the mapping's, or, if the user named none, one of the others. None: no such column."""
        if self.at(name) == shape:
            return {}
        if self.mapping.columns[name] != COLUMNS[self.mapping.format][name]:
            return None
        return next(({name: column} for column in others if self.shapes.get(column) == shape), None)


_Found: TypeAlias = "tuple[bool, dict[str, str]] | None"  # pairwise or not, and columns that are not where the mapping says


def _alpaca(seen: _Seen) -> _Found:
    two = seen.at("response") == "texts"
    pairwise = two or seen.pairs("text")
    answered = seen.at("response") in ("text", "texts", "list")
    serves = {"sft": answered, "pairwise": pairwise, "prompts": True}.get(seen.command or "", answered or pairwise)
    prompt = seen.first("prompt", "text", *(() if seen.command == "sft" or not serves else ("prompt",)))
    return (pairwise, prompt) if serves and prompt is not None else None


def _sharegpt(seen: _Seen) -> _Found:
    column, pairwise = seen.first("messages", "turns", "messages", "conversation"), seen.pairs("turns")
    return None if column is None or (seen.command == "pairwise" and not pairwise) else (pairwise, column)


def _messages(seen: _Seen) -> _Found:
    column, pairwise = seen.first("messages", "turns", "conversations", "conversation"), seen.pairs("turns")
    pairwise = pairwise or (column is not None and seen.pairs("text"))
    if seen.command == "pairwise":
        return (True, column or {}) if pairwise else None
    prompted = seen.command in ("prompts", None) and seen.at("prompt") == "turns"
    if column is None and not (prompted or (pairwise and seen.command is None)):
        return None
    return pairwise, column or {}


def _steps(seen: _Seen) -> _Found:
    values = ("list", "texts", "text") if seen.command == "process-reward" else ("list", "texts")  # JSON text, for one
    return (False, {}) if seen.at("input") == "text" and seen.at("value") in values else None


def _text(seen: _Seen) -> _Found:
    return (False, {}) if seen.at("text") == "text" else None


_FINDERS: dict[str, Callable[[_Seen], _Found]] = {
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "messages": _messages,
    "steps": _steps,
    "text": _text,
}


def _undecided(rows: Sequence[Row], counts: Counter[str], fit: list[str], among: Sequence[str], command: str | None) -> ToolError:
    names = ", ".join(counts) or "none"
    if fit:
        hint = "say which: " + " or ".join(f"--format {f}" for f in fit)
        return ToolError(f"the columns {names} fit more than one format: {', '.join(fit)}", hint=hint, code=Exit.USAGE)
    needs = "; ".join(f"{name} {NEEDS[name]}" for name in among)
    message = f"what format is this? Its columns are {names}. Needed are: {needs}"
    return ToolError(message, hint=f"name the columns: {_map_line(rows, counts, among, command)}", code=Exit.USAGE)


def _map_line(rows: Sequence[Row], counts: Counter[str], among: Sequence[str], command: str | None) -> str:
    """Options that may fit; where nothing does, what they look like."""
    pair = " --map chosen=COLUMN --map rejected=COLUMN" if command == "pairwise" else ""
    for format in among:
        mapping = parse_map((), format)
        turns = next((c for c in counts if _shape(rows, c, mapping) == "turns"), None)
        if turns:
            return f"--format {format} --map messages={turns}{pair}"
    question = next((c for c in _QUESTIONS if c in counts), "COLUMN")
    if pair:
        return f"--format alpaca --map prompt={question}{pair}"
    answer = next((c for c in _ANSWERS if c in counts), "COLUMN")
    body = next((c for c in _TEXTS if c in counts), "COLUMN")
    if "alpaca" in among and not ("text" in among and body != "COLUMN"):
        return f"--format alpaca --map prompt={question} --map response={answer}"
    return f"--format {among[-1]} --map {next(iter(COLUMNS[among[-1]]))}={body}"
