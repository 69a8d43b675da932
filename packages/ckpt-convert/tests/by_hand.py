"""The Megatron tensors of every rank written out by hand, from whole arrays.

A second definition, independent of the rules, the geometry and the planner: every line says which tensor goes where. It follows
docs/formats.md and megatron-core's modules, knows layouts as plain numbers, and is slow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Wanted:
    """A target: the layout's numbers, and how tensors are called and joined."""

    tp: int = 1
    pp: int = 1
    vpp: int = 1
    ep: int = 1
    etp: int | None = None
    extend: bool = False
    stages: tuple[int, ...] | None = None
    noop: tuple[int, ...] = ()
    dualpipev: bool = False
    dialect: str = "mcore"
    grouped: bool = False
    mm_split: bool = False
    divisible_by: int = 1


# ---- who holds what


def slots(want: Wanted, num_layers: int) -> dict[tuple[int, int, int], int]:
    """(stage, chunk, local number) -> layer. No-op slots are left out, and count."""
    if want.stages:
        assert sum(want.stages) == num_layers
        return {(p, 0, i): sum(want.stages[:p]) + i for p, n in enumerate(want.stages) for i in range(n)}
    padded = num_layers + len(want.noop)
    per_chunk, rest = divmod(padded, want.pp * want.vpp)
    assert not rest
    found = {}
    for g in range(padded):
        if g in want.noop:
            continue
        layer = g - sum(n < g for n in want.noop)
        if want.dualpipev and g >= padded // 2:
            from_the_end = padded - 1 - g
            place = from_the_end // per_chunk, 1, per_chunk - 1 - from_the_end % per_chunk
        elif want.dualpipev:
            place = g // per_chunk, 0, g % per_chunk
        else:
            place = g % (per_chunk * want.pp) // per_chunk, g // (per_chunk * want.pp), g % per_chunk
        found[place] = layer
    return found


def last_chunk(want: Wanted) -> tuple[int, int]:
    """(stage, chunk) of the final norm, the output layer and the MTP layers."""
    return (0, 1) if want.dualpipev else (want.pp - 1, want.vpp - 1)


