"""Planning and proving a conversion of DeepSeek-V3 (671 B parameters and its MTP layer), no bytes moved: CPU-s and memory.

    python benchmarks/plan.py [--tp 4] [--pp 16] [--ep 8] [--format torch_dist]

The tensors' names, shapes and dtypes are those of the published model; nothing is read, since planning reads headers only.
"""

from __future__ import annotations

import argparse
import math
import resource
import tempfile
import time
from pathlib import Path

from jumar.ckpt_convert import Checkpoint, plan_dist, plan_megatron
from jumar.ckpt_convert.plan import SourceBox
from jumar.ckpt_convert.tensors import contiguous_strides
from jumar.schema.parallel import ParallelLayout
from jumar.schema.registry import family_of

PUBLISHED = {
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "vocab_size": 129280,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "n_group": 8,
    "topk_group": 4,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--tp", 4), ("--pp", 16), ("--ep", 8)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--format", choices=["torch", "torch_dist"], default="torch")
    options = parser.parse_args()
    family = family_of("deepseek_v3")
    spec = family.spec({**family.tiny, **PUBLISHED})
    shapes = family.hf_tensors(spec)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        file.touch()
        boxes = {n: [SourceBox((0,) * len(s), s, "BF16", file, 0, contiguous_strides(s))] for n, s in shapes.items()}
        source = Checkpoint((Path(folder),), "huggingface", family, spec, shapes, boxes)
        noop = tuple(range(61, 61 - 61 % -options.pp))
        layout = ParallelLayout(tp=options.tp, pp=options.pp, ep=options.ep, etp=1, noop_layers=noop)
        start = time.process_time()
        made = plan_megatron(source, layout) if options.format == "torch" else plan_dist(source, layout)
        seconds = time.process_time() - start
    parameters = sum(map(math.prod, shapes.values())) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    said = f"tp={options.tp} pp={options.pp} ep={options.ep}"
    print(f"{options.format}: {parameters:.0f} B parameters, {said}: {len(made.files)} files, ", end="")
    print(f"{made.facts['tensors']} tensors, {made.facts['copies']} copies: {seconds:.1f} CPU-s, peak {peak:.0f} MiB in all")


if __name__ == "__main__":
    main()
