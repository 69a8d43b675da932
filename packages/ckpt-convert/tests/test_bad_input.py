"""Hugging Face sources that cannot be converted: what is said of them, and that nothing is written."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import failing
from failing import copied, edit_header, edit_json, edit_shard, edit_tensors, refused, run, split, untouched, write_raw

WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
EMBEDDING, LAST = "model.embed_tokens.weight", "lm_head.weight"
Damage = Callable[[Path], object]


def check_refused(source: Path, dst: Path, *words: str, code: int = 3) -> None:
    refused(run("to-megatron", source, dst), code, *words)
    untouched(dst)


# Weights


def cut(count: int) -> Damage:
    """Keeps the first `count` bytes of the weights, or all but the last `-count`."""
    return lambda hf: (hf / WEIGHTS).write_bytes((hf / WEIGHTS).read_bytes()[:count])


def header(change: Callable[[failing.Header], object]) -> Damage:
    return lambda hf: edit_header(hf / WEIGHTS, change)


def entry(**changes: Any) -> Damage:
    """Changes what the header says of one tensor."""
    return header(lambda entries: entries[EMBEDDING].update(changes))


def text(content: bytes) -> Damage:
    return lambda hf: write_raw(hf / WEIGHTS, content, b"")


def tensors(change: Callable[[failing.Tensors], object]) -> Damage:
    return lambda hf: edit_tensors(hf / WEIGHTS, change)


def long_header(hf: Path) -> None:
    content = bytearray((hf / WEIGHTS).read_bytes())
    content[:8] = struct.pack("<Q", 1 << 62)
    (hf / WEIGHTS).write_bytes(content)


def shift(entries: failing.Header) -> None:
    """Makes the second tensor begin 4 bytes early: on the first one."""
    second = list(entries)[1]
    entries[second]["data_offsets"] = [n - 4 for n in entries[second]["data_offsets"]]


WEIGHT_DAMAGE: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "a FIFO": (lambda hf: ((hf / WEIGHTS).unlink(), os.mkfifo(hf / WEIGHTS)), ("is no file",)),
    "a device": (lambda hf: ((hf / WEIGHTS).unlink(), (hf / WEIGHTS).symlink_to("/dev/zero")), ("is no file",)),
    "empty file": (cut(0), ("0 bytes, no safetensors header",)),
    "cut in the header's length": (cut(5), ("5 bytes, no safetensors header",)),
    "cut in the header": (cut(100), ("100 bytes, no safetensors header",)),
    "cut in the data": (cut(-1000), ("its header says", "truncated")),
    "cut by one byte": (cut(-1), ("truncated",)),
    "more bytes than the header says": (
        lambda hf: (hf / WEIGHTS).open("ab").write(b"more"),
        ("its header says", "foreign bytes"),
    ),
    "header longer than any file": (long_header, ("no safetensors header",)),
    "header is not JSON": (text(b"{'dtype': garbage}"), ("header is damaged",)),
    "header is not text": (text(b"\xff\xfe\x00" * 8), ("header is damaged",)),
    "header is a list": (text(b"[1, 2, 3]"), ("header is damaged",)),
    "header is nested without end": (text(b"[" * 100_000), ("header is damaged",)),
    "entry without offsets": (header(lambda e: e[EMBEDDING].pop("data_offsets")), ("header is damaged",)),
    "entry is null": (header(lambda e: e.update({EMBEDDING: None})), ("header is damaged",)),
    "three offsets": (entry(data_offsets=[0, 1, 2]), ("header is damaged",)),
    "offsets are text": (entry(data_offsets=["0", "33536"]), ("header is damaged", EMBEDDING)),
    "offsets are floats": (entry(data_offsets=[0.0, 33536.0]), ("header is damaged", EMBEDDING)),
    "sizes are floats": (entry(shape=[131.0, 64.0]), ("header is damaged", EMBEDDING)),
    "sizes are negative": (entry(shape=[-131, -64]), ("header is damaged", EMBEDDING)),
    "sizes are text": (entry(shape="ab"), ("header is damaged", EMBEDDING)),
    "dtype is a list": (entry(dtype=["F32"]), ("header is damaged", EMBEDDING)),
    "unknown dtype": (entry(dtype="F13"), (EMBEDDING, "'F13' is not known", "known: F64")),
    "offsets overlap": (header(shift), ("claims bytes 33532 to", "expected 33536 to")),
    "a hole before a tensor": (
        header(lambda e: e.pop(EMBEDDING)),
        ("claims bytes 33536 to", "expected 0 to"),
    ),
    "offsets against the shape": (entry(shape=[131, 32]), (EMBEDDING, "claims bytes 0 to 33536", "expected 0 to 16768")),
    "a missing tensor": (tensors(lambda t: t.pop(LAST)), ("1 tensor(s) that llama needs are missing", LAST)),
    "an unknown tensor": (
        tensors(lambda t: t.update({"model.layers.0.brand_new.weight": ("F32", [2], bytes(8))})),
        ("no rule of llama names 1 tensor(s)", "model.layers.0.brand_new.weight"),
    ),
    "a shape against the config": (
        tensors(lambda t: t.update({LAST: ("F32", [130, 64], bytes(130 * 64 * 4))})),
        (f"contradict config.json: {LAST} is [130, 64], expected [131, 64]",),
    ),
    "a transposed tensor": (
        tensors(lambda t: t.update({LAST: ("F32", [64, 131], bytes(131 * 64 * 4))})),
        (f"{LAST} is [64, 131], expected [131, 64]",),
    ),
}


@pytest.mark.parametrize("name", WEIGHT_DAMAGE)
def test_damaged_weights(name: str, llama: Path, tmp_path: Path) -> None:
    damage, words = WEIGHT_DAMAGE[name]
    source = copied(llama, tmp_path / "hf")
    damage(source)
    check_refused(source, tmp_path / "out", str(source), *words)


def test_qkv_of_two_dtypes(llama: Path, tmp_path: Path) -> None:
    """Megatron keeps q, k and v in one tensor: they must agree, or be cast."""
    source = copied(llama, tmp_path / "hf")
    key = "model.layers.1.self_attn.k_proj.weight"
    edit_tensors(source / WEIGHTS, lambda t: t.update({key: ("F16", [32, 64], bytes(32 * 64 * 2))}))
    refused(run("to-megatron", source, tmp_path / "out"), 3, "decoder.layers", "F16, F32", key, "hint: choose one with --dtype")
    untouched(tmp_path / "out")
    result = failing.ok(run("to-megatron", source, tmp_path / "out", "--dtype", "fp32"))
    assert "not bit-exact 1 tensors cast from F16 to F32" in result.out, "though q, the first of the three, is not cast"
    result = failing.ok(run("to-hf", source, tmp_path / "hf-fp32", "--dtype", "fp32"))
    assert "not bit-exact 1 tensors cast from F16 to F32" in result.out
    result = failing.ok(run("to-megatron", source, tmp_path / "fp16", "--dtype", "fp16", "--format", "torch_dist"))
    assert "cast from F32 to F16" in result.out


@pytest.mark.parametrize("kind", ["I32", "F8_E4M3"])
@pytest.mark.parametrize("part", ["q", "k"])
def test_qkv_that_cannot_be_cast(part: str, kind: str, llama: Path, tmp_path: Path) -> None:
    """An integer or fp8 matrix, quantised by somebody, is not rounded into its neighbour's dtype, with --dtype neither."""
    source, rows = copied(llama, tmp_path / "hf"), {"q": 64, "k": 32}[part]
    key, size = f"model.layers.1.self_attn.{part}_proj.weight", {"I32": 4, "F8_E4M3": 1}[kind]
    edit_tensors(source / WEIGHTS, lambda t: t.update({key: (kind, [rows, 64], bytes(rows * 64 * size))}))
    for flags in ((), ("--dtype", "bf16"), ("--dtype", "fp32")):
        result = run("to-megatron", source, tmp_path / "out", *flags)
        refused(result, 3, "joins tensors of different dtypes", kind, key, "dequantise the others first")
        untouched(tmp_path / "out")


