"""A tiny model's way through all the tools: what each of its stages answers, and how much they differ."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from safetensors.torch import load_file

import infer_models
import tiny_models
import train_models
from eval_files import Maker
from jumar.eval.task import FOLDER
from jumar.schema.registry import families, family_of
from training import Run, Settings, environment, finish, train

MODULES = {"jumar-convert": "ckpt_convert", "jumar-data": "data_prep", "jumar-infer": "infer", "jumar-eval": "eval"}
STEPS, LR = 2, 3e-3
BATCH, SEQ_LEN, CONTEXT = 4, 64, 512
TEXTS: list[dict[str, str]] = [
    {"text": "The rope holds, and the tent stands by the river."},
    {"text": "登山绳 the snow"},
    {"prompt": "the night camp is", "completion": " the ridge and the ice"},
]
PROMPTS = [{"prompt": "The peak"}, {"prompt": "wind on the rock, then"}]
NEW_TOKENS = 12
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Tool = Callable[..., str]


def in_this_process(name: str, *words: object) -> str:
    """What a command prints: its `main`, without an interpreter of its own, and torch's import, for each of dozens."""
    main = import_module(f"jumar.{MODULES[name]}.cli").main
    with (
        mock.patch.object(sys, "argv", [name, *map(str, words)]),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        pytest.raises(SystemExit) as ended,
    ):
        main()
    assert not ended.value.code, f"{name} {words}\n{err.getvalue()}"
    return out.getvalue()


