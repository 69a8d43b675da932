"""Sizes of the models that examples/recipes name, from their public model cards, laid over the tiny config of their family."""

from __future__ import annotations

from typing import Any


def _dense(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int, **others: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 32768,
        **others,
    }


SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "model": ("llama", _dense(64, 160, 4, 8, 4, 320)),  # the one of docs/train.md
    "SmolLM2-135M": ("llama", _dense(576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True)),
    "Llama-3.1-8B": ("llama", _dense(4096, 14336, 32, 32, 8, 128256)),
    "Llama-3.1-70B": ("llama", _dense(8192, 28672, 80, 64, 8, 128256)),
    "Qwen2.5-7B": ("qwen2", _dense(3584, 18944, 28, 28, 4, 152064, tie_word_embeddings=False)),
    "Qwen2.5-72B": ("qwen2", _dense(8192, 29568, 80, 64, 8, 152064, tie_word_embeddings=False)),
    "Qwen3-14B": ("qwen3", _dense(5120, 17408, 40, 40, 8, 151936, head_dim=128)),
    "Qwen3-32B": ("qwen3", _dense(5120, 25600, 64, 64, 8, 151936, head_dim=128)),
    "Qwen3-30B-A3B": (
        "qwen3_moe",
        _dense(2048, 6144, 48, 32, 4, 151936, head_dim=128, moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8),
    ),
    "DeepSeek-V2-Lite": (
        "deepseek_v2",
        _dense(
            *(2048, 10944, 27, 16, 16, 102400),
            moe_intermediate_size=1408,
            q_lora_rank=None,
            kv_lora_rank=512,
            qk_nope_head_dim=128,
            qk_rope_head_dim=64,
            v_head_dim=128,
            n_routed_experts=64,
            n_shared_experts=2,
            num_experts_per_tok=6,
            first_k_dense_replace=1,
            topk_method="greedy",
            n_group=1,
            topk_group=1,
        ),
    ),
}
PARAMETERS = {
    "SmolLM2-135M": 134_515_008,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.1-70B": 70_553_706_496,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-72B": 72_706_203_648,
    "Qwen3-14B": 14_768_307_200,
    "Qwen3-32B": 32_762_123_264,
    "Qwen3-30B-A3B": 30_532_122_624,
    "DeepSeek-V2-Lite": 15_706_484_224,
}
"""What their weight files hold."""
