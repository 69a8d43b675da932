"""What the shards hold, against definitions that share nothing with the rules: by_hand.py, and what a consumer does with them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import by_hand
import drawn
import tiny_hf
from by_hand import Wanted
from jumar.ckpt_convert import OpenOptions, open_checkpoint, plan_hf, plan_megatron, run_plan
from jumar.schema.errors import ToolError
from jumar.schema.parallel import ParallelLayout
from jumar.schema.registry import families

pytestmark = pytest.mark.matrix


@pytest.fixture(scope="module", autouse=True)
def _disk_without_waiting() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        patch.setattr(os, "fdatasync", lambda fd: None)
        yield


MOE = [name for name, family in families().items() if family.spec(family.tiny).moe]


def convert(home: Path, config: dict[str, Any], want: Wanted, tensors: tiny_hf.Arrays) -> dict[str, dict[str, tiny_hf.Arrays]]:
    """Shard -> state-dict key -> tensor, of the converted model."""
    hf = tiny_hf.write_hf(home / "hf", config, tensors)
    experts = "grouped" if want.grouped else "sequential"
    plan = plan_megatron(
        open_checkpoint(hf),
        drawn.layout_of(want),
        dialect=want.dialect,
        expert_layout=experts,
        vocab_divisible_by=want.divisible_by,
        mla_mm_split=want.mm_split,
    )
    run_plan(plan, home / "mcore")
    return tiny_hf.read_megatron(home / "mcore" / "iter_0000001")


def assert_same(found: dict[str, dict[str, tiny_hf.Arrays]], expected: dict[str, dict[str, tiny_hf.Arrays]]) -> None:
    assert sorted(found) == sorted(expected)
    for shard, states in expected.items():
        assert sorted(found[shard]) == sorted(states), shard
        for key, state in states.items():
            own = found[shard][key]
            assert sorted(own) == sorted(state), f"{shard}/{key}"
            wrong = [n for n, array in state.items() if own[n].shape != array.shape or (own[n] != array).any()]
            assert not wrong, f"{shard}/{key}"


@pytest.mark.parametrize("model_type", families())
@settings(max_examples=12)
@given(data=st.data())
def test_every_shard_is_as_written_by_hand(model_type: str, data: st.DataObject) -> None:
    """Names, shapes and bytes of every tensor of every file; and the way back."""
    config, want = data.draw(drawn.cases(model_type))
    tensors = tiny_hf.random_tensors(config)
    with tempfile.TemporaryDirectory() as home:
        found = convert(Path(home), config, want, tensors)
        assert_same(found, dict(by_hand.shards(tensors, config, want)))
        run_plan(plan_hf(open_checkpoint(Path(home) / "mcore")), Path(home) / "back")
        assert tiny_hf.read_hf(Path(home) / "back") == tiny_hf.read_hf(Path(home) / "hf")


def args_of_a_run(config: dict[str, Any], want: Wanted) -> dict[str, Any]:
    """The arguments of a training run that has this layout."""
    num_layers = by_hand.layers_of(config)
    args = {
        "tensor_model_parallel_size": want.tp,
        "pipeline_model_parallel_size": want.pp,
        "expert_model_parallel_size": want.ep,
        "num_layers": num_layers + len(want.noop),
        "mtp_num_layers": config.get("num_nextn_predict_layers"),
        "moe_grouped_gemm": want.grouped,
        "bf16": True,
    }
    if want.etp is not None:
        args["expert_tensor_parallel_size"] = want.etp
    if want.extend:
        args |= {"moe_tp_extend_ep": True, "expert_tensor_parallel_size": 1}
    if want.dualpipev:
        args["schedules_method"] = "dualpipev"
    elif want.vpp > 1:
        args["virtual_pipeline_model_parallel_size"] = want.vpp
    if want.stages:
        args["num_layer_list"] = ",".join(map(str, want.stages))
    if want.noop:
        args["noop_layers"] = ",".join(map(str, want.noop))
    return args


@pytest.mark.parametrize("model_type", families())
@settings(max_examples=8)
@given(data=st.data())
def test_shards_of_a_training_run_are_read(model_type: str, data: st.DataObject) -> None:
    """Written by hand, with arguments in the spellings of Megatron-LM and MindSpeed-LLM, without a manifest."""
    config, want = data.draw(drawn.cases(model_type))
    tensors = tiny_hf.random_tensors(config)
    args = args_of_a_run(config, want)
    total = args["num_layers"]
    if want.vpp > 1 and not want.dualpipev and data.draw(st.booleans()):
        del args["virtual_pipeline_model_parallel_size"]
        args["num_layers_per_virtual_pipeline_stage"] = total // want.pp // want.vpp
    if want.noop and data.draw(st.booleans()):
        args["noop_layers"] = list(want.noop)
    if want.stages and len(set(want.stages[1:])) == 1 and data.draw(st.booleans()):
        del args["num_layer_list"]
        args["decoder_first_pipeline_num_layers"] = want.stages[0]
    with tempfile.TemporaryDirectory() as home:
        hf = tiny_hf.write_hf(Path(home) / "run" / "hf", config, tensors)
        shards = dict(by_hand.shards(tensors, config, want))
        if data.draw(st.booleans()):
            shards = cut_without_padding(shards, want, config["vocab_size"])
        tiny_hf.write_megatron(Path(home) / "run" / "iter_0000300", shards, args)
        (hf / "model.safetensors").rename(Path(home) / "model.safetensors")
        checkpoint = open_checkpoint(Path(home) / "run")
        run_plan(plan_hf(checkpoint), Path(home) / "back")
        assert tiny_hf.read_hf(Path(home) / "back") == tiny_hf.read_hf(Path(home))
        run_plan(plan_megatron(checkpoint, ParallelLayout()), Path(home) / "again")
        found = tiny_hf.read_megatron(Path(home) / "again" / "iter_0000300")
        assert_same(found, dict(by_hand.shards(tensors, config, Wanted())))


def cut_without_padding(shards: dict[str, Any], want: Wanted, vocab: int) -> dict[str, Any]:
    """The vocabulary as torch.chunk cuts it: the last rank has fewer rows. As it was where a rank would have none."""
    most = -(-vocab // want.tp)
    counts = [min(most, vocab - t * most) for t in range(want.tp)]
    if min(counts) < 1:
        return shards

    def cut(name: str, array: np.ndarray, t: int) -> np.ndarray:
        if name not in ("embedding.word_embeddings.weight", "output_layer.weight"):
            return array
        whole = np.concatenate([rows_of(shards, name, rank) for rank in range(want.tp)])
        return whole[sum(counts[:t]) : sum(counts[: t + 1])]

    return {
        shard: {key: {n: cut(n, a, int(shard.split("_")[2])) for n, a in state.items()} for key, state in states.items()}
        for shard, states in shards.items()
    }


def rows_of(shards: dict[str, Any], name: str, rank: int) -> np.ndarray:
    prefix = f"mp_rank_{rank:02d}"
    return next(s[name] for shard, states in shards.items() if shard.startswith(prefix) for s in states.values() if name in s)


# ---- what a consumer does with the tensors, for sizes that one can follow


LLAMA: dict[str, Any] = {
    **families()["llama"].tiny,
    "hidden_size": 6,
    "intermediate_size": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 3,
    "vocab_size": 5,
    "attention_bias": True,
    "mlp_bias": True,
}


def ranks_of(shards: dict[str, dict[str, tiny_hf.Arrays]], name: str, key: str = "model") -> list[np.ndarray]:
    """A tensor on every rank that has it, by rank."""
    return [states[key][name] for _, states in sorted(shards.items()) if name in states[key]]


def test_attention_splits_each_group_of_q_k_v(tmp_path: Path) -> None:
    """As megatron-core's SelfAttention does: [groups, heads of a group + 2, head_dim, hidden], heads, then k, then v."""
    hf = tiny_hf.random_tensors(LLAMA)
    shards = convert(tmp_path, LLAMA, Wanted(tp=2), hf)
    for kind, rest in ("weight", (6,)), ("bias", ()):
        name = f"decoder.layers.2.self_attention.linear_qkv.{kind}"
        groups = np.concatenate([part.reshape(2, 4, 3, *rest) for part in ranks_of(shards, name)])
        q, k, v = (hf[f"model.layers.2.self_attn.{x}_proj.{kind}"] for x in "qkv")
        assert (groups[:, :2] == q.reshape(4, 2, 3, *rest)).all()
        assert (groups[:, 2] == k.reshape(4, 3, *rest)).all()
        assert (groups[:, 3] == v.reshape(4, 3, *rest)).all()
    out = ranks_of(shards, "decoder.layers.2.self_attention.linear_proj.weight")
    assert (np.concatenate(out, axis=1) == hf["model.layers.2.self_attn.o_proj.weight"]).all()


