"""Shards as other stacks spell them: MindSpeed-LLM 1, --mla-mm-split, Megatron-LM's legacy models, optimizer state beside.

Each is made here by hand, from whole arrays; names and cuts are the published ones (docs/formats.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import by_hand
import tiny_hf
from by_hand import Arrays, Wanted
from failing import ok, refused, run, untouched
from jumar.ckpt_convert import OpenOptions, open_checkpoint, plan_hf, plan_megatron, run_plan
from jumar.schema.errors import ToolError
from jumar.schema.parallel import ParallelLayout
from jumar.schema.registry import families

pytestmark = pytest.mark.matrix

Config = dict[str, Any]
MLA: Config = {**families()["deepseek_v2"].tiny, "num_hidden_layers": 2}
A = "decoder.layers.1.self_attention."


def made(home: Path, config: Config, want: Wanted, **how: Any) -> Path:
    """Shards by hand, with hf/ beside, and the original in home/hf."""
    tensors = tiny_hf.random_tensors(config)
    tiny_hf.write_hf(home / "hf", config, tensors)
    hf = tiny_hf.write_hf(home / "run" / "hf", config, {})
    (hf / "model.safetensors").unlink()
    how = {"args": {"num_layers": config.get("num_hidden_layers", config.get("n_layer"))}, **how}
    tiny_hf.write_megatron(home / "run" / "iter_0000007", dict(by_hand.shards(tensors, config, want)), **how)
    return home / "run"


def comes_back(home: Path, run_: Path, options: OpenOptions | None = None) -> bool:
    checkpoint = open_checkpoint(run_, options=options)
    run_plan(plan_hf(checkpoint), home / "back")
    return tiny_hf.read_hf(home / "back") == tiny_hf.read_hf(home / "hf")


def converted(home: Path, config: Config, tensors: Arrays, layout: ParallelLayout, **how: Any) -> dict[str, dict[str, Arrays]]:
    plan = plan_megatron(open_checkpoint(tiny_hf.write_hf(home / "hf", config, tensors)), layout, **how)
    run_plan(plan, home / "mcore")
    return tiny_hf.read_megatron(home / "mcore" / "iter_0000001")


# ---- Megatron-LM before megatron-core


def as_saved(state: Arrays) -> Config:
    """`state_dict_for_save_checkpoint`: nested dicts, in which the encoder's names keep their dots."""
    tree: Config = {"language_model": {}}
    inner = tree["language_model"]
    for name, array in state.items():
        if name.startswith("language_model.embedding."):
            _, _, module, kind = name.split(".")
            inner.setdefault("embedding", {}).setdefault(module, {})[kind] = array
        elif name.startswith("language_model.encoder."):
            inner.setdefault("encoder", {})[name.removeprefix("language_model.encoder.")] = array
        elif name == "language_model.output_layer.weight":
            inner["output_layer"] = {"weight": array}
        else:
            assert name == "word_embeddings_for_head.weight"
            tree["word_embeddings_for_head"] = {"weight": array}
    return tree


def older(state: Arrays) -> Config:
    """The names of 2020 to 2023: `transformer`, `attention`, `*_layernorm`, the embedding without a dict of its own."""
    tree = as_saved(state)
    inner = tree["language_model"]
    inner |= inner.pop("embedding", {})
    words = {".self_attention.": ".attention.", "post_attention_norm": "post_attention_layernorm"}
    words |= {"input_norm": "input_layernorm", "final_norm": "final_layernorm"}
    renamed = {}
    for name, array in inner.pop("encoder", {}).items():
        for new, old in words.items():
            name = name.replace(new, old)
        renamed[name] = array
    return {**tree, "language_model": {**inner, "transformer": renamed}}


def dotted(state: Arrays) -> Config:
    return {name.replace("word_embeddings_for_head", "word_embeddings"): array for name, array in state.items()}


LEGACY = {
    "llama": {**families()["llama"].tiny, "num_hidden_layers": 3},
    "tied": {**families()["qwen2"].tiny, "num_hidden_layers": 3},
    "gpt2": {**families()["gpt2"].tiny, "n_layer": 3},
}


