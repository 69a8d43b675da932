"""Features as objects: who owns which field, what goes with what, and what megatron-core is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs import DENSE, EXPERTS, FAMILIES, make_job, texts
from jumar.train_core import features
from jumar.train_core.features import FEATURES, Feature, owners
from jumar.train_core.features.base import default, leaves, value
from jumar.train_core.recipe import Features, Parallel

RECOMPUTE_ALL = {"granularity": "full", "method": "block", "layers": 2}


def test_every_field_has_one_owner() -> None:
    found = owners(FEATURES)
    wanted = [*leaves(Parallel(), "parallel."), *leaves(Features(), "features.")]
    assert {name: found.get(name, []) for name in wanted if len(found.get(name, [])) != 1} == {}
    assert all(len(names) == 1 for names in found.values())


def test_names_and_fields_exist() -> None:
    names = [feature.name for feature in FEATURES]
    assert len(set(names)) == len(names)
    for feature in FEATURES:
        assert set(feature.needs) | set(feature.conflicts) <= set(names)
        for path in feature.fields:
            default(path)  # AttributeError for a field that is not there


def test_one_rank_uses_little(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    assert [feature.name for feature in features.active(job)] == ["loss per token"]
    assert features.settings(job) == {"calculate_per_token_loss": True}
    assert features.ddp(job) == features.optimizer(job) == {}


@pytest.mark.parametrize(
    "family, world, sets, told",
    [
        ("llama", 2, {"parallel__tp": 2}, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
        ("llama", 2, {"parallel__cp": 2}, {"context_parallel_size": 2}),
        ("llama", 2, {"parallel__pp": 2}, {"pipeline_model_parallel_size": 2}),
        ("llama", 1, {"train__loss": "micro_batch"}, {}),
        ("llama", 1, {"features__recompute": {}}, {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}),
        (
            "llama",
            1,
            {"features__recompute": RECOMPUTE_ALL},
            {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 2},
        ),
        ("deepseek_v3", 1, {"features__mtp_loss": 0.3}, {"mtp_loss_scaling_factor": 0.3, "moe_router_bias_update_rate": 1e-3}),
        ("mixtral", 2, {"parallel__ep": 2}, {"expert_model_parallel_size": 2, "expert_tensor_parallel_size": 1}),
        ("mixtral", 1, {"features__moe__balancing": "sequence"}, {"moe_router_load_balancing_type": "seq_aux_loss"}),
        ("mixtral", 1, {"features__moe__aux_loss": 0.5}, {"moe_aux_loss_coeff": 0.5, "moe_z_loss_coeff": None}),
        ("mixtral", 1, {}, {"moe_aux_loss_coeff": 0.001, "moe_grouped_gemm": True, "moe_token_dispatcher_type": "alltoall"}),
        ("mixtral", 1, {"features__moe__balancing": "none", "features__moe__z_loss": 0.1}, {"moe_aux_loss_coeff": 0.0}),
        ("mixtral", 1, {"features__moe__dispatcher": "allgather"}, {"moe_token_dispatcher_type": "allgather"}),
    ],
)
def test_what_megatron_is_told(tmp_path: Path, family: str, world: int, sets: dict[str, Any], told: dict[str, Any]) -> None:
    job = make_job(tmp_path, family, world=world, **sets)
    assert texts(features.check(job)) == ""
    settings = features.settings(job)
    assert settings | told == settings
    assert ("calculate_per_token_loss" in settings) == (sets.get("train__loss") != "micro_batch")


def test_the_interleaved_schedule_does_not_send_in_batches(tmp_path: Path) -> None:
    """megatron-core's default computes wrong gradients there, and says nothing."""
    settings = features.settings(make_job(tmp_path, world=2, parallel={"pp": 2, "vpp": 2}))
    assert (settings["overlap_p2p_comm"], settings["batch_p2p_comm"]) == (True, False)
    assert settings["virtual_pipeline_model_parallel_size"] == 2
    assert "batch_p2p_comm" not in features.settings(make_job(tmp_path, world=2, parallel={"pp": 2}))


def test_uneven_stages(tmp_path: Path) -> None:
    job = make_job(tmp_path, "deepseek_v3", world=2, parallel={"pp": 2, "layers_per_stage": [3, 1]})
    rows = [["embedding", "decoder", "decoder", "decoder"], ["decoder", "mtp", "loss"]]
    assert features.settings(job)["pipeline_model_parallel_layout"] == rows


