"""Tasks, samples and options with a fault: told in a line, before a model is opened."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from jumar.eval import cli
from jumar.eval.compare import compare
from jumar.eval.journal import Journal
from jumar.eval.programs import sandbox_for
from jumar.eval.remote import RemoteModel
from jumar.eval.report import write_report
from jumar.eval.run import Settings, evaluate
from jumar.eval.task import load_task
from jumar.schema.errors import Exit, ToolError

QUIZ = {"task": "quiz", "title": "T", "kind": "choice", "metrics": ["acc"], "prompt": "{{ q }}", "choices": ["a", "b"]}
QUIZ |= {"target": "0", "layouts": [{"test": "quiz.jsonl"}]}
WORD = QUIZ | {"kind": "generate", "metrics": ["exact_match"]}


def not_opened() -> Any:
    raise AssertionError("the model was opened before all was known")


def own(folder: Path, task: dict[str, Any]) -> str:
    path = folder / "own.yaml"
    path.write_text(json.dumps(task))
    return str(path)


def fault_of(folder: Path, *tasks: str) -> ToolError:
    with pytest.raises(ToolError) as fault:
        evaluate(not_opened, Settings(tasks=tasks, data=folder))
    return fault.value


# --- tasks


@pytest.mark.parametrize(
    "task, said",
    [
        (WORD | {"answers": [{"name": "a", "find": "("}]}, r"answers\.a\.find is '\(', no regular expression: missing \)"),
        (WORD | {"match": {"ignore": [",", "("]}}, r"match\.ignore is '\(', no regular expression"),
        (WORD | {"answers": [{"name": "a"}, {"name": "b"}, {"name": "a"}]}, "two of its answers have the name 'a'"),
        (WORD | {"max_new_tokens": 0}, "max_new_tokens is 0"),
        (QUIZ | {"metrics": []}, "metrics is empty"),
        (QUIZ | {"shots": -1}, "shots is -1"),
        ({key: value for key, value in QUIZ.items() if key != "target"}, "has a target"),
        *((QUIZ | {"task": name}, "files bear its name") for name in ("", "a/b", "..", ".a", "a b", "a,b", "a\n")),
        *((QUIZ | {"layouts": [{"test": path}]}, "test is") for path in ("/data/a.jsonl", "../a.jsonl", "a/../../b", "")),
        (QUIZ | {"layouts": [{"test": "a.jsonl", "shots": "/a.jsonl"}]}, "shots is '/a.jsonl', and patterns are below"),
    ],
)
def test_a_task_with_a_wrong_value(task: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=said) as fault:
        load_task(own(tmp_path, task))
    assert fault.value.code == Exit.USAGE
    assert fault.value.message.startswith(f"{tmp_path}/own.yaml: ")


@pytest.mark.parametrize("name", ["quiz", "小测", "my-quiz_2", "v1.5", "c++"])
def test_names_that_files_may_have(name: str, tmp_path: Path) -> None:
    assert load_task(own(tmp_path, QUIZ | {"task": name})).task == name


def test_keys_are_mended_in_the_file(tmp_path: Path) -> None:
    """`run` has no --set."""
    wrong = {key: value for key, value in QUIZ.items() if key != "title"} | {"match": {"ignore_case": "perhaps"}}
    with pytest.raises(ToolError, match=r"title is missing, expected str; match\.ignore_case is") as fault:
        load_task(own(tmp_path, wrong))
    assert fault.value.hint == "for example title: NAME, ignore_case: true"


# --- nothing to score


def test_no_task(tmp_path: Path) -> None:
    assert fault_of(tmp_path).code == Exit.USAGE


def test_no_document_is_left(tmp_path: Path) -> None:
    for name in ("quiz", "shots"):
        (tmp_path / f"{name}.jsonl").write_text('{"q": "up?", "kept": false}\n')
    fault = fault_of(
        tmp_path, own(tmp_path, QUIZ | {"layouts": [{"test": "quiz.jsonl", "shots": "shots.jsonl", "only": "kept"}]})
    )
    assert (fault.code, fault.message) == (Exit.INPUT, "quiz: no documents are left")


def test_texts_without_text(tmp_path: Path) -> None:
    (tmp_path / "perplexity").mkdir()
    (tmp_path / "perplexity/a.txt").touch()
    fault = fault_of(tmp_path, "perplexity")
    assert fault.code == Exit.INPUT
    assert "perplexity holds no text" in fault.message
    (tmp_path / "perplexity/b.txt").write_text("The rope")
    with pytest.raises(AssertionError, match="was opened"):  # rows without text are in published files, too
        evaluate(not_opened, Settings(tasks=("perplexity",), data=tmp_path))


# --- samples


def results(out: Path, *lines: object) -> Path:
    out.mkdir()
    (out / "results.json").write_text(json.dumps({"results": {"quiz": {}}, "n-shot": {}, "group_subtasks": {}}))
    if lines:
        (out / "samples_quiz.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out


def sample(number: int) -> dict[str, Any]:
    found = {"doc_id": number, "doc_hash": str(number), "filter": "none", "metrics": ["acc"], "acc": 1.0, "target": "0"}
    return found | {"doc": {}, "filtered_resps": ["a"], "arguments": {"gen_args_0": {"arg_0": "q"}}, "resps": [["a"]]}


@pytest.mark.parametrize(
    "line, said",
    [
        ({"doc_id": 2}, "it lacks .*filter"),
        ({key: value for key, value in sample(2).items() if key != "acc"}, "it lacks acc"),
        ([1], "a list, expected an object"),
        (sample(2) | {"metrics": None}, "metrics is a list"),
        (sample(2) | {"doc_id": [2]}, "doc_id a number"),
    ],
)
def test_a_line_that_lacks_something(line: object, said: str, tmp_path: Path) -> None:
    whole, damaged = results(tmp_path / "a", sample(1), sample(2)), results(tmp_path / "b", sample(1), line)
    file = damaged / "samples_quiz.jsonl"
    for work in (lambda: compare(whole, damaged), lambda: write_report(damaged), lambda: Journal(file, 1)):
        with pytest.raises(ToolError, match=rf"samples_quiz\.jsonl:2 is damaged: .*{said}") as fault:
            work()
        assert fault.value.code == Exit.INPUT
    write_report(whole)
    assert len(Journal(whole / "samples_quiz.jsonl", 1).samples) == 2


def test_samples_that_are_missing_are_named(tmp_path: Path) -> None:
    whole, bare = results(tmp_path / "a", sample(1)), results(tmp_path / "b")
    with pytest.raises(ToolError, match=f"{bare}: samples_quiz.jsonl is missing") as fault:
        compare(whole, bare)
    assert fault.value.code == Exit.INPUT
    both = json.dumps({"results": {"quiz": {}, "poem": {}, "all": {}}, "group_subtasks": {"all": ["quiz", "poem"], "quiz": []}})
    (tmp_path / "a/results.json").write_text(both)
    notes = compare(whole, results(tmp_path / "c", sample(1))).notes
    assert notes == (f"{whole}: samples_poem.jsonl is missing, and its results name poem",)


# --- options and addresses


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["jumar-eval", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_options_without_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    assert (
        sandbox_for([load_task("piqa")], lambda word, text: said.append(f"{word}: {text}"), code=False, unsandboxed=True) is None
    )
    assert said == ["warning: --allow-unsandboxed has no effect: none of the tasks runs programs"]
    code = command(monkeypatch, "run", tmp_path, "--tasks", " , ", "--name", "tiny")
    told = capsys.readouterr().err
    assert code == Exit.USAGE
    assert "--name has no effect" in told
    assert "--tasks names no task" in told
    command(monkeypatch, "run", "http://127.0.0.1:9/v1", "--tasks", "", "--name", "tiny")
    assert "no effect" not in capsys.readouterr().err


@pytest.mark.parametrize("words", [("run", "", "--tasks", "piqa"), ("report", ""), ("list", "--data", "")])
def test_an_empty_path(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, *words) == Exit.USAGE
    assert "a path is empty" in capsys.readouterr().err


def test_an_address_of_another_kind(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, "run", "ftp://x", "--tasks", "piqa") == Exit.USAGE
    assert "http:// or https://" in capsys.readouterr().err


class Nothing(BaseHTTPRequestHandler):
    """404 for all."""

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.send_error(404)


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Nothing)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_address_without_v1(address: str) -> None:
    for given, hint in ((address, f"did you mean {address}/v1?"), (f"{address}/v1", "see the server's own output")):
        with pytest.raises(ToolError, match="404") as fault:
            RemoteModel(given)
        assert fault.value.hint == hint
