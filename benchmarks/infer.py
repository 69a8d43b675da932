"""jumar-infer against transformers' generate on one model, one thread, in one process; times are of the processor.

    python benchmarks/infer.py [MODEL [GGUF]]     default: runs/demo/hf, SmolLM2-135M-Instruct, and its GGUF file (make demo)

Each line is a ratio of tokens per second: more than 1 is faster than transformers in fp32. Repeats are interleaved, the best of
each counts. The read limit is what reading every weight once a token allows, by this machine's own rate of reading. With the
wheel xllamacpp and a GGUF file of the same model, llama.cpp stands beside it, its matrices as Q8_0 and F16.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from jumar.infer import Engine, Sampling
from jumar.infer.engine import Limits

PROMPT, NEW, REPEATS = 128, 48, 3
ALIKE = tuple((length, NEW) for length in (24, 40, 64, 96, 128, 160, 192, 256))
APART = ((16, 96), (32, 24), (48, 64), (80, 12), (128, 48), (192, 16), (320, 32), (512, 8))
"""Requests: tokens of the prompt, tokens of the answer."""


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo/hf")
    source = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/demo/SmolLM2-135M-Instruct.Q4_1.gguf")
    if not path.exists():
        print(f"skipped: {path} is not here (make demo)")
        return
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    one = Engine.open(path, Limits(max_batch=1, cache_tokens=1024), device="cpu")
    int8 = Engine.open(path, Limits(max_batch=1, cache_tokens=1024), device="cpu", quantize="int8-dynamic")
    eight = Engine.open(path, Limits(max_batch=8, cache_tokens=4096), device="cpu")
    vocab = one.decoder.vocab_size
    alike, apart = ([(ids(prompt, vocab), new) for prompt, new in requests] for requests in (ALIKE, APART))
    single = ids(PROMPT, vocab)
    jobs = {
        "transformers prefill": lambda: theirs(model, [(single, 1)]),
        "transformers all": lambda: theirs(model, [(single, NEW + 1)]),
        "prefill": lambda: ours(one, [(single, 1)]),
        "all": lambda: ours(one, [(single, NEW + 1)]),
        "int8 prefill": lambda: ours(int8, [(single, 1)]),
        "int8 all": lambda: ours(int8, [(single, NEW + 1)]),
        "transformers alike": lambda: theirs(model, alike),
        "alike": lambda: ours(eight, alike),
        "transformers apart": lambda: theirs(model, apart),
        "apart": lambda: ours(eight, apart),
    }
    with tempfile.TemporaryDirectory() as scratch:
        peers = llama_cpp(source, Path(scratch), single)
        times = best(jobs | peers)
    kinds = [name.removesuffix("all") for name in peers if name.endswith("all")]
    decode = {name: (times[f"{name}all"] - times[f"{name}prefill"]) / NEW for name in ("transformers ", "", "int8 ", *kinds)}
    limit = weight_bytes(model) / read_rate()
    print(f"{path}: prompt {PROMPT}, {NEW} new tokens, best of {REPEATS}, 1 thread, seconds of the processor")
    row("prefill fp32", times["transformers prefill"] / times["prefill"], PROMPT / times["prefill"])
    row("prefill int8-dynamic", times["transformers prefill"] / times["int8 prefill"], PROMPT / times["int8 prefill"])
    row("decode fp32", decode["transformers "] / decode[""], 1 / decode[""])
    row("decode int8-dynamic", decode["transformers "] / decode["int8 "], 1 / decode["int8 "])
    for name, requests in (("alike", ALIKE), ("apart", APART)):
        row(f"eight requests {name}", times[f"transformers {name}"] / times[name], sum(new for _, new in requests) / times[name])
    for kind in kinds:
        row(f"{kind}prefill", times["transformers prefill"] / times[f"{kind}prefill"], PROMPT / times[f"{kind}prefill"])
        row(f"{kind}decode", decode["transformers "] / decode[kind], 1 / decode[kind])
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


def ours(engine: Engine, requests: Sequence[tuple[list[int], int]]) -> None:
    engine.cache.forget()
    answers = [engine.add(prompt, Sampling(max_new_tokens=new, ignore_eos=True)) for prompt, new in requests]
    engine.run(answers)
    assert [len(answer.output) for answer in answers] == [new for _, new in requests]


def theirs(model: torch.nn.Module, requests: Sequence[tuple[list[int], int]]) -> None:
    """One padded batch, until the longest answer is there."""
    longest, new = max(len(prompt) for prompt, _ in requests), max(new for _, new in requests)
    rows = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt, _ in requests])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in requests])
    out = model.generate(rows, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)
    assert out.shape[1] == longest + new


def llama_cpp(source: Path, scratch: Path, prompt: list[int]) -> dict[str, Callable[[], None]]:
    """Its jobs, if the wheel and the file are here."""
    if importlib.util.find_spec("xllamacpp") is None or not source.exists():
        print("without llama.cpp: pip install xllamacpp gguf, and give a GGUF file of the model")
        return {}
    import _llama_cpp as peer

    jobs: dict[str, Callable[[], None]] = {}
    for kind in peer.KINDS:
        peer.requantised(source, scratch / kind, kind)
        answer = peer.server(scratch / kind, PROMPT + NEW + 8)
        jobs[f"llama.cpp {kind} prefill"] = lambda answer=answer: answer(prompt, 1)
        jobs[f"llama.cpp {kind} all"] = lambda answer=answer: answer(prompt, NEW + 1)
    return jobs


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
