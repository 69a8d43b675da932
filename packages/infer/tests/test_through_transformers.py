"""Models that the registry does not know: transformers computes, all else is as for the others."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import infer_models
from jumar.infer import Engine, Sampling
from jumar.infer.beams import search
from jumar.infer.cli import main
from jumar.infer.engine import Limits
from jumar.infer.opening import open_model
from jumar.schema.errors import Exit, ToolError

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
FOREIGN: dict[str, dict[str, Any]] = {
    "gpt_neox": SIZES | {"intermediate_size": 96, "max_position_embeddings": 128},
    "mamba": {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},  # keeps states, and counts no positions
    "openai-gpt": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},  # keeps nothing
}
PROMPTS = [infer_models.random_ids(n, vocab=infer_models.VOCAB, seed=n) for n in (5, 40, 61)]


def make(directory: Path, model_type: str) -> PreTrainedModel:
    ids = {"vocab_size": infer_models.VOCAB, "bos_token_id": None, "eos_token_id": infer_models.VOCAB - 1}
    config = AutoConfig.for_model(model_type, **FOREIGN[model_type], **ids)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    infer_models.randomise(model.state_dict(), 0)
    model.save_pretrained(directory)
    infer_models.add_tokenizer(directory)
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def neox(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    directory = tmp_path_factory.mktemp("neox") / "hf"
    return directory, make(directory, "gpt_neox")


def generated(model: PreTrainedModel, prompt: list[int], **words: Any) -> list[list[int]]:
    ids = torch.tensor([prompt])
    settings = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0, **words}
    found: list[list[int]] = model.generate(ids, **settings)[:, len(prompt) :].tolist()
    return found


@pytest.mark.parametrize("model_type", FOREIGN)
def test_greedy_answers_are_those_of_generate(model_type: str, tmp_path: Path) -> None:
    """Three prompts through two places."""
    model = make(tmp_path / "hf", model_type)
    engine = Engine.open(tmp_path / "hf", Limits(max_batch=2), device="cpu")
    answers = engine.generate(PROMPTS, Sampling(max_new_tokens=12, ignore_eos=True, logprobs=0))
    assert [a.output for a in answers] == [generated(model, p, max_new_tokens=12)[0] for p in PROMPTS]
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        with torch.no_grad():
            logs = model(torch.tensor([prompt + answer.output])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        wanted = logs.gather(1, torch.tensor(answer.output)[:, None])[:, 0].tolist()
        assert [entry.logprob for entry in answer.logprobs] == pytest.approx(wanted, abs=1e-4)
    assert engine.cache.in_use == 0


def test_beams_and_scores(neox: tuple[Path, PreTrainedModel]) -> None:
    directory, model = neox
    engine = Engine.open(directory, Limits(max_batch=3), device="cpu")
    found = search(engine, PROMPTS[1], Sampling(max_new_tokens=8, ignore_eos=True), num_beams=3, returns=3)
    assert [r.output for r in found] == generated(model, PROMPTS[1], max_new_tokens=8, num_beams=3, num_return_sequences=3)
    (scored,) = engine.score([(PROMPTS[1][:10], PROMPTS[1][10:])])
    with torch.no_grad():
        logs = model(torch.tensor([PROMPTS[1]])).logits[0].log_softmax(-1)
    assert [s.logprob for s in scored.scores] == pytest.approx(
        [float(logs[i - 1, PROMPTS[1][i]]) for i in range(10, 40)], abs=1e-5
    )


def test_as_people_type_it(
    neox: tuple[Path, PreTrainedModel], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says that transformers computes; answers, stops and log-probabilities are told as ever."""
    directory, _ = neox

    def infer(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["jumar-infer", *map(str, words), "--device", "cpu"])
        monkeypatch.setenv("COLUMNS", "200")
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capfd.readouterr()

    code, out, err = infer("generate", directory, "-p", "the rope", "--max-new-tokens", 8)
    assert code == 0
    assert len(err.splitlines()) == 2
    assert "jumar has no model_type 'gpt_neox'" in err
    plain = out.rstrip("\n")
    code, out, _ = infer(
        "generate", directory, "-p", "the rope", "--max-new-tokens", 8, "--stop", plain[2:4], "--json", "--logprobs", 1
    )
    (answer,) = json.loads(out)["answers"]
    assert (answer["text"], answer["finish"]) == (plain[:2], "stop")
    assert len(answer["logprobs"]) == answer["tokens"]
    (tmp_path / "rows.jsonl").write_text('{"text": "the rope"}\n')
    code, out, _ = infer("score", directory, tmp_path / "rows.jsonl", "--engine", "transformers")
    assert json.loads(out)["tokens"] == 6
    for option in (("--quantize", "int8"), ("--pp", 2)):
        code, _, err = infer("generate", directory, "-p", "x", *option)
        assert (code, f"{option[0]} is not there through transformers" in err) == (2, True)
    code, _, err = infer("generate", directory, "-p", "x", "--engine", "jumar")
    assert (code, "'gpt_neox' is not known" in err) == (3, True)


