"""How the next token is chosen from logits: penalties, temperature, top-k, top-p, min-p, and log-probabilities.

The order and the meaning are those of Hugging Face `generate` (https://huggingface.co/docs/transformers/generation_strategies);
presence and frequency penalties are OpenAI's (https://platform.openai.com/docs/api-reference/completions).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jumar.infer.tokenizer import check_unicode
from jumar.schema.errors import Exit, ToolError

if TYPE_CHECKING:
    from jumar.infer.scheduler import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What one request asks for. Raises ToolError (2) for a value that means nothing.

    temperature: 0 takes the most probable token each time; else from 1e-5 to 1e3
    top_k, top_p, min_p: 0, 1, 0 leave all tokens in
    repetition_penalty: logits of tokens of the prompt and the answer are divided (if negative, multiplied) by it
    presence_penalty, frequency_penalty: taken off the logits of tokens of the answer, once, and once for each time
    stop: texts before which the answer ends; stop_ids: tokens that end it, beside the model's own (unless ignore_eos)
    seed: of this request's own generator: what else runs at the same time changes nothing
    logprobs: so many alternatives with each token's log-probability; None: none at all
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in LIMITS:
            value, off = getattr(self, name), name == "temperature"
            if value is not None and not (off and value == 0) and (not low <= value <= high or value == INF):
                what = ("0, or " if off else "") + (f"at least {low}" if high == INF else f"from {low} to {high}")
                raise ToolError(f"{name} is {value!s:.40}, expected {what}", hint=f"give {name} {what}", code=Exit.USAGE)
        if not all(self.stop):
            raise ToolError("a stop text is empty", hint="leave it out", code=Exit.USAGE)
        for text in self.stop:
            check_unicode(text, "a stop text", Exit.USAGE)

    @property
    def penalised(self) -> bool:
        """Whether what was written changes the logits."""
        return self.repetition_penalty != 1 or bool(self.presence_penalty or self.frequency_penalty)


INF = float("inf")
LIMITS: tuple[tuple[str, float, float], ...] = (
    ("max_new_tokens", 0, INF),
    ("temperature", 1e-5, 1000),  # or 0; beyond, logits of 32 bits overflow
    ("top_k", 0, INF),
    ("top_p", 1e-9, 1),
    ("min_p", 0, 1),
    ("repetition_penalty", 1e-9, 10**9),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
    ("seed", 0, 2**62 - 1),
    ("logprobs", 0, 100),
)
assert {name for name, _, _ in LIMITS} <= {f.name for f in fields(Sampling)}


@dataclass(frozen=True, slots=True)
class LogProb:
    """Of one chosen token, and of the most probable ones (token, log-probability), under the model's own distribution."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def choose_tokens(logits_RV: Tensor, requests: Sequence[Request]) -> list[int]:
    """The next token of each request; row i of the logits is for request i. Log-probabilities go to requests that ask."""
    rows = [
        penalised(row, request) if request.sampling.penalised else row for row, request in zip(logits_RV, requests, strict=True)
    ]
    if all(r.sampling.temperature == 0 for r in requests):
        scores = torch.stack(rows) if any(r.sampling.penalised for r in requests) else logits_RV
        tokens: list[int] = scores.argmax(-1).tolist()
    else:
        tokens = [
            int(row.argmax() if r.sampling.temperature == 0 else draw(row, r.sampling, r.generator(row.device)))
            for row, r in zip(rows, requests, strict=True)
        ]
    for row, token, request in zip(logits_RV, tokens, requests, strict=True):
        if request.sampling.logprobs is not None:
            request.logprobs.append(log_prob(row, token, request.sampling.logprobs))
    return tokens


def log_prob(row_V: Tensor, token: int, alternatives: int) -> LogProb:
    """Of a token, and of the most probable ones."""
    logs = row_V.log_softmax(-1)
    best = logs.topk(min(alternatives, len(logs)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return LogProb(token, float(logs[token]), tuple(pairs))


def penalised(row_V: Tensor, request: Request) -> Tensor:
    sampling, row_V = request.sampling, row_V.clone()
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted({*request.prompt, *request.output}), device=row_V.device)
        scores = row_V[seen]
        by = sampling.repetition_penalty
        row_V[seen] = torch.where(scores < 0, scores * by, scores / by)
    if request.output and (sampling.presence_penalty or sampling.frequency_penalty):
        written = torch.tensor(request.output, device=row_V.device)
        tokens, counts = torch.unique(written, return_counts=True)
        row_V[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    return row_V


def draw(row_V: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """One token, drawn."""
    return torch.multinomial(warped(row_V, sampling).softmax(-1), 1, generator=generator)


def warped(row_V: Tensor, sampling: Sampling) -> Tensor:
    """Logits under temperature, those of tokens that are left out -inf."""
    row_V = row_V / sampling.temperature
    if 0 < sampling.top_k < len(row_V):
        row_V = row_V.masked_fill(row_V < row_V.topk(sampling.top_k).values[-1], -INF)
    if sampling.top_p < 1:
        ascending = row_V.sort()
        out = ascending.values.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        out[-1] = False
        row_V = row_V.masked_fill(out.scatter(0, ascending.indices, out), -INF)
    if sampling.min_p > 0:
        probs = row_V.softmax(-1)
        row_V = row_V.masked_fill(probs < sampling.min_p * probs.max(), -INF)
    return row_V
