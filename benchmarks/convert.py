"""Conversion against `cp` and `torch.save`, in the same run: wall + sync, CPU-seconds, peak anonymous memory.

    python benchmarks/convert.py [--gb 3] [--rounds 3] [--dir runs/bench] [--keep]

A bf16 Llama-shaped checkpoint of about GB gigabytes is made once. Each round then runs, in turn: `cp -r` of it; `torch.save` of
the TP2 PP2 shards one by one; `jumar-convert to-megatron --tp 2 --pp 2`; `jumar-convert to-hf` back. After each, `sync`. The
medians are printed, each with its ratio to cp of the same run, and the last result is verified.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

SHAPE = {"hidden_size": 2560, "intermediate_size": 10240, "num_attention_heads": 20, "num_key_value_heads": 4, "head_dim": 128}
VOCAB = 32000


def make_source(directory: Path, gigabytes: float) -> None:
    """Random bf16 weights in shards of about 800 MB, as transformers would lay them out."""
    h, f = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    q, kv = 20 * 128, 4 * 128
    layer = {
        "input_layernorm": (h,),
        "self_attn.q_proj": (q, h),
        "self_attn.k_proj": (kv, h),
        "self_attn.v_proj": (kv, h),
        "self_attn.o_proj": (h, q),
        "post_attention_layernorm": (h,),
        "mlp.gate_proj": (f, h),
        "mlp.up_proj": (f, h),
        "mlp.down_proj": (h, f),
    }
    per_layer = 2 * sum(int(np.prod(s)) for s in layer.values())
    layers = max(2, round((gigabytes * 1e9 - 4 * VOCAB * h) / per_layer / 2) * 2)
    tensors = {"model.embed_tokens.weight": (VOCAB, h)}
    for i in range(layers):
        tensors.update({f"model.layers.{i}.{n}.weight": s for n, s in layer.items()})
    tensors.update({"model.norm.weight": (h,), "lm_head.weight": (VOCAB, h)})
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SHAPE, "num_hidden_layers": layers}
    config |= {"vocab_size": VOCAB, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e4}
    config |= {"tie_word_embeddings": False, "torch_dtype": "bfloat16"}
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    write_shards(directory, tensors, 800_000_000)


def write_shards(directory: Path, tensors: dict[str, tuple[int, ...]], limit: int) -> None:
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in tensors.items():
        if groups[-1] and 2 * sum(int(np.prod(s)) for s in (*groups[-1].values(), shape)) > limit:
            groups.append({})
        groups[-1][name] = shape
    noise = np.random.default_rng(0).integers(0, 1 << 14, 1 << 22, dtype=np.uint16) + (0x3C << 8)
    weight_map = {}
    for number, group in enumerate(groups):
        file = f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors"
        header, here = {}, 0
        for name, shape in group.items():
            size = 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [here, here + size]}
            here += size
            weight_map[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (directory / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            left = here // 2
            while left:
                block = np.roll(noise, left % 97)[: min(left, len(noise))]
                out.write(block.tobytes())
                left -= len(block)
    index = {"metadata": {"total_size": 2 * sum(int(np.prod(s)) for s in tensors.values())}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def anonymous_kib(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith(("RssAnon", "RssShmem")))


def measure(command: list[str], target: Path) -> tuple[float, float, float]:
    """(wall + sync in s, user + system CPU-s, peak anonymous MiB) of a command that writes `target`, which is removed first."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak, done = [0], threading.Event()

    def poll() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], anonymous_kib(process.pid))

    watcher = threading.Thread(target=poll)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    done.set()
    watcher.join()
    os.sync()
    wall = time.monotonic() - start
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return wall, usage.ru_utime + usage.ru_stime, peak[0] / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, default=Path("runs/bench"))
    parser.add_argument("--keep", action="store_true", help="keep the files")
    options = parser.parse_args()
    source = options.dir / f"hf-{options.gb:g}"
    if not source.exists():
        make_source(source, options.gb)
    copy, saved, shards, back = (options.dir / n for n in ("cp", "torch-save", "tp2-pp2", "hf-back"))
    jumar = [sys.executable, "-m", "jumar.ckpt_convert"]
    commands = {
        "cp": (["cp", "-r", str(source), str(copy)], copy),
        "torch.save": ([sys.executable, str(Path(__file__).with_name("_torch_save.py")), str(source), str(saved)], saved),
        "jumar-convert to-megatron": ([*jumar, "to-megatron", str(source), str(shards), "--tp", "2", "--pp", "2"], shards),
        "jumar-convert to-hf": ([*jumar, "to-hf", str(shards), str(back)], back),
    }
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for _ in range(options.rounds + 1):
        for name, (command, target) in commands.items():
            results[name].append(measure(command, target))
    size = sum(f.stat().st_size for f in source.glob("*.safetensors"))
    print(f"{size / 1e9:.2f} GB bf16, {os.cpu_count()} cores, median of {options.rounds} rounds after one warm-up")
    print("| what | wall + sync, s | over cp | CPU-s | peak anonymous MiB |\n| --- | --- | --- | --- | --- |")
    medians = {n: [statistics.median(v) for v in zip(*rows[1:], strict=True)] for n, rows in results.items()}
    for name, (wall, cpu, memory) in medians.items():
        ratios = [mine[0] / cp[0] for mine, cp in zip(results[name][1:], results["cp"][1:], strict=True)]
        print(f"| {name} | {wall:.2f} | {statistics.median(ratios):.2f} | {cpu:.2f} | {memory:.0f} |")
    subprocess.run([*jumar, "verify", str(source), str(back)], check=True)
    if not options.keep:
        shutil.rmtree(options.dir)


if __name__ == "__main__":
    main()
