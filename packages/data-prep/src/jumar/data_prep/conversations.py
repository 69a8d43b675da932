"""Records of the Alpaca, ShareGPT and OpenAI messages formats as conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jumar.data_prep.cells import Row, cell, kind, listed, messages_in, needed, refuse_media, text
from jumar.data_prep.faults import BadRecord
from jumar.data_prep.mapping import Mapping
from jumar.data_prep.tool_calls import calls_in, function, tool_calls, tools
from jumar.schema.chat import ChatRecord, Turn

REASONING = ("reasoning_content", "reasoning", "thinking")


def to_chat(row: Row, mapping: Mapping) -> ChatRecord:
    """The record as a conversation to learn from.

    User turns may be empty: people have such data. Alpaca and ShareGPT follow MindSpeed-LLM: turns of user (or tool) and of
    assistant alternate and one of the assistant ends them; an empty system text is none. In the messages format turns stand as
    they are, whoever speaks twice in a row.
    Raises BadRecord: "wrong columns", "no assistant turn", "turns do not alternate", "unknown role", "empty answer", "not text",
    "not Unicode", "history not pairs", "tool call is not JSON", "tools are not JSON", "system turn not first", "not one answer".
    """
    refuse_media(row)
    if mapping.format == "alpaca":
        turns = [*alpaca_prompt(row, mapping), Turn("assistant", alpaca_answer(row, mapping))]
    elif mapping.format == "sharegpt":
        turns = sharegpt_turns(row, mapping)
        if turns[-1].role != "assistant":
            reason = "turns do not alternate" if any(t.role == "assistant" for t in turns) else "no assistant turn"
            raise BadRecord(reason, f"the last of {len(turns)} turns is the {turns[-1].role}'s")
    else:
        turns = message_turns(row, mapping)
    if not any(turn.role == "assistant" for turn in turns):
        raise BadRecord("no assistant turn", f"roles: {', '.join(turn.role for turn in turns) or 'none'}")
    if turns[-1].role == "assistant":
        refuse_empty(turns[-1])
    return ChatRecord(tuple(turns), tools(row, mapping))


def refuse_empty(answer: Turn) -> None:
    """Raises BadRecord if an answer says nothing and calls nothing."""
    if not answer.tool_calls and not (answer.content or "").strip():
        raise BadRecord("empty answer")


def alpaca_prompt(row: Row, mapping: Mapping) -> list[Turn]:
    """System turn, history and the user's turn: instruction and input, a line each, as far as they are not empty."""
    turns = _system(row, mapping)
    history = listed(cell(row, mapping, "history"))
    if history:
        if not isinstance(history, list) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in history):
            raise BadRecord("history not pairs", "history must be a list of [question, answer]")
        for question, answer in history:
            turns += [
                Turn("user", text(question, "a question of history")),
                Turn("assistant", text(answer, "an answer of history")),
            ]
    prompt = needed(row, mapping, "prompt") if mapping.columns["prompt"] else needed(row, mapping, "query")
    query = cell(row, mapping, "query") if mapping.columns["prompt"] else None
    parts = [text(part, name) for part, name in ((prompt, "the prompt"), (query, "the query")) if part not in (None, "")]
    return [*turns, Turn("user", "\n".join(parts))]


def alpaca_answer(row: Row, mapping: Mapping) -> str:
    answer = needed(row, mapping, "response")
    if isinstance(answer, list):
        if len(answer) != 1:
            raise BadRecord("not one answer", f"{mapping.columns['response']} has {len(answer)}")
        answer = answer[0]
    if answer is None:
        raise BadRecord("empty answer")
    return text(answer, str(mapping.columns["response"]))


def _system(row: Row, mapping: Mapping) -> list[Turn]:
    system = cell(row, mapping, "system")
    return [Turn("system", text(system, "the system text"))] if system not in (None, "") else []


def _messages(row: Row, mapping: Mapping) -> list[Any]:
    messages = listed(needed(row, mapping, "messages"))
    if not isinstance(messages, list):
        raise BadRecord("wrong columns", f"{mapping.columns['messages']} is {kind(messages)}, not a list of messages")
    if not messages:
        raise BadRecord("no assistant turn", "there are no messages")
    return messages


