"""Every file that jumar-data writes, to the byte, against a writer that does it the long way (data_reference.py).

And: megatron-core reads them; neither workers nor blocks, engines nor shards change a byte.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

import data_reference as reference
from data_making import (
    BAD_CHATS,
    CHATS,
    TOOL,
    TUNING,
    Rows,
    chats,
    conversation,
    expect,
    expect_tuning,
    make,
    read,
    tokenizer_of,
    write_rows,
)
from fetched import npm_tokenizer
from jumar.data_prep.job import Job
from jumar.data_prep.merge import merge
from jumar.data_prep.pipeline import run

# --- pretraining

TEXTS = [
    {"text": "Hello world. This is Dr. Smith, of the U.S. army! Is it? Yes.\n\nA new line.", "title": "One"},
    {"text": "你好，世界。今天天气很好！真的吗？是的。", "title": "二"},
    {"text": "  leading and trailing  \n", "title": "<s> </s> <|endoftext|>"},
    {"text": "emoji 👩‍👩‍👧 and e\u0301 and \u00a0 and \u0000 and \u2028 end", "title": "🙂"},
    {"text": "def f(x):\n\treturn {'a': x}  # comment\n" * 20, "title": "code " * 9},
    {"text": "x", "title": "y"},
    *({"text": f"Document number {i}: " + "word and word. " * (i % 7), "title": f"{i}"} for i in range(20)),
]
BAD_TEXTS = (
    '{"text": "", "title": "a"}',
    '{"text": " \\n", "title": "a"}',
    "[1]",
    '{"text": 3, "title": "a"}',
    '{"title": "a"}',
    "{",
)
PRETRAIN = {
    "bos": ("llama2", {}),
    "bos and eod": ("llama2", {"append_eod": True}),
    "no special tokens": ("llama2", {"special": False}),
    "no special tokens and eod": ("llama2", {"special": False, "append_eod": True}),
    "sentences": ("llama2", {"split_sentences": True}),
    "sentences and eod": ("qwen3", {"split_sentences": True, "append_eod": True, "language": "zh"}),
    "two keys": ("llama2", {"keys": ("text", "title"), "append_eod": True}),
    "large vocabulary": ("qwen3", {}),
    "large vocabulary and eod": ("qwen3", {"append_eod": True}),
}


@pytest.mark.parametrize("case", PRETRAIN)
def test_pretrain(case: str, tmp_path: Path) -> None:
    model, options = PRETRAIN[case]
    prefix = make(tmp_path, "pretrain", TEXTS, model, BAD_TEXTS, **options)
    expect_pretrain(prefix, TEXTS, model, options)
    if model == "llama2" and options.get("special", True):
        assert read(next(prefix.parent.glob("x_text_*.bin")).with_suffix(""))[0][0] == tokenizer_of("llama2").bos_token_id


def expect_pretrain(prefix: Path, rows: Rows, model: str, options: dict[str, Any]) -> None:
    keys = options.get("keys", ("text",))
    language = options.get("language", "en") if "split_sentences" in options else None
    eod, special = options.get("append_eod", False), options.get("special", True)
    made = {
        key: reference.pretrain(rows, key, keys, tokenizer_of(model), eod=eod, special=special, language=language) for key in keys
    }
    documents = made[keys[0]][1] if language else None
    expect(prefix, "", {key: sequences for key, (sequences, _) in made.items()}, "H" if model == "llama2" else "i", documents)


def test_pretrain_from_the_command_line(tmp_path: Path) -> None:
    rows = TEXTS[:8]
    source = write_rows(tmp_path / "in.jsonl", rows, BAD_TEXTS[:3])
    (tmp_path / "out").mkdir()
    command = ["pretrain", source, "-o", tmp_path / "out" / "x", "--tokenizer", npm_tokenizer("llama2")]
    command += ["--append-eod", "--no-special-tokens", "--key", "title", "--key", "text"]
    done = subprocess.run([sys.executable, "-m", "jumar.data_prep", *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    options = {"keys": ("title", "text"), "append_eod": True, "special": False}
    expect_pretrain(tmp_path / "out" / "x", rows, "llama2", options)


class MegatronTokenizer:
    """What GPTDataset asks of a tokenizer."""

    eod, pad, vocab_size = 2, 0, 32000
    unique_identifiers = {"class": "llama2"}  # noqa: RUF012  # as megatron-core has it


def test_megatron_trains_on_it(tmp_path: Path) -> None:
    """GPTDataset's samples are windows of the documents end to end."""
    prefix = make(tmp_path, "pretrain", TEXTS, "llama2", append_eod=True)
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=32,
        blend=([f"{prefix}_text_document"], None),
        split="1,0,0",
        path_to_cache=str(tmp_path / "cache"),
        tokenizer=MegatronTokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
    )
    dataset = BlendedMegatronDatasetBuilder(GPTDataset, [10, 0, 0], lambda: True, config).build()[0]
    documents, _ = reference.pretrain(TEXTS, "text", ("text",), tokenizer_of("llama2"), eod=True)
    order = dataset.document_index.tolist()
    stream = [token for number in order for token in documents[number]]
    windows = [stream[at : at + 33] for at in range(0, 32 * len(dataset), 32)]
    seen = [[*item["tokens"].tolist(), int(item["labels"][-1])] for item in (dataset[i] for i in range(len(dataset)))]
    assert len(seen) >= 10
    assert sorted(seen) == sorted(windows)


