"""LoRA adapters: every shard as written by hand, there and back, from layout to layout, stacked, beside weights and merged."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import by_hand
import drawn
import tiny_hf
import tiny_lora
from by_hand import Wanted
from jumar.ckpt_convert import OpenOptions, open_checkpoint, plan_hf, plan_megatron, run_plan, verify
from jumar.ckpt_convert.checkpoint import Checkpoint
from jumar.ckpt_convert.formats.archive import read_archive
from jumar.ckpt_convert.merge import bearing, merged, open_adapter
from jumar.ckpt_convert.to_peft import plan_peft
from jumar.schema.errors import ToolError
from jumar.schema.registry import families

ADAPTED = [name for name in families() if name not in by_hand.MIXERS]
GROUPS = (tiny_lora.QKV, tiny_lora.PROJ, tiny_lora.FC1, tiny_lora.FC2)
MINDSPEED = "MindSpeed-LLM v2"
DOCUMENTED = "layout as documented"


@pytest.fixture(scope="module", autouse=True)
def _disk_without_waiting() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        patch.setattr(os, "fdatasync", lambda fd: None)
        yield


DIALECTS = ("mcore", "te", "mindspeed")  # the other two rename these: test_names_of_older_tools


@st.composite
def cases(draw: st.DrawFn, model_type: str) -> tuple[dict[str, Any], Wanted, tuple[str, ...], int]:
    """A model, a layout that fits it, what is adapted, a rank."""
    config, want = draw(drawn.cases(model_type))
    groups = tuple(draw(st.lists(st.sampled_from(GROUPS), unique=True, min_size=1)))
    assume(not (want.grouped and want.dialect == "te"))
    assume(want.dialect in DIALECTS and not want.mm_split)
    assume(tiny_lora.sizes(config, groups))
    return config, want, groups, draw(st.integers(1, 9))


def written(checkpoint: Checkpoint, want: Wanted, home: Path) -> Path:
    experts = "grouped" if want.grouped else "sequential"
    run_plan(plan_megatron(checkpoint, drawn.layout_of(want), dialect=want.dialect, expert_layout=experts), home)
    return home


def model(home: Path, config: dict[str, Any], tensors: tiny_hf.Arrays | None = None) -> Path:
    return tiny_hf.write_hf(home, config, tiny_hf.random_tensors(config) if tensors is None else tensors)


def everything(home: Path) -> dict[str, bytes]:
    return {str(p.relative_to(home)): p.read_bytes() for p in home.rglob("*") if p.is_file() and p.name != "manifest.json"}


def assert_same(found: dict[str, dict[str, tiny_hf.Arrays]], expected: dict[str, dict[str, tiny_hf.Arrays]]) -> None:
    assert sorted(found) == sorted(expected)
    for shard, states in expected.items():
        assert {k: sorted(v) for k, v in found[shard].items()} == {k: sorted(v) for k, v in states.items()}, shard
        for key, state in states.items():
            wrong = [n for n, a in state.items() if found[shard][key][n].shape != a.shape or (found[shard][key][n] != a).any()]
            assert not wrong, f"{shard}/{key}"


@pytest.mark.parametrize("model_type", ADAPTED)
@settings(max_examples=10)
@given(data=st.data())
@pytest.mark.compat("written", MINDSPEED, "LoRA adapter alone, as `mp_rank_*` shards", DOCUMENTED)
def test_every_shard_is_as_written_by_hand_and_comes_back(model_type: str, data: st.DataObject) -> None:
    config, want, groups, rank = data.draw(cases(model_type))
    lora = tiny_lora.adapter(config, groups, rank)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        peft = tiny_lora.write_peft(home / "peft", lora, model(home / "hf", config))
        written(open_checkpoint(peft), want, home / "mcore")
        assert_same(tiny_hf.read_megatron(home / "mcore" / "iter_0000001"), dict(tiny_lora.shards(lora, config, want)))
        opened = open_checkpoint(home / "mcore")
        assert {lora.rank for lora in opened.lora.values()} == {rank}
        assert verify(open_checkpoint(peft), opened).same
        run_plan(plan_peft(opened), home / "back")
        assert tiny_hf.read_hf(home / "back") == tiny_hf.read_hf(peft)
        said, back = (json.loads((d / "adapter_config.json").read_text()) for d in (peft, home / "back"))
        names = ("r", "lora_alpha", "lora_dropout", "base_model_name_or_path", "task_type", "bias")
        assert {n: back[n] for n in names} == {n: said[n] for n in names}


@pytest.mark.parametrize("model_type", ADAPTED)
@settings(max_examples=8)
@given(data=st.data())
@pytest.mark.compat("read", MINDSPEED, "LoRA shards, base and adapter in one file (`base_layer`)", DOCUMENTED)
@pytest.mark.compat("read", MINDSPEED, "LoRA adapter alone, as `mp_rank_*` shards (`lora_ckpt_filter`)", DOCUMENTED)
def test_shards_of_a_training_run_are_read(model_type: str, data: st.DataObject) -> None:
    """By hand, with and without the weights that they adapt, with and without the adapter's name."""
    config, want, groups, rank = data.draw(cases(model_type))
    beside, named = data.draw(st.booleans()), data.draw(st.booleans())
    lora, tensors = tiny_lora.adapter(config, groups, rank), tiny_hf.random_tensors(config)
    shards = dict(tiny_lora.shards(lora, config, want))
    if beside:
        weights = by_hand.shards(tensors, config, want)
        shards = {s: {k: wrapped(t, shards[s][k]) | shards[s][k] for k, t in states.items()} for s, states in weights}
    if not named:
        shards = {s: {k: without_a_name(t) for k, t in states.items()} for s, states in shards.items()}
    args = args_of_a_run(config, want) | {"lora_r": rank, "lora_alpha": 3 * rank, "lora_target_modules": ["linear_qkv"]}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        model(home / "run" / "hf", config, {})
        tiny_hf.write_megatron(home / "run" / "iter_0000007", shards, args)
        opened = open_checkpoint(home / "run", options=OpenOptions(bearing=True))
        run_plan(plan_peft(opened), home / "peft")
        found = tiny_hf.read_hf(home / "peft")
        tiny_lora.write_peft(home / "expected", lora)
        assert found == tiny_hf.read_hf(home / "expected")
        assert json.loads((home / "peft" / "adapter_config.json").read_text())["lora_alpha"] == 3 * rank
        if beside:
            model(home / "hf", config, tensors)
            assert verify(open_checkpoint(home / "hf"), replace(opened, adapter=None)).same