@pytest.mark.parametrize(("dtype", "value", "hint"), [("fp16", 1e5, "bf16 or fp32"), ("bf16", 3.4e38, "fp32")])
def test_value_too_large_for_a_dtype(dtype: str, value: float, hint: str, llama: Path, tmp_path: Path) -> None:
    """A cast makes no finite value infinite; NaNs and infinities may be cast, and nothing is muttered about them."""
    source = copied(llama, tmp_path / "hf")
    norm = np.array([np.nan, np.inf, -np.inf, *[1.0] * 61], np.float32)
    edit_tensors(source / WEIGHTS, lambda t: t.update({"model.norm.weight": ("F32", [64], norm.tobytes())}))
    assert failing.ok(run("to-hf", source, tmp_path / "fine", "--dtype", dtype)).err == ""
    norm[5] = value
    edit_tensors(source / WEIGHTS, lambda t: t.update({"model.norm.weight": ("F32", [64], norm.tobytes())}))
    for command in ("to-hf", "to-megatron"):
        result = run(command, source, tmp_path / command, "--dtype", dtype)
        said = refused(result, 3, f"norm.weight has values up to {norm[5]:g}, too large for {dtype.upper().replace('P', '')}")
        assert said.splitlines()[-1] == f"hint: choose --dtype {hint}"
        assert len(said.splitlines()) == 2
        assert not (tmp_path / command).exists()