# --- tuning


@pytest.mark.parametrize("train_on", ["all", "last"])
@pytest.mark.parametrize("model", ["qwen2_5", "llama3_1", "deepseek_v3"])
def test_sft(model: str, train_on: str, tmp_path: Path) -> None:
    prefix = make(tmp_path, "sft", CHATS, model, BAD_CHATS, train_on=train_on)
    expect_tuning(prefix, chats(model, last=train_on == "last"))
    report = json.loads(Path(f"{prefix}.report.json").read_text(encoding="utf-8"))
    assert report["records"]["rejected"] == len(BAD_CHATS) == len(Path(f"{prefix}.rejects.jsonl").read_text().splitlines())


def test_sft_with_tools(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "北京"}}}
    turns = [
        {"role": "user", "content": "天气？"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "3 度"},
    ]
    rows = [{"messages": turns, "tools": [{"type": "function", "function": TOOL}]}, CHATS[1] | {"tools": None}]
    expect_tuning(make(tmp_path, "sft", rows, "qwen2_5"), chats("qwen2_5", rows))


SEQ_LEN = 96


def test_long_is_cut(tmp_path: Path) -> None:
    prefix = make(tmp_path, "sft", CHATS, "qwen2_5", seq_len=SEQ_LEN, long="truncate")
    samples = [reference.cut(sample, SEQ_LEN) for sample in chats("qwen2_5")]
    expect_tuning(prefix, [sample for sample in samples if reference.trains(sample)])


def test_long_is_dropped(tmp_path: Path) -> None:
    prefix = make(tmp_path, "sft", CHATS, "qwen2_5", seq_len=SEQ_LEN, long="drop")
    expect_tuning(prefix, [sample for sample in chats("qwen2_5") if len(sample[0]) <= SEQ_LEN])


def longer(i: int, exchanges: int) -> list[dict[str, Any]]:
    turns = [{"role": "system", "content": f"System {i}."}] if i % 2 else []
    for k in range(exchanges):
        turns.append({"role": "user", "content": f"Question {i} {k}? " * (1 + (i + k) % 3)})
        turns.append({"role": "assistant", "content": f"Answer {i} {k}. " * (1 + (i * k) % 3)})
    return turns


@pytest.mark.parametrize("model", ["qwen2_5", "llama3_1"])
def test_long_is_split(model: str, tmp_path: Path) -> None:
    rows = [{"messages": longer(i, 1 + i)} for i in range(10)]
    tokenizer = tokenizer_of(model)
    assert all(len(reference.chat(tokenizer, longer(i, 1))[0]) <= SEQ_LEN for i in range(10))
    prefix = make(tmp_path, "sft", rows, model, seq_len=SEQ_LEN, long="split")
    parts = [part for row in rows for part in reference.split(tokenizer, row["messages"], SEQ_LEN)]
    samples = [reference.chat(tokenizer, part) for part in parts]
    expect_tuning(prefix, samples)
    # The rules themselves, of what was written.
    texts = [tokenizer.decode(row) for row in read(f"{prefix}_packed_input_ids_document")]
    assert all(len(ids) <= SEQ_LEN for ids, _ in samples)
    found: list[tuple[int, int]] = []
    for text in texts:
        own = [(i, k) for i in range(10) for k in range(1 + i) if f"Question {i} {k}?" in text]
        assert len({i for i, _ in own}) == 1
        assert all(f"Answer {i} {k}." in text for i, k in own)
        assert (f"System {own[0][0]}." in text) == (own[0][0] % 2 == 1)
        found += own
    assert found == [(i, k) for i in range(10) for k in range(1 + i)]
    assert len(texts) > len(rows)


