"""What a model's config.json says, in the words of Megatron-LM's and MindSpeed-LLM's flags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jumar.chain.facts import Facts
from jumar.schema.spec import ModelSpec

OF_EXPERTS = (
    *("--moe-router-topk", "--moe-ffn-hidden-size", "--moe-intermediate-size", "--moe-layer-freq", "--first-k-dense-replace"),
    *("--n-shared-experts", "--moe-shared-expert-intermediate-size", "--shared-expert-gate", "--norm-topk-prob"),
    *("--moe-router-num-groups", "--moe-router-group-topk", "--topk-group", "--n-group", "--moe-router-topk-scaling-factor"),
    *("--routed-scaling-factor", "--moe-router-score-function", "--moe-router-enable-expert-bias", "--moe-router-pre-softmax"),
)
LATENT = ("--multi-latent-attention", "--multi-head-latent-attention")
OF_LATENT = (
    *("--q-lora-rank", "--kv-lora-rank", "--qk-head-dim", "--qk-nope-head-dim", "--qk-pos-emb-head-dim", "--qk-rope-head-dim"),
    "--v-head-dim",
)
SCALING = ("--rope-scaling-type", "--use-rope-scaling")
OF_ROTATION = (
    *("--rotary-base", "--rotary-percent", "--partial-rotary-factor", "--rotary-interleaved", "--use-glm-rope"),
    *("--rotary-seq-len-interpolation-factor", *SCALING),
)
FIELDS_OF_SCALING = {
    **{
        f"--rope-scaling-{name.replace('_', '-')}": name
        for name in ("factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow")
    },
    "--rope-scaling-original-max-position-embeddings": "original_max_position_embeddings",
    **{f"--{name.replace('_', '-')}": name for name in ("mscale", "mscale_all_dim", "beta_fast", "beta_slow")},
    **{f"--{name.replace('_', '-')}": name for name in ("low_freq_factor", "high_freq_factor")},
    **dict.fromkeys(("--original-max-position-embeddings", "--original-seq-len"), "original_max_position_embeddings"),
    **dict.fromkeys(("--rope-factor", "--rotary-scaling-factor", "--dynamic-factor"), "factor"),
}
LEFT_OUT = {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0}
"""What transformers and Megatron take for a setting of yarn that config.json leaves out."""
ACTIVATIONS = {
    "--swiglu": (True, ("silu",)),
    "--geglu": (True, ("gelu", "gelu_tanh")),
    "--gelu-tanh": (None, ("gelu_tanh",)),
    "--quick-geglu": (True, ()),
    "--squared-relu": (False, ("relu2",)),
}


def traits(spec: ModelSpec) -> dict[str, Any]:
    """flag -> what it would have to say of this model: a number, a word, True or False of a switch, None of what it has not."""
    rope = spec.position == "rope"
    position = {"rope": "rope", "learned": "learned_absolute", "none": "none"}[spec.position]
    ways = {name: gated in (None, spec.gated) and spec.activation in kinds for name, (gated, kinds) in ACTIVATIONS.items()}
    return {
        "--num-layers": spec.num_layers,
        "--hidden-size": spec.hidden_size,
        "--ffn-hidden-size": spec.ffn_size or (spec.moe.ffn_size if spec.moe else None),
        "--num-attention-heads": spec.num_heads,
        "--num-query-groups": spec.num_kv_heads,
        "--kv-channels": spec.head_dim,
        "--vocab-size": spec.vocab_size,
        "--max-position-embeddings": spec.max_position_embeddings,
        "--position-embedding-type": position,
        "--use-rotary-position-embeddings": rope,
        "--use-rotary-position-embedding": rope,
        "--no-position-embedding": spec.position != "learned",
        "--normalization": {"rms": "RMSNorm", "layer": "LayerNorm"}[spec.norm],
        "--norm-epsilon": spec.norm_eps,
        "--apply-layernorm-1p": spec.zero_centered_gamma,
        "--add-rmsnorm-offset": spec.zero_centered_gamma,
        "--input-embeds-norm": spec.embed_scale is not None,
        "--post-norm": spec.post_norms,
        "--qk-layernorm": spec.qk_norm or spec.mla is not None,
        **ways,
        "--disable-bias-linear": not spec.mlp_bias,
        "--add-qkv-bias": spec.qkv_bias,
        "--add-dense-bias": spec.proj_bias,
        "--untie-embeddings-and-output-weights": not spec.tied,
        "--attn-logit-softcapping": spec.attn_softcap,
        "--output-logit-softcapping": spec.final_softcap,
        "--query-pre-attn-scalar": round(spec.attn_scale**-2, 6) if spec.attn_scale else None,
        **dict.fromkeys(("--sliding-window", "--sliding-window-size", "--interleave-sliding-window"), spec.sliding_window),
        "--window-attn-skip-freq": spec.sliding_layers if spec.sliding_window else None,
        "--window-size": (spec.sliding_window - 1, 0) if spec.sliding_window else None,
        "--mtp-num-layers": spec.mtp_layers,
        "--num-nextn-predict-layers": spec.mtp_layers,
        **_rotation(spec),
        **_experts(spec),
        **_latent(spec),
        **_mixers(spec),
    }


def _rotation(spec: ModelSpec) -> dict[str, Any]:
    rope, scaling = spec.rope, spec.rope.scaling
    if spec.position != "rope":
        return dict.fromkeys((*OF_ROTATION, *FIELDS_OF_SCALING))
    stretched = scaling.factor if scaling is not None and scaling.kind == "linear" else 1
    return {
        "--rotary-base": rope.base,
        "--rotary-percent": rope.fraction,
        "--partial-rotary-factor": rope.fraction,
        "--rotary-interleaved": rope.interleaved and spec.mla is None,
        "--use-glm-rope": rope.interleaved,
        "--rotary-seq-len-interpolation-factor": stretched,
        "--rope-scaling-type": scaling.kind if scaling is not None else None,
        "--use-rope-scaling": scaling is not None and scaling.kind == "llama3",
        "--rope-type": "rope" if scaling is None else scaling.kind,
        **{flag: _setting(scaling, name) for flag, name in FIELDS_OF_SCALING.items()},
    }


def _setting(scaling: object, name: str) -> float | None:
    value: float | None = getattr(scaling, name, None)
    return LEFT_OUT.get(name) if value is None and scaling is not None else value


def _experts(spec: ModelSpec) -> dict[str, Any]:
    moe = spec.moe
    if moe is None:
        return dict.fromkeys((*OF_EXPERTS, "--num-experts"))
    return {
        "--num-experts": moe.num_experts,
        "--moe-router-topk": moe.top_k,
        "--moe-ffn-hidden-size": moe.ffn_size,
        "--moe-intermediate-size": moe.ffn_size,
        "--n-shared-experts": moe.shared_ffn_size / moe.ffn_size,
        "--moe-shared-expert-intermediate-size": moe.shared_ffn_size,
        "--shared-expert-gate": moe.shared_gate,
        "--norm-topk-prob": moe.norm_topk,
        "--moe-router-pre-softmax": not moe.norm_topk or moe.score == "sigmoid",
        "--moe-router-num-groups": moe.num_groups,
        "--n-group": moe.num_groups,
        "--moe-router-group-topk": moe.topk_groups,
        "--topk-group": moe.topk_groups,
        "--moe-router-topk-scaling-factor": moe.scaling_factor,
        "--routed-scaling-factor": moe.scaling_factor,
        "--moe-router-score-function": moe.score,
        "--moe-router-enable-expert-bias": moe.score_bias,
        "--moe-layer-freq": moe.dense_layers,
        "--first-k-dense-replace": moe.dense_layers,
    }


def _latent(spec: ModelSpec) -> dict[str, Any]:
    mla = spec.mla
    if mla is None:
        return dict.fromkeys((*LATENT, *OF_LATENT))
    sizes = (mla.q_lora_rank, mla.kv_lora_rank, mla.nope_dim, mla.nope_dim, mla.rope_dim, mla.rope_dim, mla.v_dim)
    return {**dict.fromkeys(LATENT, True), **dict(zip(OF_LATENT, sizes, strict=True))}


def _mixers(spec: ModelSpec) -> dict[str, Any]:
    ssm = spec.ssm
    sizes = (
        (("--mamba-d-state", "--mamba-state-dim"), ssm and ssm.state_size),
        (("--mamba-headdim", "--mamba-head-dim"), ssm and ssm.head_dim),
        (("--mamba-ngroups", "--mamba-num-groups"), ssm and ssm.num_groups),
        (("--mamba-chunk-size",), ssm and ssm.chunk_size),
        (("--mamba-d-conv",), ssm and ssm.conv_kernel),
        (("--mamba-expand",), ssm and ssm.num_heads * ssm.head_dim / spec.hidden_size),
        (("--mamba-num-heads",), ssm and ssm.num_heads),
        (("--is-hybrid-model",), ssm is not None),
        (("--hybrid-override-pattern", "--hybrid-layer-pattern"), spec.pattern or None),
    )
    return {name: value for names, value in sizes for name in names}


def layers_of(t: Facts, flag: str, layers: int) -> tuple[int, ...] | None:
    """Layers without experts, or of --window-attn-skip-freq those whose window slides; None where the flags are not readable."""
    if flag == "--window-attn-skip-freq":
        said = (t.said(flag) or "").strip("'\"")
        if said.isdecimal() and int(said):
            return tuple(i for i in range(layers) if (i + 1) % int(said))
        pattern = _pattern(said)
        return None if pattern is None else tuple(i for i, one in enumerate(pattern) if one == "1")
    first, said = t.number("--first-k-dense-replace", 0) or 0, (t.said("--moe-layer-freq") or "1").strip("'\"")
    if said.isdecimal():
        return tuple(i for i in range(layers) if i < first or i % (int(said) or 1))
    pattern = _pattern(said)
    return None if pattern is None else tuple(i for i, one in enumerate(pattern) if one == "0" or i < first)


def _pattern(said: str) -> list[str] | None:
    """ "([0]*1+[1]*3)" -> ["0", "1", "1", "1"]."""
    parts = [re.fullmatch(r"\[([01](?:,[01])*)\](?:\*(\d{1,4}))?", part) for part in said.replace(" ", "").strip("()").split("+")]
    return [one for part in parts if part for one in part[1].split(",") * int(part[2] or 1)] if all(parts) else None


def idle(t: Facts, spec: ModelSpec) -> Mapping[str, str]:
    """flag -> why its value says nothing here, whatever it is."""
    why: dict[str, str] = {}
    if spec.position != "learned":
        why["--max-position-embeddings"] = "positions are not learned: data.seq_len says how many there are"
    if not t.has("--group-query-attention"):
        why["--num-query-groups"] = "it goes with --group-query-attention, there too"
    if spec.mla is not None:
        why |= dict.fromkeys(("--kv-channels", "--num-query-groups", "--group-query-attention"), "attention is latent")
    if not t.has("--num-experts") and spec.moe is None:
        why |= dict.fromkeys(OF_EXPERTS, "this model has no experts")
    if not t.has(*LATENT) and spec.mla is None:
        alone = ("--rope-type", "--mscale", "--mscale-all-dim", "--rotary-scaling-factor")
        why |= dict.fromkeys((*OF_LATENT, *alone), "attention is not latent")
    if spec.position != "rope":
        why |= dict.fromkeys((*OF_ROTATION, *FIELDS_OF_SCALING), "positions are not rotary")
    if spec.moe is not None and not spec.moe.dense_layers and t.has("--moe-ffn-hidden-size", "--moe-intermediate-size"):
        why["--ffn-hidden-size"] = "every layer has experts, and their size is said"
    if t.has("--norm-topk-prob"):
        why["--moe-router-pre-softmax"] = "the chosen scores are normalised: --norm-topk-prob"
    stretches = t.has(*SCALING) or t.said("--rope-type") == "yarn" or t.said("--position-embedding-type") == "yarn"
    if spec.rope.scaling is None and not stretches and spec.mla is None:
        why |= dict.fromkeys(FIELDS_OF_SCALING, "RoPE is not scaled: --rope-scaling-type is not given")
    return why
