"""What is refused before launch: each with its numbers and what to change."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from jobs import FAMILIES, STATES, make_job, model_dir, texts, token_file
from jumar.schema.errors import Exit, ToolError
from jumar.schema.manifest import manifest_text
from jumar.train_core import checks
from jumar.train_core.checks import check, checkpoint_bytes, raise_first
from jumar.train_core.engine_check import check_engine, imported_from, installed

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
MOE = "features__moe__"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", [{}, {"tp": 2}, {"pp": 2}, {"cp": 2}, {"tp": 2, "pp": 2, "vpp": 2, "cp": 2}])
def test_what_fits_is_let_pass(tmp_path: Path, family: str, sizes: dict[str, int]) -> None:
    world = sizes.get("tp", 1) * sizes.get("pp", 1) * sizes.get("cp", 1)
    found = texts(check(make_job(tmp_path, family, world=world, parallel=sizes)))
    assert ("no interleaved pipeline" in found) if family in STATES and "vpp" in sizes else (found == "")


@pytest.mark.parametrize(
    "family, world, sets, message, hint",
    [
        # the model
        ("gpt2", 1, {"data__seq_len": 256}, "256 is longer than the model's 128 learned positions", "data.seq_len=128"),
        ("llama", 1, {"model__config": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}}, "'dynamic'", "rope_scaling"),
        (
            "llama",
            1,
            {"model__config": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}},
            "without original_max_position_embeddings",
            "rope_scaling in model.config",
        ),
        ("deepseek_v3", 1, {"model__config": {"n_group": 3}}, "2 of 8 experts from 1 of 3 groups", "n_group"),
        # layouts
        ("llama", 3, {"parallel__tp": 3}, "tp=3 does not divide the model's 8 attention heads", "divisors of 8"),
        ("llama", 8, {"parallel__tp": 8}, "tp=8 does not divide the model's 4 KV heads", "divisors of 4"),
        ("gemma2", 3, {"parallel__tp": 3, "data__seq_len": 30}, "8 attention heads", "divisors of 8"),
        (
            "llama",
            2,
            {"parallel__tp": 2, "model__config": {"intermediate_size": 97}},
            "tp=2 does not divide the model's 97 columns of the MLP",
            "divisors of 97",
        ),
        (
            "qwen2_moe",
            2,
            {"parallel__tp": 2, "model__config": {"shared_expert_intermediate_size": 47}},
            "47 columns of the shared experts",
            "divisors of 47",
        ),
        ("deepseek_v2", 2, {"parallel__tp": 2, "model__config": {"kv_lora_rank": 31}}, "tp=2 does not divide", "parallel.tp"),
        ("mixtral", 8, {"parallel__ep": 8}, "4 experts cannot be shared out over parallel.ep=8", "divisors of 4"),
        (
            "qwen3_moe",
            3,
            {"parallel__etp": 3, "train__global_batch_size": 9},
            "etp=3 does not divide the 32 columns of an expert",
            "divisors of 32",
        ),
        (
            "mixtral",
            2,
            {"parallel__tp": 2, "parallel__sequence_parallel": False},
            "experts at tp=2 need sequence parallelism",
            "leave parallel.sequence_parallel out",
        ),
        ("llama", 1, {"parallel__sequence_parallel": True}, "sequence_parallel has no effect: tp=1", "set parallel.tp"),
        ("llama", 2, {"parallel__tp": 2, "data__seq_len": 31}, "31 cannot be shared out over tp=2", "multiple of 2"),
        ("llama", 4, {"parallel": {"tp": 2, "cp": 2}, "data__seq_len": 30}, "over tp=2 x cp=2", "multiple of 4"),
        ("llama", 2, {"parallel__cp": 2, "data__seq_len": 30}, "30 cannot be cut into 2 x cp = 4", "multiple of 4"),
        (
            "llama",
            2,
            {"parallel": {"pp": 2, "vpp": 2}, "train__global_batch_size": 5},
            "vpp=2: 5 micro batches a step are not a multiple of pp=2",
            "multiple of 2 (micro_batch_size x dp x pp)",
        ),
        ("llama", 1, {"parallel__noop_layers": [4]}, "noop_layers has no effect: pp=1", "set parallel.pp"),
        # recomputation
        ("llama", 1, {"features__recompute": {"method": "block"}}, "recompute.method has no effect", "granularity=full"),
        ("llama", 1, {"features__recompute": {"layers": 3}}, "recompute.layers has no effect", "granularity=full"),
        (
            "llama",
            1,
            {"features__recompute": {"granularity": "full", "modules": ["mlp"]}},
            "recompute.modules has no effect",
            "granularity=selective",
        ),
        (
            "llama",
            2,
            {"parallel__pp": 2, "features__recompute": {"granularity": "full", "layers": 3}},
            "recompute.layers is 3, a pipeline stage has 2 layers",
            "1 to 2",
        ),
        ("llama", 1, {"features__recompute": {"modules": ["moe"]}}, "moe cannot be recomputed: this model has no experts", "out"),
        ("llama", 1, {"features__recompute": {"modules": []}}, "expected one name or more", "[core_attn]"),
        ("llama", 1, {"features__recompute": {"modules": ["mlp", "mlp"]}}, "each once", "[core_attn]"),
        ("llama", 1, {"features__recompute": {"modules": ["mla_up_proj"]}}, "no latent attention", "take mla_up_proj out"),
        ("mixtral", 1, {"features__recompute": {"modules": ["mlp"]}}, "every layer of this model holds experts", "take mlp out"),
        ("mixtral", 1, {"features__recompute": {"modules": ["shared_experts"]}}, "no shared experts", "out of"),
        (
            "mixtral",
            1,
            {"features__recompute": {"modules": ["moe_act"]}, MOE + "grouped_gemm": False},
            "features.moe.grouped_gemm is off",
            "take moe_act out",
        ),
        ("mixtral", 1, {"features__recompute": {"modules": ["moe", "moe_act"]}}, "moe holds moe_act already", "or moe"),
        # experts
        ("mixtral", 1, {MOE + "bias_rate": 0.1}, "bias_rate = 0.1 has no effect: the model's router has no", "leave"),
        ("mixtral", 1, {MOE + "balancing": "none", MOE + "aux_loss": 0.1}, "balancing is none", "leave features.moe.aux_loss"),
        ("deepseek_v3", 1, {MOE + "balancing": "sequence"}, "the coefficient of its loss is 0", "aux_loss=0.001"),
        ("mixtral", 1, {MOE + "z_loss": -1}, "z_loss is -1.0, expected 0 or more", "z_loss=0"),
        ("llama", 1, {"features__mtp_loss": 0.2}, "mtp_loss = 0.2 has no effect", "leave features.mtp_loss out"),
        # numbers of the recipe
        ("llama", 1, {"optim__lr": 0}, "optim.lr is 0.0, expected more than 0", "optim.lr=0.0003"),
        ("llama", 1, {"optim__beta2": 1.0}, "optim.beta2 is 1.0", "optim.beta2=0.95"),
        ("llama", 1, {"optim__weight_decay": -1}, "weight_decay is -1.0, expected 0 or more", "weight_decay=0.1"),
        ("llama", 1, {"train__steps": 0}, "train.steps is 0, expected 1 or more", "train.steps=1000"),
        ("llama", 1, {"optim__loss_scale": 8.0}, "has no effect: train.precision is fp32", "leave optim.loss_scale out"),
        (
            "llama",
            1,
            {"train__precision": "fp16", "optim": {"loss_scale": 8.0, "initial_loss_scale": 4.0}},
            "optim.loss_scale is fixed",
            "leave optim.initial_loss_scale out",
        ),
        ("llama", 1, {"train__max_skipped": 3}, "max_skipped = 3 has no effect: train.on_nan is stop", "leave"),
        ("llama", 1, {"load__iteration": 3}, "has no effect: load.path is not set", "leave load.iteration out"),
        ("llama", 1, {"model__hidden_dropout": 1.0}, "hidden_dropout is 1.0", "hidden_dropout=0.1"),
        ("llama", 1, {"model__attention_dropout": 0.1}, "fused and has no dropout", "model.hidden_dropout is there"),
        # the schedule: ten steps
        ("llama", 1, {"schedule__warmup_steps": 10}, "warmup_steps 10 leaves nothing of train.steps 10", "below 10"),
        ("llama", 1, {"schedule": {"warmup_steps": 5, "decay_steps": 4}}, "schedule.decay_steps 4", "below 4"),
        ("llama", 1, {"schedule__min_lr": 1.0}, "min_lr 1 is more than optim.lr 0.0003", "below optim.lr"),
        ("llama", 1, {"schedule": {"kind": "constant", "min_lr": 1e-4}}, "min_lr = 0.0001 has no effect", "leave"),
        ("llama", 1, {"schedule__wsd_steps": 4}, "wsd_steps = 4 has no effect: schedule.kind is cosine", "leave"),
        ("llama", 1, {"schedule__kind": "wsd"}, "needs schedule.wsd_steps", "schedule.wsd_steps=1"),
        ("llama", 1, {"schedule": {"kind": "wsd", "wsd_steps": 8, "warmup_steps": 3}}, "more than train.steps 10", "wsd_steps=7"),
        # data and saving
        ("llama", 1, {"train__eval_every": 5}, "eval_every=5 without validation data", "data.split=[98, 1, 1]"),
        ("llama", 1, {"data__train": None}, "names no data", "data.train"),
        ("llama", 1, {"data__split": [0, 1]}, "data.split is [0.0, 1.0]", "[98, 1, 1]"),
        ("llama", 1, {"data__train": "nowhere/x"}, "data.train: no dataset nowhere/x", ".idx"),
        ("llama", 1, {"save": {"every": 5}}, "save.every = 5 has no effect: save.path is not set", "runs/NAME"),
        (
            "llama",
            1,
            {"save": {"storage": "per_node"}},
            "save.storage = per_node has no effect: save.path is not set",
            "runs/NAME",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, family: str, world: int, sets: dict[str, Any], message: str, hint: str) -> None:
    found = check(make_job(tmp_path, family, world=world, **sets))
    fits = [p for p in found if message in p.message and hint in p.hint]
    assert len(fits) == 1, texts(found)
    assert not fits[0].warning


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    found = check(make_job(tmp_path, world=3, parallel__tp=3, train__global_batch_size=7, optim__lr=0, train__steps=0))
    assert [problem.warning for problem in found] == sorted(problem.warning for problem in found)
    assert {"attention heads", "optim.lr", "train.steps"} <= {
        w for w in ("attention heads", "optim.lr", "train.steps") if w in texts(found)
    }
    with pytest.raises(ToolError) as fault:
        raise_first(found)
    assert (fault.value.message, fault.value.hint) == (found[0].message, found[0].hint)


def test_warnings_let_a_run_start(tmp_path: Path) -> None:
    job = make_job(tmp_path, model__config={"max_position_embeddings": 16}, save={"path": None})
    found = check(job)
    assert texts(found) == ""
    said = texts(found, warnings=True)
    assert "data.seq_len 32 is longer than the model's max_position_embeddings 16" in said
    assert "nothing is saved" in said
    raise_first(found)


def test_data_made_for_another_model(tmp_path: Path) -> None:
    hf = model_dir(tmp_path / "hf")
    (hf / "tokenizer.json").write_text("{}")
    token_file(tmp_path / "data/a")
    facts = {"vocab_size": 500, "seq_len": 64, "tokenizer_sha256": "f" * 64}
    (tmp_path / "data/a.manifest.json").write_text(manifest_text(tool="jumar-data", version="0", **facts))
    found = check(make_job(tmp_path))
    assert "was made with a vocabulary of 500, the model has 131" in texts(found)
    assert "was made for samples of 64 tokens, data.seq_len is 32\n  set data.seq_len=64" in texts(found)
    other = "another tokenizer (ffffffffffff) than the model's (44136fa355b3)"
    assert other in texts(found)
    found = check(make_job(tmp_path, data__any_tokenizer=True))
    assert other not in texts(found)
    assert other in texts(found, warnings=True)


def test_data_made_for_this_model(tmp_path: Path) -> None:
    hf = model_dir(tmp_path / "hf")
    (hf / "tokenizer.json").write_text("{}")
    token_file(tmp_path / "data/a")
    own = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    text = manifest_text(tool="jumar-data", version="0", vocab_size=131, tokenizer_sha256=own)
    (tmp_path / "data/a.manifest.json").write_text(text)
    assert check(make_job(tmp_path)) == []


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path, train__precision="bf16")
    need = checkpoint_bytes(job)
    assert need == 140224 * 14  # parameters of the tiny model; bf16 weights, and three fp32 numbers of the optimizer
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=need - 1))
    (problem,) = check(job)
    assert "a checkpoint takes about 1.9 MiB, 1.9 MiB are free" in problem.message
    assert problem.code == Exit.ENVIRONMENT
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=need))
    assert check(job) == []


@pytest.mark.parametrize(
    "sets, module",
    [({"log__tensorboard": True}, "tensorboard"), ({"log__wandb": {"project": "p"}}, "wandb"), ({"save__hf": "end"}, "convert")],
)
def test_a_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets: dict[str, Any], module: str) -> None:
    job = make_job(tmp_path, **sets)
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    (problem,) = check(job)
    assert f'pip install "jumar-train-core[{module}]"' in problem.hint
    assert problem.code == Exit.ENVIRONMENT
    monkeypatch.setattr(checks, "find_spec", lambda name: object())
    assert check(job) == []


def test_the_installed_engine_is_right() -> None:
    assert list(check_engine()) == []


@pytest.mark.parametrize("whole", [True, False])
def test_a_shadowed_engine_names_the_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    """A Megatron-LM checkout on PYTHONPATH, before or behind the installed one; nothing of it is imported."""
    core = tmp_path / "Megatron-LM/megatron/core"
    core.mkdir(parents=True)
    (core / "__init__.py").write_text("raise RuntimeError('imported')")
    if whole:
        (core.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.delitem(sys.modules, "megatron.core", raising=False)
    entry = str(tmp_path / "Megatron-LM")
    monkeypatch.setattr(sys, "path", [*sys.path, entry] if whole else [entry, *sys.path])
    assert imported_from() == core
    (problem,) = check_engine()
    assert f"megatron.core would be imported from {core}" in problem.message
    assert f"remove {entry} from PYTHONPATH" in problem.hint
    assert problem.code == Exit.ENVIRONMENT


def test_a_checkout_behind_the_installed_one_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "megatron/core").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "megatron.core", raising=False)
    assert list(check_engine()) == []


def test_mindspeed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import mindspeed.megatron_adaptor\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setitem(sys.modules, "mindspeed", types.ModuleType("mindspeed"))
    (problem,) = check_engine()
    assert "mindspeed is imported before training begins" in problem.message
    assert problem.hint == f"{tmp_path / 'sitecustomize.py'} imports it: take that line out"


@pytest.mark.parametrize(
    "version, fits", [("0.16.0", False), ("0.16.1", True), ("0.16.3+ascend", True), ("0.17.0", False), ("0.9", False)]
)
def test_versions_of_the_engine(monkeypatch: pytest.MonkeyPatch, version: str, fits: bool) -> None:
    from jumar.train_core import engine_check

    home = installed()[1]
    monkeypatch.setattr(engine_check, "installed", lambda: (version, home))
    assert (list(check_engine()) == []) == fits


def test_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    from jumar.train_core import engine_check

    monkeypatch.setattr(engine_check, "installed", lambda: (None, None))
    (problem,) = check_engine()
    assert problem.hint == 'pip install "megatron-core>=0.16.1,<0.17"'


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "run/iter_0000020").mkdir(parents=True)
    for sets, message in (
        ({"load__path": str(tmp_path / "empty")}, "empty holds no weights"),
        ({"load__path": str(tmp_path / "run"), "load__iteration": 7}, "has no iteration 7"),
    ):
        assert message in texts(check(make_job(tmp_path, **sets)))
    with pytest.raises(ToolError, match=r"load\.path: .*none does not exist"):
        make_job(tmp_path, load__path=str(tmp_path / "none"))


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "file is a file" in texts(check(make_job(tmp_path, save__path=str(tmp_path / "file/run"))))


def test_samples_longer_than_the_data_are_told(tmp_path: Path) -> None:
    said = texts(check(make_job(tmp_path, data__seq_len=4000)), warnings=True)
    assert "have 1,280 tokens, a sample takes data.seq_len + 1 = 4,001" in said
