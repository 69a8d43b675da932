"""A tiny GGUF file, as llama.cpp writes it, and the Hugging Face tensors that are in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 64, 96, 2, 4, 2, 32  # heads wider than hidden / heads, and grouped
TOKENS = ["a", "b", "Ġ", "ab", "Ġab", "<s>", "</s>", "<tool>", "[PAD8]", "[PAD9]"]
TYPES = [1, 1, 1, 1, 1, 3, 3, 4, 5, 5]
MERGES = ["a b", "Ġ ab"]
Writer = gguf.GGUFWriter
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """LlamaModel.permute of llama.cpp's conversion."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def weights(*, bias: bool = False, tied: bool = True) -> dict[str, tuple[str, np.ndarray]]:
    """Hugging Face name -> (GGUF name, random values)."""
    rng = np.random.default_rng(0)
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "self_attn.q_proj": ("attn_q", (q, HIDDEN)),
        "self_attn.k_proj": ("attn_k", (kv, HIDDEN)),
        "self_attn.v_proj": ("attn_v", (kv, HIDDEN)),
        "self_attn.o_proj": ("attn_output", (HIDDEN, q)),
        "mlp.gate_proj": ("ffn_gate", (FFN, HIDDEN)),
        "mlp.up_proj": ("ffn_up", (FFN, HIDDEN)),
        "mlp.down_proj": ("ffn_down", (HIDDEN, FFN)),
        "input_layernorm": ("attn_norm", (HIDDEN,)),
        "post_attention_layernorm": ("ffn_norm", (HIDDEN,)),
    }
    names: dict[str, tuple[str, tuple[int, ...]]] = {"model.embed_tokens.weight": ("token_embd.weight", (len(TOKENS), HIDDEN))}
    for layer in range(LAYERS):
        for name, (short, shape) in shapes.items():
            names[f"model.layers.{layer}.{name}.weight"] = (f"blk.{layer}.{short}.weight", shape)
            if bias and len(shape) == 2:
                names[f"model.layers.{layer}.{name}.bias"] = (f"blk.{layer}.{short}.bias", shape[:1])
    names["model.norm.weight"] = ("output_norm.weight", (HIDDEN,))
    if not tied:
        names["lm_head.weight"] = ("output.weight", (len(TOKENS), HIDDEN))
    return {name: (short, rng.standard_normal(shape).astype(np.float32)) for name, (short, shape) in names.items()}


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    kind: str = "F32",
    values: dict[str, tuple[str, np.ndarray]] | None = None,
    tokenizer: Callable[[Writer], None] | None = None,
    extra: Callable[[Writer], None] | None = None,
    ffn: int = FFN,
    head_dim: int = HEAD_DIM,
) -> Path:
    """A GGUF as llama.cpp writes it; matrices of type `kind`; `extra` adds to the header or the tensors."""
    writer = Writer(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(50000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    (tokenizer or byte_level)(writer)
    if extra is not None:
        extra(writer)
    for name, (short, value) in (weights() if values is None else values).items():
        if ".q_proj." in name or ".k_proj." in name:
            value = permute(value, HEADS if ".q_proj." in name else KV_HEADS)
        qtype = gguf.GGMLQuantizationType[kind if value.ndim == 2 else "F32"]
        writer.add_tensor(short, gguf.quants.quantize(value, qtype), raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_level(
    writer: Writer,
    pre: str | None = "smollm",
    tokens: list[str] = TOKENS,
    types: list[int] = TYPES,
    merges: list[str] = MERGES,
) -> None:
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(5)
    writer.add_eos_token_id(6)
    writer.add_chat_template("{{ messages }}")


def sentencepiece(writer: Writer, scores: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0)) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", "<0x0A>", "ab", "▁ab", "a", "b", "▁", "▁▁"])
    writer.add_token_types([2, 3, 3, 6, 1, 1, 1, 1, 1, 1])
    writer.add_token_scores(list(scores))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
