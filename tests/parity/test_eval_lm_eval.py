"""jumar-eval against lm-eval's own tasks and Hugging Face model, request by request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import _lm_eval as peer
import infer_models
from eval_files import Maker
from jumar.eval.local import LocalModel, Opening
from jumar.eval.run import Settings, evaluate

DEMO = Path(__file__).resolve().parents[2] / "runs/demo/hf"
SHOTS = {"mmlu_anatomy": 5, "gsm8k": 5}
NAMES = ["boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "truthfulqa_mc1", "truthfulqa_mc2", "mmlu_anatomy", "gsm8k"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its context is too short for some of the prompts."""
    path = tmp_path_factory.mktemp("llama") / "hf"
    infer_models.llama_with_tokenizer(path, max_position_embeddings=600)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every task in its published layout, and in `peer` as lm-eval's tasks expect it."""
    folder = tmp_path_factory.mktemp("benchmarks")
    make = Maker(folder)

    def task(name: str, include: str, **splits: list[dict[str, Any]]) -> None:
        files = {split: make.lines(f"peer/{name}.{split}.jsonl", rows) for split, rows in splits.items()}
        changes = {"description": "The following are multiple choice questions (with answers) about anatomy.\n\n"}
        peer.write_task(folder / "peer", name, include, files, **(changes if name.startswith("mmlu") else {}))

    def both(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        return {"train": rows, "validation": rows}

    labelled = [{**row, "label": int(row["answer"])} for row in make.boolq()]
    task("boolq", "super_glue/boolq/default.yaml", **both(labelled))
    task("piqa", "piqa/piqa.yaml", **both(make.piqa()))
    task("hellaswag", "hellaswag/hellaswag.yaml", **both(make.hellaswag()))
    task("winogrande", "winogrande/default.yaml", **both(make.winogrande()))
    rows = make.arc()
    task("arc_easy", "arc/arc_easy.yaml", train=rows, validation=rows, test=rows)
    rows = make.truthfulqa()
    for name in ("truthfulqa_mc1", "truthfulqa_mc2"):
        task(name, f"truthfulqa/{name}.yaml", validation=rows)
    made = make.mmlu(count=4)
    task("mmlu_anatomy", "mmlu/default/_default_template_yaml", **made)
    task("gsm8k", "gsm8k/gsm8k.yaml", **make.gsm8k(count=2))
    pages = [{"page": row["text"]} for row in make.texts((20, 200))]
    task("perplexity", "wikitext/wikitext.yaml", train=pages, validation=pages, test=pages)
    return folder


def lm_evals(model: Path, data: Path, names: list[str], **words: Any) -> dict[str, Any]:
    """Of tasks that ask for different numbers of worked examples."""
    out: dict[str, Any] = {"results": {}, "samples": {}}
    for shots in dict.fromkeys(SHOTS.get(name, 0) for name in names):
        found = peer.evaluate(model, data / "peer", [n for n in names if SHOTS.get(n, 0) == shots], shots=shots, **words)
        for kind in out:
            out[kind] |= {name.removeprefix("peer_"): value for name, value in found[kind].items()}
    return out


def ours(model: Path, data: Path, names: list[str], out: Path, **words: Any) -> dict[str, Any]:
    tasks = tuple(dict.fromkeys("mmlu" if name.startswith("mmlu") else name for name in names))
    opening = Opening(device="cpu", cache_tokens=8192)
    found = evaluate(lambda: LocalModel(model, opening), Settings(tasks=tasks, data=data, out=out, **words))
    samples = {name: [json.loads(line) for line in (out / f"samples_{name}.jsonl").open()] for name in names}
    return {"results": found["results"], "samples": samples}


def pairs(found: dict[str, Any], expected: dict[str, Any], name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    keyed = {(s["filter"], s["doc_id"]): s for s in expected["samples"][name]}
    assert len(keyed) == len(found["samples"][name]) > 0
    for sample in found["samples"][name]:
        yield sample, keyed[sample["filter"], sample["doc_id"]]


def check(found: dict[str, Any], expected: dict[str, Any], name: str) -> float:
    """The largest difference of a log-likelihood; everything else is equal."""
    worst = 0.0
    for sample, theirs in pairs(found, expected, name):
        asked = [list(a.values()) for a in sample["arguments"].values()]
        assert [a[0] for a in asked] == [a[0] for a in theirs["arguments"]]
        for mine, other in zip(sample["resps"], theirs["resps"], strict=True):
            if isinstance(mine[0], str):
                assert mine == other
            elif isinstance(mine[0], float):
                worst = max(worst, abs(mine[0] - other[0]) / max(1, abs(other[0])))
            else:
                assert mine[0][1] == other[0][1]
                worst = max(worst, abs(mine[0][0] - other[0][0]))
    scores = {key: value for key, value in expected["results"][name].items() if "," in key}
    for key, value in scores.items():
        assert found["results"][name][key] == (value if isinstance(value, str) else pytest.approx(value, abs=1e-4, rel=1e-4)), key
    return worst


def test_every_kind_of_task_equals_lm_eval(model: Path, data: Path, tmp_path: Path) -> None:
    """Prompts, log-likelihoods, texts, metrics and standard errors, of prompts that are too long as well."""
    torch.set_num_threads(1)
    expected = lm_evals(model, data, [*NAMES, "perplexity"])
    found = ours(model, data, [*NAMES, "perplexity"], tmp_path)
    for name in (*NAMES, "perplexity"):
        assert check(found, expected, name) < 1e-4, name
    assert any(sample.get("truncated") for sample in found["samples"]["mmlu_anatomy"])
    assert len({sample["resps"][0][0] for sample in found["samples"]["gsm8k"]}) > 1


def test_examples_are_drawn_as_lm_eval_draws_them(model: Path, tmp_path: Path) -> None:
    """Of tasks without a split for tests it draws one more, and leaves the document out; some training rows are documents too."""
    make = Maker(tmp_path / "data", seed=3)
    includes = {
        "boolq": "super_glue/boolq/default.yaml",
        "piqa": "piqa/piqa.yaml",
        "hellaswag": "hellaswag/hellaswag.yaml",
        "winogrande": "winogrande/default.yaml",
        "arc_easy": "arc/arc_easy.yaml",
    }
    trained = dict.fromkeys(("boolq", "piqa"), "train.jsonl")
    trained |= {"hellaswag": "hellaswag_train.jsonl", "winogrande": "train_xl.jsonl"}
    for name, include in includes.items():
        rows = getattr(make, name.partition("_")[0])()
        if name in trained:
            make.lines(f"{name}/{trained[name]}", [*rows[:2], *getattr(Maker(tmp_path / "spare", seed=4), name)()])
            pool = [json.loads(line) for line in (make.folder / name / trained[name]).open()]
        else:
            pool = rows
            published = (make.folder / "ARC-Easy/ARC-Easy-Test.jsonl").read_text()
            (make.folder / "ARC-Easy/ARC-Easy-Train.jsonl").write_text(published)
        splits = {"train": pool, "validation": rows, "test": rows}
        if name == "boolq":
            splits = {split: [{**row, "label": int(row["answer"])} for row in of] for split, of in splits.items()}
        files = {split: make.lines(f"peer/{name}.{split}.jsonl", of) for split, of in splits.items()}
        peer.write_task(make.folder / "peer", name, include, files)
    found = peer.evaluate(model, make.folder / "peer", list(includes), shots=2)
    expected = {kind: {n.removeprefix("peer_"): value for n, value in found[kind].items()} for kind in ("results", "samples")}
    mine = ours(model, make.folder, list(includes), tmp_path / "out", shots=2)
    for name in includes:
        assert check(mine, expected, name) < 1e-4, name


def test_conversations_equal_lm_evals(model: Path, data: Path, tmp_path: Path) -> None:
    """Through the model's chat template, worked examples as turns."""
    words = {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": "Be brief."}
    expected = peer.evaluate(model, data / "peer", ["mmlu_anatomy"], shots=1, **words)
    expected = {kind: {"mmlu_anatomy": expected[kind]["peer_mmlu_anatomy"]} for kind in ("results", "samples")}
    found = ours(model, data, ["mmlu_anatomy"], tmp_path, chat=True, system="Be brief.", shots=1)
    assert check(found, expected, "mmlu_anatomy") < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not DEMO.exists(), reason="the demo's model is not here (make demo)")
def test_a_real_model_equals_lm_eval(data: Path, tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct."""
    names = ["boolq", "piqa", "hellaswag", "mmlu_anatomy", "gsm8k", "perplexity"]
    expected = lm_evals(DEMO, data, names)
    found = ours(DEMO, data, names, tmp_path)
    for name in names:
        assert check(found, expected, name) < 1e-4, name
