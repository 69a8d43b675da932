"""`lm_eval --model jumar`: lm-eval's command, tasks and metrics on our engine, against its own `--model hf`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import _lm_eval as peer
import infer_models
from eval_files import Maker
from jumar.eval.harness import JumarLM
from jumar.schema.errors import Exit, ToolError

ROOT = Path(__file__).resolve().parents[2]
HOOK = "jumar_eval_lm_eval.pth"
NAMES = ["piqa", "mmlu_anatomy", "gsm8k", "perplexity"]


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its context is too short for some of the prompts."""
    path = tmp_path_factory.mktemp("llama") / "hf"
    infer_models.llama_with_tokenizer(path, max_position_embeddings=600)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    make = Maker(folder)

    def task(name: str, include: str, **splits: list[dict[str, Any]]) -> None:
        files = {split: make.lines(f"{name}.{split}.jsonl", rows) for split, rows in splits.items()}
        changes = {"description": "About anatomy.\n\n"} if name.startswith("mmlu") else {}
        peer.write_task(folder, name, include, files, **changes)

    rows = make.piqa()
    task("piqa", "piqa/piqa.yaml", train=rows, validation=rows)
    made = make.mmlu(count=4)
    made["test"][0]["question"] = make.words(120, 120)
    task("mmlu_anatomy", "mmlu/default/_default_template_yaml", **made)
    task("gsm8k", "gsm8k/gsm8k.yaml", **make.gsm8k(count=3))
    pages = [{"page": row["text"]} for row in make.texts((20, 200))]
    task("perplexity", "wikitext/wikitext.yaml", train=pages, validation=pages, test=pages)
    return folder


