"""The OpenAI API's requests and answers (https://platform.openai.com/docs/api-reference), without HTTP."""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections.abc import Sequence
from math import isnan, nan
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from jumar.infer.conversation import Template
from jumar.infer.engine import Engine
from jumar.infer.rows import strict_json
from jumar.infer.sampling import LogProb, Sampling
from jumar.infer.scheduler import Request
from jumar.schema.errors import ToolError

Json = dict[str, Any]


def _unused(value: Any) -> Any:
    if value:
        raise ValueError("this server does not obey it; leave it out")
    return value


Nothing = Annotated[Any, AfterValidator(_unused)]
"""Clients may send it empty, to say that they do not use it."""

Alternatives = Annotated[int, Field(ge=0, le=100)]
UNIONS = {
    "prompt": "expected a text, a list of texts, a list of token ids, or a list of such lists",
    "stop": "expected a text or a list of texts",
}


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
    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False
    include_obfuscation: bool = False


class Asked(BaseModel):
    """What completions and chat completions have in common. Those that OpenAI has not are vLLM's."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())
    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    logit_bias: Nothing = None
    # of no effect on the answer
    user: str | None = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    @model_validator(mode="after")
    def _streams(self) -> Asked:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream: true")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, engine: Engine, default_tokens: int, **more: Any) -> Sampling:
        """Raises Fault and ToolError for a value that means nothing."""
        vocab = engine.decoder.vocab_size
        if bad := [token for token in self.stop_token_ids or () if not 0 <= token < vocab]:
            raise Fault(400, f"token {bad[0]} is outside the vocabulary of {vocab}", param="stop_token_ids")
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
            stop_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
            seed=self.seed,
            **more,
        )


class Completion(Asked):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Alternatives | None = None
    echo: bool = False
    best_of: int | None = None
    suffix: Nothing = None

    @model_validator(mode="after")
    def _all_are_given(self) -> Completion:
        if self.best_of not in (None, self.n or 1):
            raise ValueError(f"best_of is {self.best_of}, and n {self.n or 1}: all answers are given, none is chosen")
        return self

    def echoes(self, engine: Engine, prompts: Sequence[Sequence[int]]) -> list[str]:
        """What each answer begins with: its prompt where that is asked for."""
        texts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if not self.echo or engine.tokenizer is None:
            return ["" for _ in prompts]
        if all(isinstance(text, str) for text in texts):
            return [str(text) for text in texts]
        return [engine.tokenizer.decode(list(prompt), special=True) for prompt in prompts]

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
    top_logprobs: Alternatives | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    modalities: list[Literal["text"]] | None = None

    @model_validator(mode="after")
    def _fits(self) -> ChatCompletion:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs: true")
        if self.tools and self.parallel_tool_calls is False:
            raise ValueError("parallel_tool_calls: false cannot be promised: the template alone says what the model does")
        return self

    def prompt(self, template: Template) -> list[int]:
        """Tokens of the conversation. Raises ToolError for one that the template refuses."""
        tools = None if self.tool_choice == "none" else self.tools
        return template.prompt([_plain(message) for message in self.messages], tools)


def _plain(message: Json) -> Json:
    """A content of parts as one text; null keys are left out, but templates read the content beside calls of tools."""
    message = {key: value for key, value in message.items() if value is not None}
    calls = message.get("tool_calls", [])
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise ToolError("tool_calls of a message is no list of objects", hint="give what the model's calls were")
    if message.get("role") == "assistant" and calls:
        message.setdefault("content", "")
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
    loaded = _load(body)
    try:
        if isinstance(loaded, dict):  # null is as good as nothing
            loaded = {key: value for key, value in loaded.items() if value is not None}
        return kind.model_validate(loaded)
    except ValidationError as fault:
        first = fault.errors(include_url=False)[0]
        where = first["loc"]
        if where and where[0] in UNIONS and first["type"] != "missing":  # pydantic tells of each member of the union
            raise Fault(400, f"{where[0]}: {UNIONS[str(where[0])]}", param=str(where[0])) from None
        param = ".".join(str(part) for part in where) or None
        what = (
            "this server does not know it" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        )
        raise Fault(400, f"{param}: {what}" if param else what, param=param) from None


def _load(body: bytes) -> Any:
    """JSON whose texts are valid Unicode and whose numbers are finite. Raises Fault 400."""
    try:
        loaded = strict_json(body.decode("utf-8-sig"))
        json.dumps(loaded, ensure_ascii=False).encode()
    except UnicodeEncodeError as fault:
        found = fault.object[fault.start].encode("unicode_escape").decode()
        raise Fault(400, f"a text is not valid Unicode: {found} is half a character") from None
    except UnicodeDecodeError:
        raise Fault(400, "the body is not JSON: it is not UTF-8") from None
    except RecursionError:
        raise Fault(400, "the body is not JSON that can be read: it is nested too deeply") from None
    except ValueError as fault:
        raise Fault(400, f"the body is not JSON: {fault}") from None
    return loaded


# --- answers


def usage(requests: Sequence[Request], returns: int) -> Json:
    """Tokens of the prompts, each counted once, and of all answers."""
    asked = sum(len(request.prompt) for request in requests[::returns])
    answered = sum(len(request.output) for request in requests)
    shared = sum(request.shared for request in requests[::returns])
    details = {"prompt_tokens_details": {"cached_tokens": shared}}
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered, **details}


class Answers:
    """Objects of one request to the API: whole, or in chunks.

    returns: answers to each prompt; echoes: what those of each prompt begin with
    """

    def __init__(self, engine: Engine, model: str, *, chat: bool, returns: int = 1, echoes: Sequence[str] = ()) -> None:
        self.engine, self.chat, self.returns, self.echoes = engine, chat, returns, echoes
        self.kind = "chat.completion" if chat else "text_completion"
        self.head = {
            "id": ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": model,
        }
        self._told: dict[int, tuple[int, int]] = {}  # tokens whose log-probabilities were given, and characters of their text
        self._done: set[int] = set()

    def whole(self, requests: Sequence[Request]) -> Json:
        """All answers, done."""
        choices = [self._choice(i, request) for i, request in enumerate(requests)]
        return {**self.head, "object": self.kind, "choices": choices, "usage": usage(requests, self.returns)}

    def _choice(self, index: int, request: Request) -> Json:
        text = self._echo(index) + request.text
        content: Json = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        logs, _ = self.logprobs(request, _entries(request))
        return {"index": index, **content, "logprobs": logs, "finish_reason": request.finish}

    def _echo(self, index: int) -> str:
        return self.echoes[index // self.returns] if self.echoes else ""

    def first(self, requests: Sequence[Request]) -> list[Json]:
        """The chunks before any text: who speaks."""
        if not self.chat:
            return []
        return [self._chunk(i, {"delta": {"role": "assistant", "content": ""}}, None) for i in range(len(requests))]

    def chunks(self, requests: Sequence[Request]) -> list[Json]:
        """What is new since the last call."""
        out = []
        for i, request in enumerate(requests):
            if i in self._done:
                continue
            assert request.stream is not None
            done = request.finish is not None
            text = request.stream.take(last=done)
            if text or done:
                text = text if i in self._told else self._echo(i) + text
                count, offset = self._told.get(i, (0, 0))
                entries = _entries(request)[count:]  # once: the engine's thread may add to them at any time
                logs, offset = self.logprobs(request, entries, offset)
                self._told[i] = count + len(entries), offset
                if done:
                    self._done.add(i)
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

    def logprobs(self, request: Request, entries: Sequence[LogProb], offset: int = 0) -> tuple[Json | None, int]:
        """Those of tokens, an answer's or an echoed prompt's, in the form of the endpoint; and where the next token begins.

        offset: characters before the first of them
        """
        if request.sampling.logprobs is None:
            return None, 0
        if self.chat:
            return {"content": [self._chat_logprob(entry) for entry in entries]}, 0
        tokens = [self._token(entry.token) for entry in entries]
        *offsets, after = itertools.accumulate(map(len, tokens), initial=offset)
        found = {
            "text_offset": offsets,
            "tokens": tokens,
            "token_logprobs": [None if isnan(entry.logprob) else entry.logprob for entry in entries],
            "top_logprobs": [
                None if isnan(entry.logprob) else {self._token(token): value for token, value in entry.top} for entry in entries
            ],
        }
        return found, after

    def _token(self, token: int) -> str:
        return self.engine.tokenizer.token(token) if self.engine.tokenizer is not None else f"token_id:{token}"

    def _chat_logprob(self, entry: LogProb) -> Json:
        def one(token: int, value: float) -> Json:
            text = self._token(token)
            return {"token": text, "logprob": value, "bytes": list(text.encode())}

        return {**one(entry.token, entry.logprob), "top_logprobs": [one(*pair) for pair in entry.top]}


def _entries(request: Request) -> list[LogProb]:
    """Of an echoed prompt's tokens, the first of which nothing comes before, and of the answer's."""
    if request.scored is None:
        return request.logprobs
    return [LogProb(request.prompt[0], nan), *request.scores, *request.logprobs]
