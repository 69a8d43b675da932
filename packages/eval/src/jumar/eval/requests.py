"""What a model is asked, and what it answers: log-likelihoods of continuations, texts, log-likelihoods of whole texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from jumar.eval.task import Beams

Kind = Literal["loglikelihood", "generate", "rolling"]


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model.

    context: what stands before; of `rolling` empty
    rest:    the continuation whose log-likelihood is asked for, of `rolling` the whole text; of `generate` empty
    head:    a beginning of the context that other requests have too (the worked examples)
    until, max_new_tokens: of `generate`
    beams:   of `generate`; None: the most probable token after another
    alone:   of the continuation its last token, encoded by itself, is what is scored
    """

    kind: Kind
    context: str
    rest: str = ""
    head: str = ""
    until: tuple[str, ...] = ()
    max_new_tokens: int = 256
    beams: Beams | None = None
    alone: bool = False

    def arguments(self) -> list[Any]:
        """As lm-eval writes them into its samples."""
        if self.kind == "generate":
            how: dict[str, Any] = {"until": list(self.until), "do_sample": False, "max_gen_toks": self.max_new_tokens}
            if self.beams is not None:
                how |= {"num_beams": self.beams.count, "length_penalty": self.beams.length_penalty}
                how |= {"top_k": self.beams.top_k, "top_p": self.beams.top_p}
            return [self.context, how]
        return [self.context, self.rest] if self.kind == "loglikelihood" else [self.rest]


@dataclass(frozen=True, slots=True)
class Response:
    """value: (log-likelihood, whether each token was the most probable one); a text; a log-likelihood.

    truncated: the prompt was longer than the model's context, and lost its beginning
    """

    value: Any
    truncated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How a checkpoint is opened; as jumar-infer's options. max_batch: answers at once, None: by the free memory."""

    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None
    tokenizer: Path | None = None
    adapter: Path | None = None
    iteration: str | None = None
    family: str | None = None
    engine: str = "auto"
    tp: int = 1
    pp: int = 1
    max_batch: int | None = None
    cache_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Measure:
    """How long a text is. context: what a model reads and writes at most; None: not known, as of an endpoint."""

    count: Callable[[str], int] = len
    unit: str = "characters"
    context: int | None = None


Done = Callable[[int, Response], None]
"""Is told the number of a request and its response, in whatever order they come."""


class Model(Protocol):
    """What answers: an engine here, or an endpoint elsewhere."""

    def answer(self, requests: Sequence[Request], done: Done) -> None:
        """Answers all requests."""

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """A conversation by the model's chat template, up to where the answer begins. ToolError where there is none."""

    def measure(self) -> Measure:
        """How long texts are for it."""

    def facts(self) -> dict[str, Any]:
        """What the results say of the model: source, arguments, context length."""