@pytest.mark.parametrize("model_type", ADAPTED)
@settings(max_examples=6)
@given(data=st.data())
@pytest.mark.compat("written", MINDSPEED, "LoRA shards, base and adapter in one file (`base_layer`)", DOCUMENTED)
def test_shards_that_bear_a_lora_are_as_written_by_hand(model_type: str, data: st.DataObject) -> None:
    config, want, groups, rank = data.draw(cases(model_type))
    want = replace(want, divisible_by=1)
    lora, tensors = tiny_lora.adapter(config, groups, rank), tiny_hf.random_tensors(config)
    adapters = dict(tiny_lora.shards(lora, config, want))
    weights = by_hand.shards(tensors, config, want)
    expected = {s: {k: wrapped(t, adapters[s][k]) | adapters[s][k] for k, t in states.items()} for s, states in weights}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        hf = model(home / "hf", config, tensors)
        adapter = open_checkpoint(tiny_lora.write_peft(home / "peft", lora, hf))
        written(bearing(open_checkpoint(hf), adapter), want, home / "mcore")
        assert_same(tiny_hf.read_megatron(home / "mcore" / "iter_0000001"), expected)


def without_a_name(state: tiny_hf.Arrays) -> tiny_hf.Arrays:
    return {name.replace(".default.", "."): array for name, array in state.items()}


def wrapped(state: tiny_hf.Arrays, lora: tiny_hf.Arrays) -> tiny_hf.Arrays:
    """A state dict as peft's wrappers name it."""
    modules = {n.split(".lora_")[0] for n in lora if ".lora_" in n}
    made = {}
    for name, array in state.items():
        module = next((m for m in modules if name.startswith(f"{m}.")), None)
        made[f"{module}.base_layer{name[len(module) :]}" if module else name] = array
    return made


