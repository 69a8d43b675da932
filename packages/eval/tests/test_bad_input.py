"""What people have on their disks: files that are damaged, models that lack something, names that are mistyped.

Each is told before hours were spent, or counted."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval_files import Maker
from jumar.eval.data import find
from jumar.eval.files import read_rows
from jumar.eval.items import How, unit_of
from jumar.eval.local import LocalModel, Opening
from jumar.eval.report import write_report
from jumar.eval.run import Settings, evaluate
from jumar.eval.task import load_task
from jumar.schema.errors import Exit, ToolError

QUIZ = {"task": "quiz", "title": "T", "kind": "choice", "metrics": ["acc"], "prompt": "{{ q }}", "choices": "['a', 'b']"}
QUIZ |= {"target": "0", "layouts": [{"test": "quiz.jsonl"}]}


@pytest.fixture(scope="module")
def model(hf: Path) -> LocalModel:
    return LocalModel(hf, Opening(device="cpu", cache_tokens=8192))


def not_opened() -> LocalModel:
    raise AssertionError("the model was opened before all was known")


def own(folder: Path, name: str = "quiz", **changes: Any) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(QUIZ | changes))
    return str(path)


# --- files


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.csv.gz", "a.jsonl.gz"])
def test_an_empty_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ToolError, match=f"{tmp_path}/{name}") as fault:
        read_rows(tmp_path / name)
    assert fault.value.code == Exit.INPUT


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\x00\x00\xff", "q,a\r\nwhere?,up\r\n".encode("utf-16"), b"\xff\xfe"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.parquet", "a.csv.gz"])
def test_a_binary_file(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ToolError, match=f"{tmp_path}/{name}"):
        read_rows(tmp_path / name)


def test_marks_and_line_ends_of_windows(tmp_path: Path) -> None:
    """A byte order mark, CRLF."""
    rows = [{"q": "where?", "a": "up"}, {"q": "绳子", "a": "a, b"}]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["q", "a"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for name, content in (("a.csv", text.getvalue()), ("a.jsonl", lines), ("a.json", json.dumps(rows))):
        for made in (content, "\ufeff" + content, content.replace("\n", "\r\n"), "\ufeff" + content.replace("\n", "\r\n")):
            (tmp_path / name).write_bytes(made.encode())
            assert read_rows(tmp_path / name) == rows


def test_a_torn_archive(tmp_path: Path) -> None:
    """Cut anywhere, a byte changed anywhere: never a part of it, and never anything but a fault that names it."""
    drawn = random.Random(0)
    whole = gzip.compress("".join(json.dumps({"q": drawn.random()}) + "\n" for _ in range(200)).encode())
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(whole)
    assert len(read_rows(path)) == 200
    for at in [1, 5, len(whole) - 9, len(whole) - 1, *drawn.sample(range(10, len(whole) - 10), 60)]:
        for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]):
            path.write_bytes(content)
            if len(content) == len(whole) and at == 5:  # a time in the header
                assert len(read_rows(path)) == 200
                continue
            with pytest.raises(ToolError, match=str(path)) as fault:
                read_rows(path)
            assert "fetch the file again" in str(fault.value.hint)
    path.write_bytes(whole[:-20])
    with pytest.raises(ToolError, match=r"a\.jsonl\.gz is cut or damaged: Compressed file ended") as fault:
        read_rows(path)
    assert fault.value.hint == f"fetch the file again; gzip -t {path} checks it"
    path.write_bytes(b'{"q": 1}\n')
    with pytest.raises(ToolError, match="is damaged, or no gzip") as fault:
        read_rows(path)
    assert str(fault.value.hint).endswith("if it is not compressed, rename it: a.jsonl")


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.csv", "q,a,q\nwhere?,up,down\n", r"a.csv:1: the column 'q' is there twice"),
        ("a.jsonl", '{"q": "a"}\n{"q": "\\ud83d"}\n', r"a.jsonl:2: half a character: U\+D83D"),
        ("a.json", '[{"q": "\\uDE00"}]', r"a.json: half a character: U\+DE00"),
        ("a.jsonl", '{"q": "a"}\n"b"\n', r"a.jsonl:2: a str, expected an object"),
        ("a.jsonl", '{"q": "a"}\n{"q": \n', r"a.jsonl:2: not JSON"),
    ],
)
def test_rows_that_do_not_fit(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ToolError, match=said):
        read_rows(tmp_path / name)


def test_whole_characters_that_json_writes_as_two(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"q": "\\ud83d\\ude00 \\\\ud83d"}\n')
    assert read_rows(tmp_path / "a.jsonl") == [{"q": "😀 \\ud83d"}]


def test_parquet_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ToolError, match="Parquet needs pyarrow") as fault:
        read_rows(tmp_path / "a.parquet")
    assert (fault.value.code, fault.value.hint) == (Exit.ENVIRONMENT, 'pip install "jumar-eval[parquet]"')


# --- documents


def test_a_choice_that_is_missing(make: Maker) -> None:
    """An empty cell is asked as it is, and counted; a row with fewer choices than the task has is refused with its place."""
    made = make.mmlu("x", count=2)
    make.lines("mmlu/x/dev.jsonl", made["dev"])
    shutil.rmtree(make.folder / "mmlu/test")
    shutil.rmtree(make.folder / "mmlu/dev")
    row = made["test"][0]
    make.lines("mmlu/x/test.jsonl", [row | {"choices": ["one", "", "two", "three"]}, row])
    task = load_task("mmlu")
    (unit,) = (unit_of(task, found, How()) for found in find(task, make.folder))
    assert unit.notes == ("1 documents have a choice without text; they are asked as they are",)
    make.lines("mmlu/x/test.jsonl", [row, row | {"choices": ["one", "two", "three"]}])
    with pytest.raises(ToolError, match=r"mmlu_x, document 1: .*list object has no element 3"):
        [unit_of(task, found, How()) for found in find(task, make.folder)]


def test_data_that_is_a_file(make: Maker, model: LocalModel) -> None:
    make.piqa(count=3)
    found = evaluate(lambda: model, Settings(tasks=("piqa",), data=make.folder / "piqa/valid.jsonl"))
    assert found["n-samples"]["piqa"] == {"original": 3, "effective": 3}
    (make.folder / "piqa/valid.txt").touch()
    with pytest.raises(ToolError, match=r"valid.txt is no file of piqa") as fault:
        evaluate(not_opened, Settings(tasks=("piqa",), data=make.folder / "piqa/valid.txt"))
    assert fault.value.hint == "give the directory that holds its data"


def test_a_limit_beyond_the_documents(make: Maker, model: LocalModel) -> None:
    make.piqa(count=3)
    found = evaluate(lambda: model, Settings(tasks=("piqa",), data=make.folder, limit=100))
    assert found["n-samples"]["piqa"] == {"original": 3, "effective": 3}


def test_subjects_in_any_script(make: Maker, model: LocalModel, tmp_path: Path) -> None:
    """Their files, samples, results and pages; a run that is gone on with."""
    names = ["绳子", "горы", "é", "a b"]
    for name in names:
        make.mmlu(name, count=2)
    settings = Settings(tasks=("mmlu",), data=make.folder, out=tmp_path / "out", shots=1)
    found = evaluate(lambda: model, settings)
    assert sorted(found["n-samples"]) == sorted(f"mmlu_{name}" for name in names)
    assert "about 绳子." in (tmp_path / "out/samples_mmlu_绳子.jsonl").read_text(encoding="utf-8")
    again = evaluate(lambda: model, Settings(**{**{k: getattr(settings, k) for k in Settings.__slots__}, "resume": True}))
    assert again["results"] == found["results"]
    assert "горы" in write_report(tmp_path / "out")[0].read_text(encoding="utf-8")


def test_a_subject_whose_name_is_no_text(make: Maker) -> None:
    make.mmlu("x", count=1)
    os.rename(make.folder / "mmlu/test/x_test.csv", os.fsencode(make.folder) + b"/mmlu/test/x\xff_test.csv")
    with pytest.raises(ToolError, match=r"x\\udcff_test.csv': a name that is no text"):
        evaluate(not_opened, Settings(tasks=("mmlu",), data=make.folder))


# --- settings


def test_a_task_that_is_named_twice(make: Maker, tmp_path: Path) -> None:
    make.piqa(count=2)
    make.lines("quiz.jsonl", [{"q": "Up?"}])
    for tasks, name in ((("piqa", "piqa"), "piqa"), ((own(tmp_path), own(tmp_path, "other")), "quiz")):
        with pytest.raises(ToolError, match=f"{name} is asked for twice") as fault:
            evaluate(not_opened, Settings(tasks=tasks, data=make.folder, out=tmp_path / "out"))
        assert fault.value.code == Exit.USAGE
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wanted, said",
    [
        ("piqa.accuracy=0.5", "there are acc,none, acc_norm,none"),
        ("pika.acc=0.5", "there are tasks: mmlu_anatomy, piqa, gsm8k, mmlu, mmlu_stem"),
        ("gsm8k.exact_match,loose=0.5", "there are exact_match,strict-match, exact_match,flexible-extract"),
        ("piqa.acc=half", "mmlu.acc=0.4"),
        ("piqa.acc=nan", "mmlu.acc=0.4"),
        ("acc=0.5", "mmlu.acc=0.4"),
    ],
)
def test_a_bound_of_a_score_that_there_will_not_be(wanted: str, said: str, make: Maker) -> None:
    """Told before the model is opened, not after hours of scoring."""
    make.mmlu("anatomy", count=1)
    make.piqa(count=1)
    make.gsm8k(count=1)
    settings = Settings(tasks=("mmlu", "piqa", "gsm8k"), data=make.folder, fail_under=("mmlu.acc=0", wanted))
    with pytest.raises(ToolError) as fault:
        evaluate(not_opened, settings)
    assert (fault.value.code, fault.value.hint) == (Exit.USAGE, said)
    right = ("mmlu_stem.acc=0", "gsm8k.exact_match=0", "gsm8k.exact_match,strict-match=0", "mmlu_anatomy.acc,none=1")
    with pytest.raises(AssertionError, match="the model was opened"):
        evaluate(not_opened, Settings(tasks=settings.tasks, data=make.folder, fail_under=right))


# --- models


def test_a_model_without_an_end(hf: Path, make: Maker, tmp_path: Path) -> None:
    """Neither its configuration nor its tokenizer names a token that ends a text."""
    shutil.copytree(hf, tmp_path / "hf")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        if (path := tmp_path / "hf" / name).exists():
            kept = {k: v for k, v in json.loads(path.read_text()).items() if not k.startswith(("eos", "bos"))}
            path.write_text(json.dumps(kept))
    endless = LocalModel(tmp_path / "hf", Opening(device="cpu", cache_tokens=8192))
    make.piqa(count=2)
    make.lines("quiz.jsonl", [{"q": "The rope"}])
    make.texts((5,))
    texts = own(tmp_path, kind="generate", metrics=["exact_match"], choices=[], target="'x'", max_new_tokens=5)
    found = evaluate(lambda: endless, Settings(tasks=("piqa", texts), data=make.folder, out=tmp_path / "out"))
    assert 0 <= found["results"]["piqa"]["acc,none"] <= 1
    assert json.loads((tmp_path / "out/samples_quiz.jsonl").read_text())["resps"][0][0]
    with pytest.raises(ToolError, match="names neither bos_token nor eos_token") as fault:
        evaluate(lambda: endless, Settings(tasks=("perplexity",), data=make.folder))
    assert fault.value.hint == "add one of them to tokenizer_config.json"


def test_prompts_that_are_too_long(make: Maker, model: LocalModel, tmp_path: Path) -> None:
    """They lose their beginning, are counted, and said."""
    long = " ".join(["rope"] * 400)
    make.lines("quiz.jsonl", [{"q": "Up?"}, {"q": long}, {"q": long + "?"}])
    texts = own(
        tmp_path, "texts", task="texts", kind="generate", metrics=["exact_match"], choices=[], target="'x'", max_new_tokens=5
    )
    said: list[str] = []
    settings = Settings(tasks=(own(tmp_path), texts), data=make.folder, out=tmp_path / "out")
    found = evaluate(lambda: model, settings, lambda word, text: said.append(f"{word}: {text}"))
    assert found["n-truncated"] == {"quiz": 2, "texts": 2}
    lost = "2 prompts were longer than the model's context, and lost their beginning"
    assert [line for line in said if line.startswith("warning")] == [f"warning: {name}: {lost}" for name in ("quiz", "texts")]
    kept = [json.loads(line).get("truncated", False) for line in (tmp_path / "out/samples_quiz.jsonl").open()]
    assert kept == [False, True, True]
    make.lines("quiz.jsonl", [{"q": "Up?"}])
    with pytest.raises(ToolError, match="1600 new tokens are asked for, and the model's context is 1600"):
        evaluate(lambda: model, Settings(tasks=(own(tmp_path, **{**yaml_of(texts), "max_new_tokens": 1600}),), data=make.folder))
    with pytest.raises(ToolError, match=r"a continuation has \d+ tokens, and the model's context is 1600"):
        evaluate(lambda: model, Settings(tasks=(own(tmp_path, choices=f"['a', '{long}']"),), data=make.folder))


def yaml_of(path: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(Path(path).read_text())
    return found
