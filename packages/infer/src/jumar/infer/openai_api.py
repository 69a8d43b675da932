"""The OpenAI API's requests and answers (https://platform.openai.com/docs/api-reference), without HTTP."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from jumar.infer.conversation import Template
from jumar.infer.engine import Engine
from jumar.infer.sampling import LogProb, Sampling
from jumar.infer.scheduler import Request
from jumar.schema.errors import ToolError

Json = dict[str, Any]


class Fault(Exception):
    """An error as the API tells it. Statuses as OpenAI's: 400 the request, 401 the key, 404, 413, 429 too many, 503, 504."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> Json:
        """The JSON body."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False
    include_obfuscation: bool = False


class Asked(BaseModel):
    """What completions and chat completions have in common. top_k, min_p and repetition_penalty are ours, as in vLLM."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int | None = None
    # of no effect on the answer
    user: str | None = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, engine: Engine, default_tokens: int, **more: Any) -> Sampling:
        """Raises ToolError for a value that means nothing."""
        return engine.defaults.sampling(
            max_new_tokens=self.max_tokens if self.max_tokens is not None else default_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            seed=self.seed,
            **more,
        )


class Completion(Asked):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = None
    echo: Literal[False] = False
    best_of: Literal[1] | None = None
    suffix: None = None
    logit_bias: None = None

    def prompts(self, engine: Engine) -> list[list[int]]:
        """Tokens of each prompt."""
        if isinstance(self.prompt, str):
            return [engine.encode(self.prompt)]
        if all(isinstance(item, int) for item in self.prompt):
            return [[int(item) for item in self.prompt if isinstance(item, int)]]
        return [engine.encode(item) if isinstance(item, str) else list(item) for item in self.prompt if not isinstance(item, int)]


class ChatCompletion(Asked):
    """POST /v1/chat/completions. tools go to the template; what the model makes of them comes back as text."""

    messages: list[Json]
    tools: list[Json] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    logit_bias: None = None

    def prompt(self, template: Template) -> list[int]:
        """Tokens of the conversation. Raises ToolError for one that the template refuses."""
        tools = None if self.tool_choice == "none" else self.tools
        return template.prompt([_plain(message) for message in self.messages], tools)


def _plain(message: Json) -> Json:
    """A content of parts as one text; null keys are left out."""
    message = {key: value for key, value in message.items() if value is not None}
    content = message.get("content")
    if isinstance(content, list):
        if not all(
            isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content
        ):
            raise ToolError("a message has parts that are not text", hint="this server takes text alone")
        message["content"] = "".join(part["text"] for part in content)
    if message.get("role") == "developer":
        message["role"] = "system"
    return message


def parse(kind: type[Asked], body: bytes) -> Any:
    """A request of a kind. Raises Fault 400 naming the field."""
    try:
        loaded = json.loads(body)
    except (ValueError, RecursionError) as fault:
        raise Fault(400, f"the body is not JSON: {fault}") from None
    try:
        return kind.model_validate(loaded)
    except ValidationError as fault:
        first = fault.errors(include_url=False)[0]
        param = ".".join(str(part) for part in first["loc"]) or None
        raise Fault(400, f"{param}: {first['msg']}" if param else first["msg"], param=param) from None


# --- answers


def usage(requests: Sequence[Request], returns: int) -> Json:
    """Tokens of the prompts, each counted once, and of all answers."""
    asked = sum(len(request.prompt) for request in requests[::returns])
    answered = sum(len(request.output) for request in requests)
    shared = sum(request.shared for request in requests[::returns])
    details = {"prompt_tokens_details": {"cached_tokens": shared}}
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered, **details}


class Answers:
    """Objects of one request to the API: whole, or in chunks."""

    def __init__(self, engine: Engine, model: str, *, chat: bool, returns: int) -> None:
        self.engine, self.chat, self.returns = engine, chat, returns
        self.kind = "chat.completion" if chat else "text_completion"
        self.head = {
            "id": ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": model,
        }
        self._told: dict[int, int] = {}

    def whole(self, requests: Sequence[Request]) -> Json:
        """All answers, done."""
        choices = [self._choice(i, request) for i, request in enumerate(requests)]
        return {**self.head, "object": self.kind, "choices": choices, "usage": usage(requests, self.returns)}

    def _choice(self, index: int, request: Request) -> Json:
        content: Json = {"message": {"role": "assistant", "content": request.text}} if self.chat else {"text": request.text}
        return {"index": index, **content, "logprobs": self.logprobs(request), "finish_reason": request.finish}

    def first(self, requests: Sequence[Request]) -> list[Json]:
        """The chunks before any text: who speaks."""
        if not self.chat:
            return []
        return [self._chunk(i, {"delta": {"role": "assistant", "content": ""}}, None) for i in range(len(requests))]

    def chunks(self, requests: Sequence[Request]) -> list[Json]:
        """What is new since the last call."""
        out = []
        for i, request in enumerate(requests):
            if self._told.get(i) == -1:
                continue
            assert request.stream is not None
            done = request.finish is not None
            text = request.stream.take(last=done)
            if text or done:
                logs = self.logprobs(request, self._told.get(i, 0))
                self._told[i] = -1 if done else len(request.logprobs)
                content: Json = {"delta": {"content": text} if text else {}} if self.chat else {"text": text}
                out.append(self._chunk(i, {**content, "logprobs": logs}, request.finish))
        return out

    def last(self, requests: Sequence[Request]) -> Json:
        """The chunk with the usage."""
        kind = self.kind + (".chunk" if self.chat else "")
        return {**self.head, "object": kind, "choices": [], "usage": usage(requests, self.returns)}

    def _chunk(self, index: int, content: Json, finish: str | None) -> Json:
        kind = self.kind + (".chunk" if self.chat else "")
        return {**self.head, "object": kind, "choices": [{"index": index, **content, "finish_reason": finish}]}

    def logprobs(self, request: Request, start: int = 0) -> Json | None:
        """Those of the answer's tokens from `start` on, in the form of the endpoint."""
        if request.sampling.logprobs is None:
            return None
        entries = request.logprobs[start:]
        if self.chat:
            return {"content": [self._chat_logprob(entry) for entry in entries]}
        return {
            "tokens": [self._token(entry.token) for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [{self._token(token): value for token, value in entry.top} for entry in entries],
        }

    def _token(self, token: int) -> str:
        return self.engine.tokenizer.token(token) if self.engine.tokenizer is not None else f"token_id:{token}"

    def _chat_logprob(self, entry: LogProb) -> Json:
        def one(token: int, value: float) -> Json:
            text = self._token(token)
            return {"token": text, "logprob": value, "bytes": list(text.encode())}

        return {**one(entry.token, entry.logprob), "top_logprobs": [one(*pair) for pair in entry.top]}
