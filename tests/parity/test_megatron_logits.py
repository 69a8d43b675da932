"""Converted checkpoints load into megatron-core strictly, and there give the logits that transformers gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import literal
import tiny_models
from harness import Layout, convert, launch

FIVE = ["llama", "qwen2", "qwen3", "mixtral", "deepseek_v2"]
OTHERS = [name for name in tiny_models.MODELS if name not in FIVE]
EXPERTS = ["mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "deepseek_v3_mtp"]


def slow(name: str, layout: Layout, models: list[str]):
    return pytest.param(layout, models, id=name, marks=pytest.mark.slow)


# One launch of torchrun takes all the models of a layout: starting the processes is what takes the time.
LAUNCHES = [
    pytest.param({}, FIVE, id="tp1"),
    pytest.param({"tp": 2, "pp": 2}, FIVE, id="tp2-pp2"),
    slow("tp1-others", {}, OTHERS),
    slow("tp2-pp2-others", {"tp": 2, "pp": 2}, OTHERS),
    slow("pp2-vpp2", {"pp": 2, "vpp": 2}, FIVE + OTHERS),
    slow("ep2", {"ep": 2}, EXPERTS),
    slow("tp2-ep2", {"tp": 2, "ep": 2}, EXPERTS),
    slow("tp2-ep2-etp1", {"tp": 2, "ep": 2, "etp": 1}, EXPERTS),
    slow("grouped", {"grouped": True}, EXPERTS),
    slow("tp2-pp2-grouped", {"tp": 2, "pp": 2, "grouped": True}, EXPERTS),
    slow("tp2-ep2-grouped", {"tp": 2, "ep": 2, "grouped": True}, EXPERTS),
]


@pytest.mark.parametrize("layout, models", LAUNCHES)
@pytest.mark.compat(
    "written",
    "megatron-core 0.16.1",
    "`mp_rank_*` shards, local layer spec",
    "strict `load_state_dict` on every rank, and transformers' logits",
)
def test_logits_are_those_of_transformers(layout, models, hf, tmp_path, subtests):
    for name in models:
        convert(hf(name), tmp_path / name, layout)
    rows = launch([(tmp_path / name, hf(name)) for name in models], layout, tmp_path / "report.json")
    for name, row in zip(models, rows, strict=True):
        with subtests.test(name):
            assert "error" not in row, row["error"]
            assert [key for key in row["absent"] if not key.endswith("._extra_state")] == []  # holds no weights
            assert row["scale"] > 0.5
            assert row["max_diff"] < 1e-5
            assert_literal(tmp_path / name, hf(name), layout)


def assert_literal(converted: Path, hf_dir: Path, layout: Layout) -> None:
    """Every shard holds exactly what literal.py says."""
    expected = literal.payloads(hf_dir, **layout)
    for folder in (converted / "iter_0000001").iterdir():
        payload = torch.load(folder / "model_optim_rng.pt", weights_only=False)
        for key, state in expected[folder.name].items():
            assert payload[key].keys() == state.keys()
            wrong = [name for name, tensor in state.items() if not torch.equal(payload[key][name], tensor)]
            assert not wrong, f"{folder.name}: {wrong}"
