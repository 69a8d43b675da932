"""GGUF metadata of a llama-shaped model -> the config.json of LlamaForCausalLM and its generation_config.json.

Source of the field names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's conversion of
LlamaForCausalLM, whose defaults for absent fields are taken over.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jumar.ckpt_convert.formats.gguf_header import Fields
from jumar.schema.errors import ToolError

TORCH_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""safetensors dtype name -> the spelling of config.json"""

_LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""rope_scaling of every published Llama 3.1, 3.2 and 3.3; GGUF keeps only the factors that follow from it."""

_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
"""general.sampling.* -> generation_config.json"""


def llama_config(
    fields: Fields, *, names: set[str], vocab_rows: int, rope_factors: np.ndarray | None, dtype: str
) -> dict[str, Any]:
    """config.json of LlamaForCausalLM, without the token ids.

    names:        the tensors of the file; they tell whether there are biases and an output matrix of its own
    vocab_rows:   rows of token_embd.weight
    rope_factors: rope_freqs.weight [head_dim / 2], what the frequencies of RoPE are divided by; None where absent
    dtype:        a key of `TORCH_DTYPES`

    Raises ToolError for another architecture, for experts, and for anything that LlamaForCausalLM cannot express.
    """
    _check_kind(fields)
    hidden_size = _size(fields, "llama.embedding_length")
    num_heads = _size(fields, "llama.attention.head_count")
    num_kv_heads = fields.take("llama.attention.head_count_kv", int, num_heads)
    if num_kv_heads <= 0 or num_heads % num_kv_heads:
        raise ToolError(
            f"{fields.path}: llama.attention.head_count_kv is {num_kv_heads}, expected a divisor of {num_heads}",
            hint="the file is damaged: get it again",
        )
    vocab_size = fields.take("llama.vocab_size", int, vocab_rows)
    if vocab_size != vocab_rows:
        raise ToolError(
            f"{fields.path}: token_embd.weight has {vocab_rows} rows, expected llama.vocab_size = {vocab_size}",
            hint="the file is damaged: get it again",
        )
    head_dim = _head_dim(fields, hidden_size, num_heads)
    theta_key = "llama.rope.freq_base"
    rope_theta = _positive(fields, theta_key) if theta_key in fields else 10000.0
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": _size(fields, "llama.feed_forward_length"),
        "num_hidden_layers": _size(fields, "llama.block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": _size(fields, "llama.context_length"),
        "rms_norm_eps": _positive(fields, "llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": rope_theta,
        "rope_scaling": _rope_scaling(fields, rope_factors, rope_theta, head_dim),
        "attention_bias": "blk.0.attn_q.bias" in names,
        "attention_dropout": 0.0,
        "mlp_bias": "blk.0.ffn_gate.bias" in names,
        "tie_word_embeddings": "output.weight" not in names,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": TORCH_DTYPES[dtype],
    }


def generation_config(fields: Fields, ids: dict[str, int]) -> dict[str, Any]:
    """generation_config.json: where to stop (end of sequence, of turn, of message) and the sampling the file advises.

    ids: "bos", "eos", "pad", ... -> token id
    """
    stops = [ids["eos"]] if "eos" in ids else []
    for name in ("eot", "eom"):
        if name in ids and ids[name] not in stops:
            stops.append(ids[name])
    config: dict[str, Any] = {
        "bos_token_id": ids.get("bos"),
        "eos_token_id": stops if len(stops) > 1 else stops[0] if stops else None,
        "pad_token_id": ids.get("pad"),
    }
    for key, name in _SAMPLING.items():
        value = fields.take(f"general.sampling.{key}", int if key == "top_k" else float)
        if value is not None:
            config["do_sample"] = True
            config[name] = _short_float(value) if isinstance(value, float) else value
    return {key: value for key, value in config.items() if value is not None}


def _check_kind(fields: Fields) -> None:
    architecture = fields.need("general.architecture", str)
    if architecture != "llama":
        raise ToolError(
            f"{fields.path}: general.architecture is {architecture!r}, expected 'llama'",
            hint="only llama-shaped GGUF files can be read; start from the Hugging Face checkpoint",
        )
    kind = fields.take("general.type", str, "model")
    if kind != "model":
        raise ToolError(f"{fields.path}: general.type is {kind!r}, expected 'model'", hint="give the model's own file")
    experts = fields.take("llama.expert_count", int, 0)
    fields.take("llama.expert_used_count", int, 0)
    if experts:
        raise ToolError(
            f"{fields.path}: llama.expert_count is {experts}, expected a model without experts",
            hint="start from the Hugging Face checkpoint",
        )
    # Files of 2023 say so of the order of the q and k rows, which is the one of every llama file.
    layout = fields.take("llama.tensor_data_layout", str, "Meta AI original pth")
    if layout != "Meta AI original pth":
        raise ToolError(
            f"{fields.path}: llama.tensor_data_layout is {layout!r}, expected 'Meta AI original pth'",
            hint="convert the model to GGUF again with a current llama.cpp",
        )


def _head_dim(fields: Fields, hidden_size: int, num_heads: int) -> int:
    head_dim = fields.take("llama.attention.key_length", int, hidden_size // num_heads)
    if head_dim <= 0 or head_dim % 2:
        raise ToolError(f"{fields.path}: a head has {head_dim} elements, expected pairs", hint="get the file again")
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        found = fields.take(key, int, head_dim)
        if found != head_dim:
            raise ToolError(
                f"{fields.path}: {key} is {found}, expected the size of a head, {head_dim}",
                hint="LlamaForCausalLM rotates whole heads, and its keys are as wide as its values",
            )
    return head_dim


def _rope_scaling(fields: Fields, factors: np.ndarray | None, rope_theta: float, head_dim: int) -> dict[str, Any] | None:
    kind = fields.take("llama.rope.scaling.type", str, "none")
    fields.take("llama.rope.scaling.finetuned", bool)  # how the model was made, not how it computes
    if factors is not None and kind == "none":
        return _llama3_scaling(fields, factors, rope_theta, head_dim)
    if kind == "none":
        return None
    if factors is not None or kind not in ("linear", "yarn"):
        raise ToolError(
            f"{fields.path}: llama.rope.scaling.type is {kind!r}, {'without' if factors is None else 'with'} "
            "rope_freqs.weight, expected 'none', or 'linear' or 'yarn' without it",
            hint="start from the Hugging Face checkpoint",
        )
    scaling: dict[str, Any] = {"rope_type": kind, "factor": _positive(fields, "llama.rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = _size(fields, "llama.rope.scaling.original_context_length")
        for name in ("beta_fast", "beta_slow"):
            if (key := f"llama.rope.scaling.yarn_{name}") in fields:
                scaling[name] = _positive(fields, key)
    return scaling


def _llama3_scaling(fields: Fields, factors: np.ndarray, rope_theta: float, head_dim: int) -> dict[str, Any]:
    """The rope_scaling of Llama 3.1 that gives `factors` [head_dim / 2], or ToolError if none does."""
    if factors.shape == (head_dim // 2,) and factors[-1] >= 1:
        scaling = {"rope_type": "llama3", "factor": _short_float(float(factors[-1])), **_LLAMA3_ROPE}
        # the file's factors were computed in float32
        if np.allclose(factors, llama3_rope_factors(rope_theta, head_dim, scaling), rtol=1e-5, atol=0):
            return scaling
    raise ToolError(
        f"{fields.path}: rope_freqs.weight {list(factors.shape)} = {factors.tolist()[:2]}... {factors.tolist()[-1:]}, expected "
        f"[{head_dim // 2}] with the values that follow from Llama 3's {_LLAMA3_ROPE}",
        hint="start from the Hugging Face checkpoint: its config.json has the rope_scaling that a GGUF leaves out",
    )


def llama3_rope_factors(rope_theta: float, head_dim: int, scaling: dict[str, Any]) -> np.ndarray:
    """What Llama 3.1 divides the frequencies of RoPE by: float32 [head_dim / 2].

    Source: transformers' `_compute_llama3_parameters`, llama.cpp's `LlamaModel.generate_extra_tensors`
    """
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelengths = 2 * np.pi * rope_theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (scaling["original_max_position_embeddings"] / wavelengths - low) / (high - low)
    smooth = np.clip(smooth, 0.0, 1.0)
    factors: np.ndarray = (1 / ((1 - smooth) / scaling["factor"] + smooth)).astype(np.float32)
    return factors


def _size(fields: Fields, key: str) -> int:
    value = fields.need(key, int)
    if value <= 0:
        raise ToolError(f"{fields.path}: {key} is {value}, expected more than 0", hint="get the file again")
    return value


def _positive(fields: Fields, key: str) -> float:
    value = _short_float(fields.need(key, float))
    if not 0 < value < float("inf"):
        raise ToolError(f"{fields.path}: {key} is {value}, expected more than 0", hint="get the file again")
    return value


def _short_float(value: float) -> float:
    """The shortest decimal that is the same float32: GGUF keeps 1e-05 as 9.999999747378752e-06."""
    return float(str(np.float32(value)))