@pytest.mark.parametrize("want", [Wanted(tp=2), Wanted(tp=2, pp=3), Wanted(pp=2, stages=(2, 1))], ids=["tp2", "tp2pp3", "2+1"])
@pytest.mark.parametrize("shape", [as_saved, older, dotted])
@pytest.mark.parametrize("model", LEGACY)
@pytest.mark.compat(
    "read",
    "Megatron-LM, MindSpeed-LLM 1",
    "legacy `language_model` shards",
    "nested dicts or dotted names, three generations of spellings; layout as documented",
)
def test_legacy_shards_in_each_spelling(model: str, shape: Callable[[Arrays], Config], want: Wanted, tmp_path: Path) -> None:
    config, legacy = LEGACY[model], Wanted(**{**vars(want), "dialect": "legacy"})
    source = made(tmp_path, config, legacy, shape=shape)
    assert open_checkpoint(source).placement.dialect == "legacy"  # type: ignore[union-attr]
    assert comes_back(tmp_path, source)


def test_legacy_names_and_cuts(tmp_path: Path) -> None:
    """What Megatron-LM's load_state_dict looks for, rank by rank; the tied copy on the last stage."""
    config = LEGACY["tied"]
    hf = tiny_hf.random_tensors(config)
    shards = converted(tmp_path, config, hf, ParallelLayout(tp=2, pp=3), dialect="legacy")
    first, last = shards["mp_rank_01_000"]["model"], shards["mp_rank_01_002"]["model"]
    layer = "language_model.encoder.layers.0."
    assert sorted(first) == sorted(
        ["language_model.embedding.word_embeddings.weight"]
        + [f"{layer}{n}" for n in ("input_norm.weight", "post_attention_norm.weight", "self_attention.dense.weight")]
        + [f"{layer}self_attention.query_key_value.{kind}" for kind in ("weight", "bias")]
        + [f"{layer}mlp.{n}.weight" for n in ("dense_h_to_4h", "dense_4h_to_h")]
    )
    assert sorted(set(last) - set(first)) == ["language_model.encoder.final_norm.weight", "word_embeddings_for_head.weight"]
    rows = hf["model.embed_tokens.weight"]
    assert (last["word_embeddings_for_head.weight"][: len(rows) - 66] == rows[66:]).all()
    gate, up = (hf[f"model.layers.2.mlp.{x}_proj.weight"][48:] for x in ("gate", "up"))
    assert (last[f"{layer}mlp.dense_h_to_4h.weight"] == np.concatenate([gate, up])).all()


def test_legacy_shards_are_written_nested(tmp_path: Path) -> None:
    from jumar.ckpt_convert.formats.archive import read_archive

    converted(tmp_path, LEGACY["gpt2"], tiny_hf.random_tensors(LEGACY["gpt2"]), ParallelLayout(), dialect="legacy")
    tree: Any = read_archive(tmp_path / "mcore" / "iter_0000001" / "mp_rank_00" / "model_optim_rng.pt")
    model = tree["model"]["language_model"]
    assert sorted(tree["model"]) == ["language_model"]
    assert sorted(model) == ["embedding", "encoder"]
    assert sorted(model["embedding"]) == ["position_embeddings", "word_embeddings"]
    assert sorted(model["embedding"]["word_embeddings"]) == ["weight"]
    assert "layers.2.mlp.dense_4h_to_h.bias" in model["encoder"]
    assert tree["args"].use_mcore_models is False


@pytest.mark.parametrize("version", [0, 1.0])
@pytest.mark.compat(
    "refused",
    "Megatron-LM before 2.0",
    "legacy shards with checkpoint_version 0 and 1.0",
    "query, key and value in another order",
)
def test_legacy_shards_with_another_order_of_q_k_v(version: float, tmp_path: Path) -> None:
    source = made(tmp_path, LEGACY["gpt2"], Wanted(dialect="legacy"), shape=as_saved, checkpoint_version=version)
    refused(run("to-hf", source, tmp_path / "out"), 3, f"checkpoint_version {version}", "another order than since 2.0")
    untouched(tmp_path / "out")