def test_tied_weights_that_differ(llama: Path, tmp_path: Path) -> None:
    source = copied(llama, tmp_path / "hf")
    edit_json(source / CONFIG, tie_word_embeddings=True)
    check_refused(source, tmp_path / "out", f"{LAST} should repeat {EMBEDDING}", "tie_word_embeddings")


# Several files


def index_entry(name: str, file: object) -> Damage:
    def damage(hf: Path) -> None:
        content = json.loads((hf / INDEX).read_text())
        content["weight_map"][name] = file
        (hf / INDEX).write_text(json.dumps(content))

    return damage


def twice(hf: Path) -> None:
    """Puts the first tensor into the second file as well."""
    first, second = sorted(hf.glob("*.safetensors"))[:2]
    name, value = next(iter(failing.read_all(first).items()))
    edit_tensors(second, lambda t: t.update({name: value}))


SHARD = "model-00002-of-00003.safetensors"
SHARD_DAMAGE: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "a missing shard": (lambda hf: (hf / SHARD).unlink(), ("1 of 3 shards are missing", SHARD)),
    "a missing shard, no index": (lambda hf: ((hf / SHARD).unlink(), (hf / INDEX).unlink()), ("2 of 3 shards are there",)),
    "a truncated shard": (lambda hf: os.truncate(hf / SHARD, 3000), (SHARD, "truncated")),
    "the index names an absent tensor": (index_entry("model.ghost.weight", SHARD), ("model.ghost.weight", SHARD)),
    "the index names the wrong file": (index_entry(EMBEDDING, SHARD), (EMBEDDING, SHARD, "do not hold")),
    "the index names a file outside": (index_entry(EMBEDDING, "../elsewhere.safetensors"), ("../elsewhere.safetensors",)),
    "the index names a number": (index_entry(EMBEDDING, 5), (INDEX, "no weight_map")),
    "the index is not JSON": (lambda hf: (hf / INDEX).write_text("{"), (INDEX, "is not JSON")),
    "the index is a list": (lambda hf: (hf / INDEX).write_text("[]"), (INDEX, "no weight_map")),
    "a tensor in two files": (twice, (f"{EMBEDDING} is in two files", "model-00001-of-00003.safetensors", SHARD)),
    "a tensor in two files, no index": (lambda hf: (twice(hf), (hf / INDEX).unlink()), (f"{EMBEDDING} is in two files",)),
}


