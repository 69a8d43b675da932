"""Conversations joined instead of rendered: real models' templates, whatever the contents. See jumar/schema/opaque.py."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fetched import npm_tokenizer
from jumar.schema import templates
from jumar.schema.templates import MARKS, PLACES, ChatTemplate, TemplateFault, special_tokens, template_of

MODELS = ("qwen3", "qwen2_5", "llama3", "llama3_1", "deepseek_v3", "mistral_nemo", "internlm2", "chatglm3", "gemma3")
STOPS = ("<|im_end|>", "<|eot_id|>", "</s>", "<｜end▁of▁sentence｜>", "<end_of_turn>")
PIECES = [
    *(
        "a",
        "Hello",
        " ",
        "\n",
        "\u00a0",
        "\x1c",
        "%s",
        "%",
        "你好",
        "🙂",
        "user",
        "assistant\n",
        "{{ bos_token }}",
        "{% endif %}",
    ),
    *(
        "</think>",
        "<think>",
        "<think>\n",
        "<tool_response>",
        "</tool_response>",
        "<tool_call>",
        "[INST]",
        "[/INST]",
        "<start_of_turn>",
    ),
    *(
        "<|im_start|>",
        "<|start_header_id|>",
        "<｜User｜>",
        "<｜Assistant｜>",
        "<|assistant|>",
        *STOPS,
        *MARKS,
        *PLACES,
        "\ufdd30\ufdd4",
    ),
]
CONTENT = (
    st.sampled_from(["Hi", "How are you?", "a", "b\nc"]) | st.lists(st.sampled_from(PIECES), max_size=4).map("".join) | st.text()
)
ROLES = st.sampled_from(["user", "assistant"] * 3 + ["system", "tool", "other"])
Messages = list[dict[str, Any]]


@st.composite
def conversations(draw: st.DrawFn) -> Messages:
    contents = draw(st.lists(CONTENT, min_size=1, max_size=7))
    mixed = draw(st.integers(0, 3)) == 0
    roles = [draw(ROLES) if mixed else ("user", "assistant")[i % 2] for i in range(len(contents))]
    talk = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    return [{"role": "system", "content": draw(CONTENT)}, *talk] if draw(st.booleans()) else talk


@pytest.fixture(autouse=True, scope="module")
def _unchecked() -> Iterator[None]:
    """What is joined is compared here, and not by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(templates, "CHECKED_FIRST", 0)
        patch.setattr(templates, "CHECKED_EVERY", 10**9)
        yield


@functools.cache
def chat_of(name: str) -> ChatTemplate:
    source = template_of(npm_tokenizer(name))
    assert source is not None
    return ChatTemplate(source, dict(special_tokens(npm_tokenizer(name))), STOPS)


def joined(chat: ChatTemplate) -> int:
    return sum(shape.joined for shape in chat._shapes.values() if shape is not None)


@pytest.mark.parametrize("name", MODELS)
def test_plain_conversations_are_joined(name: str) -> None:
    chat = chat_of(name)
    before = joined(chat)
    talk = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(("Hi", "你好 (100%).", "And?", "Well."))
    ]
    for messages in (talk[:2], talk):
        assert chat.render_labelled(messages) == chat._rendered(messages, None, None, ())
    assert joined(chat) == before + 2


@pytest.mark.parametrize("name", MODELS)
@settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(conversations(), min_size=1, max_size=3))
def test_what_is_joined_is_what_is_rendered(name: str, given_: list[Messages]) -> None:
    chat = chat_of(name)
    for messages in given_:
        before = joined(chat)
        try:
            text, spans = chat.render_labelled(messages)
        except TemplateFault:
            with pytest.raises(TemplateFault):
                chat._rendered(messages, None, None, ())
            assert joined(chat) == before
            continue
        assert text == chat.render(messages)
        if joined(chat) == before:
            continue
        assert len(spans) == sum(message["role"] == "assistant" for message in messages)
        if not any(piece in message["content"] for message in messages for piece in (*STOPS, "<think>")):
            assert spans == chat._rendered(messages, None, None, ())[1]