def sharegpt_turns(row: Row, mapping: Mapping) -> list[Turn]:
    """A system turn if there is one, then by turns one of user or tool and one of assistant. Whose is the last is not checked."""
    turns = [sharegpt_turn(message, mapping) for message in _messages(row, mapping)]
    if turns[0].role == "system":
        head, turns = ([turns[0]] if turns[0].content else []), turns[1:]
    else:
        head = _system(row, mapping)
    for number, turn in enumerate(turns):
        if turn.role not in (("user", "tool"), ("assistant",))[number % 2]:
            expected = ("user or tool", "assistant")[number % 2]
            raise BadRecord("turns do not alternate", f"turn {number + 1} is the {turn.role}'s, not {expected}'s")
    if not turns:
        raise BadRecord("no assistant turn", "there is a system turn alone")
    return head + turns


def sharegpt_turn(message: Any, mapping: Mapping) -> Turn:
    """One {"from": ..., "value": ...}; a function_call's value becomes the assistant's tool calls."""
    role, content = _role(message, mapping), message.get(mapping.tags["content_tag"])
    content = text(content, f"the {role}'s turn")
    return Turn("assistant", None, tool_calls=calls_in(content)) if role == "call" else Turn(role, content)


def _role(message: Any, mapping: Mapping) -> str:
    if not isinstance(message, dict):
        raise BadRecord("wrong columns", f"a message is {kind(message)}, not an object")
    spelt = message.get(mapping.tags["role_tag"])
    role = mapping.roles.get(spelt) if isinstance(spelt, str) else None
    if role is None:
        raise BadRecord("unknown role", f"{mapping.tags['role_tag']} is {spelt!r}; known: {', '.join(mapping.roles)}")
    return role


def message_turns(row: Row, mapping: Mapping) -> list[Turn]:
    """The messages as they stand, after the system column's text if they do not begin with a system turn."""
    return with_system([message_turn(m, mapping) for m in _messages(row, mapping)], row, mapping)


def prompt_turns(prompt: Any, mapping: Mapping) -> list[Turn]:
    """A prompt column: messages, or what the user says."""
    messages = messages_in(prompt)
    return [Turn("user", text(prompt, "the prompt"))] if messages is None else [message_turn(m, mapping) for m in messages]


def with_system(turns: Sequence[Turn], row: Row, mapping: Mapping) -> list[Turn]:
    for number, turn in enumerate(turns[1:], 2):
        if turn.role == "system":
            raise BadRecord("system turn not first", f"it is turn {number}")
    return list(turns) if turns and turns[0].role == "system" else [*_system(row, mapping), *turns]


def message_turn(message: Any, mapping: Mapping) -> Turn:
    """One message of OpenAI's format; other keys go to `extra`, but for those that are null (Parquet has all keys)."""
    role = _role(message, mapping)
    role_tag, content_tag = mapping.tags["role_tag"], mapping.tags["content_tag"]
    content = _content(message.get(content_tag), role)
    if role == "call":
        return Turn("assistant", None, tool_calls=calls_in(content or ""))
    if len(message) == 2 and content is not None:  # nothing but these two, as in most data
        return Turn(role, content)
    reasoning: str | None = None
    calls: tuple[dict[str, Any], ...] = ()
    extra: dict[str, Any] = {}
    for key, value in message.items():
        if value is None or key in (role_tag, content_tag):
            continue
        if key == "tool_calls":
            calls = tool_calls(value)
        elif key == "function_call":
            calls = calls or ({"type": "function", "function": function(value)},)
        elif key in REASONING:
            reasoning = reasoning or text(value, key) or None
        else:
            extra[key] = value
    if content is None and not calls:
        raise BadRecord("empty answer" if role == "assistant" else "not text", f"the {role}'s content is null")
    return Turn(role, content, reasoning, calls, extra)


def _content(value: Any, role: str) -> str | None:
    if isinstance(value, list):
        parts = []
        for part in value:
            if not isinstance(part, dict) or part.get("type") != "text":
                raise BadRecord(
                    "not text", f"a part of the {role}'s turn is {part.get('type') if isinstance(part, dict) else kind(part)}"
                )
            parts.append(text(part["value"] if part.get("text") is None and "value" in part else part.get("text"), "a part"))
        return "".join(parts)
    return None if value is None else text(value, f"the {role}'s content")
