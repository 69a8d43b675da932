"""The doctor: the trainer's own checks here, and the device's through the device package."""

from __future__ import annotations

import sys

import pytest

from jumar.device import Check
from jumar.schema.errors import Exit, ToolError
from jumar.train_core import doctor, engine_check, show
from jumar.train_core.doctor import device_checks, examine, trainer_checks


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_this_machine_can_train() -> None:
    found = by_name(list(examine("cpu")))
    assert {"python", "megatron-core", "einops", "psutil", "torchrun", "extra [wandb]", "torch"} <= set(found)
    assert [check.name for check in found.values() if check.status == "fail"] == []
    assert found["megatron-core"].got.startswith("0.16.1 in ")


def test_a_device_that_is_not_here_is_looked_at_all_the_same() -> None:
    """Or nobody could ask what is missing for it."""
    found = list(device_checks("npu", {}))
    assert [check for check in found if check.status == "fail" and check.hint]


def test_auto_says_why_the_others_are_not_used() -> None:
    found = by_name(list(device_checks("auto", {})))
    passed_over = [check for name, check in found.items() if name.startswith("device ")]
    assert all(check.status == "info" and check.got.startswith("not used: ") for check in passed_over)


def test_an_unknown_device() -> None:
    with pytest.raises(ToolError, match="there is no device 'tpu'") as fault:
        list(device_checks("tpu", {}))
    assert fault.value.code == Exit.USAGE


def test_a_wrong_engine_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    home = engine_check.installed()[1]
    for module in (doctor, engine_check):
        monkeypatch.setattr(module, "installed", lambda: ("0.19.2", home))
    check = by_name(list(trainer_checks()))["megatron-core"]
    assert (check.status, check.expected) == ("fail", "megatron-core >=0.16.1,<0.17")
    assert "0.19.2" in check.got
    assert check.hint.startswith("pip install")


def test_an_old_python_and_missing_modules_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 1, "final", 0))
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    found = by_name(list(trainer_checks()))
    assert {name for name, check in found.items() if check.status == "fail"} == {"python", "einops", "psutil", "torchrun"}
    assert found["extra [convert]"].status == "info"
    assert found["extra [convert]"].hint == 'pip install "jumar-train-core[convert]"'


def test_what_people_read(capsys: pytest.CaptureFixture[str]) -> None:
    show.doctor([Check("a", "ok", "1", "1"), Check("b", "fail", "[x]", "2", "do this")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[2:]] == [["ok", "a", "1", "1"], ["fail", "b", "[x]", "2"], ["b:", "do", "this"]]
