"""The server, with the official client: what it answers, what it refuses, who goes away, how it ends."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

import infer_models
from jumar.infer import Engine, Sampling
from jumar.infer.conversation import Template, open_template
from jumar.infer.openai_api import ChatCompletion, parse
from jumar.infer.service import Service
from jumar.schema.errors import Exit, ToolError
from serving import KEY, Running, start

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose model never ends an answer by itself, with room for four at a time."""
    home = tmp_path_factory.mktemp("server")
    infer_models.llama_with_tokenizer(home / "hf", max_position_embeddings=4096)
    (home / "hf/generation_config.json").write_text('{"eos_token_id": []}')
    running = start(home / "hf", home, "--max-batch", "4", "--cache-tokens", "8192", "--max-body-mb", "1", "--max-waiting", "40")
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture(scope="module")
def direct(server: Running) -> Engine:
    return Engine.open(server.hf, device="cpu")


def answer(direct: Engine, messages: list[dict], count: int) -> str:
    assert direct.tokenizer is not None
    prompt = open_template(direct.tokenizer).prompt(messages)
    return direct.generate([prompt], Sampling(max_new_tokens=count))[0].text


def test_chat(server: Running, direct: Engine) -> None:
    assert [m.id for m in server.client.models.list()] == ["tiny"]
    assert server.client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other/one'"):
        server.client.models.retrieve("other/one")
    assert httpx.get(f"{server.url}/v1/models", headers={"authorization": f"bearer {KEY}"}).status_code == 200
    done = server.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=12, logprobs=True, top_logprobs=2)
    (choice,) = done.choices
    assert choice.message.content == answer(direct, HELLO, 12)
    assert (choice.finish_reason, done.usage.completion_tokens) == ("length", 12)
    assert len(choice.logprobs.content) == 12
    assert all(entry.top_logprobs[0].logprob == entry.logprob for entry in choice.logprobs.content)
    parts = [{"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}]
    again = server.client.chat.completions.create(model="tiny", messages=parts, max_completion_tokens=12)
    assert again.choices[0].message.content == choice.message.content


def test_chat_in_pieces(server: Running, direct: Engine) -> None:
    words = dict(model="tiny", messages=HELLO, max_tokens=30, stream=True, stream_options={"include_usage": True})
    chunks = list(server.client.chat.completions.create(**words))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer(direct, HELLO, 30)
    assert len(chunks) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 30


def test_completions(server: Running, direct: Engine) -> None:
    prompts = ["the rope", "a"]
    expected = [r.text for r in direct.generate(prompts, Sampling(max_new_tokens=10))]
    done = server.client.completions.create(model="tiny", prompt=prompts, max_tokens=10, logprobs=1)
    assert [c.text for c in done.choices] == expected
    assert [len(c.logprobs.tokens) for c in done.choices] == [10, 10]
    ids = direct.encode("the rope")
    assert server.client.completions.create(model="tiny", prompt=ids, max_tokens=10).choices[0].text == expected[0]
    stop = expected[0][2:4]
    cut = server.client.completions.create(model="tiny", prompt="the rope", max_tokens=10, stop=[stop])
    assert (cut.choices[0].text, cut.choices[0].finish_reason) == (expected[0][: expected[0].find(stop)], "stop")


def test_echo_scores_the_prompt(server: Running, direct: Engine) -> None:
    """As harnesses ask for log-probabilities: one token more, or none."""
    ids = direct.encode("the rope holds")
    (scored,) = direct.score([(ids[:1], ids[1:])])
    more = direct.generate([ids], Sampling(max_new_tokens=3, logprobs=2))[0]
    expected = [entry.logprob for entry in scored.scores]
    for prompt in ("the rope holds", ids):
        asked = dict(model="tiny", prompt=prompt, logprobs=2, echo=True)
        none = server.client.completions.create(**asked, max_tokens=0)
        assert (none.choices[0].text, none.usage.completion_tokens) == ("the rope holds", 0)
        assert none.choices[0].logprobs.token_logprobs[0] is none.choices[0].logprobs.top_logprobs[0] is None
        assert none.choices[0].logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
        some = server.client.completions.create(**asked, max_tokens=3)
        logs = some.choices[0].logprobs
        assert some.choices[0].text == "the rope holds" + more.text
        assert logs.token_logprobs[1:] == pytest.approx([*expected, *(entry.logprob for entry in more.logprobs)], abs=1e-4)
        assert all(max(top.values()) >= value for top, value in zip(logs.top_logprobs[1:], logs.token_logprobs[1:], strict=True))
        assert [len(top) for top in logs.top_logprobs[1:]] == [2] * (len(ids) + 2)
        assert [some.choices[0].text[at:][: len(token)] for at, token in zip(logs.text_offset, logs.tokens, strict=True)][
            : len(ids)
        ] == logs.tokens[: len(ids)]
        chunks = [chunk.choices[0] for chunk in server.client.completions.create(**asked, max_tokens=3, stream=True)]
        assert "".join(chunk.text for chunk in chunks) == some.choices[0].text
        assert [value for chunk in chunks for value in chunk.logprobs.token_logprobs] == logs.token_logprobs
    plain = server.client.completions.create(model="tiny", prompt=["the rope", "a"], echo=True, max_tokens=1, n=2, temperature=1)
    assert [choice.text.startswith(text) for choice, text in zip(plain.choices, ["the rope"] * 2 + ["a"] * 2, strict=True)]
    assert plain.choices[0].logprobs is None


def test_seeds_and_several_answers(server: Running) -> None:
    words = dict(model="tiny", messages=HELLO, max_tokens=8, temperature=1.5, seed=3, n=3)
    first, second = (server.client.chat.completions.create(**words) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert len(set(texts)) == 3
    streamed = ["", "", ""]
    for chunk in server.client.chat.completions.create(**words, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


def test_many_at_once(server: Running, direct: Engine) -> None:
    talks = [[{"role": "user", "content": f"hello {i}"}] for i in range(32)]
    expected = [answer(direct, talk, 20) for talk in talks]
    assert len(set(expected)) > 16

    def one(i: int) -> str:
        if i % 2:
            stream = server.client.chat.completions.create(model="tiny", messages=talks[i], max_tokens=20, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        return server.client.chat.completions.create(model="tiny", messages=talks[i], max_tokens=20).choices[0].message.content

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        assert list(pool.map(one, range(32))) == expected
    server.settles()


def test_what_is_refused(server: Running) -> None:
    good = {"model": "tiny", "messages": HELLO, "max_tokens": 2}
    for body, status, says in (
        (b"{", 400, "not JSON"),
        (b"[" * 100000, 400, "not JSON"),
        (b"[]", 400, "valid"),
        (b'{"model": "\xed\xa0\x80"}', 400, "not JSON"),
        ({**good, "model": "\ud800"}, 400, "not valid Unicode: \\ud800"),
        ({**good, "\udfff": 1}, 400, "not valid Unicode"),
        ({**good, "messages": [{"role": "user", "content": "Hello \udc00"}]}, 400, "not valid Unicode: \\udc00"),
        ({**good, "model": "gpt-x"}, 404, "no model"),
        ({**good, "messages": []}, 400, "messages"),
        ({**good, "messages": [{"role": "nobody", "content": "x"}]}, 400, "nobody"),
        ({**good, "temperature": "hot"}, 400, "temperature"),
        ({**good, "temperature": -1}, 400, "temperature"),
        ({**good, "temperature": 1e-300}, 400, "temperature is 1e-300, expected 0, or from 1e-05 to 1000"),
        (b'{"temperature": 1e999}', 400, "1e999 is no number that JSON can hold"),
        ({**good, "top_p": float("nan")}, 400, "NaN"),
        ({**good, "repetition_penalty": 1e300}, 400, "repetition_penalty"),
        ({**good, "seed": 2**63 - 1}, 400, "seed"),
        ({**good, "max_tokens": 0}, 400, "max_tokens"),
        ({**good, "max_tokens": "2"}, 400, "max_tokens: "),
        ({**good, "max_tokens": True}, 400, "max_tokens: "),
        ({**good, "stream": "yes"}, 400, "stream: "),
        ({**good, "stream": True, "stream_options": {"include_usage": "yes"}}, 400, "stream_options.include_usage: "),
        ({**good, "stop_token_ids": [99999999]}, 400, "token 99999999 is outside"),
        ({**good, "logprobs": True, "top_logprobs": 101}, 400, "top_logprobs: "),
        ({**good, "stop": [1]}, 400, "stop: expected a text or a list of texts"),
        ({**good, "n": 1000}, 400, "at most 64"),
        ({**good, "logit_bias": {"1": 2}}, 400, "logit_bias"),
        ({**good, "abacus": 1}, 400, "abacus: this server does not know it"),
        ({**good, "functions": []}, 400, "functions"),
        ({**good, "response_format": {"type": "json_object"}}, 400, "response_format"),
        ({**good, "tool_choice": "required"}, 400, "tool_choice"),
        ({**good, "tools": [{}], "parallel_tool_calls": False}, 400, "parallel_tool_calls"),
        ({**good, "stream_options": {"include_usage": True}}, 400, "stream_options goes with stream"),
        ({**good, "top_logprobs": 2}, 400, "top_logprobs goes with"),
        ({**good, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400, "not text"),
        ({**good, "messages": [{"role": "assistant", "content": "x", "tool_calls": 3}]}, 400, "tool_calls"),
        ({**good, "messages": [{"role": "user", "content": "x" * 5000}]}, 400, "context"),
        (b" " * (2 << 20), 413, "larger"),
    ):
        response = server.post(body)
        assert response.status_code == status, response.text
        assert says in response.json()["error"]["message"]
    for body, says in (
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": [[1], ["a"]]}, "prompt"),
        ({"prompt": [999]}, "outside the vocabulary"),
        ({"prompt": [True]}, "prompt: expected a text, a list of texts"),
        ({"prompt": "a\ud800"}, "not valid Unicode"),
        ({"logprobs": True}, "logprobs: "),
        ({"prompt": []}, "empty"),
    ):
        response = server.post({"model": "tiny", "prompt": "a", "max_tokens": 1, **body}, "completions")
        assert (response.status_code, says in response.json()["error"]["message"]) == (400, True), response.text
    assert server.post(good, key="wrong").status_code == 401
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    assert httpx.get(f"{server.url}/nowhere").json()["error"]["type"] == "invalid_request_error"
    wrong_method = httpx.get(f"{server.url}/v1/completions")
    assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "POST")
    assert wrong_method.json()["error"]["message"] == "/v1/completions takes POST, not GET"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.BadRequestError, match="context"):
        server.client.completions.create(model="tiny", prompt="x" * 5000)
    assert server.post(good).status_code == 200


def test_what_clients_send_though_they_do_not_use_it(server: Running) -> None:
    common = {"model": "tiny", "max_tokens": 2, "user": "me", "n": 1, "logit_bias": {}, "seed": None, "stop": None, "top_p": 1}
    chat = {
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "parallel_tool_calls": True,
        "functions": None,
    }
    message = {"role": "assistant", "content": "yes", "refusal": None, "tool_calls": None}
    talk = server.post({**common, **chat, "messages": [*HELLO, message, *HELLO], "modalities": ["text"]})
    assert talk.status_code == 200, talk.text
    ask = server.post(
        {**common, "prompt": [[1, 2], [3]], "best_of": 1, "suffix": None, "echo": False, "ignore_eos": True}, "completions"
    )
    assert [choice["finish_reason"] for choice in ask.json()["choices"]] == ["length"] * 2
    stop = ask.json()["choices"][0]["text"]
    assert stop
    once = server.post({**common, "prompt": [1, 2], "logprobs": 0}, "completions").json()["choices"][0]["logprobs"]
    assert len(once["tokens"]) == 2


def test_who_goes_away_frees_the_pages(server: Running) -> None:
    """While an answer streams, and while a whole one is waited for."""
    stream = server.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=3000, stream=True)
    next(iter(stream))
    assert server.metric("cache_pages_in_use") > 90
    stream.close()
    server.settles()
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 3000}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {KEY}"}, timeout=0.5)
    server.settles()
    assert server.metric("aborted_total") >= 2


def test_too_many_wait(server: Running) -> None:
    """Four run, forty may wait."""
    body = {"model": "tiny", "prompt": ["a"] * 60, "max_tokens": 300}
    first = server.client.completions.create(**body, stream=True)
    iter(first)
    next(iter(first))
    refused = server.post({"model": "tiny", "prompt": "b", "max_tokens": 1}, "completions")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    first.close()
    server.settles()


def test_a_slow_reader_holds_nobody_up(server: Running) -> None:
    """More than sockets and buffers hold: who does not read stops nobody but himself."""
    more = {"logprobs": True, "top_logprobs": 100, "max_tokens": 1000, "stream": True}
    body = json.dumps({"model": "tiny", "messages": HELLO, **more})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}"
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        slow.sendall(f"{head}\r\n\r\n{body}".encode())
        assert server.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=5).usage.completion_tokens == 5
        received = bytearray()
        while b"[DONE]" not in received[-100:]:
            piece = slow.recv(1 << 16)
            assert piece, received[-1000:]
            received += piece
        assert len(received) > 4 << 20
        assert sum(line.count(b'"top_logprobs": [') for line in received.split(b"\n")) == 1000
    server.settles()


