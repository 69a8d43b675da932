"""Parameters, exactly; memory by the formulas; floating-point operations by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import pytest

from jobs import EXPERTS, FAMILIES, make_job
from jumar.schema.family import Family
from jumar.schema.parallel import ParallelLayout, Shard
from jumar.schema.placement import Placement
from jumar.schema.registry import families
from jumar.train_core.activations import activation_bytes, in_flight, logits_bytes
from jumar.train_core.estimate import active_parameters, flops_per_token, ranks, stage_parameters, whole_parameters
from jumar.train_core.job import Job


def of_hf(family: Family) -> int:
    """Elements of the HF tensors that are trained."""
    spec = family.spec(family.tiny)
    shapes = family.hf_tensors(spec).items()
    return sum(prod(shape) for name, shape in shapes if not name.endswith("e_score_correction_bias"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_model_is_that_of_hugging_face(family: str) -> None:
    made = families()[family]
    assert whole_parameters(made, made.spec(made.tiny)) == of_hf(made)


def distinct(job: Job) -> int:
    """Elements of all ranks' tensors, what several ranks hold counted once."""
    spec, layout = job.spec, job.layout
    placement = Placement(family=job.family, spec=spec, layout=layout, expert_layout="grouped" if spec.moe else "sequential")
    total = 0
    for pp, tp in product(range(layout.pp), range(layout.tp)):
        for placed in placement.tensors(Shard("", tp=tp, pp=pp)):
            copy = placed.origin is not None and placed.origin.stage in ("tied_last", "mtp") and placed.origin.scope == "model"
            cut = placed.origin is not None and placed.origin.shard is not None
            if placed.expert is None and not placed.name.endswith("expert_bias") and not copy and (cut or tp == 0):
                total += prod(placed.geometry.shape)
    for pp, ep, etp in product(range(layout.pp), range(layout.ep), range(layout.expert_tp)):
        for placed in placement.tensors(Shard("", tp=0, pp=pp, ep=ep, etp=etp)):
            if placed.expert is not None:
                total += prod(placed.geometry.shape)
    return total


SIZES: list[dict[str, int]] = [{}, {"tp": 2}, {"pp": 2}, {"tp": 4, "pp": 4}, {"tp": 2, "pp": 2, "vpp": 2}, {"cp": 2}]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_ranks_hold_the_model_once(tmp_path: Path, family: str, sizes: dict[str, int]) -> None:
    experts = {"ep": 2, "etp": 2} if family in EXPERTS and sizes.get("tp") == 4 else {}
    world = max(sizes.get("tp", 1) * sizes.get("cp", 1), 1) * sizes.get("pp", 1)
    job = make_job(tmp_path, family, world=world, parallel={**sizes, **experts})
    padding = (job.padded_vocab - job.spec.vocab_size) * job.spec.hidden_size * (1 if job.spec.tied else 2)
    assert distinct(job) == of_hf(job.family) + padding
    every = [stage_parameters(job, stage) for stage in range(job.layout.pp)]
    spread = sum(experts for _, experts in every) * job.layout.ep * job.layout.expert_tp
    assert spread == sum(experts for _, experts in [stage_parameters(make_job(tmp_path / "one", family), 0)])