def test_split_cuts_an_exchange_that_is_too_long_alone(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "S."}, *longer(2, 2), *longer(4, 1)]
    turns[4]["content"] = "long " * 200
    prefix = make(tmp_path, "sft", [{"messages": turns}], "qwen2_5", seq_len=SEQ_LEN, long="split")
    parts = [[turns[0], *turns[1:3]], [turns[0], *turns[3:5]], [turns[0], *turns[5:7]]]
    expect_tuning(prefix, [reference.cut(reference.chat(tokenizer_of("qwen2_5"), part), SEQ_LEN) for part in parts])


@pytest.mark.parametrize("model", ["qwen2_5", "deepseek_v3"])
def test_pack(model: str, tmp_path: Path) -> None:
    seq_len = 256
    prefix = make(tmp_path, "sft", CHATS, model, BAD_CHATS, seq_len=seq_len, pack=True, long="drop")
    wanted = [sample for sample in chats(model) if len(sample[0]) <= seq_len]
    ids, masks, labels = (read(f"{prefix}_packed_{key}_document") for key in TUNING)
    pad = tokenizer_of(model).pad_token_id
    found: list[int] = []
    for row, mask, label in zip(ids, masks, labels, strict=True):
        assert len(row) == len(mask) == len(label) == seq_len
        count = max(mask)
        lengths = Counter(mask)
        assert mask == [number for number in range(1, count + 1) for _ in range(lengths[number])] + [0] * lengths[0]
        members, at = [], 0
        for number in range(1, count + 1):
            stop = at + lengths[number]
            members.append(wanted.index((row[at:stop], label[at:stop])))
            at = stop
        assert members == sorted(members)
        assert (row[at:], label[at:]) == ([pad] * (seq_len - at), [-100] * (seq_len - at))
        found += members
    assert sorted(found) == list(range(len(wanted)))
    assert len(ids) < len(wanted)
    expect(prefix, "_packed", {"input_ids": ids, "attention_mask": masks, "labels": labels})


def test_pack_cuts_what_is_too_long(tmp_path: Path) -> None:
    prefix = make(tmp_path, "sft", CHATS[:6], "qwen2_5", seq_len=SEQ_LEN, pack=True)
    samples = [reference.cut(sample, SEQ_LEN) for sample in chats("qwen2_5", CHATS[:6])]
    ids, masks, labels = (read(f"{prefix}_packed_{key}_document") for key in TUNING)
    found = [
        ([t for t, m in zip(row, mask, strict=True) if m == n], [t for t, m in zip(label, mask, strict=True) if m == n])
        for row, mask, label in zip(ids, masks, labels, strict=True)
        for n in range(1, max(mask) + 1)
    ]
    assert sorted(found) == sorted(sample for sample in samples if reference.trains(sample))


# --- templates as MindSpeed-LLM's file has them

TEMPLATES: list[dict[str, Any]] = [
    {
        "name": "plain",
        "format_user": {"slots": ["Human: {{content}}\nAssistant: "]},
        "format_system": {"slots": ["{{content}}\n"]},
        "format_separator": {"slots": ["\n"]},
    },
    {
        "name": "efficient",
        "format_user": {"slots": ["[Round {{idx}}]\n\n问：{{content}}\n\n答："]},
        "format_prefix": {"slots": [["bos_token"], "begin "]},
        "format_separator": {"slots": ["\n\n"]},
        "default_system": "默认 system ",
        "efficient_eos": True,
    },
    {
        "name": "tokens",
        "format_user": {"slots": [{"token": "<|im_start|>"}, "user\n{{content}}<|im_end|>\n<|im_start|>assistant\n"]},
        "format_assistant": {"slots": ["{{content}}", ["eos_token"], "\n"]},
        "format_observation": {"slots": [{"token": "<|im_start|>"}, "tool\n{{content}}", {"token": "<|im_end|>"}]},
        "format_system": {"slots": [{"token": "<|im_start|>"}, "system\n{{content}}", {"token": "<|im_end|>"}, "\n"]},
        "format_tools": {"tool_format": "default"},
        "stop_words": ["<|endoftext|>"],
        "replace_eos": True,
    },
]


