"""Families by name, and those of other packages: really installed distributions, in a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jumar.schema.errors import ToolError
from jumar.schema.registry import family_of, family_of_config


def test_an_unknown_model_type_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ToolError, match="model_type 'bert' is not known") as caught:
        family_of("bert")
    assert "llama" in (caught.value.hint or "")
    with pytest.raises(ToolError, match=r"config\.json: no model_type"):
        family_of_config({}, "config.json")


def package(site: Path, dist: str, module: str, source: str, target: str = "") -> None:
    """An installed distribution with one module and one entry point, as pip leaves it."""
    (site / f"{module}.py").write_text(source)
    info = site / f"{dist.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
    (info / "RECORD").write_text("")
    (info / "entry_points.txt").write_text(f"[jumar.families]\n{module} = {module}{target}\n")


FALCON = """
from dataclasses import replace
from jumar.schema.families import llama

def read(config):
    return replace(llama.read(config), model_type="{0}")

FAMILY = replace(llama.FAMILY, model_type="{0}", read=read, tiny={{**llama.FAMILY.tiny, "model_type": "{0}"}})
"""


def in_a_process(site: Path, code: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)


SHOW = "from jumar.schema.registry import *; f = families()['peregrine']; print(f.model_type, f.spec(f.tiny).model_type)"


@pytest.mark.parametrize("target", ["", ":FAMILY"], ids=["module", "object"])
def test_another_package_provides_a_family(tmp_path: Path, target: str) -> None:
    package(tmp_path, "peregrine-for-jumar", "peregrine_family", FALCON.format("peregrine"), target)
    done = in_a_process(tmp_path, SHOW)
    assert done.stdout.split() == ["peregrine", "peregrine"], done.stderr


CATCH = """
from jumar.schema.errors import ToolError
from jumar.schema.registry import families
try:
    families()
except ToolError as fault:
    print(int(fault.code), fault)
"""


@pytest.mark.parametrize("name, others", [("peregrine", 2), ("llama", 1)], ids=["two others", "one of ours"])
def test_two_packages_must_not_provide_one_family(tmp_path: Path, name: str, others: int) -> None:
    for i in range(others):
        package(tmp_path, f"falcon-{i}", f"falcon_{i}", FALCON.format(name))
    said = in_a_process(tmp_path, CATCH).stdout
    assert said.startswith(f"4 two packages provide the family '{name}'; one is falcon_")
    assert "uninstall" in said


@pytest.mark.parametrize(
    "source, message",
    [("import nothing_of_this_name", r"cannot be imported: No module named"), ("FAMILY = 'llama'", "is not a Family")],
    ids=["broken", "no family"],
)
def test_a_broken_package_is_named(tmp_path: Path, source: str, message: str) -> None:
    package(tmp_path, "broken-falcon", "broken_falcon", source)
    said = in_a_process(tmp_path, CATCH).stdout
    assert said.startswith("4 ")
    assert "broken_falcon" in said
    assert re.search(message, said)
