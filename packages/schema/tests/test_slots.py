"""Slot templates: reading templates.json, rendering, tools, reasoning, and every fault with its message."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jumar.schema.chat import ChatRecord, Turn
from jumar.schema.errors import ToolError
from jumar.schema.slots import (
    MISSING,
    SlotTemplate,
    Token,
    load_templates,
    named_template,
    template_names,
)
from slot_making import (
    BOS,
    EOS,
    FILE,
    KNOWN,
    NOW,
    WEATHER,
    call,
    calling,
    literal,
    read,
    records,
    talk,
    text,
    texts,
    wrapped,
    write,
)


@pytest.fixture(scope="session")
def mine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SlotTemplate]:
    return load_templates(write(tmp_path_factory.mktemp("templates"), FILE))


@settings(max_examples=150, deadline=None)
@given(record=records(), which=st.integers(0, len(FILE) - 1))
def test_pairs_follow_the_rules_of_mindspeed(mine: dict[str, SlotTemplate], record: ChatRecord, which: int) -> None:
    entry = FILE[which]
    found = [list(side) for pair in mine[entry["name"]].pairs(record) for side in pair]
    assert found == literal(entry, record)
    assert mine[entry["name"]].prompt(record) == [piece for side in found[:-1] for piece in side]


def test_fields_of_a_file(mine: dict[str, SlotTemplate]) -> None:
    assert mine["bare"] == SlotTemplate("bare")
    assert [getattr(mine["rounds"], flag) for flag in ("efficient_eos", "force_system", "replace_eos")] == [True, True, False]
    assert mine["rounds"].assistant == ("{{content}}",)
    assert mine["rounds"].observation == mine["rounds"].user
    assert mine["tokens"].system == (BOS, Token("<|system|>"), "\n", "{{content}}")
    assert mine["tokens"].default_system == "You are here."
    assert mine["chat"].stop_words == ("<|im_end|>",)
    assert mine["chat"].replace_eos
    assert [mine[name].system_in_user for name in ("llama2_mine", "chat")] == [True, False]
    assert mine["followed"].separator == ()


def test_a_field_that_is_null_is_not_there(tmp_path: Path) -> None:
    assert read(tmp_path, format_user=None, format_tools=None, stop_words=None, template_class=None) == SlotTemplate("mine")


def test_pieces(mine: dict[str, SlotTemplate]) -> None:
    record = talk("Hi", "Yes", "", "No")
    assert mine["tokens"].pairs(record) == [
        (
            [BOS, Token("<|system|>"), "\n", "You are here.", Token("<|user|>"), "\n", "Hi", Token("<|assistant|>")],
            ["\n", "Yes"],
        ),
        ([Token("<|user|>"), "\n", Token("<|assistant|>")], ["\n", "No"]),
    ]
    assert mine["bare"].pairs(record) == [(["Hi"], ["Yes", EOS]), ([], ["No", EOS])]


def test_what_is_put_in_is_not_searched_again(mine: dict[str, SlotTemplate]) -> None:
    record = talk("{{idx}} {{content}} {x} \\1", "{{content}}", "2", "{{round}}", system="{{content}}")
    assert texts(mine["rounds"], record) == [
        ("<[gMASK]><sop>{{content}}[Round 0]\n\n问：{{idx}} {{content}} {x} \\1\n\n答：", "{{content}}"),
        ("\n\n[Round 1]\n\n问：2\n\n答：", "{{round}}"),
    ]


def test_rounds_can_be_counted_from_one(tmp_path: Path) -> None:
    template = read(tmp_path, format_user={"slots": ["{{round}}/{{idx}}:{{content}}"]})
    assert [asked for asked, _ in texts(template, talk("a", "b", "c", "d"))] == ["1/0:a", "2/1:c"]


def test_system_text(mine: dict[str, SlotTemplate]) -> None:
    assert texts(mine["bare"], talk("a", "b")) == [("a", "b<eos_token>")]
    assert texts(mine["bare"], talk("a", "b", system="S")) == [("Sa", "b<eos_token>")]
    default = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert texts(mine["chat"], talk("a", "b"))[0][0].startswith(default)
    assert texts(mine["chat"], talk("a", "b", system=""))[0][0].startswith(default)
    assert texts(mine["chat"], talk("a", "b", system="S"))[0][0].startswith("<|im_start|>system\nS<|im_end|>\n")
    assert texts(mine["llama2_mine"], talk("a", "b", "c", "d", system="S")) == [
        ("<bos_token>[INST] <<SYS>>\nS\n<</SYS>>\n\na [/INST]", "b<eos_token>"),
        ("<bos_token>[INST] c [/INST]", "d<eos_token>"),
    ]


def test_prompt_ends_where_the_answer_begins(mine: dict[str, SlotTemplate]) -> None:
    template = mine["bare"]
    assert text(template.prompt(talk("a", "b", "c"))) == "ab<eos_token>c"
    assert template.prompt(talk("a", "b", "c", "d")) == template.prompt(talk("a", "b", "c"))


# Tools


def test_default_tools(mine: dict[str, SlotTemplate]) -> None:
    """Byte for byte what MindSpeed-LLM's default_tool_formatter gives."""
    expected = (
        "You have access to the following tools:\n"
        "> Tool Name: weather\nTool Description: Tells the 天气.\nTool Args:\n"
        "  - city (string, required): Where.\n"
        "  - unit (string): , should be one of [C, F, 1]\n"
        "  - days (array): , where each item should be integer\n\n"
        "> Tool Name: now\nTool Description: \nTool Args:\n\n"
        "Use the following format if using a tool:\n```\nAction: tool name (one of [weather, now]).\n"
        "Action Input: the input to the tool, in a JSON format representing the kwargs "
        '(e.g. ```{"input": "hello world", "num_beams": 5}```).\n```\n'
    )
    record = replace(talk("a", "b", system="S."), tools=(WEATHER, wrapped(NOW)))
    assert texts(mine["bare"], record) == [("S." + expected + "a", "b<eos_token>")]
    assert texts(mine["bare"], replace(talk("a", "b"), tools=(WEATHER, NOW)))[0][0] == expected + "a"