@pytest.mark.parametrize("train_on", ["all", "last"])
@pytest.mark.parametrize(
    "model,name", [("llama2", "plain"), ("llama2", "efficient"), ("qwen2_5", "plain"), ("qwen2_5", "tokens")]
)
def test_slot_templates(model: str, name: str, train_on: str, tmp_path: Path) -> None:
    file = tmp_path / "templates.json"
    file.write_text(json.dumps(TEMPLATES, ensure_ascii=False), encoding="utf-8")
    template = next(one for one in TEMPLATES if one["name"] == name)
    prefix = make(tmp_path, "sft", CHATS, model, BAD_CHATS, template=f"{file}:{name}", train_on=train_on)
    expect_tuning(
        prefix, [reference.slots(tokenizer_of(model), template, row["messages"], last=train_on == "last") for row in CHATS]
    )


@pytest.mark.parametrize("model,name", [("qwen2_5", "tokens"), ("llama2", "plain"), ("llama2", "efficient")])
def test_slot_templates_with_tools(model: str, name: str, tmp_path: Path) -> None:
    """ShareGPT's turns of a called function and of what it answers."""
    file = tmp_path / "templates.json"
    file.write_text(json.dumps(TEMPLATES, ensure_ascii=False), encoding="utf-8")
    called = {"name": "weather", "arguments": {"city": "北京"}}
    talk = [
        {"from": "human", "value": "天气？"},
        {"from": "function_call", "value": json.dumps(called)},
        {"from": "observation", "value": '{"t": 3}'},
        {"from": "gpt", "value": "3 度"},
    ]
    rows = [{"conversations": talk, "system": system, "tools": json.dumps([TOOL])} for system in ("", "Be brief. ")]
    prefix = make(tmp_path, "sft", rows, model, template=f"{file}:{name}")
    template = next(one for one in TEMPLATES if one["name"] == name)
    messages = [
        {"role": "user", "content": "天气？"},
        {"role": "assistant", "call": called},
        {"role": "tool", "content": '{"t": 3}'},
        {"role": "assistant", "content": "3 度"},
    ]
    system = [{"role": "system", "content": "Be brief. "}]
    expect_tuning(
        prefix, [reference.slots(tokenizer_of(model), template, both, [TOOL]) for both in (messages, system + messages)]
    )


# --- pairs, rewards, prompts

SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}


def pairs(form: str) -> tuple[Rows, list[tuple[list[dict[str, Any]], str, str]]]:
    """Records of a format; and what they say: the prompt, the better answer, the worse one."""
    meant = [(conversation(i)[:-1], f"Good {i}. " * (1 + i % 4), f"Bad {i}, 不好") for i in range(12)]
    rows: Rows = []
    for prompt, chosen, rejected in meant:
        if form == "alpaca":
            system = prompt[0]["content"] if prompt[0]["role"] == "system" else ""
            talk = [turn["content"] for turn in prompt if turn["role"] != "system"]
            history = [talk[i : i + 2] for i in range(0, len(talk) - 1, 2)]
            asked, _, more = talk[-1].partition("\n")
            row = {"instruction": asked, "input": more, "history": history, "system": system}
            rows.append(row | {"chosen": chosen, "rejected": rejected})
        elif form == "sharegpt":
            turns = [{"from": SPEAKERS[turn["role"]], "value": turn["content"]} for turn in prompt]
            both = {"chosen": {"from": "gpt", "value": chosen}, "rejected": {"from": "gpt", "value": rejected}}
            rows.append({"conversations": turns} | both)
        else:
            both = [[*prompt, {"role": "assistant", "content": answer}] for answer in (chosen, rejected)]
            rows.append({"chosen": both[0], "rejected": both[1]})
    return rows, meant