def args_of_a_run(config: dict[str, Any], want: Wanted) -> dict[str, Any]:
    layers = by_hand.layers_of(config) + len(want.noop)
    args: dict[str, Any] = {
        "tensor_model_parallel_size": want.tp,
        "pipeline_model_parallel_size": want.pp,
        "expert_model_parallel_size": want.ep,
        "expert_tensor_parallel_size": 1 if want.extend else want.etp,
        "num_layers": layers,
        "mtp_num_layers": config.get("num_nextn_predict_layers"),
        "moe_tp_extend_ep": want.extend,
        "schedules_method": "dualpipev" if want.dualpipev else None,
        "virtual_pipeline_model_parallel_size": want.vpp if want.vpp > 1 and not want.dualpipev else None,
        "num_layer_list": ",".join(map(str, want.stages)) if want.stages else None,
        "noop_layers": ",".join(map(str, want.noop)) if want.noop else None,
        "transformer_impl": "transformer_engine" if want.dialect == "te" else "local",
    }
    return args


@pytest.mark.parametrize("model_type", ADAPTED)
@settings(max_examples=6)
@given(data=st.data())
def test_from_one_layout_to_another_is_as_if_written_there(model_type: str, data: st.DataObject) -> None:
    """An adapter alone, and beside its weights; no-op slots, virtual and uneven stages, MTP, ETP, tied models."""
    config, first, groups, rank = data.draw(cases(model_type))
    second = data.draw(layouts_for(config, model_type, first))
    beside = data.draw(st.booleans())
    lora = tiny_lora.adapter(config, groups, rank, shared=data.draw(st.booleans()))
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        hf = model(home / "hf", config)
        adapter = open_checkpoint(tiny_lora.write_peft(home / "peft", lora, hf))
        source = bearing(open_checkpoint(hf), adapter) if beside else adapter
        opened = open_checkpoint(written(source, first, home / "first"), options=OpenOptions(bearing=True))
        again = written(opened, second, home / "again")
        if "mindspeed" in (first.dialect, second.dialect) and first.dialect != second.dialect and "kv_lora_rank" in config:
            direct = None  # what is stacked there is stacked once, in the order of the journey
        else:
            direct = written(source, second, home / "direct")
        if direct:
            assert everything(again) == everything(direct)
        if beside:
            both = [open_checkpoint(home / n, options=OpenOptions(bearing=True)) for n in ("first", "again")]
            assert direct is None or verify(*both).same


@st.composite
def layouts_for(draw: st.DrawFn, config: dict[str, Any], model_type: str, like: Wanted) -> Wanted:
    """Another layout of the same model: fewer ranks, other stages, the other dialect or expert layout."""
    layers = by_hand.layers_of(config)
    pp = draw(st.sampled_from([n for n in (1, 2, 3) if layers % n == 0]))
    vpp = draw(st.sampled_from([n for n in (1, 2) if layers % (pp * n) == 0 and (pp > 1 or n == 1)]))
    dialect = draw(st.sampled_from([d for d in families()[model_type].dialects if d in DIALECTS]))
    grouped = like.grouped and dialect != "te"
    return Wanted(tp=draw(st.sampled_from([1, like.tp])), pp=pp, vpp=vpp, etp=1, dialect=dialect, grouped=grouped)