def test_parameters_of_a_stage_by_hand(tmp_path: Path) -> None:
    """llama: hidden 64, 8 heads and 4 KV heads of 8, ffn 96, vocabulary 131 padded to 132, 4 layers, tp=2, pp=2."""
    job = make_job(tmp_path, world=4, parallel={"tp": 2, "pp": 2})
    layer = (64 + 2 * 32) * 64 // 2 + 64 * 64 // 2 + 3 * 64 * 96 // 2 + 2 * 64
    assert [rank.parameters for rank in ranks(job)] == [132 * 64 // 2 + 2 * layer, 2 * layer + 64 + 132 * 64 // 2]
    assert [rank.layers for rank in ranks(job)] == [((0, 1),), ((2, 3),)]


def test_experts_of_a_rank_by_hand(tmp_path: Path) -> None:
    """qwen3_moe: 8 experts of 3 x 64 x 32 in 4 layers, over ep=2 and etp=2."""
    job = make_job(tmp_path, "qwen3_moe", world=4, parallel={"tp": 2, "ep": 2, "etp": 2})
    (rank,) = ranks(job)
    assert rank.experts == 4 * 8 * 3 * 64 * 32 // 4


def test_tied_embeddings_lie_on_both_ends(tmp_path: Path) -> None:
    one = make_job(tmp_path / "one", "qwen2")
    two = make_job(tmp_path / "two", "qwen2", world=2, parallel__pp=2)
    copied = sum(rank.parameters for rank in ranks(two)) - ranks(one)[0].parameters
    assert copied == 131 * 64


def test_memory_of_states(tmp_path: Path) -> None:
    """fp32: 4 + 4 + 8 bytes a parameter; bf16: 2 + 4 + 12; the last part over data parallel ranks."""
    (rank,) = ranks(make_job(tmp_path, train__precision="fp32"))
    n = rank.parameters
    assert (rank.weights_bytes, rank.gradients_bytes, rank.optimizer_bytes) == (4 * n, 4 * n, 8 * n)
    (rank,) = ranks(make_job(tmp_path, world=4, train__precision="bf16", parallel__cp=2))
    assert (rank.weights_bytes, rank.gradients_bytes, rank.optimizer_bytes) == (2 * n, 4 * n, 3 * n)
    (rank,) = ranks(make_job(tmp_path, world=4, train__precision="bf16", features__distributed_optimizer=False))
    assert rank.optimizer_bytes == 12 * n


def test_optimizer_of_experts_is_spread_over_fewer(tmp_path: Path) -> None:
    (rank,) = ranks(make_job(tmp_path, "mixtral", world=4, parallel__ep=4))
    assert rank.optimizer_bytes == 8 * rank.dense // 4 + 8 * rank.experts


def test_activations_of_a_layer_by_hand(tmp_path: Path) -> None:
    """One layer of llama, 32 tokens, fp32, nothing recomputed: the residual stream and the norms' outputs at 2 x 64 each,
    q k v at 128, the output at 64, the MLP at 3 x 96, all 4 bytes; attention's log-sum-exp of 8 heads, 4 bytes."""
    job = make_job(tmp_path, model__config={"num_hidden_layers": 1})
    tokens, numbers = 32, 2 * 64 + 2 * 64 + 128 + 64 + 3 * 96
    assert activation_bytes(job, 0) == tokens * (4 * numbers + 4 * 8)
    cut = make_job(tmp_path, world=2, parallel__tp=2, model__config={"num_hidden_layers": 1})
    assert activation_bytes(cut, 0) * 2 == activation_bytes(job, 0)  # sequence parallelism cuts the rest
    whole = make_job(tmp_path, world=2, parallel={"tp": 2, "sequence_parallel": False}, model__config={"num_hidden_layers": 1})
    assert activation_bytes(whole, 0) == tokens * (4 * (4 * 64 + (128 + 64 + 3 * 96) // 2) + 4 * 4)


def test_activations_of_experts_by_hand(tmp_path: Path) -> None:
    """mixtral, 32 tokens, two of four experts: 64 copies go in and out at 64 numbers, 3 x 96 inside; etp=2 gathers two ranks'."""
    one = make_job(tmp_path, "mixtral", model__config={"num_hidden_layers": 1})
    attention = 4 * (4 * 64 + 128 + 64) + 4 * 8
    assert activation_bytes(one, 0) == 32 * attention + 64 * 4 * (2 * 64 + 3 * 96)
    cut = make_job(tmp_path, "mixtral", world=2, parallel__etp=2, model__config={"num_hidden_layers": 1})
    assert activation_bytes(cut, 0) == 32 * attention + 128 * 4 * (2 * 64 + 3 * 96 // 2)


def test_soft_capped_scores_are_kept(tmp_path: Path) -> None:
    plain = make_job(tmp_path / "a", "gemma2", model__config={"attn_logit_softcapping": None})
    capped = make_job(tmp_path / "b", "gemma2")
    assert activation_bytes(capped, 0) - activation_bytes(plain, 0) == 4 * 3 * (4 * 32 * 32 * 8)


def test_context_parallelism_halves_activations(tmp_path: Path) -> None:
    one, two = make_job(tmp_path), make_job(tmp_path, world=2, parallel__cp=2)
    everyone = 4 * 4 * 32 * 2 * one.spec.num_kv_heads * one.spec.head_dim  # gathered keys and values, of four layers
    assert activation_bytes(one, 0) == 2 * (activation_bytes(two, 0) - everyone)
    assert logits_bytes(one) == 2 * logits_bytes(two) == 32 * 131 * 12


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputation_takes_less(tmp_path: Path, family: str) -> None:
    def size(**recompute: Any) -> int:
        return activation_bytes(make_job(tmp_path, family, features__recompute=recompute or None), 0)

    nothing, some = size(), size(modules=["core_attn", "layernorm"])
    one, two, block = (size(granularity="full", **more) for more in ({}, {"layers": 2}, {"method": "block", "layers": 2}))
    assert one < block < nothing
    assert one < two < nothing
    assert some < nothing or family == "mamba2"  # which has neither


def test_full_recomputation_by_hand(tmp_path: Path) -> None:
    whole = activation_bytes(make_job(tmp_path, model__config={"num_hidden_layers": 1}), 0)
    full = make_job(tmp_path, features__recompute={"granularity": "full"})
    assert activation_bytes(full, 0) == 4 * (4 * 32 * 64) + whole


def test_micro_batches_in_flight(tmp_path: Path) -> None:
    deep = make_job(tmp_path, world=4, parallel__pp=4)
    assert [in_flight(deep, stage) for stage in range(4)] == [4, 3, 2, 1]
    few = make_job(tmp_path, world=4, parallel__pp=4, train__global_batch_size=2)
    assert [in_flight(few, stage) for stage in range(4)] == [2, 2, 2, 1]
    woven = make_job(tmp_path, world=2, parallel={"pp": 2, "vpp": 2})
    assert [in_flight(woven, stage) for stage in range(2)] == [5, 3]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_an_estimate(tmp_path: Path, family: str) -> None:
    job = make_job(tmp_path, family, world=4, parallel={"tp": 2, "pp": 2}, model__hidden_dropout=0.1)
    for rank in ranks(job):
        assert rank.activations_bytes > 0
        assert (rank.logits_bytes > 0) == (rank.stage == 1)
        assert rank.total_bytes > rank.parameters * 12


def test_flops_of_a_dense_model() -> None:
    spec = families()["llama"].spec(families()["llama"].tiny)
    layer = (64 + 2 * 32) * 64 + 64 * 64 + 3 * 64 * 96
    assert flops_per_token(spec, 32) == 6 * (4 * layer + 131 * 64) + 6 * 4 * 64 * 32  # 6 L H Q T of PaLM, halved: causal
    tied = replace(spec, tied=True)
    assert flops_per_token(tied, 32) == flops_per_token(spec, 32)


def test_flops_of_experts_count_the_chosen() -> None:
    made = families()["mixtral"]
    spec = made.spec(made.tiny)
    layer = (64 + 2 * 32) * 64 + 64 * 64 + 2 * 3 * 64 * 96 + 4 * 64  # two of four experts, and the router
    assert flops_per_token(spec, 32) == 6 * (4 * layer + 131 * 64) + 6 * 4 * 64 * 32
    assert active_parameters(made, spec) == whole_parameters(made, spec) - 4 * 2 * 3 * 64 * 96


def test_flops_behind_a_window() -> None:
    spec = families()["mistral"].spec(families()["mistral"].tiny)  # a window of 32 tokens, 8 heads of 16
    inside, outside = flops_per_token(spec, 32), flops_per_token(spec, 64)
    assert outside - inside == 6 * 4 * (2 * 8 * 16) * ((32 - 32 * 32 / 128) - 16)


def test_a_large_model_is_counted_at_once() -> None:
    """DeepSeek-V3's size: 256 experts in 58 layers; grouped, so that it takes no time."""
    made = families()["qwen3_moe"]
    spec = made.spec({**made.tiny, "num_hidden_layers": 61, "num_experts": 256, "num_experts_per_tok": 8})
    assert whole_parameters(made, spec) > 61 * 256 * 3 * 64 * 32


def test_layouts_that_torch_files_cannot_hold_are_counted(tmp_path: Path) -> None:
    """tp=2 with ep=3: no mp_rank files, but a run."""
    job = make_job(
        tmp_path,
        "mixtral",
        world=6,
        parallel={"tp": 2, "ep": 3},
        model__config={"num_local_experts": 6},
        train__global_batch_size=6,
    )
    assert job.layout == ParallelLayout(tp=2, ep=3, etp=1, dp=3)
    assert ranks(job)[0].experts == 4 * 2 * 3 * 64 * 96
