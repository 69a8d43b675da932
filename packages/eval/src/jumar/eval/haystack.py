"""Needles in a haystack: sentences that are hidden at some depth in long texts of the user's, and asked for."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jumar.eval.data import Doc, Found, documents
from jumar.eval.files import read_rows
from jumar.eval.requests import Measure
from jumar.eval.task import Haystack, Task
from jumar.eval.template import text_of
from jumar.schema.errors import ToolError

SENTENCE = re.compile(r".{1,400}?(?:[.!?][\"')\]]*\s+|[。！？]+[”’」』）]*\s*|\n\s*|\Z)|.{1,400}", re.DOTALL)
SPARE = 8
"""Tokens that may come of texts being put together."""


@dataclass(frozen=True, slots=True)
class Needle:
    """text: what is hidden; question: asks for it; keyword: what a right answer holds."""

    text: str
    question: str
    keyword: str


def hidden(task: Task, found: Found, measure: Measure, around: Callable[[Doc], str]) -> tuple[list[Doc], list[str]]:
    """(a document for each length and depth, with its `context`; what was left out). around: a document's whole prompt.

    Raises ToolError (3) where the texts are shorter than the least length, or name a needle's keyword themselves.
    """
    assert task.haystack is not None
    hay, known = task.haystack, _published(task, found)
    texts = [str(row["text"]).strip() for row in documents(task, found)[0]]
    pieces, ends = _pieces("\n\n".join(texts), measure, max(hay.lengths))
    docs, notes = list[Doc](), list[str]()
    if measure.context is None:
        notes.append(f"lengths are in {measure.unit}: an endpoint does not give its tokenizer")
    for length in hay.lengths:
        if measure.context is not None and length > measure.context:
            notes.append(f"length {length} is left out: the model's context is {measure.context}")
            continue
        if not ends or ends[-1] < length:
            notes.append(f"length {length} is left out: the texts have {ends[-1] if ends else 0} {measure.unit}")
            continue
        for depth in hay.depths:
            needles = _needles(hay, known, f"{length}/{depth}")
            docs.append(_doc(task, needles, length, depth, pieces, ends, measure, around))
    if not docs:
        raise ToolError(f"{task.task}: no length fits: {'; '.join(notes)}", hint=f"put longer texts below {found.folder}")
    return docs, notes


def _pieces(text: str, measure: Measure, most: int) -> tuple[list[str], list[int]]:
    """Sentences of a text's beginning, and how long it is behind each; no more of them than are needed."""
    pieces, ends = list[str](), list[int]()
    for match in SENTENCE.finditer(text):
        pieces.append(match[0])
        ends.append((ends[-1] if ends else 0) + measure.count(match[0]))
        if ends[-1] >= most:
            break
    return pieces, ends


def _doc(
    task: Task,
    needles: Sequence[Needle],
    length: int,
    depth: float,
    pieces: Sequence[str],
    ends: Sequence[int],
    measure: Measure,
    around: Callable[[Doc], str],
) -> Doc:
    depths = [depth + (100 - depth) * i / len(needles) for i in range(len(needles))]
    doc: Doc = {
        "length": length,
        "depth": depth,
        "unit": measure.unit,
        "needles": [needle.text for needle in needles],
        "depths": depths,
        "question": " ".join(needle.question for needle in needles),
        "keywords": [needle.keyword for needle in needles],
    }
    own = measure.count("".join(f" {needle.text} " for needle in needles))
    room = length - task.max_new_tokens - measure.count(around({**doc, "context": ""})) - own - SPARE
    count = sum(end <= room for end in ends)
    if count < 1:
        raise ToolError(f"{task.task}: a prompt of {length} {measure.unit} has no room for text", hint="ask for longer ones")
    hay = "".join(pieces[:count])
    if at := [needle.keyword for needle in needles if needle.keyword in hay]:
        raise ToolError(f"{task.task}: the texts hold what is to be found: {at[0]!r}", hint="take other texts, or other needles")
    places = [min(range(count + 1), key=lambda i: abs((ends[i - 1] if i else 0) - ends[count - 1] * d / 100)) for d in depths]
    return {**doc, "context": "".join(_with(pieces[:count], needles, places)).strip()}


def _with(pieces: Sequence[str], needles: Sequence[Needle], places: Sequence[int]) -> Iterator[str]:
    """The pieces of a text, and before the piece of its number each needle."""
    for number, piece in enumerate([*pieces, ""]):
        before = pieces[number - 1] if number else " "
        for needle in (n for n, place in zip(needles, places, strict=True) if place == number):
            gap = " " if needle.text.isascii() else ""
            yield needle.text + gap if before[-1].isspace() else gap + needle.text
        yield piece


def _needles(hay: Haystack, known: Sequence[Needle], seed: str) -> list[Needle]:
    """Drawn for one document; the same each time."""
    draw = random.Random(seed)
    if known:
        return draw.sample(known, hay.at_once)
    out = []
    for name in draw.sample(hay.names, hay.at_once):
        values = {"name": name, "code": str(draw.randrange(100_000, 1_000_000))}
        out.append(Needle(text_of(hay.needle)(values), text_of(hay.question)(values), values["code"]))
    return out


def _published(task: Task, found: Found) -> list[Needle]:
    """Those of NeedleBench's needles.jsonl, each with another keyword; none where the layout has no such file."""
    assert task.haystack is not None
    if found.layout.needles is None:
        return []
    path, out = found.folder / found.layout.needles, dict[str, Needle]()
    for number, row in enumerate(read_rows(path), 1):
        if row.get("language") == task.haystack.language:
            out.setdefault(*_row(row, f"{path}: row {number}"))
    if len(out) < task.haystack.at_once:
        what = f"{path}: {len(out)} needles in {task.haystack.language}, expected {task.haystack.at_once}"
        raise ToolError(what, hint="fetch the file again")
    return list(out.values())


def _row(row: dict[str, Any], where: str) -> tuple[str, Needle]:
    try:
        needle = Needle(str(row["needle"]).strip(), str(row["retrieval_question"]), str(row["arg2"]))
    except KeyError as fault:
        raise ToolError(f"{where}: no column {fault}", hint="needle, retrieval_question and arg2 are expected") from None
    return needle.keyword, needle
