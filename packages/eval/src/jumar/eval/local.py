"""A checkpoint as the model: jumar-infer's engine, in this process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from jumar.eval.answering import Answering, answer_all
from jumar.eval.computing import shares
from jumar.eval.requests import Done, Measure, Opening, Request, Response
from jumar.eval.scoring import Text, score
from jumar.eval.task import Beams
from jumar.infer import Engine, Sampling
from jumar.infer import Request as Asked
from jumar.infer.beams import search
from jumar.infer.conversation import Template, open_template
from jumar.infer.engine import Limits
from jumar.schema.errors import ToolError


class LocalModel:
    """Answers requests by an engine. Raises ToolError as `Engine.open`, and for a checkpoint without a tokenizer."""

    def __init__(self, path: Path, opening: Opening) -> None:
        options = {name: getattr(opening, name) for name in Opening.__slots__ if name not in ("max_batch", "cache_tokens")}
        limits = Limits(max_batch=opening.max_batch and max(opening.max_batch, 2), cache_tokens=opening.cache_tokens)
        self.path, self.engine = path, Engine.open(path, limits, **options)
        if self.engine.tokenizer is None:
            raise ToolError(f"{path} has no tokenizer", hint="give one: --tokenizer DIR")
        self.tokenizer, self.opening = self.engine.tokenizer, opening
        self.context = self.engine.context
        self._context_ids = lru_cache(maxsize=4)(self._encode)  # choices ask for the same context one after another

    def facts(self) -> dict[str, Any]:
        names = ("dtype", "quantize", "adapter", "iteration", "family", "tokenizer")
        said = {name: getattr(self.opening, name) for name in names}
        arguments = {"path": str(self.path), **{k: str(v) for k, v in said.items() if v not in (None, "auto")}}
        return {
            "model_source": "jumar",
            "model_name": self.path.resolve().name,
            "model_args": ",".join(f"{k}={v}" for k, v in arguments.items()),
            "batch_size": self.engine.max_batch,
            "device": self.engine.device.name,
            "max_length": self.context,
            "notes": list(self.engine.notes),
        }

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        return self._template.text(list(messages))

    @cached_property
    def _template(self) -> Template:
        if not self.tokenizer.has_template:
            raise ToolError(f"{self.tokenizer.directory} has no chat template", hint="leave --chat out")
        return open_template(self.tokenizer)

    def measure(self) -> Measure:
        return Measure(lambda text: len(self.tokenizer.encode(text, special=False)), "tokens", self.context)

    def answer(self, requests: Sequence[Request], done: Done) -> None:
        """Requests of one head together; `done` is told as they come."""
        groups: dict[tuple[bool, str], list[tuple[int, Request]]] = {}
        for number, request in enumerate(requests):
            groups.setdefault((request.kind == "generate", request.head), []).append((number, request))
        for (texts, head), numbered in groups.items():
            (self._generate if texts else self._score)(head, numbered, done)

    # --- tokens

    def _encode(self, text: str) -> tuple[int, ...]:
        """As lm-eval: with what the tokenizer puts around a text, but not twice where a text begins with it already."""
        begins = self._prefix_text
        return tuple(self.tokenizer.encode(text, special=not (begins and text.startswith(begins))))

    def _head(self, head: str) -> list[int]:
        """Tokens of what contexts begin with, where that is of use."""
        return list(self._encode(head.rstrip())) if head.strip() and shares(self.engine) else []

    @property
    def prefix(self) -> int:
        """BOS, else EOS: what a text without context comes after. Raises ToolError where the tokenizer names neither."""
        for name in ("bos_token", "eos_token"):
            text = self.tokenizer.special.get(name)
            found = None if text is None else self.tokenizer.inner.token_to_id(text)
            if found is not None:
                return int(found)
        raise ToolError(
            f"{self.tokenizer.directory} names neither bos_token nor eos_token, and a text is to be scored from its beginning",
            hint="add one of them to tokenizer_config.json",
        )

    @property
    def _prefix_text(self) -> str | None:
        return self.tokenizer.special.get("bos_token") or self.tokenizer.special.get("eos_token")

    def pair(self, context: str, rest: str) -> tuple[list[int], list[int]]:
        """Tokens of a context, and of what comes after it, as lm-eval cuts them: spaces at the border belong to the rest."""
        if not context:
            after = self.tokenizer.encode(rest, special=False)
            return ([self.prefix], after) if after[:1] != [self.prefix] else (after[:1], after[1:])
        stripped = context.rstrip()
        if not stripped:  # nothing but spaces: lm-eval would have an empty context
            return self.pair("", context + rest)
        rest = context[len(stripped) :] + rest
        ids = self._context_ids(stripped)
        return list(ids), list(self._encode(stripped + rest))[len(ids) :]

    def alone(self, context: str, rest: str) -> tuple[list[int], list[int]]:
        """Tokens of a context as it stands, and the last token of what comes after it, as it is by itself."""
        return list(self._context_ids(context)), self.tokenizer.encode(rest, special=False)[-1:]

    def windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """A text longer than the context in windows, each token predicted once, with as much before it as fits (lm-eval's)."""
        tokens, size = list(self._encode(text)), self.context
        first = min(size, len(tokens))
        found = [([self.prefix], tokens[:first])] if tokens else []
        for start in range(first, len(tokens), size):
            stop = min(start + size, len(tokens))
            found.append((tokens[stop - size - 1 : start], tokens[start:stop]))
        return found

    # --- log-likelihoods

    def _score(self, head: str, numbered: Sequence[tuple[int, Request]], done: Done) -> None:
        head_ids = self._head(head)
        texts: dict[tuple[int, ...], Text] = {}
        owners: dict[int, list[tuple[int, int]]] = {}  # of a text: (request, window)
        parts: dict[int, list[float | None]] = {}
        cut: set[int] = set()
        for number, request in numbered:
            pair = self.alone if request.alone else self.pair
            pairs = self.windows(request.rest) if request.kind == "rolling" else [pair(request.context, request.rest)]
            parts[number] = [None] * len(pairs)
            if not pairs:
                done(number, Response(0.0))
            for window, (context, rest) in enumerate(pairs):
                if not rest:
                    raise ToolError(f"no token stands behind {request.context[-60:]!r}", hint="give every choice a text")
                if request.kind == "loglikelihood" and (over := len(context) + len(rest) - 1 - self.context) > 0:
                    context = self._cut(context, over, rest)
                    cut.add(number)
                self._join(texts, owners, context, rest, head_ids, (number, window))

        def told(text: Text) -> None:
            for scores, (number, window) in zip(text.scores, owners[id(text)], strict=True):
                total = math.fsum(value for value, _ in scores)
                parts[number][window] = total
                if len(parts[number]) == 1 and requests[number].kind == "loglikelihood":
                    done(number, Response((total, all(best for _, best in scores)), number in cut))
                elif all(p is not None for p in parts[number]):
                    done(number, Response(math.fsum(p for p in parts[number] if p is not None)))

        requests = dict(numbered)
        score(self.engine, head_ids, texts.values(), told)

    def _cut(self, context: list[int], over: int, rest: list[int]) -> list[int]:
        if over >= len(context):
            what = f"a continuation has {len(rest)} tokens, and the model's context is {self.context}"
            raise ToolError(what, hint="measure it as a perplexity, which goes by windows")
        return context[over:]

    def _join(
        self,
        texts: dict[tuple[int, ...], Text],
        owners: dict[int, list[tuple[int, int]]],
        context: list[int],
        rest: list[int],
        head: list[int],
        owner: tuple[int, int],
    ) -> None:
        """A continuation to the text with its context."""
        key = tuple(context)
        text = texts.get(key)
        if text is None:
            text = texts[key] = Text(context, [], common(head, context[:-1]))
            owners[id(text)] = []
        text.rests.append(rest)
        text.scores.append([])
        owners[id(text)].append(owner)

    # --- texts

    def _generate(self, head: str, numbered: Sequence[tuple[int, Request]], done: Done) -> None:
        head_ids = self._head(head)
        owners: dict[int, tuple[int, bool]] = {}
        prompts = []
        for number, request in numbered:
            ids, cut = self.prompt(request.context, request.max_new_tokens)
            if request.beams is not None:
                done(number, Response(self.text(self._best(ids, request.max_new_tokens, request.beams)), cut))
                continue
            sampling = Sampling(max_new_tokens=request.max_new_tokens, stop=request.until, stop_ids=self.stop_ids(request.until))
            asked = self.engine.request(ids, sampling)
            owners[asked.number] = number, cut
            prompts.append(Answering(asked, common(head_ids, asked.prompt[:-1])))

        def told(prompt: Answering) -> None:
            number, truncated = owners[prompt.request.number]
            done(number, Response(self.text(prompt.request), truncated))

        answer_all(self.engine, head_ids, prompts, told, at_once=self.engine.max_batch)

    def _best(self, ids: list[int], max_new_tokens: int, beams: Beams) -> Asked:
        """The answer of a beam search."""
        among = Sampling(top_k=beams.top_k, top_p=beams.top_p)
        how: dict[str, Any] = {"num_beams": beams.count, "length_penalty": beams.length_penalty, "among": among}
        return search(self.engine, ids, Sampling(max_new_tokens=max_new_tokens), **how)[0]

    def prompt(self, context: str, max_new_tokens: int) -> tuple[list[int], bool]:
        """(tokens of a prompt that leave room for its answer, whether its beginning was cut off)."""
        ids, most = list(self._encode(context)), self.context - max_new_tokens
        if most < 1:
            raise ToolError(
                f"{max_new_tokens} new tokens are asked for, and the model's context is {self.context}",
                hint="give the task a smaller max_new_tokens",
            )
        return ids[-most:], len(ids) > most

    def stop_ids(self, until: Sequence[str]) -> tuple[int, ...]:
        """Of stop texts those that are special tokens: an answer is decoded without them."""
        return tuple(self._special[text] for text in until if text in self._special)

    @cached_property
    def _special(self) -> dict[str, int]:
        added = self.tokenizer.inner.get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if token.special}

    def text(self, request: Asked) -> str:
        """Of an answer cut by its length with half a character at the end too, which lm-eval shows as U+FFFD."""
        return self.tokenizer.decode(request.output) if request.finish == "length" else request.text


def common(a: Sequence[object], b: Sequence[object]) -> int:
    """How many tokens, or characters, two texts begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