def expert_files(want: Wanted, moe: bool) -> set[tuple[int, int, int]] | None:
    """(tp, ep, etp) of each distinct file of a stage; None where two files would need one name.

    Megatron numbers ranks with tp running fastest, and the same ranks a second time with etp running fastest, then ep.
    """
    if not moe:
        return {(t, 0, 0) for t in range(want.tp)}
    if want.extend:
        return {(t, e, 0) for t in range(want.tp) for e in range(want.ep)}
    etp = want.etp or want.tp
    ranks = max(want.tp, want.ep * etp)
    if ranks % want.tp or ranks % (want.ep * etp):
        return None
    dense = [t for _ in range(ranks // want.tp) for t in range(want.tp)]
    sparse = [(e, x) for _ in range(ranks // (want.ep * etp)) for e in range(want.ep) for x in range(etp)]
    files = {(t, e, x) for t, (e, x) in zip(dense, sparse, strict=True)}
    return files if len({(t, e) for t, e, _ in files}) == len(files) else None


def file_name(want: Wanted, t: int, p: int, e: int) -> str:
    """Of the directory. One number is TP; a second is PP, or EP where there is no PP."""
    if want.pp > 1 and want.ep > 1:
        return f"mp_rank_{t:02d}_{p:03d}_{e:03d}"
    if want.pp > 1:
        return f"mp_rank_{t:02d}_{p:03d}"
    return f"mp_rank_{t:02d}_{e:03d}" if want.ep > 1 else f"mp_rank_{t:02d}"


# ---- how a tensor is cut


def rows(x: np.ndarray, rank: int, count: int) -> np.ndarray:
    return np.split(x, count, axis=0)[rank]


def columns(x: np.ndarray, rank: int, count: int) -> np.ndarray:
    return np.split(x, count, axis=1)[rank]


def gate_up(gate: np.ndarray, up: np.ndarray, rank: int, count: int) -> np.ndarray:
    return np.concatenate([rows(gate, rank, count), rows(up, rank, count)])


def qkv_by_group(q: np.ndarray, k: np.ndarray, v: np.ndarray, groups: int) -> np.ndarray:
    """[Q of group 0; K of group 0; V of group 0; Q of group 1; ...]"""
    head = len(k) // groups
    heads = len(q) // head // groups
    out = []
    for g in range(groups):
        out.append(q[g * heads * head : (g + 1) * heads * head])
        out.append(k[g * head : (g + 1) * head])
        out.append(v[g * head : (g + 1) * head])
    return np.concatenate(out)


def vocabulary(table: np.ndarray, want: Wanted, t: int) -> np.ndarray:
    multiple = want.divisible_by * want.tp
    whole = np.zeros((math.ceil(len(table) / multiple) * multiple, table.shape[1]), table.dtype)
    whole[: len(table)] = table
    return rows(whole, t, want.tp)


def split_pieces(x: np.ndarray, sizes: list[int], rank: int, count: int) -> np.ndarray:
    """Each piece along the first axis is cut by itself."""
    assert sum(sizes) == len(x)
    ends = np.cumsum(sizes)[:-1]
    return np.concatenate([rows(piece, rank, count) for piece in np.split(x, ends)])


# ---- the parts of a layer; `hf` holds the layer's tensors without their prefix


def attention(hf: Arrays, config: Config, want: Wanted, t: int) -> Arrays:
    groups = config.get("num_key_value_heads") or config["num_attention_heads"]
    out = {"linear_proj.weight": columns(hf["self_attn.o_proj.weight"], t, want.tp)}
    for kind in ("weight", "bias"):
        if f"self_attn.q_proj.{kind}" in hf:
            q, k, v = (hf[f"self_attn.{x}_proj.{kind}"] for x in "qkv")
            out[f"linear_qkv.{kind}"] = rows(qkv_by_group(q, k, v, groups), t, want.tp)
    if "self_attn.o_proj.bias" in hf:
        out["linear_proj.bias"] = hf["self_attn.o_proj.bias"]
    for x in "qk":
        if f"self_attn.{x}_norm.weight" in hf:
            out[f"{x}_layernorm.weight"] = hf[f"self_attn.{x}_norm.weight"]
    return out


def latent_attention(hf: Arrays, config: Config, want: Wanted, t: int) -> Arrays:
    """Down-projections: cut in mcore, whole in te, joined and whole in mindspeed. Up-projections and output: by head.

    MindSpeed-LLM's first version calls three tensors otherwise; with --mla-mm-split the halves of each head lie apart.
    """
    kv_a = hf["self_attn.kv_a_proj_with_mqa.weight"]
    q_a, q = hf.get("self_attn.q_a_proj.weight"), hf.get("self_attn.q_proj.weight")
    out = {"linear_proj.weight": columns(hf["self_attn.o_proj.weight"], t, want.tp)}
    te, kv_b = want.dialect == "te", hf["self_attn.kv_b_proj.weight"]
    if want.mm_split:
        nope, rope, v = (config[k] for k in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
        parts = {("linear_kv_nope", "linear_v"): (kv_b, nope, v)}
        if q_a is not None:
            parts[("linear_qk_nope", "linear_qk_rope")] = (hf["self_attn.q_b_proj.weight"], nope, rope)
        for (one, other), (matrix, n, m) in parts.items():
            heads = matrix.reshape(-1, n + m, matrix.shape[1])
            out[f"{one}.weight"] = rows(heads[:, :n].reshape(-1, matrix.shape[1]), t, want.tp)
            out[f"{other}.weight"] = rows(heads[:, n:].reshape(-1, matrix.shape[1]), t, want.tp)
    else:
        out["linear_kv_up_proj.weight"] = rows(kv_b, t, want.tp)
    out["linear_kv_up_proj.layer_norm_weight" if te else "kv_layernorm.weight"] = hf["self_attn.kv_a_layernorm.weight"]
    if q_a is not None:
        if not want.mm_split:
            out["linear_q_up_proj.weight"] = rows(hf["self_attn.q_b_proj.weight"], t, want.tp)
        out["linear_q_up_proj.layer_norm_weight" if te else "q_layernorm.weight"] = hf["self_attn.q_a_layernorm.weight"]
    if want.dialect.startswith("mindspeed"):
        out["linear_qkv.weight"] = np.concatenate([q if q_a is None else q_a, kv_a])
        if want.dialect == "mindspeed-v1":
            first = {"linear_q_up_proj": "linear_qb", "linear_kv_up_proj": "linear_kvb", "kv_layernorm": "k_layernorm"}
            return {f"{first.get(n.split('.')[0], n.split('.')[0])}.weight": a for n, a in out.items()}
        return out
    out["linear_kv_down_proj.weight"] = kv_a if te else rows(kv_a, t, want.tp)
    if q_a is None:
        out["linear_q_proj.weight"] = rows(q, t, want.tp)
    else:
        out["linear_q_down_proj.weight"] = q_a if te else rows(q_a, t, want.tp)
    return out


def dense_mlp(hf: Arrays, src: str, t: int, tp: int) -> Arrays:
    if f"{src}gate_up_proj.weight" in hf:
        gate, up = np.split(hf[f"{src}gate_up_proj.weight"], 2)
    else:
        gate, up = hf[f"{src}gate_proj.weight"], hf[f"{src}up_proj.weight"]
    out = {"linear_fc1.weight": gate_up(gate, up, t, tp), "linear_fc2.weight": columns(hf[f"{src}down_proj.weight"], t, tp)}
    if f"{src}gate_proj.bias" in hf:
        out["linear_fc1.bias"] = gate_up(hf[f"{src}gate_proj.bias"], hf[f"{src}up_proj.bias"], t, tp)
        out["linear_fc2.bias"] = hf[f"{src}down_proj.bias"]
    return out


def experts(hf: Arrays, src: str, mine: range, want: Wanted, x: int) -> Arrays:
    """The experts of one rank, and rank `x` of expert tensor parallelism of each. Mixtral: w1 gate, w3 up, w2 down."""
    etp = 1 if want.extend else want.etp or want.tp
    gate, up, down = ("w1", "w3", "w2") if f"{src}experts.0.w1.weight" in hf else ("gate_proj", "up_proj", "down_proj")
    fc1, fc2 = [], []
    for e in mine:
        w = {name: hf[f"{src}experts.{e}.{name}.weight"] for name in (gate, up, down)}
        fc1.append(gate_up(w[gate], w[up], x, etp))  # [2 * ffn / etp, hidden]
        fc2.append(columns(w[down], x, etp))  # [hidden, ffn / etp]
    if want.grouped and want.dialect == "te":
        out = {f"linear_fc1.weight{i}": w for i, w in enumerate(fc1)}
        return out | {f"linear_fc2.weight{i}": w for i, w in enumerate(fc2)}
    if want.grouped:  # in memory [experts, in, out]; the consumer says weight1.view(experts, hidden, -1)
        hidden = fc2[0].shape[0]
        one, two = np.stack([w.T for w in fc1]), np.stack([w.T for w in fc2])
        return {"weight1": one.reshape(hidden, -1), "weight2": two.reshape(-1, hidden)}
    out = {f"local_experts.{i}.linear_fc1.weight": w for i, w in enumerate(fc1)}
    return out | {f"local_experts.{i}.linear_fc2.weight": w for i, w in enumerate(fc2)}


def moe(hf: Arrays, src: str, want: Wanted, t: int, e: int, x: int) -> Arrays:
    router = hf[f"{src}gate.weight"]
    out = {"router.weight": router}
    if f"{src}gate.e_score_correction_bias" in hf:
        out["router.expert_bias"] = hf[f"{src}gate.e_score_correction_bias"]
    ranks, rank = (want.ep * want.tp, e * want.tp + t) if want.extend else (want.ep, e)
    each = len(router) // ranks
    out |= under("experts.", experts(hf, src, range(rank * each, (rank + 1) * each), want, x))
    for shared in ("shared_experts.", "shared_expert."):
        if f"{src}{shared}gate_proj.weight" in hf:
            out |= under("shared_experts.", dense_mlp(hf, src + shared, t, want.tp))
    if f"{src}shared_expert_gate.weight" in hf:
        v1 = want.dialect == "mindspeed-v1"
        out["shared_expert_gate.weight" if v1 else "shared_experts.gate_weight"] = hf[f"{src}shared_expert_gate.weight"]
    return out


NORMS = {
    "gemma2": {
        "input_layernorm": "input_layernorm",
        "post_attn_norm": "post_attention_layernorm",
        "pre_mlp_layernorm": "pre_feedforward_layernorm",
        "post_mlp_layernorm": "post_feedforward_layernorm",
    },
    "glm4": {
        "input_layernorm": "input_layernorm",
        "post_attn_norm": "post_self_attn_layernorm",
        "pre_mlp_layernorm": "post_attention_layernorm",
        "post_mlp_layernorm": "post_mlp_layernorm",
    },
    None: {"input_layernorm": "input_layernorm", "pre_mlp_layernorm": "post_attention_layernorm"},
}


def transformer_layer(hf: Arrays, config: Config, want: Wanted, t: int, e: int, x: int) -> Arrays:
    norms = NORMS.get(config["model_type"], NORMS[None])
    out = {f"{name}.weight": hf[f"{src}.weight"] for name, src in norms.items()}
    latent = "self_attn.kv_a_proj_with_mqa.weight" in hf
    out |= under("self_attention.", latent_attention(hf, config, want, t) if latent else attention(hf, config, want, t))
    src = next((p for p in ("mlp.", "block_sparse_moe.") if f"{p}gate.weight" in hf), None)
    out |= under("mlp.", dense_mlp(hf, "mlp.", t, want.tp) if src is None else moe(hf, src, want, t, e, x))
    return fused_norms(out) if want.dialect == "te" else out


def gpt2_layer(hf: Arrays, config: Config, want: Wanted, t: int) -> Arrays:
    """Matrices are [in, out], with q, k and v side by side; every head is a group."""
    tp, out = want.tp, {}
    q, k, v = np.split(hf["attn.c_attn.weight"].T, 3)
    out["self_attention.linear_qkv.weight"] = rows(qkv_by_group(q, k, v, config["n_head"]), t, tp)
    q, k, v = np.split(hf["attn.c_attn.bias"], 3)
    out["self_attention.linear_qkv.bias"] = rows(qkv_by_group(q, k, v, config["n_head"]), t, tp)
    out["self_attention.linear_proj.weight"] = columns(hf["attn.c_proj.weight"].T, t, tp)
    out["self_attention.linear_proj.bias"] = hf["attn.c_proj.bias"]
    out["mlp.linear_fc1.weight"] = rows(hf["mlp.c_fc.weight"].T, t, tp)
    out["mlp.linear_fc1.bias"] = rows(hf["mlp.c_fc.bias"], t, tp)
    out["mlp.linear_fc2.weight"] = columns(hf["mlp.c_proj.weight"].T, t, tp)
    out["mlp.linear_fc2.bias"] = hf["mlp.c_proj.bias"]
    for kind in ("weight", "bias"):
        out[f"input_layernorm.{kind}"] = hf[f"ln_1.{kind}"]
        out[f"pre_mlp_layernorm.{kind}"] = hf[f"ln_2.{kind}"]
    return fused_norms(out) if want.dialect == "te" else out


def fused_norms(layer: Arrays) -> Arrays:
    """TransformerEngine: a norm belongs to the matrix after it (not before MLA or experts), a post norm to the one before."""
    moved = {
        "post_attn_norm.weight": "self_attention.linear_proj.post_layernorm.weight",
        "post_mlp_layernorm.weight": "mlp.linear_fc2.post_layernorm.weight",
    }
    for kind in ("weight", "bias"):
        if "self_attention.linear_qkv.weight" in layer:
            moved[f"input_layernorm.{kind}"] = f"self_attention.linear_qkv.layer_norm_{kind}"
        if "mlp.linear_fc1.weight" in layer:
            moved[f"pre_mlp_layernorm.{kind}"] = f"mlp.linear_fc1.layer_norm_{kind}"
    return {moved.get(name, name): array for name, array in layer.items()}


def mixer_sizes(config: Config) -> tuple[int, int, int]:
    """Inner size, states of all groups, heads."""
    heads, head, state = (
        config[name] for name in SIZES_OF_MIXER.get(config["model_type"], ("num_heads", "head_dim", "state_size"))
    )
    return heads * head, config["n_groups"] * state, heads


SIZES_OF_MIXER = {"nemotron_h": ("mamba_num_heads", "mamba_head_dim", "ssm_state_size")}


def mamba_layer(hf: Arrays, config: Config, want: Wanted, t: int) -> Arrays:
    """in_proj is [z; x; B; C; dt], conv1d is [x; B; C]: each piece is cut by itself."""
    inner, state, heads = mixer_sizes(config)
    out = {}
    for name, array in hf.items():
        if name in ("norm.weight", "mixer.out_proj.bias"):
            out[name] = array
        elif name == "mixer.out_proj.weight":
            out[name] = columns(array, t, want.tp)
        elif name.startswith("mixer.in_proj."):
            out[name] = split_pieces(array, [inner, inner, state, state, heads], t, want.tp)
        elif name.startswith("mixer.conv1d."):
            out[name] = split_pieces(array, [inner, state, state], t, want.tp)
        else:  # A_log, D, dt_bias, mixer.norm
            out[name] = rows(array, t, want.tp)
    if want.dialect == "te":
        out["mixer.in_proj.layer_norm_weight"] = out.pop("norm.weight")
    return out


def nemotron_layer(hf: Arrays, config: Config, letter: str, want: Wanted, t: int) -> Arrays:
    """A norm, and one of three: a mixer, attention, an MLP of two matrices."""
    if letter == "M":
        return mamba_layer(hf, config, want, t)
    if letter == "*":
        own = {name.replace("mixer.", "self_attn."): array for name, array in hf.items()}
        out = {"input_layernorm.weight": hf["norm.weight"], **under("self_attention.", attention(own, config, want, t))}
    else:
        out = {"pre_mlp_layernorm.weight": hf["norm.weight"]}
        out["mlp.linear_fc1.weight"] = rows(hf["mixer.up_proj.weight"], t, want.tp)
        out["mlp.linear_fc2.weight"] = columns(hf["mixer.down_proj.weight"], t, want.tp)
        if "mixer.up_proj.bias" in hf:
            out["mlp.linear_fc1.bias"] = rows(hf["mixer.up_proj.bias"], t, want.tp)
            out["mlp.linear_fc2.bias"] = hf["mixer.down_proj.bias"]
    return fused_norms(out) if want.dialect == "te" else out


# ---- whole models

MIXERS = ("mamba2", "nemotron_h")
LAYERS = {"gpt2": "transformer.h.", **dict.fromkeys(MIXERS, "backbone.layers.")}
EMBEDDING = {"gpt2": "transformer.wte.weight", **dict.fromkeys(MIXERS, "backbone.embeddings.weight")}
FINAL_NORM = {"gpt2": "transformer.ln_f.", **dict.fromkeys(MIXERS, "backbone.norm_f.")}


def layers_of(config: Config) -> int:
    return len(config.get("hybrid_override_pattern", "")) or config.get("num_hidden_layers") or config["n_layer"]


def layer_of(hf: Arrays, config: Config, number: int, want: Wanted, t: int, e: int, x: int) -> Arrays:
    family = config["model_type"]
    prefix = f"{LAYERS.get(family, 'model.layers.')}{number}."
    own = {name.removeprefix(prefix): array for name, array in hf.items() if name.startswith(prefix)}
    if family == "gpt2":
        return gpt2_layer(own, config, want, t)
    if family == "nemotron_h":
        return nemotron_layer(own, config, config["hybrid_override_pattern"][number], want, t)
    return mamba_layer(own, config, want, t) if family == "mamba2" else transformer_layer(own, config, want, t, e, x)


def mtp_layer(hf: Arrays, config: Config, k: int, number: int, want: Wanted, t: int, e: int, x: int) -> Arrays:
    src, dst = f"model.layers.{number}.", f"mtp.layers.{k}."
    out = {f"{dst}{name}.weight": hf[f"{src}{name}.weight"] for name in ("enorm", "hnorm")}
    out[f"{dst}eh_proj.weight"] = rows(hf[f"{src}eh_proj.weight"], t, want.tp)
    mindspeed = want.dialect.startswith("mindspeed")
    norm = f"mtp.final_layernorms.{k}.weight" if mindspeed else f"{dst}final_layernorm.weight"
    out[norm] = hf[f"{src}shared_head.norm.weight"]
    return out | under(f"{dst}transformer_layer.", layer_of(hf, config, number, want, t, e, x))


def chunk(hf: Arrays, config: Config, want: Wanted, p: int, v: int, t: int, e: int, x: int) -> Arrays:
    """The state dict of one model chunk on one rank."""
    family = config["model_type"]
    num_layers, mtp = layers_of(config), config.get("num_nextn_predict_layers", 0)
    first, last = (p, v) == (0, 0), (p, v) == last_chunk(want)
    words, out = EMBEDDING.get(family, "model.embed_tokens.weight"), {}
    if first or (last and mtp):
        out["embedding.word_embeddings.weight"] = vocabulary(hf[words], want, t)
    if first and "transformer.wpe.weight" in hf:
        out["embedding.position_embeddings.weight"] = hf["transformer.wpe.weight"]
    for (stage, number, local), layer in slots(want, num_layers).items():
        if (stage, number) == (p, v):
            out |= under(f"decoder.layers.{local}.", layer_of(hf, config, layer, want, t, e, x))
    if last:
        norm = "decoder.final_norm." if family in MIXERS else "decoder.final_layernorm."
        if mtp and want.dialect.startswith("mindspeed"):
            norm = "final_layernorm."
        for kind in ("weight", "bias"):
            if (source := FINAL_NORM.get(family, "model.norm.") + kind) in hf:
                out[norm + kind] = hf[source]
        tied = "lm_head.weight" not in hf
        if not (tied and first):
            out["output_layer.weight"] = vocabulary(hf[words if tied else "lm_head.weight"], want, t)
        for k in range(mtp):
            out |= mtp_layer(hf, config, k, num_layers + k, want, t, e, x)
    return out


def shards(hf: Arrays, config: Config, want: Wanted) -> Iterator[tuple[str, dict[str, Arrays]]]:
    """Directory name and state dicts ("model", or "model0", "model1", ...) of every file."""
    is_moe = any(key in config for key in ("num_experts", "num_local_experts", "n_routed_experts"))
    files = expert_files(want, is_moe)
    assert files is not None
    for p in range(want.pp):
        for t, e, x in sorted(files):
            states = {"model" if want.vpp == 1 else f"model{v}": chunk(hf, config, want, p, v, t, e, x) for v in range(want.vpp)}
            if want.dialect == "legacy":
                states = {key: legacy(state, "lm_head.weight" not in hf) for key, state in states.items()}
            yield file_name(want, t, p, e), states


LEGACY = {
    "input_layernorm": "input_norm",
    "pre_mlp_layernorm": "post_attention_norm",
    "self_attention.linear_qkv": "self_attention.query_key_value",
    "self_attention.linear_proj": "self_attention.dense",
    "mlp.linear_fc1": "mlp.dense_h_to_4h",
    "mlp.linear_fc2": "mlp.dense_4h_to_h",
}


def legacy(chunk: Arrays, tied: bool) -> Arrays:
    """Megatron-LM before megatron-core: other names for the same tensors, and one for the copy of a tied embedding."""
    out = {}
    for name, array in chunk.items():
        module, kind = name.rsplit(".", 1)
        if name.startswith("decoder.layers."):
            number, rest = module.removeprefix("decoder.layers.").split(".", 1)
            out[f"language_model.encoder.layers.{number}.{LEGACY[rest]}.{kind}"] = array
        elif module == "decoder.final_layernorm":
            out[f"language_model.encoder.final_norm.{kind}"] = array
        elif module == "output_layer" and tied:
            out["word_embeddings_for_head.weight"] = array
        else:
            out[f"language_model.{name}"] = array
    return out


def under(prefix: str, state: Arrays) -> Arrays:
    return {prefix + name: array for name, array in state.items()}