@pytest.mark.parametrize("model_type", ADAPTED)
@settings(max_examples=6)
@given(data=st.data())
def test_stacked_adapters_have_the_same_products(model_type: str, data: st.DataObject) -> None:
    """Each module with a lora_A of its own, some without an adapter: whole numbers, so that the products are exact."""
    config, want, groups, rank = data.draw(cases(model_type))
    left_out = data.draw(st.sampled_from(["", "k_proj", "up_proj", "w1", "layers.0."]))
    lora = tiny_lora.adapter(config, groups, rank, shared=False, values="whole", keep=lambda m: not left_out or left_out not in m)
    assume(lora)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        adapter = open_checkpoint(tiny_lora.write_peft(home / "peft", lora, model(home / "hf", config), lora_alpha=2 * rank))
        written(adapter, want, home / "mcore")
        run_plan(plan_peft(open_checkpoint(home / "mcore")), home / "back")
        back = open_checkpoint(home / "back", options=OpenOptions(base=home / "hf"))
        for module, own in back.lora.items():
            assert own.scale == 2
            found = back.array(f"{module}.lora_B.weight").astype(float) @ back.array(f"{module}.lora_A.weight").astype(float)
            if f"{module}.lora_A.weight" in lora:
                a, b = (tiny_lora.real(lora[f"{module}.lora_{x}.weight"]) for x in "AB")
                assert (found == b @ a).all(), module
            else:
                assert not found.any(), module
        assert set(adapter.lora) <= set(back.lora)


@pytest.mark.parametrize("model_type", families())
@settings(max_examples=6)
@given(data=st.data())
def test_merged_weights_are_the_sum(model_type: str, data: st.DataObject) -> None:
    """W + scale * B @ A in double precision, rounded once; the same bits from any layout of the model, and in any target."""
    config, want = data.draw(drawn.cases(model_type))
    assume(not (want.grouped and want.dialect == "te"))
    assume(want.dialect in DIALECTS and not want.mm_split)
    groups = data.draw(st.lists(st.sampled_from(GROUPS), unique=True, min_size=1))
    wide = data.draw(st.booleans())
    random = np.random.default_rng(1)
    kind = np.float32 if wide else ml_dtypes.bfloat16
    plain = {n: a.shape for n, a in tiny_hf.random_tensors(config).items()}
    kept = families()[model_type].kept_dtypes(families()[model_type].spec(config))
    drawn_ = {n: random.standard_normal(s).astype(np.float32 if n in kept else kind) for n, s in plain.items()}
    tensors = {n: a.view(np.uint32 if a.itemsize == 4 else np.uint16) for n, a in drawn_.items()}
    lora = tiny_lora.adapter(config, groups, data.draw(st.integers(1, 5)), shared=False, values="real")
    if model_type in by_hand.MIXERS:
        lora = mamba_adapter(config, random)
    assume(lora)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        hf = model(home / "hf", config, tensors)
        peft = tiny_lora.write_peft(home / "peft", lora, hf, lora_alpha=7)
        base = open_checkpoint(hf)
        adapter = open_adapter(peft, base, OpenOptions())
        run_plan(plan_hf(merged(base, adapter)), home / "merged", threads=1)
        found = tiny_hf.read_hf(home / "merged")
        for weight, array in tensors.items():
            own = np.frombuffer(found[weight][2], array.dtype).reshape(array.shape)
            module = weight.removesuffix(".weight")
            if f"{module}.lora_A.weight" not in lora:
                assert (own == array).all(), weight
                continue
            a, b = (tiny_lora.real(lora[f"{module}.lora_{x}.weight"]) for x in "AB")
            added = 7 / len(a) * (b @ a)
            expected = tiny_lora.real(array) + (added.T if model_type == "gpt2" else added)
            error = np.abs(tiny_lora.real(own) - expected)
            size = np.abs(tiny_lora.real(array)) + 7 / len(a) * (np.abs(b) @ np.abs(a)).reshape(added.shape).max()
            assert (error <= size * 2.0**-20 + np.abs(expected) * (2.0**-22 if wide else 2.0**-8)).all(), weight
        shards = open_checkpoint(written(base, want, home / "mcore"))
        run_plan(plan_hf(merged(shards, adapter)), home / "from-shards", threads=2)
        assert tiny_hf.read_hf(home / "from-shards") == found
        written(merged(base, adapter), want, home / "merged-mcore")
        run_plan(plan_hf(open_checkpoint(home / "merged-mcore")), home / "back")
        assert tiny_hf.read_hf(home / "back") == found
        if model_type not in by_hand.MIXERS:
            written(bearing(shards, adapter), want, home / "bearing")
            opened = open_checkpoint(home / "bearing", options=OpenOptions(bearing=True))
            assert opened.adapter
            run_plan(plan_hf(merged(opened)), home / "own")
            close(tiny_hf.read_hf(home / "own"), found)


