"""Tiny models and token files on which a layout can be told from another one, and rounding cannot tell two of them apart.

Every matrix keeps the size of what it multiplies, no norm is 1 and no bias 0 (tiny_models.randomise). The vocabulary is odd, so
that it is padded at TP 2. Weights are written from the family's own list of tensors: no transformers here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import tiny_models
from jumar.schema.indexed import IndexedWriter
from jumar.schema.registry import families

VOCAB, EOD, SEQ_LEN = 97, 96, 32
SIZES: dict[str, Any] = dict(vocab_size=VOCAB, hidden_size=48, num_hidden_layers=4, max_position_embeddings=64)
HEADS: dict[str, Any] = dict(num_attention_heads=4, num_key_value_heads=2)
NARROW: dict[str, Any] = dict(intermediate_size=80)
LATENT: dict[str, Any] = dict(q_lora_rank=20, kv_lora_rank=24, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=16)
EXPERTS: dict[str, Any] = dict(moe_intermediate_size=24)
LLAMA_3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, mscale=0.707, mscale_all_dim=0.5)

MAMBA: dict[str, Any] = dict(vocab_size=VOCAB, hidden_size=48, num_heads=8, head_dim=12, n_groups=2, chunk_size=8)
"""Four chunks in a sequence; at TP 2 a group is a rank's."""
STATES: dict[str, Any] = dict(mamba_num_heads=8, mamba_head_dim=12, n_groups=2, chunk_size=8)
HYBRID: dict[str, Any] = STATES | HEADS | NARROW | dict(vocab_size=VOCAB, hidden_size=48, hybrid_override_pattern="M*-M")

DENSE = SIZES | HEADS | NARROW
DEEPSEEK = SIZES | NARROW | EXPERTS | LATENT
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", DENSE),
    "llama_tied": ("llama", DENSE | dict(tie_word_embeddings=True)),
    "llama_8": ("llama", DENSE | dict(num_hidden_layers=8)),
    "llama_3": ("llama", DENSE | dict(rope_scaling=LLAMA_3)),
    "llama_yarn": ("llama", DENSE | dict(rope_scaling=YARN)),
    "mistral": ("mistral", DENSE | dict(sliding_window=11, head_dim=12)),
    "qwen2": ("qwen2", DENSE),
    "qwen3": ("qwen3", DENSE),
    "gemma2": ("gemma2", DENSE | dict(sliding_window=11, head_dim=16, query_pre_attn_scalar=12)),
    "glm4": ("glm4", DENSE | dict(head_dim=12)),
    "gpt2": ("gpt2", dict(vocab_size=VOCAB, n_embd=48, n_layer=4, n_head=4, n_positions=64)),
    "mamba2": ("mamba2", MAMBA),
    "mamba2_tied": ("mamba2", MAMBA | dict(tie_word_embeddings=True)),
    "mamba2_biased": ("mamba2", MAMBA | dict(use_bias=True, use_conv_bias=False)),
    "nemotron_h": ("nemotron_h", HYBRID),
    "mixtral": ("mixtral", DENSE | dict(num_local_experts=4)),
    "qwen2_moe": ("qwen2_moe", DENSE | EXPERTS | dict(shared_expert_intermediate_size=40, mlp_only_layers=[0])),
    "qwen3_moe": ("qwen3_moe", DENSE | EXPERTS),
    "deepseek_v2": ("deepseek_v2", DEEPSEEK),
    "deepseek_v2_lite": ("deepseek_v2", DEEPSEEK | dict(q_lora_rank=None, rope_scaling=YARN)),
    "deepseek_v2_groups": (
        "deepseek_v2",
        DEEPSEEK | dict(topk_method="group_limited_greedy", n_group=4, topk_group=2),
    ),
    "deepseek_v2_dense": ("deepseek_v2", DEEPSEEK | dict(first_k_dense_replace=4)),
    "deepseek_v3": ("deepseek_v3", DEEPSEEK | dict(num_nextn_predict_layers=0)),
    "deepseek_v3_mtp": ("deepseek_v3", DEEPSEEK | dict(first_k_dense_replace=3)),
}
SEEDS = dict(mixtral=1, qwen2_moe=1, deepseek_v2=1, deepseek_v2_lite=1, deepseek_v2_groups=2, deepseek_v3=6, deepseek_v3_mtp=3)
"""Of weights, where 0 has a token that two experts fit almost equally."""
STARTS = {"D": 1.0, "dt_bias": -3.0}
"""Of state-space layers, about as fresh ones have them. With long steps and no way past the state, rounding grows by layers."""


def config_of(variant: str) -> dict[str, Any]:
    family, changes = VARIANTS[variant]
    return {**families()[family].tiny, **changes}


def write_model(variant: str, folder: Path) -> Path:
    """A Hugging Face directory of a variant."""
    folder.mkdir(parents=True)
    config = config_of(variant)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    family = families()[VARIANTS[variant][0]]
    state = {name: torch.empty(shape) for name, shape in family.hf_tensors(family.spec(config)).items()}
    tiny_models.randomise(state, seed=SEEDS.get(variant, 0))
    for name, start in ((name, STARTS[name.rsplit(".", 1)[1]]) for name in state if name.rsplit(".", 1)[1] in STARTS):
        state[name] += start
    if family.spec(config).zero_centered_gamma:
        for name in (name for name in state if name.endswith("norm.weight")):
            state[name] -= 1
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_tokens(folder: Path) -> None:
    """`plain`, documents of up to 120 tokens, and `ends`, in which a third of the tokens end a document.

    More than 20 steps need, so that a run of fewer steps reads the same samples. Each token is followed by one of three others:
    there is something to learn in 20 steps.
    """
    generator = np.random.default_rng(0)
    following = generator.integers(0, EOD, (VOCAB, 3))
    for name, longest in (("plain", 120), ("ends", 3)):
        with IndexedWriter(folder / f"{name}_text_document", np.uint16) as writer:
            for _ in range(150 * 120 // longest):
                tokens = [int(generator.integers(0, EOD))]
                for _ in range(int(generator.integers(0, longest))):
                    tokens.append(int(following[tokens[-1], generator.integers(0, 3)]))
                writer.add(np.array([*tokens, EOD], dtype=np.uint16))