@pytest.fixture(scope="module")
def theirs(hf: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(1)
    return HFLM(pretrained=str(hf), device="cpu", dtype="float32", batch_size=4)


@pytest.fixture(scope="module")
def ours(hf: Path) -> JumarLM:
    return JumarLM(pretrained=str(hf), device="cpu", dtype="float32", cache_tokens=8192)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose site-packages hold the hook, as a wheel puts it there."""
    site = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "packages/eval" / HOOK, site)
    (site / "sitecustomize.py").write_text(f"import site\nsite.addsitedir({str(site)!r})\n")
    paths = [str(site), *(str(path) for path in ROOT.glob("packages/*/src"))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def equal(mine: list[Any], theirs: list[Any]) -> None:
    """Answers: log-likelihoods within 1e-4, all else the same. lm-eval's files hold numbers as texts."""
    for (a,), (b,) in zip(mine, theirs, strict=True):
        if isinstance(b, str):
            assert a == b
        elif isinstance(b, float):
            assert float(a) == pytest.approx(b, abs=1e-4, rel=1e-6)
        else:
            assert float(a[0]) == pytest.approx(b[0], abs=1e-4)
            assert str(a[1]) == str(b[1])


def keyed(samples: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(sample["filter"], sample["doc_id"]): sample for sample in samples}


def test_the_command_scores_as_the_hugging_face_model_does(
    hf: Path, data: Path, theirs: Any, installed: dict[str, str], tmp_path: Path
) -> None:
    """Log-likelihoods within 1e-4, greedy texts and scores equal; of prompts that are too long as well."""
    command = [str(Path(sys.executable).with_name("lm_eval")), "--model", "jumar", "--model_args", f"path={hf},cache_tokens=8192"]
    command += ["--include_path", str(data), "--tasks", ",".join(f"peer_{name}" for name in NAMES), "--device", "cpu"]
    command += ["--num_fewshot", "2", "--gen_kwargs", "max_gen_toks=12", "--log_samples", "--output_path", str(tmp_path)]
    done = subprocess.run(command, env=installed, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    (results,) = tmp_path.glob("**/results_*.json")
    found = json.loads(results.read_text())
    assert found["config"]["model"] == "jumar"
    assert found["config"]["max_length"] == 600
    expected = peer.evaluate(hf, data, NAMES, shots=2, model=theirs, gen_kwargs="max_gen_toks=12")
    for name in NAMES:
        (path,) = tmp_path.glob(f"**/samples_peer_{name}_*.jsonl")
        samples = keyed([json.loads(line) for line in path.open()])
        other = keyed(json.loads(json.dumps(expected["samples"][f"peer_{name}"], default=str)))
        assert samples.keys() == other.keys()
        for key, sample in samples.items():
            assert [list(asked.values()) for asked in sample["arguments"].values()] == other[key]["arguments"]
            equal(sample["resps"], other[key]["resps"])
        for metric, value in expected["results"][f"peer_{name}"].items():
            if isinstance(value, float) and "," in metric:
                assert found["results"][f"peer_{name}"][metric] == pytest.approx(value, rel=1e-4), metric
    assert "longer than the model's context of 600" in done.stderr


def asked(*arguments: Any, task: str = "t") -> SimpleNamespace:
    """A request as lm-eval makes them."""
    return SimpleNamespace(args=arguments, task_name=task)


@pytest.mark.parametrize(
    "words",
    [
        {"until": ["<|im_start|>", "e"], "max_gen_toks": 20},
        {"until": None, "max_new_tokens": 8, "do_sample": False, "temperature": 0.7, "top_p": 0.5, "num_beams": 1},
        {"until": "zz", "max_gen_toks": 24, "repetition_penalty": 1.7},
    ],
)
def test_greedy_answers_are_those_of_transformers(words: dict[str, Any], ours: JumarLM, theirs: Any) -> None:
    """Stops that are special tokens, what has no effect, penalties. One by one: in a batch, lm-eval's answers that ended at a
    special token go on for as long as another one does."""
    prompts = ["the rope and the knot", "cloud", "the rope"]
    made = [asked(prompt, {key: value for key, value in words.items() if value is not None}) for prompt in prompts]
    found = ours.generate_until(made, disable_tqdm=True)
    assert found == [theirs.generate_until([one], disable_tqdm=True)[0] for one in made]
    assert all(found)


def test_drawn_answers(ours: JumarLM) -> None:
    """The same seed, the same answers; equal prompts, different ones."""
    words = {"do_sample": True, "temperature": 1.5, "top_p": 0.9, "max_gen_toks": 12, "until": []}
    torch.manual_seed(1234)
    first = ours.generate_until([asked("the rope", words) for _ in range(3)], disable_tqdm=True)
    assert len(set(first)) == 3
    torch.manual_seed(1234)
    mixed = [asked("the rope", words), asked("cloud", {"until": [], "max_gen_toks": 12}), asked("the rope", words)]
    again = ours.generate_until(mixed, disable_tqdm=True)
    assert [again[0], again[2]] == first[:2]
    torch.manual_seed(7)
    assert ours.generate_until([asked("the rope", words)], disable_tqdm=True)[0] != first[0]
    greedy = ours.generate_until([asked("cloud", {"temperature": 0, "max_gen_toks": 12})], disable_tqdm=True)
    assert again[1] == greedy[0]


@pytest.mark.parametrize(
    "words, said",
    [
        ({"num_beams": 4}, "not supported: num_beams=4"),
        ({"do_sample": True, "temperature": 0.0}, "do_sample with a temperature of 0"),
        ({"typical_p": 0.9, "best_of": 2}, "not supported: typical_p=0.9, best_of=2"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p is 1.5"),
        ({"max_gen_toks": 600}, "600 new tokens are asked for, and the model's context is 600"),
    ],
)
def test_what_cannot_be_asked_is_refused(words: dict[str, Any], said: str, ours: JumarLM) -> None:
    with pytest.raises(ToolError, match=said):
        ours.generate_until([asked("the rope", words)], disable_tqdm=True)


@pytest.mark.parametrize("last", ["On the", "On the ", "", " \n"])
def test_conversations_are_written_as_transformers_does(last: str, ours: JumarLM, theirs: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Where? "}]
    assert ours.apply_chat_template(messages) == theirs.apply_chat_template(messages)
    messages.append({"role": "assistant", "content": last})
    assert ours.apply_chat_template(messages, add_generation_prompt=False) == theirs.apply_chat_template(
        messages, add_generation_prompt=False
    )
    assert ours.chat_template(True) == theirs.chat_template(True)


def test_a_template_that_trims_is_cut_as_transformers_does(hf: Path, tmp_path: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    shutil.copytree(hf, tmp_path / "hf")
    infer_models.add_tokenizer(tmp_path / "hf", infer_models.CHATML.replace("m.content", "m.content | trim"))
    mine, other = JumarLM(str(tmp_path / "hf"), device="cpu"), HFLM(str(tmp_path / "hf"), device="cpu", dtype="float32")
    for last in ("On the", "On the ", "On the \n"):
        messages = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": last}]
        assert mine.apply_chat_template(messages, False) == other.apply_chat_template(messages, False)


def test_conversations_score_the_same(hf: Path, data: Path, ours: JumarLM, theirs: Any) -> None:
    words = {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": "Be brief."}
    found, expected = (peer.evaluate(hf, data, ["mmlu_anatomy"], shots=1, model=m, **words) for m in (ours, theirs))
    for mine, other in zip(found["samples"]["peer_mmlu_anatomy"], expected["samples"]["peer_mmlu_anatomy"], strict=True):
        assert mine["arguments"] == other["arguments"]
        equal(mine["resps"], other["resps"])
    assert found["samples"]["peer_mmlu_anatomy"][0]["arguments"][0][0].count("<|im_start|>assistant") == 2


def test_answers_are_in_the_cache_as_they_come(ours: JumarLM, tmp_path: Path) -> None:
    """lm-eval's --use_cache: a run that was stopped asks only for what was not answered."""
    from lm_eval.api.model import CacheHook, CachingLM

    made = [asked(f"the rope {word}", f" {word}") for word in ("knot", "cloud", "river", "tent")]
    whole = ours.loglikelihood(made, disable_tqdm=True)
    cached = CachingLM(ours, str(tmp_path / "cache.db"))
    try:
        with pytest.raises(ToolError, match="no token stands behind"):
            cached.loglikelihood([*made, asked("the rope", "", task="other")])
        assert len(cached.dbdict) == len(made)
    finally:
        ours.set_cache_hook(CacheHook(None))
    assert sorted(tuple(value) for value in cached.dbdict.values()) == sorted(whole)


@pytest.mark.parametrize(
    "words, said",
    [
        ({}, "one checkpoint is scored"),
        ({"path": "a", "pretrained": "b"}, "one checkpoint is scored"),
        ({"path": "a", "parallelize": True, "peft": "b"}, "jumar does not know parallelize, peft"),
        ({"path": "a", "device": "cuda:3"}, "a device has no number here"),
        ({"path": "a", "batch_size": "many"}, "expected a number or auto"),
    ],
)
def test_arguments_that_do_not_fit(words: dict[str, Any], said: str) -> None:
    with pytest.raises(ToolError, match=said) as fault:
        JumarLM.create_from_arg_obj(words)
    assert fault.value.code == Exit.USAGE


def test_a_python_that_is_not_lm_evals_imports_nothing(installed: dict[str, str]) -> None:
    code = "import sys; print([m for m in sys.modules if m.startswith(('jumar', 'lm_eval'))], len(sys.meta_path))"
    bare = subprocess.run([sys.executable, "-S", "-c", code], env=installed, capture_output=True, text=True, check=True)
    hooked = subprocess.run([sys.executable, "-c", code], env=installed, capture_output=True, text=True, check=True)
    assert hooked.stdout.startswith("[] ")
    assert int(hooked.stdout.split()[-1]) > int(bare.stdout.split()[-1])


@pytest.mark.slow
def test_without_the_hook(tmp_path: Path) -> None:
    """`python -m jumar.eval.lm_eval`; what is wrong is said without a traceback. lm-eval's own --device means any here."""
    command = [sys.executable, "-m", "jumar.eval.lm_eval", "--model", "jumar", "--tasks", "piqa", "--model_args"]
    done = subprocess.run([*command, f"path={tmp_path}/none"], capture_output=True, text=True, timeout=250)
    assert done.returncode == Exit.INPUT, done.stderr
    assert done.stderr.splitlines()[-2].startswith(f"error: {tmp_path}/none does not exist")


def test_without_lm_eval() -> None:
    code = "import sys; sys.modules['lm_eval'] = None; from jumar.eval.lm_eval import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == Exit.ENVIRONMENT
    assert done.stderr.splitlines()[-1] == 'hint: pip install "jumar-eval[lm-eval]"'
