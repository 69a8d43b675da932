"""Records of preference data: a prompt and two answers."""

from __future__ import annotations

from dataclasses import dataclass

from jumar.data_prep.cells import Row, cell, listed, messages_in, needed, refuse_media, text
from jumar.data_prep.conversations import (
    alpaca_prompt,
    message_turn,
    message_turns,
    prompt_turns,
    refuse_empty,
    sharegpt_turn,
    sharegpt_turns,
    with_system,
)
from jumar.data_prep.faults import BadRecord
from jumar.data_prep.mapping import Mapping
from jumar.data_prep.tool_calls import tools
from jumar.schema.chat import ChatRecord, Turn


@dataclass(frozen=True, slots=True)
class Pair:
    """prompt: ends with the turn that is answered; chosen, rejected: an assistant's turn each, not the same."""

    prompt: ChatRecord
    chosen: Turn
    rejected: Turn


def to_pair(row: Row, mapping: Mapping) -> Pair:
    """The record as a pair.

    alpaca:   chosen and rejected are texts, or the response column is a list of the two.
    sharegpt: conversations, and chosen and rejected a message each.
    messages: chosen and rejected a message each, to the messages or the prompt; or whole conversations that differ in their last
              turn (https://huggingface.co/docs/trl/dataset_formats#preference), with a prompt column or without.
    Raises BadRecord as `to_chat` does; also "chosen equals rejected" and "prompts differ".
    """
    refuse_media(row)
    prompt, chosen, rejected = {"alpaca": _alpaca, "sharegpt": _sharegpt, "messages": _messages}[mapping.format](row, mapping)
    for answer in (chosen, rejected):
        if answer.role != "assistant":
            raise BadRecord("no assistant turn", f"an answer is the {answer.role}'s")
        refuse_empty(answer)
    if not prompt or prompt[-1].role not in ("user", "tool"):
        raise BadRecord("turns do not alternate", f"what the answers follow is {prompt[-1].role if prompt else 'nothing'}")
    if chosen == rejected:
        raise BadRecord("chosen equals rejected")
    return Pair(ChatRecord(tuple(prompt), tools(row, mapping)), chosen, rejected)


def _alpaca(row: Row, mapping: Mapping) -> tuple[list[Turn], Turn, Turn]:
    both = cell(row, mapping, "response")
    if isinstance(both, list) and mapping.columns["chosen"] not in row:
        if len(both) != 2:
            raise BadRecord("wrong columns", f"{mapping.columns['response']} has {len(both)} answers, not two")
        chosen, rejected = both
    else:
        chosen, rejected = needed(row, mapping, "chosen"), needed(row, mapping, "rejected")
    return alpaca_prompt(row, mapping), Turn("assistant", text(chosen, "chosen")), Turn("assistant", text(rejected, "rejected"))


def _sharegpt(row: Row, mapping: Mapping) -> tuple[list[Turn], Turn, Turn]:
    chosen, rejected = (sharegpt_turn(listed(needed(row, mapping, name)), mapping) for name in ("chosen", "rejected"))
    return sharegpt_turns(row, mapping), chosen, rejected


def _messages(row: Row, mapping: Mapping) -> tuple[list[Turn], Turn, Turn]:
    chosen, rejected = (_answer(row, mapping, name) for name in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise BadRecord("prompts differ", f"of {len(chosen)} and {len(rejected)} turns, all but the last must be the same")
    shared = chosen[:-1]
    given = _given(row, mapping)
    repeated = shared[: len(given)] == given or (any(t.role == "user" for t in shared) and len(given) == 1)
    prompt = shared if repeated else given + shared
    return with_system(prompt, row, mapping), chosen[-1], rejected[-1]


def _given(row: Row, mapping: Mapping) -> list[Turn]:
    """The turns that a column beside the answers has: messages, or a prompt that is text or messages."""
    if cell(row, mapping, "messages") is not None:
        return message_turns(row, mapping)
    prompt = cell(row, mapping, "prompt")
    return [] if prompt is None else prompt_turns(prompt, mapping)


def _answer(row: Row, mapping: Mapping, name: str) -> list[Turn]:
    value = needed(row, mapping, name)
    messages = messages_in(value)
    if messages is None:
        return [Turn("assistant", text(value, name))]
    turns = [message_turn(m, mapping) for m in messages]
    if not turns:
        raise BadRecord("no assistant turn", f"{name} has no messages")
    return turns
