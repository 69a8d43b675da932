"""Schemas of torch-npu's wheels, and SUPPORT.md, which says which of them take our calls."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from jumar.device.testing import wheels
from jumar.device.testing.npu_schema import Call, bind, kind, parse_schemas
from jumar.device.testing.npu_stand_in import stand_in
from jumar.device.testing.support import check, recorded_calls, support
from jumar.device.testing.wheels import PINNED, YAMLS, torch_npu_wheel

PAGE = Path(__file__).parent.parent / "SUPPORT.md"


@pytest.fixture(scope="module")
def schemas():
    return parse_schemas(torch_npu_wheel())


def test_the_pinned_release_takes_every_call_and_the_page_says_so():
    calls = recorded_calls()
    assert {call.name for call in calls} == {
        "npu_apply_adam_w",
        "npu_fusion_attention",
        "npu_grouped_matmul",
        "npu_incre_flash_attention",
        "npu_moe_token_permute",
        "npu_moe_token_unpermute",
        "npu_prompt_flash_attention",
        "npu_rms_norm",
        "npu_rotary_mul",
        "npu_swiglu",
        "npu_weight_quant_batchmatmul",
    }
    assert set(check(calls, torch_npu_wheel(PINNED)).values()) == {None}
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `npu_")]
    header = next(line for line in PAGE.read_text().splitlines() if line.startswith("| operator")).split(" | ")
    column = header.index("2.13")
    assert [row[0].strip("|` ") for row in rows] == [call.name for call in calls]
    assert {row[column].strip(" |") for row in rows} == {"yes"}


@pytest.mark.slow
def test_the_page_is_what_the_wheels_say():
    assert support() == PAGE.read_text(), "python -m jumar.device.testing.support packages/device/SUPPORT.md"


def test_hundreds_of_schemas_are_parsed(schemas):
    assert len(schemas) > 300
    assert "npu_fusion_attention_grad" in schemas


def call(name, *args, **kwargs):
    return Call(name, tuple(map(kind, args)), tuple((key, kind(value)) for key, value in kwargs.items()))


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((0, "BSND"), {}, None),
        ((0, "BSND"), dict(pre_tockens=3, actual_seq_qlen=[1, 2]), None),
        ((0, "BSND"), dict(pre_tokens=3), "no argument pre_tokens"),
        ((0,), {}, "input_layout is not given"),
        (("BSND", 0), {}, "head_num is int, not str"),
        ((0, "BSND"), dict(scale="1"), "scale is float, not str"),
        ((0, "BSND"), dict(actual_seq_qlen=[1.0]), "not float[]"),
        ((0, "BSND", *[None] * 40), {}, "positional arguments"),
    ],
)
def test_binding(schemas, args, kwargs, says):
    import torch

    t = torch.ones(1)
    problem = bind(schemas["npu_fusion_attention"], call("npu_fusion_attention", t, t, t, *args, **kwargs))
    assert problem is None if says is None else says in problem


def test_an_operator_that_is_not_there():
    assert bind([], call("npu_nothing")) == "no such operator"
    with pytest.raises(AttributeError, match="has no attribute 'npu_nothing'"):
        stand_in().npu_nothing  # noqa: B018


def test_torch_npu_itself_is_never_imported():
    stand_in()
    assert "torch_npu" not in sys.modules


def test_shapes_are_compared_with_the_wheels():
    import torch

    from jumar.device.testing.npu_numerics import _checked

    wrong = _checked("npu_swiglu", lambda x, dim=-1: x)
    with pytest.raises(AssertionError, match=r"npu_swiglu: .* but the wheel says"):
        wrong(torch.ones(2, 4))


def test_an_index_that_does_not_answer_fails_loudly(monkeypatch, tmp_path):
    monkeypatch.setattr(wheels, "CACHE", tmp_path)
    monkeypatch.setattr(wheels, "TRIES", 1)
    with pytest.raises(RuntimeError, match=r"torch-npu 0\.0\.1 is needed, and pip could not fetch it in 1 tries: .+"):
        torch_npu_wheel("0.0.1")
    assert not list(tmp_path.glob("*.zip"))


def test_only_what_is_needed_is_kept():
    with zipfile.ZipFile(torch_npu_wheel()) as kept:
        assert set(YAMLS) < set(kept.namelist())
        assert len(kept.namelist()) == 3