def as_typed(name: str, *words: object) -> str:
    """The same of the command itself."""
    line = [str(Path(sys.executable).with_name(name)), *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment(), timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@dataclass(frozen=True)
class Way:
    """A layout: words with which `jumar-convert to-megatron` writes it, and a recipe's settings for two processes."""

    name: str
    words: tuple[str, ...]
    settings: Settings


@dataclass(frozen=True)
class Answers:
    """What one stage says. scores: as printed; texts: greedy; samples: of benchmarks, byte for byte, numbers in full."""

    scores: list[dict[str, Any]]
    texts: list[dict[str, Any]]
    samples: dict[str, bytes]
    results: dict[str, Any]

    @property
    def chosen(self) -> list[list[int]]:
        """Token ids of the answers."""
        return [[token["id"] for token in row["logprobs"]] for row in self.texts]

    @cached_property
    def logprobs(self) -> torch.Tensor:
        """Of every token that is scored, of all texts."""
        return torch.tensor([token["logprob"] for row in self.scores for token in row["logprobs"]], dtype=torch.float64)


@dataclass
class Chain:
    """One model and what is made of it, below a folder."""

    family: str
    folder: Path
    tool: Tool = in_this_process
    forked: bool = True
    changes: Settings = field(default_factory=dict)
    precision: str = "fp32"
    stages: dict[str, Answers] = field(default_factory=dict)
    held_out: str = ""

    @property
    def hf(self) -> Path:
        return self.folder / "hf"

    def data(self, name: str) -> Path:
        return self.folder / "data" / name

    def save_model(self) -> None:
        """Random weights that do not enlarge rounding: norms near 1, states that begin as fresh ones."""
        family = families()[self.family]
        spec = family.spec(family.tiny)
        context = {key: CONTEXT for key in ("max_position_embeddings", "n_positions") if key in family.tiny}
        model = infer_models.llama_with_tokenizer(self.hf, self.family, **{**context, **self.changes})
        for name, tensor in model.state_dict().items():
            tensor += train_models.STARTS.get(name.rpartition(".")[2], 0)
            tensor -= int(spec.zero_centered_gamma and name.endswith("norm.weight"))
        model.to(DTYPES[self.precision]).save_pretrained(self.hf)
        if spec.mtp_layers:
            tiny_models.add_mtp(self.hf, spec.num_layers, spec.hidden_size)

    def begin(self) -> None:
        """The model with its tokenizer as transformers saves it, texts, benchmarks, and the tokens that are trained on, or held
        out: one document of as many as a batch has, and its end."""
        self.save_model()
        make = Maker(self.folder / "benchmarks")
        make.piqa(4)
        make.gsm8k(2)
        make.texts()
        short = yaml.safe_load((FOLDER / "gsm8k.yaml").read_text()) | {"shots": 1, "max_new_tokens": 8}
        (make.folder / "short.yaml").write_text(yaml.safe_dump(short))
        for name, rows in (("texts", TEXTS), ("prompts", PROMPTS)):
            (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.held_out = "The rope " + make.words(99, 99).replace("t", "d")[: BATCH * SEQ_LEN - 8]  # " t", "th", "he": one token
        for name, texts in (("train", [f"The {make.words(20, 60)}." for _ in range(60)]), ("valid", [self.held_out])):
            source = make.lines(f"{name}.jsonl", [{"text": text} for text in texts])
            self.tool("jumar-data", "pretrain", source, "-o", self.data(name), "--tokenizer", self.hf, "--append-eod")

    def ask(self, name: str, path: Path) -> Answers:
        """What this stage answers; by the name of it, too."""
        out = self.folder / "scores" / name
        how = ("--device", "cpu", "--cache-tokens", 4 * CONTEXT)
        tasks = f"piqa,perplexity,{self.folder / 'benchmarks/short.yaml'}"
        scores = self.tool("jumar-infer", "score", path, self.folder / "texts.jsonl", "--logprobs", "--json", *how)
        prompts = (self.folder / "prompts.jsonl", "--max-new-tokens", NEW_TOKENS, "--logprobs", 0, "--json")
        texts = self.tool("jumar-infer", "generate", path, *prompts, *how)
        self.tool("jumar-eval", "run", path, "--tasks", tasks, "--data", self.folder / "benchmarks", "-o", out, *how)
        found = Answers(
            scores=json.loads(scores)["scores"],
            texts=json.loads(texts)["answers"],
            samples={each.name: each.read_bytes() for each in out.glob("samples_*")},
            results=json.loads((out / "results.json").read_text())["results"],
        )
        assert len(found.samples) == len(found.results) == 3
        self.stages[name] = found
        return found

    def shards(self, way: Way) -> Path:
        """The model in the layout, as `jumar-convert` writes it."""
        path = self.folder / f"shards-{way.name}"
        self.tool("jumar-convert", "to-megatron", self.hf, path, *way.words)
        return path

    def trained(self, way: Way, source: Path) -> Run:
        """Two steps in the layout by two processes, from these weights."""
        values: dict[str, Any] = {
            "load": {"path": str(source)},
            "data": {"train": str(self.data("train")), "valid": str(self.data("valid")), "seq_len": SEQ_LEN},
            # eps: no element moves by the sign of a rounding
            "optim": {"lr": LR, "weight_decay": 0.1, "eps": 1e-4},
            "schedule": {"kind": "constant"},
            "train": {"steps": STEPS, "global_batch_size": BATCH, "eval_every": STEPS, "eval_batches": 1},
            "save": {"path": str(self.folder / f"run-{way.name}")},
        }
        run = Run(self.folder, values).having({"train.precision": self.precision, **way.settings})
        if self.forked:
            return finish(run, 2)
        ended = train(run, 2)
        assert ended.code == 0, ended.err
        return run

    def back(self, run: Run) -> Path:
        path = self.folder / f"hf-{run.path.name}"
        self.tool("jumar-convert", "to-hf", run.path, path)
        return path


class Reference:
    """What transformers makes of a directory: config, weights and tokenizer are as it finds them there."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model, info = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
        beyond = f"model.layers.{self.model.config.num_hidden_layers}."  # multi-token prediction, which transformers passes over
        unexpected = [name for name in info["unexpected_keys"] if not name.startswith(beyond)]
        assert not any([unexpected, info["missing_keys"], info["mismatched_keys"]]), info
        self.model.eval()

    def ids(self, text: str) -> torch.Tensor:
        found: torch.Tensor = self.tokenizer(text, return_tensors="pt").input_ids
        return found

    @torch.no_grad()
    def logprobs(self) -> torch.Tensor:
        """As `Answers.logprobs`."""
        found = []
        for row in TEXTS:
            ids = self.ids(row.get("text") or row["prompt"] + row["completion"])
            first = self.ids(row["prompt"]).shape[1] if "prompt" in row else 1
            every = self.model(ids).logits[0, :-1].double().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            found.append(every[first - 1 :])
        return torch.cat(found)

    @torch.no_grad()
    def chosen(self) -> list[list[int]]:
        """As `Answers.chosen`."""
        found = []
        for row in PROMPTS:
            ids = self.ids(row["prompt"])
            mask = torch.ones_like(ids)
            made = self.model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
            found.append(made[0, ids.shape[1] :].tolist())
        return found

    @torch.no_grad()
    def eval_loss(self, text: str) -> float:
        """Of a document that fills a batch, which has no order then that could be another."""
        ids = torch.cat([self.ids(text)[0], torch.tensor([self.tokenizer.eos_token_id])])
        logits = self.model(ids[:-1].view(BATCH, SEQ_LEN)).logits
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[1:]))


def apart(one: Path, other: Path) -> tuple[float, float]:
    """(largest, mean) difference of two directories' weights, which are the same tensors, but for copies of some."""
    a, b = (load_file(path / "model.safetensors") for path in (one, other))
    config = json.loads((one / "config.json").read_text())
    family = family_of(config["model_type"])
    assert a.keys() ^ b.keys() <= family.copy_names(family.spec(config)).keys()
    gaps = torch.cat([(a[name].float() - b[name].float()).abs().flatten() for name in a.keys() & b.keys()])
    return gaps.max().item(), gaps.mean().item()
