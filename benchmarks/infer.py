"""jumar-infer against transformers' generate on one model, one thread, in one process; times are of the processor.

    python benchmarks/infer.py [MODEL]        default: runs/demo/hf, SmolLM2-135M-Instruct (make demo)

Each line is a ratio of tokens per second: more than 1 is faster than transformers in fp32. Repeats are interleaved, the best of
each counts. The read limit is what reading every weight once a token allows, by this machine's own rate of reading.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from jumar.infer import Engine, Sampling
from jumar.infer.engine import Limits

PROMPT, NEW, REPEATS = 128, 48, 3
LENGTHS = (24, 40, 64, 96, 128, 160, 192, 256)


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo/hf")
    if not path.exists():
        print(f"skipped: {path} is not here (make demo)")
        return
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    one = Engine.open(path, Limits(max_batch=1, cache_tokens=1024), device="cpu")
    int8 = Engine.open(path, Limits(max_batch=1, cache_tokens=1024), device="cpu", quantize="int8-dynamic")
    eight = Engine.open(path, Limits(max_batch=8, cache_tokens=4096), device="cpu")
    prompts = [ids(length, one.decoder.vocab_size) for length in LENGTHS]
    single = ids(PROMPT, one.decoder.vocab_size)

    times = best(
        {
            "transformers prefill": lambda: theirs(model, [single], 1),
            "transformers all": lambda: theirs(model, [single], NEW + 1),
            "prefill": lambda: ours(one, [single], 1),
            "all": lambda: ours(one, [single], NEW + 1),
            "int8 prefill": lambda: ours(int8, [single], 1),
            "int8 all": lambda: ours(int8, [single], NEW + 1),
            "transformers eight": lambda: theirs(model, prompts, NEW),
            "eight": lambda: ours(eight, prompts, NEW),
        }
    )
    decode = {name: (times[f"{name}all"] - times[f"{name}prefill"]) / NEW for name in ("transformers ", "", "int8 ")}
    limit = weight_bytes(model) / read_rate()
    print(f"{path}: prompt {PROMPT}, {NEW} new tokens, best of {REPEATS}, 1 thread, seconds of the processor")
    row("prefill fp32", times["transformers prefill"] / times["prefill"], PROMPT / times["prefill"])
    row("prefill int8-dynamic", times["transformers prefill"] / times["int8 prefill"], PROMPT / times["int8 prefill"])
    row("decode fp32", decode["transformers "] / decode[""], 1 / decode[""])
    row("decode int8-dynamic", decode["transformers "] / decode["int8 "], 1 / decode["int8 "])
    row("eight of different lengths", times["transformers eight"] / times["eight"], len(LENGTHS) * NEW / times["eight"])
    print(f"read limit of fp32 weights: {1 / limit:.1f} tokens/s; decode fp32 reaches {limit / decode['']:.0%} of it")
    print(f"transformers fp32: decode {1 / decode['transformers ']:.1f} tokens/s")


def ids(count: int, vocab: int) -> list[int]:
    """Random tokens: what a model writes does not change how long it takes."""
    return torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(count)).tolist()


def best(jobs: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Seconds of the processor of each job."""
    found = dict.fromkeys(jobs, float("inf"))
    for _ in range(REPEATS):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            found[name] = min(found[name], time.process_time() - start)
    return found


def ours(engine: Engine, prompts: list[list[int]], new: int) -> None:
    engine.cache.forget()
    answers = engine.generate(prompts, Sampling(max_new_tokens=new, ignore_eos=True))
    assert all(len(answer.output) == new for answer in answers)


def theirs(model: torch.nn.Module, prompts: list[list[int]], new: int) -> None:
    """One padded batch."""
    longest = max(map(len, prompts))
    rows = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    out = model.generate(rows, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)
    assert out.shape[1] == longest + new


def weight_bytes(model: torch.nn.Module) -> int:
    """What a token reads: every weight once, of tied embeddings one copy."""
    return sum(p.numel() * p.element_size() for p in {id(p): p for p in model.parameters()}.values())


def read_rate() -> float:
    """Bytes a second that one thread reads."""
    data = torch.ones(1 << 27)
    seconds = float("inf")
    for _ in range(5):
        start = time.process_time()
        data.sum()
        seconds = min(seconds, time.process_time() - start)
    return data.numel() * 4 / seconds


def row(what: str, ratio: float, rate: float) -> None:
    print(f"{what:28} {ratio:5.2f} x transformers   {rate:7.1f} tokens/s")


if __name__ == "__main__":
    main()