def test_a_known_family_too_if_asked_for(hf: Path) -> None:
    """The same logits from both engines, and the same draws for a seed."""
    both = [Engine.open(hf, engine=name, device="cpu") for name in ("auto", "transformers")]
    assert ["transformers" in engine.notes[-1] for engine in both] == [False, True]
    asked = Sampling(max_new_tokens=10, temperature=0.8, seed=3, ignore_eos=True)
    assert len({tuple(engine.generate([PROMPTS[1]], asked)[0].output) for engine in both}) == 1


def test_a_tokenizer_of_older_files(neox: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    """vocab.json and merges.txt, as models before tokenizer.json have them."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((neox[0] / name).read_bytes())
    whole = json.loads((neox[0] / "tokenizer.json").read_text())
    vocab = whole["model"]["vocab"] | {token["content"]: token["id"] for token in whole["added_tokens"]}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in whole["model"]["merges"])]))
    names = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|im_end|>", "unk_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    found, wanted = (Engine.open(directory, device="cpu") for directory in (tmp_path, neox[0]))
    assert found.encode("the rope 绳") == wanted.encode("the rope 绳")
    assert found.defaults.eos_ids == wanted.defaults.eos_ids == (infer_models.VOCAB - 1,)


def test_what_is_refused(neox: tuple[Path, PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight is made up, no code of the directory is run, and a missing transformers is named."""
    directory, _ = neox
    for name in ("lacking", "code", "megatron"):
        (tmp_path / name).mkdir()
        for file in directory.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    tensors = load_file(directory / "model.safetensors")
    tensors.pop("gpt_neox.layers.1.mlp.dense_h_to_4h.weight")
    save_file(tensors, tmp_path / "lacking/model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    own = {"model_type": "ours", "auto_map": {"AutoConfig": "ours.C", "AutoModelForCausalLM": "ours.M"}}
    (tmp_path / "code/config.json").write_text(json.dumps(config | own))
    (tmp_path / "code/ours.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "megatron/config.json").unlink()
    for name, says in (("lacking", "layers.1.mlp.dense_h_to_4h"), ("code", "brings Python code"), ("megatron", "no config.json")):
        with pytest.raises(ToolError, match=says) as fault:
            open_model(tmp_path / name, device="cpu", engine="transformers")
        assert fault.value.code == Exit.INPUT
    (tmp_path / "code/config.json").write_text(json.dumps(config | own | {"model_type": "gpt_neox"}))
    assert open_model(tmp_path / "code", device="cpu").tokenizer is not None
    assert not (tmp_path / "ran").exists()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ToolError, match="not installed") as fault:
        open_model(directory, device="cpu")
    assert fault.value.code == Exit.ENVIRONMENT
