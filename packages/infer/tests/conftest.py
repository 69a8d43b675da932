from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import infer_models
from jumar.infer.cli import main


@pytest.fixture(scope="session")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer."""
    directory = tmp_path_factory.mktemp("llama") / "hf"
    infer_models.llama_with_tokenizer(directory)
    return directory


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.out.split("\n") if line]


@pytest.fixture
def infer(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs the command in this process."""

    def run(*words: object, stdin: str | bytes = "") -> Done:
        monkeypatch.setattr(sys, "argv", ["jumar-infer", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode() if isinstance(stdin, str) else stdin)))
        monkeypatch.setenv("COLUMNS", "200")
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        captured = capfd.readouterr()
        return Done(int(end.value.code or 0), captured.out, captured.err)

    return run
