"""Beam search, as Hugging Face `generate` does it: with num_beams, length_penalty, and early_stopping=False.

https://huggingface.co/docs/transformers/generation_strategies (beam search)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jumar.infer.batch import Part
from jumar.infer.engine import Engine
from jumar.infer.sampling import Sampling, penalised, warped
from jumar.infer.scheduler import Request
from jumar.infer.tokenizer import TextStream
from jumar.schema.errors import Exit, ToolError


@dataclass(frozen=True, slots=True)
class Beam:
    """Tokens of an answer so far, and the sum of their log-probabilities; of a finished one that sum by its length."""

    score: float
    tokens: tuple[int, ...] = ()


def check_beams(sampling: Sampling, num_beams: int, returns: int) -> None:
    """Raises ToolError (2) for what beams do not do."""
    for wrong, what, hint in (
        (sampling.temperature != 0, "beams take the most probable answers, and draw none", "give --temperature 0"),
        (bool(sampling.stop), "beams do not end at stop texts", "leave --stop out"),
        (sampling.logprobs is not None, "beams have no log-probabilities of tokens", "leave --logprobs out"),
        (returns > num_beams, f"{num_beams} beams have no {returns} answers", f"give --num-return {num_beams} or less"),
    ):
        if wrong:
            raise ToolError(what, hint=hint, code=Exit.USAGE)


def beamed(engine: Engine, prompt: Sequence[int], sampling: Sampling, num_beams: int) -> Request:
    """A request that `num_beams` beams have room for. Raises ToolError (3) as `Engine.add`, and where they have not."""
    asked, cache = engine.request(prompt, sampling), engine.cache
    needed = engine.scheduler.pages_of(asked) * num_beams
    if needed > cache.pages:
        raise ToolError(
            f"{num_beams} beams need {needed} pages of the cache, which has {cache.pages}",
            hint="ask for fewer new tokens or beams, or raise --cache-tokens",
        )
    if cache.states is not None and num_beams > cache.places:
        raise ToolError(
            f"{num_beams} beams keep as many states, and the engine has {cache.places} places",
            hint=f"open it with Limits(max_batch={num_beams})",
        )
    return asked


def search(
    engine: Engine,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    num_beams: int,
    length_penalty: float = 1.0,
    returns: int = 1,
    among: Sampling | None = None,
) -> list[Request]:
    """The best answers to one prompt, best first. Nothing else may run.

    length_penalty: sums of log-probabilities are divided by length ** length_penalty; more than 0 is for longer answers.
    among: beams go on with tokens alone that its top_k, top_p and min_p leave in, as those of Megatron-LM's descendants do
    Raises ToolError: 2 for what beams do not do, 3 as of `Engine.add`, and for a cache that cannot hold all beams.
    """
    check_beams(sampling, num_beams, returns)
    asked = beamed(engine, prompt, sampling, num_beams)
    pages = [engine.cache.take(engine.scheduler.pages_of(asked)) for _ in range(num_beams)]
    try:
        found = _search(engine, asked, pages, length_penalty, among)
    finally:
        for held in pages:
            engine.cache.give_back(held)
    return [_answer(engine, asked, beam) for beam in found[:returns]]


@torch.inference_mode()
def _search(engine: Engine, asked: Request, pages: list[list[int]], length_penalty: float, among: Sampling | None) -> list[Beam]:
    count, most = len(pages), asked.sampling.max_new_tokens
    keep = max(2, 1 + len(asked.stop_ids)) * count
    logits = _prefill(engine, asked, pages)
    running = [Beam(0.0)]
    finished: list[Beam] = []
    for length in range(1, most + 1):
        rows = [_row(row, asked, beam, among) for row, beam in zip(logits, running, strict=True)]
        candidates = _best(torch.stack(rows), running, keep)
        done = [beam.tokens[-1] in asked.stop_ids or length == most for _, beam in candidates]
        ended = [
            replace(b, score=b.score / length**length_penalty) for (_, b), d in zip(candidates[:count], done, strict=False) if d
        ]
        finished = sorted([*finished, *ended], key=lambda beam: -beam.score)[:count]
        going = [item for item, ends in zip(candidates, done, strict=True) if not ends][:count]
        if not going or (len(finished) == count and going[0][1].score / length**length_penalty <= finished[-1].score):
            break
        parents, running = [parent for parent, _ in going], [beam for _, beam in going]
        at = len(asked.prompt) + length - 1
        engine.cache.copy([pages[p] for p in parents], pages[: len(parents)], at, start=len(asked.prompt))
        logits = _step(engine, running, pages, at)
    return finished


def _row(logits_V: Tensor, asked: Request, beam: Beam, among: Sampling | None) -> Tensor:
    """Log-probabilities of the next token, under the penalties."""
    logs = (logits_V if among is None else warped(logits_V, replace(among, temperature=1.0))).log_softmax(-1)
    if asked.sampling.penalised:
        logs = penalised(logs, replace(asked, output=list(beam.tokens)))
    return logs


def _best(logs_BV: Tensor, running: list[Beam], keep: int) -> list[tuple[int, Beam]]:
    """(number of the beam that goes on, the beam with one more token), best first."""
    sums = logs_BV + torch.tensor([beam.score for beam in running], device=logs_BV.device)[:, None]
    best = sums.flatten().topk(min(keep, sums.numel()))
    out = []
    for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        parent, token = divmod(index, logs_BV.shape[1])
        out.append((parent, Beam(score, (*running[parent].tokens, token))))
    return out


def _prefill(engine: Engine, asked: Request, pages: list[list[int]]) -> Tensor:
    """The prompt's keys in the pages of every beam, and the logits of its last token, [1, V]."""
    chunk, prompt = engine.scheduler.chunk, asked.prompt
    logits = torch.empty(0)
    for start in range(0, len(prompt), chunk):
        part = prompt[start : start + chunk]
        last = start + chunk >= len(prompt)
        logits = engine.compute([Part(part, start, pages[0], len(prompt), int(last), engine.cache.place(pages[0]))])
    engine.cache.copy([pages[0]] * (len(pages) - 1), pages[1:], len(prompt))
    return logits


def _step(engine: Engine, running: list[Beam], pages: list[list[int]], at: int) -> Tensor:
    """Logits [beams, V] after each beam's last token, which is at position `at`."""
    place = engine.cache.place
    parts = [Part(beam.tokens[-1:], at, held, at + 1, place=place(held)) for beam, held in zip(running, pages, strict=False)]
    return engine.compute(parts)


def _answer(engine: Engine, asked: Request, beam: Beam) -> Request:
    stream = TextStream(engine.tokenizer) if engine.tokenizer is not None else None
    request = replace(asked, stream=stream, output=[], logprobs=[], scores=[], pages=[])
    for token in beam.tokens:
        request.take(token)
    return request