@pytest.mark.parametrize("name", SHARD_DAMAGE)
def test_damaged_shards(name: str, llama: Path, tmp_path: Path) -> None:
    damage, words = SHARD_DAMAGE[name]
    source = copied(llama, tmp_path / "hf")
    split(source)
    damage(source)
    check_refused(source, tmp_path / "out", *words)


BIN_DAMAGE: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "truncated": (lambda hf: os.truncate(hf / "pytorch_model.bin", 5000), ("cut short or damaged (5000 bytes",)),
    "of another kind": (lambda hf: (hf / "pytorch_model.bin").write_bytes(b"weights"), ("is not a zip archive (7 bytes",)),
    "a list": (lambda hf: failing.write_archive(hf / "pytorch_model.bin", [1]), ("a list, expected a state dict",)),
    "more than weights": (
        lambda hf: edit_shard(hf / "pytorch_model.bin", lambda tree: tree.update(epoch=3)),
        ("entries that are no tensors: epoch",),
    ),
    "a missing tensor": (
        lambda hf: edit_shard(hf / "pytorch_model.bin", lambda tree: tree.pop(LAST)),
        ("1 tensor(s) that llama needs are missing", LAST),
    ),
}


@pytest.mark.parametrize("name", ["", *BIN_DAMAGE])
def test_pytorch_model_bin(name: str, llama: Path, tmp_path: Path) -> None:
    source = copied(llama, tmp_path / "hf")
    tensors = failing.read_all(source / WEIGHTS)
    arrays = {n: np.frombuffer(data, np.float32).reshape(shape) for n, (_, shape, data) in tensors.items()}
    failing.write_archive(source / "pytorch_model.bin", arrays)
    (source / WEIGHTS).unlink()
    if not name:
        failing.ok(run("verify", llama, source))
        return
    damage, words = BIN_DAMAGE[name]
    damage(source)
    check_refused(source, tmp_path / "out", *words)


def test_no_weights(llama: Path, tmp_path: Path) -> None:
    source = copied(llama, tmp_path / "hf")
    (source / WEIGHTS).unlink()
    check_refused(source, tmp_path / "out", str(source), "holds no weights", WEIGHTS, "pytorch_model.bin")


def test_hostile_pickle(llama: Path, tmp_path: Path) -> None:
    """A pytorch_model.bin whose pickle would run a command is refused by the name of what it asks for, and runs nothing."""
    source, victim = copied(llama, tmp_path / "hf"), tmp_path / "victim"
    (source / WEIGHTS).unlink()
    failing.hostile(source / "pytorch_model.bin", victim)
    check_refused(source, tmp_path / "out", "pytorch_model.bin", "os.system", "refused")
    assert not victim.exists()


# config.json and the files beside it


def config(**changes: Any) -> Damage:
    return lambda hf: edit_json(hf / CONFIG, **changes)


def written(content: bytes, name: str = CONFIG) -> Damage:
    return lambda hf: (hf / name).write_bytes(content)


