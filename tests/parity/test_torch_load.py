"""Shards as torch and zipfile see them: sound archives, loadable with weights_only, holding what is defined by hand."""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import by_hand
import tiny_hf
from by_hand import Wanted
from drawn import layout_of
from jumar.ckpt_convert import open_checkpoint, plan_megatron, run_plan
from jumar.schema.registry import families

BITS = {torch.bfloat16: torch.uint16, torch.float32: torch.uint32}
KINDS = {np.dtype(np.uint16): torch.bfloat16, np.dtype(np.uint32): torch.float32}


def target(model_type: str) -> Wanted:
    """A layout that uses as much as the family has."""
    experts = {"ep": 2, "grouped": True} if families()[model_type].spec(families()[model_type].tiny).moe else {}
    return Wanted(tp=2, pp=2, vpp=2, divisible_by=8, **experts)


@pytest.mark.parametrize("model_type", families())
@pytest.mark.compat(
    "written", "torch 2.13", "`mp_rank_*` shards", "`torch.load(weights_only=True)` with `argparse.Namespace` allow-listed"
)
def test_torch_loads_what_is_defined(model_type: str, tmp_path: Path) -> None:
    config, want = dict(families()[model_type].tiny), target(model_type)
    tensors = tiny_hf.random_tensors(config)
    hf = tiny_hf.write_hf(tmp_path / "hf", config, tensors)
    experts = "grouped" if want.grouped else "sequential"
    plan = plan_megatron(open_checkpoint(hf), layout_of(want), expert_layout=experts, vocab_divisible_by=want.divisible_by)
    run_plan(plan, tmp_path / "mcore")
    expected = dict(by_hand.shards(tensors, config, want))
    files = sorted((tmp_path / "mcore" / "iter_0000001").glob("mp_rank_*/*"))
    assert [f.parent.name for f in files] == sorted(expected)
    for file in files:
        assert file.name == "model_optim_rng.pt"
        with zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None
        for mmap in (False, True):
            payload = load(file, mmap)
            assert payload["checkpoint_version"] == 3.0
            assert payload["iteration"] == 1
            assert isinstance(payload["args"], argparse.Namespace)
            assert_same({k: v for k, v in payload.items() if k.startswith("model")}, expected[file.parent.name])


def load(file: Path, mmap: bool) -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(file, weights_only=True, mmap=mmap)


def assert_same(found: dict[str, dict[str, torch.Tensor]], expected: dict[str, dict[str, np.ndarray]]) -> None:
    assert found.keys() == expected.keys()
    for key, state in expected.items():
        assert found[key].keys() == state.keys()
        for name, array in state.items():
            tensor = found[key][name]
            assert tensor.dtype == KINDS[array.dtype], name
            assert tensor.shape == array.shape, name
            assert tensor.is_contiguous(), name
            assert np.array_equal(tensor.view(BITS[tensor.dtype]).numpy(), array), name


def test_args_are_plain_values_and_name_the_layout(tmp_path: Path) -> None:
    config = dict(families()["llama"].tiny)
    hf = tiny_hf.write_hf(tmp_path / "hf", config, tiny_hf.random_tensors(config))
    run_plan(plan_megatron(open_checkpoint(hf), layout_of(Wanted(tp=2, pp=2, vpp=2))), tmp_path / "mcore")
    args = vars(load(tmp_path / "mcore" / "iter_0000001" / "mp_rank_01_001" / "model_optim_rng.pt", False)["args"])
    assert args["params_dtype"] is torch.bfloat16
    layout = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
    sizes = {"num_layers": 4, "hidden_size": 64, "num_query_groups": 4, "padded_vocab_size": 132, "vocab_size": 131}
    assert {k: args[k] for k in layout | sizes} == layout | sizes
    plain = (int, float, str, bool, list, tuple, torch.dtype, type(None))
    assert [k for k, v in args.items() if not isinstance(v, plain)] == []
