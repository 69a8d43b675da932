"""What is wrong is said in one line, with what to type next and the exit code; nothing is guessed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import infer_models
from infer_models import FAST
from jumar.device import open_device
from jumar.infer.faults import hardware_faults
from jumar.infer.memory import host_free_bytes
from jumar.schema.errors import Exit, ToolError
from jumar.schema.registry import family_of

ONE = ("-p", "x", *FAST)


def refused(done, code: int, *says: str) -> None:
    assert (done.code, done.out) == (code, ""), done.err
    assert all(part in done.err for part in (*says, "error:", "hint:")), done.err
    assert "Traceback" not in done.err


def copied(hf: Path, home: Path, *left_out: str) -> Path:
    """The model of a directory in another, without some files."""
    home.mkdir()
    for file in hf.iterdir():
        if file.name not in left_out:
            (home / file.name).write_bytes(file.read_bytes())
    return home


def in_two_shards(hf: Path, home: Path) -> Path:
    model = copied(hf, home, "model.safetensors")
    tensors = load_file(hf / "model.safetensors")
    weight_map = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file({n: tensors[n] for n in names}, model / name)
        weight_map |= dict.fromkeys(names, name)
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return model


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (lambda m: (m / "model-00002-of-00002.safetensors").unlink(), "model-00002-of-00002.safetensors"),
    "truncated shard": (lambda m: cut(m / "model-00002-of-00002.safetensors"), "model-00002-of-00002.safetensors"),
    "truncated header": (lambda m: (m / "model-00001-of-00002.safetensors").write_bytes(b"\1\0"), "model-00001-of-00002"),
    "no config": (lambda m: (m / "config.json").unlink(), "config.json"),
    "config": (lambda m: (m / "config.json").write_text("{"), "config.json"),
    "tokenizer": (lambda m: (m / "tokenizer.json").write_text("{"), "tokenizer.json"),
    "tokenizer's configuration": (lambda m: (m / "tokenizer_config.json").write_text("[]"), "tokenizer_config.json"),
    "generation": (lambda m: (m / "generation_config.json").write_text("{"), "generation_config.json"),
    "generation, a list": (lambda m: (m / "generation_config.json").write_text("[]"), "generation_config.json"),
    "temperature": (
        lambda m: (m / "generation_config.json").write_text('{"do_sample": true, "temperature": "hot"}'),
        "temperature",
    ),
    "temperature of no use": (lambda m: (m / "generation_config.json").write_text('{"temperature": "hot"}'), "temperature"),
    "temperature below 0": (
        lambda m: (m / "generation_config.json").write_text('{"do_sample": true, "temperature": -1}'),
        "hf: temperature is -1",
    ),
    "end token": (lambda m: (m / "generation_config.json").write_text('{"eos_token_id": "x"}'), "eos_token_id"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files(name: str, infer, hf: Path, tmp_path: Path) -> None:
    model = in_two_shards(hf, tmp_path / "hf")
    damage, says = DAMAGES[name]
    assert infer("generate", model, *ONE).code == 0
    damage(model)
    refused(infer("generate", model, *ONE), 3, says)


@pytest.mark.parametrize("command", ("generate", "chat", "serve", "score"))
def test_every_command_says_what_is_no_model(command: str, infer, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/README.md").write_text("a checkpoint will be here")
    more = (tmp_path / "rows.jsonl",) if command in ("generate", "score") else ("--port", 0) if command == "serve" else ()
    for model in ("notes", "rows.jsonl", "nowhere"):
        refused(infer(command, tmp_path / model, *more, "--device", "cpu"), 3, model)


def test_what_a_model_has_not(infer, hf: Path, tmp_path: Path) -> None:
    silent = copied(hf, tmp_path / "silent", "tokenizer.json")
    for command in (("generate", silent, *ONE), ("chat", silent)):
        refused(infer(*command), 3, "no tokenizer", "--tokenizer")
    plain = tmp_path / "plain"
    copied(hf, plain)
    infer_models.add_tokenizer(plain, template=None)
    for command in (("chat", plain), ("generate", plain, *ONE, "--chat")):
        refused(infer(*command), 3, "no chat template", "--template")


def test_a_path_that_is_not_utf8(infer, hf: Path, tmp_path: Path) -> None:
    done = infer("generate", copied(hf, tmp_path / "caf\udce9"), *ONE)
    refused(done, 3, "a path that is not UTF-8", "caf\\udce9", "rename the directory")


def test_adapters_of_other_models(infer, hf: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    infer_models.make(tmp_path / "other", "gpt2")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "other"), LoraConfig(r=2, target_modules=["c_attn"]))
    model.save_pretrained(tmp_path / "gpt2")
    refused(infer("generate", hf, *ONE, "--adapter", tmp_path / "gpt2"), 3, "c_attn")
    refused(infer("generate", hf, *ONE, "--adapter", hf), 3, str(hf), "LoRA")
    refused(infer("generate", hf, *ONE, "--adapter", tmp_path / "nowhere"), 3, "nowhere")
    settings = tmp_path / "gpt2/adapter_config.json"
    whole = settings.read_text()
    settings.write_text(json.dumps(json.loads(whole) | {"new_key": 1}))
    done = infer("generate", tmp_path / "other", *ONE, "--adapter", tmp_path / "gpt2")
    refused(done, 3, "new_key", "by jumar-convert, which has these options")
    settings.write_text(whole)
    cut(tmp_path / "gpt2/adapter_model.safetensors")
    refused(infer("generate", tmp_path / "other", *ONE, "--adapter", tmp_path / "gpt2"), 3, "adapter_model.safetensors")
    refused(infer("generate", tmp_path / "gpt2", *ONE), 3, "adapter")


def test_texts_that_cannot_be_taken(infer, hf: Path, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes('{"prompt": "Höhe", "text": "Höhe"}'.encode("latin-1"))
    for command in ("generate", "score"):
        refused(infer(command, hf, tmp_path / "latin", "--device", "cpu"), 3, "latin is not UTF-8")
    refused(infer("generate", hf, *ONE, "--chat", "--template", f"{tmp_path / 'latin'}.jinja"), 3, "cannot be read")
    refused(infer("serve", hf, "--port", 0, "--api-key-file", tmp_path / "latin"), 3, "latin")
    refused(infer("generate", hf, "-p", "x" * 200, *FAST), 3, "200 tokens", "128")
    small = ("--cache-tokens", 32, "--device", "cpu")
    refused(infer("generate", hf, "-p", "x" * 60, *small, "--max-new-tokens", 4), 3, "64 tokens need 2 pages", "--cache-tokens")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "x" * 60}))
    refused(infer("score", hf, tmp_path / "rows.jsonl", *small), 3, "rows.jsonl:1", "--cache-tokens")


def test_devices_that_are_not_there(infer, hf: Path) -> None:
    for name in ("cuda", "npu"):
        try:
            open_device(name)
        except ToolError:
            refused(infer("generate", hf, "-p", "x", "--device", name), 4, f"device {name} cannot be used")


# --- memory


def test_more_than_the_memory_holds(infer, hf: Path, tmp_path: Path) -> None:
    """An embedding of 1.6 TB, in a file that takes no place on the disk; and a cache as large."""
    family = family_of("llama")
    config = {**family.tiny, "hidden_size": 8192, "vocab_size": 50_000_000, "tie_word_embeddings": True, "num_hidden_layers": 1}
    header, at = {}, 0
    for name, shape in family.hf_tensors(family.spec(config)).items():
        end = at + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text(json.dumps(config))
    with (tmp_path / "hf/model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    refused(infer("generate", tmp_path / "hf", *ONE), 4, "the weights need 1.5 TiB", "--dtype bf16")
    refused(infer("generate", hf, "-p", "x", "--device", "cpu", "--cache-tokens", 10**11), 4, "--cache-tokens")


def test_torch_has_no_memory_left() -> None:
    with pytest.raises(ToolError, match="out of memory") as fault, hardware_faults():
        torch.empty(1 << 50)
    assert fault.value.code == Exit.ENVIRONMENT
    with pytest.raises(RuntimeError, match="must match"), hardware_faults():
        torch.zeros(2) + torch.zeros(3)


def test_what_control_groups_leave(tmp_path: Path) -> None:
    def write(path: str, text: object) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"{text}\n")

    mib = 1 << 20
    write("proc/meminfo", "MemTotal: 9000000 kB\nMemAvailable: 8192 kB")
    assert host_free_bytes(tmp_path) == 8 * mib
    write("proc/self/cgroup", "0::/pod/box")
    write("sys/fs/cgroup/pod/box/memory.max", "max")
    write("sys/fs/cgroup/pod/memory.max", 10 * mib)
    write("sys/fs/cgroup/pod/memory.current", 7 * mib)
    write("sys/fs/cgroup/pod/memory.stat", f"anon 5\ninactive_file {mib}\nactive_file {mib}")
    assert host_free_bytes(tmp_path) == 5 * mib
    write("proc/self/cgroup", "4:cpu,memory:/old\n0::/")
    write("sys/fs/cgroup/memory/old/memory.limit_in_bytes", 4 * mib)
    write("sys/fs/cgroup/memory/old/memory.usage_in_bytes", 3 * mib)
    write("sys/fs/cgroup/memory/old/memory.stat", f"inactive_file 7\ntotal_inactive_file {mib}\ntotal_active_file 0")
    assert host_free_bytes(tmp_path) == 2 * mib
