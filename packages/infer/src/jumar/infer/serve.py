"""jumar-infer serve: an OpenAI-compatible server with a small chat page."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import hmac
import json
import logging
import math
import signal
import socket
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import FrameType
from typing import Any

from jumar.infer.conversation import Template
from jumar.infer.engine import Engine
from jumar.infer.generate import with_stops
from jumar.infer.openai_api import Answers, Asked, ChatCompletion, Completion, Fault, Json, parse
from jumar.infer.sampling import Sampling
from jumar.infer.service import LOOK_S, Ask, Ending, EngineStopped, QueueFull, Service, TooSlow, stopped
from jumar.schema.cli import say
from jumar.schema.errors import Exit, ToolError

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
    from starlette.requests import ClientDisconnect
except ImportError as missing:
    raise ToolError(f"the server needs {missing.name}", hint="pip install 'jumar-infer[serve]'", code=Exit.ENVIRONMENT) from None

LOOPBACK = ("127.0.0.1", "::1")
GRACE_S = 2
DEFAULT_TOKENS = 1024
BACKLOG = 2048  # uvicorn's


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the server behaves.

    max_tokens:  of an answer; where a request does not say, at most DEFAULT_TOKENS of them
    max_returns: answers to one request, over all of its prompts
    timeout_s:   for a whole answer; drain_s: for all answers at the end

    Raises ToolError (2) for a time that is not finite.
    """

    name: str
    keys: tuple[str, ...] = ()
    max_body_bytes: int = 4 << 20
    max_tokens: int = 4096
    max_returns: int = 64
    timeout_s: float = 600.0
    drain_s: float = 60.0

    def __post_init__(self) -> None:
        for option, value in (("--timeout-s", self.timeout_s), ("--drain-s", self.drain_s)):
            if not math.isfinite(value):
                raise ToolError(f"{option} is {value}", hint=f"give seconds: {option} 86400", code=Exit.USAGE)


def read_keys(path: Path | None) -> tuple[str, ...]:
    """Bearer keys, one a line. Raises ToolError (3) for a file without any."""
    if path is None:
        return ()
    try:
        keys = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as fault:
        why = getattr(fault, "strerror", None) or fault
        raise ToolError(f"{path} cannot be read: {why}", hint="give a file with one key a line") from None
    if not keys:
        raise ToolError(f"{path} has no key", hint="write one key a line")
    return keys


def bound(host: str, port: int) -> socket.socket:
    """A socket that holds its port, and does not listen yet. Raises ToolError (4) where that is not possible."""
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except (OSError, OverflowError) as fault:
        found.close()
        raise _no_port(host, port, fault) from None
    return found


def _no_port(host: str, port: int, fault: Exception) -> ToolError:
    why = getattr(fault, "strerror", None) or fault
    address = isinstance(fault, socket.gaierror) or getattr(fault, "errno", None) == errno.EADDRNOTAVAIL
    hint = "give an address of this machine: --host 127.0.0.1" if address else "choose another: --port 8001"
    return ToolError(f"cannot listen on {host} port {port}: {why}", hint=hint, code=Exit.ENVIRONMENT)


