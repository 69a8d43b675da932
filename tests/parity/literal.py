"""The `mcore` dialect written out by hand: whole Hugging Face tensors to the tensors of one Megatron rank.

A second definition, independent of the converter's rules and on purpose without their machinery: every line says which
tensor goes where, for one rank at a time. Slow, in memory, one direction.

    python literal.py HF_DIR OUT_DIR --tp 2 --pp 2     writes a Megatron directory
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

State = dict[str, Tensor]


class Rank(NamedTuple):
    """What a rank holds of one layer: slice t of tp; of the experts share e of ep, and of each expert slice t of etp."""

    t: int
    tp: int
    e: int
    ep: int
    etp: int  # tp, or 1: whole experts
    grouped: bool


def rows(tensor: Tensor, rank: int, size: int) -> Tensor:
    """Slice `rank` of `size` along the output dimension."""
    return tensor.chunk(size, dim=0)[rank]


def columns(tensor: Tensor, rank: int, size: int) -> Tensor:
    """Slice `rank` of `size` along the input dimension."""
    return tensor.chunk(size, dim=1)[rank]


def padded(table_VH: Tensor, tp: int) -> Tensor:
    """Zero rows up to a multiple of tp."""
    missing = -len(table_VH) % tp
    return torch.cat([table_VH, table_VH.new_zeros(missing, table_VH.shape[1])])


def interleaved_qkv(q: Tensor, k: Tensor, v: Tensor, groups: int) -> Tensor:
    """Per KV group: the group's query heads, its key head, its value head. Weights [out, in] and biases [out] alike."""
    parts = []
    for g in range(groups):
        parts += [q.chunk(groups)[g], k.chunk(groups)[g], v.chunk(groups)[g]]
    return torch.cat(parts)


def gate_up(gate: Tensor, up: Tensor, rank: int, size: int) -> Tensor:
    """linear_fc1 of one rank: its rows of gate, then its rows of up."""
    return torch.cat([rows(gate, rank, size), rows(up, rank, size)])


def attention(hf: State, config: dict, src: str, t: int, tp: int) -> State:
    groups = config["num_key_value_heads"]
    out = {"linear_proj.weight": columns(hf[src + "o_proj.weight"], t, tp)}
    for kind in ("weight", "bias"):
        if f"{src}q_proj.{kind}" in hf:
            q, k, v = (hf[f"{src}{x}_proj.{kind}"] for x in "qkv")
            out[f"linear_qkv.{kind}"] = rows(interleaved_qkv(q, k, v, groups), t, tp)
    if src + "q_norm.weight" in hf:
        out["q_layernorm.weight"] = hf[src + "q_norm.weight"]
        out["k_layernorm.weight"] = hf[src + "k_norm.weight"]
    return out


def latent_attention(hf: State, src: str, t: int, tp: int) -> State:
    out = {
        "linear_kv_down_proj.weight": rows(hf[src + "kv_a_proj_with_mqa.weight"], t, tp),
        "kv_layernorm.weight": hf[src + "kv_a_layernorm.weight"],
        "linear_kv_up_proj.weight": rows(hf[src + "kv_b_proj.weight"], t, tp),
        "linear_proj.weight": columns(hf[src + "o_proj.weight"], t, tp),
    }
    if src + "q_proj.weight" in hf:
        out["linear_q_proj.weight"] = rows(hf[src + "q_proj.weight"], t, tp)
    else:
        out["linear_q_down_proj.weight"] = rows(hf[src + "q_a_proj.weight"], t, tp)
        out["q_layernorm.weight"] = hf[src + "q_a_layernorm.weight"]
        out["linear_q_up_proj.weight"] = rows(hf[src + "q_b_proj.weight"], t, tp)
    return out


def mlp(hf: State, src: str, t: int, tp: int) -> State:
    return {
        "linear_fc1.weight": gate_up(hf[src + "gate_proj.weight"], hf[src + "up_proj.weight"], t, tp),
        "linear_fc2.weight": columns(hf[src + "down_proj.weight"], t, tp),
    }


