"""What is trained with the NPU's operations on CPU tensors, and which of its kernels each row must reach."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import train_models
from jumar.schema.recipe import apply_set

STEPS, MICRO_BATCHES = 5, 2
DENSE = {"npu_rms_norm", "npu_rotary_mul", "npu_fusion_attention", "npu_swiglu", "npu_apply_adam_w"}
SOFTCAPPED = DENSE - {"npu_fusion_attention", "npu_swiglu"}
EXPERTS = DENSE | {"npu_grouped_matmul", "npu_moe_token_permute", "npu_moe_token_unpermute"}
GRADIENTS = {
    "npu_rms_norm": "npu_rms_norm_backward",
    "npu_rotary_mul": "npu_rotary_mul_backward",
    "npu_fusion_attention": "npu_fusion_attention_grad",
    "npu_swiglu": "npu_swiglu_backward",
    "npu_moe_token_permute": "npu_moe_token_permute_grad",
    "npu_moe_token_unpermute": "npu_moe_token_unpermute_grad",
}


@dataclass(frozen=True, slots=True)
class Row:
    """A run of a variant. sets: fields of the recipe, with __ for the dot; loss, norm: how far it may be from the CPU's."""

    variant: str
    kernels: set[str]
    ranks: int = 1
    packed: bool = False
    slow: bool = False
    loss: float = 2e-6
    norm: float = 1e-5
    sets: dict[str, Any] = field(default_factory=dict)


def row(variant: str, kernels: set[str], ranks: int = 1, *, packed: bool = False, slow: bool = False, **sets: Any) -> Row:
    return Row(variant, kernels, ranks, packed, slow, sets=sets)


def half(variant: str, kernels: set[str], *, loss: float, norm: float, slow: bool = False) -> Row:
    return Row(variant, kernels, slow=slow, loss=loss, norm=norm, sets=dict(train__precision="bf16", optim__lr=3e-4))


SELECTIVE = {"modules": ["core_attn", "layernorm", "mlp"]}
ROWS = {
    "llama": row("llama", DENSE),
    "llama packed": row("llama", DENSE, packed=True),
    "llama bf16": half("llama", DENSE, loss=2e-3, norm=1e-2),
    "windows, recomputed": row("mistral", DENSE, features__recompute=SELECTIVE),
    "softcap": Row("gemma2", SOFTCAPPED, norm=3e-5, sets=dict(optim__lr=3e-5)),  # steep: 5e-6 apart at the first step
    "experts": row("mixtral", EXPERTS),
    "experts bf16": half("mixtral", EXPERTS, loss=1e-2, norm=1e-1),
    "latent attention": row("deepseek_v2", EXPERTS, slow=True),
    "windows cp2": row("mistral", DENSE, 2, parallel__cp=2),
    "latent attention cp2": row("deepseek_v2", EXPERTS, 2, parallel__cp=2),
    "qk-norm, all recomputed": row("qwen3", DENSE, slow=True, features__recompute={"granularity": "full"}),
    "pairs of a part of the head": row("glm4", DENSE, slow=True),
    "shared experts": row("qwen2_moe", EXPERTS, slow=True),
    "shared experts bf16": half("qwen2_moe", EXPERTS, loss=1e-2, norm=1e-1, slow=True),
    "latent attention bf16": half("deepseek_v2", EXPERTS, loss=1e-2, norm=1e-1, slow=True),
    "all-gather": row(
        "mixtral",
        EXPERTS - {"npu_moe_token_permute", "npu_moe_token_unpermute"},
        slow=True,
        features__moe__dispatcher="allgather",
    ),
    "experts ep2": row("mixtral", EXPERTS, 2, slow=True, parallel__ep=2),
    "latent attention tp2 ep2": row("deepseek_v2", EXPERTS, 2, slow=True, parallel__tp=2, parallel__ep=2),
}

# What is made wrong (npu_train_worker.WRONG), and the row in which it must be seen.
WRONG_IN = {
    "a name that is not there": "llama",
    "the mask the other way round": "llama",
    "counts for their sums": "experts",
}
WRONG_IN_SLOWLY = {
    "pre_tokens for pre_tockens": "windows, recomputed",
    "the layout of another tensor": "llama",
    "no mask": "llama",
    "aligned at the start": "windows cp2 all keys",
    "all of the mask": "llama",
    "a window of one more": "windows, recomputed",
    "lengths of queries off by one": "llama packed",
    "lengths for their sums": "llama packed",
    "no scale": "llama",
    "turned the other way": "llama",
    "halves for pairs": "latent attention",
    "the wrong half": "llama",
    "epsilon called eps": "llama",
    "int32 sums": "experts",
    "int64 order": "experts",
    "the inverse order": "experts",
    "experts as floats": "experts",
    "powers of this step": "llama",
    "no decay": "llama",
}
# Not a row of its own: without windows a context-parallel rank's keys are more than its queries, by an odd number of chunks.
ALL_KEYS = row("llama", DENSE, 2, parallel__cp=2)


def recipe(of: Row, folder: Path, steps: int = STEPS) -> dict[str, Any]:
    """Its recipe; the model and tokens are written into `folder`.

    AdamW's first step is the sign of a gradient, whose size is rounding where the gradient is: an eps above that keeps
    differences of 1e-7 from being multiplied.
    """
    model = folder / of.variant
    if not model.exists():
        train_models.write_model(of.variant, model)
    if not (folder / "plain_text_document.idx").exists():
        train_models.write_tokens(folder)
    values: dict[str, Any] = {
        "load": {"path": str(model)},
        "data": {"train": str(folder / "plain_text_document"), "seq_len": train_models.SEQ_LEN, "workers": 0},
        "train": {"steps": steps, "global_batch_size": 2 * MICRO_BATCHES, "micro_batch_size": 2, "precision": "fp32"},
        "optim": {"lr": 3e-3, "eps": 1e-5},
        "schedule": {"kind": "constant"},
    }
    for name, value in of.sets.items():
        apply_set(values, f"{name.replace('__', '.')}={json.dumps(value)}")
    return values
