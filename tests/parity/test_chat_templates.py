"""Conversations through a model's own chat template: ids as of transformers' apply_chat_template, and what is trained.

Which tokens are trained is compared with transformers' `assistant_masks` where a template marks what the assistant writes, and
with a reference of our own where it does not: for each answer the characters between the rendering of what comes before it (with
the generation prompt) and the rendering through it, mapped to tokens by transformers' offsets.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast

from chat_talks import (
    ENGINES,
    MODELS,
    TALKS,
    Messages,
    mask_of,
    ours,
    reference_mask,
    render,
    renderer,
    source_of,
    talk,
    their_ids,
    their_text,
    theirs,
)
from fetched import npm_tokenizer
from jumar.data_prep.conversations import to_chat
from jumar.data_prep.faults import BadRecord
from jumar.data_prep.mapping import default_map
from jumar.data_prep.render import Rendering
from jumar.data_prep.tokenizer import open_tokenizer
from jumar.schema.errors import ToolError

# --- ids and masks of official templates

# What the whole has otherwise than the renderings of its beginnings, so that these do not tell where answers are: by the text.
ANSWER = {"qwen3": r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", "mistral_nemo": r"\[/(?:INST|TOOL_RESULTS)\](.*?</s>)"}
BY_TEXT = {
    *(("qwen3", key) for key in ("tool call and then talk", "two who answer")),
    ("mistral_nemo", "tools unused"),
}
REFUSED = {("mistral_nemo", "tool call and then talk"): "leaves out what the assistant writes"}


def left_out(whole: str, messages: Messages) -> str:
    """What a template has no place for, and leaves out without a word."""
    for message in messages:
        if message["role"] == "system" and message["content"].strip() not in whole:
            return "leaves the system turn out"
        if any(call["function"]["name"] not in whole for call in message.get("tool_calls") or []):
            return "leaves the call of"
    return ""


def by_text(name: str, messages: Messages, tools: Any) -> list[bool]:
    whole = their_text(name, messages, tools)
    offsets = theirs(name)(whole, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    spans = [found.span(1) for found in re.finditer(ANSWER[name], whole, re.DOTALL)]
    assert len(spans) == sum(message["role"] == "assistant" for message in messages)
    return [any(first < stop and behind > start for start, stop in spans) for first, behind in offsets]


def cases() -> Iterator[Any]:
    for name in MODELS:
        for key in TALKS:
            yield pytest.param(name, key, id=f"{name}-{key}")


@pytest.mark.parametrize("name,key", list(cases()))
def test_ids_and_masks(name: str, key: str) -> None:
    messages, tools = TALKS[key]
    rendering = render(name, messages, tools)
    try:
        expected = their_ids(name, messages, tools)
    except (TemplateError, TypeError):
        if key != "tool call without content":  # transformers takes the null away that these templates ask for
            assert isinstance(rendering, BadRecord)
            assert rendering.reason == "template cannot render it"
        return
    if tools and not any(tool["function"]["name"] in their_text(name, messages, tools) for tool in tools):
        assert isinstance(rendering, BadRecord)
        assert "leaves the tools out" in rendering.detail
        tools, rendering = None, render(name, messages)
    if refused := REFUSED.get((name, key)) or left_out(their_text(name, messages, tools), messages):
        assert isinstance(rendering, BadRecord)
        assert refused in rendering.detail
        return
    mask = mask_of(rendering)
    assert isinstance(rendering, Rendering)
    assert rendering.ids.tolist() == expected
    assert mask == (
        by_text(name, messages, tools) if (name, key) in BY_TEXT else reference_mask(name, messages, tools, "<|im_end|>")
    )
    assert any(mask)


@pytest.mark.parametrize(
    "key", ["several", "system and several", "white space", "tool call", "chinese and emoji", "special tokens"]
)
@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "deepseek_v3"])
def test_the_last_answer_alone(name: str, key: str) -> None:
    messages, tools = TALKS[key]
    every, last = render(name, messages, tools), render(name, messages, tools, last=True)
    if isinstance(every, BadRecord):
        assert isinstance(last, BadRecord)
        return
    assert isinstance(last, Rendering)
    assert last.ids.tolist() == every.ids.tolist()
    before = len(their_ids(name, messages[:-1], tools, add_generation_prompt=True))
    assert mask_of(last) == [trained and i >= before for i, trained in enumerate(mask_of(every))]
    assert any(mask_of(last))


@pytest.mark.parametrize("key", TALKS)
@pytest.mark.parametrize("name", ["qwen3", "deepseek_v3", "mistral_nemo"])
def test_prompts(name: str, key: str) -> None:
    """Conversations up to an answer, as they are asked for."""
    messages, tools = TALKS[key]
    record = to_chat({"messages": messages, "tools": tools}, default_map("messages"))
    asked = record.with_turns(*record.turns[:-1])
    (ids,) = renderer(name).prompts([asked])
    try:
        expected = their_ids(name, messages[:-1], tools, add_generation_prompt=True)
    except (TemplateError, TypeError):
        assert isinstance(ids, BadRecord) or key == "tool call without content"
        return
    assert ids.tolist() == expected


def test_a_call_without_content_is_not_lost() -> None:
    """DeepSeek-V3's template writes calls only where the content is null; transformers 5 takes nulls away, 4 did not."""
    messages, tools = TALKS["tool call without content"]
    text = theirs("deepseek_v3").decode(ids_of(render("deepseek_v3", messages, tools)))
    answer = (
        "<｜User｜>天气？<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
        '```json\n{"city": "Paris"}\n```<｜tool▁call▁end｜>'
        '<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>{"t": 3}<｜tool▁output▁end｜>'
    )
    assert answer in text
    # Qwen3's fails on null and on nothing, and is given an empty text.
    with_text = [message | ({"content": ""} if "tool_calls" in message else {}) for message in messages]
    assert ids_of(render("qwen3", messages, tools)) == their_ids("qwen3", with_text, tools)