def experts(hf: State, src: str, mine: range, r: Rank) -> State:
    """The experts of one rank; src ends before `experts.`. Mixtral calls gate, down, up: w1, w2, w3."""
    gate, down, up = ("w1", "w2", "w3") if f"{src}experts.0.w1.weight" in hf else ("gate_proj", "down_proj", "up_proj")
    fc1, fc2 = [], []
    for e in mine:
        w = {name: hf[f"{src}experts.{e}.{name}.weight"] for name in (gate, down, up)}
        fc1.append(gate_up(w[gate], w[up], r.t % r.etp, r.etp))
        fc2.append(columns(w[down], r.t % r.etp, r.etp))
    if r.grouped:  # every expert transposed, one after another in memory; the two-dimensional shape is only a view
        hidden = fc2[0].shape[0]
        return {
            "weight1": torch.stack([w.T for w in fc1]).contiguous().view(hidden, -1),
            "weight2": torch.stack([w.T for w in fc2]).contiguous().view(-1, hidden),
        }
    out = {}
    for i in range(len(mine)):
        out[f"local_experts.{i}.linear_fc1.weight"] = fc1[i]
        out[f"local_experts.{i}.linear_fc2.weight"] = fc2[i]
    return out


def moe(hf: State, src: str, r: Rank) -> State:
    router = hf[src + "gate.weight"]
    per_rank = len(router) // r.ep
    out = {"router.weight": router}
    if src + "gate.e_score_correction_bias" in hf:
        out["router.expert_bias"] = hf[src + "gate.e_score_correction_bias"].float()
    mine = range(r.e * per_rank, (r.e + 1) * per_rank)
    out |= prefixed("experts.", experts(hf, src, mine, r))
    for shared in ("shared_experts.", "shared_expert."):  # deepseek, qwen2_moe
        if f"{src}{shared}up_proj.weight" in hf:
            out |= prefixed("shared_experts.", mlp(hf, src + shared, r.t, r.tp))
    if src + "shared_expert_gate.weight" in hf:
        out["shared_experts.gate_weight"] = hf[src + "shared_expert_gate.weight"]
    return out


def layer(hf: State, config: dict, number: int, r: Rank) -> State:
    src = f"model.layers.{number}."
    out = {
        "input_layernorm.weight": hf[src + "input_layernorm.weight"],
        "pre_mlp_layernorm.weight": hf[src + "post_attention_layernorm.weight"],
    }
    if src + "self_attn.kv_a_proj_with_mqa.weight" in hf:
        out |= prefixed("self_attention.", latent_attention(hf, src + "self_attn.", r.t, r.tp))
    else:
        out |= prefixed("self_attention.", attention(hf, config, src + "self_attn.", r.t, r.tp))
    for block in ("mlp.", "block_sparse_moe."):
        if f"{src}{block}gate.weight" in hf:
            out |= prefixed("mlp.", moe(hf, src + block, r))
    if src + "mlp.up_proj.weight" in hf:
        out |= prefixed("mlp.", mlp(hf, src + "mlp.", r.t, r.tp))
    return out


def gpt2_layer(hf: State, config: dict, number: int, t: int, tp: int) -> State:
    """GPT-2 keeps its matrices as [in, out] and q, k, v side by side; every head is its own KV group."""
    src = f"transformer.h.{number}."
    hf = {name: w.T if name.endswith(("attn.weight", "proj.weight", "fc.weight")) else w for name, w in hf.items()}
    out = {
        "self_attention.linear_proj.weight": columns(hf[src + "attn.c_proj.weight"], t, tp),
        "self_attention.linear_proj.bias": hf[src + "attn.c_proj.bias"],
        "mlp.linear_fc2.weight": columns(hf[src + "mlp.c_proj.weight"], t, tp),
        "mlp.linear_fc2.bias": hf[src + "mlp.c_proj.bias"],
    }
    for kind in ("weight", "bias"):
        q, k, v = hf[f"{src}attn.c_attn.{kind}"].chunk(3)
        out[f"self_attention.linear_qkv.{kind}"] = rows(interleaved_qkv(q, k, v, config["n_head"]), t, tp)
        out[f"mlp.linear_fc1.{kind}"] = rows(hf[f"{src}mlp.c_fc.{kind}"], t, tp)
        out[f"input_layernorm.{kind}"] = hf[f"{src}ln_1.{kind}"]
        out[f"pre_mlp_layernorm.{kind}"] = hf[f"{src}ln_2.{kind}"]
    return out


