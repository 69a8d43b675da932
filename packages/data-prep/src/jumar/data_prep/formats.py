"""Records of the other uses: text to go on with, prompts to answer, steps to judge; and all that others need to read records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from jumar.data_prep.cells import Row, listed, needed, refuse_media, text
from jumar.data_prep.conversations import (
    alpaca_answer,
    alpaca_prompt,
    message_turns,
    prompt_turns,
    sharegpt_turns,
    to_chat,
    with_system,
)
from jumar.data_prep.detect import Detected, detect
from jumar.data_prep.faults import BadRecord
from jumar.data_prep.mapping import Mapping, parse_map
from jumar.data_prep.pairs import Pair, to_pair
from jumar.data_prep.tool_calls import tools
from jumar.schema.chat import ChatRecord, Turn

__all__ = [
    "Detected",
    "Mapping",
    "Pair",
    "Prompt",
    "Steps",
    "detect",
    "parse_map",
    "to_chat",
    "to_pair",
    "to_prompt",
    "to_steps",
    "to_text",
]


@dataclass(frozen=True, slots=True)
class Steps:
    """A text whose steps are judged (process reward). values: one a step, in order: "+" and "-", or numbers."""

    text: str
    values: list[str]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is to answer. record: ends with a user's or tool's turn; answer: the reference, if there is one."""

    record: ChatRecord
    answer: str | None
    extra: dict[str, str] = field(default_factory=dict)


def to_text(row: Row, key: str) -> str:
    """The text of a record for pretraining. Raises BadRecord: "wrong columns", "not text", "not Unicode", "empty"."""
    if key not in row:
        raise BadRecord("wrong columns", f"no {key}; there are {', '.join(map(str, row)) or 'none'}")
    found = text(row[key], key)
    if not found or found.isspace():
        raise BadRecord("empty")
    return found


def to_steps(row: Row, mapping: Mapping) -> Steps:
    """Raises BadRecord: "wrong columns", "not text", "not Unicode", "empty"."""
    judged = text(needed(row, mapping, "input"), "the input")
    values = listed(needed(row, mapping, "value"))
    if not isinstance(values, list):
        raise BadRecord("wrong columns", f"{mapping.columns['value']} is not a list of values")
    if not judged.strip() or not values:
        raise BadRecord("empty", "no text" if values else "no values")
    return Steps(judged, [_value(value) for value in values])


def _value(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadRecord("not text", f"a value is {value!r}, neither text nor number")
    return text(str(value), "a value")


def to_prompt(row: Row, mapping: Mapping, extra: Sequence[str] = ()) -> Prompt:
    """The conversation up to what is to be answered; an answer that is there already becomes the reference.

    extra: columns to take along as text, what is not text as JSON.
    Raises BadRecord as `to_chat` does.
    """
    refuse_media(row)
    if mapping.format == "alpaca":
        turns: list[Turn] = alpaca_prompt(row, mapping)
        answer = alpaca_answer(row, mapping) if row.get(mapping.columns["response"] or "") is not None else None
    else:
        turns = sharegpt_turns(row, mapping) if mapping.format == "sharegpt" else _asked(row, mapping)
        answer = turns.pop().content if turns[-1].role == "assistant" else None
        if not turns or turns[-1].role not in ("user", "tool"):
            raise BadRecord("turns do not alternate", "no user's or tool's turn before the answer")
    return Prompt(ChatRecord(tuple(turns), tools(row, mapping)), answer, {name: _along(row, name) for name in extra})


def _asked(row: Row, mapping: Mapping) -> list[Turn]:
    """The messages column's turns, or the prompt column's: messages or the user's text."""
    prompt = mapping.columns["prompt"]
    if mapping.columns["messages"] in row or prompt is None or prompt not in row:
        return message_turns(row, mapping)
    turns = prompt_turns(row[prompt], mapping)
    if not turns:
        raise BadRecord("wrong columns", f"{prompt} has no messages")
    return with_system(turns, row, mapping)


def _along(row: Row, name: str) -> str:
    if name not in row:
        raise BadRecord("wrong columns", f"no {name}; there are {', '.join(map(str, row)) or 'none'}")
    value = row[name]
    if isinstance(value, str):
        return text(value, name)
    try:
        return orjson.dumps(value).decode()
    except TypeError as error:
        raise BadRecord("not text", f"{name}: {error}") from None
