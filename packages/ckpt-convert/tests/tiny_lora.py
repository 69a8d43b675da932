"""LoRA adapters of random numbers, written without the converter; and their Megatron tensors written out by hand.

Nothing here knows the rules: which modules there are is read off the names of a model's tensors, what goes where stands below.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import tiny_hf
from by_hand import (
    LAYERS,
    Arrays,
    Config,
    Wanted,
    columns,
    expert_files,
    file_name,
    gate_up,
    last_chunk,
    qkv_by_group,
    rows,
    slots,
    under,
)

QKV, PROJ, FC1, FC2 = "qkv", "proj", "fc1", "fc2"
LEAVES = {
    "q_proj": QKV, "k_proj": QKV, "v_proj": QKV, "attn.c_attn": QKV,
    "q_a_proj": QKV, "q_b_proj": QKV, "kv_a_proj_with_mqa": QKV, "kv_b_proj": QKV,
    "o_proj": PROJ, "attn.c_proj": PROJ,
    "gate_proj": FC1, "up_proj": FC1, "gate_up_proj": FC1, "w1": FC1, "w3": FC1, "mlp.c_fc": FC1,
    "down_proj": FC2, "w2": FC2, "mlp.c_proj": FC2,
}  # fmt: skip
"""Last names of HF modules -> the Megatron module that LoRA wraps (with latent attention: all those before the last)."""
SHARING = ({"q_proj", "k_proj", "v_proj", "q_a_proj", "kv_a_proj_with_mqa"}, {"gate_proj", "up_proj"}, {"w1", "w3"})
"""Modules beside one another that may have one lora_A."""


def sizes(config: Config, groups: Iterable[str]) -> dict[str, tuple[int, int]]:
    """HF module -> (out, in), of the modules in these groups."""
    found = {}
    for name, array in tiny_hf.random_tensors(config).items():
        module = name.removesuffix(".weight")
        leaf = next((x for x in LEAVES if name.endswith(f".{x}.weight")), None)
        if leaf and LEAVES[leaf] in groups:
            found[module] = array.shape[::-1] if config["model_type"] == "gpt2" else array.shape
    return found


def adapter(
    config: Config,
    groups: Iterable[str],
    rank: int,
    *,
    seed: int = 0,
    shared: bool = True,
    values: str = "bits",
    keep: Any = lambda module: True,
) -> Arrays:
    """MODULE.lora_A.weight and MODULE.lora_B.weight. shared: what Megatron fuses has one lora_A.

    values: "bits" every bit pattern of bfloat16; "whole" small whole numbers, "real" normal ones, as float32
    """
    random, found, once = np.random.default_rng(seed), {}, {}

    def draw(shape: tuple[int, int]) -> np.ndarray:
        if values == "bits":
            return random.integers(0, 1 << 16, shape, dtype=np.uint16)
        drawn = random.integers(-3, 4, shape) if values == "whole" else random.standard_normal(shape)
        return drawn.astype(np.float32).view(np.uint32)

    for module, (out, inner) in sizes(config, groups).items():
        prefix, _, leaf = module.rpartition(".")
        group = next((i for i, leaves in enumerate(SHARING) if leaf in leaves), leaf)
        a = draw((rank, inner))
        if keep(module):
            found[f"{module}.lora_A.weight"] = once.setdefault((prefix, group), a) if shared else a
            found[f"{module}.lora_B.weight"] = draw((out, rank))
    return found


def write_peft(directory: Path, tensors: Mapping[str, np.ndarray], base: Path | None = None, **changes: Any) -> Path:
    """A directory as peft saves it."""
    directory.mkdir(parents=True)
    modules = sorted({re.sub(r"\.lora_[AB]\.weight$", "", n) for n in tensors})
    ranks = [array.shape[0] for name, array in tensors.items() if "lora_A" in name]
    config = {
        "peft_type": "LORA",
        "r": ranks[0] if ranks else 8,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "bias": "none",
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base) if base else "someone/some-model",
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
    }
    (directory / "adapter_config.json").write_text(json.dumps(config | changes, indent=1))
    tiny_hf.write_safetensors(directory / "adapter_model.safetensors", {f"base_model.model.{n}": a for n, a in tensors.items()})
    return directory


def real(array: np.ndarray) -> np.ndarray:
    """Bits as float64."""
    kind = ml_dtypes.bfloat16 if array.itemsize == 2 else np.float32
    return array.view(kind).astype(np.float64)


# ---- the tensors of Megatron, by hand; `lora` holds (A, B) of a layer's modules without their prefix

Pairs = dict[str, tuple[np.ndarray, np.ndarray]]


def halves(name: str, a: np.ndarray, b: np.ndarray) -> Arrays:
    return {f"{name}.lora_A.default.weight": a, f"{name}.lora_B.default.weight": b}


def attention(lora: Pairs, config: Config, want: Wanted, t: int) -> Arrays:
    tp, out = want.tp, {}
    if "self_attn.o_proj" in lora:
        a, b = lora["self_attn.o_proj"]
        out |= halves("linear_proj", columns(a, t, tp), b)
    if "self_attn.k_proj" in lora:
        (a, q), (_, k), (_, v) = (lora[f"self_attn.{x}_proj"] for x in "qkv")
        groups = config.get("num_key_value_heads") or config["num_attention_heads"]
        out |= halves("linear_qkv", a, rows(qkv_by_group(q, k, v, groups), t, tp))
    if "self_attn.kv_b_proj" in lora:
        a, b = lora["self_attn.kv_b_proj"]
        out |= halves("linear_kv_up_proj", a, rows(b, t, tp))
        if "self_attn.q_b_proj" in lora:
            a, b = lora["self_attn.q_b_proj"]
            out |= halves("linear_q_up_proj", a, rows(b, t, tp))
        first = "q_a_proj" if "self_attn.q_a_proj" in lora else "q_proj"
        (a, q), (kv_a, kv) = lora[f"self_attn.{first}"], lora["self_attn.kv_a_proj_with_mqa"]
        if want.dialect == "mindspeed":
            out |= halves("linear_qkv", a, np.concatenate([q, kv]))
        else:
            whole = want.dialect == "te"
            out |= halves("linear_kv_down_proj", kv_a, kv if whole else rows(kv, t, tp))
            name = "linear_q_down_proj" if first == "q_a_proj" else "linear_q_proj"
            out |= halves(name, a, q if whole and first == "q_a_proj" else rows(q, t, tp))
    return under("self_attention.", out)


def mlp(lora: Pairs, src: str, t: int, tp: int) -> Arrays:
    out = {}
    if f"{src}gate_up_proj" in lora:
        a, b = lora[f"{src}gate_up_proj"]
        out |= halves("linear_fc1", a, gate_up(*np.split(b, 2), t, tp))
    for gate, up in (("gate_proj", "up_proj"), ("w1", "w3")):
        if f"{src}{gate}" in lora:
            a, b = lora[f"{src}{gate}"]
            out |= halves("linear_fc1", a, gate_up(b, lora[f"{src}{up}"][1], t, tp))
    for down in ("down_proj", "w2"):
        if f"{src}{down}" in lora:
            a, b = lora[f"{src}{down}"]
            out |= halves("linear_fc2", columns(a, t, tp), b)
    return out


def experts(lora: Pairs, src: str, mine: range, want: Wanted, x: int) -> Arrays:
    """MindSpeed's grouped ones are seen as [experts, in, rank] and [experts, rank, out]."""
    etp = 1 if want.extend else want.etp or want.tp
    each = [mlp(lora, f"{src}experts.{e}.", x, etp) for e in mine]
    if not want.grouped:
        return {f"local_experts.{i}.{name}": array for i, own in enumerate(each) for name, array in own.items()}
    out = {}
    for weight, name in (("weight1", "linear_fc1"), ("weight2", "linear_fc2")):
        if f"{name}.lora_A.default.weight" in each[0]:
            a = np.stack([own[f"{name}.lora_A.default.weight"].T for own in each])
            b = np.stack([own[f"{name}.lora_B.default.weight"].T for own in each])
            (_, inner, rank), outer = a.shape, b.shape[2]
            wide = weight == "weight1"
            out[f"{weight}_lora_a"] = a.reshape((inner, -1) if wide else (-1, rank))
            out[f"{weight}_lora_b"] = b.reshape((rank, -1) if wide else (-1, outer))
    return out


