"""The products that break converters: no-ops x VPP x uneven stages x DualPipeV x MTP x ETP x tied x dialects, all drawn at once.

What fits must come through byte for byte, and what does not must be refused: `fits` says from plain numbers which is which.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import by_hand
import drawn
import tiny_hf
from by_hand import Wanted
from jumar.ckpt_convert import OpenOptions, Plan, open_checkpoint, plan_hf, plan_megatron, run_plan
from jumar.ckpt_convert.checkpoint import Checkpoint
from jumar.schema.errors import Exit, ToolError
from jumar.schema.registry import families

pytestmark = pytest.mark.matrix

Config = dict[str, Any]
FAMILIES = ("deepseek_v3", "qwen2_moe", "llama", "gpt2")
EVERY_FAMILY = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", autouse=True)
def _disk_without_waiting() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        patch.setattr(os, "fdatasync", lambda fd: None)
        yield


@st.composite
def layouts(draw: st.DrawFn, model_type: str) -> Wanted:
    """Any numbers beside one another."""
    moe = any("expert" in key for key in families()[model_type].tiny)
    pp = draw(st.integers(1, 3))
    dualpipev = draw(st.booleans())
    stages = draw(st.none() | st.tuples(*[st.integers(1, 3)] * pp))
    tp, extend = draw(st.sampled_from([1, 1, 2, 4])), moe and draw(st.sampled_from([False, False, True]))
    etp = draw(st.sampled_from([None, None, 1, 2])) if moe else None
    return Wanted(
        tp=tp,
        pp=pp,
        vpp=2 if dualpipev else draw(st.sampled_from([1, 1, 2, 3])),
        ep=draw(st.sampled_from([1, 2])) if moe else 1,
        etp=None if etp == (1 if extend else tp) else etp,  # the other way to say the same
        extend=extend,
        stages=stages if stages and len(set(stages)) > 1 else None,  # equal ones are read as even
        noop=tuple(sorted(draw(st.sets(st.integers(0, 8), max_size=4)))),
        dualpipev=dualpipev,
        dialect=draw(st.sampled_from(families()[model_type].dialects)),
        grouped=moe and draw(st.booleans()),
        mm_split="kv_lora_rank" in families()[model_type].tiny and draw(st.sampled_from([False, True])),
        divisible_by=draw(st.sampled_from([1, 5])),
    )


@st.composite
def fitting(draw: st.DrawFn, model_type: str, num_layers: int) -> Wanted:
    """Layouts that the model can have: the pipeline made for its layers, and of the rest what is in the way taken away."""
    want = replace(draw(layouts(model_type)), **draw(pipelines(num_layers)))
    config = config_of(model_type, num_layers, mtp=0, tied=False)
    changes: list[Config] = [{"etp": None}, {"mm_split": False}, {"tp": 1}, {"extend": False, "etp": None}, {"ep": 1}]
    for change in draw(st.permutations(changes)):
        if possible(config, want):
            break
        want = replace(want, **change)
    assert possible(config, want)
    return want


@st.composite
def pipelines(draw: st.DrawFn, num_layers: int) -> Config:
    """Fields that spread so many layers: evenly, with no-op slots anywhere, in stages of any size, in V."""
    pp, kind = draw(st.integers(1, 3)), draw(st.sampled_from(["even", "uneven", "dualpipev"]))
    plain: Config = {"pp": pp, "vpp": 1, "stages": None, "noop": (), "dualpipev": False}
    if kind == "uneven" and num_layers >= pp:
        ends = sorted(draw(st.sets(st.integers(1, num_layers - 1), min_size=pp - 1, max_size=pp - 1))) if pp > 1 else []
        stages = tuple(b - a for a, b in zip([0, *ends], [*ends, num_layers], strict=True))
        return plain | {"stages": stages if len(set(stages)) > 1 else None}
    vpp = 2 if kind == "dualpipev" else draw(st.integers(1, 3)) if pp > 1 else 1
    slots = num_layers + -num_layers % (pp * vpp) + pp * vpp * draw(st.integers(0, 1))
    noop = draw(st.permutations(range(slots)))[num_layers:]
    return plain | {"vpp": vpp, "noop": tuple(sorted(noop)), "dualpipev": kind == "dualpipev"}


def possible(config: Config, want: Wanted) -> bool:
    """Whether the numbers make a layout at all, and the model fits it."""
    if want.vpp > 1 and want.pp == 1 and not want.dualpipev:
        return False
    if (want.stages and (want.vpp > 1 or want.noop)) or (want.extend and want.etp not in (None, 1)):
        return False
    return fits(config, want)


def fits(config: Config, want: Wanted) -> bool:
    layers = by_hand.layers_of(config)
    latent, experts = "kv_lora_rank" in config, config.get("num_experts") or config.get("n_routed_experts") or 0
    if want.stages and sum(want.stages) != layers:
        return False
    padded = layers + len(want.noop)
    if not want.stages and (padded % (want.pp * want.vpp) or any(n >= padded for n in want.noop)):
        return False
    if latent and want.dialect == "mindspeed-v1" and want.tp > 1:
        return False
    if want.mm_split and not want.dialect.startswith("mindspeed"):
        return False
    if not experts:
        return True
    return experts % (want.ep * (want.tp if want.extend else 1)) == 0 and by_hand.expert_files(want, moe=True) is not None


def config_of(model_type: str, num_layers: int, mtp: int, tied: bool) -> Config:
    """The family's tiny configuration, whose sizes four ranks can share."""
    config = families()[model_type].tiny | {"tie_word_embeddings": tied, "vocab_size": 13}
    if model_type == "nemotron_h":
        return config | {"hybrid_override_pattern": ("M-*M" * num_layers)[:num_layers]}
    config |= {"n_layer" if model_type == "gpt2" else "num_hidden_layers": num_layers}
    if model_type == "deepseek_v3":
        config |= {
            "n_routed_experts": 4,
            "num_attention_heads": 4,
            "num_nextn_predict_layers": mtp,
            "first_k_dense_replace": min(1, num_layers),
            "q_lora_rank": 8,
        }
        config |= {"hidden_size": 8, "intermediate_size": 8, "moe_intermediate_size": 8, "kv_lora_rank": 8}
    if model_type == "qwen2_moe":
        config |= {"hidden_size": 8, "intermediate_size": 8, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
        config |= {"num_experts": 4, "mlp_only_layers": [0] if num_layers > 1 else []}
    return config


def plan(checkpoint: Checkpoint, want: Wanted) -> Plan:
    return plan_megatron(
        checkpoint,
        drawn.layout_of(want),
        dialect=want.dialect,
        expert_layout="grouped" if want.grouped else "sequential",
        vocab_divisible_by=want.divisible_by,
        mla_mm_split=want.mm_split,
    )


@pytest.mark.parametrize("model_type", FAMILIES)
@EVERY_FAMILY
@given(data=st.data())
def test_whatever_meets_comes_through_or_is_refused(
    model_type: str, data: st.DataObject, record_property: Callable[[str, object], None]
) -> None:
    """Hugging Face to a layout and dialect, to another, and back."""
    layers = data.draw(st.integers(1, 4))
    config = config_of(model_type, layers, mtp=data.draw(st.integers(0, 2)), tied=data.draw(st.booleans()))
    ways = [data.draw(fitting(model_type, layers)), data.draw(fitting(model_type, layers)), data.draw(layouts(model_type))]
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        source = open_checkpoint(tiny_hf.write_hf(home / "hf", config, tiny_hf.random_tensors(config)))
        for number, want in enumerate(ways):
            if not possible(config, want):
                with pytest.raises(ToolError) as caught:
                    plan(source, want)
                assert caught.value.code == Exit.INPUT, want
                assert caught.value.hint, want
                record_property("refused", 1)
                continue
            assert run_plan(plan(source, want), home / str(number))
            source = open_checkpoint(home / str(number))
            wanted = drawn.layout_of(want)
            assert source.layout == replace(wanted, etp=None if wanted.etp == wanted.tp else wanted.etp)  # the same thing
            record_property("converted", 1)
        run_plan(plan_hf(source), home / "back")
        assert tiny_hf.read_hf(home / "back") == tiny_hf.read_hf(home / "hf")


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.compat(
    "read",
    "Megatron-LM, MindSpeed-LLM",
    "`mp_rank_*` shards without any `args`",
    "with `hf/config.json`; the layout shows in files, names and shapes",
)
@settings(max_examples=20)
@given(data=st.data())
def test_shards_without_args_are_read_from_what_they_show(model_type: str, data: st.DataObject) -> None:
    """Written by hand. What their files leave open is asked for by name, and is enough."""
    layers = data.draw(st.integers(1, 4))
    want = data.draw(fitting(model_type, layers))
    config = config_of(model_type, layers, mtp=data.draw(st.integers(0, 2)), tied=data.draw(st.booleans()))
    tensors = tiny_hf.random_tensors(config)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        hf = tiny_hf.write_hf(home / "run" / "hf", config, tensors)
        tiny_hf.write_megatron(home / "run" / "iter_0000007", dict(by_hand.shards(tensors, config, want)), None)
        (hf / "model.safetensors").rename(home / "model.safetensors")
        said = {"etp": 1 if want.extend else want.etp or want.tp, "tp_extend_ep": want.extend}
        sets: dict[str, Any] = {}
        try:
            checkpoint = open_checkpoint(home / "run")
        except ToolError as fault:
            sets = {key: value for key, value in said.items() if f"--set {key}=..." in (fault.hint or "")}
            checkpoint = open_checkpoint(home / "run", options=OpenOptions(sets=sets))
        run_plan(plan_hf(checkpoint), home / "back")
        assert tiny_hf.read_hf(home / "back") == tiny_hf.read_hf(home), want