XML = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    '{"type": "function", "function": {"name": "now"}}\n{"type": "function", "function": {"name": "天"}}'
    "\n</tools>\n\nFor each function call, "
)
JSON_CALL = (
    "return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
XML_CALL = (
    "output the function name and arguments within the following XML format:\n<tool_call>{function-name}\n"
    "<arg_key>{arg-key-1}</arg_key>\n<arg_value>{arg-value-1}</arg_value>\n"
    "<arg_key>{arg-key-2}</arg_key>\n<arg_value>{arg-value-2}</arg_value>\n...\n</tool_call>\n"
)
GLM4 = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱 AI 公司训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
    '\n\n## now\n\n{\n    "name": "now"\n}\n在调用上述函数时，请使用 Json 格式表示调用的参数。'
    '\n\n## 天\n\n{\n    "name": "天"\n}\n在调用上述函数时，请使用 Json 格式表示调用的参数。'
)


@pytest.mark.parametrize(
    "tool_format,with_system,alone",
    [
        ("qwen", "S\n\n" + XML + JSON_CALL, XML + JSON_CALL),
        ("qwen3", "S\n\n" + XML + JSON_CALL, XML + JSON_CALL),
        ("ling", "S" + XML + JSON_CALL + "\ndetailed thinking off", XML + JSON_CALL + "\ndetailed thinking off"),
        ("glm4_moe", "S\n\n" + XML + XML_CALL, XML + XML_CALL),
        ("glm4", "S" + GLM4, GLM4),
    ],
)
def test_other_formats_of_tools(tmp_path: Path, tool_format: str, with_system: str, alone: str) -> None:
    template = read(tmp_path, format_tools={"tool_format": tool_format}, format_system={"slots": ["[{{content}}]"]})
    tools = (NOW, wrapped({"name": "天"}))
    assert texts(template, replace(talk("a", "b", system="S"), tools=tools))[0][0] == f"[{with_system}]a"
    assert texts(template, replace(talk("a", "b"), tools=tools))[0][0] == f"[{alone}]a"