NO_FLOAT = {"__float__": "wide"}
CONFIG_DAMAGE: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "missing": (lambda hf: (hf / CONFIG).unlink(), (f"{CONFIG} is missing",)),
    "not JSON": (written(b"{model_type: llama}"), (CONFIG, "is not JSON", "line 1 column 2")),
    "not text": (written(b'{"model_type": "\xff"}'), (CONFIG, "is not JSON")),
    "nested without end": (written(b"[" * 100_000), (CONFIG, "is not JSON")),
    "a list": (written(b"[]"), (CONFIG, "a list, expected keys and values")),
    "no model_type": (config(model_type=...), (CONFIG, "no model_type")),
    "model_type is a number": (config(model_type=5), (CONFIG, "no model_type")),
    "unknown model_type": (config(model_type="brontosaurus"), (CONFIG, "'brontosaurus' is not known", "known: deepseek_v2")),
    "unknown key": (
        config(brand_new_feature=7),
        (CONFIG, "brand_new_feature = 7", "--ignore-config-keys brand_new_feature"),
    ),
    "unknown rope scaling": (
        config(rope_scaling={"rope_type": "longrope", "factor": 2.0}),
        (CONFIG, "'longrope' is not supported", "known: default, linear"),
    ),
    "unknown setting of a rope scaling": (
        config(rope_scaling={"rope_type": "linear", "factor": 2.0, "twist": 1}),
        (CONFIG, "settings that are not known: twist"),
    ),
    "rope scaling without a factor": (config(rope_scaling={"rope_type": "linear"}), (CONFIG, "no factor")),
    "rope settings without a type": (config(rope_scaling={"factor": 2.0}), (CONFIG, "without a rope_type")),
    "rope scaling is text": (config(rope_scaling="linear"), (CONFIG, "'rope_scaling' is 'linear'")),
    "quantised": (config(quantization_config={"quant_method": "gptq"}), (CONFIG, "quantised (gptq)")),
    "a size is missing": (config(hidden_size=...), (CONFIG, "'hidden_size' is missing")),
    "a size is text": (config(num_hidden_layers="4"), (CONFIG, "'num_hidden_layers' is '4'")),
    "a size is nought": (config(num_attention_heads=0), (CONFIG, "'num_attention_heads' is 0")),
    "a size is a fraction": (config(intermediate_size=96.5), (CONFIG, "'intermediate_size' is 96.5")),
    "a number is text": (config(rms_norm_eps="small"), (CONFIG, "'rms_norm_eps' is 'small'")),
    "a switch is text": (config(tie_word_embeddings="false"), (CONFIG, "'tie_word_embeddings' is 'false'")),
    "a name is a list": (config(hidden_act=["silu"]), (CONFIG, "'hidden_act' is ['silu']")),
    "unknown activation": (config(hidden_act="mish"), (CONFIG, "'mish' is not supported", "known: silu")),
    "a float that is none": (config(rms_norm_eps=NO_FLOAT), (CONFIG, "wide")),
    "heads that do not share KV heads": (config(num_attention_heads=6, head_dim=8), (CONFIG, "6 attention heads", "4 KV heads")),
    "sizes of another model": (
        config(vocab_size=200),
        ("2 tensor(s) contradict", f"{EMBEDDING} is [131, 64], expected [200, 64]"),
    ),
    "more layers than there are": (config(num_hidden_layers=5), ("9 tensor(s) that llama needs are missing",)),
    "more layers than anything holds": (config(num_hidden_layers=9_999), ("9999 layers, the files hold 39 tensors",)),
    "more layers than any model has": (config(num_hidden_layers=10**12), ("'num_hidden_layers' is 1000000000000, expected",)),
    "a number that is none": (config(rms_norm_eps=float("nan")), ("'rms_norm_eps' is nan",)),
    "a number without end": (written(b'{"model_type": "llama", "hidden_size": 1e999}'), ("'hidden_size' is inf",)),
    "a number of 5000 digits": (written(b'{"model_type": "llama", "hidden_size": ' + b"9" * 5000 + b"}"), (CONFIG,)),
    "a number in quotes": (config(sliding_window="5"), ("sliding_window = '5'",)),
    "a FIFO": (lambda hf: ((hf / CONFIG).unlink(), os.mkfifo(hf / CONFIG)), (CONFIG, "is no file")),
    "a directory": (lambda hf: ((hf / CONFIG).unlink(), (hf / CONFIG).mkdir()), (CONFIG, "is no file")),
    "fewer layers than there are": (config(num_hidden_layers=3), ("no rule of llama names 9 tensor(s)",)),
    "tokenizer_config is not JSON": (written(b"{", "tokenizer_config.json"), ("tokenizer_config.json is not JSON",)),
    "tokenizer_config is a list": (written(b"[]", "tokenizer_config.json"), ("tokenizer_config.json: a list",)),
}


@pytest.mark.parametrize("name", CONFIG_DAMAGE)
def test_damaged_config(name: str, llama: Path, tmp_path: Path) -> None:
    damage, words = CONFIG_DAMAGE[name]
    source = copied(llama, tmp_path / "hf")
    damage(source)
    check_refused(source, tmp_path / "out", *words)


