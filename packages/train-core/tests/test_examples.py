"""examples/recipes: each resolves and fits its model, whose config.json stands here with the published sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import model_dir, texts, token_file
from jumar.schema.recipe import validate
from jumar.train_core.checks import check
from jumar.train_core.estimate import ranks
from jumar.train_core.job import Job, resolve
from jumar.train_core.recipe import Recipe

RECIPES = Path(__file__).parents[3] / "examples/recipes"
LLAMA = dict(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=131072,
)
QWEN3_MOE = dict(
    vocab_size=151936,
    hidden_size=2048,
    intermediate_size=6144,
    moe_intermediate_size=768,
    num_hidden_layers=48,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=128,
    num_experts=128,
    num_experts_per_tok=8,
    max_position_embeddings=40960,
)
DEEPSEEK_V2_LITE = dict(
    vocab_size=102400,
    hidden_size=2048,
    intermediate_size=10944,
    moe_intermediate_size=1408,
    num_hidden_layers=27,
    num_attention_heads=16,
    num_key_value_heads=16,
    q_lora_rank=None,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    n_routed_experts=64,
    n_shared_experts=2,
    num_experts_per_tok=6,
    first_k_dense_replace=1,
    topk_method="greedy",
    n_group=1,
    topk_group=1,
    max_position_embeddings=163840,
)
TINY = dict(vocab_size=320, hidden_size=64, num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=128)
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "tiny-cpu": ("llama", TINY, 1),
    "llama-pretrain": ("llama", LLAMA, 8),
    "qwen3-moe-cluster": ("qwen3_moe", QWEN3_MOE, 64),
    "deepseek-v2-lite": ("deepseek_v2", DEEPSEEK_V2_LITE, 16),
}
DEVICE_BYTES = 64 * 2**30


def example(folder: Path, name: str, world: int) -> Job:
    """An example's job, its paths led to stand-ins. The recipe's own numbers stay."""
    family, sizes, _ = MODELS[name]
    values = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    model = str(model_dir(folder / "hf", family, **sizes))
    values["model"] = values.get("model", {}) | {"path": model}
    if "load" in values:
        values["load"]["path"] = model
    data = str(token_file(folder / "data/a", documents=400, length=2000))
    data_section = values["data"]
    for part in ("train", "valid"):
        if isinstance(data_section.get(part), list):
            data_section[part] = [source | {"prefix": data} for source in data_section[part]]
        elif part in data_section:
            data_section[part] = data
    values["save"]["path"] = str(folder / "run")
    return resolve(validate(Recipe, values, name), world=world, device="cpu")


def test_every_example_is_here() -> None:
    assert {path.stem for path in RECIPES.glob("*")} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_an_example_fits_its_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jumar.train_core.checks._room", lambda path: None)  # of the machine that the tests run on
    world = MODELS[name][2]
    job = example(tmp_path, name, world)
    problems = list(check(job))
    assert not texts(problems), texts(problems)
    assert not texts(problems, warnings=True)
    assert max(rank.total_bytes for rank in ranks(job)) < DEVICE_BYTES


def test_the_example_of_the_page_is_the_one_here() -> None:
    page = (RECIPES.parents[1] / "docs/train.md").read_text(encoding="utf-8")
    text = (RECIPES / "tiny-cpu.yaml").read_text(encoding="utf-8")
    assert text[text.index("model:") :] in page
