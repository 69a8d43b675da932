"""Runs: results, the journal, resuming, exit codes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from eval_files import Maker
from jumar.ckpt_convert import open_checkpoint, plan_megatron, run_plan
from jumar.eval.local import LocalModel
from jumar.eval.models import score
from jumar.eval.requests import Done, Opening, Request
from jumar.eval.run import Settings, evaluate
from jumar.eval.task import FOLDER
from jumar.infer.conversation import open_template
from jumar.schema.errors import Exit, ToolError
from jumar.schema.parallel import ParallelLayout

REQUESTS = 8 * 4 + 6 * 2 + 2 + 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    make = Maker(tmp_path_factory.mktemp("benchmarks"))
    make.mmlu("anatomy", count=5)
    make.mmlu("astronomy", count=3)
    make.piqa()
    make.gsm8k(count=2)
    make.texts()
    short = yaml.safe_load((FOLDER / "gsm8k.yaml").read_text()) | {"shots": 1, "max_new_tokens": 8}
    (make.folder / "short.yaml").write_text(yaml.safe_dump(short))
    return make.folder


@pytest.fixture(scope="module")
def model(hf: Path) -> LocalModel:
    return LocalModel(hf, Opening(device="cpu", cache_tokens=8192))


@pytest.fixture(scope="module")
def whole(model: LocalModel, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of everything."""
    out = tmp_path_factory.mktemp("whole") / "out"
    evaluate(lambda: model, asked(data, out))
    return out


def asked(data: Path, out: Path, **words: Any) -> Settings:
    tasks = ("mmlu", "piqa", str(data / "short.yaml"), "perplexity")
    return Settings(tasks=tasks, data=data, out=out, arguments={"model": "hf"}, **words)


def samples(out: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in out.glob("samples_*")}
    assert len(found) > 1
    return found


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("samples_*")} | {"results": stable(out)}


def stable(out: Path) -> bytes:
    """Results without what tells when they were made."""
    found = json.loads((out / "results.json").read_text())
    for key in ("date", "total_evaluation_time_seconds"):
        del found[key]
    return json.dumps(found).encode()


def test_results_and_samples(whole: Path) -> None:
    found = json.loads((whole / "results.json").read_text())
    results, group = found["results"], found["results"]["mmlu"]
    parts = [results["mmlu_anatomy"], results["mmlu_astronomy"]]
    assert group["acc,none"] == pytest.approx((5 * parts[0]["acc,none"] + 3 * parts[1]["acc,none"]) / 8)
    assert found["group_subtasks"]["mmlu"] == ["mmlu_stem"]
    assert found["group_subtasks"]["mmlu_stem"] == ["mmlu_anatomy", "mmlu_astronomy"]
    assert found["n-samples"]["mmlu_anatomy"] == {"original": 5, "effective": 5}
    assert found["n-shot"] == {"gsm8k": 1, "mmlu_anatomy": 5, "mmlu_astronomy": 5, "perplexity": 0, "piqa": 0}
    samples = [json.loads(line) for line in (whole / "samples_gsm8k.jsonl").open()]
    assert [(s["doc_id"], s["filter"]) for s in samples] == [
        (doc, way) for doc in (0, 1) for way in ("strict-match", "flexible-extract")
    ]
    assert results["gsm8k"]["exact_match,flexible-extract"] == sum(s["exact_match"] for s in samples[1::2]) / 2


def test_a_megatron_directory_scores_the_same(hf: Path, whole: Path, data: Path, tmp_path: Path) -> None:
    run_plan(plan_megatron(open_checkpoint(hf), ParallelLayout(tp=2, pp=2)), tmp_path / "mcore")
    other = LocalModel(tmp_path / "mcore", Opening(device="cpu", cache_tokens=8192))
    evaluate(lambda: other, asked(data, tmp_path / "out"))
    assert samples(tmp_path / "out") == samples(whole)
    found, expected = (
        stable(out).replace(str(path).encode(), b"PATH") for out, path in ((tmp_path / "out", other.path), (whole, hf))
    )
    assert found.replace(b'"mcore"', b'"hf"') == expected


class Stopping:
    """A model that is gone after so many responses."""

    def __init__(self, inner: LocalModel, after: int) -> None:
        self.inner, self.left, self.asked = inner, after, 0
        self.facts = inner.facts

    def answer(self, requests: list[Request], done: Done) -> None:
        self.asked += len(requests)

        def counted(number: int, response: Any) -> None:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            done(number, response)

        self.inner.answer(requests, counted)


@pytest.mark.parametrize("after, torn", [(5, 0), (15, 40), (35, 1), (47, 0)])
def test_a_run_that_was_stopped_is_gone_on_with(
    model: LocalModel, whole: Path, data: Path, tmp_path: Path, after: int, torn: int
) -> None:
    """torn: bytes that are missing of the journal's last line. The same bytes as of a run that was not stopped."""
    out, stopping = tmp_path / "out", Stopping(model, after)
    with pytest.raises(KeyboardInterrupt):
        evaluate(lambda: stopping, asked(data, out))
    assert not (out / "results.json").exists()
    last = max(out.glob("samples_*"), key=lambda path: path.stat().st_mtime_ns)
    last.write_bytes(last.read_bytes()[: -torn or None])
    again = Stopping(model, REQUESTS)
    evaluate(lambda: again, asked(data, out, resume=True))
    assert files(out) == files(whole)
    assert REQUESTS - after <= again.asked < REQUESTS


