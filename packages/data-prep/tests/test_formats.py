"""Records as people write them: what becomes of each, and what is refused, with which words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jumar.data_prep.faults import BadRecord
from jumar.data_prep.formats import Mapping, detect, parse_map, to_chat, to_pair, to_prompt, to_steps, to_text
from jumar.data_prep.mapping import TAGS, default_map
from jumar.schema.chat import ChatRecord, Turn
from jumar.schema.errors import Exit, ToolError

Row = dict[str, Any]
ALPACA, SHAREGPT, MESSAGES = default_map("alpaca"), default_map("sharegpt"), default_map("messages")
WEATHER = {"name": "weather", "description": "of a place", "parameters": {"type": "object", "properties": {}}}
CALL = {"name": "weather", "arguments": {"place": "成都"}}


def said(record: ChatRecord) -> list[tuple[str, str | None]]:
    return [(turn.role, turn.content) for turn in record.turns]


def refused(make: Any, row: Row, *arguments: Any) -> str:
    with pytest.raises(BadRecord) as error:
        make(row, *arguments)
    return error.value.reason


def talk(*turns: str, role: str = "from", content: str = "value") -> list[Row]:
    """Messages from "human: hello"."""
    return [{role: turn.split(":")[0], content: turn.split(":", 1)[1].strip()} for turn in turns]


def chat(*turns: str, **others: Any) -> Row:
    return {"messages": talk(*turns, role="role", content="content"), **others}


# --- alpaca


@pytest.mark.parametrize(
    "row, user",
    [
        ({"instruction": "q", "input": "more"}, "q\nmore"),
        ({"instruction": "q", "input": ""}, "q"),
        ({"instruction": "q", "input": None}, "q"),
        ({"instruction": "q"}, "q"),
        ({"instruction": "", "input": "more"}, "more"),
        ({"instruction": "", "input": ""}, ""),  # people have such data
    ],
)
def test_alpaca_joins_what_is_not_empty(row: Row, user: str) -> None:
    assert said(to_chat({**row, "output": "a"}, ALPACA)) == [("user", user), ("assistant", "a")]


def test_alpaca_with_system_history_and_tools_unless_they_are_mapped_to_nothing() -> None:
    row = {"instruction": "q2", "output": ["a2"], "history": [["q1", "a1"]], "system": "s", "tools": json.dumps([WEATHER])}
    record = to_chat(row, ALPACA)
    assert said(record) == [("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
    assert record.tools == ({"type": "function", "function": WEATHER},)
    assert said(to_chat({**row, "history": '[["q1", "a1"]]'}, ALPACA)) == said(record)  # as CSV has it
    without = to_chat(row, parse_map(["history=", "system=", "tools="], "alpaca"))
    assert (said(without), without.tools) == ([("user", "q2"), ("assistant", "a2")], ())


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"output": "a"}, "wrong columns"),
        ({"instruction": "q"}, "wrong columns"),
        ({"instruction": "q", "output": ""}, "empty answer"),
        ({"instruction": "q", "output": " \n"}, "empty answer"),
        ({"instruction": "q", "output": None}, "empty answer"),
        ({"instruction": "q", "output": ["a", "b"]}, "not one answer"),
        ({"instruction": "q", "output": {"a": 1}}, "not text"),
        ({"instruction": 1, "output": "a"}, "not text"),
        ({"instruction": "q", "output": "a\ud800"}, "not Unicode"),
        ({"instruction": "q", "output": "a", "history": "q1"}, "history not pairs"),
        ({"instruction": "q", "output": "a", "history": [["q1"]]}, "history not pairs"),
        ({"instruction": "q", "output": "a", "history": [["q1", None]]}, "not text"),
        ({"instruction": "<image>", "output": "a", "images": ["x.png"]}, "not text"),
    ],
)
def test_alpaca_refuses(row: Row, reason: str) -> None:
    assert refused(to_chat, row, default_map("alpaca", history="history")) == reason


# --- sharegpt


def test_sharegpt_turns_calls_and_tools() -> None:
    conversation = talk("system: s", "human: q", f"function_call: {json.dumps(CALL)}", "observation: sunny", "gpt: a")
    record = to_chat({"conversations": conversation, "tools": json.dumps([WEATHER])}, default_map("sharegpt", tools="tools"))
    assert said(record) == [("system", "s"), ("user", "q"), ("assistant", None), ("tool", "sunny"), ("assistant", "a")]
    assert record.turns[2].tool_calls == ({"type": "function", "function": CALL},)
    assert record.tools == ({"type": "function", "function": WEATHER},)


def test_sharegpt_takes_the_names_of_openai_too_unless_others_are_given() -> None:
    row = {"conversations": talk("user: q", "assistant: a")}
    assert said(to_chat(row, SHAREGPT)) == [("user", "q"), ("assistant", "a")]
    assert refused(to_chat, row, parse_map(["tags.user_tag=customer"], "sharegpt")) == "unknown role"


def test_a_system_turn_comes_before_the_system_column() -> None:
    mapping = default_map("sharegpt", system="system")
    assert said(to_chat({"conversations": talk("human: q", "gpt: a"), "system": "c"}, mapping))[0] == ("system", "c")
    row = {"conversations": talk("system: t", "human: q", "gpt: a"), "system": "c"}
    assert said(to_chat(row, mapping))[0] == ("system", "t")
    row = {"conversations": talk("system:", "human: q", "gpt: a")}
    assert said(to_chat(row, mapping))[0] == ("user", "q")


@pytest.mark.parametrize(
    "turns, reason",
    [
        (["human: q", "human: q", "gpt: a", "gpt: a"], "turns do not alternate"),
        (["gpt: a", "human: q"], "turns do not alternate"),
        (["human: q", "gpt: a", "human: q"], "turns do not alternate"),
        (["human: q", "gpt: a", "system: s", "gpt: a"], "turns do not alternate"),
        (["human: q"], "no assistant turn"),
        (["system: s"], "no assistant turn"),
        ([], "no assistant turn"),
        (["human: q", "bot: a"], "unknown role"),
        (["human: q", "gpt:"], "empty answer"),
        (["human: q", "function_call: weather()"], "tool call is not JSON"),
        (["human: q", "function_call: []"], "tool call is not JSON"),
        (["human: q", 'function_call: {"arguments": {}}'], "tool call is not JSON"),
    ],
)
def test_sharegpt_refuses(turns: list[str], reason: str) -> None:
    assert refused(to_chat, {"conversations": talk(*turns)}, SHAREGPT) == reason


@pytest.mark.parametrize("value", ["no list", None, 3, {"from": "human"}])
def test_conversations_must_be_a_list(value: Any) -> None:
    assert refused(to_chat, {"conversations": value}, SHAREGPT) == "wrong columns"


def test_an_empty_answer_before_the_last_is_kept_and_so_is_an_empty_question() -> None:
    assert len(to_chat({"conversations": talk("human:", "gpt:", "human:", "gpt: a")}, SHAREGPT).turns) == 4


# --- messages


def test_messages_with_everything() -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "成都"}'}}]
    messages = [
        {"role": "developer", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "q1 "}, {"type": "text", "text": "q2"}], "name": "Li"},
        {"role": "assistant", "content": None, "tool_calls": calls, "reasoning_content": "hm", "refusal": None},
        {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
        {"role": "assistant", "content": "a", "thinking": "so"},
    ]
    record = to_chat({"messages": messages, "tools": [{"type": "function", "function": WEATHER}]}, MESSAGES)
    assert record.turns == (
        Turn("system", "s"),
        Turn("user", "q1 q2", extra={"name": "Li"}),
        Turn("assistant", None, "hm", tuple(calls)),
        Turn("tool", "sunny", extra={"tool_call_id": "c1"}),
        Turn("assistant", "a", "so"),
    )
    assert record.tools == ({"type": "function", "function": WEATHER},)
    assert to_chat({"messages": json.dumps(messages)}, MESSAGES).turns == record.turns  # as CSV has it


def test_messages_of_the_older_function_calls() -> None:
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}},
        {"role": "function", "name": "weather", "content": "sunny"},
        {"role": "assistant", "content": "a"},
    ]
    turns = to_chat({"messages": messages}, MESSAGES).turns
    assert turns[1].tool_calls == ({"type": "function", "function": {"name": "weather", "arguments": "{}"}},)
    assert turns[2] == Turn("tool", "sunny", extra={"name": "weather"})


def test_messages_stand_as_they_are_whoever_speaks_twice() -> None:
    row = chat("user: q", "user: q", "assistant: a", "assistant: a", "user: q")
    assert [t.role for t in to_chat(row, MESSAGES).turns] == ["user", "user", "assistant", "assistant", "user"]


@pytest.mark.parametrize(
    "messages, reason",
    [
        ([{"role": "user", "content": "q"}], "no assistant turn"),
        ([], "no assistant turn"),
        ([{"role": "bot", "content": "q"}], "unknown role"),
        ([{"role": ["user"], "content": "q"}], "unknown role"),
        (["q"], "wrong columns"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "not text"),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "not text"),
        ([{"role": "user", "content": None}], "not text"),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": None}], "empty answer"),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "reasoning": "r"}], "empty answer"),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "tool_calls": [1]}], "tool call is not JSON"),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning": 1}], "not text"),
        ([{"role": "user", "content": "q"}, {"role": "system", "content": "s"}], "system turn not first"),
    ],
)
def test_messages_refuses(messages: Any, reason: str) -> None:
    assert refused(to_chat, {"messages": messages}, MESSAGES) == reason


def test_tools_that_are_no_json_are_refused() -> None:
    assert refused(to_chat, chat("user: q", "assistant: a", tools="[broken"), MESSAGES) == "tools are not JSON"
    assert to_chat(chat("user: q", "assistant: a", tools=""), MESSAGES).tools == ()


# --- pairs

GOOD, BAD = chat("user: q", "assistant: good")["messages"], chat("user: q", "assistant: bad")["messages"]


@pytest.mark.parametrize(
    "row, mapping",
    [
        ({"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}, ALPACA),
        ({"instruction": "q", "output": ["good", "bad"]}, ALPACA),
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, default_map("alpaca", prompt="prompt")),
        ({"conversations": talk("human: q"), "chosen": talk("gpt: good")[0], "rejected": talk("gpt: bad")[0]}, SHAREGPT),
        (chat("user: q", chosen=GOOD[1], rejected=BAD[1]), MESSAGES),
        (chat("user: q", chosen="good", rejected="bad"), MESSAGES),
        ({"chosen": GOOD, "rejected": BAD}, MESSAGES),
        ({"prompt": "q", "chosen": GOOD, "rejected": BAD}, MESSAGES),
        ({"prompt": GOOD[:1], "chosen": GOOD, "rejected": BAD}, MESSAGES),
        ({"prompt": GOOD[:1], "chosen": GOOD[1:], "rejected": BAD[1:]}, MESSAGES),
        ({"prompt": "q", "chosen": GOOD[1:], "rejected": BAD[1:]}, MESSAGES),
        ({"prompt": "q", "chosen": json.dumps(GOOD[1:]), "rejected": json.dumps(BAD[1:])}, MESSAGES),
    ],
)
def test_pairs_of_every_form(row: Row, mapping: Mapping) -> None:
    pair = to_pair(row, mapping)
    assert (said(pair.prompt), pair.chosen, pair.rejected) == (
        [("user", "q")],
        Turn("assistant", "good"),
        Turn("assistant", "bad"),
    )


@pytest.mark.parametrize(
    "row, mapping, reason",
    [
        ({"instruction": "q", "chosen": "same", "rejected": "same"}, ALPACA, "chosen equals rejected"),
        ({"instruction": "q", "chosen": "a"}, ALPACA, "wrong columns"),
        ({"instruction": "q", "chosen": "a", "rejected": ""}, ALPACA, "empty answer"),
        ({"instruction": "q", "output": ["a", "b", "c"]}, ALPACA, "wrong columns"),
        (
            {"conversations": talk("human: q", "gpt: a"), "chosen": talk("gpt: g")[0], "rejected": talk("gpt: b")[0]},
            SHAREGPT,
            "turns do not alternate",
        ),
        (
            {"conversations": talk("human: q"), "chosen": talk("human: g")[0], "rejected": talk("gpt: b")[0]},
            SHAREGPT,
            "no assistant turn",
        ),
        (
            {"chosen": chat("user: q", "assistant: g")["messages"], "rejected": chat("user: p", "assistant: b")["messages"]},
            MESSAGES,
            "prompts differ",
        ),
        (
            {"chosen": chat("assistant: g")["messages"], "rejected": chat("assistant: b")["messages"]},
            MESSAGES,
            "turns do not alternate",
        ),
        ({"chosen": [], "rejected": []}, MESSAGES, "no assistant turn"),
    ],
)
def test_pairs_refuse(row: Row, mapping: Mapping, reason: str) -> None:
    assert refused(to_pair, row, mapping) == reason


# --- steps, prompts, text


def test_steps_have_values_that_are_text_or_numbers() -> None:
    mapping = default_map("steps")
    assert to_steps({"input": "1+1 ки", "value": ["+", "-"]}, mapping).values == ["+", "-"]
    assert to_steps({"input": "1+1 ки", "value": "[1, 0.5]"}, mapping).values == ["1", "0.5"]
    assert refused(to_steps, {"input": "x", "value": [True]}, mapping) == "not text"
    assert refused(to_steps, {"input": "x", "value": "+"}, mapping) == "wrong columns"
    assert refused(to_steps, {"input": "x", "value": []}, mapping) == "empty"
    assert refused(to_steps, {"value": ["+"]}, mapping) == "wrong columns"


def test_prompts_keep_the_answer_aside() -> None:
    prompt = to_prompt({"instruction": "q", "output": "a", "level": 3, "tag": "x"}, ALPACA, ["level", "tag"])
    assert (said(prompt.record), prompt.answer, prompt.extra) == ([("user", "q")], "a", {"level": "3", "tag": "x"})
    assert to_prompt({"instruction": "q"}, ALPACA).answer is None
    prompt = to_prompt({"conversations": talk("human: q", "gpt: a")}, SHAREGPT)
    assert (said(prompt.record), prompt.answer) == ([("user", "q")], "a")
    assert to_prompt({"conversations": talk("human: q")}, SHAREGPT).answer is None
    for row in (chat("user: q"), {"prompt": chat("user: q")["messages"]}, {"prompt": "q"}):
        assert said(to_prompt(row, MESSAGES).record) == [("user", "q")]
    assert refused(to_prompt, {"instruction": "q"}, ALPACA, ["level"]) == "wrong columns"
    assert refused(to_prompt, chat("assistant: a"), MESSAGES) == "turns do not alternate"
    assert refused(to_prompt, chat("system: s"), MESSAGES) == "turns do not alternate"


def test_text_is_text() -> None:
    assert to_text({"text": " a\n"}, "text") == " a\n"
    for row, reason in (
        ({}, "wrong columns"),
        ({"text": 1}, "not text"),
        ({"text": "\u3000\n"}, "empty"),
        ({"text": "\udc80"}, "not Unicode"),
    ):
        assert refused(to_text, row, "text") == reason


# --- mappings


def test_maps_by_item() -> None:
    mapping = parse_map(["prompt=question", "query=", "response = answer"], "alpaca")
    assert said(to_chat({"question": "q", "input": "no", "answer": "a"}, mapping)) == [("user", "q"), ("assistant", "a")]
    mapping = parse_map(["tags.user_tag=customer", "messages=log"], "sharegpt")
    assert said(to_chat({"log": talk("customer: q", "gpt: a")}, mapping)) == [("user", "q"), ("assistant", "a")]
    assert mapping.tags == {**TAGS["sharegpt"], "user_tag": "customer"}


def test_an_object_of_mindspeed_resets_the_tags_that_it_does_not_list() -> None:
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    mapping = parse_map([json.dumps({"messages": "messages", "tags": tags})], "sharegpt")
    assert mapping.tags == {**dict.fromkeys(TAGS["sharegpt"]), **tags}
    assert said(to_chat(chat("user: q", "assistant: a"), mapping)) == [("user", "q"), ("assistant", "a")]
    assert refused(to_chat, chat("system: s", "user: q", "assistant: a"), mapping) == "unknown role"
    again = parse_map([json.dumps({"messages": "messages", "tags": tags}), "tags.system_tag=system"], "sharegpt")
    assert said(to_chat(chat("system: s", "user: q", "assistant: a"), again))[0] == ("system", "s")
    assert parse_map(['{"history": null, "prompt": "q"}'], "alpaca").columns["history"] is None


@pytest.mark.parametrize(
    "item, format, says",
    [
        ("promt=x", "alpaca", "did you mean prompt?"),
        ("tags.user=x", "sharegpt", "did you mean tags.user_tag?"),
        ("tags.user_tag=x", "alpaca", "known here: none"),
        ("zzz=x", "sharegpt", "known here: messages, system, tools, chosen, rejected"),
        ("prompt", "alpaca", "--map prompt=COLUMN"),
        ("{broken", "alpaca", "quote it"),
        ('{"prompt": 3}', "alpaca", None),
        ('{"tags": "x"}', "sharegpt", "tags.user_tag"),
        ('{"tags": {"user_tag": "x"}}', "sharegpt", "list them all"),
        ("a=b", "alpca", "did you mean alpaca?"),
    ],
)
def test_maps_refuse(item: str, format: str, says: str | None) -> None:
    with pytest.raises(ToolError) as error:
        parse_map([item], format)
    assert error.value.code == Exit.USAGE
    assert says is None or says in (error.value.hint or "")


# --- what format it is

A, G, M = (
    {"instruction": "q", "input": "", "output": "a"},
    {"conversations": talk("human: q", "gpt: a")},
    chat("user: q", "assistant: a"),
)
AP = {"instruction": "q", "chosen": "g", "rejected": "b"}
GP = {"conversations": talk("human: q"), "chosen": talk("gpt: g")[0], "rejected": talk("gpt: b")[0]}
MP = {
    "prompt": "q",
    "chosen": chat("user: q", "assistant: g")["messages"],
    "rejected": chat("user: q", "assistant: b")["messages"],
}


@pytest.mark.parametrize(
    "row, command, format, pairwise",
    [
        (A, None, "alpaca", False),
        (A, "sft", "alpaca", False),
        ({**A, "text": "rendered"}, "sft", "alpaca", False),
        (AP, None, "alpaca", True),
        (AP, "pairwise", "alpaca", True),
        ({"instruction": "q", "output": ["g", "b"]}, "pairwise", "alpaca", True),
        ({"prompt": "q", "chosen": "g", "rejected": "b"}, "pairwise", "alpaca", True),
        ({"instruction": "q"}, "prompts", "alpaca", False),
        (G, None, "sharegpt", False),
        (GP, "pairwise", "sharegpt", True),
        ({"messages": G["conversations"]}, "sft", "sharegpt", False),
        (M, None, "messages", False),
        ({"conversations": M["messages"]}, "sft", "messages", False),
        ({"messages": json.dumps(M["messages"])}, "sft", "messages", False),
        (MP, "pairwise", "messages", True),
        (MP, None, "messages", True),
        ({"prompt": M["messages"]}, "prompts", "messages", False),
        ({"input": "x", "value": ["+"]}, None, "steps", False),
        ({"input": "x", "value": '["+"]'}, "process-reward", "steps", False),
        ({"text": "x", "meta": {}}, None, "text", False),
    ],
)
def test_formats_are_told_by_their_columns(row: Row, command: str | None, format: str, pairwise: bool) -> None:
    found = detect([row] * 3, command)
    assert (found.format, found.pairwise) == (format, pairwise)
    make: Any = {"alpaca": to_chat, "sharegpt": to_chat, "messages": to_chat, "steps": to_steps}.get(format)
    make = to_pair if pairwise else to_prompt if command == "prompts" else make
    if make:
        make(row, found.mapping)


def test_why_names_the_columns_and_how_many_records_have_them() -> None:
    assert detect([A] * 150).why == "columns instruction, input, output in all of the first 100 records"
    assert (
        detect([A] * 60 + [{"instruction": "q"}] * 20).why == "columns instruction, input, output in 60 of the first 80 records"
    )
    assert detect([{"text": "x"}]).why == "column text in all of the first 1 records"


def test_columns_of_known_names_are_read_without_being_asked() -> None:
    found = detect([{**A, "history": [["q", "a"]], "system": "s"}])
    assert (found.mapping.columns["history"], found.mapping.columns["system"]) == ("history", "system")
    assert "history" in found.why


def test_what_the_user_says_of_columns_is_heard() -> None:
    row: Row = {"question": "q", "answer": "a"}
    found = detect([row], "sft", ["prompt=question", "response=answer"])
    assert said(to_chat(row, found.mapping)) == [("user", "q"), ("assistant", "a")]
    with pytest.raises(ToolError, match="has no column promt"):
        detect([row], "sft", ["promt=question"])
    row = {"log": talk("customer: q", "gpt: a")}
    assert detect([row], "sft", ["messages=log", "tags.user_tag=customer"]).format == "sharegpt"


@pytest.mark.parametrize(
    "row, command, hint",
    [
        ({"question": "q", "answer": "a"}, "sft", "--format alpaca --map prompt=question --map response=answer"),
        ({"dialog": talk("human: q", "gpt: a")}, "sft", "--format sharegpt --map messages=dialog"),
        ({"content": "x"}, None, "--format text --map text=content"),
        ({"content": "x"}, "pretrain", "--format text --map text=content"),
        ({"x": 1}, "process-reward", "--format steps --map input=COLUMN"),
        (A, "pairwise", "--format alpaca --map prompt=instruction --map chosen=COLUMN --map rejected=COLUMN"),
    ],
)
def test_an_unknown_format_is_refused_with_what_is_needed_and_what_to_type(row: Row, command: str | None, hint: str) -> None:
    with pytest.raises(ToolError) as error:
        detect([row], command)
    assert all(column in error.value.message for column in row)
    assert hint in (error.value.hint or "")
    assert error.value.code == Exit.USAGE


def test_what_fits_two_formats_is_asked_about() -> None:
    with pytest.raises(ToolError, match="more than one") as error:
        detect([{**A, "text": "rendered"}])
    assert "--format alpaca or --format text" in (error.value.hint or "")
    with pytest.raises(ToolError, match="no record"):
        detect([])
