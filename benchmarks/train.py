"""A training step of jumar-train against the same step of transformers: same weights, same batches, one thread, alternating.

    python benchmarks/train.py [--steps 12] [--shape llama|qwen3|mixtral] [--traffic]

Both sides live in processes of their own and take turns, step by step, so that whatever else the machine does meets both.
CPU seconds of a step; the ratio is that of the medians. --traffic: instead, bytes that each rank sends, and tensors that it keeps
for the backward pass, for several layouts, against their formulas.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 8192,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
MOE = {"num_local_experts": 8, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.0}
SHAPES = {
    "llama": LLAMA,
    "qwen3": LLAMA | {"model_type": "qwen3", "head_dim": 32},
    "mixtral": LLAMA | MOE | {"model_type": "mixtral", "intermediate_size": 352},
}
SIDES = ("transformers", "jumar")


def make_model(config: dict, folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).save_pretrained(folder)


def compare(name: str, steps: int, folder: Path) -> None:
    make_model(SHAPES[name], folder)
    shape = {"model": str(folder), "seq_len": 512, "batch": 1, "micro_batch": 1, "vocab": SHAPES[name]["vocab_size"]}
    (folder / "shape.json").write_text(json.dumps(shape))
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    sides = {
        side: subprocess.Popen(
            [sys.executable, HERE / "_train_step.py", side, folder / "shape.json"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("VERBOSE") else subprocess.DEVNULL,
            text=True,
            env=env,
        )
        for side in SIDES
    }
    costs: dict[str, list[dict]] = {side: [] for side in SIDES}
    for process in sides.values():
        while process.stdout.readline().strip() != "ready":
            assert process.poll() is None, "a side ended; VERBOSE=1 shows why"
    for step in range(steps + 2):
        for side in SIDES if step % 2 else SIDES[::-1]:
            print(step, file=sides[side].stdin, flush=True)
            costs[side].append(json.loads(sides[side].stdout.readline()))
    for process in sides.values():
        process.stdin.close()
        process.wait()
    apart = max(abs(a["loss"] - b["loss"]) for a, b in zip(*costs.values(), strict=True))
    middle = {side: statistics.median(cost["cpu_s"] for cost in costs[side][2:]) for side in SIDES}
    print(f"{name:8s} " + ", ".join(f"{side} {1000 * cost:.0f} ms" for side, cost in middle.items()), end="")
    print(f": ratio {middle['jumar'] / middle['transformers']:.2f}; losses differ by at most {apart:.1e}")


LAYOUTS: dict[str, dict] = {
    "dp2": {"features": {"distributed_optimizer": False}},
    "dp2 distributed optimizer": {},
    "tp2": {"parallel": {"tp": 2, "sequence_parallel": False}},
    "tp2 sequence parallel": {"parallel": {"tp": 2}},
    "pp2": {"parallel": {"pp": 2}},
    "pp2 vpp2": {"parallel": {"pp": 2, "vpp": 2}},
    "cp2": {"parallel": {"cp": 2}, "features": {"distributed_optimizer": False}},
    "ep2": {"parallel": {"ep": 2}, "features": {"distributed_optimizer": False}},
    "dp2 recompute full": {"features": {"distributed_optimizer": False, "recompute": {"granularity": "full"}}},
}
EXPERTS = {"ep2"}
MICRO_BATCHES = 4


def sent_formula(name: str, config: dict, length: int, parameters: int, micro: int) -> float:
    """Bytes that a rank sends in a step of fp32, one sequence a micro batch. micro: micro batches of the rank.

    S tokens, H hidden, G key/value heads, D head dim, L layers. A reduction over two ranks sends 2 (n - 1) / n = 1 time the size,
    gathers and scatters (n - 1) / n = 1/2 of the whole.
    """
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    stream = 4 * length * hidden  # the residual stream of a micro batch
    scalars = 4 * length
    gradients = 4 * parameters
    if name.startswith("dp2"):
        return gradients  # reduced; or scattered and gathered
    if name == "tp2":  # a reduction after each block and one for its input's gradient; embedding; output layer; three of the loss
        return micro * (layers * 4 * stream + 2 * stream + 3 * scalars)
    if name == "tp2 sequence parallel":  # gather and scatter a block; backward the same, and its input once more
        norms = 4 * hidden * (2 * layers + 1)
        return micro * ((10 * layers + 2 + 3) * stream / 2 + 3 * scalars) + norms
    if name.startswith("pp2"):  # every border between chunks is crossed forward by one rank and back by the other
        return micro * stream * (1 if name == "pp2" else 3)
    if name == "cp2":  # K and V of the whole sequence gathered, as much scattered back; gradients
        head = config.get("head_dim", hidden // config["num_attention_heads"])
        both = 4 * length * config["num_key_value_heads"] * 2 * head
        return micro * layers * (both / 2 + both / 2) + gradients
    raise KeyError(name)


def traffic(folder: Path) -> None:
    """What layouts send and keep, on two ranks."""
    length = 256
    rows = []
    for name, changes in LAYOUTS.items():
        shape = "mixtral" if name in EXPERTS else "llama"
        make_model(SHAPES[shape], folder / shape)
        recipe = {"model": {"path": str(folder / shape)}, "data": {"seq_len": length}}
        split = 1 if changes.get("parallel", {}).keys() - {"ep"} else 2
        recipe["train"] = {"precision": "fp32", "global_batch_size": MICRO_BATCHES * split}
        rows.append({"name": name, "recipe": recipe | changes})
    (folder / "rows.json").write_text(json.dumps(rows))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [HERE / "_train_traffic.py", folder / "out.json", folder / "rows.json"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    subprocess.run(command, check=True, env=env, stderr=None if os.environ.get("VERBOSE") else subprocess.DEVNULL)
    ranks = json.loads((folder / "out.json").read_text())
    print(f"{'layout':28s} rank   sent, KiB   formula   ratio   kept, KiB   formula   ratio")
    for number, row in enumerate(rows):
        for rank, found in enumerate(ranks):
            mine, sent = found[number], sum(found[number]["sent"].values())
            config = SHAPES["mixtral" if row["name"] in EXPERTS else "llama"]
            if row["name"] in EXPERTS:
                expected = experts_formula(config, length, mine["parameters"], MICRO_BATCHES)
            else:
                expected = sent_formula(row["name"], config, length, mine["parameters"], MICRO_BATCHES)
            columns = f"{sent / 1024:9.0f} {expected / 1024:9.0f} {sent / expected:7.3f}"
            columns += (
                f" {mine['kept'] / 1024:11.0f} {mine['kept_formula'] / 1024:9.0f} {mine['kept'] / mine['kept_formula']:7.2f}"
            )
            print(f"{row['name']:28s} {rank:4d} {columns}")


def experts_formula(config: dict, length: int, parameters: int, micro: int) -> float:
    """ep2: half of the choices go to the other rank, and come back; so do their gradients. Dense gradients are reduced."""
    hidden, layers, chosen = config["hidden_size"], config["num_hidden_layers"], config["num_experts_per_tok"]
    choices = 4 * length * chosen * (hidden + 0.5 + 0.5) / 2  # weights of choices travel forward, their gradients back
    here = 3 * hidden * config["intermediate_size"] * config["num_local_experts"] // 2 * layers
    return micro * layers * 4 * choices + 4 * (parameters - here)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--shape", choices=SHAPES, action="append")
    parser.add_argument("--traffic", action="store_true")
    args = parser.parse_args()
    if args.traffic:
        with tempfile.TemporaryDirectory() as folder:
            traffic(Path(folder))
        return
    for name in args.shape or SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            compare(name, args.steps, Path(folder))


if __name__ == "__main__":
    main()