def ids_of(rendering: Rendering | BadRecord) -> list[int]:
    assert isinstance(rendering, Rendering), rendering
    ids: list[int] = rendering.ids.tolist()
    return ids


@pytest.mark.parametrize("name,header", [("qwen2_5", "<|im_start|>assistant\n"), ("llama3_1", "assistant<|end_header_id|>\n\n")])
def test_a_conversation_that_the_assistant_begins(name: str, header: str) -> None:
    """Neither what the template writes first nor the header of the turn is the assistant's."""
    messages = talk("", "Hello, I am here.", "Hi", "What is it?")[1:]
    rendering = render(name, messages)
    assert ids_of(rendering) == their_ids(name, messages)
    whole = their_text(name, messages)
    start = whole.index(header) + len(header)
    offsets = theirs(name)(whole, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert mask_of(rendering).index(True) == next(i for i, (_, behind) in enumerate(offsets) if behind > start)


@pytest.mark.parametrize("answer", ["<b>x</b>", "<t", "<think", "ok", "<|im_start|>assistant\nx", "<think>\n1\n</think>\n\n<2"])
def test_without_thinking(answer: str) -> None:
    """enable_thinking=false asks with an empty thought, which old answers have not: they begin where the thought would."""
    messages = talk("1+1?", answer, "2+2?", "<four>")
    rendering = render("qwen3", messages, args="enable_thinking=false")
    assert ids_of(rendering) == their_ids("qwen3", messages, enable_thinking=False)
    told = [theirs("qwen3").decode(rendering.ids[start:stop]) for start, stop in rendering.answers]
    end = "<|im_end|>"
    assert told == [answer.rpartition("</think>\n\n")[2] + end, "<four>" + end]


def test_tokens_that_the_configuration_makes_special(tmp_path: Path) -> None:
    """A token of the vocabulary that tokenizer_config.json alone makes special is found whole, as in transformers."""
    folder = npm_tokenizer("qwen3")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["added_tokens_decoder"] = {"14990": {"content": "hello", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").symlink_to(folder / "tokenizer.json")
    tokenizer = open_tokenizer(tmp_path, engine="tokenizers")
    tokenizer.treat_as_special([])
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), additional_special_tokens=["hello"])
    text = "hello, othello hellos"
    assert tokenizer.encode([text]).flat.tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.encode([text]).flat.tolist().count(14990) == 3


def test_a_template_whose_marks_the_vocabulary_has_not_is_refused() -> None:
    """This internlm2 package: its tokenizer.json has no <|im_start|>, its tokenizer_config.json names it."""
    with pytest.raises(ToolError, match=r"writes <\|im_\w+\|>, a token of tokenizer_config.json that tokenizer.json has not"):
        render("internlm2", talk("Hi", "Hello"))


@pytest.mark.parametrize("engine", ENGINES[1:])
@pytest.mark.parametrize("name", ["qwen3", "deepseek_v3", "chatglm3"])
def test_engines_give_the_same(name: str, engine: str) -> None:
    given = [to_chat({"messages": m, "tools": t}, default_map("messages")) for m, t in TALKS.values()]
    expected = renderer(name).chats(given, last=False)
    for one, other in zip(expected, renderer(name, engine=engine).chats(given, last=False), strict=True):
        assert type(one) is type(other)
        if isinstance(one, Rendering):
            assert one.ids.tolist() == other.ids.tolist()
            assert one.labels.tolist() == other.labels.tolist()
            assert one.answers == other.answers
    if name == "qwen3":
        assert ours(name, engine).engine.name == engine
        assert ours(name, engine).facts.widths is not None


# --- templates with {% generation %}


MARKED = {
    "qwen2_5": (
        r"{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}",
        r"{{- '<|im_start|>' + message.role + '\n' }}{% if message.role == 'assistant' %}{% generation %}"
        r"{{- message.content + '<|im_end|>' }}{% endgeneration %}{{- '\n' }}"
        r"{% else %}{{- message.content + '<|im_end|>' + '\n' }}{% endif %}",
    ),
    "llama3_1": (
        "{{ content }}",
        "{% if message['role'] == 'assistant' %}{% set text = message['content'] | trim + '<|eot_id|>' %}"
        "{{ content[:content | length - text | length] }}{%- generation -%}{{ text }}{%- endgeneration -%}"
        "{% else %}{{ content }}{% endif %}",
    ),
    "deepseek_v3": (
        "{{'<｜Assistant｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}",
        "{{'<｜Assistant｜>'}}{% generation %}{{message['content'] + '<｜end▁of▁sentence｜>'}}{% endgeneration %}",
    ),
    "mistral_nemo": (
        '{{- message["content"] + eos_token}}',
        '{% generation %}{{- message["content"] + eos_token}}{% endgeneration %}',
    ),
}


@functools.cache
def marked(name: str) -> str:
    old, new = MARKED[name]
    assert source_of(name).count(old) == 1
    return source_of(name).replace(old, new)


@pytest.mark.parametrize("key", [key for key, (_, tools) in TALKS.items() if tools is None])
@pytest.mark.parametrize("name", MARKED)
def test_marked_templates(name: str, key: str) -> None:
    messages = TALKS[key][0]
    rendering = render(name, messages, source=marked(name))
    try:
        expected = theirs(name).apply_chat_template(
            messages, chat_template=marked(name), return_assistant_tokens_mask=True, return_dict=True
        )
    except TemplateError:
        assert isinstance(rendering, BadRecord)
        return
    if left_out(their_text(name, messages), messages):
        assert isinstance(rendering, BadRecord)
        return
    mask = mask_of(rendering)
    assert ids_of(rendering) == list(expected["input_ids"]) == their_ids(name, messages)
    assert mask == [bool(trained) for trained in expected["assistant_masks"]]
    assert any(mask)


def test_marks_leave_no_trace() -> None:
    record = to_chat({"messages": talk("Hi", "Hello", "Hm", "Yes")}, default_map("messages"))
    (ids,) = renderer("qwen2_5", marked("qwen2_5")).prompts([record.with_turns(*record.turns[:-1])])
    assert ids.tolist() == their_ids("qwen2_5", talk("Hi", "Hello", "Hm"), add_generation_prompt=True)


# --- conversations at random

PIECES = [
    *(
        "a",
        "B c",
        "\n",
        " ",
        "  ",
        "\t",
        "1",
        "12345",
        "don't",
        "...",
        "é",
        "é",
        "你好",
        "🙂",
        "👩‍👩‍👧",
        "𠮷",
        "ﬁ",
        "\u00a0",
        "\u200d",
        "\ufeff",
    ),
    *(
        "assistant",
        "user\n",
        "{{ x }}",
        "{% y %}",
        "<",
        "<b>",
        "<|",
        "|>",
        "</s>",
        "<s>",
        "[INST]",
        "[/INST]",
        "<｜User｜>",
        "\r\n",
    ),
]
TEXT = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
ANSWERS = TEXT.filter(lambda text: bool(text.strip()))
CONVERSATION = st.tuples(st.none() | ANSWERS, st.lists(st.tuples(TEXT, ANSWERS), min_size=1, max_size=4))


@pytest.mark.parametrize("name", ["qwen3", "deepseek_v3", "llama3_1", "mistral_nemo"])
@settings(deadline=None, max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(CONVERSATION)
def test_any_conversation(name: str, drawn: tuple[str | None, list[tuple[str, str]]]) -> None:
    system, pairs = drawn
    if name == "mistral_nemo":
        system = None  # its template moves the system text to the last question
    messages = talk(*(content for pair in pairs for content in pair), system=system)
    rendering = render(name, messages)
    assert ids_of(rendering) == their_ids(name, messages)
    assert mask_of(rendering) == reference_mask(name, messages, end="<|im_end|>")


# --- what templates may not do

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def test_the_date_of_the_day() -> None:
    source = "{{ 'Today: ' + strftime_now('%d %B %Y') + '\\n' }}" + CHATML
    messages = talk("Hi", "Hello", "Which day is it?", "Look above")
    refused = render("qwen3", messages, source=source)
    assert isinstance(refused, BadRecord)
    assert "--date" in refused.detail
    before = datetime.date.today()
    expected = their_ids("qwen3", messages, chat_template=source)
    if before != datetime.date.today():  # midnight
        before, expected = datetime.date.today(), their_ids("qwen3", messages, chat_template=source)
    dated = render("qwen3", messages, source=source, date=before.isoformat())
    assert ids_of(dated) == expected
    assert mask_of(dated) == reference_mask("qwen3", messages, chat_template=source)
    other = render("qwen3", messages, source=source, date="2031-02-03")
    assert theirs("qwen3").decode(ids_of(other)).startswith("Today: 03 February 2031\n<|im_start|>user\nHi<|im_end|>")


def test_what_a_template_refuses() -> None:
    refused = render("mistral_nemo", talk("Hi", "Hello")[:1] + talk("Hi", "Hello"))
    assert isinstance(refused, BadRecord)
    assert refused.reason == "template cannot render it"
    assert "conversation roles must alternate" in refused.detail


HOSTILE = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch FILE') }}",
    "{{ lipsum.__globals__['os'].popen('touch FILE').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['datetime'] }}",
    "{{ raise_exception.__code__.co_filename }}",
    "{{ strftime_now.__closure__[0].cell_contents }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ ['{0.__class__}']|map('format', 1)|list }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ messages.append({'role': 'user', 'content': 'more'}) }}",
    "{{ messages[0].update({'content': 'other'}) }}",
    "{% for i in range(99999999) %}{% endfor %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.name }}",
]


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_template_cannot_escape(attack: str, tmp_path: Path) -> None:
    target = tmp_path / "made"
    messages = talk("Hi", "Hello")
    rendering = render("qwen3", messages, source=attack.replace("FILE", str(target)) + CHATML)
    assert not target.exists()
    assert messages == talk("Hi", "Hello")
    if isinstance(rendering, BadRecord):
        assert rendering.reason == "template cannot render it"
        return
    text = theirs("qwen3").decode(rendering.ids)
    # What is refused may be rendered as nothing; nothing of Python's inside is ever written.
    assert text.removeprefix("['']").startswith("<|im_start|>user\nHi<|im_end|>"), text
