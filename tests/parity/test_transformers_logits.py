"""A transformers model after a journey through Megatron shards: the same state dict, and the same logits bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import tiny_models
from jumar.ckpt_convert import open_checkpoint, plan_hf, plan_megatron, run_plan
from jumar.schema.parallel import ParallelLayout
from jumar.schema.registry import families

LAYOUT = ParallelLayout(tp=2, pp=2)  # every tiny model has 4 layers and an even number of groups


def random_model(model_type: str, **changes: Any) -> torch.nn.Module:
    """The family's tiny configuration, with weights that are all different."""
    settings = {k: v for k, v in families()[model_type].tiny.items() if k not in ("model_type", "architectures", "torch_dtype")}
    config = AutoConfig.for_model(model_type, **settings | changes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tiny_models.randomise(model.state_dict(), seed=0)
    return model


def journey(hf: Path, home: Path, layout: ParallelLayout, **options: Any) -> Path:
    """The model directory after Megatron shards of a layout."""
    run_plan(plan_megatron(open_checkpoint(hf), layout, **options), home / "mcore")
    run_plan(plan_hf(open_checkpoint(home / "mcore")), home / "back")
    return home / "back"


@torch.no_grad()
def logits(model: torch.nn.Module, vocab_size: int) -> torch.Tensor:
    tokens_BS = torch.randint(vocab_size, (2, 24), generator=torch.Generator().manual_seed(0))
    return model(tokens_BS).logits


def assert_same_model(found: Path, expected: torch.nn.Module) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(found, dtype=torch.float32, output_loading_info=True)
    mtp = f"model.layers.{expected.config.num_hidden_layers}."  # transformers passes over these layers
    unexpected = [name for name in info["unexpected_keys"] if not name.startswith(mtp)]
    assert not any([unexpected, info["missing_keys"], info["mismatched_keys"]]), info
    own, wanted = model.eval().state_dict(), expected.state_dict()
    assert own.keys() == wanted.keys()
    assert [name for name, tensor in wanted.items() if not torch.equal(own[name], tensor)] == []
    vocab_size = expected.config.vocab_size
    first, second = logits(model, vocab_size), logits(expected, vocab_size)
    assert second.std() > 0.05
    assert torch.equal(first, second)


@pytest.mark.parametrize("model_type", families())
@pytest.mark.compat("written", "transformers 5", "safetensors directory", "loads, and gives the original's logits, every family")
def test_the_model_that_comes_back_is_the_same(model_type: str, tmp_path: Path) -> None:
    model = random_model(model_type)
    model.save_pretrained(tmp_path / "hf")
    assert_same_model(journey(tmp_path / "hf", tmp_path, LAYOUT), model)


@pytest.mark.parametrize(
    "model_type, layout, options",
    [
        ("qwen2", ParallelLayout(pp=2, vpp=2), {}),
        ("gpt2", ParallelLayout(tp=4, pp=2, layers_per_stage=(3, 1)), {"dialect": "te"}),
        ("mixtral", ParallelLayout(tp=2, ep=2, etp=1), {"expert_layout": "grouped"}),
        ("qwen2_moe", ParallelLayout(tp=2, ep=2, tp_extend_ep=True), {"dialect": "mindspeed"}),
        ("deepseek_v3", ParallelLayout(pp=2, vpp=2, schedule="dualpipev"), {"dialect": "mindspeed"}),
        ("mamba2", ParallelLayout(tp=4, pp=3, noop_layers=(0, 5)), {"vocab_divisible_by": 64}),
    ],
    ids=["vpp", "uneven te", "grouped etp", "extend mindspeed", "dualpipev mindspeed", "no-ops"],
)
def test_other_layouts_bring_it_back_too(
    model_type: str, layout: ParallelLayout, options: dict[str, Any], tmp_path: Path
) -> None:
    model = random_model(model_type)
    model.save_pretrained(tmp_path / "hf")
    if model_type == "deepseek_v3":
        tiny_models.add_mtp(tmp_path / "hf", model.config.num_hidden_layers, model.config.hidden_size)
    back = journey(tmp_path / "hf", tmp_path, layout, **options)
    assert_same_model(back, model)
    before, after = (load_file(d / "model.safetensors") for d in (tmp_path / "hf", back))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe", "gpt2"])
@pytest.mark.compat("read", "transformers 4", "`pytorch_model.bin`", "by the restricted unpickler")
def test_pytorch_bin_files_are_read(model_type: str, tmp_path: Path) -> None:
    """As older models are published: torch.save of the state dict, in one file or several."""
    model = random_model(model_type, tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "hf")
    to_bin(tmp_path / "hf", tmp_path / "one")
    to_bin(tmp_path / "hf", tmp_path / "three", files=3)
    for name in ("one", "three"):
        back = journey(tmp_path / name, tmp_path / f"{name}-journey", LAYOUT)
        assert_same_model(back, model)


def to_bin(source: Path, target: Path, files: int = 1) -> None:
    """A model directory with its weights as pytorch_model.bin, tensors shared as save_pretrained leaves tied ones."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    state = load_file(source / "model.safetensors")
    names = list(state)
    if files == 1:
        torch.save(state, target / "pytorch_model.bin")
        return
    weight_map = {}
    for i in range(files):
        title = f"pytorch_model-{i + 1:05d}-of-{files:05d}.bin"
        torch.save({n: state[n] for n in names[i::files]}, target / title)
        weight_map |= dict.fromkeys(names[i::files], title)
    (target / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_tied_head_that_is_written_out_too_comes_back(tmp_path: Path) -> None:
    """torch.save keeps both names of one tensor; the copy is checked, and is there again at the end."""
    model = random_model("qwen2")
    model.save_pretrained(tmp_path / "hf")
    to_bin(tmp_path / "hf", tmp_path / "bin")
    state = torch.load(tmp_path / "bin" / "pytorch_model.bin")
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    torch.save(state, tmp_path / "bin" / "pytorch_model.bin")
    back = journey(tmp_path / "bin", tmp_path, LAYOUT)
    assert set(open_checkpoint(back).copies) == {"lm_head.weight"}
    assert_same_model(back, model)


CHANGES: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 24},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "llama": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "deepseek_v2": {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32}
    },
}


@pytest.mark.parametrize("source", ["manifest", "args"])
@pytest.mark.parametrize("model_type", families())
def test_a_config_written_without_the_original(model_type: str, source: str, tmp_path: Path) -> None:
    """Shards without hf/: transformers reads the config that is written from the manifest's traits, or from args alone."""
    model = random_model(model_type, **CHANGES.get(model_type, {}))
    model.save_pretrained(tmp_path / "hf")
    run_plan(plan_megatron(open_checkpoint(tmp_path / "hf"), LAYOUT), tmp_path / "mcore")
    shutil.rmtree(tmp_path / "mcore" / "hf")
    if source == "args":
        (tmp_path / "mcore" / "manifest.json").unlink()
    run_plan(plan_hf(open_checkpoint(tmp_path / "mcore")), tmp_path / "back")
    assert_same_model(tmp_path / "back", model)
