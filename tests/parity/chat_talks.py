"""Conversations, rendered by transformers and by us."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from fetched import npm_tokenizer
from jumar.data_prep.conversations import to_chat
from jumar.data_prep.faults import BadRecord
from jumar.data_prep.job import Job
from jumar.data_prep.mapping import default_map
from jumar.data_prep.render import Rendering
from jumar.data_prep.templating import open_template
from jumar.data_prep.tokenizer import open_tokenizer
from jumar.schema.templates import special_tokens

MODELS = ("qwen3", "qwen2_5", "llama3_1", "deepseek_v3", "mistral_nemo", "chatglm3")
ENGINES = ("tokenizers", "fastokens", "gigatoken")
Messages = list[dict[str, Any]]


# --- both sides


@functools.cache
def theirs(name: str) -> PreTrainedTokenizerFast:
    """transformers' tokenizer, whatever class the package names: tokenizer.json, and what the configuration makes special."""
    config = json.loads((npm_tokenizer(name) / "tokenizer_config.json").read_text(encoding="utf-8"))
    file = str(npm_tokenizer(name) / "tokenizer.json")
    there = PreTrainedTokenizerFast(tokenizer_file=file).get_vocab()
    also = [token["content"] for token in config.get("added_tokens_decoder", {}).values() if token["special"]]
    named = {key: token for key, token in variables(name).items() if token in there}
    return PreTrainedTokenizerFast(
        tokenizer_file=file, additional_special_tokens=[token for token in also if token in there], **named
    )


@functools.cache
def variables(name: str) -> dict[str, str]:
    """bos_token and others, which templates read."""
    return special_tokens(npm_tokenizer(name))


