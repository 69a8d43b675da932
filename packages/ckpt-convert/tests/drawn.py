"""Hypothesis strategies: model configurations and layouts that fit each other."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

import by_hand
from jumar.schema.parallel import ParallelLayout
from jumar.schema.registry import families


def layout_of(want: by_hand.Wanted) -> ParallelLayout:
    return ParallelLayout(
        tp=want.tp,
        pp=want.pp,
        vpp=want.vpp,
        ep=want.ep,
        etp=want.etp,
        layers_per_stage=want.stages,
        noop_layers=want.noop,
        schedule="dualpipev" if want.dualpipev else "1f1b",
        tp_extend_ep=want.extend,
    )


@st.composite
def pipelines(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """Fields of a `Wanted` that say how layers are spread, and the number of layers."""
    pp = draw(st.integers(1, 4))
    kind = draw(st.sampled_from(["even", "uneven", "dualpipev"]))
    if kind == "uneven":
        stages = tuple(draw(st.lists(st.integers(1, 3), min_size=pp, max_size=pp)))
        return {"pp": pp, "stages": stages}, sum(stages)
    vpp = 2 if kind == "dualpipev" else draw(st.integers(1, 3)) if pp > 1 else 1
    padded = pp * vpp * draw(st.integers(1, 2))
    noop = draw(st.lists(st.integers(0, padded - 1), unique=True, max_size=min(3, padded - 1)))
    return {"pp": pp, "vpp": vpp, "noop": tuple(sorted(noop)), "dualpipev": kind == "dualpipev"}, padded - len(noop)


@st.composite
def expert_layouts(draw: st.DrawFn, tp: int) -> dict[str, Any]:
    ep = draw(st.integers(1, 3))
    if draw(st.booleans()) and draw(st.booleans()):
        return {"ep": ep, "extend": True}
    fits = [etp for etp in (None, 1, 2, 3, 4) if by_hand.expert_files(by_hand.Wanted(tp=tp, ep=ep, etp=etp), moe=True)]
    return {"ep": ep, "etp": draw(st.sampled_from(fits))}


@st.composite
def cases(draw: st.DrawFn, model_type: str) -> tuple[dict[str, Any], by_hand.Wanted]:
    """A configuration of a family, and a target that fits it."""
    family = families()[model_type]
    has_experts = any("expert" in key for key in family.tiny)
    tp = draw(st.sampled_from([1, 2, 3, 4]))
    stages, num_layers = draw(pipelines())
    spread = draw(expert_layouts(tp)) if has_experts else {}
    dialect = draw(st.sampled_from(family.dialects))
    latent = "kv_lora_rank" in family.tiny
    if latent and dialect == "mindspeed-v1":
        tp, spread = 1, {}
    want = by_hand.Wanted(
        tp=tp,
        **stages,
        **spread,
        dialect=dialect,
        mm_split=latent and dialect.startswith("mindspeed") and draw(st.booleans()),
        grouped=has_experts and draw(st.booleans()),
        divisible_by=draw(st.sampled_from([1, 1, 2, 7])),
    )
    return draw(configs(model_type, num_layers, want)), want


@st.composite
def configs(draw: st.DrawFn, model_type: str, num_layers: int, want: by_hand.Wanted) -> dict[str, Any]:
    """The family's tiny configuration with other sizes."""

    def some(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    tiny, tp = dict(families()[model_type].tiny), want.tp
    config = tiny | {"vocab_size": some(1, 40), "tie_word_embeddings": draw(st.booleans())}
    if model_type == "gpt2":
        heads = tp * some(1, 3)
        sizes = {"n_head": heads, "n_embd": heads * some(1, 4), "n_inner": tp * some(1, 5), "n_positions": some(1, 9)}
        return config | sizes | {"n_layer": num_layers}
    if model_type == "nemotron_h":
        return config | draw(nemotron(num_layers, tp))
    config |= {"num_hidden_layers": num_layers}
    if model_type == "mamba2":
        groups = tp * some(1, 2)
        heads, head_dim, expand = groups * some(1, 3), 2 * some(1, 3), draw(st.sampled_from([1, 2]))
        sizes = {"n_groups": groups, "num_heads": heads, "head_dim": head_dim, "expand": expand}
        biases = {"use_bias": draw(st.booleans()), "use_conv_bias": draw(st.booleans())}
        others = {"hidden_size": heads * head_dim // expand, "state_size": some(1, 5), "conv_kernel": some(1, 4)}
        return config | sizes | others | biases
    etp = 1 if want.extend else want.etp or tp
    ffn = math.lcm(tp, etp)
    groups = tp * some(1, 3)
    config |= {"hidden_size": tp * some(1, 6), "intermediate_size": ffn * some(1, 4)}
    config |= {"num_key_value_heads": groups, "num_attention_heads": groups * some(1, 3), "head_dim": some(1, 5)}
    experts = want.ep * (tp if want.extend else 1) * some(1, 3)
    for key in ("num_experts", "num_local_experts", "n_routed_experts"):
        if key in tiny:
            config |= {key: experts, "num_experts_per_tok": 1, "moe_intermediate_size": ffn * some(1, 3)}
    if "num_local_experts" in tiny:
        del config["moe_intermediate_size"]
    if "n_group" in tiny:
        config |= {"n_group": 1, "topk_group": 1, "num_nextn_predict_layers": some(0, 2)}
    if "kv_lora_rank" in tiny:
        del config["head_dim"]
        config |= {"num_key_value_heads": config["num_attention_heads"], "n_shared_experts": some(0, 2)}
        config |= {"kv_lora_rank": tp * some(1, 4), "qk_rope_head_dim": tp * some(1, 2), "qk_nope_head_dim": some(1, 4)}
        config |= {"v_head_dim": some(1, 4), "q_lora_rank": draw(st.sampled_from([None, tp, 3 * tp]))}
        config |= {"first_k_dense_replace": some(0, num_layers), "moe_layer_freq": some(1, 2)}
    if "shared_expert_intermediate_size" in tiny:
        config |= {"shared_expert_intermediate_size": tp * some(1, 4), "qkv_bias": draw(st.booleans())}
    if "mlp_only_layers" in tiny or model_type == "qwen3_moe":
        config |= {"mlp_only_layers": draw(st.lists(st.integers(0, num_layers - 1), unique=True, max_size=2))}
        config |= {"decoder_sparse_step": some(1, 2)}
    if model_type == "llama":
        config |= {"attention_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}
    if model_type in ("glm4", "qwen3", "qwen3_moe", "gemma2"):
        config |= {"attention_bias": draw(st.booleans())}
    return config


@st.composite
def nemotron(draw: st.DrawFn, num_layers: int, tp: int) -> dict[str, Any]:
    def some(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    groups, kv = tp * some(1, 2), tp * some(1, 2)
    pattern = "".join(draw(st.lists(st.sampled_from("M*-"), min_size=num_layers, max_size=num_layers)))
    mixer = {
        "n_groups": groups,
        "mamba_num_heads": groups * some(1, 3),
        "mamba_head_dim": some(1, 3),
        "ssm_state_size": some(1, 5),
    }
    attention = {"num_key_value_heads": kv, "num_attention_heads": kv * some(1, 3), "head_dim": some(1, 4)}
    biases = {"use_bias": draw(st.booleans()), "use_conv_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}
    sizes = {"hidden_size": some(1, 6), "intermediate_size": tp * some(1, 4), "conv_kernel": some(1, 4)}
    return {"hybrid_override_pattern": pattern, **mixer, **attention, **biases, **sizes}
