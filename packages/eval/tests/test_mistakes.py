"""Mistakes as one types them: each is answered by what is wrong, where, what was expected, and what to do next. Without torch."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jumar.eval import cli
from jumar.eval.report import write_report
from jumar.eval.requests import Response
from jumar.eval.results import check, rows
from jumar.eval.run import Settings, evaluate
from jumar.schema.errors import Exit, ToolError

QUIZ: dict[str, Any] = {"task": "quiz", "title": "T", "kind": "choice", "metrics": ["acc"], "prompt": "{{ begins }}"}
QUIZ |= {"choices": "goes_on", "target": "right", "layouts": [{"test": "quiz.jsonl"}]}
ROW = {"begins": "A jumar", "goes_on": ["slips back.", "goes up"], "right": 1}
GONE = "http://127.0.0.1:9/v1"  # where nobody answers, and nobody is asked
RUN = ("run", GONE, "--name", "x", "--tasks", "quiz.yaml")


def task(**keys: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / "quiz.yaml").write_text(yaml.safe_dump(QUIZ | keys))


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


MISTAKES: dict[str, tuple[Callable[[Path], object], tuple[str, ...], int, str, str]] = {
    "a key": (task(promt="x"), RUN, 2, "quiz.yaml: unknown key promt", "did you mean prompt?"),
    "a kind": (task(kind="choise"), RUN, 2, 'kind is "choise", expected choice | generate | rolling', "kind: choice"),
    "a metric": (task(metrics=["accuracy"]), RUN, 2, "'accuracy' is no metric of a task of kind choice", "choose among acc, "),
    "no YAML": (text("quiz.yaml", "task: [\n"), RUN, 2, "quiz.yaml: not YAML: .*line 2", "mend the file there"),
    "a list": (text("quiz.yaml", "- a\n"), RUN, 2, "quiz.yaml: a list, expected keys and values", "KEY: VALUE"),
    "no Jinja": (task(prompt="{{ begins"), RUN, 2, "quiz.yaml: prompt: not a Jinja template: '{{ begins'", "mend the task"),
    "no expression": (task(target="right +"), RUN, 2, "quiz.yaml: target: not a Jinja expression: 'right \\+'", "mend the task"),
    "a column": (
        task(target="wrong"), RUN, 3,
        "quiz.yaml: target: quiz, document 0: 'wrong': 'wrong' is undefined \\(the document has: begins, goes_on, right\\)",
        "are these the columns",
    ),
    "choices": (task(choices="begins"), RUN, 3, "quiz, document 0: choices are 'A jumar'", "a list of texts"),
    "a file's name": (task(layouts=[{"test": "quizz.jsonl"}]), RUN, 3, "no data of quiz in .", "expected quizz.jsonl"),
    "a directory": (task(), (*RUN, "--data", "nowhere"), 3, "there is no directory nowhere", "--data DIR"),
    "a line that is cut": (text("quiz.jsonl", '{"begins": "A'), RUN, 3, "quiz.jsonl:1: not JSON", "fetch the file again"),
    "a task's name": (task(), ("run", GONE, "--tasks", "pica"), 2, "there is no task 'pica'", "did you mean piqa?"),
    "a score's name": (task(), (*RUN, "--fail-under", "quiz.f1=1"), 2, "quiz.f1=1: there is no such score", "there are acc,none"),
    "too many": (task(), (*RUN, "--shots", "9"), 2, "9 worked examples are asked for, and there are 0", "--shots 0"),
    "no directory": (task(), (*RUN, "--resume"), 2, "--resume goes on with a directory", "-o"),
    "not ours": (text("out", ""), (*RUN, "-o", "out"), 2, "out is there, and is no run of jumar-eval", "another directory"),
    "no results": (lambda folder: (folder / "o").mkdir(), ("report", "o"), 3, "o holds no results", "the directory of -o"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    make, words, code, said, hint = MISTAKES[name]
    task()(tmp_path)
    (tmp_path / "quiz.jsonl").write_text(json.dumps(ROW) + "\n")
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["jumar-eval", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    error, _, told = " ".join(capsys.readouterr().err.split()).partition(" hint: ")
    assert end.value.code == code
    assert re.search(said, error), error
    assert hint in told


class Stopped:
    """Ctrl-C while it answers."""

    def facts(self) -> dict[str, Any]:
        return {}

    def answer(self, requests: Any, done: Any) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_that_is_stopped_says_how_it_goes_on(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    task()(tmp_path)
    (tmp_path / "quiz.jsonl").write_text(json.dumps(ROW) + "\n")
    said: list[str] = []
    out = tmp_path / "out" if kept else None
    settings = Settings(tasks=(str(tmp_path / "quiz.yaml"),), data=tmp_path, out=out)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Stopped, settings, lambda word, text: said.append(text))  # type: ignore[arg-type]
    goes_on = f"what was answered is in {out}: the same command with --resume goes on"
    assert said == [goes_on if kept else "nothing was kept; with -o OUT a run can be gone on with"]
    if kept:
        monkeypatch.setattr(sys, "argv", ["jumar-eval", "report", str(out)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == Exit.INPUT
        told = " ".join(capsys.readouterr().err.split())
        assert f"{out} holds no results: the run was stopped hint: jumar-eval run ... --resume ends it" in told


class Surprised(Stopped):
    """Finds every text improbable."""

    def answer(self, requests: Any, done: Any) -> None:
        for number, _ in enumerate(requests):
            done(number, Response(-2000.0))


def test_a_perplexity_by_words_of_a_text_without_spaces(tmp_path: Path) -> None:
    """No number holds it: said at the end of the run, which it does not stop."""
    (tmp_path / "perplexity").mkdir()
    (tmp_path / "perplexity/a.txt").write_text("绳" * 900, encoding="utf-8")
    said: list[str] = []
    settings = Settings(tasks=("perplexity",), data=tmp_path, out=tmp_path / "out")
    found = evaluate(Surprised, settings, lambda word, text: said.append(text))  # type: ignore[arg-type]
    assert found["results"]["perplexity"]["word_perplexity,none"] == "N/A"
    assert found["results"]["perplexity"]["bits_per_byte,none"] == pytest.approx(2000 / 2700 / 0.6931472)
    assert said == ["perplexity: word_perplexity is beyond all numbers: are there spaces between words?"]
    assert ("perplexity", "none", "0", "word_perplexity", "N/A", "") in rows(found)
    assert "word_perplexity" in write_report(tmp_path / "out")[0].read_text()
    with pytest.raises(ToolError, match="is N/A, and 9 was asked for") as fault:
        check(found, "perplexity.word_perplexity=9")
    assert fault.value.code == Exit.CHECK_FAILED
