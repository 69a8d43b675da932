"""PEFT adapters: what is written loads in peft and gives the merged model's logits; what peft writes makes the journey."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.warning import PeftWarning
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from jumar.ckpt_convert import open_checkpoint, plan_hf, plan_megatron, run_plan
from jumar.ckpt_convert.checkpoint import OpenOptions
from jumar.ckpt_convert.merge import bearing, merged, open_adapter
from jumar.ckpt_convert.to_peft import plan_peft
from jumar.schema.errors import ToolError
from jumar.schema.parallel import ParallelLayout

PEFT = "peft 0.21"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
LATENT = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
DENSE = {
    "llama": ATTENTION + MLP,
    "qwen2": ATTENTION + MLP,
    "qwen3": ["q_proj", "v_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "deepseek_v2": LATENT,
    "deepseek_v2_lite": ["q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
    "deepseek_v3": LATENT,
}
LAYOUT = ParallelLayout(tp=2, pp=2)


def load(path: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    tokens_BS = torch.randint(97, (2, 24), generator=torch.Generator().manual_seed(0))
    return model(tokens_BS).logits


def same_logits(one: torch.nn.Module, other: torch.nn.Module, plain: torch.nn.Module) -> None:
    """Equal but for the order of sums; and the adapter changes a lot."""
    a, b, c = logits(one), logits(other), logits(plain)
    assert (b - c).abs().max() > 0.02 * c.std()
    torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5 * float(c.std() + 1))


def adapted(base: Path, home: Path, seed: int = 0, **settings: Any) -> Path:
    """An adapter that peft makes and saves: every lora_A is its own, every lora_B is not zero."""
    model = get_peft_model(load(base), LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * parameter.shape[1] ** -0.5 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(home, save_embedding_layers=False)
    return home


def from_peft(base: Path, adapter: Path) -> torch.nn.Module:
    """As a user loads it; a key that is missing or left over is a warning, and here a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", PeftWarning)
        warnings.filterwarnings("error", message=".*(missing|unexpected).*keys.*")
        return PeftModel.from_pretrained(load(base), adapter).eval()


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.compat("read", PEFT, "adapter directory", "a lora_A for each of q, k, v; merged, the logits of merge_and_unload")
@pytest.mark.compat("written", PEFT, "adapter directory", "loads in peft, same logits; q/k/v, gate/up and latent attention")
def test_an_adapter_of_peft_through_megatron(name: str, hf: Callable[[str], Path], tmp_path: Path) -> None:
    base = hf(name)
    peft = adapted(base, tmp_path / "peft", r=4, lora_alpha=12, target_modules=DENSE[name])
    expected = from_peft(base, peft).merge_and_unload()
    opened = open_checkpoint(peft)
    run_plan(plan_megatron(opened, LAYOUT), tmp_path / "mcore")
    run_plan(plan_peft(open_checkpoint(tmp_path / "mcore")), tmp_path / "back")
    same_logits(from_peft(base, tmp_path / "back"), expected, load(base))
    model = open_checkpoint(base)
    for adapter in (peft, tmp_path / "mcore", tmp_path / "back"):
        run_plan(plan_hf(merged(model, open_adapter(adapter, model, OpenOptions()))), tmp_path / f"merged-{adapter.name}")
        same_logits(load(tmp_path / f"merged-{adapter.name}"), expected, load(base))
    run_plan(plan_megatron(bearing(model, opened), LAYOUT), tmp_path / "bearing")
    run_plan(plan_hf(merged(open_checkpoint(tmp_path / "bearing", options=OpenOptions(bearing=True)))), tmp_path / "own")
    same_logits(load(tmp_path / "own"), expected, load(base))


EXPERTS = {
    "mixtral": ["w1", "w2", "w3", "q_proj"],
    "qwen2_moe": [f"experts.{e}.{x}" for e in range(4) for x in MLP],
    "qwen3_moe": [*MLP, "v_proj"],
    "deepseek_v2": LATENT + [f"experts.{e}.{x}" for e in range(8) for x in MLP],
    "deepseek_v3": [f"experts.{e}.{x}" for e in range(8) for x in MLP],
}
"""Beside experts, peft takes the same names in shared experts and dense MLPs for those of the fused experts."""


