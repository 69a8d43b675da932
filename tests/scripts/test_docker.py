"""The Dockerfiles, which are not built here: base images have tags of a published form; what is copied and installed is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import wheelhouse
import workspace
from jumar.device.npu_releases import RELEASES

ROOT = workspace.ROOT
FILES = sorted(ROOT.glob("docker/Dockerfile.*"))
CHIPS = ("910b", "a3")
# Of https://github.com/Ascend/cann-container-image, and of Docker's official Python images.
IMAGES = {
    "quay.io/ascend/cann": r"\d+\.\d+\.(\d+|rc\d+)-(910b|a3)-(ubuntu22\.04|openeuler24\.03)-py3\.1[01]",
    "python": r"3\.1[01]-slim-bookworm",
}


def instructions(text: str) -> list[tuple[str, str]]:
    """(Name, arguments), lines that go on joined, without comments."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")).replace("\\\n", " ").splitlines()
    return [(line.split(maxsplit=1)[0], " ".join(line.split()[1:])) for line in lines if line.strip()]


def arguments(text: str) -> dict[str, str]:
    return dict(rest.split("=", 1) for name, rest in instructions(text) if name == "ARG")


def filled(words: str, known: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda found: known[found[1]], words)


def faults(text: str, chip: str = CHIPS[0]) -> list[str]:
    """What is wrong with a Dockerfile by the look of it."""
    known = arguments(text) | ({"CHIP": chip} if "CHIP" in arguments(text) else {})
    ours = {package.folder.name: package for package in workspace.packages().values()}
    steps = [(name, filled(rest, known)) for name, rest in instructions(text)]
    found = [] if "Not built here" in text.split("FROM")[0] else ["does not say that it is not built here"]
    for rest in (rest for name, rest in steps if name == "FROM"):
        image, _, tag = rest.partition(":")
        if not re.fullmatch(IMAGES.get(image, "$^"), tag):
            found.append(f"FROM {rest}: no such tag is published")
    for rest in (rest for name, rest in steps if name == "COPY"):
        found += [f"COPY {source}: not here" for source in rest.split()[:-1] if not (ROOT / source).exists()]
    installed = set()
    for folder, extras in re.findall(
        r"\./packages/([\w-]+)(?:\[([^]]*)\])?", " ".join(rest for name, rest in steps if name == "RUN")
    ):
        installed.add(folder)
        wanted = set(filter(None, extras.split(",")))
        if folder not in ours or not wanted <= set(ours[folder].extras):
            found.append(f"packages/{folder}[{extras}]: no such package, or extra")
    needed = {p.folder.name for p in ours.values() if (p.folder / "src").exists()}
    return found + [f"packages/{folder} is not installed" for folder in sorted(needed - installed)]


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_it_names_is_there(path: Path, chip: str) -> None:
    assert faults(path.read_text(), chip) == []


def test_there_are_images_for_both_kinds_of_accelerator() -> None:
    assert [path.name for path in FILES] == ["Dockerfile.cuda", "Dockerfile.npu"]


@pytest.mark.parametrize(
    "old, new, fault",
    [
        ("${CHIP}-ubuntu22.04-py3.11", "${CHIP}-ubuntu22.04-py3.9", "no such tag"),
        ("-${CHIP}-", "-", "no such tag"),
        ("COPY constraints.txt", "COPY constraint.txt", "COPY constraint.txt: not here"),
        ("train-core[convert", "train-core[converter", "no such package, or extra"),
        ('"./packages/eval[ifeval,local,parquet]"', "", "packages/eval is not installed"),
        ("Not built here", "Made", "does not say"),
    ],
)
def test_what_is_not_there_is_found(old: str, new: str, fault: str) -> None:
    text = (ROOT / "docker/Dockerfile.npu").read_text()
    assert old in text
    assert any(fault in found for found in faults(text.replace(old, new)))


def test_torch_npu_is_of_the_torch_beside_it() -> None:
    """Both are of the CANN, and within what the packages ask for; a wheelhouse has the same."""
    known = arguments((ROOT / "docker/Dockerfile.npu").read_text())
    assert (known["TORCH"], known["TORCH_NPU"]) in RELEASES[known["CANN"]]
    assert known["TORCH_NPU"] == wheelhouse.TORCH_NPU
    assert re.match(r"\d+\.\d+\.\d+", known["TORCH_NPU"])[0] == known["TORCH"]
    device = workspace.packages()["jumar-device"]
    for line in device.requirements(["npu"]):
        wanted = Requirement(line)
        version = {"torch": known["TORCH"], "torch-npu": known["TORCH_NPU"]}.get(wanted.name)
        assert version is None or wanted.specifier.contains(version), line


def test_nothing_copied_is_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for path in FILES:
        copied = {source for name, rest in instructions(path.read_text()) if name == "COPY" for source in rest.split()[:-1]}
        assert copied <= kept, path.name