def test_an_mlp_splits_its_own_half_of_gate_and_up(tmp_path: Path) -> None:
    hf = tiny_hf.random_tensors(LLAMA)
    shards = convert(tmp_path, LLAMA, Wanted(tp=4), hf)
    for kind in ("weight", "bias"):
        halves = [np.split(part, 2) for part in ranks_of(shards, f"decoder.layers.0.mlp.linear_fc1.{kind}")]
        gate, up = (np.concatenate(half) for half in zip(*halves, strict=True))
        assert (gate == hf[f"model.layers.0.mlp.gate_proj.{kind}"]).all()
        assert (up == hf[f"model.layers.0.mlp.up_proj.{kind}"]).all()
    assert all(
        (b == hf["model.layers.0.mlp.down_proj.bias"]).all() for b in ranks_of(shards, "decoder.layers.0.mlp.linear_fc2.bias")
    )


def test_vocabulary_padding_is_zero(tmp_path: Path) -> None:
    """5 rows at TP 2, to a multiple of 2 * 2: the second rank has one row, and three of zeros."""
    hf = tiny_hf.random_tensors(LLAMA)
    shards = convert(tmp_path, LLAMA, Wanted(tp=2, divisible_by=2), hf)
    for name, source in ("embedding.word_embeddings", "model.embed_tokens"), ("output_layer", "lm_head"):
        first, second = ranks_of(shards, f"{name}.weight")
        assert (first == hf[f"{source}.weight"][:4]).all()
        assert (second[:1] == hf[f"{source}.weight"][4:]).all()
        assert second.shape == (4, 6)
        assert not second[1:].any()


