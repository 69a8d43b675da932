"""Every family's reader and writer, its rules, and its way through Megatron's args. Parametrised over the registry."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jumar.schema.errors import Exit, ToolError
from jumar.schema.family import Family
from jumar.schema.megatron_args import to_args
from jumar.schema.parallel import ParallelLayout
from jumar.schema.placement import Placement
from jumar.schema.read_megatron_args import contradictions, layout_from_args, spec_from_args
from jumar.schema.registry import families
from jumar.schema.spec import ModelSpec, spec_from_dict

EACH = pytest.mark.parametrize("family", families().values(), ids=list(families()))
WITH_ROPE = pytest.mark.parametrize(
    "family", [f for f in families().values() if "rope_theta" in f.tiny], ids=lambda f: f.model_type
)

LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 4.0},
    "llama3": LLAMA_3,
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32.0, "mscale": 0.7, "mscale_all_dim": 1.0},
}

# Changes to the tiny configs; each is for the families that have its keys.
CHANGES: list[dict[str, Any]] = [
    {"num_hidden_layers": 7},
    {"n_layer": 7},
    {"vocab_size": 1000},
    {"hidden_size": 128, "intermediate_size": 200},
    {"n_embd": 128},
    {"n_head": 8},
    {"num_attention_heads": 4},
    {"num_key_value_heads": 1},
    {"num_key_value_heads": 8},
    {"head_dim": 24, "num_attention_heads": 8},
    {"max_position_embeddings": 4096},
    {"n_positions": 4096},
    {"rms_norm_eps": 3e-5},
    {"rope_theta": 5e5},
    {"tie_word_embeddings": True},
    {"tie_word_embeddings": False},
    {"torch_dtype": "bfloat16"},
    {"torch_dtype": "float16"},
    {"attention_bias": True},
    {"attention_bias": False},
    {"sliding_window": 16},
    {"num_experts": 16},
    {"num_local_experts": 16},
    {"n_routed_experts": 16},
    {"num_experts_per_tok": 3},
    {"moe_intermediate_size": 48},
    {"shared_expert_intermediate_size": 72},
    {"mlp_only_layers": []},
    {"mlp_only_layers": [0, 3]},
    {"norm_topk_prob": False},
    {"n_shared_experts": 3},
    {"first_k_dense_replace": 0},
    {"first_k_dense_replace": 3},
    {"q_lora_rank": None},
    {"q_lora_rank": 16},
    {"kv_lora_rank": 40},
    {"qk_rope_head_dim": 4},
    {"v_head_dim": 24},
    {"n_group": 4, "topk_group": 2},
    {"num_nextn_predict_layers": 0},
    {"num_nextn_predict_layers": 2},
    {"partial_rotary_factor": 0.25},
    {"state_size": 32},
    {"n_groups": 2},
    {"num_heads": 16, "head_dim": 8},
]
# As above; Megatron's args do not say these.
CHANGES_UNKNOWN_TO_MEGATRON: list[dict[str, Any]] = [
    {"query_pre_attn_scalar": 64},
    {"attn_logit_softcapping": None},
    {"hidden_activation": "silu"},
    {"conv_kernel": 3},
    {"chunk_size": 64},
]
EXTRA: dict[str, list[dict[str, Any]]] = {
    "llama": [{"attention_bias": True}, {"mlp_bias": True}, {"attention_bias": True, "mlp_bias": True}, {"head_dim": 24}],
    "qwen2": [{"head_dim": 24}],
    "qwen2_moe": [{"qkv_bias": False}, {"decoder_sparse_step": 2}],
    "qwen3": [{"attention_bias": True}],
    "qwen3_moe": [{"attention_bias": True}, {"mlp_only_layers": [2]}],
    "gemma2": [{"attention_bias": True}],
    "deepseek_v2": [{"moe_layer_freq": 2}, {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}],
    "deepseek_v3": [{"routed_scaling_factor": 2.5}, {"norm_topk_prob": False}],
    "mistral": [{"sliding_window": None}],
    "mixtral": [{"sliding_window": 16}],
    "nemotron_h": [{"hybrid_override_pattern": "M*-"}, {"mlp_bias": True}],
}


def changes(family: Family, among: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{}, *(c for c in among if c.keys() <= family.tiny.keys()), *EXTRA.get(family.model_type, [])]


@EACH
def test_config_and_back(family: Family) -> None:
    """The written config.json gives the same traits, and every change of one shows in them."""
    plain = family.spec(family.tiny)
    for change in changes(family, CHANGES + CHANGES_UNKNOWN_TO_MEGATRON):
        spec = family.spec(family.tiny | change)
        assert family.spec(family.config(spec)) == spec, change
        assert family.config(spec)["model_type"] == family.model_type
        differs = any(
            family.tiny[k] != v for k, v in change.items() if k in family.tiny and not (plain.mla and k == "num_key_value_heads")
        )
        assert spec != plain or not differs, change


@EACH
def test_spec_as_json_and_back(family: Family) -> None:
    for change in changes(family, CHANGES + CHANGES_UNKNOWN_TO_MEGATRON):
        spec = family.spec(family.tiny | change)
        assert spec_from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@WITH_ROPE
@pytest.mark.parametrize("kind", SCALINGS)
def test_rope_scaling_and_back(family: Family, kind: str) -> None:
    spec = family.spec(family.tiny | {"rope_scaling": {"rope_type": kind, **SCALINGS[kind]}})
    assert spec.rope.scaling is not None
    assert spec.rope.scaling.kind == kind
    assert spec.rope.scaling.factor == SCALINGS[kind]["factor"]
    assert family.spec(family.config(spec)) == spec
    assert spec_from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@EACH
@pytest.mark.parametrize("kind", [None, *SCALINGS])
def test_both_spellings_of_transformers(family: Family, kind: str | None) -> None:
    """4: rope_theta, rope_scaling (`type` or `rope_type`), torch_dtype. 5: rope_parameters, dtype."""
    four = dict(family.tiny) | {"torch_dtype": "bfloat16"}
    five = {k: v for k, v in four.items() if k not in ("torch_dtype", "rope_theta", "partial_rotary_factor")} | {
        "dtype": "bfloat16"
    }
    spellings = [five]
    if "rope_theta" in four:
        rope = {k: four[k] for k in ("rope_theta", "partial_rotary_factor") if k in four}
        five["rope_parameters"] = {"rope_type": kind or "default", **rope, **SCALINGS.get(kind or "", {})}
        if kind:
            four["rope_scaling"] = {"rope_type": kind, **SCALINGS[kind]}
            spellings.append(four | {"rope_scaling": {"type": kind, **SCALINGS[kind]}})
        else:
            spellings.append(four | {"rope_scaling": None})
    spec = family.spec(four)
    assert spec.dtype == "bfloat16"
    for spelling in spellings:
        assert family.spec(spelling) == spec


# ---- refusals


@EACH
def test_an_unknown_key_is_refused_by_name(family: Family) -> None:
    with pytest.raises(ToolError, match=r"wondrous_scale = 3\n") as caught:
        family.spec(family.tiny | {"wondrous_scale": 3})
    assert caught.value.code == Exit.INPUT
    assert "--ignore-config-keys wondrous_scale" in (caught.value.hint or "")
    expected = family.spec(family.tiny)
    assert family.spec(family.tiny | {"wondrous_scale": 3}, ignore=frozenset({"wondrous_scale"})) == expected
    assert family.spec(family.tiny | {"wondrous_scale": None, "fine_feature": False, "_private": 1}) == expected


@EACH
def test_a_missing_key_is_refused_by_name(family: Family) -> None:
    with pytest.raises(ToolError, match="'vocab_size' is missing"):
        family.spec({k: v for k, v in family.tiny.items() if k != "vocab_size"})


@WITH_ROPE
def test_an_unknown_rope_type_is_refused_by_name(family: Family) -> None:
    for key, value in ("rope_scaling", {"type": "spiral", "factor": 2.0}), ("rope_parameters", {"rope_type": "spiral"}):
        with pytest.raises(ToolError, match="'spiral' is not supported") as caught:
            family.spec(family.tiny | {key: value})
        assert "yarn" in (caught.value.hint or "")


@WITH_ROPE
@pytest.mark.parametrize("scaling", [{"factor": 2.0}, {"rope_type": "yarn"}, {"rope_type": "linear", "factor": 2.0, "twist": 1}])
def test_rope_settings_that_are_not_understood_are_refused(family: Family, scaling: dict[str, Any]) -> None:
    with pytest.raises(ToolError, match="RoPE"):
        family.spec(family.tiny | {"rope_scaling": scaling})


@EACH
def test_an_unknown_activation_is_refused_by_name(family: Family) -> None:
    keys = {"gpt2": "activation_function", "gemma2": "hidden_activation", "nemotron_h": "mlp_hidden_act"}
    key = keys.get(family.model_type, "hidden_act")
    with pytest.raises(ToolError, match="'wobble' is not supported") as caught:
        family.spec(family.tiny | {key: "wobble"})
    assert key in caught.value.message


WRONG: list[tuple[str, Any]] = [
    ("vocab_size", "131"),
    ("vocab_size", 131.0),
    ("vocab_size", True),
    ("vocab_size", 0),
    ("hidden_size", [64]),
    ("num_hidden_layers", -4),
    ("num_key_value_heads", "4"),
    ("rms_norm_eps", "1e-6"),
    ("layer_norm_epsilon", "small"),
    ("tie_word_embeddings", "false"),
    ("rope_theta", "ten thousand"),
    ("attention_bias", "no"),
    ("use_sliding_window", "no"),
    ("norm_topk_prob", "yes"),
    ("first_k_dense_replace", "1"),
    ("q_lora_rank", "24"),
    ("mlp_only_layers", "1"),
    ("sliding_window", "32"),
    ("attn_logit_softcapping", "50"),
]


WRONG_OF_EACH = [(f, k, v) for f in families().values() for k, v in WRONG if k in f.config(f.spec(f.tiny))]


@pytest.mark.parametrize("family, key, value", WRONG_OF_EACH, ids=[f"{f.model_type} {k}={v!r}" for f, k, v in WRONG_OF_EACH])
def test_a_value_of_the_wrong_kind_is_refused_by_name(family: Family, key: str, value: Any) -> None:
    with pytest.raises(ToolError, match=key) as caught:
        family.spec(family.tiny | {key: value})
    assert caught.value.code == Exit.INPUT


@pytest.mark.parametrize(
    "family", [f for f in families().values() if "num_key_value_heads" in f.tiny], ids=lambda f: f.model_type
)
def test_heads_that_do_not_share_out_over_groups_are_refused(family: Family) -> None:
    if family.spec(family.tiny).mla:
        return  # every head has its own latent
    with pytest.raises(ToolError, match="num_key_value_heads"):
        family.spec(family.tiny | {"num_key_value_heads": 3})


@EACH
def test_damaged_traits_are_refused(family: Family) -> None:
    """Whatever kind of value stands in the place of whichever trait."""
    spec = family.spec(family.tiny)
    good = json.loads(json.dumps({f.name: getattr(spec, f.name) for f in fields(spec)}, default=asdict))
    assert spec_from_dict(good) == spec
    for name in ("head_dim", "num_kv_heads") if spec.num_heads and not spec.mla else ():
        with pytest.raises(ToolError, match="is 0"):
            spec_from_dict({**good, name: 0})
    floats = {f.name for f in fields(spec) if "float" in str(f.type)}
    for name, value in good.items():
        inner = [{**value, key: wrong} for key in value for wrong in ("x", [1.5], {"a": 1})] if isinstance(value, dict) else []
        for wrong in ("x" if not isinstance(value, str) else 5, [0.5], {"a": 1}, math.nan, 1 << 80, -3, *inner):
            if not (name in floats and type(wrong) is int):
                with pytest.raises(ToolError, match="damaged"):
                    spec_from_dict({**good, name: wrong})


def test_traits_of_a_newer_version_are_refused_by_name() -> None:
    values = families()["llama"].spec(families()["llama"].tiny).to_dict()
    with pytest.raises(ToolError, match="glow"):
        spec_from_dict(values | {"glow": 1})


# ---- rules


@EACH
def test_no_hf_tensor_is_made_twice(family: Family) -> None:
    """Of one model: a name stands in one place of the rules of a dialect, but for embeddings that stages repeat."""
    for dialect in family.dialects:
        for change in changes(family, CHANGES):
            spec = family.spec(family.tiny | change)
            rules = [r for r in family.rules(spec, dialect) if not (r.scope == "model" and r.stage in ("mtp", "tied_last"))]
            for layer in (None, *range(spec.num_layers + spec.mtp_layers)):
                here = [r for r in rules if r.scope == "model"] if layer is None else rules
                own = [r for r in here if layer is None or family.in_layer(r, spec, layer)]
                segments = [(p.name, p.pick) for r in own for p in r.parts]
                assert len(segments) == len(set(segments)), (dialect, layer, change)
                names = [r.name_in(dialect) for r in own]
                assert len(names) == len(set(names)), (dialect, layer, change)


@EACH
def test_dialects_make_the_same_hf_tensors(family: Family) -> None:
    for change in changes(family, CHANGES):
        spec = family.spec(family.tiny | change)
        expected = family.hf_tensors(spec)
        for dialect in family.dialects:
            made = {p.name for r in family.rules(spec, dialect) for p in r.parts}
            assert made == {p.name for r in family.rules(spec, family.dialects[0]) for p in r.parts}, dialect
        assert all(math.prod(shape) > 0 for shape in expected.values())
        assert family.kept_dtypes(spec) <= set(expected)
        assert not set(family.copy_names(spec)) & set(expected)
        assert all(original in expected for original in family.copy_names(spec).values())


def test_a_dialect_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ToolError, match="dialect 'mindspeed' does not exist for gpt2") as caught:
        families()["gpt2"].check_dialect("mindspeed")
    assert "mcore" in (caught.value.hint or "")


# ---- Megatron's args


def args_of(family: Family, spec: ModelSpec, layout: ParallelLayout | None = None, dialect: str = "mcore") -> dict[str, Any]:
    placement = Placement(family=family, spec=spec, layout=layout or ParallelLayout(), dialect=dialect)
    return to_args(placement, dtype=spec.dtype, iteration=1)


@EACH
@pytest.mark.parametrize("layout", [ParallelLayout(), ParallelLayout(noop_layers=(0, 2))], ids=["plain", "no-ops"])
def test_args_and_back_to_the_model(family: Family, layout: ParallelLayout) -> None:
    for change in changes(family, CHANGES):
        spec = family.spec(family.tiny | change)
        args = args_of(family, spec, layout)
        assert spec_from_args(args, family) == spec, change
        assert json.loads(json.dumps(args, default=list)), "plain values only"


@WITH_ROPE
def test_llama_3_rope_comes_back_from_args(family: Family) -> None:
    spec = family.spec(family.tiny | {"rope_scaling": {"rope_type": "llama3", **LLAMA_3}})
    assert spec_from_args(args_of(family, spec), family) == spec


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_rope_scaling_through_args(kind: str) -> None:
    family = families()["llama"]
    spec = family.spec(family.tiny | {"rope_scaling": {"rope_type": kind, **SCALINGS[kind]}})
    assert spec_from_args(args_of(family, spec), family) == spec


@pytest.mark.parametrize(
    "args",
    [
        {"rope_scaling_type": "dynamic", "rope_scaling_factor": 4.0},
        {"rope_scaling_type": "yarn", "rotary_scaling_factor": 4.0},
        {"rope_type": "yarn", "rotary_scaling_factor": 40.0, "mscale": 0.707},
        {"rope_scaling_type": "longrope"},
    ],
)
def test_rope_scaling_that_args_do_not_describe_is_refused(args: dict[str, Any]) -> None:
    family = families()["llama"]
    plain = args_of(family, family.spec(family.tiny))
    with pytest.raises(ToolError, match="which they do not describe fully") as caught:
        spec_from_args(plain | args, family)
    assert "config.json" in (caught.value.hint or "")


def test_args_that_contradict_the_config() -> None:
    family = families()["llama"]
    spec = family.spec(family.tiny)
    args = args_of(family, spec)
    assert contradictions(args, spec) == ([], [])
    other = replace(spec, num_heads=4, num_kv_heads=2, head_dim=16, rope=replace(spec.rope, base=5e5))
    geometry, rest = contradictions(args, other)
    assert geometry == [
        "num_attention_heads is 8, expected 4",
        "num_query_groups is 4, expected 2",
        "kv_channels is 8, expected 16",
    ]
    assert rest == ["rotary_base is 10000, expected 500000"]


def test_sliding_layers_through_args() -> None:
    family = families()["qwen2"]
    spec = family.spec(family.tiny | {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2})
    assert spec.sliding_layers == (2, 3)
    assert spec_from_args(args_of(family, spec), family) == spec


def test_gemma2_without_its_softmax_scale_is_refused() -> None:
    family = families()["gemma2"]
    spec = family.spec(family.tiny | {"query_pre_attn_scalar": 144})
    args = args_of(family, spec)
    assert spec_from_args(args, family) == spec
    assert family.config(spec)["query_pre_attn_scalar"] == 144
    assert type(family.config(spec)["query_pre_attn_scalar"]) is int, "transformers refuses 144.0"
    del args["query_pre_attn_scalar"]
    with pytest.raises(ToolError, match="query_pre_attn_scalar"):
        spec_from_args(args, family)


@EACH
def test_missing_args_are_named(family: Family) -> None:
    args = args_of(family, family.spec(family.tiny))
    for name in ("hidden_size", "num_layers"):
        with pytest.raises(ToolError, match=f"do not say .*{name}") as caught:
            spec_from_args({k: v for k, v in args.items() if k != name}, family)
        assert f"--set {name}=" in (caught.value.hint or "")


def test_the_pattern_of_expert_layers_counts_no_op_slots() -> None:
    """Megatron wants one entry for each of num_layers, which counts them."""
    family = families()["deepseek_v2"]
    spec = family.spec(family.tiny | {"first_k_dense_replace": 2})
    args = args_of(family, spec, ParallelLayout(noop_layers=(0, 4)))
    assert args["num_layers"] == len(args["moe_layer_freq"]) == 6
    assert [args["moe_layer_freq"][slot] for slot in (1, 2, 3, 5)] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "said, dense",
    [
        ({"moe_layer_freq": 1}, ()),
        ({"moe_layer_freq": 2}, (1, 3)),
        ({"moe_layer_freq": [0, 1, 1, 0]}, (0, 3)),
        ({"moe_layer_freq": None, "first_k_dense_replace": 3}, (0, 1, 2)),
        ({"moe_layer_freq": 1, "first_k_dense_replace": 1}, (0,)),
    ],
    ids=str,
)
def test_expert_layers_as_megatron_and_mindspeed_say_them(said: dict[str, Any], dense: tuple[int, ...]) -> None:
    family = families()["deepseek_v2"]
    spec = spec_from_args(args_of(family, family.spec(family.tiny)) | said, family)
    assert spec.moe is not None
    assert spec.moe.dense_layers == dense


@st.composite
def layouts(draw: st.DrawFn) -> tuple[ParallelLayout, int]:
    """A layout in its shortest spelling, and a number of layers."""
    small = st.integers(1, 4)
    tp, pp, kind = draw(small), draw(small), draw(st.sampled_from(["even", "uneven", "dualpipev"]))
    extend = draw(st.booleans())
    etp = draw(st.sampled_from([n for n in (1, 2, 3) if n != tp] + [None]))
    fields: dict[str, Any] = {"tp": tp, "pp": pp, "ep": draw(small), "cp": draw(small), "tp_extend_ep": extend}
    fields |= {"etp": None if extend else etp}
    if kind == "uneven":
        stages = tuple(draw(st.lists(st.integers(1, 3), min_size=pp, max_size=pp)))
        return ParallelLayout(**fields, layers_per_stage=stages if len(set(stages)) > 1 else None), sum(stages)
    vpp = 2 if kind == "dualpipev" else draw(small) if pp > 1 else 1
    slots = pp * vpp * draw(small)
    noop = tuple(sorted(draw(st.lists(st.integers(0, slots - 1), unique=True, max_size=slots - 1))))
    schedule = "dualpipev" if kind == "dualpipev" else "1f1b"
    return ParallelLayout(**fields, vpp=vpp, noop_layers=noop, schedule=schedule), slots - len(noop)


@given(layouts())
def test_args_and_back_to_the_layout(case: tuple[ParallelLayout, int]) -> None:
    layout, num_layers = case
    family = families()["mixtral"]
    spec = family.spec(family.tiny | {"num_hidden_layers": num_layers})
    assert layout_from_args(args_of(family, spec, layout), num_layers) == layout


@given(layouts())
def test_the_layers_lie_where_the_args_say(case: tuple[ParallelLayout, int]) -> None:
    """Whatever the spelling: even stages may be listed, no-ops in any order."""
    layout, num_layers = case
    args = args_of(families()["llama"], families()["llama"].spec(families()["llama"].tiny), layout)
    args |= {"noop_layers": list(reversed(layout.noop_layers))}
    if layout.vpp == 1 and not layout.noop_layers and layout.layers_per_stage is None:
        args |= {"num_layer_list": [num_layers // layout.pp] * layout.pp}
    if layout.vpp > 1 and layout.schedule == "1f1b":
        per_chunk = (num_layers + len(layout.noop_layers)) // layout.pp // layout.vpp
        args |= {"virtual_pipeline_model_parallel_size": None, "num_layers_per_virtual_pipeline_stage": per_chunk}
    assert layout_from_args(args, num_layers).chunks(num_layers) == layout.chunks(num_layers)


@pytest.mark.parametrize(
    "said, stages",
    [
        ({"decoder_first_pipeline_num_layers": 1}, (1, 3, 3)),
        ({"decoder_last_pipeline_num_layers": 3}, (2, 2, 3)),
        ({"decoder_first_pipeline_num_layers": 1, "decoder_last_pipeline_num_layers": 4}, (1, 2, 4)),
        ({"num_layer_list": "4,1,2"}, (4, 1, 2)),
    ],
    ids=str,
)
def test_uneven_stages_as_megatron_and_mindspeed_say_them(said: dict[str, Any], stages: tuple[int, ...]) -> None:
    assert layout_from_args({"pipeline_model_parallel_size": 3} | said, 7).layers_per_stage == stages


@pytest.mark.parametrize("said", [{5, 2}, frozenset({2, 5}), [5, 2], (2, 5), "2,5", "5,2"], ids=str)
def test_no_op_slots_as_megatron_and_mindspeed_say_them(said: object) -> None:
    """A training run of MindSpeed-LLM saves a set, its converters text or a list."""
    assert layout_from_args({"pipeline_model_parallel_size": 2, "noop_layers": said}, 4).noop_layers == (2, 5)


@pytest.mark.parametrize("name", ["account_for_embedding_in_pipeline_split", "pipeline_model_parallel_layout"])
def test_a_split_that_is_not_understood_is_refused_by_name(name: str) -> None:
    with pytest.raises(ToolError, match=name) as caught:
        layout_from_args({"pipeline_model_parallel_size": 2, name: True}, 4)
    assert "layers_per_stage" in (caught.value.hint or "")
