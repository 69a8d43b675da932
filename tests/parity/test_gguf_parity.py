"""A GGUF file read back is the model it was made of: the same logits in transformers, token ids and chat template."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from jumar.ckpt_convert.formats.gguf import import_gguf

CONFIG = dict(
    vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=False,
    bos_token_id=0, eos_token_id=1,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
)  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
}  # fmt: skip
SPECIALS = ["<|start|>", "<|end|>", "<|pad|>"]
TEMPLATE = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"


# --- writing, as llama.cpp's conversion does it


def permute(weights: np.ndarray, n_head: int) -> np.ndarray:
    """LlamaModel.permute"""
    return weights.reshape(n_head, 2, weights.shape[0] // n_head // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def rope_factors(rope: dict[str, Any], head_dim: int) -> np.ndarray:
    """LlamaModel.generate_extra_tensors, in the float32 of torch"""
    freqs = 1.0 / (rope["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    context, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for freq in freqs:
        wavelength = 2 * torch.pi / freq
        if wavelength < context / high:
            factors.append(torch.tensor(1.0))
        elif wavelength > context / low:
            factors.append(torch.tensor(rope["factor"]))
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return torch.stack(factors).numpy()


def add_model(writer: gguf.GGUFWriter, model: LlamaForCausalLM, kind: str) -> None:
    """Header fields and tensors; matrices of type `kind`, vectors F32."""
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_factors(config.rope_parameters, config.head_dim))
    for name, tensor in model.state_dict().items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        value = tensor.numpy()
        if ".q_proj." in name:
            value = permute(value, config.num_attention_heads)
        if ".k_proj." in name:
            value = permute(value, config.num_key_value_heads)
        parts = name.split(".")
        block = f"blk.{parts[2]}." if parts[1] == "layers" else ""
        key = ".".join(parts[3:-1]) if block else ".".join(parts[:-1])
        qtype = gguf.GGMLQuantizationType[kind if value.ndim == 2 else "F32"]
        writer.add_tensor(f"{block}{NAMES[key]}.{parts[-1]}", gguf.quants.quantize(value, qtype), raw_dtype=qtype)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, pre: str) -> None:
    document = json.loads(tokenizer.to_str())
    size = tokenizer.get_vocab_size()
    added = tokenizer.get_added_tokens_decoder()
    types = [gguf.TokenType.NORMAL] * size
    for index, token in added.items():
        types[index] = gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([tokenizer.id_to_token(index) for index in range(size)])
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in document["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)


def write(path: Path, *parts: Callable[[gguf.GGUFWriter], None]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for part in parts:
        part(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# --- tokenizers as their models publish them

CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def tokenizer_of(pre: str) -> Tokenizer:
    """A byte-level BPE of 320 tokens that splits as the models of this name do.

    It is trained with GPT-2's splits whatever the name, so that it has tokens, of digits above all, which another split
    keeps from being used.
    """
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = byte_level
    trainer = trainers.BpeTrainer(
        vocab_size=319, special_tokens=SPECIALS, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer.train_from_iterator([*TEXTS, *["12345 1234567 2024,  ** 'LL\n\n"] * 9], trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    tokenizer.pre_tokenizer = {
        "gpt-2": byte_level,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]),
        "llama-bpe": split(CL100K % r"\p{N}{1,3}"),
        "qwen2": split(CL100K % r"\p{N}"),
    }[pre]
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


TEXTS = [
    "The year 2024 had 366 days, 1234567 of them sunny; it's 3.14159 o'clock, THEY'LL say.",
    "def f(x):\n\treturn  x ** 2  # comment\n\n\nclass A:\n    pass\n",
    "   leading and trailing   ",
    "\n\n \r\n\t mixed \u00a0 white \u3000 space\n",
    "你好，世界！Καλημέρα, naïve café e\u0301 ﬁ ½ ² ٣٤٥ 😀👩‍👩‍👧",
    "<|start|>user\nhi<|end|>\n<|start|> 12 <|end|>x<tool>y <tool> <|pad|>",
    "",
]


# --- the tests


def model_of(**settings: Any) -> LlamaForCausalLM:
    model = LlamaForCausalLM(LlamaConfig(**CONFIG | settings)).eval()
    generator = torch.Generator().manual_seed(3)
    for tensor in model.state_dict().values():  # no tensor is neutral: norms and biases differ from 1 and 0 too
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * tensor.shape[-1] ** -0.5)
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.randint(0, CONFIG["vocab_size"], (2, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result: torch.Tensor = model(ids).logits
    return result


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"rope_parameters": LLAMA3_ROPE},
        {"num_key_value_heads": 4},
    ],
    ids=["plain", "tied", "bias", "llama3", "mha"],
)
@pytest.mark.compat("read", "llama.cpp", "GGUF, llama-shaped", "dequantised by the `gguf` package: values change")
def test_logits_are_those_of_the_dequantised_model(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    model = model_of(**settings)
    tokenizer = tokenizer_of("smollm")
    path = write(tmp_path / "m.gguf", lambda w: add_model(w, model, kind), lambda w: add_tokenizer(w, tokenizer, "smollm"))
    if kind != "F32":  # rows are quantised one by one, so this needs no permutation
        qtype = gguf.GGMLQuantizationType[kind]
        for tensor in model.state_dict().values():
            if tensor.ndim == 2:
                tensor.copy_(torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(tensor.numpy(), qtype), qtype)))
    import_gguf(path, tmp_path / "hf")
    found, info = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values()), info
    torch.testing.assert_close(logits(found), logits(model), rtol=0, atol=0)


def test_dtype_is_the_callers_choice(tmp_path: Path) -> None:
    model, tokenizer = model_of(), tokenizer_of("smollm")
    path = write(tmp_path / "m.gguf", lambda w: add_model(w, model, "F32"), lambda w: add_tokenizer(w, tokenizer, "smollm"))
    import_gguf(path, tmp_path / "hf", dtype="BF16")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto")
    assert found.dtype == torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor.bfloat16()), name


@pytest.mark.parametrize("add_bos", [None, True, False])
@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2"])
def test_token_ids_are_those_of_the_published_tokenizer(tmp_path: Path, pre: str, add_bos: bool | None) -> None:
    tokenizer = tokenizer_of(pre)

    def flag(writer: gguf.GGUFWriter) -> None:
        if add_bos is not None:
            writer.add_add_bos_token(add_bos)

    model = model_of()
    path = write(tmp_path / "m.gguf", flag, lambda w: add_tokenizer(w, tokenizer, pre), lambda w: add_model(w, model, "F32"))
    import_gguf(path, tmp_path / "hf")
    published, written = (json.loads(text) for text in (tokenizer.to_str(), (tmp_path / "hf" / "tokenizer.json").read_text()))
    for part in ("normalizer", "pre_tokenizer"):
        assert written[part] == published[part]
    found = AutoTokenizer.from_pretrained(tmp_path / "hf")
    bos = [0] * (add_bos if add_bos is not None else pre == "llama-bpe")
    rng = random.Random(0)
    noise = ["".join(rng.choice("ab 123\n\t.,'é好😀") for _ in range(30)) for _ in range(50)]
    for text in TEXTS + noise:
        expected = tokenizer.encode(text).ids
        assert found(text).input_ids == bos + expected, text
        assert found(text, add_special_tokens=False).input_ids == expected, text
        if pre != "qwen2":  # which normalises
            assert found.decode(expected) == text
    assert found.decode(tokenizer.encode(TEXTS[5]).ids, skip_special_tokens=True) == "user\nhi\n 12 x<tool>y <tool> "
    assert (found.bos_token, found.eos_token, found.pad_token) == tuple(SPECIALS)
    assert len(found) == 320


def test_smollm_splits_digits_and_keeps_the_chat_template(tmp_path: Path) -> None:
    model, tokenizer = model_of(), tokenizer_of("smollm")
    path = write(tmp_path / "m.gguf", lambda w: add_model(w, model, "F32"), lambda w: add_tokenizer(w, tokenizer, "smollm"))
    import_gguf(path, tmp_path / "hf")
    found = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert "12345" in found.get_vocab()
    assert found.tokenize("12345") == ["1", "2", "3", "4", "5"]
    messages = [{"role": "user", "content": "hi"}]
    assert found.apply_chat_template(messages, tokenize=False) == "<|start|>user\nhi<|end|>\n"
    ids = found.apply_chat_template(messages, return_dict=False)
    assert ids == tokenizer.encode("<|start|>user\nhi<|end|>\n").ids


def test_sentencepiece(tmp_path: Path) -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [2, 3, 3, *[6] * 256]
    normal = ["ab", "▁ab", "abc", "▁▁", "▁▁▁", "▁", "a", "b", "c"]
    scores = [0.0] * 259 + [0.0, -1.0, -2.0, -1e9, -1e9, -3.0, -4.0, -5.0, -6.0]
    ids = {piece: index for index, piece in enumerate(pieces + normal)}

    def vocabulary(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(pieces + normal)
        writer.add_token_types(types + [1] * len(normal))
        writer.add_token_scores(scores)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)

    model = model_of()
    import_gguf(write(tmp_path / "m.gguf", vocabulary, lambda w: add_model(w, model, "F32")), tmp_path / "hf")
    found = AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text, expected in {
        "abc ab": ["▁ab", "c", "▁ab"],  # "▁ab" before "abc"
        "ababc": ["▁ab", "abc"],
        "    a": ["▁▁▁", "▁▁", "a"],
        "é": ["▁", "<0xC3>", "<0xA9>"],
        "</s>ab": ["</s>", "▁ab"],
    }.items():
        assert found.tokenize(text) == expected, text
        assert found(text).input_ids == [1, *(ids[piece] for piece in expected)]
    assert found.decode(found("abc é  ab").input_ids, skip_special_tokens=True) == "abc é  ab"