def test_legacy_shards_that_do_not_say_their_version(tmp_path: Path) -> None:
    source = made(tmp_path, LEGACY["gpt2"], Wanted(dialect="legacy"), shape=as_saved, checkpoint_version=None)
    refused(run("to-hf", source, tmp_path / "out"), 3, "do not say checkpoint_version", "--set checkpoint_version=...")
    untouched(tmp_path / "out")
    ok(run("to-hf", source, tmp_path / "out", "--set", "checkpoint_version=3.0"))


def test_a_tensor_under_two_spellings(tmp_path: Path) -> None:
    def twice(state: Arrays) -> Config:
        name = "language_model.encoder.layers.0.input_norm.weight"
        return {**state, name.replace("input_norm", "input_layernorm"): state[name]}

    source = made(tmp_path, LEGACY["llama"], Wanted(dialect="legacy"), shape=twice)
    refused(run("to-hf", source, tmp_path / "out"), 3, "input_norm.weight under two spellings")


# ---- MindSpeed-LLM 1, and --mla-mm-split


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("q_lora", [24, None])
@pytest.mark.parametrize("dialect", ["mindspeed", "mindspeed-v1"])
@pytest.mark.compat(
    "read", "MindSpeed-LLM", "latent attention in v1 and v2 names, with and without `--mla-mm-split`", "layout as documented"
)
def test_latent_attention_of_mindspeed(dialect: str, q_lora: int | None, split: bool, tmp_path: Path) -> None:
    config = MLA | {"q_lora_rank": q_lora}
    want = Wanted(pp=2, dialect=dialect, mm_split=split, tp=1 if dialect == "mindspeed-v1" else 2)
    source = made(tmp_path, config, want)
    placement = open_checkpoint(source).placement
    assert placement is not None
    assert (placement.dialect, placement.mla_mm_split) == (dialect, split)
    assert comes_back(tmp_path, source)


def test_names_of_mindspeed_1(tmp_path: Path) -> None:
    hf = tiny_hf.random_tensors(MLA)
    state = converted(tmp_path, MLA, hf, ParallelLayout(), dialect="mindspeed-v1")["mp_rank_00"]["model"]
    src = "model.layers.1.self_attn."
    joined = np.concatenate([hf[f"{src}q_a_proj.weight"], hf[f"{src}kv_a_proj_with_mqa.weight"]])
    assert (state[f"{A}linear_qkv.weight"] == joined).all()
    for name, source in ("linear_qb", "q_b_proj"), ("linear_kvb", "kv_b_proj"), ("q_layernorm", "q_a_layernorm"):
        assert (state[f"{A}{name}.weight"] == hf[f"{src}{source}.weight"]).all()
    assert (state[f"{A}k_layernorm.weight"] == hf[f"{src}kv_a_layernorm.weight"]).all()


def test_the_gate_of_shared_experts_in_mindspeed_1(tmp_path: Path) -> None:
    config = families()["qwen2_moe"].tiny
    hf = tiny_hf.random_tensors(config)
    state = converted(tmp_path, config, hf, ParallelLayout(), dialect="mindspeed-v1")["mp_rank_00"]["model"]
    gate = state["decoder.layers.0.mlp.shared_expert_gate.weight"]
    assert (gate == hf["model.layers.0.mlp.shared_expert_gate.weight"]).all()
    assert open_checkpoint(tmp_path / "mcore" / "iter_0000001").placement.dialect == "mindspeed-v1"  # type: ignore[union-attr]


@pytest.mark.compat(
    "refused", "MindSpeed-LLM 1", "latent attention at TP > 1", "its converter cut `linear_qkv` across the border of two matrices"
)
def test_latent_attention_of_mindspeed_1_at_tp_2(tmp_path: Path) -> None:
    tensors = tiny_hf.random_tensors(MLA)
    hf = tiny_hf.write_hf(tmp_path / "hf", MLA, tensors)
    out = tmp_path / "out"
    refused(run("to-megatron", hf, out, "--dialect", "mindspeed-v1", "--tp", 2), 3, "latent attention at TP 1 only")
    untouched(out)
    state = next(iter(dict(by_hand.shards(tensors, MLA, Wanted(dialect="mindspeed-v1"))).values()))
    halves = {f"mp_rank_{t:02d}": {"model": {n: half(a, t) for n, a in state["model"].items()}} for t in (0, 1)}
    tiny_hf.write_megatron(tmp_path / "run" / "iter_0000001", halves, {"tensor_model_parallel_size": 2})
    (tmp_path / "run" / "hf").symlink_to(hf)
    refused(run("to-hf", tmp_path / "run", out), 3, "dialect mindspeed-v1 at tp=2", "across the border")
    untouched(out)


