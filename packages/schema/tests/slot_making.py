"""Templates, conversations and a literal reading of MindSpeed-LLM's rules, for the tests of slots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from jumar.schema.chat import ChatRecord, Turn
from jumar.schema.slots import (
    Piece,
    SlotTemplate,
    Special,
    Token,
    load_templates,
)

BOS, EOS = Special("bos_token"), Special("eos_token")
KNOWN = """
default empty chatglm2 chatglm3 chatglm3_system glm4 chatml chatml_de cpm qwen llama3 llama2 mistral mixtral gemma alpaca
deepseek2 deepseek2-lite baichuan2 trl glm4_moe qwen_lf qwen_r1 qwen_math_r1 magistral minicpm3 deepseek3 intern2 hunyuan qwen3
bailing_mini plm gpt_oss deepseek4
""".split()

# A file as users have it: every field and every kind of slot once or more.
FILE: list[dict[str, Any]] = [
    {"name": "bare"},
    {
        "name": "rounds",
        "format_user": {"slots": ["[Round {{idx}}]\n\n问：{{content}}\n\n答："]},
        "format_prefix": {"slots": [{"token": "[gMASK]"}, {"token": "sop"}]},
        "format_separator": {"slots": ["\n\n"]},
        "efficient_eos": True,
        "force_system": True,
    },
    {
        "name": "tokens",
        "format_user": {"slots": [{"token": "<|user|>"}, "\n", "{{content}}", {"token": "<|assistant|>"}]},
        "format_assistant": {"slots": ["\n", "{{content}}"]},
        "format_system": {"slots": [["bos_token"], {"token": "<|system|>"}, "\n", "{{content}}"]},
        "format_function": {"slots": ["{{name}}\n{{arguments}}"]},
        "format_observation": {"slots": [{"token": "<|observation|>"}, "\n", "{{content}}", {"token": "<|assistant|>"}]},
        "default_system": ["You are", " here."],
        "stop_words": ["<|user|>", "<|observation|>"],
        "efficient_eos": True,
    },
    {
        "name": "llama2_mine",
        "format_user": {"slots": [["bos_token"], "[INST] {{content}} [/INST]"]},
        "format_system": {"slots": ["<<SYS>>\n{{content}}\n<</SYS>>\n\n"]},
    },
    {
        "name": "chat",
        "format_user": {"slots": ["<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n"]},
        "format_system": {"slots": ["<|im_start|>system\n{{content}}<|im_end|>\n"]},
        "format_observation": {"slots": ["<|im_start|>tool\n{{content}}<|im_end|>\n<|im_start|>assistant\n"]},
        "format_separator": {"slots": ["\n"]},
        "default_system": "You are a helpful assistant.",
        "stop_words": ["<|im_end|>"],
        "replace_eos": True,
        "template_class": "Template",
    },
    {
        "name": "followed",
        "format_assistant": {"slots": ["{{content}}<|im_end|>\n"]},
        "format_separator": {"slots": ["never seen"]},
        "template_class": "LFDefaultTemplate",
    },
]


def write(folder: Path, entries: Any) -> Path:
    path = folder / "templates.json"
    path.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    return path


def read(folder: Path, **fields: Any) -> SlotTemplate:
    return load_templates(write(folder, [{"name": "mine", **fields}]))["mine"]


def talk(*texts: str, system: str | None = None) -> ChatRecord:
    turns = [Turn("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts)]
    return ChatRecord(tuple(turns if system is None else [Turn("system", system), *turns]))


def text(pieces: list[Piece]) -> str:
    return "".join(piece if isinstance(piece, str) else f"<{piece.name}>" for piece in pieces)


def texts(template: SlotTemplate, record: ChatRecord, **settings: Any) -> list[tuple[str, str]]:
    return [(text(asked), text(answer)) for asked, answer in template.pairs(record, **settings)]


def literal(entry: dict[str, Any], record: ChatRecord) -> list[list[Piece]]:
    """MindSpeed-LLM's rules, turn by turn, from docs of the format: written without looking at our code."""
    eos = [] if entry.get("efficient_eos") else [["eos_token"]]
    lf = entry.get("template_class") == "LFDefaultTemplate"
    llama2 = entry["name"].startswith("llama2")

    def slots(key: str, default: list[Any]) -> list[Any]:
        return entry.get(key, {}).get("slots", default)

    def put(parts: list[Any], **values: str) -> list[Any]:
        out = []
        for part in parts:
            if isinstance(part, str):
                for name in values:
                    part = part.replace("{{" + name + "}}", "\0" + name + "\0")
                for name, value in values.items():
                    part = part.replace("\0" + name + "\0", value)
                if part == "":
                    continue
            out.append(part)
        return out

    default_system = "".join(entry.get("default_system", ""))
    rendered, turns = [], [turn for turn in record.turns if turn.role != "system"]
    for i, turn in enumerate(turns):
        parts, content, before = [], turn.content or "", ""
        if i == 0:
            parts += slots("format_prefix", [])
            system = record.system or default_system
            if system:
                made = put(slots("format_system", ["{{content}}"]), content=system)
                if llama2:
                    before = made[0]
                else:
                    parts += made
        elif i % 2 == 0 and not lf:
            parts += slots("format_separator", [])
        user = slots("format_user", ["{{content}}"])
        if turn.role == "user":
            parts += put(user, content=before + content, idx=str(i // 2))
        elif turn.role == "tool":
            parts += put(slots("format_observation", user), content=before + content, idx=str(i // 2))
        elif turn.tool_calls:
            function = turn.tool_calls[0]["function"]
            call = slots("format_function", ["Action: {{name}}\nAction Input: {{arguments}}", *eos])
            parts += put(call, name=function["name"], arguments=json.dumps(function["arguments"], ensure_ascii=False))
        else:
            parts += put(slots("format_assistant", ["{{content}}", *eos]), content=content)
        rendered.append(
            [Token(p["token"]) if isinstance(p, dict) else Special(p[0]) if isinstance(p, list) else p for p in parts]
        )
    return rendered


CONTENT = st.lists(st.sampled_from([*"a \n你🙂{}", "{{content}}", "{{idx}}", "{{name}}"]), max_size=6).map("".join)
CALLS = st.builds(
    lambda name, arguments: ({"type": "function", "function": {"name": name, "arguments": arguments}},),
    st.sampled_from(["weather", "{{arguments}}"]),
    st.dictionaries(CONTENT, CONTENT | st.integers() | st.none(), max_size=2),
)


@st.composite
def records(draw: st.DrawFn) -> ChatRecord:
    turns = [Turn("system", draw(CONTENT))] if draw(st.booleans()) else []
    for index in range(draw(st.integers(1, 3))):
        turns.append(Turn(draw(st.sampled_from(["user", "tool"])) if index else "user", draw(CONTENT)))
        calls = draw(CALLS) if draw(st.booleans()) else ()
        turns.append(Turn("assistant", None if calls else draw(CONTENT), tool_calls=calls))
    return ChatRecord(tuple(turns))


WEATHER = {
    "name": "weather",
    "description": "Tells the 天气.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Where."},
            "unit": {"type": "string", "enum": ["C", "F", 1]},
            "days": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["city"],
    },
}
NOW = {"name": "now"}


def wrapped(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": tool}


def call(name: str = "weather", arguments: Any = None) -> dict[str, Any]:
    return wrapped({"name": name, "arguments": {"city": "北京"} if arguments is None else arguments})


def calling(*calls: dict[str, Any], content: str | None = None, reasoning: str | None = None) -> ChatRecord:
    return ChatRecord((Turn("user", "?"), Turn("assistant", content, reasoning=reasoning, tool_calls=calls)))