def test_the_page_needs_nothing_else(server: Running) -> None:
    page = httpx.get(server.url).text
    assert "<textarea" in page
    assert "http" not in page.replace('charset="utf-8"', "")


def test_a_port_that_is_taken(server: Running) -> None:
    command = [sys.executable, "-m", "jumar.infer", "serve", str(server.hf), "--port", server.url.rpartition(":")[2]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 4
    assert "cannot listen" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_is_held_while_the_model_is_read(
    hf: Path, infer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of two servers that bound it at once, the second to listen says so before it says that it serves."""
    from jumar.infer.serve import Settings, bound, serve

    with bound("127.0.0.1", 0) as first, bound("127.0.0.1", first.getsockname()[1]) as second:
        first.listen()
        with pytest.raises(ToolError, match=r"cannot listen on 127\.0\.0\.1 port \d+: Address already in use") as fault:
            serve(Engine.open(hf, device="cpu"), None, Settings(name="tiny"), second, max_waiting=1)
        port = first.getsockname()[1]
    assert (fault.value.code, capfd.readouterr().err) == (4, "")

    def read(*_: object) -> Engine:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        raise ToolError("read", hint="no more", code=Exit.INPUT)

    monkeypatch.setattr("jumar.infer.cli.Run.open", read)
    assert infer("serve", hf, "--port", port).code == 3


def test_the_end_of_the_drain_is_told(server: Running, tmp_path: Path) -> None:
    """A stream gets an event with the error, a whole answer 503, the log a line; the time may have fractions."""
    ending = start(server.hf, tmp_path, "--drain-s", "0.5")
    words = dict(model="tiny", messages=HELLO, max_tokens=3500)
    stream = ending.client.chat.completions.create(**words, stream=True)
    next(stream)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        whole = pool.submit(ending.post, words)
        while ending.metric("requests_running") < 2:
            time.sleep(0.01)
        ending.process.send_signal(signal.SIGTERM)
        since = time.monotonic()
        with pytest.raises(openai.APIError, match="the server ends"):
            list(stream)
        assert time.monotonic() - since > 0.4
        assert (whole.result().status_code, whole.result().json()["error"]["code"]) == (503, "server_ends")
    assert ending.process.wait(60) == 0
    (line,) = [line for line in (tmp_path / "log").read_text().splitlines() if not line.startswith(("note:", "serving:"))]
    assert line == "warning: 2 answers were not done after --drain-s 0.5, and cut"


def test_nothing_is_served_without_a_tokenizer(server: Running, infer, tmp_path: Path) -> None:
    silent = tmp_path / "hf"
    silent.mkdir()
    for name in ("config.json", "model.safetensors"):
        (silent / name).symlink_to(server.hf / name)
    done = infer("serve", silent, "--port", 0, "--device", "cpu", "--cache-tokens", 512)
    assert (done.code, "no tokenizer" in done.err, "serving" in done.err) == (3, True, False), done.err


def test_what_nobody_foresaw_is_told_as_the_api_tells_it(hf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The engine raises what it should not, before an answer and within a stream."""
    from jumar.infer.serve import App, Settings

    engine = Engine.open(hf, device="cpu")
    service = Service(engine)
    app = App(service, None, Settings(name="tiny"))

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app.api), base_url="http://x/v1") as client:
            body = {"model": "tiny", "prompt": "a", "max_tokens": 2}
            engine.tokenizer.token = None  # type: ignore[union-attr,method-assign,assignment]
            streamed = await client.post("/completions", json={**body, "logprobs": 1, "stream": True})
            engine.tokenizer.encode = None  # type: ignore[union-attr,method-assign,assignment]
            return [streamed, await client.post("/completions", json=body)]

    try:
        streamed, whole = asyncio.run(ask())
    finally:
        service.stop()
    assert json.loads(streamed.text.removeprefix("data: "))["error"]["type"] == "server_error"
    assert (whole.status_code, whole.json()["error"]["type"]) == (500, "server_error")
    assert 'jumar_http_requests_total{status="500"} 1' in service.metrics()
    assert capfd.readouterr().err.count("Traceback") == 2