def half(array: np.ndarray, t: int) -> np.ndarray:
    return array if len(array) % 2 else np.split(array, 2)[t]


def test_mla_mm_split_parts_each_head(tmp_path: Path) -> None:
    """4 heads of 16 + 8 rows (queries) and of 16 + 16 (keys, values); at TP 2 each rank has two heads of every part."""
    hf = tiny_hf.random_tensors(MLA)
    shards = converted(tmp_path, MLA, hf, ParallelLayout(tp=2), dialect="mindspeed", mla_mm_split=True)
    parts = {"linear_qk_nope": ("q_b_proj", 0, 16), "linear_qk_rope": ("q_b_proj", 16, 24)}
    parts |= {"linear_kv_nope": ("kv_b_proj", 0, 16), "linear_v": ("kv_b_proj", 16, 32)}
    for name, (source, start, stop) in parts.items():
        matrix = hf[f"model.layers.1.self_attn.{source}.weight"]
        whole = np.concatenate([shards[f"mp_rank_{t:02d}"]["model"][f"{A}{name}.weight"] for t in (0, 1)])
        for head in range(4):
            size = len(matrix) // 4
            ours = whole[head * (stop - start) : (head + 1) * (stop - start)]
            assert (ours == matrix[head * size + start : head * size + stop]).all(), name
    assert not any(n.endswith(("linear_q_up_proj.weight", "linear_kv_up_proj.weight")) for n in shards["mp_rank_00"]["model"])
    checkpoint = open_checkpoint(tmp_path / "mcore")
    assert checkpoint.args["mla_mm_split"] is True
    assert json.loads((tmp_path / "mcore" / "manifest.json").read_text())["mla_mm_split"] is True
    run_plan(plan_megatron(checkpoint, ParallelLayout(tp=4), dialect="mindspeed"), tmp_path / "whole")
    assert open_checkpoint(tmp_path / "whole").args["mla_mm_split"] is False
    assert comes_back(tmp_path, tmp_path / "whole")


@pytest.mark.parametrize("dialect, model", [("mcore", "deepseek_v2"), ("te", "deepseek_v3"), ("mindspeed", "llama")])
def test_mla_mm_split_where_there_is_none(dialect: str, model: str, tmp_path: Path) -> None:
    config = families()[model].tiny
    hf = tiny_hf.write_hf(tmp_path / "hf", config, tiny_hf.random_tensors(config))
    said = refused(run("to-megatron", hf, tmp_path / "out", "--dialect", dialect, "--mla-mm-split"), 3, "does not have it")
    assert (f"dialect {dialect} does" in said) == (model != "llama")
    untouched(tmp_path / "out")


# ---- optimizer state


@pytest.mark.compat(
    "read",
    "Megatron-LM",
    "shards with optimizer state (`distrib_optim.pt`, `optim.pt`, inside the shard)",
    "the weights; the state is counted, named and left behind",
)
def test_optimizer_state_is_counted_and_left(tmp_path: Path) -> None:
    """Beside the shard and inside it; before a conversion starts it says so."""
    state = {"state": [np.zeros((4, 8), np.float32)], "param_groups": []}
    source = made(tmp_path, LEGACY["llama"], Wanted(tp=2, pp=3), optimizer={"optimizer": {"fp32": state["state"][0]}})
    iteration = source / "iter_0000007"
    for rank in iteration.iterdir():
        (rank / "distrib_optim.pt").write_bytes(b"x" * 1000)
    (iteration / "mp_rank_00_000_001").mkdir()
    (iteration / "mp_rank_00_000_001" / "optim.pt").write_bytes(b"y" * 500)
    found = json.loads(ok(run("inspect", source, "--json")).out)["optimizer"]
    assert found == {"files": 6 + 6 + 1, "bytes": 6 * 1000 + 6 * 128 + 500, "carried": []}
    assert "13 files, which no conversion carries along" in ok(run("inspect", source)).out
    said = ok(run("to-hf", source, tmp_path / "back")).err
    assert re.search(r"optimizer state \(.* in 13 files\) is not carried along: weights alone", said), said
    assert tiny_hf.read_hf(tmp_path / "back") == tiny_hf.read_hf(tmp_path / "hf")


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    """Megatron-LM 3.0 with its distributed optimizer: model_rng.pt, and optim.pt in a directory of each data-parallel rank."""
    source = made(tmp_path, LEGACY["llama"], Wanted(tp=2))
    for rank in list((source / "iter_0000007").iterdir()):
        (rank / "model_optim_rng.pt").rename(rank / "model_rng.pt")
        (rank.parent / f"{rank.name}_000").mkdir()
        (rank.parent / f"{rank.name}_000" / "optim.pt").write_bytes(b"z")
    assert comes_back(tmp_path, source)


