"""NeedleBench's own documents: texts in an order that is drawn, cut to a number of tokens, and a needle among the tokens.

The rules are OpenCompass's, as MindSpeed-LLM has them (eval_impl/needlebench_single.py, commit c77308a): the same draws, the
same cuts, which may stand within a word.
"""

from __future__ import annotations

import base64
import binascii
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jumar.eval.data import Doc, Found
from jumar.eval.files import read_rows
from jumar.eval.requests import Measure
from jumar.eval.task import Span, Task
from jumar.schema.errors import Exit, ToolError

if TYPE_CHECKING:
    import tiktoken

WORDS = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
"""What the encoding cl100k_base cuts texts into first (tiktoken's openai_public.py)."""
COLUMNS = ("needle", "retrieval_question", "arg2")


def made(task: Task, found: Found, measure: Measure) -> tuple[Iterator[Doc], int, list[str]]:
    """(documents by length, depth and draw; how many; what there is to say). They are made as they are asked for.

    Raises ToolError: 3 for files that are missing or do not fit, and a model that is too short for every set; 4 without tiktoken.
    """
    assert task.retrieval is not None
    assert found.subject is not None
    span = _set_for(task, measure)
    for subject in task.retrieval.languages:
        if not (path := found.folder / f"{subject}.jsonl").is_file():
            raise ToolError(f"{task.task}: {path} is missing", hint=f"published at {task.source}")
    language = task.retrieval.languages[found.subject]
    spare = span.spare[list(task.retrieval.languages).index(found.subject)]
    encoding = open_encoding(found.folder / (found.layout.tokens or ""))
    needles = _needles(found.folder / (found.layout.needles or ""), language)
    texts = _texts(found.test[0])
    docs = _documents(span, task.retrieval.repeats, texts, needles, encoding, spare)
    depths, facts = depths_of(span), {"subject": found.subject, "language": language, "unit": f"tokens of {encoding.name}"}
    note = f"the set {span.name}: lengths to {span.lengths[-1]}, {len(depths)} depths, {task.retrieval.repeats} documents of each"
    return ({**facts, **doc} for doc in docs), len(span.lengths) * len(depths) * task.retrieval.repeats, [note]


def _set_for(task: Task, measure: Measure) -> Span:
    """The one that is asked for, or the longest one that the model's context holds."""
    assert task.retrieval is not None
    sets = task.retrieval.sets
    if len(sets) == 1:
        return sets[0]
    names = ", ".join(f"{task.task}_{span.name}" for span in sets)
    if measure.context is None:
        what = f"{task.task}: an endpoint does not say how long the model's context is"
        raise ToolError(what, hint=f"choose among {names}", code=Exit.USAGE)
    held = [span for span in sets if span.context <= measure.context]
    if not held:
        least = min(span.context for span in sets)
        raise ToolError(f"{task.task}: the model's context is {measure.context}, and {least} is the least", hint=f"or {names}")
    return max(held, key=lambda span: span.context)


def depths_of(span: Span) -> Sequence[float]:
    """Percent of a text that stands before the needle."""
    if not span.evenly:
        return span.depths
    step = 100 / max(span.evenly - 1, 1)
    return [step * i for i in range(span.evenly)]


def _documents(
    span: Span, repeats: int, texts: Sequence[str], needles: Sequence[Doc], encoding: tiktoken.Encoding, spare: int
) -> Iterator[Doc]:
    known: dict[int, list[int]] = {}

    def tokens(number: int) -> list[int]:
        if number not in known:
            known[number] = encoding.encode_ordinary(texts[number])
        return known[number]

    draws = list(_draws(len(texts), repeats, needles))
    for length in span.lengths:
        for depth in depths_of(span):
            for order, needle in draws:
                own = encoding.encode_ordinary(needle["needle"])
                hay = _first(order, max(length - spare - len(own), 0), tokens)
                place = int(len(hay) * (depth / 100))
                context = encoding.decode([*hay[:place], *own, *hay[place:]])
                yield {"length": length, "depth": depth, **needle, "context": context}


def _draws(texts: int, repeats: int, needles: Sequence[Doc]) -> Iterator[tuple[list[int], Doc]]:
    """(numbers of texts, a needle) of each document of one length and depth. An order is drawn of the one before."""
    order = list(range(texts))
    for seed in range(repeats):
        random.Random(seed).shuffle(order)
        yield list(order), random.Random(seed).choice(needles)


def _first(order: Sequence[int], most: int, tokens: Callable[[int], list[int]]) -> list[int]:
    """So many tokens of the texts, or all."""
    found: list[int] = []
    for number in order:
        found += tokens(number)
        if len(found) >= most:
            break
    return found[:most]


# --- files


def _texts(path: Path) -> list[str]:
    rows = read_rows(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("text"), str):
            raise ToolError(f"{path}: row {number}: no text", hint="is the file in the published layout?")
    return [row["text"] for row in rows]


def _needles(path: Path, language: str) -> list[Doc]:
    """Those of a language: what is hidden, what asks for it, what a right answer holds."""
    if not path.is_file():
        raise ToolError(f"{path} is missing", hint="it is published with the texts")
    out = [_needle(row, f"{path}: row {n}") for n, row in enumerate(read_rows(path), 1) if row.get("language") == language]
    if not out:
        raise ToolError(f"{path}: no needles in {language}", hint="fetch the file again")
    return out


def _needle(row: dict[str, Any], where: str) -> Doc:
    if missing := [name for name in COLUMNS if not isinstance(row.get(name), str) or not row[name].strip()]:
        raise ToolError(f"{where}: no text {missing[0]!r}", hint=f"{', '.join(COLUMNS)} are expected")
    return {"needle": f"\n{row['needle']}\n", "question": row["retrieval_question"], "keyword": row["arg2"]}


def open_encoding(path: Path) -> tiktoken.Encoding:
    """The encoding of a file of tokens and their ranks, cut as cl100k_base is. Nothing is fetched, and no cache is read."""
    try:
        import tiktoken
    except ImportError:
        what, hint = f"{path}: its tokens need tiktoken, which is not installed", 'pip install "jumar-eval[needlebench]"'
        raise ToolError(what, hint=hint, code=Exit.ENVIRONMENT) from None
    if not path.is_file():
        where = f"https://openaipublic.blob.core.windows.net/encodings/{path.name}"
        raise ToolError(f"{path} is missing: the lengths of documents are in its tokens", hint=f"published at {where}")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ToolError(f"{path}:{number}: no token and its rank: {line[:40]!r}", hint="fetch the file again") from None
    if lacking := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise ToolError(f"{path}: the byte {lacking[0]} is no token in it", hint="fetch the file again")
    return tiktoken.Encoding(path.stem, pat_str=WORDS, mergeable_ranks=ranks, special_tokens={})
