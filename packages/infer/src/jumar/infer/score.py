"""jumar-infer score: log-probabilities of texts, or of completions after prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jumar.infer.engine import Engine
from jumar.infer.rows import Row, read_rows
from jumar.infer.sampling import Sampling
from jumar.infer.scheduler import Request
from jumar.schema.errors import ToolError

HINT = 'each line is {"text": "..."} or {"prompt": "...", "completion": "..."}'


def score_rows(engine: Engine, source: str, *, each: bool = False) -> Iterator[dict[str, Any]]:
    """One object for each row, in order: sum of log-probabilities, tokens, perplexity; each: of every token too.

    Of a text every token counts but the first, which nothing comes before. Nothing is computed if a row is at fault.
    """
    engine.needs_tokenizer()
    rows = read_rows(source, '{"text": "..."}')
    asked = [(row, _ask(engine, row)) for row in rows]
    for row, request in asked:
        engine.run([request])
        yield {**({"id": row.values["id"]} if "id" in row.values else {}), **result(engine, request, each=each)}


def _ask(engine: Engine, row: Row) -> Request:
    text, prompt, completion = (row.values.get(key) for key in ("text", "prompt", "completion"))
    whole = isinstance(text, str) and prompt is None and completion is None
    if not whole and not (text is None and isinstance(prompt, str) and isinstance(completion, str)):
        raise row.fault("expected text, or prompt and completion", HINT)
    try:
        if whole:
            return engine.add(engine.encode(str(text)), Sampling(max_new_tokens=0), scored=0)
        context = engine.encode(str(prompt))
        ids = engine.encode(str(prompt) + str(completion))
        if ids[: len(context)] != context:  # a token stretches over the border: the prompt's tokens are kept, as lm-eval does
            ids = context + engine.encode(str(completion), special=False)
        return engine.add(ids, Sampling(max_new_tokens=0), scored=len(context))
    except ToolError as fault:
        raise row.fault(fault.message, fault.hint or HINT) from None


def result(engine: Engine, request: Request, *, each: bool = False) -> dict[str, Any]:
    """Of one request: `greedy` says whether every token was the most probable one."""
    total = math.fsum(entry.logprob for entry in request.scores)
    count = len(request.scores)
    found: dict[str, Any] = {
        "logprob": round(total, 6),
        "tokens": count,
        "perplexity": round(math.exp(-total / count), 6) if count else None,
        "greedy": all(entry.top[0][0] == entry.token for entry in request.scores),
    }
    if each:
        from jumar.infer.generate import log_prob_object

        found["logprobs"] = [log_prob_object(engine, entry) for entry in request.scores]
    return found
