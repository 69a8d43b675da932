"""What is typed about an endpoint: options without effect, names, tasks that it cannot answer, processes. Without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from jumar.eval import cli
from jumar.schema.errors import Exit

QUIZ = {"task": "quiz", "title": "T", "kind": "generate", "metrics": ["exact_match"], "prompt": "{{ q }}", "target": "'up'"}
QUIZ |= {"layouts": [{"test": "quiz.jsonl"}]}
COUNT = 12


class Upward(BaseHTTPRequestHandler):
    """Answers "up" to everything."""

    names: ClassVar[list[str]]
    asked: ClassVar[list[str]]

    def log_message(self, *args: Any) -> None:
        pass

    def reply(self, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.reply({"data": [{"id": name} for name in self.names]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(f"{body['model']}: {body['prompt']}")
        self.reply({"choices": [{"text": "up"}]})


@pytest.fixture
def served() -> Iterator[tuple[str, type[Upward]]]:
    handler = type("Handler", (Upward,), {"names": ["first"], "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def quiz(tmp_path: Path) -> list[str]:
    """The options that ask for a task of a dozen documents."""
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps({"q": f"{i}?"}) + "\n" for i in range(COUNT)))
    (tmp_path / "quiz.yaml").write_text(json.dumps(QUIZ))
    return ["--tasks", str(tmp_path / "quiz.yaml"), "--data", str(tmp_path)]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command: (exit code, what it says on stderr)."""

    def run(*words: object) -> tuple[int | str | None, str]:
        monkeypatch.setattr(sys, "argv", ["jumar-eval", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capsys.readouterr().err

    return run


def test_options_of_checkpoints_are_without_effect(served: tuple[str, type[Upward]], quiz: list[str], typed: Any) -> None:
    code, said = typed("run", served[0], *quiz, "--device", "cpu", "--dtype", "bf16", "--cache-tokens", "64")
    assert code in (0, None), said
    assert said.count("warning: ") == 1
    assert "without effect: --device, --dtype, --cache-tokens; of checkpoints, and MODEL is an endpoint" in said
    assert "warning" not in typed("run", served[0], *quiz, "--device", "auto", "--batch", "4")[1]


def test_options_that_no_task_heeds(served: tuple[str, type[Upward]], quiz: list[str], typed: Any, tmp_path: Path) -> None:
    choice = QUIZ | {"kind": "choice", "metrics": ["acc"], "choices": ["up", "down"], "target": "0"}
    rolling = QUIZ | {"kind": "rolling", "metrics": ["bits_per_byte"]}
    for task, words, told in (
        (choice, ["--max-new-tokens", "3"], "--max-new-tokens has no effect: none of the tasks asks for texts"),
        (rolling, ["--shots", "2"], "--shots has no effect: the tasks score texts as they are"),
        (rolling, ["--system", "Be brief."], "--system has no effect"),
        (QUIZ, ["--max-new-tokens", "3"], ""),
    ):
        (tmp_path / "quiz.yaml").write_text(json.dumps(task))
        _, said = typed("run", served[0], *quiz, *words)
        assert told in said
        assert said.count("no effect") == bool(told)


def test_the_model_that_answers_is_a_setting(
    served: tuple[str, type[Upward]], quiz: list[str], typed: Any, tmp_path: Path
) -> None:
    """By the name that the server has for it, typed or not."""
    url, handler = served
    words = ["run", url, *quiz, "-o", tmp_path / "out"]
    assert typed(*words)[0] in (0, None)
    assert typed(*words, "--resume", "--name", "first")[0] in (0, None)
    assert len(handler.asked) == COUNT  # of the second run none
    code, said = typed(*words, "--resume", "--name", "second")
    assert code == Exit.USAGE
    assert 'was begun with other settings: served ("first", now "second")' in " ".join(said.split())
    handler.names = ["second"]
    code, said = typed(*words, "--resume")
    assert code == Exit.USAGE
    assert "other settings: served" in said
    assert len(handler.asked) == COUNT
    code, said = typed(*words, "--resume", "--limit", "3")
    assert "limit (null, now 3)" in " ".join(said.split())


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"kind": "choice", "metrics": ["acc"], "choices": ["a", "b"], "target": "0", "alone": True}, "a word by itself"),
        ({"beams": {"count": 2}, "until": []}, "answers by beam search, which an endpoint does not give"),
    ],
)
def test_what_an_endpoint_does_not_answer_is_refused_first(
    keys: dict[str, Any], said: str, served: tuple[str, type[Upward]], quiz: list[str], typed: Any, tmp_path: Path
) -> None:
    (tmp_path / "quiz.yaml").write_text(json.dumps(QUIZ | keys))
    code, told = typed("run", served[0], *quiz, "-o", tmp_path / "out")
    assert code == Exit.USAGE
    assert "quiz: " in told
    assert said in " ".join(told.split())
    assert "score the checkpoint itself" in told
    assert not served[1].asked
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_share_what_is_asked(served: tuple[str, type[Upward]], quiz: list[str], tmp_path: Path) -> None:
    """torchrun starts two: each document is asked for once, by either, and one tells of it."""
    pytest.importorskip("torch")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "jumar.eval"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    words = ["run", served[0], *quiz, "-o", str(tmp_path / "out")]
    done = subprocess.run([*start, *words], capture_output=True, text=True, timeout=280, env=environ, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("exact_match") == 1
    assert sorted(served[1].asked) == sorted(f"first: {i}?" for i in range(COUNT))
    assert json.loads((tmp_path / "out/results.json").read_text())["results"]["quiz"]["exact_match,none"] == 1