def test_unknown_key_can_be_passed_over(llama: Path, tmp_path: Path) -> None:
    source = copied(llama, tmp_path / "hf")
    edit_json(source / CONFIG, brand_new_feature=7)
    failing.ok(run("to-megatron", source, tmp_path / "out", "--ignore-config-keys", "brand_new_feature"))


@pytest.mark.parametrize("name", ["hidden_size", "model_type"])
def test_a_key_that_is_known_cannot_be_passed_over(name: str, llama: Path, tmp_path: Path) -> None:
    source = copied(llama, tmp_path / "hf")
    edit_json(source / CONFIG, **{name: ...})
    refused(run("to-megatron", source, tmp_path / "out", "--ignore-config-keys", name), 3, name)


# Sources that are none


@pytest.mark.parametrize("command", ["to-megatron", "to-hf", "inspect"])
def test_hub_name(command: str, tmp_path: Path) -> None:
    target = () if command == "inspect" else (tmp_path / "out",)
    said = refused(run(command, "meta-llama/Llama-3.1-8B", *target, cwd=tmp_path), 3, "meta-llama/Llama-3.1-8B does not exist")
    assert "hub names are not fetched" in said
    assert "hint: give the path of a directory on this machine" in said
    untouched(tmp_path / "out")


def test_source_that_is_missing(tmp_path: Path) -> None:
    said = refused(run("to-hf", tmp_path / "nowhere", tmp_path / "out"), 3, f"{tmp_path / 'nowhere'} does not exist")
    assert "hub" not in said
    refused(run("inspect", tmp_path / "nowhere"), 3, "does not exist")
    refused(run("verify", tmp_path / "nowhere", tmp_path), 3, "does not exist")


def test_source_that_is_no_checkpoint(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", llama / CONFIG, llama / WEIGHTS):
        refused(run("to-hf", source, tmp_path / "out"), 3, str(source), "expected a Hugging Face directory")
    untouched(tmp_path / "out")


def test_two_hugging_face_sources(llama: Path, moe: Path, tmp_path: Path) -> None:
    refused(run("to-megatron", llama, moe, tmp_path / "out"), 3, "2 sources, and not all are Megatron", str(llama), str(moe))


@pytest.mark.parametrize("flags", [("--set", "tp=2"), ("--iteration", "3"), ("--family", "llama")])
def test_flags_for_megatron_sources(flags: tuple[str, str], llama: Path, tmp_path: Path) -> None:
    refused(run("to-hf", llama, tmp_path / "out", *flags), 2, "is a Hugging Face directory", "--iteration, --family and --set")
    untouched(tmp_path / "out")


@pytest.mark.parametrize("flag", ["--plan", "--resume", "--iteration=3", "--family=llama", "--set=tp=1"])
def test_flags_that_gguf_has_no_use_for(flag: str, tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(b"GGUF")
    refused(run("to-hf", source, tmp_path / "out", flag), 2, "model.gguf is a GGUF file", "--max-shard-size")
    untouched(tmp_path / "out")


def test_gguf_that_is_none(llama: Path, tmp_path: Path) -> None:
    refused(run("to-hf", tmp_path / "model.gguf", tmp_path / "out"), 3, "model.gguf does not exist")
    (tmp_path / "model.gguf").write_bytes(b"GGML" + bytes(60))
    refused(run("to-hf", tmp_path / "model.gguf", tmp_path / "out"), 3, "model.gguf", "not a GGUF file")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    refused(run("to-hf", tmp_path / "model.gguf", tmp_path / "out"), 3, "model.gguf: cut short: 4 bytes")
    (tmp_path / "model.gguf").write_bytes(b"GGUF\3\0\0\0")
    refused(run("to-hf", tmp_path / "model.gguf", tmp_path / "out"), 3, "model.gguf")
    refused(run("to-megatron", tmp_path / "model.gguf", tmp_path / "out"), 3, "model.gguf")
    refused(run("to-hf", llama, tmp_path / "out", "--tokenizer", llama), 2, "--tokenizer")
    untouched(tmp_path / "out")
