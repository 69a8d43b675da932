"""The peer of convert.py: TP2 PP2 shards of a Llama-shaped checkpoint, put together tensor by tensor and written with torch.save.

_torch_save.py SRC DST
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open

source, target = map(Path, sys.argv[1:3])
config = json.loads((source / "config.json").read_text())
layers, groups = config["num_hidden_layers"], config["num_key_value_heads"]
where = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
files = {name: safe_open(source / name, "pt") for name in set(where.values())}


def rows(name: str, t: int, axis: int = 0) -> torch.Tensor:
    view = files[where[name]].get_slice(name)
    size = view.get_shape()[axis] // 2
    return view[t * size : (t + 1) * size] if axis == 0 else view[:, t * size : (t + 1) * size]


for p in range(2):
    for t in range(2):
        model = {}
        if p == 0:
            model["embedding.word_embeddings.weight"] = rows("model.embed_tokens.weight", t)
        for local, layer in enumerate(range(p * layers // 2, (p + 1) * layers // 2)):
            hf, mg = f"model.layers.{layer}.", f"decoder.layers.{local}."
            q, k, v = (rows(f"{hf}self_attn.{x}_proj.weight", t).unflatten(0, (groups // 2, -1)) for x in "qkv")
            model[mg + "self_attention.linear_qkv.weight"] = torch.cat([q, k, v], 1).flatten(0, 1)
            model[mg + "self_attention.linear_proj.weight"] = rows(hf + "self_attn.o_proj.weight", t, 1).contiguous()
            model[mg + "mlp.linear_fc1.weight"] = torch.cat([rows(f"{hf}mlp.{x}_proj.weight", t) for x in ("gate", "up")])
            model[mg + "mlp.linear_fc2.weight"] = rows(hf + "mlp.down_proj.weight", t, 1).contiguous()
            for norm, name in (("input_layernorm", "input_layernorm"), ("pre_mlp_layernorm", "post_attention_layernorm")):
                model[f"{mg}{norm}.weight"] = files[where[f"{hf}{name}.weight"]].get_tensor(f"{hf}{name}.weight")
        if p == 1:
            model["decoder.final_layernorm.weight"] = files[where["model.norm.weight"]].get_tensor("model.norm.weight")
            model["output_layer.weight"] = rows("lm_head.weight", t)
        shard = target / f"iter_0000001/mp_rank_{t:02d}_{p:03d}"
        shard.mkdir(parents=True)
        args = argparse.Namespace(tensor_model_parallel_size=2, pipeline_model_parallel_size=2)
        torch.save({"args": args, "checkpoint_version": 3.0, "iteration": 1, "model": model}, shard / "model_optim_rng.pt")
