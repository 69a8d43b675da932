"""What jumar-data writes, done the long way: one record at a time, by json, transformers, jinja2 and struct alone."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pysbd
from transformers import PreTrainedTokenizerFast

Ids = list[int]
Sample = tuple[Ids, Ids]  # input_ids, labels
Messages = list[dict[str, Any]]
NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")


def tokenizer_of(folder: Path) -> PreTrainedTokenizerFast:
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    named = {name: config[name] for name in NAMED if config.get(name)}
    named = {name: token["content"] if isinstance(token, dict) else token for name, token in named.items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **named)
    tokenizer.chat_template = config.get("chat_template")
    return tokenizer


def records_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def files(sequences: list[Ids], kind: str = "i", documents: list[int] | None = None) -> tuple[bytes, bytes]:
    """(.bin, .idx). kind: struct's letter, i or H. documents: sequences of each, where that is not one."""
    width, code = {"i": (4, 4), "H": (2, 8)}[kind]
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQ", 1, code, len(sequences))
    counts = [1] * len(sequences) if documents is None else documents
    index += struct.pack("<Q", len(counts) + 1)
    index += b"".join(struct.pack("<i", len(sequence)) for sequence in sequences)
    at = 0
    for sequence in sequences:
        index += struct.pack("<q", at)
        at += width * len(sequence)
    at = 0
    for count in [0, *counts]:
        at += count
        index += struct.pack("<q", at)
    return b"".join(struct.pack(f"<{len(sequence)}{kind}", *sequence) for sequence in sequences), index


def pretrain(
    records: list[dict[str, Any]],
    key: str,
    keys: tuple[str, ...],
    tokenizer: Any,
    *,
    eod: bool = False,
    special: bool = True,
    language: str | None = None,
) -> tuple[list[Ids], list[int]]:
    """(sequences, how many each document has)."""
    sequences: list[Ids] = []
    documents: list[int] = []
    for record in records:
        if not all(isinstance(record.get(name), str) and record[name].strip() for name in keys):
            continue
        texts = [record[key]] if language is None else pysbd.Segmenter(language=language, clean=False).segment(record[key])
        rows = [row for text in texts if (row := list(tokenizer(text, add_special_tokens=special)["input_ids"]))]
        if eod:
            rows[-1].append(tokenizer.eos_token_id)
        sequences += rows
        documents.append(len(rows))
    return sequences, documents


# --- conversations through the model's own template


def chat(tokenizer: Any, messages: Messages, *, last: bool = False, tools: Any = None) -> Sample:
    def text(part: Messages, prompt: bool) -> str:
        return str(tokenizer.apply_chat_template(part, tools, tokenize=False, add_generation_prompt=prompt))

    whole = text(messages, False)
    spans = []
    for k, message in enumerate(messages):
        if message["role"] == "assistant":
            through = text(messages[: k + 1], False)
            assert whole.startswith(through)
            spans.append((len(text(messages[:k], True)), len(through.rstrip("\n"))))
    coded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    ids = list(coded["input_ids"])
    labels = [-100] * len(ids)
    for start, stop in spans[-1:] if last else spans:
        for i, (first, behind) in enumerate(coded["offset_mapping"]):
            if first < stop and behind > start:
                labels[i] = ids[i]
    return ids, labels


def cut(sample: Sample, seq_len: int | None) -> Sample:
    return sample[0][:seq_len], sample[1][:seq_len]


def trains(sample: Sample) -> bool:
    return any(label != -100 for label in sample[1])


def split(tokenizer: Any, messages: Messages, seq_len: int) -> list[Messages]:
    """Exchanges in lots, each as many as fit behind the system turn."""
    system = messages[:1] if messages[0]["role"] == "system" else []
    turns = messages[len(system) :]
    exchanges = [turns[i : i + 2] for i in range(0, len(turns), 2)]
    lots = [[exchanges[0]]]
    for exchange in exchanges[1:]:
        together = [*system, *(turn for one in [*lots[-1], exchange] for turn in one)]
        if len(chat(tokenizer, together)[0]) <= seq_len:
            lots[-1].append(exchange)
        else:
            lots.append([exchange])
    return [[*system, *(turn for one in lot for turn in one)] for lot in lots]


# --- conversations through MindSpeed-LLM's slots


def slots(tokenizer: Any, template: dict[str, Any], messages: Messages, tools: Any = None, *, last: bool = False) -> Sample:
    eos = template["stop_words"][0] if template.get("replace_eos") else tokenizer.eos_token
    eos_id = tokenizer.convert_tokens_to_ids(eos)
    efficient = template.get("efficient_eos", False)
    ending = [] if efficient else [["eos_token"]]

    def encode(elements: list[Any], **values: str) -> Ids:
        ids: Ids = []
        for element in elements:
            if isinstance(element, dict):
                ids.append(tokenizer.convert_tokens_to_ids(element["token"]))
            elif isinstance(element, list):
                ids.append({"bos_token": tokenizer.bos_token_id, "eos_token": eos_id}[element[0]])
            else:
                for name, value in values.items():
                    element = element.replace("{{" + name + "}}", value)
                ids += tokenizer(element, add_special_tokens=False)["input_ids"] if element else []
        return ids

    def form(kind: str, default: list[Any]) -> list[Any]:
        found: list[Any] = template.get(f"format_{kind}", {}).get("slots", default)
        return found

    user = form("user", ["{{content}}"])
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    system = messages[0]["content"] if turns is not messages else template.get("default_system", "")
    if tools:
        system += tool_text(tools)
    ids: Ids = []
    labels: Ids = []
    for i in range(0, len(turns), 2):
        asked, answer = turns[i], turns[i + 1]
        source: Ids = encode(form("prefix", [])) if i == 0 else encode(form("separator", []))
        if i == 0 and system:
            source += encode(form("system", ["{{content}}"]), content=system)
        slot = user if asked["role"] == "user" else form("observation", user)
        source += encode(slot, content=asked["content"], idx=str(i // 2))
        if "call" in answer:
            called = {"name": answer["call"]["name"], "arguments": json.dumps(answer["call"]["arguments"], ensure_ascii=False)}
            target = encode(form("function", ["Action: {{name}}\nAction Input: {{arguments}}", *ending]), **called)
        else:
            target = encode(form("assistant", ["{{content}}", *ending]), content=answer["content"])
        learns = not last or i + 2 == len(turns)
        ids += source + target
        labels += [eos_id if efficient and i and not last else -100, *([-100] * (len(source) - 1))]
        labels += target if learns else [-100] * len(target)
    end = [eos_id] if efficient else []
    return [*ids, *end], [*labels, *end]


def tool_text(tools: Any) -> str:
    """The default tool format of MindSpeed-LLM, as LLaMA-Factory has it."""
    text = "You have access to the following tools:\n"
    for tool in tools:
        text += f"> Tool Name: {tool['name']}\nTool Description: {tool['description']}\nTool Args:\n"
        for name, schema in tool["parameters"]["properties"].items():
            needed = ", required" if name in tool["parameters"].get("required", []) else ""
            text += f"  - {name} ({schema['type']}{needed}): {schema['description']}\n"
        text += "\n"
    text += "Use the following format if using a tool:\n```\n"
    text += f"Action: tool name (one of [{', '.join(tool['name'] for tool in tools)}]).\n"
    text += "Action Input: the input to the tool, in a JSON format representing the kwargs "
    return text + '(e.g. ```{"input": "hello world", "num_beams": 5}```).\n```\n'