def test_calls_by_name_and_arguments(mine: dict[str, SlotTemplate]) -> None:
    one = 'Action: weather\nAction Input: {"city": "北京"}'
    assert texts(mine["bare"], calling(call())) == [("?", one + "<eos_token>")]
    assert texts(mine["bare"], calling(call(arguments='{"city":"北京"}'))) == [("?", one + "<eos_token>")]
    both = calling(call(), call("now", {}))
    assert mine["bare"].pairs(both)[0][1] == [one + "\nAction: now\nAction Input: {}", EOS]
    assert texts(mine["tokens"], calling(call()))[0][1] == 'weather\n{"city": "北京"}'
    flat = calling({"name": "now", "arguments": {}})
    assert texts(mine["tokens"], flat)[0][1] == "now\n{}"


@pytest.mark.parametrize(
    "tool_format,expected",
    [
        ("default", 'Action: weather\nAction Input: {"city": "北京"}\nAction: now\nAction Input: {"n": [1, null]}'),
        (
            "qwen",
            '<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "now", "arguments": {"n": [1, null]}}\n</tool_call>',
        ),
        (
            "glm4_moe",
            "\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>北京</arg_value>\n</tool_call>"
            "\n<tool_call>now\n<arg_key>n</arg_key>\n<arg_value>[1, null]</arg_value>\n</tool_call>",
        ),
    ],
)
def test_calls_as_a_whole(tmp_path: Path, tool_format: str, expected: str) -> None:
    template = read(tmp_path, format_function={"slots": ["{{content}}|"], "tool_format": tool_format})
    assert texts(template, calling(call(), call("now", {"n": [1, None]}))) == [("?", expected + "|")]


def test_text_before_calls(tmp_path: Path, mine: dict[str, SlotTemplate]) -> None:
    template = read(tmp_path, format_function={"slots": ["{{content}}"], "tool_format": "qwen"})
    assert texts(template, calling(call("now", {}), content="Look:"))[0][1].startswith("Look:\n<tool_call>\n{")
    with pytest.raises(ValueError, match=r"^template 'bare' has no form for a turn with both text and tool calls$"):
        mine["bare"].pairs(calling(call(), content="Look:"))


def test_tool_turns_in_a_row(tmp_path: Path, mine: dict[str, SlotTemplate]) -> None:
    results = (Turn("tool", "1"), Turn("tool", "2"), Turn("assistant", "3"))
    record = ChatRecord((*calling(call(), call()).turns, *results))
    template = read(tmp_path, format_observation={"slots": ["<tool_response>\n{{content}}\n</tool_response>"]})
    expected = "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
    assert texts(template, record)[1] == (expected, "3<eos_token>")
    with pytest.raises(ValueError, match=r"^turn 4 is a tool turn after a tool turn: template 'chat' cannot tell the two apart$"):
        mine["chat"].pairs(record)