def layer_of(lora: Arrays, config: Config, number: int, want: Wanted, t: int, e: int, x: int) -> Arrays:
    prefix = f"{LAYERS.get(config['model_type'], 'model.layers.')}{number}."
    own: Pairs = {
        name.removeprefix(prefix).removesuffix(".lora_A.weight"): (a, lora[name.replace("lora_A", "lora_B")])
        for name, a in lora.items()
        if name.startswith(prefix) and "lora_A" in name
    }
    if config["model_type"] == "gpt2":
        out = {}
        for name, target in (("attn.c_proj", "self_attention.linear_proj"), ("mlp.c_proj", "mlp.linear_fc2")):
            if name in own:
                out |= halves(target, columns(own[name][0], t, want.tp), own[name][1])
        if "attn.c_attn" in own:
            a, b = own["attn.c_attn"]
            out |= halves("self_attention.linear_qkv", a, rows(qkv_by_group(*np.split(b, 3), config["n_head"]), t, want.tp))
        if "mlp.c_fc" in own:
            a, b = own["mlp.c_fc"]
            out |= halves("mlp.linear_fc1", a, rows(b, t, want.tp))
        return out
    out = attention(own, config, want, t) | under("mlp.", mlp(own, "mlp.", t, want.tp))
    for src in ("mlp.", "block_sparse_moe."):
        numbers = {int(m[1]) for n in own if (m := re.match(rf"{re.escape(src)}experts\.(\d+)\.", n))}
        if numbers:
            ranks, rank = (want.ep * want.tp, e * want.tp + t) if want.extend else (want.ep, e)
            count = len(numbers) // ranks
            out |= under("mlp.experts.", experts(own, src, range(rank * count, (rank + 1) * count), want, x))
        for shared in ("shared_experts.", "shared_expert."):
            out |= under("mlp.shared_experts.", mlp(own, src + shared, t, want.tp))
    return out


def shards(lora: Arrays, config: Config, want: Wanted) -> Iterator[tuple[str, dict[str, Arrays]]]:
    """Directory name and state dicts of every file of an adapter alone."""
    num_layers, mtp = config.get("num_hidden_layers") or config["n_layer"], config.get("num_nextn_predict_layers", 0)
    is_moe = any(key in config for key in ("num_experts", "num_local_experts", "n_routed_experts"))
    for p in range(want.pp):
        for t, e, x in sorted(expert_files(want, is_moe) or ()):
            states: dict[str, Arrays] = {"model" if want.vpp == 1 else f"model{v}": {} for v in range(want.vpp)}
            for (stage, v, local), layer in slots(want, num_layers).items():
                if stage == p:
                    made = layer_of(lora, config, layer, want, t, e, x)
                    states["model" if want.vpp == 1 else f"model{v}"] |= under(f"decoder.layers.{local}.", made)
            if last_chunk(want)[0] == p:
                for k in range(mtp):
                    made = layer_of(lora, config, num_layers + k, want, t, e, x)
                    key = "model" if want.vpp == 1 else f"model{last_chunk(want)[1]}"
                    states[key] |= under(f"mtp.layers.{k}.transformer_layer.", made)
            yield file_name(want, t, p, e), states
