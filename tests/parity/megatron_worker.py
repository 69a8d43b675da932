"""Load converted checkpoints into megatron-core, run them, and compare the logits with transformers'.

torchrun --nproc-per-node 4 megatron_worker.py OUT.json --tp 2 --pp 2 CKPT_DIR HF_DIR [CKPT_DIR HF_DIR ...]

Starting the processes takes far longer than a tiny model does, so one launch takes many.
"""

from __future__ import annotations

import argparse
import json
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import no_compiler  # noqa: F401

# isort: split
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel

from gpt_model import build, read_config
from megatron_cpu import mend


def shard_file(checkpoint: Path, *, pp: int, ep: int) -> Path:
    """The file of this rank, by Megatron-LM's naming."""
    name = f"mp_rank_{parallel_state.get_tensor_model_parallel_rank():02d}"
    if pp > 1:
        name += f"_{parallel_state.get_pipeline_model_parallel_rank():03d}"
    if ep > 1:
        name += f"_{parallel_state.get_expert_model_parallel_rank():03d}"
    return checkpoint / "iter_0000001" / name / "model_optim_rng.pt"


def load(chunks: list[GPTModel], file: Path) -> set[str]:
    """Load each chunk strictly. Returns the keys that the model has and the file may leave out."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        payload = torch.load(file, map_location="cpu", weights_only=True)
    keys = ["model"] if len(chunks) == 1 else [f"model{i}" for i in range(len(chunks))]
    absent: set[str] = set()
    for key, chunk in zip(keys, chunks, strict=True):
        weights, wanted = payload[key], chunk.state_dict()
        chunk.load_state_dict(weights, strict=True)
        absent |= wanted.keys() - weights.keys()
        casts = [name for name, tensor in weights.items() if tensor.dtype != wanted[name].dtype]
        if casts:
            raise RuntimeError(f"load_state_dict cast without a word: {casts}")
    return absent


def load_on_every_rank(chunks: list[GPTModel], file: Path) -> tuple[set[str], str]:
    """The keys absent from any rank, and the errors of all ranks: one that went on alone would wait forever."""
    absent: set[str] = set()
    error = ""
    try:
        absent = load(chunks, file)
    except (OSError, KeyError, RuntimeError) as e:
        error = f"rank {dist.get_rank()}: {type(e).__name__}: {e}\n"
    results: list[tuple[set[str], str]] = [(set(), "")] * dist.get_world_size()
    dist.all_gather_object(results, (absent, error))
    return set().union(*(keys for keys, _ in results)), "".join(message for _, message in results)


def forward(chunks: list[GPTModel], tokens_BS: torch.Tensor) -> torch.Tensor | None:
    """Logits [batch, seq, padded vocab] on the ranks of the last stage, None on the others."""
    pp = parallel_state.get_pipeline_model_parallel_world_size()
    batch, seq = tokens_BS.shape
    positions = torch.arange(seq).expand(batch, seq)
    masked_11SS = torch.ones(1, 1, seq, seq, dtype=torch.bool).triu(1)  # True: may not attend
    hidden_SBH = torch.empty(seq, batch, chunks[0].config.hidden_size)
    for turn in range(pp * len(chunks)):
        if turn:  # no schedule: the stages take turns, and each tells all what it made
            group = parallel_state.get_pipeline_model_parallel_group()
            dist.broadcast(hidden_SBH, group=group, group_src=(turn - 1) % pp)
        if turn % pp == parallel_state.get_pipeline_model_parallel_rank():
            chunk = chunks[turn // pp]
            chunk.set_input_tensor(hidden_SBH)
            out = chunk(tokens_BS, positions, masked_11SS)
            if chunk.post_process:
                return out
            hidden_SBH = out.contiguous()
    return None


def reference_logits(hf_dir: Path, tokens_BS: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM  # seconds to import, and one rank needs it

    return AutoModelForCausalLM.from_pretrained(hf_dir, dtype=torch.float32).eval()(tokens_BS).logits


def measure(checkpoint: Path, hf_dir: Path, layout: dict[str, int]) -> dict:
    """A row of the report: max_diff and scale of the logits and the absent keys; or the error of loading."""
    hf = read_config(hf_dir)
    tokens = torch.randint(hf["vocab_size"], (2, 24), generator=torch.Generator().manual_seed(0))
    chunks = build(hf, **layout)
    absent, error = load_on_every_rank(chunks, shard_file(checkpoint, pp=layout["pp"], ep=layout["ep"]))
    if error:
        return {"error": error}
    logits = forward(chunks, tokens)
    row = [{"absent": sorted(absent)}]
    last = dist.get_world_size() - 1
    if dist.get_rank() == last:
        reference = reference_logits(hf_dir, tokens)
        row[0]["max_diff"] = (logits[..., : hf["vocab_size"]] - reference).abs().max().item()
        row[0]["scale"] = reference.abs().max().item()
    dist.broadcast_object_list(row, src=last)
    return row[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON list, one object for each pair")
    for name in ("tp", "pp", "vpp", "ep"):
        parser.add_argument(f"--{name}", type=int, default=1)
    parser.add_argument("--etp", type=int, help="default: as --tp")
    parser.add_argument("--grouped", action="store_true", help="experts as weight1 and weight2")
    parser.add_argument("pairs", type=Path, nargs="+", metavar="CKPT_DIR HF_DIR")
    args = parser.parse_args()
    layout = {name: getattr(args, name) for name in ("tp", "pp", "vpp", "ep", "etp", "grouped")}
    layout["etp"] = args.etp or args.tp

    mend()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))  # a hang is a failure
    parallel_state.initialize_model_parallel(
        args.tp,
        args.pp,
        virtual_pipeline_model_parallel_size=args.vpp if args.vpp > 1 else None,
        expert_model_parallel_size=args.ep,
        expert_tensor_parallel_size=layout["etp"],
    )
    with torch.no_grad():
        report = [measure(ckpt, hf, layout) for ckpt, hf in zip(args.pairs[::2], args.pairs[1::2], strict=True)]
    if dist.get_rank() == 0:
        args.out.write_text(json.dumps(report, indent=1))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