@pytest.mark.parametrize("seq_len", [None, 80])
@pytest.mark.parametrize("form", ["alpaca", "sharegpt", "messages"])
def test_pairwise(form: str, seq_len: int | None, tmp_path: Path) -> None:
    rows, meant = pairs(form)
    bad = ('{"chosen": 1}',)
    prefix = make(tmp_path, "pairwise", rows, "qwen2_5", bad, seq_len=seq_len)
    keys: dict[str, list[list[int]]] = {
        name: [] for name in ("chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels")
    }
    for prompt, *answers in meant:
        both = [[*prompt, {"role": "assistant", "content": answer}] for answer in answers]
        samples = [reference.cut(reference.chat(tokenizer_of("qwen2_5"), turns, last=True), seq_len) for turns in both]
        if all(reference.trains(sample) for sample in samples):
            for rows_of, row in zip(keys.values(), (row for sample in samples for row in sample), strict=True):
                rows_of.append(row)
    assert 0 < len(keys["chosen_labels"]) <= len(meant)
    expect(prefix, "_packed", keys)


@pytest.mark.parametrize(
    "model,placeholder,rewards", [("llama2", "ки", ("+", "-")), ("qwen2_5", "<|fim_pad|>", ("good", "bad", "0.5"))]
)
def test_process_reward(model: str, placeholder: str, rewards: tuple[str, ...], tmp_path: Path) -> None:
    if model == "qwen2_5":
        rewards = rewards[:2]  # 0.5 is no one token
    rows = [
        {
            "input": f"Problem {i}: 1+{i}? " + " ".join(f"Step {k}: 你好 {placeholder}\n" for k in range(1 + i % 4)),
            "value": [rewards[(i + k) % 2] for k in range(1 + i % 4)],
        }
        for i in range(12)
    ]
    bad = (json.dumps({"input": f"a {placeholder}", "value": [rewards[0]] * 2}), '{"input": "a", "value": ["?"]}')
    options = {} if model == "llama2" else {"placeholder": placeholder, "reward_tokens": rewards}
    prefix = make(tmp_path, "process-reward", rows, model, bad, **options)
    encode = functools.partial(tokenizer_of(model).encode, add_special_tokens=False)
    (place,), samples = encode(placeholder), []
    for row in rows:
        ids, values = encode(row["input"]), iter(row["value"])
        samples.append((ids, [encode(next(values))[0] if token == place else -100 for token in ids]))
    expect_tuning(prefix, samples)


@pytest.mark.parametrize("seq_len", [None, 60])
def test_prompts(seq_len: int | None, tmp_path: Path) -> None:
    extras: list[Any] = ["math", {"b": [1, "二"]}, 3, None, "<|im_end|> x"]
    rows = [{**row, "kind": extras[i % 5]} for i, row in enumerate(CHATS)]
    prefix = make(tmp_path, "prompts", rows, "qwen2_5", BAD_CHATS[:2], keys=("labels", "kind"), long="drop", seq_len=seq_len)
    tokenizer = tokenizer_of("qwen2_5")
    keys: dict[str, list[list[int]]] = {name: [] for name in ("input_ids", "attention_mask", "labels", "kind")}
    for row in rows:
        text = tokenizer.apply_chat_template(row["messages"][:-1], tokenize=False, add_generation_prompt=True)
        kind = row["kind"] if isinstance(row["kind"], str) else json.dumps(row["kind"], ensure_ascii=False, separators=(",", ":"))
        ids, labels, kinds = (
            tokenizer.encode(given, add_special_tokens=False) for given in (text, row["messages"][-1]["content"], kind)
        )
        if seq_len is None or len(ids) <= seq_len:
            for name, values in zip(keys, (ids, [1] * len(ids), labels, kinds), strict=True):
                keys[name].append(values)
    expect(prefix, "_packed", keys)