def test_optimizer_state_without_weights(tmp_path: Path) -> None:
    rank = tmp_path / "run" / "iter_0000001" / "mp_rank_00"
    rank.mkdir(parents=True)
    (rank / "distrib_optim.pt").write_bytes(b"x")
    refused(run("inspect", rank.parent), 3, "no model_optim_rng.pt beside the optimizer state")


# ---- which layout: what the args leave out or say wrongly, the files show

AMBIGUOUS = {
    "ep2": ("qwen3_moe", Wanted(tp=2, ep=2), "tp=2 ep=2"),
    "ep2 etp1": ("qwen3_moe", Wanted(tp=2, ep=2, etp=1), "tp=2 ep=2 etp=1"),
    "ep4 etp1 tp2": ("qwen3_moe", Wanted(tp=2, ep=4, etp=1), "tp=2 ep=4 etp=1"),
    "extend": ("qwen3_moe", Wanted(tp=2, ep=2, extend=True), "tp=2 ep=2 tp_extend_ep"),
    "pp2": ("qwen3_moe", Wanted(tp=2, pp=2), "tp=2 pp=2"),
    "pp2 mtp": ("deepseek_v3", Wanted(pp=2), "pp=2"),
    "ep2 mtp": ("deepseek_v3", Wanted(ep=2, dialect="mindspeed"), "ep=2"),
    "dualpipev mtp": ("deepseek_v3", Wanted(pp=2, vpp=2, dualpipev=True, dialect="mindspeed"), "pp=2 vpp=2 schedule=dualpipev"),
    "dualpipev pp1": ("llama", Wanted(vpp=2, dualpipev=True), "vpp=2 schedule=dualpipev"),
    "vpp": ("llama", Wanted(pp=2, vpp=2), "pp=2 vpp=2"),
    "both": ("qwen3_moe", Wanted(tp=2, pp=2, ep=2), "tp=2 pp=2 ep=2"),
    "uneven": ("llama", Wanted(pp=2, stages=(3, 1)), "pp=2 layers_per_stage=3,1"),
    "no-ops": ("llama", Wanted(pp=3, noop=(0, 3)), "pp=3 noop_layers=0,3"),
    "no-ops and vpp": ("llama", Wanted(pp=2, vpp=3, noop=(1, 4)), "pp=2 vpp=3"),
    "no-ops, dualpipev, mtp": (
        "deepseek_v3",
        Wanted(pp=2, vpp=2, noop=(0, 3, 4, 7), dualpipev=True),
        "pp=2 vpp=2 noop_layers=0,3,4,7 schedule=dualpipev",
    ),
}
WRONG: dict[str, Config | None] = {
    "none": None,
    "partial": {"tensor_model_parallel_size": None, "hidden_size": 64},
    "a converter's": {f"{n}_model_parallel_size": 1 for n in ("tensor", "pipeline", "expert")},
}


@pytest.mark.parametrize("args", WRONG)
@pytest.mark.parametrize("name", AMBIGUOUS)
@pytest.mark.compat(
    "read",
    "Megatron-LM, MindSpeed-LLM",
    "`mp_rank_TT_XXX` whose `args` lack the layout or contradict it",
    "PP or EP, no-op slots, DualPipeV and ETP from the contents",
)
def test_the_layout_shows_in_the_files(name: str, args: str, tmp_path: Path) -> None:
    model, want, layout = AMBIGUOUS[name]
    source = made(tmp_path, dict(families()[model].tiny), want, args=WRONG[args])
    found = json.loads(ok(run("inspect", source, "--json")).out)
    assert layout in found["layout"]
    contradicted = {"tp", "pp", "ep"} & {part.split("=")[0] for part in layout.split()}
    assert len(found["notes"]) == (len(contradicted) if args == "a converter's" else 0)
    assert comes_back(tmp_path, source)