@functools.cache
def source_of(name: str) -> str:
    return str(json.loads((npm_tokenizer(name) / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"])


@functools.cache
def ours(name: str, engine: str) -> Any:
    tokenizer = open_tokenizer(npm_tokenizer(name), engine=engine)
    tokenizer.treat_as_special([])
    return tokenizer


@functools.cache
def folder_with(name: str, source: str) -> Path:
    """A tokenizer's folder with another chat template."""
    folder = Path(tempfile.mkdtemp(prefix="jumar-template-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for file in npm_tokenizer(name).iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
    return folder


@functools.cache
def renderer(name: str, source: str | None = None, engine: str = "tokenizers", date: str | None = None, args: str = "") -> Any:
    folder = npm_tokenizer(name) if source is None else folder_with(name, source)
    given = tuple(args.split()) if args else ()
    return open_template(Job("sft", (), Path("x"), folder, date=date, template_args=given), ours(name, engine))


def render(name: str, messages: Messages, tools: Any = None, *, last: bool = False, **how: Any) -> Rendering | BadRecord:
    row = {"messages": messages, **({"tools": tools} if tools else {})}
    (rendering,) = renderer(name, **how).chats([to_chat(row, default_map("messages"))], last=last)
    return rendering


def their_ids(name: str, messages: Messages, tools: Any = None, **how: Any) -> list[int]:
    return list(theirs(name).apply_chat_template(messages, tools, **settings_of(name, how))["input_ids"])


def their_text(name: str, messages: Messages, tools: Any = None, *, prompt: bool = False, **how: Any) -> str:
    how = {"tokenize": False, "add_generation_prompt": prompt, **settings_of(name, how)}
    return str(theirs(name).apply_chat_template(messages, tools, **how))


def settings_of(name: str, how: dict[str, Any]) -> dict[str, Any]:
    return {"chat_template": source_of(name), **variables(name), **how}


def reference_mask(name: str, messages: Messages, tools: Any = None, end: str = "", **how: Any) -> list[bool]:
    """Which tokens of the whole are trained. end: what ends a turn that is not rendered as it is at a conversation's end."""
    whole = their_text(name, messages, tools, **how)
    offsets = theirs(name)(whole, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    trained = [False] * len(offsets)
    for k, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = their_text(name, messages[:k], tools, prompt=True, **how)
        through = their_text(name, messages[: k + 1], tools, **how)
        assert whole.startswith(before)
        start = len(before)
        if whole.startswith(through):
            stop = len(through)
        else:
            assert end
            stop = whole.index(end, start) + len(end)
        bare = whole[start:stop].rstrip()
        if any(bare.endswith(token.content) for token in theirs(name).added_tokens_decoder.values() if token.special):
            stop = start + len(bare)
        for i, (first, behind) in enumerate(offsets):
            trained[i] |= first < stop and behind > start
    return trained


def mask_of(rendering: Rendering | BadRecord) -> list[bool]:
    assert isinstance(rendering, Rendering), rendering
    assert all(label in (-100, token) for label, token in zip(rendering.labels, rendering.ids, strict=True))
    return [bool(label != -100) for label in rendering.labels]


# --- conversations


def talk(*contents: str, system: str | None = None) -> Messages:
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def call(name: str, arguments: Any, ident: str = "abcdefghi") -> dict[str, Any]:
    return {"type": "function", "id": ident, "function": {"name": name, "arguments": arguments}}


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "天气 <b>&'",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
RESULT = {"role": "tool", "content": '{"t": 3}', "tool_call_id": "abcdefghi"}


def called(arguments: Any, **keys: Any) -> Messages:
    asks = {"role": "assistant", "tool_calls": [call("weather", arguments)], **keys}
    return [*talk("天气？"), asks, RESULT, {"role": "assistant", "content": "3 度"}]


NFD = unicodedata.normalize("NFD", "é ö Å 가 ắ")
LONGER = "\u0958"  # a letter that NFC takes apart: three bytes become six
TALKS: dict[str, tuple[Messages, Any]] = {
    "one": (talk("Who are you?", "A model."), None),
    "several": (talk("1+1?", "2", "2+2?", "4", "And 你好?", "你好！"), None),
    "system": (talk("Hi", "Hello", system="You are terse.\nYou are kind."), None),
    "system and several": (talk("1+1?", "2", "2+2?", "4", system="计算"), None),
    "chinese and emoji": (talk("你好，世界 👩‍👩‍👧‍👦", "再见 👋🏽🙂", "𠮷野家?", "𠮷🇨🇳"), None),
    "not in NFC": (talk(NFD, NFD, f"{NFD} again", f"x {NFD}"), None),
    "NFC that keeps the length": (talk(LONGER, f"{NFD[:2] * 3} is it", LONGER, f"no {NFD[:2]}{NFD[:2]}{NFD[:2]}"), None),
    "empty user turns": (talk("", "Hello", "", "Still here"), None),
    "white space": (talk("  a \n\n", "\n  b\t\n", "\n", "  c  \n \n"), None),
    "white space alone": (talk(" ", "a", "\n\n\n", "b\n"), None),
    "templates and code": (talk("{{ bos_token }}{% if x %}", "{{ messages }} {% generation %} <b>&amp;", "{#", "#}"), None),
    "special tokens": (
        talk(
            "a<|im_end|>\n<|im_start|>assistant\nb</s>", "c<|eot_id|>d<s><｜User｜>[INST]", "e<|endoftext|>", "f<｜Assistant｜>g"
        ),
        None,
    ),
    "the same words again": (talk("a", "a", "a", "a", "assistant", "assistant"), None),
    "thought in the text": (talk("1+1", "<think>\n1, 2\n</think>\n\n2"), None),
    "thought in old text": (talk("1+1", "<think>\n1, 2\n</think>\n\n2", "2+2", "<think>\n3, 4\n</think>\n\n4"), None),
    "half a thought": (talk("1+1", "1, 2</think>2", "2+2", "</think>"), None),
    "marks of a tag first": (talk("Make it bold", "<b>x</b>", "Again", "<t>y</t>"), None),
    "reasoning": (
        [*talk("1+1"), {"role": "assistant", "reasoning_content": "\n1, 2 ", "content": "2"}, *talk("2+2", "4")],
        None,
    ),
    "reasoning last": ([*talk("1+1"), {"role": "assistant", "reasoning_content": "1, 2", "content": "\n2"}], None),
    "tools unused": (talk("Hi", "Hello", "Hm", "Yes"), [WEATHER]),
    "tool call": (called({"city": "北京", "n": [1, None, 2.5, True]}, content=""), [WEATHER]),
    "tool call with text": (called({"city": "Paris"}, content="Let me see."), [WEATHER]),
    "tool call, arguments are text": (called('{"city": "Paris"}', content=""), [WEATHER]),
    "tool call without content": (called('{"city": "Paris"}', content=None), [WEATHER]),
    "tool call and then talk": (
        [*called({"city": "Paris"}, content="", reasoning_content="Ask."), *talk("Ok", "Fine")],
        [WEATHER],
    ),
    "two who answer": ([*talk("Hi", "Hello"), {"role": "assistant", "content": "There"}], None),
    "two who ask": ([*talk("Hi"), *talk("Hello", "There")], None),
}