def test_sft_from_the_command_line(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Say hi", "input": "in French", "output": "Salut", "history": [["a", "b"]], "system": "S"},
        {"instruction": "Say", "input": "", "output": "你好", "history": [], "system": ""},
    ]
    source = write_rows(tmp_path / "in.jsonl", rows)
    (tmp_path / "out").mkdir()
    command = ["sft", source, "-o", tmp_path / "out" / "x", "--tokenizer", npm_tokenizer("qwen2_5"), "--map", "history=history"]
    command += ["--map", "system=system", "--seq-len", "512", "--workers", "2", "--json"]
    done = subprocess.run([sys.executable, "-m", "jumar.data_prep", *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    first = [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "Say hi\nin French"), ("assistant", "Salut")]
    second = [("user", "Say"), ("assistant", "你好")]
    meant = [[{"role": role, "content": content} for role, content in turns] for turns in (first, second)]
    expect_tuning(tmp_path / "out" / "x", [reference.chat(tokenizer_of("qwen2_5"), turns) for turns in meant])


# --- the same bytes, however a run is done

MANY = {
    "pretrain": (TEXTS * 6, BAD_TEXTS, "llama2", {"append_eod": True}),
    "sentences": (TEXTS * 3, BAD_TEXTS, "llama2", {"split_sentences": True}),
    "sft": (CHATS * 3, BAD_CHATS, "qwen2_5", {"seq_len": SEQ_LEN, "long": "split"}),
    "pack": (CHATS * 3, BAD_CHATS, "chatglm3", {"seq_len": 160, "pack": True, "train_on": "last"}),
    "slots": (CHATS * 3, BAD_CHATS, "llama2", {"template": "default"}),
    "pairwise": (pairs("messages")[0] * 3, ("{}",), "chatglm3", {"seq_len": 120, "long": "drop"}),
    "prompts": (CHATS * 3, BAD_CHATS, "chatglm3", {"keys": ("labels",), "seq_len": 60, "long": "drop"}),
    "process-reward": (
        [{"input": f"{i} ки and {'word ' * i} ки", "value": ["+", "-"]} for i in range(40)],
        ('{"input": "ки", "value": []}',),
        "llama2",
        {"seq_len": 40},
    ),
}
SMALL_BLOCKS = 2048


def contents(folder: Path, *, bytes_alone: bool = False) -> dict[str, bytes]:
    """All files by name; `bytes_alone`: without those that say how they were made."""
    about = ("manifest.json", "report.json", "report.html")
    return {
        file.name: file.read_bytes()
        for file in sorted(folder.iterdir())
        if file.is_file() and not (bytes_alone and file.name.endswith(about))
    }


@pytest.mark.parametrize(
    "name", [name if name in ("pretrain", "sft", "pack") else pytest.param(name, marks=pytest.mark.slow) for name in MANY]
)
def test_the_same_however_it_is_done(name: str, tmp_path: Path) -> None:
    rows, bad, model, options = MANY[name]
    command = {"sentences": "pretrain", "pack": "sft", "slots": "sft"}.get(name, name)
    source = write_rows(tmp_path / "in.jsonl", rows, bad)

    def done(folder: str, **how: Any) -> Path:
        (tmp_path / folder).mkdir(exist_ok=True)
        how = {"workers": 1, "tokenizer_engine": "tokenizers", "block_bytes": SMALL_BLOCKS, **options, **how}
        job = Job(command, (str(source),), tmp_path / folder / "x", npm_tokenizer(model), **how)
        run(job, say=lambda word, text: None)
        return tmp_path / folder

    first = contents(done("one"))
    ends = ("manifest.json", "rejects.jsonl", "report.html", "report.json")
    assert {f"x.{end}" for end in ends} <= set(first)
    assert len((tmp_path / "in.jsonl").read_bytes()) > 3 * SMALL_BLOCKS or name == "process-reward"
    assert contents(done("two", workers=2)) == first
    for part in (2, 0, 1):
        done("shards", shard=(part, 3), workers=1 + part % 2)
    merge([str(tmp_path / "shards" / "x")], None, force=False, say=lambda word, text: None)
    assert contents(tmp_path / "shards") == first
    bare = contents(tmp_path / "one", bytes_alone=True)
    assert contents(done("blocks", block_bytes=4 << 20), bytes_alone=True) == bare
    engines = ("fastokens", "gigatoken") if name in ("pretrain", "sft") else ()  # the others encode by the same call
    for engine in engines:
        assert contents(done(engine, tokenizer_engine=engine, workers=2), bytes_alone=True) == bare
    reports = [
        json.loads((tmp_path / folder / "x.report.json").read_text(encoding="utf-8")) for folder in ("one", "blocks", *engines)
    ]
    assert all(report | {"settings": None} == reports[0] | {"settings": None} for report in reports)
