"""Tasks whose answers are programs: what is allowed, what is run, what is written."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from eval_files import Maker
from jumar.eval.metrics import pass_at
from jumar.eval.requests import Done, Request, Response
from jumar.eval.run import Settings, evaluate
from jumar.eval.sandbox.host import Sandbox
from jumar.eval.task import load_task
from jumar.schema.errors import ToolError

HINDERED = Sandbox().hindered()
COMMAND = [sys.executable, "-m", "jumar.eval", "run"]


def problem(number: int, name: str, body: str, cases: str) -> dict[str, Any]:
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def {name}(x):\n    """ {name} of x\n    """\n',
        "entry_point": name,
        "canonical_solution": body,
        "test": f"\n\nMETADATA = {{}}\n\n\ndef check(candidate):\n    {cases}\n",
    }


PROBLEMS = [
    problem(0, "double", "    return 2 * x\n", "assert candidate(2) == 4\n    assert candidate('a') == 'aa'"),
    problem(1, "root", "    return x ** 0.5\n", "assert candidate(9) == 3"),
    problem(2, "first", "    return x[0]\n", "assert candidate([7]) == 7"),
]


class Answering:
    """A model whose answers are known. It is stopped after so many of them."""

    def __init__(self, answer: Callable[[str], str], after: int = 99) -> None:
        self.text, self.left, self.asked = answer, after, list[str]()

    def answer(self, requests: Sequence[Request], done: Done) -> None:
        for number, request in enumerate(requests):
            if not self.left:
                time.sleep(0.2)  # the program before has begun
                raise KeyboardInterrupt
            self.left -= 1
            self.asked.append(request.context)
            done(number, Response(self.text(request.context)))

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        raise AssertionError

    def facts(self) -> dict[str, Any]:
        return {"model_source": "answers"}


def solution(prompt: str) -> str:
    """The right one, but for `root`, which is wrong, and `first`, which needs a terabyte."""
    found = {p["prompt"]: p["canonical_solution"] for p in PROBLEMS}[prompt]
    return {"    return x ** 0.5\n": "    return x\n", "    return x[0]\n": "    return bytearray(1 << 40)\n"}.get(found, found)


@pytest.fixture
def data(make: Maker) -> Path:
    path = make.folder / "humaneval/HumanEval.jsonl.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in PROBLEMS).encode()))
    return make.folder


def settings(data: Path, out: Path | None = None, *, task: str = "humaneval", **words: Any) -> Settings:
    return Settings(tasks=(task,), data=data, out=out, allow_code=True, allow_unsandboxed=HINDERED is not None, **words)


def samples(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples_humaneval.jsonl").open()]


def test_verdicts_are_scores_and_samples(data: Path, tmp_path: Path) -> None:
    found = evaluate(lambda: Answering(solution), settings(data, tmp_path / "out"))
    assert found["results"]["humaneval"]["pass@1,create_test"] == pytest.approx(1 / 3)
    assert found["config"]["programs"] == ("walled in" if HINDERED is None else "not walled in")
    written = samples(tmp_path / "out")
    assert [(s["pass@1"], s["verdicts"][0]["status"]) for s in written] == [(1, "passed"), (0, "failed"), (0, "memory")]
    assert written[1]["verdicts"][0]["error"] == "AssertionError:"


def test_a_run_that_was_stopped_has_its_verdicts(data: Path, tmp_path: Path) -> None:
    """What was answered and run is not asked for again; the same bytes as of a run that was not stopped."""
    evaluate(lambda: Answering(solution), settings(data, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        evaluate(lambda: Answering(solution, after=1), settings(data, tmp_path / "out"))
    again = Answering(solution)
    evaluate(lambda: again, settings(data, tmp_path / "out", resume=True))
    assert again.asked == [p["prompt"] for p in PROBLEMS[1:]]
    name = "samples_humaneval.jsonl"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def mbpp_rows() -> list[dict[str, Any]]:
    def row(number: int) -> dict[str, Any]:
        tests = [f"assert f{number}({i}) == {i + number}" for i in range(3)]
        code = f"def f{number}(x):\r\n  return x + {number}"
        return {"task_id": number, "text": f"Add {number}.", "code": code, "test_list": tests, "test_setup_code": ""}

    return [row(number) for number in (1, 2, 3, 4, 5, 10, 11, 12, 510, 511, 974)]


def test_mbpp_is_its_test_documents_with_three_worked_examples(make: Maker) -> None:
    """By the number of a document, as the paper divides the file."""
    path = make.lines("mbpp/mbpp.jsonl", mbpp_rows())
    for data in (make.folder, path):
        model = Answering(lambda prompt: "\ndef f11(x): return x + 11\n")
        found = evaluate(lambda model=model: model, settings(data, task="mbpp"))
        assert found["results"]["mbpp"]["pass@1,none"] == pytest.approx(1 / 3)
        assert len(model.asked) == 3
        assert [model.asked[0].count(f"Add {number}.") for number in (1, 2, 3, 4, 5, 11)] == [0, 1, 1, 1, 0, 1]
        assert model.asked[0].startswith("You are an expert Python programmer, and here is your task: Add 2. Your code")
        assert model.asked[0].count("\n[BEGIN]\ndef f3(x):\r\n  return x + 3\n[DONE]\n\nYou are") == 1
        assert model.asked[2].endswith("assert f510(2) == 512\n[BEGIN]\n")


def test_mbpp_sanitized_runs_all_tests_with_their_imports(make: Maker) -> None:
    rows = [{**row, "prompt": row["text"], "test_imports": ["import math"]} for row in mbpp_rows()]
    for row in rows:
        row["test_list"] = [*row["test_list"], "assert math.pi > 3", f"assert f{row['task_id']}(-1) > 10"]
    path = make.folder / "mbpp/sanitized-mbpp.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(rows))
    model = Answering(lambda prompt: "def f11(x): return abs(x + 11)\ndef f12(x): return x + 12 if x >= 0 else 0")
    found = evaluate(lambda: model, settings(make.folder, task="mbpp_sanitized"))
    assert found["results"]["mbpp_sanitized"]["pass@1,none"] == 0
    model = Answering(lambda prompt: "def f11(x): return x + 11\ndef f12(x): return x + 12 if x >= 0 else 0")
    found = evaluate(lambda: model, settings(make.folder, task="mbpp_sanitized", limit=2))
    assert found["results"]["mbpp_sanitized"]["pass@1,none"] == 0


def test_rows_without_a_column_are_refused_before_the_model_is_asked(data: Path, make: Maker) -> None:
    make.lines("short/HumanEval.jsonl", [{k: v for k, v in PROBLEMS[0].items() if k != "test"}])
    with pytest.raises(ToolError, match=r"humaneval, document 0: .*'test' is undefined"):
        evaluate(lambda: pytest.fail("opened"), settings(make.folder / "short/HumanEval.jsonl"))
    make.lines("mbpp/mbpp.jsonl", [{"text": "Add."}])
    with pytest.raises(ToolError, match=r"mbpp.jsonl: row 1: .*'task_id' is undefined \(its columns: text\)"):
        evaluate(lambda: pytest.fail("opened"), settings(make.folder, task="mbpp"))


def test_programs_are_off_until_they_are_allowed(data: Path, tmp_path: Path) -> None:
    """Before the model is opened: there is none of this name."""
    typed = [*COMMAND, str(tmp_path / "none"), "--tasks", "humaneval", "--data", str(data)]
    done = subprocess.run(typed, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--allow-code" in done.stderr
    done = subprocess.run([*typed, "--allow-unsandboxed"], capture_output=True, text=True)
    assert done.returncode == 2


class Solutions(BaseHTTPRequestHandler):
    """/v1/models and /v1/completions of a model that knows the solutions."""

    def log_message(self, *args: Any) -> None:
        pass

    def reply(self, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.reply({"data": [{"id": "solutions"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.reply({"choices": [{"text": solution(asked["prompt"])}]})


@pytest.fixture
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Solutions) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


WITHOUT = ["unshare", "--user", "--map-root-user", "sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"', "sh"]
"""Runs a command where no more user namespaces can be made."""


@pytest.mark.skipif(
    HINDERED is not None or shutil.which("unshare") is None, reason="needs namespaces, and unshare to forbid them"
)
def test_without_namespaces_they_are_refused_or_run_aloud(endpoint: str, data: Path) -> None:
    typed = [*COMMAND, endpoint, "--tasks", "humaneval", "--data", str(data), "--allow-code", "--json"]
    done = subprocess.run([*WITHOUT, *typed], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (4, ""), done.stderr
    assert "humaneval: programs cannot be walled in here: [Errno 28] unshare: No space left on device" in done.stderr
    assert "--allow-unsandboxed" in done.stderr
    done = subprocess.run([*WITHOUT, *typed, "--allow-unsandboxed"], capture_output=True, text=True)
    assert "warning: programs are NOT walled in ([Errno 28] unshare" in done.stderr
    bare = json.loads(done.stdout)
    done = subprocess.run([*typed, "--allow-unsandboxed"], capture_output=True, text=True)
    assert not done.stderr, "walls are used where they can be built"
    walled = json.loads(done.stdout)
    assert bare["results"] == walled["results"]
    assert [found["config"]["programs"] for found in (bare, walled)] == ["not walled in", "walled in"]


def test_a_task_of_ones_own_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    head = 'task: own\ntitle: own\nkind: generate\nlayouts: [{test: own.jsonl}]\nprompt: "{{ q }}"\n'
    for more, said in (
        ('metrics: ["pass@1"]\n', "pass@1 is of a program"),
        ('metrics: [exact_match]\nprogram: "{{ answer }}"\n', "a program has pass@1"),
        ('metrics: ["pass@1"]\nprogram: "{{ answer }}"\nseconds: 0\n', "seconds is 0"),
    ):
        path.write_text(head + more)
        with pytest.raises(ToolError, match=said):
            load_task(str(path))


def test_pass_at_k_is_the_share_of_samples_that_hold_one_that_passes() -> None:
    """By counting all choices of k."""
    from itertools import combinations

    for samples, passed, k in ((1, 0, 1), (1, 1, 1), (5, 2, 1), (5, 2, 3), (6, 4, 3), (6, 0, 2)):
        chosen = list(combinations([True] * passed + [False] * (samples - passed), k))
        assert pass_at(k, samples, passed) == pytest.approx(sum(map(any, chosen)) / len(chosen))
