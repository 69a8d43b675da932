"""Reading GGUF files: tensors, config, tokenizer, the written directory, and everything that is refused."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from jumar.ckpt_convert.formats import gguf as ours
from jumar.ckpt_convert.formats.gguf_config import llama3_rope_factors
from jumar.ckpt_convert.formats.hf import open_tensors
from jumar.ckpt_convert.from_gguf import convert_gguf
from jumar.ckpt_convert.tensors import DTYPES
from jumar.schema.errors import Exit, ToolError
from tiny_gguf import (
    FFN,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    LLAMA3,
    MERGES,
    TOKENS,
    TYPES,
    Writer,
    byte_level,
    sentencepiece,
    weights,
    write_gguf,
)


def tokenizer_json(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(ours.open_gguf(path).files["tokenizer.json"])
    return document


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_1", "Q5_0"])
def test_rows_are_dequantised_in_hugging_face_order(tmp_path: Path, kind: str) -> None:
    values = weights(bias=True, tied=False)
    model = ours.open_gguf(write_gguf(tmp_path / "m.gguf", kind=kind, values=values))
    assert list(model.tensors) == list(values)
    qtype = gguf.GGMLQuantizationType[kind]
    for name, (_, value) in values.items():
        expected = gguf.quants.dequantize(gguf.quants.quantize(value, qtype), qtype) if value.ndim == 2 else value
        assert model.tensors[name] == (kind if value.ndim == 2 else "F32", value.shape)
        rows = value.shape[0]
        parts = [model.read_rows(name, start, min(start + 7, rows)) for start in range(0, rows, 7)]
        np.testing.assert_array_equal(np.concatenate(parts), expected)
        assert parts[0].dtype == np.float32


def test_rows_out_of_range_are_an_error(tmp_path: Path) -> None:
    model = ours.open_gguf(write_gguf(tmp_path / "m.gguf"))
    with pytest.raises(IndexError):
        model.read_rows("model.norm.weight", 0, HIDDEN + 1)


def test_config(tmp_path: Path) -> None:
    model = ours.open_gguf(write_gguf(tmp_path / "m.gguf", values=weights(bias=True)), dtype="BF16")
    assert model.config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(TOKENS),
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,  # the file has it as float32
        "rope_theta": 50000.0,
        "rope_scaling": None,
        "attention_bias": True,
        "attention_dropout": 0.0,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": 5,
        "eos_token_id": 6,
        "pad_token_id": None,
    }
    assert model.not_carried == ["general.name"]


@pytest.mark.parametrize(
    "extra, expected",
    [
        (
            lambda w: (w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR), w.add_rope_scaling_factor(4.0)),
            {"rope_type": "linear", "factor": 4.0},
        ),
        (
            lambda w: (
                w.add_rope_scaling_type(gguf.RopeScalingType.YARN),
                w.add_rope_scaling_factor(4.0),
                w.add_rope_scaling_orig_ctx_len(32),
            ),
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
        (
            lambda w: w.add_tensor("rope_freqs.weight", llama3_rope_factors(50000.0, HEAD_DIM, LLAMA3)),
            {"rope_type": "llama3", **LLAMA3},
        ),
    ],
    ids=["linear", "yarn", "llama3"],
)
def test_rope_scaling(tmp_path: Path, extra: Callable[[Writer], None], expected: dict[str, Any]) -> None:
    model = ours.open_gguf(write_gguf(tmp_path / "m.gguf", extra=extra))
    assert model.config["rope_scaling"] == expected
    assert "rope_freqs" not in str(model.tensors)


def test_generation_config_stops_at_every_end(tmp_path: Path) -> None:
    def extra(writer: Writer) -> None:
        writer.add_eot_token_id(7)
        writer.add_eom_token_id(6)
        writer.add_float32("general.sampling.temp", 0.6)
        writer.add_int32("general.sampling.top_k", 20)

    model = ours.open_gguf(write_gguf(tmp_path / "m.gguf", extra=extra))
    assert json.loads(model.files["generation_config.json"]) == {
        "bos_token_id": 5,
        "eos_token_id": [6, 7],
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 20,
    }


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_import_writes_a_hugging_face_directory(tmp_path: Path, dtype: str) -> None:
    values = weights(tied=False)
    source = write_gguf(tmp_path / "m.gguf", kind="Q8_0", values=values)
    progress: list[tuple[int, int]] = []
    counts = ours.import_gguf(
        source, tmp_path / "out", dtype=dtype, on_progress=lambda done, total: progress.append((done, total))
    )
    matrices = sum(value.ndim == 2 for _, value in values.values())
    assert counts == {
        "tensors": len(values),
        "bytes": sum(value.size for _, value in values.values()) * DTYPES[dtype].itemsize,
        "shards": 1,
        "quantisation": {"Q8_0": matrices, "F32": len(values) - matrices},
        "not_carried": ["general.name"],
    }
    assert progress[-1] == (counts["bytes"], counts["bytes"])
    model = ours.open_gguf(source, dtype=dtype)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == model.config
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
    raw = (tmp_path / "out" / "model.safetensors").read_bytes()
    written = open_tensors(tmp_path / "out")
    assert list(written) == list(values)
    for name, ref in written.items():
        found = np.frombuffer(raw, DTYPES[dtype], ref.numel, ref.offset).reshape(ref.shape)
        np.testing.assert_array_equal(found, model.read_rows(name, 0, ref.shape[0]).astype(DTYPES[dtype]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "out"]


def test_import_in_chunks_and_shards_gives_the_same_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_gguf(tmp_path / "m.gguf")
    ours.import_gguf(source, tmp_path / "one")
    monkeypatch.setattr(ours, "_CHUNK_BYTES", 5 * HIDDEN * 4)
    assert ours.import_gguf(source, tmp_path / "many", max_shard_bytes=50_000)["shards"] > 2
    one, many = open_tensors(tmp_path / "one"), open_tensors(tmp_path / "many")
    assert one.keys() == many.keys()
    for name, ref in one.items():
        twin = many[name]
        first = ref.file.read_bytes()[ref.offset : ref.offset + ref.nbytes]
        assert first == twin.file.read_bytes()[twin.offset : twin.offset + twin.nbytes], name


def test_a_failed_conversion_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_gguf(write_gguf(tmp_path / "m.gguf"), tmp_path / "out", on_progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_what_killed_runs_leave_is_removed_by_the_next(tmp_path: Path) -> None:
    """Two runs are killed while they write; a third starts over, while a fourth is refused; nothing else lies there then."""
    source, dst = write_gguf(tmp_path / "m.gguf"), tmp_path / "out"
    stops = (
        "import os, signal, sys; from pathlib import Path; from jumar.ckpt_convert.from_gguf import convert_gguf\n"
        "die = lambda done, total: os.kill(os.getpid(), signal.SIGKILL)\n"
        "convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]), on_progress=die)"
    )
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", stops, source, dst]).returncode == -signal.SIGKILL
        assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "out.partial"]
    assert (dst.with_name("out.partial") / "model.safetensors").stat().st_size > 0

    def second(done: int, total: int) -> None:
        with pytest.raises(ToolError, match=r"another process is writing .*out\.partial") as caught:
            convert_gguf(source, dst)
        assert caught.value.code == Exit.ENVIRONMENT

    convert_gguf(source, dst, on_progress=second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "out"]
    listed = json.loads((dst / "manifest.json").read_text())["outputs"]
    assert sorted(path.name for path in dst.iterdir()) == sorted([*listed, "manifest.json"])
    assert convert_gguf(source, dst)["already_done"]


def test_a_full_target_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(ToolError, match="is not empty"):
        convert_gguf(write_gguf(tmp_path / "m.gguf"), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_values_that_the_dtype_cannot_hold_are_refused(tmp_path: Path) -> None:
    values = weights()
    values["model.norm.weight"][1][3] = 1e5
    with pytest.raises(ToolError, match=r"model\.norm\.weight .*100000.* F16"):
        convert_gguf(write_gguf(tmp_path / "m.gguf", values=values), tmp_path / "out", dtype="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def drop(name: str) -> dict[str, tuple[str, np.ndarray]]:
    return {key: value for key, value in weights().items() if key != name}


def add(name: str) -> dict[str, tuple[str, np.ndarray]]:
    return weights() | {name: (name, np.zeros((32, 32), np.float32))}


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(architecture="qwen2"), "general.architecture is 'qwen2'"),
        (dict(extra=lambda w: w.add_expert_count(8)), "llama.expert_count is 8"),
        (dict(extra=lambda w: w.add_type("adapter")), "general.type is 'adapter'"),
        (dict(extra=lambda w: w.add_logit_scale(2.0)), "not supported: llama.logit_scale = 2.0"),
        (dict(extra=lambda w: w.add_uint16("split.count", 3)), "split.count = 3"),
        (dict(extra=lambda w: w.add_uint32("tokenizer.ggml.pad", 3)), "tokenizer.ggml.pad = 3"),
        (dict(extra=lambda w: w.add_pad_token_id(10)), "padding_token_id is 10, expected an id below 10"),
        (dict(extra=lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)), "scaling.type is 'longrope'"),
        (dict(extra=lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN)), "scaling.factor is missing"),
        (dict(extra=lambda w: w.add_tensor("rope_freqs.weight", np.arange(16, dtype=np.float32))), "rope_freqs.weight"),
        (dict(extra=lambda w: w.add_tensor("rope_freqs.weight", np.ones(15, np.float32))), "expected [16] with the values"),
        (dict(extra=lambda w: w.add_tensor("rope_freqs.weight", np.zeros(16, np.float32))), "rope_freqs.weight [16]"),
        (dict(head_dim=31), "a head has 31 elements"),
        (dict(head_dim=64), "rope.dimension_count is 32, expected the size of a head, 64"),
        (dict(values=add("blk.0.attn_q_norm.weight")), "unknown blk.0.attn_q_norm.weight"),
        (dict(values=add("blk.0.ffn_gate_exps.weight")), "unknown blk.0.ffn_gate_exps.weight"),
        (dict(values=drop("model.layers.1.mlp.up_proj.weight")), "missing blk.1.ffn_up.weight"),
        (dict(values=drop("model.embed_tokens.weight")), "token_embd.weight has 0 rows"),
        (dict(ffn=FFN + 32), r"blk.0.ffn_gate.weight has the shape [96, 64], expected [128, 64]"),
        (dict(values=add("x.weight") | {"y": ("y", np.zeros((2, 2), np.int32))}, kind="F32"), "unknown x.weight, y"),
    ],
)
def test_what_is_not_a_plain_llama_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", **settings)
    with pytest.raises(ToolError) as caught:
        ours.open_gguf(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert caught.value.code == Exit.INPUT


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "an empty file"),
        (b"PK\x03\x04 something else", r"b'PK\\x03\\x04'"),
        (b"GGUF\x01\x00\x00\x00" + bytes(16), "GGUF version 1"),
        (b"GGUF\x00\x00\x00\x03" + bytes(16), "big-endian"),
    ],
)
def test_what_is_not_a_gguf_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ToolError, match=message):
        ours.open_gguf(tmp_path / "m.gguf")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="cannot be read: No such file"):
        ours.open_gguf(tmp_path / "m.gguf")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf").read_bytes()
    data_end = len(whole) - len(whole) % 32
    cut = tmp_path / "cut.gguf"
    for size in [*range(0, 4000, 41), *range(4000, data_end, 9973), data_end - 129]:
        cut.write_bytes(whole[:size])
        with pytest.raises(ToolError) as caught:
            ours.open_gguf(cut)
        assert caught.value.code == Exit.INPUT


def test_tensors_that_do_not_follow_one_another_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    damaged = bytearray(path.read_bytes())
    name = b"blk.0.attn_norm.weight"
    at = damaged.index(name) + len(name) + 4 + 8 + 4  # past the axes' count, the one axis and the type
    damaged[at : at + 8] = bytes(8)
    path.write_bytes(damaged)
    with pytest.raises(ToolError, match=r"tensor blk\.0\.attn_norm\.weight starts at byte 0 of the data, expected \d+"):
        ours.open_gguf(path)


def test_a_damaged_header_is_refused_or_read_but_never_crashes(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf").read_bytes()
    rng = random.Random(0)
    for _ in range(1500):
        damaged = bytearray(whole)
        damaged[rng.randrange(3000)] = rng.randrange(256)
        (tmp_path / "damaged.gguf").write_bytes(damaged)
        try:
            ours.open_gguf(tmp_path / "damaged.gguf")
        except ToolError as error:
            assert error.hint, error  # noqa: PT017


def test_an_unknown_dtype_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(ToolError) as caught:
        ours.open_gguf(tmp_path / "m.gguf", dtype="float32")
    assert caught.value.code == Exit.USAGE


def test_without_the_gguf_package_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ToolError) as caught:
        ours.open_gguf(path)
    assert caught.value.code == Exit.ENVIRONMENT
    assert caught.value.hint == "pip install 'jumar-ckpt-convert[gguf]'"


def test_byte_level_tokenizer(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", extra=lambda w: w.add_add_bos_token(True))
    document = tokenizer_json(path)
    assert document["model"]["vocab"] == {token: index for index, token in enumerate(TOKENS[:8])}  # padding is no token
    assert document["model"]["merges"] == MERGES
    assert [(t["id"], t["content"], t["special"]) for t in document["added_tokens"]] == [
        (5, "<s>", True),
        (6, "</s>", True),
        (7, "<tool>", False),
    ]
    assert document["post_processor"]["single"] == [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    assert document["post_processor"]["special_tokens"] == {"<s>": {"id": "<s>", "ids": [5], "tokens": ["<s>"]}}
    config = json.loads(ours.open_gguf(path).files["tokenizer_config.json"])
    assert config == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 128,
    }


@pytest.mark.parametrize(
    "pre, steps, ignore_merges, adds_bos, normalizer",
    [
        ("smollm", ["Digits", "ByteLevel"], False, False, None),
        ("gpt-2", ["ByteLevel"], False, False, None),
        ("default", ["Split", "Split", "Split", "Split", "ByteLevel"], False, False, None),
        ("llama-bpe", ["Split", "ByteLevel"], True, True, None),
        ("qwen2", ["Split", "ByteLevel"], False, False, {"type": "NFC"}),
    ],
)
def test_pre_tokenizers(
    tmp_path: Path, pre: str, steps: list[str], ignore_merges: bool, adds_bos: bool, normalizer: dict[str, str] | None
) -> None:
    document = tokenizer_json(write_gguf(tmp_path / "m.gguf", tokenizer=lambda w: byte_level(w, pre)))
    found = document["pre_tokenizer"].get("pretokenizers", [document["pre_tokenizer"]])
    assert [step["type"] for step in found] == steps
    assert document["model"]["ignore_merges"] is ignore_merges
    assert (document["post_processor"] is not None) is adds_bos
    assert document["normalizer"] == normalizer


def test_sentencepiece_merges_come_back_from_the_scores(tmp_path: Path) -> None:
    document = tokenizer_json(write_gguf(tmp_path / "m.gguf", tokenizer=sentencepiece))
    assert document["model"]["merges"] == ["a b", "▁ ab", "▁ ▁"]
    assert document["model"]["byte_fallback"] is True
    assert document["model"]["unk_token"] == "<unk>"
    assert document["normalizer"]["normalizers"][0] == {"type": "Prepend", "prepend": "▁"}
    assert document["post_processor"] is not None  # sentencepiece adds bos where the file is silent


@pytest.mark.parametrize(
    "tokenizer, message",
    [
        (lambda w: byte_level(w, "tekken"), "tokenizer.ggml.pre is 'tekken'"),
        (lambda w: byte_level(w, None), "tokenizer.ggml.pre is 'missing'"),
        (lambda w: w.add_tokenizer_model("bert"), "tokenizer.ggml.model is 'bert'"),
        (lambda w: None, "tokenizer.ggml.model is 'none'"),
        (lambda w: byte_level(w, types=TYPES[:-1]), "10 tokens, 9 token types"),
        (lambda w: byte_level(w, types=[0] * 10), "tokens of type [0]"),
        (lambda w: byte_level(w, tokens=[*TOKENS[:9], "a"]), "the token 'a' stands there twice"),
        (lambda w: byte_level(w, tokens=[*TOKENS, "c"], types=[*TYPES, 1]), "11 tokens"),
        (lambda w: byte_level(w, merges=["a c"]), "the merge 'a c'"),
        (lambda w: (byte_level(w), w.add_add_space_prefix(True)), "add_space_prefix is true"),
        (lambda w: (byte_level(w), w.add_bool("tokenizer.ggml.add_sep_token", True)), "add_sep_token is true"),
        (lambda w: sentencepiece(w, (-1000.0,) * 10), "2 merged tokens share 1 scores"),
        (lambda w: sentencepiece(w, (0.0,) * 9), "9 scores"),
    ],
)
def test_a_tokenizer_that_is_not_known_is_refused(tmp_path: Path, tokenizer: Callable[[Writer], None], message: str) -> None:
    with pytest.raises(ToolError) as caught:
        ours.open_gguf(write_gguf(tmp_path / "m.gguf", tokenizer=tokenizer))
    assert message in caught.value.message
    assert caught.value.hint


def test_a_tokenizer_directory_takes_the_place_of_the_files_own(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    path = write_gguf(tmp_path / "m.gguf", tokenizer=lambda w: byte_level(w, "tekken"))
    with pytest.raises(ToolError, match=r"no tokenizer\.json"):
        ours.open_gguf(path, tokenizer=own)
    (own / "tokenizer.json").write_text("{}")
    (own / "config.json").write_text("not ours")
    model = ours.open_gguf(path, tokenizer=own)
    assert model.files.keys() == {"tokenizer.json", "generation_config.json"}
    assert model.files["tokenizer.json"] == b"{}"
    assert "tokenizer.ggml.pre" in model.not_carried
    assert model.config["bos_token_id"] == 5


def test_named_chat_templates(tmp_path: Path) -> None:
    def tokenizer(writer: Writer) -> None:
        byte_level(writer)
        writer.add_array("tokenizer.chat_templates", ["tool_use"])
        writer.add_string("tokenizer.chat_template.tool_use", "{{ tools }}")

    path = write_gguf(tmp_path / "m.gguf", tokenizer=tokenizer)
    ours.import_gguf(path, tmp_path / "out")
    template = tmp_path / "out" / "additional_chat_templates" / "tool_use.jinja"
    assert template.read_text() == "{{ tools }}"
