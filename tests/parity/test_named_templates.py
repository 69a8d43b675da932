"""The named slot templates against the official chat templates, which npm packages carry, or against literals with their source.

Where the official text is not that of MindSpeed-LLM's templates.json, ours is the official one:
    chatglm2            rounds are counted from 1, not from 0 ({{round}} instead of {{idx}})
    deepseek2, -lite    a space stands between "Assistant:" and the answer
    gemma               a system text goes into the first user turn, with an empty line after it; the last answer ends as all do
    glm4_moe            every answer begins with a thought, empty where there is none; results stand in <tool_response>
    llama2              a space stands between an answer and </s>
    mistral, mixtral    a system text goes into the first [INST], with an empty line after it
    qwen_lf             tools, calls and results are those of Qwen2.5 (there: the default format)
    qwen3               an empty thought begins the last answer only (there: every answer that has none)
The rest agree. In chatml, gemma, qwen* but qwen3 and qwen_lf, the line's end after <|im_end|> belongs to the next prompt, as in
MindSpeed-LLM, so it is not learned: `tail` is what the official text has after its last answer and ours has not.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from fetched import npm_package, npm_tokenizer
from jumar.schema.chat import ChatRecord, Turn
from jumar.schema.slots import Piece, SlotTemplate, Special, Token, named_template, template_names

SP = ("<s>", "</s>")
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")


@dataclass(frozen=True)
class Official:
    """Where a name's official template is, and how to read it.

    source:  "npm:NAME" of a tokenizer package, or "ollama:NAME" of Hugging Face's @huggingface/ollama-utils.
    specials: texts of BOS and EOS.
    tail:    what stands after the last answer.
    system:  how the template takes a system text: "text", "parts" (a list, as of multimodal models) or "" (it refuses).
    space:   what SentencePiece's dummy space means for the text. "": there is none. "implied": a run of text is seen with
             one more space before it. "written": the official text writes that space out.
    """

    source: str
    specials: tuple[str, str] = ("", "")
    tail: str = ""
    system: str = "text"
    space: str = ""


QWEN = ("", "<|im_end|>")
OFFICIAL = [
    ("chatglm3", Official("npm:chatglm3", space="implied")),
    ("chatglm3_system", Official("npm:chatglm3", space="implied")),
    ("deepseek2", Official("ollama:deepseek-coder-v2:16b", DEEPSEEK)),
    ("deepseek2-lite", Official("ollama:deepseek-coder-v2:16b", DEEPSEEK)),
    ("deepseek3", Official("npm:deepseek_v3", DEEPSEEK)),
    ("deepseek3", Official("ollama:deepseek-v3:671b", DEEPSEEK)),
    ("gemma", Official("ollama:gemma2:2b", ("<bos>", "<end_of_turn>"), tail="\n", system="")),
    ("gemma", Official("ollama:gemma3:1b", ("<bos>", "<end_of_turn>"), tail="\n", system="parts")),
    ("glm4", Official("ollama:glm4:9b")),
    ("intern2", Official("npm:internlm2", SP)),
    ("llama2", Official("ollama:llama2:7b", SP, space="implied")),
    ("llama3", Official("ollama:llama3:8b", ("<|begin_of_text|>", "<|eot_id|>"))),
    ("mistral", Official("ollama:mixtral:8x7b", SP, space="written")),
    ("mixtral", Official("ollama:mixtral:8x7b", SP, space="written")),
    ("qwen", Official("ollama:qwen2:0.5b", QWEN, tail="\n")),
    ("qwen3", Official("npm:qwen3", QWEN)),
    ("qwen_lf", Official("npm:qwen2_5", QWEN)),
]
SYSTEMS = [None, "You are terse.\nYou are kind.", "你是一个翻译。"]
TALKS = [
    ["Who are you?", "A model."],
    ["你好，世界", "你好！有什么可以帮你？", "再见 👋🏽", "再见 🙂"],
    ["{{content}} and {{idx}}", "x = {'a': {}}\n\n    return", "a  b\tc", '<b>&amp;"quoted"</b>', "2^10 = ?", "1024"],
]


@functools.cache
def jinja(source: str) -> str:
    """The official template's text."""
    kind, _, name = source.partition(":")
    if kind == "npm":
        return str(json.loads((npm_tokenizer(name) / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"])
    package = npm_package("@huggingface/ollama-utils@0.0.18", "ollama-utils-0.0.18")
    entries = (package / "src" / "chat-template-automap.ts").read_text(encoding="utf-8")
    found = re.search(rf'model: "library/{re.escape(name)}",\s*gguf:\s*("(?:[^"\\]|\\.)*")', entries)
    assert found, name
    return str(json.loads(found[1]))


def render(official: Official, messages: list[dict[str, Any]], *, prompt: bool, trim: bool = True, **variables: Any) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=trim, lstrip_blocks=trim, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    if official.system == "parts":
        messages = [m | {"content": [{"type": "text", "text": m["content"]}]} if m["role"] == "system" else m for m in messages]
    bos, eos = official.specials
    template = environment.from_string(jinja(official.source))
    return template.render(messages=messages, add_generation_prompt=prompt, bos_token=bos, eos_token=eos, **variables)


def official_text(official: Official, text: str) -> str:
    """With the spaces that SentencePiece sees."""
    if official.space == "implied":
        runs = re.split(r"(</?s>|\[gMASK\]sop|<\|\w+\|>)", text)
        return "".join(run if i % 2 or not run else " " + run for i, run in enumerate(runs))
    return text


def text_of(pieces: Iterable[Piece], specials: tuple[str, str] = ("", ""), space: str = "") -> str:
    names = dict(zip(("bos_token", "eos_token"), specials, strict=True))
    before = " " if space else ""
    return "".join(
        before + piece if isinstance(piece, str) else piece.name if isinstance(piece, Token) else names[piece.name]
        for piece in pieces
    )


def conversation(talk: list[str], system: str | None = None) -> ChatRecord:
    turns = [Turn("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(talk)]
    return ChatRecord(tuple(turns if system is None else [Turn("system", system), *turns]))


def whole(template: SlotTemplate, record: ChatRecord, **settings: Any) -> list[Piece]:
    return [piece for asked, answer in template.pairs(record, **settings) for piece in (*asked, *answer)]


def test_every_name_is_compared_with_something() -> None:
    assert {name for name, _ in OFFICIAL} | {name for name, _, _ in LITERALS} == set(template_names())


@pytest.mark.parametrize(
    "name,official,system",
    [
        pytest.param(name, official, system, id=f"{name}-{official.source}-{index}")
        for name, official in OFFICIAL
        for index, system in enumerate(SYSTEMS)
        if system is None or official.system
    ],
)
@pytest.mark.parametrize("talk", TALKS, ids=["one", "two", "three"])
def test_conversations_read_as_the_official_template_has_them(
    name: str, official: Official, system: str | None, talk: list[str]
) -> None:
    template = named_template(name)
    if template.replace_eos:
        assert official.specials[1] == template.stop_words[0]
    record, question = conversation(talk, system), conversation([*talk, "还有呢？"], system)
    # chatglm3_system adds its own system text, which the official template has only where the conversation has one.
    default = template.default_system if system is None and name == "chatglm3_system" else ""
    there = [{"role": "system", "content": default}] if default else []

    expected = official_text(official, render(official, there + record.messages(), prompt=False))
    assert text_of(whole(template, record), official.specials, official.space) + official.tail == expected

    expected = official_text(official, render(official, there + question.messages(), prompt=True))
    assert text_of(template.prompt(question), official.specials, official.space) == expected


@pytest.mark.parametrize(
    "name,tokenizer",
    [("deepseek3", "deepseek_v3"), ("llama2", "llama2"), ("llama3", "llama3"), ("qwen3", "qwen3")],
)
@pytest.mark.parametrize("talk", TALKS, ids=["one", "two", "three"])
def test_tokens_of_the_pieces_are_those_of_the_official_text(name: str, tokenizer: str, talk: list[str]) -> None:
    """No token of the official text spans the border of two pieces, dummy spaces included."""
    official = next(entry for known, entry in OFFICIAL if known == name)
    encoder = Tokenizer.from_file(str(npm_tokenizer(tokenizer) / "tokenizer.json"))
    record = conversation(talk, "Be kind.")
    names = dict(zip(("bos_token", "eos_token"), official.specials, strict=True))
    ids: list[int] = []
    for piece in whole(named_template(name), record):
        if isinstance(piece, str):
            ids += encoder.encode(piece, add_special_tokens=False).ids
        else:
            ids.append(encoder.token_to_id(names[piece.name] if isinstance(piece, Special) else piece.name))
    assert ids == encoder.encode(render(official, record.messages(), prompt=False), add_special_tokens=False).ids


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "天气",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
SUM = {
    "type": "function",
    "function": {"name": "sum", "description": "Adds.", "parameters": {"type": "object", "properties": {}}},
}


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def tool_talk(system: str | None, text: str, reasoning: str | None) -> ChatRecord:
    calls = (call("weather", {"city": "北京"}), call("sum", {"of": [1, 2.5, None], "exact": True}))
    turns = [
        *([Turn("system", system)] if system else []),
        *(Turn("user", "Hi"), Turn("assistant", "Hello")),
        *(Turn("user", "天气？"), Turn("assistant", text, reasoning=reasoning, tool_calls=calls)),
        *(Turn("tool", '{"t": 3}'), Turn("tool", "3.5"), Turn("assistant", "3 度", reasoning=reasoning)),
    ]
    return ChatRecord(tuple(turns), tools=(WEATHER, SUM))


@pytest.mark.parametrize("name,reasoning", [("qwen_lf", None), ("qwen3", None), ("qwen3", "Look it up.")])
@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("text", ["", "Let me see."])
def test_tools_calls_and_results_of_qwen(name: str, reasoning: str | None, system: str | None, text: str) -> None:
    official = next(entry for known, entry in OFFICIAL if known == name)
    record = tool_talk(system, text, reasoning)
    expected = render(official, record.messages(), prompt=False, tools=list(record.tools))
    assert text_of(whole(named_template(name), record), official.specials) == expected
    asked = record.with_turns(*record.turns[:-1])
    expected = render(official, asked.messages(), prompt=True, tools=list(record.tools))
    assert text_of(named_template(name).prompt(asked), official.specials) == expected


def test_reasoning_of_qwen3() -> None:
    """A prompt forgets the thoughts before the last user turn; what is learned may begin with an empty one."""
    official = next(entry for known, entry in OFFICIAL if known == "qwen3")
    template = named_template("qwen3")
    first, second = Turn("assistant", "2", reasoning="1 + 1"), Turn("assistant", "4", reasoning="2 + 2")
    record = ChatRecord((Turn("user", "1+1"), first, Turn("user", "2+2"), second))
    asked = record.with_turns(*record.turns[:-1])
    for settings, variables in (({}, {}), ({"thinking": True}, {}), ({"thinking": False}, {"enable_thinking": False})):
        assert text_of(template.prompt(asked, **settings), official.specials) == render(
            official, asked.messages(), prompt=True, **variables
        )
    kept = record.with_turns(record.turns[0], replace(first, reasoning=None), *record.turns[2:])
    assert text_of(whole(template, kept), official.specials) == render(official, kept.messages(), prompt=False)
    inline = record.with_turns(Turn("user", "1+1"), Turn("assistant", "<think>\n1 + 1\n</think>\n\n2"), Turn("user", "2+2"))
    assert text_of(template.prompt(inline), official.specials) == render(official, inline.messages(), prompt=True)


def test_tools_of_glm4() -> None:
    """GLM-4's template takes tools and the name of a call from the messages themselves."""
    official = next(entry for known, entry in OFFICIAL if known == "glm4")
    record = ChatRecord(
        (Turn("user", "天气？"), Turn("assistant", None, tool_calls=(call("weather", {"city": "北京"}),)), Turn("tool", "3 度")),
        tools=(WEATHER, SUM),
    )
    messages = [
        {"role": "system", "content": "", "tools": list(record.tools)},
        {"role": "user", "content": "天气？"},
        {"role": "assistant", "metadata": "weather", "content": '{"city": "北京"}'},
        {"role": "observation", "content": "3 度"},
    ]
    # Untrimmed: what Jinja's trimming takes away are empty lines that LLaMA-Factory's text, the format's source, has.
    # The same source has other words in one place.
    expected = render(official, messages, prompt=True, trim=False).replace("智谱AI训练", "智谱 AI 公司训练")
    assert text_of(named_template("glm4").prompt(record)) == expected


TWO = ["你好", "Hi 🙂", "And {{content}}?", "Yes"]
R1 = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
    "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., "
    "<think> reasoning process here </think><answer> answer here </answer>"
    "Put your final answer within \\\\boxed{}. "  # two backslashes: so it stands in MindSpeed-LLM's file
)
ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
IM = "<|im_start|>"
CHATML = f"{IM}user\n你好<EOS>\n{IM}assistant\nHi 🙂<EOS>\n{IM}user\nAnd {{{{content}}}}?<EOS>\n{IM}assistant\nYes<EOS>"
GLM_1, GLM_2 = "<|user|>\n你好<|assistant|>\n", "Hi 🙂<|user|>\nAnd {{content}}?<|assistant|>\n"
LITERALS = [
    # Texts of their own, from MindSpeed-LLM's configs/finetune/templates.json.
    ("default", None, "Human: 你好\nAssistant:Hi 🙂<EOS>\nHuman: And {{content}}?\nAssistant:Yes<EOS>"),
    ("default", "S", "S\nHuman: 你好\nAssistant:Hi 🙂<EOS>\nHuman: And {{content}}?\nAssistant:Yes<EOS>"),
    ("empty", "S", "S你好Hi 🙂And {{content}}?Yes"),
    ("trl", "S", "<BOS>S你好Hi 🙂And {{content}}?Yes"),
    (
        "alpaca",
        None,
        ALPACA
        + "### Instruction:\n你好\n\n### Response:\nHi 🙂<EOS>\n\n### Instruction:\nAnd {{content}}?\n\n### Response:\nYes<EOS>",
    ),
    # ChatML: https://github.com/openai/openai-python/blob/v0.28.1/chatml.md
    ("chatml", None, CHATML),
    ("chatml", "S", f"{IM}system\nS<EOS>\n{CHATML}"),
    ("chatml_de", None, f"{IM}system\nDu bist ein freundlicher und hilfsbereiter KI-Assistent.<EOS>\n{CHATML}"),
    (
        "qwen_math_r1",
        None,
        f"{IM}system\nPlease reason step by step, and put your final answer within \\boxed{{}}.<EOS>\n{CHATML}",
    ),
    ("qwen_r1", None, f"{IM}system\nYou are a helpful assistant.<EOS>\n" + CHATML.replace("user\n", f"user\n{R1}")),
    # THUDM/chatglm2-6b, modeling_chatglm.py: build_prompt counts from 1; FastChat 0.2.36, conversation.py: CHATGLM, round_add_n.
    ("chatglm2", None, "[gMASK]sop[Round 1]\n\n问：你好\n\n答：Hi 🙂\n\n[Round 2]\n\n问：And {{content}}?\n\n答：Yes"),
    # FastChat 0.2.36, conversation.py: baichuan2-chat.
    ("baichuan2", None, "<reserved_106>你好<reserved_107>Hi 🙂<reserved_106>And {{content}}?<reserved_107>Yes"),
    ("baichuan2", "S", "S<reserved_106>你好<reserved_107>Hi 🙂<reserved_106>And {{content}}?<reserved_107>Yes"),
    # GLM-4.6's chat template, in llama.cpp's models/templates/GLM-4.6.jinja.
    ("glm4_moe", None, f"[gMASK]<sop>{GLM_1}<think></think>\n{GLM_2}<think></think>\nYes"),
    ("glm4_moe", "S", f"[gMASK]<sop><|system|>\nS{GLM_1}<think></think>\n{GLM_2}<think></think>\nYes"),
]


@pytest.mark.parametrize("name,system,expected", LITERALS, ids=[f"{name}-{system}" for name, system, _ in LITERALS])
def test_texts_that_no_package_carries(name: str, system: str | None, expected: str) -> None:
    template = named_template(name)
    eos = template.stop_words[0] if template.replace_eos else "</s>"
    text = text_of(whole(template, conversation(TWO, system)), ("<s>", eos))
    assert text == expected.replace("<BOS>", "<s>").replace("<EOS>", eos)


def test_tools_of_glm4_moe() -> None:
    """From GLM-4.6's chat template (llama.cpp, models/templates/GLM-4.6.jinja); the text of the tools is LLaMA-Factory's."""
    record = tool_talk(None, "", "Look.")
    text = text_of(whole(named_template("glm4_moe"), replace(record, tools=())))
    assert text == (
        "[gMASK]<sop><|user|>\nHi<|assistant|>\n<think></think>\nHello<|user|>\n天气？<|assistant|>\n<think>Look.</think>"
        "\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>北京</arg_value>\n</tool_call>"
        "\n<tool_call>sum\n<arg_key>of</arg_key>\n<arg_value>[1, 2.5, null]</arg_value>"
        "\n<arg_key>exact</arg_key>\n<arg_value>true</arg_value>\n</tool_call>"
        '<|observation|>\n<tool_response>\n{"t": 3}\n</tool_response>\n<tool_response>\n3.5\n</tool_response><|assistant|>'
        "\n<think>Look.</think>\n3 度"
    )
    assert text_of(named_template("glm4_moe").prompt(conversation(["Hi"]), thinking=False)).endswith(
        "<|assistant|>\n<think></think>"
    )


def test_mistral_tokenises_as_mistral_common() -> None:
    """mistral-common 1.13.1: MistralTokenizer.v1().encode_chat_completion(...).text, with ▁ and <0x0A> as characters."""
    record = conversation(["u1", "a1", "u2"], "S")
    for name in ("mistral", "mixtral"):
        text = text_of(named_template(name).prompt(record), SP, space="written")
        assert text == "<s> [INST] S\n\nu1 [/INST] a1</s> [INST] u2 [/INST]"


def test_marks_of_baichuan2_are_the_official_tokens() -> None:
    encoder = Tokenizer.from_file(str(npm_tokenizer("baichuan2") / "tokenizer.json"))
    assert [encoder.token_to_id(f"<reserved_{number}>") for number in (106, 107)] == [195, 196]