def test_noop_layers_lie_in_megatrons_order(tmp_path: Path) -> None:
    parallel = {"pp": 2, "vpp": 2, "noop_layers": [0, 1, 3, 7]}
    job = make_job(tmp_path, world=2, parallel=parallel)
    rows = [["embedding"], ["decoder"], ["decoder", "decoder"], ["decoder", "loss"]]
    assert features.settings(job)["pipeline_model_parallel_layout"] == rows
    assert [chunk.slots for chunk in job.chunks] == [(None, None), (1, 2), (0, None), (3, None)]


def test_overlap_needs_what_it_overlaps(tmp_path: Path) -> None:
    job = make_job(tmp_path, world=2, features={"distributed_optimizer": False, "overlap_param_gather": True})
    said = texts(features.check(job))
    assert "overlapped parameter gathering (features.overlap_param_gather) needs distributed optimizer" in said
    assert "set features.overlap_grad_reduce" in said
    whole = make_job(tmp_path, world=2, features={"overlap_grad_reduce": True, "overlap_param_gather": True})
    assert texts(features.check(whole)) == ""
    assert features.ddp(whole) == {
        "use_distributed_optimizer": True,
        "overlap_grad_reduce": True,
        "overlap_param_gather": True,
    }
    assert features.optimizer(whole) == {"use_distributed_optimizer": True, "overlap_param_gather": True}


def test_overlap_on_one_rank_is_one_warning(tmp_path: Path) -> None:
    job = make_job(tmp_path, features__overlap_grad_reduce=True)
    assert texts(features.check(job)) == ""
    assert "dp x cp is 1" in texts(features.check(job), warnings=True)


def test_conflicts_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path, features__recompute={})
    swap = Feature(name="swap", fields=("train.seed",), active=lambda job: True, conflicts=("recomputation",))
    monkeypatch.setattr(features, "all_features", lambda: (*FEATURES, swap))
    said = texts(features.check(job))
    assert said == "swap (train.seed) does not go with recomputation\n  leave train.seed or features.recompute out"


def test_two_features_cannot_set_one_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path)
    twice = replace(FEATURES[0], name="twice", active=lambda job: True, settings=lambda job: {"calculate_per_token_loss": False})
    monkeypatch.setattr(features, "all_features", lambda: (*FEATURES, twice))
    with pytest.raises(RuntimeError, match="two features set calculate_per_token_loss: loss per token and twice"):
        features.settings(job)


@pytest.mark.parametrize("family", DENSE)
def test_what_experts_need_has_no_effect_on_a_dense_model(tmp_path: Path, family: str) -> None:
    moe = {
        "dispatcher": "allgather",
        "grouped_gemm": False,
        "balancing": "none",
        "aux_loss": 0.1,
        "z_loss": 0.1,
        "bias_rate": 0.1,
    }
    said = texts(features.check(make_job(tmp_path, family, world=2, parallel__ep=2, features__moe=moe)))
    assert said.count("has no effect: this model has no experts") == len(moe) + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_megatron_takes_what_it_is_told(tmp_path: Path, family: str) -> None:
    """Every field exists, and TransformerConfig's own checks pass."""
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer.transformer_config import TransformerConfig

    overlap = {"overlap_grad_reduce": True, "overlap_param_gather": True, "recompute": {"granularity": "full"}}
    parallel = {"tp": 2, "pp": 2, "vpp": 2, "noop_layers": [6, 7, 3, 2], **({"ep": 2} if family in EXPERTS else {})}
    job = make_job(tmp_path, family, world=8, parallel=parallel, features=overlap)
    assert texts(features.check(job)) == ""
    moe = job.spec.moe
    experts = {"num_moe_experts": moe.num_experts, "moe_ffn_hidden_size": moe.ffn_size} if moe else {}
    fixed = {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "mtp_num_layers": job.spec.mtp_layers or None}
    import torch

    config = TransformerConfig(**fixed, **experts, pipeline_dtype=torch.float32, **features.settings(job))
    assert config.pipeline_model_parallel_layout.virtual_pipeline_model_parallel_size == 2
    DistributedDataParallelConfig(**features.ddp(job))
    OptimizerConfig(**features.optimizer(job))


def test_values_by_name(tmp_path: Path) -> None:
    job = make_job(tmp_path, features__recompute={"layers": 3})
    assert value(job.recipe, "features.recompute.layers") == 3
    assert value(job.recipe, "log.wandb.project") is None