def by_expert(base: Path, home: Path, leaves: list[str], rank: int = 4) -> Path:
    """An adapter with a module for each expert, as peft with transformers 4 writes it; gate and up have their own lora_A."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, weight in load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if any(module.endswith(f".{leaf}") for leaf in leaves):
            for half, shape in (("A", (rank, weight.shape[1])), ("B", (weight.shape[0], rank))):
                noise = torch.randn(shape, generator=generator)
                tensors[f"base_model.model.{module}.lora_{half}.weight"] = 0.5 * shape[1] ** -0.5 * noise
    home.mkdir()
    save_file(tensors, home / "adapter_model.safetensors", metadata={"format": "pt"})
    config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules=leaves).to_dict()
    config = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()} | {"peft_type": "LORA"}
    (home / "adapter_config.json").write_text(json.dumps(config, default=str))
    return home


@pytest.mark.parametrize("grouped", [False, True], ids=["sequential", "grouped"])
@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.compat(
    "read", "peft, saved on transformers 4", "adapter directory with a module for each expert", "through Megatron"
)
@pytest.mark.compat("written", PEFT, "adapter directory, a module for each expert", "on transformers 5, same logits")
def test_adapters_of_experts(name: str, grouped: bool, hf: Callable[[str], Path], tmp_path: Path) -> None:
    """transformers 5 holds the experts of a layer in two tensors; peft puts the modules of such an adapter together."""
    base = hf(name)
    layout = ParallelLayout(tp=2, pp=2, ep=2, etp=1)
    peft = by_expert(base, tmp_path / "peft", EXPERTS[name])
    model = open_checkpoint(base)
    adapter = open_adapter(peft, model, OpenOptions())
    run_plan(plan_hf(merged(model, adapter)), tmp_path / "merged")
    expected = load(tmp_path / "merged")
    run_plan(plan_megatron(adapter, layout, expert_layout="grouped" if grouped else "sequential"), tmp_path / "mcore")
    opened = open_checkpoint(tmp_path / "mcore")
    run_plan(plan_hf(merged(model, open_adapter(tmp_path / "mcore", model, OpenOptions()))), tmp_path / "own")
    same_logits(load(tmp_path / "own"), expected, load(base))
    if name == "qwen2_moe":  # peft 0.21 puts the modules of such experts together for other families, and not for this one
        return
    same_logits(from_peft(base, peft), expected, load(base))
    made = plan_peft(opened)
    run_plan(made, tmp_path / "back")
    if any("transformers 5" in note for note in made.notes):
        assert name.startswith("deepseek")  # zeros on the MLPs beside the experts: nothing is lost
        return
    same_logits(from_peft(base, tmp_path / "back"), expected, load(base))


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3"])
@pytest.mark.compat("read", PEFT, "adapter directory, experts stacked (`target_parameters`)", "as saved on transformers 5")
def test_stacked_experts_are_taken_apart(name: str, hf: Callable[[str], Path], tmp_path: Path) -> None:
    """transformers 5 has the experts of a layer in two parameters, and peft a LoRA on each of those."""
    base, layout = hf(name), ParallelLayout(tp=2, pp=2, ep=2)
    leaves = ["w1", "w2", "w3", "q_proj"] if name == "mixtral" else [*MLP, "o_proj"]
    peft = adapted(base, tmp_path / "peft", r=4, lora_alpha=6, target_modules=leaves)
    assert json.loads((peft / "adapter_config.json").read_text())["target_parameters"]
    expected = from_peft(base, peft)
    model = open_checkpoint(base)
    adapter = open_adapter(peft, model, OpenOptions())
    run_plan(plan_hf(merged(model, adapter)), tmp_path / "merged")
    same_logits(load(tmp_path / "merged"), expected, load(base))
    run_plan(plan_megatron(adapter, layout, expert_layout="grouped"), tmp_path / "mcore")
    run_plan(plan_hf(merged(model, open_adapter(tmp_path / "mcore", model, OpenOptions()))), tmp_path / "own")
    same_logits(load(tmp_path / "own"), expected, load(base))
    if not name.startswith("deepseek"):  # which have MLPs beside the experts
        run_plan(plan_peft(open_checkpoint(tmp_path / "mcore")), tmp_path / "back")
        same_logits(from_peft(base, tmp_path / "back"), expected, load(base))


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 10, "use_rslora": True, "target_modules": ATTENTION},
        {"r": 4, "lora_alpha": 8, "rank_pattern": {"layers.1.self_attn.q_proj": 6}, "alpha_pattern": {"q_proj": 5}},
        {"r": 3, "target_modules": r".*\.layers\.[02]\..*(q|up)_proj"},
        {"r": 3, "target_modules": ["v_proj", "down_proj"], "layers_to_transform": [1, 3]},
        {"r": 3, "target_modules": "all-linear", "exclude_modules": ["k_proj"]},
        {"r": 3, "target_modules": ["lm_head", "q_proj"]},
    ],
    ids=["rslora", "patterns", "regex", "layers", "all-linear", "lm_head"],
)
@pytest.mark.compat("read", PEFT, "adapter directory", "rslora, rank_pattern, alpha_pattern, target_modules as names or regex")
def test_what_peft_can_say_is_merged(settings: dict[str, Any], hf: Callable[[str], Path], tmp_path: Path) -> None:
    """And what Megatron can hold, with one rank and one factor for all, goes there too."""
    base = hf("llama")
    peft = adapted(base, tmp_path / "peft", **{"target_modules": ATTENTION} | settings)
    expected = from_peft(base, peft).merge_and_unload()
    model = open_checkpoint(base)
    adapter = open_adapter(peft, model, OpenOptions())
    run_plan(plan_hf(merged(model, adapter)), tmp_path / "merged")
    same_logits(load(tmp_path / "merged"), expected, load(base))
    if "alpha_pattern" in settings or "lm_head" in settings.get("target_modules", ()):
        with pytest.raises(ToolError, match=r"Megatron") as caught:
            plan_megatron(adapter, LAYOUT)
        assert "merge-lora" in (caught.value.hint or "")
        return
    run_plan(plan_megatron(adapter, LAYOUT), tmp_path / "mcore")
    run_plan(plan_peft(open_checkpoint(tmp_path / "mcore")), tmp_path / "back")
    same_logits(from_peft(base, tmp_path / "back"), expected, load(base))