class App:
    """The routes, over a service."""

    def __init__(self, service: Service, template: Template | None, settings: Settings) -> None:
        self.service, self.engine, self.template, self.settings = service, service.engine, template, settings
        self._page = files("jumar.infer").joinpath("page.html").read_text(encoding="utf-8")
        self._page_headers = {"content-security-policy": _policy(self._page), "x-content-type-options": "nosniff"}
        self.api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        for path, handler, method in (
            ("/", self.page, "GET"),
            ("/health", self.health, "GET"),
            ("/metrics", self.metrics, "GET"),
            ("/v1/models", self.models, "GET"),
            ("/v1/models/{name:path}", self.model, "GET"),
            ("/v1/completions", self.completions, "POST"),
            ("/v1/chat/completions", self.chat, "POST"),
        ):
            self.api.add_api_route(path, self._route(handler), methods=[method], response_model=None)
        for status in (404, 405):
            self.api.add_exception_handler(status, self._unknown)

    def _route(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """With the key asked for, every fault told as the API tells it, and the status counted."""

        async def route(request: Request) -> Response:
            try:
                with _as_faults():
                    self._check_key(request)
                    response = await handler(request)
            except Fault as fault:
                response = _faulty(fault)
            return self._counted(response)

        return route

    async def _unknown(self, request: Request, fault: Exception) -> Response:
        status, path = getattr(fault, "status_code", 404), request.url.path
        allowed = (getattr(fault, "headers", None) or {}).get("Allow")
        if status != 405 or allowed is None:
            return self._counted(_faulty(Fault(status, f"there is no {path}")))
        response = _faulty(Fault(status, f"{path} takes {allowed}, not {request.method}"))
        response.headers["allow"] = allowed
        return self._counted(response)

    def _counted(self, response: Response) -> Response:
        counts = self.service.counts.requests
        counts[response.status_code] = counts.get(response.status_code, 0) + 1
        return response

    def _check_key(self, request: Request) -> None:
        if not self.settings.keys or not request.url.path.startswith("/v1/"):
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        known = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in self.settings.keys]
        if scheme.lower() != "bearer" or not any(known):
            raise Fault(401, "the API key is wrong or missing", code="invalid_api_key")

    async def page(self, request: Request) -> Response:
        return HTMLResponse(self._page, headers=self._page_headers)

    async def health(self, request: Request) -> Response:
        broken = self.service.fault is not None
        return JSONResponse({"status": "failed" if broken else "ok"}, 503 if broken else 200)

    async def metrics(self, request: Request) -> Response:
        return PlainTextResponse(self.service.metrics(), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model())

    def _model(self) -> Json:
        return {
            "id": self.settings.name,
            "object": "model",
            "created": 0,
            "owned_by": "jumar",
            "max_model_len": self.engine.context,
        }

    def _check_model(self, name: str) -> None:
        if name != self.settings.name:
            raise Fault(404, f"there is no model {name!r}; here is {self.settings.name!r}", code="model_not_found")

    async def completions(self, request: Request) -> Response:
        asked: Completion = parse(Completion, await self._body(request))
        prompts = asked.prompts(self.engine)
        sampling = self._sampling(asked, least=0 if asked.echo else 1, logprobs=asked.logprobs)
        scored = 0 if asked.echo and asked.logprobs is not None else None
        each = [Ask(prompt, sampling, scored) for prompt in prompts]
        return await self._answer(request, asked, each, chat=False, echoes=asked.echoes(self.engine, prompts))

    async def chat(self, request: Request) -> Response:
        asked: ChatCompletion = parse(ChatCompletion, await self._body(request))
        if self.template is None:
            raise Fault(400, "this model has no chat template: start the server with --template, or use /v1/completions")
        if asked.max_completion_tokens is not None:
            asked.max_tokens = asked.max_completion_tokens
        prompt = asked.prompt(self.template)
        sampling = self._sampling(asked, logprobs=(asked.top_logprobs or 0) if asked.logprobs else None)
        return await self._answer(request, asked, [Ask(prompt, with_stops(sampling, self.template))], chat=True)

    async def _body(self, request: Request) -> bytes:
        most, body = self.settings.max_body_bytes, bytearray()
        pieces = request.stream()
        while len(body) <= most:
            try:
                body += await anext(pieces)
            except StopAsyncIteration:
                return bytes(body)
            except ClientDisconnect:
                raise Fault(499, "the client has gone") from None
        raise Fault(413, f"the body is larger than {most} bytes")

    def _sampling(self, asked: Asked, *, least: int = 1, **more: Any) -> Sampling:
        self._check_model(asked.model)
        if asked.max_tokens is not None and not least <= asked.max_tokens <= self.settings.max_tokens:
            what = f"max_tokens is {asked.max_tokens}, expected {least} to {self.settings.max_tokens}"
            raise Fault(400, what, param="max_tokens")
        return asked.sampling(self.engine, min(self.settings.max_tokens, DEFAULT_TOKENS), **more)

    async def _answer(self, http: Request, asked: Asked, each: list[Ask], *, chat: bool, echoes: Sequence[str] = ()) -> Response:
        returns = asked.n or 1
        if len(each) * returns > self.settings.max_returns:
            what = f"{len(each) * returns} answers are asked for, at most {self.settings.max_returns} are given"
            raise Fault(400, what, param="n")
        answers = Answers(self.engine, self.settings.name, chat=chat, returns=returns, echoes=echoes)
        asks = [one.again(number) for one in each for number in range(returns)]
        stream = self.service.answers(asks, timeout_s=self.settings.timeout_s)
        requests = await anext(stream)
        if asked.stream:
            return StreamingResponse(
                _events(http, stream, answers, requests, with_usage=asked.include_usage), media_type="text/event-stream"
            )
        async with aclosing(stream):
            await self._wait(http, stream)
        return JSONResponse(answers.whole(requests))

    async def _wait(self, http: Request, stream: Any) -> None:
        """Until all are done, or nobody waits any more."""
        looked = time.monotonic()
        async for _ in stream:
            if time.monotonic() - looked > LOOK_S:
                looked = time.monotonic()
                if await http.is_disconnected():
                    raise Fault(499, "the client has gone")


