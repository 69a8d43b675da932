"""An OpenAI-compatible endpoint as the model: what is asked goes over HTTP, several requests at once.

Log-likelihoods need `echo` with `logprobs` in /v1/completions (jumar-infer serve, vLLM, llama.cpp give it). Needs neither torch
nor a tokenizer: the border between context and continuation is found by the offsets of tokens in the text. With `chat`,
conversations go to /v1/chat/completions, which writes them by the model's template and gives texts alone.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import httpx

from jumar.eval.requests import Done, Measure, Request, Response
from jumar.schema.errors import Exit, ToolError

KEY = "OPENAI_API_KEY"
TRIES = 4
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)


class RemoteModel:
    """Answers requests by POST URL/completions. Raises ToolError: 4 where there is no server, 3 for what it refuses.

    name: the model's; None for the only one that the server lists
    chat: contexts are conversations as `render` writes them, for POST URL/chat/completions
    """

    def __init__(
        self, url: str, *, name: str | None = None, at_once: int = 8, chat: bool = False, timeout_s: float = 600
    ) -> None:
        self.url, self.at_once, self.chat = url.rstrip("/"), at_once, chat
        self._empty: list[str] = []
        key = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.Client(headers=headers, timeout=timeout_s, limits=httpx.Limits(max_connections=at_once))
        self.name = name or self._only_model()
        self._counts: dict[str, int] = {}

    def _only_model(self) -> str:
        names = [str(model["id"]) for model in self._send("GET", "models").get("data", [])]
        if len(names) != 1:
            listed = ", ".join(names) or "none"
            raise ToolError(f"{self.url} lists models: {listed}", hint="name one: --name NAME", code=Exit.USAGE)
        return names[0]

    def facts(self) -> dict[str, Any]:
        return {
            "model_source": "openai-chat-completions" if self.chat else "openai-completions",
            "model_name": self.name,
            "model_args": f"base_url={self.url},model={self.name}",
            "batch_size": self.at_once,
            "served": self.name,
            "kinds": ("generate",) if self.chat else ("loglikelihood", "generate", "rolling"),
            "warnings": self._warnings(),
        }

    def _warnings(self) -> list[str]:
        ends = ", ".join(sorted(set(self._empty)))
        return [f"{len(self._empty)} answers had no text, and count as empty (finish_reason: {ends})"] if self._empty else []

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """The conversation itself, as JSON, which is how lm-eval notes it too: the server knows the template."""
        if not self.chat:
            what = "the task asks through the chat template, which an endpoint does not give"
            raise ToolError(what, hint="--chat sends conversations", code=Exit.USAGE)
        return json.dumps(messages, ensure_ascii=False)

    def measure(self) -> Measure:
        """In characters: no endpoint gives its tokenizer."""
        return Measure()

    def answer(self, requests: Sequence[Request], done: Done) -> None:
        """`done` is called in this thread."""
        kinds: dict[str, Callable[[Request], Response]] = {
            "loglikelihood": self._loglikelihood,
            "generate": self._generate,
            "rolling": self._rolling,
        }
        with ThreadPoolExecutor(self.at_once) as pool:
            running = {pool.submit(kinds[request.kind], request): number for number, request in enumerate(requests)}
            try:
                for future in as_completed(running):
                    done(running[future], future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    # --- one request

    def _loglikelihood(self, request: Request) -> Response:
        if request.alone:
            what = "an endpoint does not say which token a word is by itself"
            raise ToolError(what, hint="score the checkpoint itself", code=Exit.USAGE)
        stripped = request.context.rstrip()
        if not stripped:
            raise ToolError("a continuation without context cannot be scored by an endpoint", hint="score the checkpoint itself")
        scored = self._scored(request.context + request.rest, stripped)
        return Response((math.fsum(value for value, _ in scored), all(best for _, best in scored)))

    def _rolling(self, request: Request) -> Response:
        """Without the first token, whose log-probability no endpoint gives."""
        return Response(math.fsum(value for value, _ in self._scored(request.rest, "")))

    def _scored(self, text: str, context: str) -> list[tuple[float, bool]]:
        """(log-probability, whether it was the most probable one) of each token behind the context, but the text's first."""
        answer = self._completion({"prompt": text, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1})
        logs = answer["choices"][0].get("logprobs") or {}
        try:
            tokens, values, offsets, tops = (logs[k] for k in ("tokens", "token_logprobs", "text_offset", "top_logprobs"))
        except KeyError:
            raise ToolError(
                f"{self.url} does not give log-probabilities of prompts",
                hint="it must take echo with logprobs in /v1/completions, as jumar-infer serve does",
            ) from None
        end = _prompt_tokens(answer) or sum(offset < len(text) for offset in offsets)  # behind it is what was added
        parts = context and "\ufffd" in "".join(tokens)  # of characters: offsets count them wrongly
        start = self._count(context) if parts else sum(offset < len(context) for offset in offsets)
        out = [
            (float(value), value >= max((top or {"": value}).values()) - 1e-6)
            for value, top in zip(values[start:end], tops[start:end], strict=True)
            if value is not None
        ]
        if not out:
            raise ToolError(f"{self.url} gave no token behind {context[-60:]!r}", hint="score the checkpoint itself")
        return out

    def _count(self, context: str) -> int:
        """Tokens of a context: asked for once for all its continuations."""
        if context not in self._counts:
            found = _prompt_tokens(self._completion({"prompt": context, "max_tokens": 1, "temperature": 0}))
            if found is None:
                raise ToolError(
                    f"{self.url} does not say how many tokens a prompt has (usage)", hint="score the checkpoint itself"
                )
            self._counts[context] = found
        return self._counts[context]

    def _generate(self, request: Request) -> Response:
        if request.beams is not None:
            raise ToolError(f"{self.url} does not search by beams", hint="score the checkpoint itself", code=Exit.USAGE)
        stops = [stop for stop in request.until if stop]
        asked: dict[str, Any] = {"max_tokens": request.max_new_tokens, "temperature": 0}
        asked |= {"stop": stops[:4]} if stops else {}  # OpenAI's takes four at most
        if self.chat:
            text = self._said(self._completion({"messages": json.loads(request.context), **asked}, "chat/completions"))
        else:
            text = str(self._completion({"prompt": request.context, **asked})["choices"][0].get("text") or "")
        for stop in stops:
            text = text.partition(stop)[0]
        return Response(text)

    def _said(self, answer: dict[str, Any]) -> str:
        """What the assistant wrote, of parts those that are text; none (nothing but reasoning, a call) is counted."""
        message = answer["choices"][0].get("message")
        if not isinstance(message, dict):
            raise ToolError(f"{self.url}/chat/completions gave no message", hint="is it an OpenAI-compatible server?")
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
        if not content:
            self._empty.append(str(answer["choices"][0].get("finish_reason")))
        return str(content or "")

    # --- HTTP

    def _completion(self, body: dict[str, Any], path: str = "completions") -> dict[str, Any]:
        answer = self._send("POST", path, {"model": self.name, **body})
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise ToolError(f"{self.url}/{path} gave no choices", hint="is it an OpenAI-compatible server?")
        return answer

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Tries again where the server is busy, waiting longer each time."""
        url = f"{self.url}/{path}"
        for attempt in range(1, TRIES + 1):
            try:
                answer = self.client.request(method, url, json=body)
            except httpx.HTTPError as fault:
                if attempt == TRIES:
                    what = f"{url}: {fault or type(fault).__name__}"
                    raise ToolError(what, hint="is the server running there?", code=Exit.ENVIRONMENT) from None
            else:
                if answer.status_code not in AGAIN or attempt == TRIES:
                    return self._read(answer, url)
            time.sleep(0.25 * 4**attempt / 4)
        raise AssertionError

    def _read(self, answer: httpx.Response, url: str) -> dict[str, Any]:
        try:
            loaded = answer.json()
        except ValueError:
            loaded = None
        if answer.status_code >= 400:
            said = loaded.get("error", loaded) if isinstance(loaded, dict) else answer.text
            said = said.get("message", said) if isinstance(said, dict) else said
            hint = f"put the key into {KEY}" if answer.status_code in (401, 403) else "see the server's own output"
            if answer.status_code == 404 and httpx.URL(self.url).path in ("", "/"):
                hint = f"did you mean {self.url}/v1?"
            raise ToolError(f"{url}: {answer.status_code}: {str(said)[:500]}", hint=hint)
        if not isinstance(loaded, dict):
            raise ToolError(f"{url} gave no JSON object", hint="is it an OpenAI-compatible server? the address ends in /v1")
        return loaded


def _prompt_tokens(answer: dict[str, Any]) -> int | None:
    found = (answer.get("usage") or {}).get("prompt_tokens")
    return found if isinstance(found, int) else None