def test_what_is_there_is_not_written_over(model: LocalModel, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(lambda: model, Settings(tasks=("piqa",), data=data, out=out))
    before = files(out)
    for words, said in (
        ({}, "holds a run"),
        ({"resume": True, "limit": 2}, "begun with other settings: documents"),
        ({"resume": True, "arguments": {"model": "other"}}, "begun with other settings: model"),
    ):
        with pytest.raises(ToolError, match=said):
            evaluate(lambda: model, Settings(tasks=("piqa",), data=data, out=out, **words))
    evaluate(lambda: model, Settings(tasks=("piqa",), data=data, out=out, resume=True))
    assert files(out) == before
    evaluate(lambda: model, Settings(tasks=("piqa",), data=data, out=out, limit=2, force=True))
    assert len((out / "samples_piqa.jsonl").read_text().splitlines()) == 2
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(ToolError, match="is no run of jumar-eval"):
        evaluate(lambda: model, Settings(tasks=("piqa",), data=data, out=other, force=True))
    assert (other / "thesis.tex").exists()


def test_a_model_that_does_not_open_leaves_all_as_it_was(model: LocalModel, data: Path, tmp_path: Path) -> None:
    def none() -> LocalModel:
        return LocalModel(tmp_path / "mistyped", Opening(device="cpu"))

    out = tmp_path / "out"
    with pytest.raises(ToolError, match="mistyped does not exist"):
        evaluate(none, Settings(tasks=("piqa",), data=data, out=out))
    assert not out.exists()
    evaluate(lambda: model, Settings(tasks=("piqa",), data=data, out=out))
    before = files(out)
    with pytest.raises(ToolError, match="mistyped does not exist"):
        evaluate(none, Settings(tasks=("piqa",), data=data, out=out, force=True))
    assert files(out) == before


def test_a_damaged_journal_is_refused(model: LocalModel, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(lambda: model, Settings(tasks=("piqa",), data=data, out=out))
    lines = (out / "samples_piqa.jsonl").read_text().splitlines(keepends=True)
    (out / "samples_piqa.jsonl").write_text(lines[0] + "{\n" + lines[2])
    with pytest.raises(ToolError, match=r"samples_piqa.jsonl:2 is damaged"):
        evaluate(lambda: model, Settings(tasks=("piqa",), data=data, out=out, resume=True))


@pytest.mark.parametrize("batch", (2, 7))
def test_the_batch_changes_no_score(hf: Path, model: LocalModel, whole: Path, data: Path, tmp_path: Path, batch: int) -> None:
    """What was chosen for the whole run is as many contexts as the cache has room for."""
    other = LocalModel(hf, Opening(device="cpu", cache_tokens=8192, max_batch=batch))
    found = evaluate(lambda: other, asked(data, tmp_path / "out"))
    assert samples(tmp_path / "out") == samples(whole)
    assert (model.facts()["batch_size"], found["config"]["batch_size"]) == (8192 // model.context, batch)


def test_limit_changes_no_score(model: LocalModel, whole: Path, data: Path, tmp_path: Path) -> None:
    evaluate(lambda: model, asked(data, tmp_path / "two", limit=2))
    for path in (tmp_path / "two").glob("samples_*"):
        lines = path.read_text().splitlines()
        assert len(lines) in (2, 4)
        assert lines == (whole / path.name).read_text().splitlines()[: len(lines)]


def test_prompts_with_drawn_examples_are_answered_together(
    model: LocalModel, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No two documents begin alike: that they share nothing is no reason to answer them one by one."""
    counts: list[int] = []
    compute = model.engine.compute
    monkeypatch.setattr(model.engine, "compute", lambda parts: counts.append(len(parts)) or compute(parts))
    evaluate(lambda: model, Settings(tasks=(str(data / "short.yaml"),), data=data))
    assert max(counts) == 2


def test_chat_prompts_go_through_the_template(model: LocalModel, data: Path, tmp_path: Path) -> None:
    settings = Settings(tasks=("mmlu",), data=data, out=tmp_path / "out", chat=True, shots=1, limit=1, system="Be brief.")
    evaluate(lambda: model, settings)
    (sample,) = map(json.loads, (tmp_path / "out/samples_mmlu_anatomy.jsonl").open())
    prompt, choice = sample["arguments"]["gen_args_0"].values()
    assert prompt.startswith("<|im_start|>system\nBe brief.\n\nThe following are multiple choice questions")
    assert prompt.count("<|im_start|>assistant\n") == 2
    assert prompt.endswith("Answer:<|im_end|>\n<|im_start|>assistant\n")
    assert choice == "A"


def test_a_template_that_refuses_and_one_that_asks_for_the_day(hf: Path, tmp_path: Path) -> None:
    """As jumar-infer takes templates."""
    path = shutil.copytree(hf, tmp_path / "hf")
    config = json.loads((path / "tokenizer_config.json").read_text())
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    config["chat_template"] = refuses + "{{ strftime_now('%Y') }} {{ bos_token or eos_token }} {{ messages[-1].content }}"
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    model = LocalModel(path, Opening(device="cpu", cache_tokens=2048))
    user = {"role": "user", "content": "up?"}
    assert re.fullmatch(r"20\d\d <\|im_end\|> up\?", model.render([user]))
    with pytest.raises(ToolError, match=r"the conversation cannot be written: .*no system here"):
        model.render([{"role": "system", "content": "Be brief."}, user])
    named = open_template(model.tokenizer, "chatml")
    assert named.prompt([user]) == model.tokenizer.encode(named.text([user]), special=False)
    (path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ToolError, match="has no chat template") as fault:
        LocalModel(path, Opening(device="cpu", cache_tokens=2048)).render([user])
    assert fault.value.hint == "leave --chat out"


COMMAND = [sys.executable, "-m", "jumar.eval", "run"]


def command(hf: Path, data: Path, out: Path, *more: str) -> list[str]:
    return [*COMMAND, str(hf), "--tasks", "piqa,mmlu", "--data", str(data), "-o", str(out), "--device", "cpu", *more]


def test_the_command_prints_a_table_and_fails_under(hf: Path, data: Path, tmp_path: Path) -> None:
    done = subprocess.run(command(hf, data, tmp_path / "out", "--fail-under", "piqa.acc=1.01"), capture_output=True, text=True)
    assert done.returncode == 5, done.stderr
    assert "below 1.01" in done.stderr
    first, *lines = done.stdout.splitlines()
    assert first.split() == ["task", "answer", "shots", "metric", "value", "stderr"]
    assert [line.split()[0] for line in lines] == ["mmlu", "mmlu_stem", "mmlu_anatomy", "mmlu_astronomy", "piqa", "piqa"]
    done = subprocess.run([*COMMAND, str(hf), "--tasks", "piqa", "--data", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 3
    assert "no data of piqa" in done.stderr


def test_a_run_that_is_done_is_not_done_again(hf: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is opened and no file is touched; other weights, data or settings are another run."""
    own, out = tmp_path / "hf", tmp_path / "out"
    shutil.copytree(hf, own)
    settings, said = Settings(tasks=("piqa",), data=data, out=out), list[str]()

    def again(**changes: Any) -> dict[str, Any]:
        say = lambda word, text: said.append(f"{word}: {text}")  # noqa: E731
        return score(own, dataclasses.replace(settings, **changes), opening=Opening(device="cpu"), say=say)

    first = again()
    assert (first["out"], first["already_done"]) == (str(out), False)
    manifest = json.loads((out / "manifest.json").read_text())
    assert {"model.safetensors", "config.json", "tokenizer.json"} < {each["name"] for each in manifest["inputs"]}
    assert any("piqa" in each["name"] for each in manifest["inputs"])
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    with mock.patch("jumar.eval.local.LocalModel", side_effect=AssertionError("it is opened")):
        for resume in (False, True):
            second = again(resume=resume)
            assert second["already_done"]
            assert second["results"] == first["results"]
            assert said.pop() == f"already done: {out}: the same model, data and settings (--force asks again)"
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    (tmp_path / "link").symlink_to(tmp_path)
    for cwd, model, folder, where in (
        (tmp_path, "hf/", data, "out"),
        (own, ".", Path(os.path.relpath(data, own)), "../out"),
        (data, f"{tmp_path}/link/hf", Path(), os.path.relpath(tmp_path / "link/out", data)),
    ):
        monkeypatch.chdir(cwd)
        spelled = dataclasses.replace(settings, data=folder, out=Path(where))
        assert score(model, spelled, opening=Opening(device="cpu"))["already_done"], (cwd, model, folder)
    monkeypatch.chdir(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    for changes, what in (
        ({"limit": 1}, "limit"),
        ({"system": "S"}, "system_instruction"),
        ({"chat": True}, "apply_chat_template"),
    ):
        with pytest.raises(ToolError, match=f"holds a run of other settings: .*{what}") as fault:
            again(**changes)
        assert fault.value.code == Exit.USAGE
    weights = bytearray((own / "model.safetensors").read_bytes())
    (own / "model.safetensors").write_bytes(weights)  # the same bytes
    assert again()["already_done"]
    weights[-1] ^= 1
    (own / "model.safetensors").write_bytes(weights)
    for resume, said_of in ((True, "begun with"), (False, "holds a run of")):
        with pytest.raises(ToolError, match=rf"{said_of} other files: model\.safetensors"):
            again(resume=resume)
    assert not again(force=True)["already_done"]


def refused(*arguments: str) -> str:
    """What a command says that is refused for how it was typed."""
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    return done.stderr


def test_numbers_that_are_none(tmp_path: Path) -> None:
    assert "--batch 1: expected auto, or a number from 2 on" in refused("hf", "--tasks", "piqa", "--batch", "1")
    assert "--batch many: expected auto" in refused("hf", "--tasks", "piqa", "--batch", "many")