async def _events(http: Request, stream: Any, answers: Answers, requests: Any, *, with_usage: bool) -> AsyncGenerator[str, None]:
    """Server-sent events. When the client goes away the stream is closed: its pages are free again."""
    async with aclosing(stream):
        for chunk in answers.first(requests):
            yield _event(chunk)
        try:
            with _as_faults():
                async for moved in stream:
                    if await http.is_disconnected():  # servers of ASGI 2.4 do not end this by themselves
                        return
                    for chunk in answers.chunks(moved):
                        yield _event(chunk)
        except Fault as fault:
            yield _event(fault.body())
            return
        if with_usage:
            yield _event(answers.last(requests))
        yield "data: [DONE]\n\n"


def _policy(page: str) -> str:
    """Browsers run the page's own script alone, and let it speak with this server alone (https://www.w3.org/TR/CSP3/)."""
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'"
    return f"{allowed}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def _event(value: Json) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _faulty(fault: Fault) -> Response:
    headers = {"retry-after": "1"} if fault.status in (429, 503) else {}
    return JSONResponse(fault.body(), fault.status, headers=headers)


@contextmanager
def _as_faults() -> Generator[None, None, None]:
    """Whatever goes wrong as the API tells it. The traceback of what should not be is for whoever runs the server alone."""
    try:
        yield
    except Fault:
        raise
    except ToolError as fault:
        code = "context_length_exceeded" if "context" in fault.message else None
        raise Fault(400, fault.message, code=code) from None
    except QueueFull:
        raise Fault(429, "too many requests wait; try again later", code="queue_full") from None
    except TooSlow:
        raise Fault(504, "the answer was not done in time", code="timeout") from None
    except RecursionError:
        raise Fault(400, "the request is nested too deeply") from None
    except Ending:
        raise Fault(503, "the server ends, and the answer was not done", code="server_ends") from None
    except EngineStopped:
        raise Fault(500, "the engine has stopped", code="engine_stopped") from None
    except Exception as fault:
        traceback.print_exc()
        raise Fault(500, "the server failed at this; what it was stands in its log") from fault


class Server(uvicorn.Server):
    """uvicorn's server, which after SIGTERM or Ctrl-C returns instead of killing itself with the signal.

    Answers are waited for drain_s; then those who wait for them hear of it, within GRACE_S.
    """

    def __init__(self, app: App) -> None:
        self.service, self.drain_s = app.service, app.settings.drain_s
        most = math.ceil(self.drain_s) + GRACE_S
        more: dict[str, Any] = {"log_config": None, "lifespan": "off", "access_log": False}
        super().__init__(uvicorn.Config(app.api, timeout_graceful_shutdown=most, **more))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drains."""
        timer = asyncio.get_running_loop().call_later(self.drain_s, self._cut)
        await super().shutdown(sockets)
        timer.cancel()
        if self.force_exit:
            self._cut()
            await asyncio.sleep(0.1)  # those who wait are told, if they listen

    def _cut(self) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it would print a traceback for each answer that is cut
        if count := self.service.cut():
            when = "at the second Ctrl-C" if self.force_exit else f"after --drain-s {self.drain_s:g}"
            say("warning", f"{count} answer{'s were' if count > 1 else ' was'} not done {when}, and cut")

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Both drain; a second Ctrl-C waits for nothing."""

        def drain(number: int, frame: FrameType | None) -> None:
            self.handle_exit(number, frame)

        before = {number: signal.signal(number, drain) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(engine: Engine, template: Template | None, settings: Settings, open_socket: socket.socket, *, max_waiting: int) -> None:
    """Listens on a bound socket until SIGTERM or Ctrl-C, then lets answers be finished.

    Raises ToolError if the engine fails on the way: 1, or 4 where memory is short or another process is gone; before it listens
    3 for a model without a tokenizer, 4 for a port that another process listens on.
    """
    engine.needs_tokenizer()
    host, port = open_socket.getsockname()[:2]
    try:
        open_socket.listen(BACKLOG)  # of two that hold a port by SO_REUSEADDR, the second to listen fails here
    except OSError as fault:
        raise _no_port(host, port, fault) from None
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if host not in LOOPBACK and not settings.keys:
        say("warning", f"anybody who reaches {where} can use it: --api-key-file FILE asks for a key")
    service = Service(engine, max_waiting=max_waiting)
    app = App(service, template, settings)
    server = Server(app)
    service.on_fault = lambda: setattr(server, "should_exit", True)
    say("serving", f"{settings.name} at {where} (chat page there; API at {where}/v1); Ctrl-C ends it", "bold cyan")
    server.run(sockets=[open_socket])
    service.stop()
    if service.fault is not None:
        raise stopped(service.fault)