def close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal, but for the order in which a stacked product is summed."""
    assert found.keys() == expected.keys()
    for name, (dtype, shape, raw) in expected.items():
        kind = {"F32": np.float32, "BF16": ml_dtypes.bfloat16}[dtype]
        one, other = (np.frombuffer(x, kind).astype(float) for x in (found[name][2], raw))
        assert found[name][:2] == (dtype, shape)
        assert np.allclose(one, other, rtol=2.0**-6 if dtype == "BF16" else 1e-5, atol=1e-5), name


def mamba_adapter(config: dict[str, Any], random: np.random.Generator) -> tiny_hf.Arrays:
    """On the matrices of its mixers, which Megatron's LoRA does not wrap: merging alone knows them."""
    lora = {}
    for name, array in tiny_hf.random_tensors(config).items():
        if name.endswith(("in_proj.weight", "out_proj.weight")):
            for half, shape in (("A", (3, array.shape[1])), ("B", (array.shape[0], 3))):
                made = random.standard_normal(shape).astype(np.float32)
                lora[f"{name.removesuffix('.weight')}.lora_{half}.weight"] = made.view(np.uint32)
    return lora


@pytest.mark.compat("read", "MindSpeed-LLM 1", "LoRA under v1 and `legacy` names, alone or beside the weights", DOCUMENTED)
@pytest.mark.parametrize(
    ("model_type", "dialect", "layout", "name"),
    [
        (
            "llama",
            "legacy",
            Wanted(tp=2, pp=2),
            "language_model.encoder.layers.0.self_attention.query_key_value.lora_A.default.weight",
        ),
        ("qwen2", "legacy", Wanted(tp=2), "language_model.encoder.layers.1.mlp.dense_4h_to_h.lora_B.default.weight"),
        ("deepseek_v2", "mindspeed-v1", Wanted(pp=2), "decoder.layers.0.self_attention.linear_kvb.lora_B.default.weight"),
    ],
)
def test_names_of_older_tools(model_type: str, dialect: str, layout: Wanted, name: str, tmp_path: Path) -> None:
    """They rename what other dialects hold: an adapter comes back as it was, alone and from shards that bear it."""
    config = dict(families()[model_type].tiny)
    groups = tuple(g for g in GROUPS if tiny_lora.sizes(config, (g,)))
    lora = tiny_lora.adapter(config, groups, 3)
    peft = tiny_lora.write_peft(tmp_path / "peft", lora, model(tmp_path / "hf", config))
    written(open_checkpoint(peft), replace(layout, dialect=dialect), tmp_path / "alone")
    base = open_checkpoint(tmp_path / "hf")
    both = bearing(base, open_adapter(peft, base, OpenOptions()))
    written(both, replace(layout, dialect=dialect), tmp_path / "both")
    for home in ("alone", "both"):
        file = next((tmp_path / home).glob("iter_*/mp_rank_00*/model_optim_rng.pt"))
        tree: Any = read_archive(file)
        assert name in set(flat(tree["model"])), home
        opened = open_checkpoint(tmp_path / home, options=OpenOptions(bearing=True))
        adapter = opened if opened.lora else opened.adapter
        assert adapter is not None
        assert verify(open_checkpoint(peft), adapter).same
        run_plan(plan_peft(adapter), tmp_path / f"back-{home}")
        assert tiny_hf.read_hf(tmp_path / f"back-{home}") == tiny_hf.read_hf(peft)


def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of nested dicts."""
    for key, value in tree.items():
        yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else (prefix + key,)


def test_a_lora_on_split_projections_has_no_names(tmp_path: Path) -> None:
    config = dict(families()["deepseek_v2"].tiny)
    peft = tiny_lora.write_peft(tmp_path / "peft", tiny_lora.adapter(config, GROUPS[:1], 2), model(tmp_path / "hf", config))
    with pytest.raises(ToolError, match="mla-mm-split"):
        plan_megatron(open_checkpoint(peft), drawn.layout_of(Wanted()), dialect="mindspeed", mla_mm_split=True)