def test_what_the_files_leave_open_is_asked_for(tmp_path: Path) -> None:
    """The files of one of two: grouped experts over two ranks, whole or halved, look alike; and a lonely rank of EP or PP."""
    config = dict(families()["qwen3_moe"].tiny)
    source = made(tmp_path, config, Wanted(tp=2, extend=True, grouped=True), args=None)
    refused(run("inspect", source), 3, "do not say moe_tp_extend_ep", "--set tp_extend_ep=...")
    assert comes_back(tmp_path, source, OpenOptions(sets={"tp_extend_ep": True}))
    lonely = made(tmp_path / "2", config, Wanted(pp=2, vpp=2, dualpipev=True), args=None)
    for rank in (lonely / "iter_0000007").glob("*_001"):
        rank.rename(tmp_path / rank.name)
    wanted = "pipeline_model_parallel_size, expert_model_parallel_size"
    refused(run("inspect", lonely), 3, f"do not say {wanted}", "--set pp=... --set ep=...")


def test_every_missing_fact_is_named_at_once(tmp_path: Path) -> None:
    """Nothing but shards: layout, checkpoint version and the facts that no tensor shows, in one error."""
    source = made(tmp_path, LEGACY["llama"], Wanted(pp=3, dialect="legacy"), shape=as_saved, args=None, checkpoint_version=None)
    (source / "hf" / "config.json").unlink()
    asked = "checkpoint_version, num_attention_heads, max_position_embeddings, norm_epsilon, rotary_base"
    said = refused(run("inspect", source, "--family", "llama"), 3, f"do not say {asked}\n")
    sets = dict(checkpoint_version=3.0, num_attention_heads=8, max_position_embeddings=128, norm_epsilon=1e-5, rotary_base=1e4)
    assert " ".join(f"--set {key}=..." for key in sets) in said
    given = [f"--set={k}={v}" for k, v in {**sets, "vocab_size": 131}.items()]
    ok(run("to-hf", source, tmp_path / "out", "--family=llama", *given))
    assert tiny_hf.read_hf(tmp_path / "out") == tiny_hf.read_hf(tmp_path / "hf")


SHAPES = {  # what shapes cannot show; the rest of the traits must come out right
    "deepseek_v3": dict(etp=2, num_attention_heads=4, moe_router_topk=2, max_position_embeddings=128),
    "qwen3_moe": dict(etp=2, ffn_hidden_size=96, moe_router_topk=2, max_position_embeddings=128),
    "gpt2": dict(num_attention_heads=4),
    "gemma2": dict(
        num_attention_heads=8,
        max_position_embeddings=128,
        query_pre_attn_scalar=16,
        window_size=[4095, 0],
        window_attn_skip_freq=2,
    ),
    "mamba2": dict(mamba_num_groups=4),
}