@pytest.mark.compat("read", "MindSpeed-LLM v2", "`mp_rank_*` shards with a vocabulary cut unevenly", "layout as documented")
def test_a_vocabulary_that_another_tool_cut_unevenly(tmp_path: Path) -> None:
    """1001 rows at TP 2 as 501 and 500, without padding."""
    config = LLAMA | {"vocab_size": 1001}
    hf, want = tiny_hf.random_tensors(config), Wanted(tp=2)
    shards = cut_without_padding(dict(by_hand.shards(hf, config, want)), want, 1001)
    assert [len(part) for part in ranks_of(shards, "output_layer.weight")] == [501, 500]
    tiny_hf.write_hf(tmp_path / "hf", config, hf)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "hf").symlink_to(tmp_path / "hf")
    tiny_hf.write_megatron(tmp_path / "run" / "iter_0000001", shards, args_of_a_run(config, want))
    checkpoint = open_checkpoint(tmp_path / "run")
    run_plan(plan_hf(checkpoint), tmp_path / "back")
    assert tiny_hf.read_hf(tmp_path / "back") == tiny_hf.read_hf(tmp_path / "hf")
    run_plan(plan_megatron(checkpoint, ParallelLayout(tp=2)), tmp_path / "again")
    rows = ranks_of(tiny_hf.read_megatron(tmp_path / "again" / "iter_0000001"), "output_layer.weight")
    assert [len(part) for part in rows] == [501, 501]
    assert not rows[1][500].any()


