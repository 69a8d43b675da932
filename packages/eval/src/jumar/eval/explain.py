"""Why the score of a document changed between two runs, in words: what was asked otherwise, or read otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jumar.eval.journal import Sample
from jumar.eval.task import PROTOCOLS

SHOWN = 40
"""Characters of a text that are shown."""
CLOSE = 0.05
"""A lead of the best choice that is told."""
SAME = "the same prompt"
ASKING = ("question", "query", "input", "goal", "sentence")


@dataclass(frozen=True, slots=True)
class Side:
    """How a run asked a task. shots: None where its results do not say."""

    protocol: str
    chat: bool
    shots: int | None


def side_of(results: Mapping[str, Any], task: str) -> Side:
    """Of results, ours or lm-eval's."""
    config = results.get("config", {})
    chat = config.get("apply_chat_template") or results.get("chat_template")
    return Side(config.get("protocol", PROTOCOLS[0]), bool(chat), results.get("n-shot", {}).get(task))


def why(first: Sample, second: Sample, sides: tuple[Side, Side]) -> str:
    """All that was asked and read otherwise; `SAME` where nothing was."""
    reasons = [*_prompt(first, second, sides), *_reading(first, second)]
    if first.get("truncated", False) != second.get("truncated", False):
        which = "first" if first.get("truncated") else "second"
        reasons.append(f"the prompt lost its beginning in the {which}")
    reasons = reasons or [SAME]
    return "; ".join([*reasons, *_close(first, "first"), *_close(second, "second")])


# --- what was asked


def _prompt(first: Sample, second: Sample, sides: tuple[Side, Side]) -> Iterator[str]:
    if first.get("prompt_hash") == second.get("prompt_hash"):
        return
    if sides[0].chat != sides[1].chat:
        yield "through the chat template in the " + ("first" if sides[0].chat else "second")
    prompt, other = (_arguments(sample)[0][0] if _arguments(sample) else None for sample in (first, second))
    if not isinstance(prompt, str) or not isinstance(other, str):
        yield "another prompt"
        return
    question = _question(first, second, prompt, other)
    if not question:
        yield f"another prompt: {_differing(prompt, other)}"
        return
    (before, after), (before_2, after_2) = _cut(prompt, question), _cut(other, question)
    if sides[0].shots != sides[1].shots and before != before_2:
        yield f"worked examples: {sides[0].shots} -> {sides[1].shots}"
    elif before != before_2:
        yield f"what stands before the question: {_differing(before, before_2)}"
    if after != after_2:
        yield f"what stands behind the question: {_differing(after, after_2)}"


def _question(first: Sample, second: Sample, prompt: str, other: str) -> str:
    """Of the documents' texts that stand in both prompts the one that asks: by its name, else the longest."""
    fields = [
        (key, value) for sample in (first, second) for key, value in sample.get("doc", {}).items() if isinstance(value, str)
    ]
    named = [value for key, value in fields if key in ASKING]
    every = [value for key, value in fields if key not in ("subject", "set")]
    for values in (named, every):
        texts = {value.strip() for value in values}
        if there := [text for text in texts if text and text in prompt and text in other]:
            return max(there, key=len)
    return ""


def _cut(prompt: str, question: str) -> tuple[str, str]:
    """What stands before and behind it; it is asked last."""
    before, _, after = prompt.rpartition(question)
    return before, after


def _differing(a: str, b: str) -> str:
    """Both texts from where they part, up to where they end alike."""
    start = _alike(a, b)
    a, b = a[start:], b[start:]
    end = _alike(a[::-1], b[::-1])
    return " -> ".join(_short(text[: len(text) - end]) for text in (a, b))


def _alike(a: str, b: str) -> int:
    """With how many characters both begin."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")


# --- what counted as the answer


def _reading(first: Sample, second: Sample) -> Iterator[str]:
    ways = [_way(sample) for sample in (first, second)]
    if all(ways) and ways[0] != ways[1]:
        yield f"the answer is {ways[0]} -> {ways[1]}"
    elif not _scored(first) and not _scored(second) and first.get("resps") == second.get("resps"):
        read = [_short(str(sample["filtered_resps"][0])) for sample in (first, second)]
        yield f"the same text is read otherwise: {read[0]} -> {read[1]}"


def _way(sample: Sample) -> str:
    """How an answer came about; empty where the samples do not say."""
    arguments = _arguments(sample)
    if not arguments or len(arguments[0]) < 2:
        return ""
    if _scored(sample):
        return f"the most probable of {', '.join(_short(str(argument[1])) for argument in arguments)}"
    options = arguments[0][1]
    most = options.get("max_gen_toks") if isinstance(options, Mapping) else None
    return f"read from a text of {most} tokens at most" if most else "read from a text"


def _close(sample: Sample, which: str) -> Iterator[str]:
    if not _scored(sample) or len(sample["filtered_resps"]) < 2:
        return
    best, next_best = sorted((float(value) for value, _ in sample["filtered_resps"]), reverse=True)[:2]
    if best == next_best:
        yield f"a tie in the {which}, where the first choice counts"
    elif best - next_best < CLOSE:
        yield f"close in the {which}: a lead of {best - next_best:.3g}"


def _scored(sample: Sample) -> bool:
    """Whether choices were scored, and no text was written."""
    read = sample.get("filtered_resps") or [""]
    return isinstance(read[0], list)


def _arguments(sample: Sample) -> list[list[Any]]:
    """Of each request."""
    return [list(arguments.values()) for arguments in sample.get("arguments", {}).values()]