def mtp_layer(hf: State, config: dict, k: int, r: Rank) -> State:
    """Multi-token prediction layer k, which Hugging Face numbers on after the decoder's layers."""
    number = config["num_hidden_layers"] + k
    src = f"model.layers.{number}."
    return {
        "enorm.weight": hf[src + "enorm.weight"],
        "hnorm.weight": hf[src + "hnorm.weight"],
        "eh_proj.weight": rows(hf[src + "eh_proj.weight"], r.t, r.tp),
        "final_layernorm.weight": hf[src + "shared_head.norm.weight"],
    } | prefixed("transformer_layer.", layer(hf, config, number, r))


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def one_rank(hf: State, config: dict, r: Rank, p: int, pp: int, chunk: int, vpp: int) -> State:
    """Model chunk `chunk` of vpp on pipeline stage p of pp."""
    gpt2 = config["model_type"] == "gpt2"
    embedding, norm = ("transformer.wte.", "transformer.ln_f.") if gpt2 else ("model.embed_tokens.", "model.norm.")
    table = rows(padded(hf[embedding + "weight"], r.tp), r.t, r.tp)
    first_stage = p == 0 and chunk == 0
    last_stage = p == pp - 1 and chunk == vpp - 1
    out = {}
    if first_stage:
        out["embedding.word_embeddings.weight"] = table
        if gpt2:
            out["embedding.position_embeddings.weight"] = hf["transformer.wpe.weight"]
    per_chunk = (config["n_layer"] if gpt2 else config["num_hidden_layers"]) // (pp * vpp)
    for i in range(per_chunk):
        number = (chunk * pp + p) * per_chunk + i
        block = gpt2_layer(hf, config, number, r.t, r.tp) if gpt2 else layer(hf, config, number, r)
        out |= prefixed(f"decoder.layers.{i}.", block)
    if last_stage:
        for kind in ("weight", "bias"):
            if norm + kind in hf:
                out["decoder.final_layernorm." + kind] = hf[norm + kind]
        if "lm_head.weight" in hf:
            out["output_layer.weight"] = rows(padded(hf["lm_head.weight"], r.tp), r.t, r.tp)
        elif not first_stage:  # tied: a copy where the embedding itself is elsewhere
            out["output_layer.weight"] = table
        for k in range(config.get("num_nextn_predict_layers", 0)):
            out |= prefixed(f"mtp.layers.{k}.", mtp_layer(hf, config, k, r))
            out["embedding.word_embeddings.weight"] = table
    return {name: tensor.contiguous() for name, tensor in out.items()}


def literal_shards(
    hf_state: State,
    config: dict,
    *,
    tp: int,
    pp: int,
    ep: int = 1,
    etp: int | None = None,
    vpp: int = 1,
    chunk: int = 0,
    grouped: bool = False,
) -> dict[tuple[int, int, int], State]:
    """Per (tp, pp, ep) rank the state dict of its model chunk `chunk`, one of vpp.

    etp is tp (the default: experts split like the rest) or 1 (experts whole); then only some of the ranks exist, and
    which ones is not said here. All stages are of one length.
    """
    return {
        (t, p, e): one_rank(hf_state, config, Rank(t, tp, e, ep, etp or tp, grouped), p, pp, chunk, vpp)
        for t in range(tp)
        for p in range(pp)
        for e in range(ep)
    }


def payloads(hf_dir: Path, *, tp: int = 1, pp: int = 1, ep: int = 1, vpp: int = 1, **options) -> dict[str, dict[str, State]]:
    """Directory name of every rank -> the state dicts of its file, `model` or `model0`, `model1`, ..."""
    from safetensors.torch import load_file

    hf_state: State = {}
    for file in hf_dir.glob("*.safetensors"):
        hf_state |= load_file(file)
    config = json.loads((hf_dir / "config.json").read_text())
    out: dict[str, dict[str, State]] = {}
    for chunk in range(vpp):
        shards = literal_shards(hf_state, config, tp=tp, pp=pp, ep=ep, vpp=vpp, chunk=chunk, **options)
        for (t, p, e), state in shards.items():
            name = f"mp_rank_{t:02d}" + (f"_{p:03d}" if pp > 1 else "") + (f"_{e:03d}" if ep > 1 else "")
            out.setdefault(name, {})["model" if vpp == 1 else f"model{chunk}"] = state
    return out


def write(hf_dir: Path, out_dir: Path, **layout) -> None:
    """A Megatron directory of the literal shards."""
    for name, models in payloads(hf_dir, **layout).items():
        folder = out_dir / "iter_0000001" / name
        folder.mkdir(parents=True)
        own = {key: {k: v.clone() for k, v in state.items()} for key, state in models.items()}  # not the whole tensor
        header = {"args": argparse.Namespace(), "checkpoint_version": 3.0, "iteration": 1}
        torch.save(header | own, folder / "model_optim_rng.pt")
    (out_dir / "latest_checkpointed_iteration.txt").write_text("1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hf_dir", type=Path)
    parser.add_argument("out_dir", type=Path)
    for name in ("tp", "pp", "ep", "vpp"):
        parser.add_argument(f"--{name}", type=int, default=1)
    parser.add_argument("--etp", type=int)
    parser.add_argument("--grouped", action="store_true")
    args = vars(parser.parse_args())
    write(args.pop("hf_dir"), args.pop("out_dir"), **args)


if __name__ == "__main__":
    main()