def test_times_are_finite() -> None:
    from jumar.infer.serve import Settings

    for name in ("timeout_s", "drain_s"):
        with pytest.raises(ToolError, match=r"--(timeout|drain)-s is inf"):
            Settings(name="tiny", **{name: float("inf")})


def test_templates_find_a_content_beside_calls_of_tools() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    talk = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]
    asked = parse(ChatCompletion, json.dumps({"model": "m", "messages": talk}).encode())
    seen: list[dict] = []

    class Seen(Template):
        def prompt(self, messages: list[dict], tools: list[dict] | None = None) -> list[int]:
            seen.extend(messages)
            return [1]

    asked.prompt(Seen(None, None))
    assert seen[1]["content"] == ""


def test_sigterm_lets_answers_be_finished(server: Running) -> None:
    """The last test of the module: the server is gone then."""
    stream = server.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=300, stream=True)
    chunks = [next(stream)]
    server.process.send_signal(signal.SIGTERM)
    chunks += stream
    assert chunks[-1].choices[0].finish_reason == "length"
    assert server.process.wait(60) == 0
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{server.url}/health")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_after_a_thousand_requests(tmp_path: Path) -> None:
    """RSS is at most that after request 100 and 5 %; no page is held."""
    infer_models.llama_with_tokenizer(tmp_path / "hf", max_position_embeddings=4096)
    server = start(tmp_path / "hf", tmp_path, "--cache-tokens", "4096")

    def rss() -> int:
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{server.process.pid}/status").read_text())[1])

    def one(i: int) -> None:
        match i % 5:
            case 0:
                server.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=10)
            case 1:
                list(server.client.completions.create(model="tiny", prompt=f"{i} the rope", max_tokens=15, stream=True))
            case 2:
                server.post(b"{")
            case 3:
                stream = server.client.completions.create(model="tiny", prompt=f"{i}", max_tokens=500, stream=True)
                next(iter(stream))
                stream.close()
            case _:
                server.client.completions.create(model="tiny", prompt="x" * (i % 200 + 1), max_tokens=5, temperature=1, n=2)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(100)))
        server.settles()
        before = rss()
        list(pool.map(one, range(100, 1000)))
    server.settles()
    after = rss()
    print(f"RSS after request 100: {before} kB, after 1000: {after} kB")
    server.process.terminate()
    assert server.process.wait(60) == 0
    assert after <= before * 1.05
