"""An endpoint, which is our engine behind a small HTTP server: the same scores and texts as without it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from eval_files import Maker
from jumar.eval.local import LocalModel, Opening
from jumar.eval.remote import RemoteModel
from jumar.eval.run import Settings, evaluate
from jumar.infer import Sampling
from jumar.schema.errors import Exit, ToolError


class Completions(BaseHTTPRequestHandler):
    """/v1/models and /v1/completions, as OpenAI's API has them; every fifth request is answered with 503 first."""

    model: LocalModel
    lock = threading.Lock()
    count = 0
    echoes = True
    asked: ClassVar[list[dict[str, Any]]] = []
    odd: ClassVar[Any] = None

    def log_message(self, *args: Any) -> None:
        pass

    def reply(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != "Bearer secret":
            self.reply(401, {"error": {"message": "no key"}})
            return
        self.reply(200, {"data": [{"id": "tiny"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        cls = type(self)
        with cls.lock:
            cls.count += 1
            if cls.count % 5 == 0:
                self.reply(503, {"error": {"message": "busy"}})
                return
            cls.asked.append(body)
            if self.path.endswith("/chat/completions"):
                self.reply(200, cls.odd or {"choices": [self.converse(body)]})
                return
            choice = self.echo(body) if body.get("echo") and cls.echoes else self.complete(body)
            count = len(self.model.engine.encode(body["prompt"]))
            self.reply(200, {"choices": [choice], "usage": {"prompt_tokens": count}})

    def converse(self, body: dict[str, Any]) -> dict[str, Any]:
        text = self.complete({**body, "prompt": self.model.render(body["messages"])})["text"]
        return {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        sampling = Sampling(max_new_tokens=body["max_tokens"], stop=tuple(body.get("stop", ())))
        (answer,) = self.model.engine.generate([body["prompt"]], sampling)
        return {"text": answer.text}

    def echo(self, body: dict[str, Any]) -> dict[str, Any]:
        """Log-probabilities of the prompt's tokens, and of one that is added."""
        encoding = self.model.tokenizer.inner.encode(body["prompt"])
        (scored,) = self.model.engine.score([(encoding.ids[:1], encoding.ids[1:])])
        tokens = [self.model.tokenizer.token(token) for token in encoding.ids]
        offsets = [0, *itertools.accumulate(map(len, tokens))]  # which is wrong where a token is a part of a character
        logs = {
            "tokens": [*tokens, "!"],
            "token_logprobs": [None, *(s.logprob for s in scored.scores), -1.0],
            "text_offset": offsets,
            "top_logprobs": [None, *({str(token): value for token, value in s.top} for s in scored.scores), {"!": -1.0}],
        }
        return {"text": body["prompt"] + "!", "logprobs": logs}


@pytest.fixture
def served(hf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Completions]]]:
    handler = type("Handler", (Completions,), {"asked": [], "model": LocalModel(hf, Opening(device="cpu", cache_tokens=4096))})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    yield f"http://127.0.0.1:{server.server_port}/v1", handler
    server.shutdown()
    server.server_close()


def test_an_endpoint_scores_as_the_checkpoint_does(served: tuple[str, type[Completions]], make: Maker, tmp_path: Path) -> None:
    chinese = {"goal": "绳子怎么打结", "sol1": "绕两圈", "sol2": "剪断", "label": 0}
    make.lines("piqa/valid.jsonl", [*make.piqa(), chinese])
    make.boolq()
    make.lines("quiz.jsonl", [{"q": "How far is it"}, {"q": "The rope"}])
    own = {"task": "quiz", "title": "T", "kind": "generate", "metrics": ["begins_with"], "target": "q", "prompt": "{{ q }}"}
    own |= {"layouts": [{"test": "quiz.jsonl"}], "max_new_tokens": 6, "until": ["a", "e", "i", "o", "u"]}
    (tmp_path / "quiz.yaml").write_text(json.dumps(own))
    tasks = ("piqa", "boolq", str(tmp_path / "quiz.yaml"))
    found = {}
    for name, model in (("a", RemoteModel(served[0])), ("b", served[1].model)):
        evaluate(lambda model=model: model, Settings(tasks=tasks, data=make.folder, out=tmp_path / name))
        paths = sorted((tmp_path / name).glob("samples_*"))
        found[name] = [json.loads(line) for path in paths for line in path.open()]
    assert len(found["a"]) == len(found["b"]) == 15
    for ours, theirs in zip(found["a"], found["b"], strict=True):
        for (a,), (b,) in zip(ours["resps"], theirs["resps"], strict=True):
            assert a == (b if isinstance(b, str) else [pytest.approx(b[0], abs=1e-4), b[1]])


def test_what_an_endpoint_does_not_do_is_said(
    served: tuple[str, type[Completions]], make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    make.piqa(count=1)
    settings = Settings(tasks=("piqa",), data=make.folder)
    url, handler = served
    monkeypatch.setattr(handler, "echoes", False)
    with pytest.raises(ToolError, match="does not give log-probabilities of prompts"):
        evaluate(lambda: RemoteModel(url), settings)
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with pytest.raises(ToolError, match="401: no key") as fault:
        RemoteModel(url)
    assert "OPENAI_API_KEY" in str(fault.value.hint)
    monkeypatch.setattr("jumar.eval.remote.TRIES", 1)
    with pytest.raises(ToolError, match=r"127\.0\.0\.1:9/v1/models") as fault:
        RemoteModel("http://127.0.0.1:9/v1")
    assert fault.value.code == Exit.ENVIRONMENT


@pytest.fixture
def quiz(make: Maker, tmp_path: Path) -> Settings:
    """A conversation: a system message, a worked example, a question."""
    make.lines("quiz.jsonl", [{"q": "How far is it"}, {"q": "绳子"}, {"q": "The rope"}])
    own = {"task": "quiz", "title": "T", "kind": "generate", "metrics": ["begins_with"], "target": "q", "prompt": "{{ q }}"}
    own |= {"layouts": [{"test": "quiz.jsonl"}], "max_new_tokens": 6, "until": ["a", "e", "i", "o", "u"], "shots": 1}
    (tmp_path / "quiz.yaml").write_text(json.dumps(own))
    return Settings(tasks=(str(tmp_path / "quiz.yaml"),), data=make.folder, chat=True, system="Be brief.")


def texts(out: Path) -> list[str]:
    """Without half a character at the end, of which servers say nothing."""
    return [json.loads(line)["resps"][0][0].rstrip("\ufffd") for line in (out / "samples_quiz.jsonl").open()]


def test_a_conversation_with_an_endpoint(served: tuple[str, type[Completions]], quiz: Settings, tmp_path: Path) -> None:
    """What is asked, and the same texts as of the checkpoint itself."""
    url, handler = served
    found = evaluate(lambda: RemoteModel(url, chat=True), replace(quiz, out=tmp_path / "a"))
    assert found["config"]["model"] == "openai-chat-completions"
    assert not {"kinds", "warnings"} & found.keys()
    turns = [{"role": "user", "content": "绳子"}, {"role": "assistant", "content": "绳子"}]
    first = {"role": "system", "content": "Be brief."}
    messages = [first, *turns, {"role": "user", "content": "How far is it"}]
    (body,) = [b for b in handler.asked if b["messages"] == messages]
    assert body == {"model": "tiny", "messages": messages, "max_tokens": 6, "temperature": 0, "stop": ["a", "e", "i", "o"]}
    sample = json.loads((tmp_path / "a/samples_quiz.jsonl").open().readline())
    assert json.loads(sample["arguments"]["gen_args_0"]["arg_0"]) == messages
    evaluate(lambda: handler.model, replace(quiz, out=tmp_path / "b"))
    assert texts(tmp_path / "a") == texts(tmp_path / "b")
    assert any(texts(tmp_path / "a"))


def test_log_likelihoods_of_conversations_are_refused_before_anything_is_asked(
    served: tuple[str, type[Completions]], quiz: Settings, make: Maker, tmp_path: Path
) -> None:
    url, handler = served
    make.piqa(count=1)
    with pytest.raises(ToolError, match="piqa: log-likelihoods of conversations") as fault:
        evaluate(lambda: RemoteModel(url, chat=True), replace(quiz, tasks=(*quiz.tasks, "piqa"), out=tmp_path / "out", shots=0))
    assert (fault.value.code, fault.value.hint) == (Exit.USAGE, "leave --chat out, or score the checkpoint itself")
    assert not handler.asked
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "message, found",
    [
        ({"content": "Yes."}, "Y.s."),
        ({"content": [{"type": "text", "text": "Ye"}, {"type": "image"}, {"type": "text", "text": "t"}]}, "Y"),
        ({"content": None, "reasoning_content": "hm"}, ""),
        ({"role": "assistant"}, ""),
    ],
)
def test_messages_of_other_servers(
    message: dict[str, Any], found: str, served: tuple[str, type[Completions]], quiz: Settings, tmp_path: Path
) -> None:
    url, handler = served
    handler.odd = {"choices": [{"message": message, "finish_reason": "length"}]}
    said: list[str] = []
    evaluate(
        lambda: RemoteModel(url, chat=True), replace(quiz, out=tmp_path / "a"), lambda word, text: said.append(f"{word}: {text}")
    )
    assert texts(tmp_path / "a") == [found.partition(".")[0]] * 3
    counted = "warning: 3 answers had no text, and count as empty (finish_reason: length)"
    assert said == ([] if found else [counted])


@pytest.mark.parametrize(
    "odd, what",
    [
        ({"choices": []}, "chat/completions gave no choices"),
        ({"choices": [{"text": "yes"}]}, "chat/completions gave no message"),
        ({"object": "list"}, "chat/completions gave no choices"),
        ([1], "gave no JSON object"),
    ],
)
def test_answers_that_are_none(odd: Any, what: str, served: tuple[str, type[Completions]], quiz: Settings) -> None:
    url, handler = served
    handler.odd = odd
    with pytest.raises(ToolError, match=what):
        evaluate(lambda: RemoteModel(url, chat=True), quiz)


def test_an_endpoint_needs_no_torch(served: tuple[str, type[Completions]], make: Maker) -> None:
    make.piqa(count=2)
    code = f"""
import sys
sys.modules |= dict.fromkeys(("torch", "jumar.infer", "tokenizers", "transformers"))  # importing one of them fails
sys.argv = ["jumar-eval", "run", {served[0]!r}, "--tasks", "piqa", "--data", {str(make.folder)!r}]
from jumar.eval.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("piqa")
