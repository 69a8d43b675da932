"""jumar-eval against jumar-infer serve: the scores of the checkpoint itself, in English and Chinese."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import infer_models
import serving
from eval_files import Maker
from jumar.eval import remote
from jumar.eval.local import LocalModel, Opening
from jumar.eval.run import Settings, evaluate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama") / "tiny"
    infer_models.llama_with_tokenizer(path, max_position_embeddings=512)
    return path


@pytest.fixture
def url(hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    running = serving.start(hf, tmp_path, "--cache-tokens", "4096")
    monkeypatch.setenv(remote.KEY, serving.KEY)
    yield running.url + "/v1"
    running.process.kill()
    running.process.wait()


def test_the_server_scores_as_the_checkpoint_does(hf: Path, url: str, tmp_path: Path) -> None:
    make = Maker(tmp_path / "data")
    make.piqa()
    rows = [{"Question": "登山绳怎么用？", "A": "打结", "B": "割断", "C": "收好", "D": "挂起", "Answer": "A"} for _ in range(2)]
    header = ",".join(rows[0])
    (make.folder / "cmmlu/test").mkdir(parents=True)
    (make.folder / "cmmlu/test/arts.csv").write_text("\n".join([header, *(",".join(row.values()) for row in rows)]) + "\n")
    make.lines("quiz.jsonl", [{"q": "绳子 and"}, {"q": "The rope"}])
    own = {"task": "quiz", "title": "T", "kind": "generate", "metrics": ["begins_with"], "target": "q", "prompt": "{{ q }}"}
    (tmp_path / "quiz.yaml").write_text(json.dumps(own | {"layouts": [{"test": "quiz.jsonl"}], "max_new_tokens": 6}))
    found = {}
    for name, model in (("a", remote.RemoteModel(url)), ("b", LocalModel(hf, Opening(device="cpu", cache_tokens=4096)))):
        tasks = ("piqa", "cmmlu", str(tmp_path / "quiz.yaml"))
        evaluate(lambda model=model: model, Settings(tasks=tasks, data=make.folder, out=tmp_path / name, shots=0))
        found[name] = [json.loads(line) for path in sorted((tmp_path / name).glob("samples_*")) for line in path.open()]
    assert len(found["a"]) == len(found["b"]) == 10
    for ours, theirs in zip(found["a"], found["b"], strict=True):
        for (a,), (b,) in zip(ours["resps"], theirs["resps"], strict=True):
            assert a == (b if isinstance(b, str) else [pytest.approx(b[0], abs=1e-4), b[1]])


def test_conversations_with_the_server(hf: Path, url: str, tmp_path: Path) -> None:
    """--chat: the server's template is the checkpoint's."""
    make = Maker(tmp_path / "data")
    make.lines("quiz.jsonl", [{"q": "绳子 and"}, {"q": "The rope"}, {"q": "Where?"}])
    own = {"task": "quiz", "title": "T", "kind": "generate", "metrics": ["begins_with"], "target": "q", "prompt": "{{ q }}"}
    (tmp_path / "quiz.yaml").write_text(json.dumps(own | {"layouts": [{"test": "quiz.jsonl"}], "max_new_tokens": 12, "shots": 1}))
    found = {}
    local = LocalModel(hf, Opening(device="cpu", cache_tokens=4096))
    for name, model in (("a", remote.RemoteModel(url, chat=True)), ("b", local)):
        settings = Settings(
            tasks=(str(tmp_path / "quiz.yaml"),), data=make.folder, out=tmp_path / name, chat=True, system="Be brief."
        )
        evaluate(lambda model=model: model, settings)
        samples = [json.loads(line) for line in (tmp_path / name / "samples_quiz.jsonl").open()]
        found[name] = [sample["resps"][0][0].rstrip("\ufffd") for sample in samples]
    assert found["a"] == found["b"]
    assert all(found["a"])