@pytest.mark.parametrize("model_type", MOE)
def test_grouped_experts_are_transposed_one_after_another(model_type: str, tmp_path: Path) -> None:
    """As megatron-core's GroupedMLP does: weight1.view(experts, hidden, -1), gate | up of this rank in its columns."""
    config = dict(families()[model_type].tiny)
    hf, hidden = tiny_hf.random_tensors(config), config["hidden_size"]
    shards = convert(tmp_path, config, Wanted(tp=2, ep=2, grouped=True), hf)
    block, gate, up, down = ("block_sparse_moe", "w1", "w3", "w2") if model_type == "mixtral" else ("mlp", *PROJ)
    experts = config.get("num_experts") or config.get("num_local_experts") or config["n_routed_experts"]
    for e in range(experts):
        ep, local = divmod(e, experts // 2)
        source = {x: hf[f"model.layers.3.{block}.experts.{e}.{x}.weight"] for x in (gate, up, down)}
        mine = [shards[f"mp_rank_{t:02d}_{ep:03d}"]["model"] for t in (0, 1)]
        one = [state["decoder.layers.3.mlp.experts.weight1"].reshape(experts // 2, hidden, -1)[local] for state in mine]
        two = [state["decoder.layers.3.mlp.experts.weight2"].reshape(experts // 2, -1, hidden)[local] for state in mine]
        halves = [np.split(w, 2, axis=1) for w in one]
        assert (source[gate] == np.concatenate([half[0] for half in halves], axis=1).T).all()
        assert (source[up] == np.concatenate([half[1] for half in halves], axis=1).T).all()
        assert (source[down] == np.concatenate(two).T).all()


PROJ = ("gate_proj", "up_proj", "down_proj")


def test_latent_attention_in_each_dialect(tmp_path: Path) -> None:
    """Down-projections: a slice in mcore, whole in te, and in mindspeed whole and joined."""
    config = dict(families()["deepseek_v2"].tiny)
    hf, a = tiny_hf.random_tensors(config), "decoder.layers.1.self_attention."
    q_a, kv_a = (hf[f"model.layers.1.self_attn.{x}.weight"] for x in ("q_a_proj", "kv_a_proj_with_mqa"))
    mcore = convert(tmp_path / "mcore", config, Wanted(tp=2), hf)
    assert (np.concatenate(ranks_of(mcore, f"{a}linear_q_down_proj.weight")) == q_a).all()
    assert (np.concatenate(ranks_of(mcore, f"{a}linear_kv_down_proj.weight")) == kv_a).all()
    te = convert(tmp_path / "te", config, Wanted(tp=2, dialect="te"), hf)
    assert all((w == q_a).all() for w in ranks_of(te, f"{a}linear_q_down_proj.weight"))
    assert all((w == kv_a).all() for w in ranks_of(te, f"{a}linear_kv_down_proj.weight"))
    mindspeed = convert(tmp_path / "mindspeed", config, Wanted(tp=2, dialect="mindspeed"), hf)
    joined = ranks_of(mindspeed, f"{a}linear_qkv.weight")
    assert len(joined) == 2
    assert all((w[: len(q_a)] == q_a).all() and (w[len(q_a) :] == kv_a).all() for w in joined)


def test_gpt2_matrices_are_turned(tmp_path: Path) -> None:
    config = dict(families()["gpt2"].tiny)
    hf = tiny_hf.random_tensors(config)
    shards = convert(tmp_path, config, Wanted(tp=2), hf)
    fc1, fc2 = (
        np.concatenate(ranks_of(shards, f"decoder.layers.1.mlp.{x}.weight"), axis=i)
        for i, x in enumerate(("linear_fc1", "linear_fc2"))
    )
    assert (fc1 == hf["transformer.h.1.mlp.c_fc.weight"].T).all()
    assert (fc2 == hf["transformer.h.1.mlp.c_proj.weight"].T).all()
    heads = np.concatenate(ranks_of(shards, "decoder.layers.1.self_attention.linear_qkv.weight")).reshape(4, 3, 16, 64)
    q, k, v = (heads[:, i].reshape(64, 64) for i in range(3))
    assert (np.concatenate([q, k, v]) == hf["transformer.h.1.attn.c_attn.weight"].T).all()


@pytest.mark.parametrize(
    "want, first, copies",
    [
        (Wanted(tp=2), {"mp_rank_00": "model", "mp_rank_01": "model"}, {}),
        (Wanted(pp=2), {"mp_rank_00_000": "model"}, {"mp_rank_00_001": "model"}),
        (Wanted(pp=2, vpp=2), {"mp_rank_00_000": "model0"}, {"mp_rank_00_001": "model1"}),
        (Wanted(pp=2, vpp=2, dualpipev=True), {"mp_rank_00_000": "model0"}, {"mp_rank_00_000": "model1"}),
    ],
    ids=["tp2", "pp2", "vpp2", "dualpipev"],
)
def test_a_tied_embedding_is_copied_to_the_chunk_of_the_output(
    want: Wanted, first: dict[str, str], copies: dict[str, str], tmp_path: Path
) -> None:
    config = LLAMA | {"tie_word_embeddings": True}
    shards = convert(tmp_path, config, want, tiny_hf.random_tensors(config))
    where = {
        name: {shard: key for shard, states in shards.items() for key, state in states.items() if name in state}
        for name in ("embedding.word_embeddings.weight", "output_layer.weight")
    }
    assert where == {"embedding.word_embeddings.weight": first, "output_layer.weight": copies}


def placed(home: Path, want: Wanted, num_layers: int) -> dict[str, dict[str, list[int]]]:
    """Shard -> key -> the layers whose norms lie there, by local number (-1: none)."""
    config = LLAMA | {"num_hidden_layers": num_layers}
    hf = tiny_hf.random_tensors(config)
    layer_of = {hf[f"model.layers.{i}.input_layernorm.weight"].tobytes(): i for i in range(num_layers)}
    found: dict[str, dict[str, list[int]]] = {}
    for shard, states in convert(home, config, want, hf).items():
        for key, state in states.items():
            norms = {int(n.split(".")[2]): layer_of[a.tobytes()] for n, a in state.items() if "input_layernorm" in n}
            found.setdefault(shard, {})[key] = [norms.get(i, -1) for i in range(max(norms, default=-1) + 1)]
    return found


def test_layers_under_vpp(tmp_path: Path) -> None:
    assert placed(tmp_path, Wanted(pp=2, vpp=2), 8) == {
        "mp_rank_00_000": {"model0": [0, 1], "model1": [4, 5]},
        "mp_rank_00_001": {"model0": [2, 3], "model1": [6, 7]},
    }


def test_layers_under_dualpipev(tmp_path: Path) -> None:
    assert placed(tmp_path / "2", Wanted(pp=2, vpp=2, dualpipev=True), 8) == {
        "mp_rank_00_000": {"model0": [0, 1], "model1": [6, 7]},
        "mp_rank_00_001": {"model0": [2, 3], "model1": [4, 5]},
    }
    found = placed(tmp_path / "4", Wanted(pp=4, vpp=2, dualpipev=True), 8)
    assert [(states["model0"], states["model1"]) for _, states in sorted(found.items())] == [
        ([0], [7]),
        ([1], [6]),
        ([2], [5]),
        ([3], [4]),
    ]


def test_no_op_slots_leave_gaps(tmp_path: Path) -> None:
    assert placed(tmp_path, Wanted(pp=2, noop=(1, 4)), 4) == {
        "mp_rank_00_000": {"model": [0, -1, 1]},
        "mp_rank_00_001": {"model": [2, -1, 3]},
    }


def test_a_chunk_of_no_op_slots_is_there_and_empty(tmp_path: Path) -> None:
    """Megatron looks for every chunk's state dict."""
    found = placed(tmp_path, Wanted(pp=2, vpp=2, noop=(1, 2)), 2)
    assert found == {"mp_rank_00_000": {"model0": [0], "model1": []}, "mp_rank_00_001": {"model0": [], "model1": [1]}}


def test_experts_under_etp_and_ep(tmp_path: Path) -> None:
    """8 experts, TP 4, EP 2, ETP 2: ranks 0 1 2 3 hold experts 0-3, 0-3, 4-7, 4-7, halves 0 1 0 1."""
    config = dict(families()["qwen3_moe"].tiny)
    hf = tiny_hf.random_tensors(config)
    shards = convert(tmp_path, config, Wanted(tp=4, ep=2, etp=2), hf)
    assert sorted(shards) == ["mp_rank_00_000", "mp_rank_01_000", "mp_rank_02_001", "mp_rank_03_001"]
    for shard, (first, half) in zip(sorted(shards), [(0, 0), (0, 1), (4, 0), (4, 1)], strict=True):
        for local in range(4):
            fc2 = shards[shard]["model"][f"decoder.layers.0.mlp.experts.local_experts.{local}.linear_fc2.weight"]
            assert (
                fc2 == hf[f"model.layers.0.mlp.experts.{first + local}.down_proj.weight"][:, 16 * half : 16 * half + 16]
            ).all()


def test_experts_of_tp_extend_ep(tmp_path: Path) -> None:
    """8 experts over EP 2 x TP 2: number ep * TP + tp has two whole experts."""
    config = dict(families()["qwen3_moe"].tiny)
    hf = tiny_hf.random_tensors(config)
    shards = convert(tmp_path, config, Wanted(tp=2, ep=2, extend=True), hf)
    for shard, first in {"mp_rank_00_000": 0, "mp_rank_01_000": 2, "mp_rank_00_001": 4, "mp_rank_01_001": 6}.items():
        fc2 = shards[shard]["model"]["decoder.layers.0.mlp.experts.local_experts.1.linear_fc2.weight"]
        assert (fc2 == hf[f"model.layers.0.mlp.experts.{first + 1}.down_proj.weight"]).all()


def test_multi_token_prediction_lies_on_the_last_chunk(tmp_path: Path) -> None:
    config = families()["deepseek_v3"].tiny | {"num_nextn_predict_layers": 2}
    hf = tiny_hf.random_tensors(config)
    for name, want, where in [
        ("pp", Wanted(pp=2), ("mp_rank_00_001", "model")),
        ("vpp", Wanted(pp=2, vpp=2), ("mp_rank_00_001", "model1")),
        ("dualpipev", Wanted(pp=2, vpp=2, dualpipev=True), ("mp_rank_00_000", "model1")),
    ]:
        shards = convert(tmp_path / name, config, want, hf)
        have = [(s, k) for s, states in shards.items() for k, state in states.items() if any(n.startswith("mtp.") for n in state)]
        assert have == [where]
        state = shards[where[0]][where[1]]
        assert (
            state["embedding.word_embeddings.weight"]
            == shards["mp_rank_00_000"][where[1][:-1] + "0" if want.vpp > 1 else "model"]["embedding.word_embeddings.weight"]
        ).all()
        for k in (0, 1):
            assert (state[f"mtp.layers.{k}.eh_proj.weight"] == hf[f"model.layers.{4 + k}.eh_proj.weight"]).all()
            assert (state[f"mtp.layers.{k}.final_layernorm.weight"] == hf[f"model.layers.{4 + k}.shared_head.norm.weight"]).all()
            router = state[f"mtp.layers.{k}.transformer_layer.mlp.router.weight"]
            assert (router == hf[f"model.layers.{4 + k}.mlp.gate.weight"]).all()


def test_mamba_cuts_each_piece_of_its_projections(tmp_path: Path) -> None:
    """inner 128, four groups of 16 states, 8 heads: in_proj is z 128, x 128, B 64, C 64, dt 8; conv1d is x, B, C."""
    config = dict(families()["mamba2"].tiny)
    hf = tiny_hf.random_tensors(config)
    shards = convert(tmp_path, config, Wanted(tp=2), hf)
    for name, sizes in ("in_proj", [128, 128, 64, 64, 8]), ("conv1d", [128, 64, 64]):
        whole = hf[f"backbone.layers.0.mixer.{name}.weight"]
        parts = [
            np.split(w, np.cumsum([n // 2 for n in sizes])[:-1])
            for w in ranks_of(shards, f"decoder.layers.0.mixer.{name}.weight")
        ]
        assert (np.concatenate([np.concatenate(piece) for piece in zip(*parts, strict=True)]) == whole).all()


@pytest.mark.parametrize("name", ["account_for_embedding_in_pipeline_split", "pipeline_model_parallel_layout"])
def test_how_the_source_was_split_does_not_stick_to_the_target(name: str, tmp_path: Path) -> None:
    """Args that only --set layers_per_stage can explain are gone from a target of another layout."""
    hf, want = tiny_hf.random_tensors(LLAMA), Wanted(pp=2, stages=(1, 3))
    args = args_of_a_run(LLAMA, want) | {"num_layer_list": None, name: "E|t|tttL", "train_iters": 500}
    tiny_hf.write_hf(tmp_path / "run" / "hf", LLAMA, hf)
    tiny_hf.write_megatron(tmp_path / "run" / "iter_0000001", dict(by_hand.shards(hf, LLAMA, want)), args)
    with pytest.raises(ToolError, match=name):
        open_checkpoint(tmp_path / "run")
    source = open_checkpoint(tmp_path / "run", options=OpenOptions(sets={"layers_per_stage": [1, 3]}))
    run_plan(plan_megatron(source, ParallelLayout(pp=4)), tmp_path / "again")
    again = open_checkpoint(tmp_path / "again")
    assert again.layout == ParallelLayout(pp=4)
    assert again.args["train_iters"] == 500
    run_plan(plan_hf(again), tmp_path / "back")
    assert tiny_hf.read_hf(tmp_path / "back") == tiny_hf.read_hf(tmp_path / "run" / "hf")