@pytest.mark.parametrize("model", SHAPES)
def test_sizes_come_from_shapes(model: str, tmp_path: Path) -> None:
    config = dict(families()[model].tiny)
    source = made(tmp_path, config, Wanted(tp=2, pp=2), args=None)
    (source / "hf" / "config.json").unlink()
    tied = config.get("tie_word_embeddings", model == "gpt2")
    sets = {**SHAPES[model], "vocab_size": 131, "norm_epsilon": 1e-6, "untie_embeddings_and_output_weights": not tied}
    if model not in ("gpt2", "mamba2"):
        sets["rotary_base"] = 10000
    options = OpenOptions(family=model, sets=sets)
    shown, described = open_checkpoint(source, options=options).spec, families()[model].spec(config)
    sizes = ("num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "ffn_size", "vocab_size", "mtp_layers", "mla")
    assert {n: getattr(shown, n) for n in sizes} == {n: getattr(described, n) for n in sizes}
    for part, names in ("moe", ("num_experts", "ffn_size", "shared_ffn_size")), ("ssm", ("num_heads", "head_dim", "state_size")):
        for name in names if getattr(described, part) else ():
            assert getattr(getattr(shown, part), name) == getattr(getattr(described, part), name)
    assert comes_back(tmp_path, source, options)


def test_a_vocabulary_of_unknown_size_is_said(tmp_path: Path) -> None:
    source = made(tmp_path, dict(families()["gpt2"].tiny), Wanted(tp=2), args=None)
    (source / "hf" / "config.json").unlink()
    sets = {"num_attention_heads": 4, "norm_epsilon": 1e-5}
    with pytest.raises(ToolError, match="nothing says which model"):
        open_checkpoint(source, options=OpenOptions(sets=sets))
    checkpoint = open_checkpoint(source, options=OpenOptions(family="gpt2", sets=sets))
    assert checkpoint.spec.vocab_size == 132
    assert any("all 132 rows are taken (--set vocab_size=N)" in note for note in checkpoint.notes)


def test_old_names_of_args(tmp_path: Path) -> None:
    """MindSpeed-LLM 1's, and those of Megatron-LM before --rotary-base; args as a dict."""
    config = MLA | {"num_hidden_layers": 2, "first_k_dense_replace": 1}
    args = {
        "model_parallel_size": 1,
        "num_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "layernorm_epsilon": 1e-6,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "max_position_embeddings": 128,
        "untie_embeddings_and_output_weights": True,
        "use_rotary_position_embeddings": True,
        "moe_router_topk": 2,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "padded_vocab_size": 131,
        "noop_layers": None,
    }
    source = made(tmp_path, config, Wanted(dialect="mindspeed-v1"), args=args)
    (source / "hf" / "config.json").unlink()
    checkpoint = open_checkpoint(source, options=OpenOptions(family="deepseek_v2"))
    assert checkpoint.spec.mla == families()["deepseek_v2"].spec(config).mla
    assert checkpoint.spec.rope.base == 10000
    run_plan(plan_megatron(checkpoint, ParallelLayout(tp=2), dialect="mindspeed"), tmp_path / "again")
    assert "model_parallel_size" not in open_checkpoint(tmp_path / "again").args
    assert comes_back(tmp_path, source, OpenOptions(family="deepseek_v2"))


@pytest.mark.parametrize("said", [{"noop_layers": "2,5"}, {"noop_layers": [2, 5]}, {"num_layers": 6}, {}], ids=str)
@pytest.mark.compat("read", "MindSpeed-LLM", "no-op slots (`noop_layers` as text or list, or not said)", "layout as documented")
def test_no_op_slots_as_mindspeed_says_them(said: Config, tmp_path: Path) -> None:
    """4 layers, no-op slots 2 and 5, on two stages: [0 1 -] [2 3 -]. The last case shows nothing, and means nothing."""
    source = made(tmp_path, dict(families()["llama"].tiny), Wanted(pp=2, noop=(2, 5)), args={"hidden_size": 64, **said})
    assert open_checkpoint(source).layout == ParallelLayout(pp=2, noop_layers=(2, 5) if said else ())
    assert comes_back(tmp_path, source)


def test_an_etp_that_the_files_are_not_those_of(tmp_path: Path) -> None:
    """TP 2, EP 2: four files with ETP 2, two with ETP 1."""
    config = dict(families()["qwen3_moe"].tiny)
    sizes = {"tensor_model_parallel_size": 2, "expert_model_parallel_size": 2}
    few = made(tmp_path / "few", config, Wanted(tp=2, ep=2, etp=1), args=sizes | {"expert_tensor_parallel_size": 2})
    refused(run("inspect", few), 3, "tp=2 pp=1 ep=2 etp=2 has 4 ranks, there are 2", "those of etp=1", "--set etp=1")
    assert comes_back(tmp_path / "few", few, OpenOptions(sets={"etp": 1}))
    many = made(tmp_path / "many", config, Wanted(tp=2, ep=2, etp=2), args=sizes | {"expert_tensor_parallel_size": 1})
    refused(run("inspect", many), 3, "tp=2 pp=1 ep=2 etp=1 has 2 ranks, there are 4", "those of etp=2", "--set etp=2")
