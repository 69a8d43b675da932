"""Tiny random Hugging Face models in which no tensor can stand for another and no number is neutral."""

from __future__ import annotations

from pathlib import Path

import torch

# An odd vocabulary is padded at TP 2. Two stages of two layers, or four chunks of one. Two KV groups of two heads.
LLAMA = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0},
)
LLAMA_3_ROPE = {  # megatron-core knows these four numbers by heart, and takes only the factor
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.707,
    "mscale_all_dim": 0.5,
}
MOE = dict(num_experts_per_tok=2, moe_intermediate_size=40)
DEEPSEEK = LLAMA | dict(
    num_key_value_heads=4,
    q_lora_rank=24,
    kv_lora_rank=20,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=12,
    first_k_dense_replace=1,
    n_routed_experts=8,
    n_shared_experts=2,
    moe_intermediate_size=24,
    routed_scaling_factor=1.7,
    n_group=4,
    topk_group=2,
    rms_norm_eps=1e-6,  # transformers writes it into the norms of the latents, whatever the config says
    rope_parameters=YARN,
)
MODELS: dict[str, tuple[str, dict]] = {
    "llama": ("llama", LLAMA),
    "llama_3": ("llama", LLAMA | dict(rope_parameters=LLAMA_3_ROPE, max_position_embeddings=65536)),
    "qwen2": ("qwen2", LLAMA),
    "qwen2_tied": ("qwen2", LLAMA | dict(tie_word_embeddings=True)),
    "qwen3": ("qwen3", LLAMA | dict(head_dim=16)),
    "mixtral": ("mixtral", LLAMA | dict(num_local_experts=4, num_experts_per_tok=2)),
    "qwen2_moe": ("qwen2_moe", LLAMA | MOE | dict(num_experts=4, shared_expert_intermediate_size=56)),
    "qwen3_moe": ("qwen3_moe", LLAMA | MOE | dict(num_experts=4, head_dim=16, norm_topk_prob=True)),
    # topk / topk_group experts choose a group in megatron-core, the best one in transformers: the same for 2 / 2
    "deepseek_v2": (
        "deepseek_v2",
        DEEPSEEK | dict(topk_method="group_limited_greedy", num_experts_per_tok=2),
    ),
    "deepseek_v2_lite": (
        "deepseek_v2",
        DEEPSEEK
        | dict(topk_method="greedy", num_experts_per_tok=4, q_lora_rank=None)
        | dict(rope_parameters=LLAMA["rope_parameters"]),
    ),
    "deepseek_v3": (
        "deepseek_v3",
        DEEPSEEK | dict(num_experts_per_tok=4, norm_topk_prob=True, num_nextn_predict_layers=0),
    ),
    "deepseek_v3_mtp": (
        "deepseek_v3",
        DEEPSEEK | dict(num_experts_per_tok=4, norm_topk_prob=True, num_nextn_predict_layers=1),
    ),
    "gpt2": (
        "gpt2",
        dict(vocab_size=97, n_embd=48, n_layer=4, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0),
    ),
}


def randomise(state: dict[str, torch.Tensor], seed: int) -> None:
    """Matrices that keep the size of what they multiply, so that logits are of order 1; norms not 1, biases not 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in state.items():
        noise = torch.randn(tensor.shape, generator=generator)
        if any(part in name for part in ("embed_tokens", "embeddings", "wte", "lm_head")):
            tensor.copy_(0.4 * tensor.shape[1] ** -0.5 * noise)
        elif tensor.ndim > 1:
            tensor.copy_(tensor.shape[-1] ** -0.5 * noise)
        elif name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")):
            tensor.copy_(1 + 0.2 * noise)
        else:
            tensor.copy_(0.2 * noise)


def add_mtp(folder: Path, layers: int, hidden: int) -> None:
    """Add the layer after the last, which published DeepSeek-V3 files have and transformers passes over."""
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    last, new = f"model.layers.{layers - 1}.", f"model.layers.{layers}."
    mtp = {name.replace(last, new): torch.empty_like(w) for name, w in state.items() if name.startswith(last)}
    mtp |= {f"{new}{name}.weight": torch.empty(hidden) for name in ("enorm", "hnorm", "shared_head.norm")}
    mtp[new + "eh_proj.weight"] = torch.empty(hidden, 2 * hidden)
    randomise(mtp, seed=1)
    mtp[new + "embed_tokens.weight"] = state["model.embed_tokens.weight"].clone()
    mtp[new + "shared_head.head.weight"] = state["lm_head.weight"].clone()
    save_file(state | mtp, folder / "model.safetensors", metadata={"format": "pt"})


def make(name: str, folder: Path) -> None:
    """Write MODELS[name] as a Hugging Face directory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, settings = MODELS[name]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings), dtype=torch.float32)
    randomise(model.state_dict(), seed=0)
    model.save_pretrained(folder)
    if settings.get("num_nextn_predict_layers"):
        add_mtp(folder, settings["num_hidden_layers"], settings["hidden_size"])
