"""The check of packages alone sees what it is there for. (That each is whole alone, it shows itself: .ci/run, make test-all.)"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import packages_alone
import workspace

OURS = workspace.packages()


def test_every_package_says_how_it_is_tested_alone() -> None:
    """Its tests' files are there, its extras too; what needs no torch declares none."""
    by_folder = {package.folder.name: package for package in OURS.values()}
    assert set(workspace.ALONE) == set(by_folder)
    for folder, ways in workspace.ALONE.items():
        package = by_folder[folder]
        for how in ways:
            assert set(how.extras) <= set(package.extras)
            assert all((package.folder / "tests" / name).exists() for name in how.tests)
            lines = [line for name in workspace.closure(package.name, how.extras, OURS) for line in OURS[name].requirements()]
            assert any(Requirement(line).name == "torch" for line in lines) == how.torch


def test_a_python_is_named_by_its_path_or_its_name(tmp_path: Path) -> None:
    assert workspace.interpreter(sys.executable) == sys.executable
    assert workspace.interpreter(str(tmp_path / "python3")) is None
    assert workspace.interpreter("python2.1") is None


def test_siblings_of_a_package_are_followed_through_extras() -> None:
    assert workspace.closure("jumar-data-prep", ["fast"], OURS) == {"jumar-schema", "jumar-data-prep"}
    assert workspace.closure("jumar-eval", [], OURS) == {"jumar-schema", "jumar-eval"}
    local = {"jumar-schema", "jumar-eval", "jumar-infer", "jumar-device", "jumar-ckpt-convert"}
    assert workspace.closure("jumar-eval", ["local"], OURS) == local
    order = list(OURS)
    assert all(order.index(other) < order.index(p.name) for p in OURS.values() for other in workspace.siblings(p, OURS))


TESTS = """
import pytest
def test_runs(): pass
def test_is_skipped_for_another_reason(): pytest.skip("no such file system here")
def test_is_skipped_for_a_sibling(): pytest.importorskip("jumar.nowhere")
"""


@pytest.mark.parametrize(
    "chosen, ran, said",
    [
        ("runs or reason", 1, []),
        ("sibling", 0, ["test_is_skipped_for_a_sibling is skipped: .*jumar.nowhere", "no test ran"]),
        ("nothing", 0, ["no test ran"]),
    ],
)
def test_skips_for_a_missing_sibling_are_faults(chosen: str, ran: int, said: list[str], tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, f"--junitxml={report}"]
    subprocess.run(command, cwd=tmp_path, capture_output=True)
    count, faults = packages_alone.faults_of_tests(report)
    assert count == ran
    assert len(faults) == len(said)
    assert all(re.search(pattern, fault) for pattern, fault in zip(said, faults, strict=True))


def test_what_came_along_is_a_fault() -> None:
    """This environment holds every package, and torch."""
    here = set(OURS) - {"jumar-infer"}
    faults = packages_alone.faults_of_installation(Path(sys.executable), here | {"jumar-nowhere"}, torch=False)
    assert {"came along: jumar-infer", "is missing: jumar-nowhere", "came along: torch"} <= set(faults)