@pytest.mark.parametrize(
    "bad,message",
    [
        (call(arguments="{"), "the arguments of the call of 'weather' are no valid JSON: "),
        (call(arguments="[1]"), r"the arguments of the call of 'weather' are no JSON object: \[1\]$"),
        ({"type": "function"}, "a tool call has no name: {'type': 'function'}$"),
    ],
)
def test_faulty_calls(mine: dict[str, SlotTemplate], bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        mine["bare"].pairs(calling(bad))


@pytest.mark.parametrize(
    "bad,message",
    [
        ({"description": "x"}, "a tool has no name: {'description': 'x'}"),
        (wrapped({}), "a tool has no name: "),
        ({"name": "f", "parameters": {"properties": ["x"]}}, "the parameters of the tool 'f' are no JSON schema: "),
        ({"name": "f", "parameters": "x"}, "the parameters of the tool 'f' are no JSON schema: 'x'"),
        (
            {"name": "f", "parameters": {"properties": {"a": {"items": [1]}}}},
            "the parameters of the tool 'f' are no JSON schema: ",
        ),
    ],
)
def test_faulty_tools(mine: dict[str, SlotTemplate], bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        mine["bare"].pairs(replace(talk("a", "b"), tools=(bad,)))


def test_several_calls_that_cannot_be_told_apart(tmp_path: Path) -> None:
    split = read(tmp_path, format_function={"slots": ["{{name}}", "{{arguments}}"]})
    glm4 = read(tmp_path, format_function={"slots": ["{{name}}\n{{arguments}}"], "tool_format": "glm4"})
    for template in (split, glm4):
        assert texts(template, calling(call("now", {})))[0][1] in ("now{}", "now\n{}")
        with pytest.raises(ValueError, match=r"^template 'mine' has no form for 2 tool calls in one turn$"):
            template.pairs(calling(call(), call()))


# Reasoning


def thinking(*texts_: tuple[str, str | None]) -> ChatRecord:
    """(answer, reasoning) of every exchange."""
    turns = [turn for answer, why in texts_ for turn in (Turn("user", "?"), Turn("assistant", answer, reasoning=why))]
    return ChatRecord(tuple(turns))


def test_reasoning_needs_a_place(tmp_path: Path, mine: dict[str, SlotTemplate]) -> None:
    with pytest.raises(ValueError, match=r"^template 'bare' has no place for reasoning$"):
        mine["bare"].pairs(thinking(("4", "2+2")))
    with pytest.raises(
        ToolError, match=r"^template 'bare' has no thought words, so thinking=True would have no effect\nhint: leave"
    ):
        mine["bare"].pairs(thinking(("4", None)), thinking=True)
    template = read(tmp_path, thought_words=["<t>", "</t>"])
    assert template.pairs(thinking(("4", "2+2"), ("5", None))) == [(["?"], ["<t>2+2</t>", "4", EOS]), (["?"], ["5", EOS])]


def test_reasoning_template_gives_every_answer_a_thought(tmp_path: Path) -> None:
    """As MindSpeed-LLM's ReasoningTemplate: the empty thought is learned with thinking=True, and part of the prompt else."""
    template = read(tmp_path, template_class="ReasoningTemplate", format_assistant={"slots": ["{{content}}"]})
    empty = "<think>\n\n</think>\n\n"
    record = thinking(("1", None), ("2", "why"), ("<think>\nwhy\n</think>\n\n3", None), ("4", ""))
    assert texts(template, record) == [
        ("?" + empty, "1"),
        ("?", "<think>\nwhy\n</think>\n\n2"),
        ("?", "<think>\nwhy\n</think>\n\n3"),
        ("?", empty + "4"),
    ]
    assert texts(template, record, thinking=True)[0] == ("?", empty + "1")
    assert texts(template, record, thinking=True)[1:] == texts(template, record)[1:]
    assert texts(template, record, thinking=False) == [("?" + empty, str(n)) for n in (1, 2, 3, 4)]


def test_a_thought_without_its_first_word_is_left_out_too(tmp_path: Path) -> None:
    template = read(tmp_path, template_class="ReasoningTemplate", empty_thought="never")
    record = talk("?", "why\n</think>\n\n4")
    assert texts(template, record) == [("?", "why\n</think>\n\n4<eos_token>")]
    assert texts(template, record, thinking=False) == [("?", "4<eos_token>")]


@pytest.mark.parametrize(
    "empty_thought,pairs,prompt",
    [
        ("never", ["?|1", "?|2"], "?1?"),
        ("last", ["?|1", "?<t></t>|2"], "?1?"),
        ("each", ["?<t></t>|1", "?<t></t>|2"], "?1?"),
        ("always", ["?<t></t>|1", "?<t></t>|2"], "?<t></t>1?"),
    ],
)
def test_empty_thoughts(tmp_path: Path, empty_thought: str, pairs: list[str], prompt: str) -> None:
    template = read(tmp_path, thought_words=["<t>", "</t>"], empty_thought=empty_thought, efficient_eos=True)
    record = thinking(("1", None), ("2", None))
    assert [f"{asked}|{answer}" for asked, answer in texts(template, record)] == pairs
    assert text(template.prompt(record)) == prompt
    end = "" if empty_thought == "never" else "<t></t>"
    assert text(template.prompt(record, thinking=False)) == prompt + end


def test_a_prompt_forgets_thoughts_before_the_last_user_turn(tmp_path: Path) -> None:
    first, *turns = thinking(("1", "a"), ("2", "b")).turns
    record = ChatRecord((first, *turns, Turn("tool", "!"), Turn("assistant", "3", reasoning="c")))
    fields: dict[str, Any] = {"thought_words": ["<t>", "</t>"], "efficient_eos": True}
    assert text(read(tmp_path, **fields).prompt(record)) == "?<t>a</t>1?<t>b</t>2!"
    assert text(read(tmp_path, template_class="ReasoningTemplate", **fields).prompt(record)) == "?1?<t>b</t>2!"


def test_reasoning_before_calls(tmp_path: Path) -> None:
    template = read(tmp_path, thought_words=["<t>", "</t>"], format_function={"slots": ["{{content}}"], "tool_format": "qwen"})
    [(_, answer)] = template.pairs(calling(call("now", {}), reasoning="why"))
    assert answer == ["<t>why</t>", '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>']


# Faults of records


@pytest.mark.parametrize(
    "turns,message",
    [
        ("", "the conversation has no user turn"),
        ("s", "the conversation has no user turn"),
        ("u", "turn 1 is a user turn that no assistant turn answers"),
        ("suau", "turn 4 is a user turn that no assistant turn answers"),
        ("a", "turn 1 is an assistant turn, expected a user or tool turn"),
        ("sa", "turn 2 is an assistant turn, expected a user or tool turn"),
        ("uu", "turn 2 is a user turn, expected an assistant turn"),
        ("ut", "turn 2 is a tool turn, expected an assistant turn"),
        ("uaa", "turn 3 is an assistant turn, expected a user or tool turn"),
        ("uatu", "turn 4 is a user turn, expected an assistant turn"),
        ("uasa", "turn 3 has the role 'system', expected user, assistant or tool (system: first only)"),
        ("ux", "turn 2 (assistant) has no content"),
    ],
)
def test_turns_that_do_not_alternate(mine: dict[str, SlotTemplate], turns: str, message: str) -> None:
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool", "x": "assistant"}
    record = ChatRecord(tuple(Turn(roles[letter], None if letter == "x" else letter) for letter in turns))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        mine["bare"].pairs(record)


def test_a_system_text_needs_a_user_turn_to_go_into(mine: dict[str, SlotTemplate]) -> None:
    record = ChatRecord((Turn("system", "S"), Turn("tool", "1"), Turn("assistant", "2")))
    assert texts(mine["bare"], record) == [("S1", "2<eos_token>")]
    with pytest.raises(ValueError, match="puts the system text into the first user turn, but a tool turn comes first"):
        mine["llama2_mine"].pairs(record)


# Faults of files


@pytest.mark.parametrize(
    "fields,message,hint",
    [
        ({"format_usr": {}}, "unknown field 'format_usr'", "did you mean format_user?"),
        ({"format_thinking": {}}, "unknown field 'format_thinking'", ""),
        ({"template_class": "Llama2"}, "unknown template_class 'Llama2'", "did you mean Llama2Template?"),
        ({"template_class": []}, "unknown template_class []", "known: Template, "),
        ({"empty_thought": "all", "thought_words": ["a", "b"]}, "unknown empty_thought 'all'", ""),
        ({"empty_thought": "last"}, "empty_thought needs thought_words", ""),
        ({"format_user": ["{{content}}"]}, "format_user: an object with slots was expected, found ['{{content}}']", ""),
        ({"format_user": {"slot": []}}, "unknown key of format_user 'slot'", "did you mean slots?"),
        ({"format_user": {"slots": "x"}}, "format_user.slots: a list was expected, found 'x'", ""),
        ({"format_user": {"slots": ["Hi"]}}, "format_user: {{content}} is lacking", ""),
        ({"format_user": {"slots": ["{{contents}}"]}}, "unknown placeholder of format_user 'contents'", "did you mean content?"),
        ({"format_assistant": {"slots": ["{{content}}{{idx}}"]}}, "unknown placeholder of format_assistant 'idx'", ""),
        ({"format_user": {"slots": [["bos"]]}}, 'format_user: a slot is a text, {"token": "..."}, ', ""),
        ({"format_user": {"slots": [{"token": 1}]}}, 'format_user: a slot is a text, {"token": "..."}, ', ""),
        ({"format_prefix": {"slots": ["{{content}}"]}}, "format_prefix: no placeholder may stand here, found {{content}}", ""),
        (
            {"format_function": {"slots": ["{{name}}"]}},
            "format_function: needs either {{content}}, or both {{name}} and {{arg",
            "",
        ),
        ({"format_tools": {"tool_format": "quen"}}, "unknown tool_format 'quen'", "did you mean qwen?"),
        ({"format_tools": {"tool_format": ["qwen"]}}, "unknown tool_format ['qwen']", "did you mean qwen?"),
        ({"format_tools": {"slots": []}}, "unknown key of format_tools 'slots'", ""),
        ({"default_system": 1}, "default_system: str was expected, found 1", ""),
        ({"stop_words": "x"}, "stop_words: a list of texts was expected, found 'x'", ""),
        ({"thought_words": ["a"]}, "thought_words: two texts were expected, found 1", ""),
        ({"efficient_eos": "true"}, "efficient_eos: bool was expected, found 'true'", ""),
        ({"replace_eos": True}, "replace_eos needs stop_words: the first of them is the EOS", ""),
        (
            {"template_class": "Llama2Template", "format_system": {"slots": ["{{content}}", {"token": "x"}]}},
            "format_system: Llama2Template puts it into the user's text, so it can hold no tokens",
            "",
        ),
    ],
)
def test_faulty_templates(tmp_path: Path, fields: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(ToolError) as fault:
        read(tmp_path, **fields)
    assert fault.value.message.startswith(f"{tmp_path / 'templates.json'}: template 'mine': {message}")
    assert (fault.value.hint or "").startswith(hint)


@pytest.mark.parametrize(
    "content,message",
    [
        ("[", ": no JSON could be read from it: "),
        ("{}", ": a list of templates was expected, found dict"),
        ("[1]", ": template 1 has no name"),
        ('[{"name": "a"}, {}]', ": template 2 has no name"),
        ('[{"name": "a"}, {"name": "a"}]', ": template 'a' stands there twice"),
    ],
)
def test_faulty_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "t.json"
    with pytest.raises(ToolError, match="no such file"):
        load_templates(path)
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ToolError) as fault:
        load_templates(path)
    assert fault.value.message.startswith(f"{path}{message}")


def test_a_template_that_code_builds_can_be_in_a_file_but_not_used(tmp_path: Path) -> None:
    """MindSpeed-LLM's newest file has one, beside the others."""
    template = read(tmp_path, template_class="DeepSeek4Template", thought_words=["<think>", "</think>"])
    for render in (template.pairs, template.prompt):
        with pytest.raises(ToolError, match="its prompt is built by code"):
            render(talk("a", "b"))


# Our own file


def test_every_name_is_had_or_its_absence_explained() -> None:
    names = template_names()
    assert len(KNOWN) == 34
    assert sorted([*names, *MISSING]) == sorted(KNOWN)
    for name in names:
        template = named_template(name)
        assert template.name == name
        assert text(template.prompt(talk("Hi"))).count("Hi") == 1
    assert all(MISSING.values())


def test_a_name_that_is_not_had() -> None:
    with pytest.raises(ToolError) as fault:
        named_template("magistral")
    assert fault.value.message == f"template 'magistral' is known, but not here: {MISSING['magistral']}"
    assert fault.value.hint is not None
    assert re.search("--template auto .* FILE.json:NAME ", fault.value.hint)
    with pytest.raises(ToolError) as fault:
        named_template("quen3")
    assert fault.value.message == "no template is named 'quen3'"
    assert fault.value.hint is not None
    assert re.match(r"did you mean qwen3.*\? The templates: alpaca, .*, trl$", fault.value.hint)
