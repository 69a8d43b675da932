"""Versions, ranges and CHANGELOGs are those of one another; a bump carries through; what is built is what was meant."""

from __future__ import annotations

import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

import artifacts
import release
import workspace

DAY = "2026-02-03"


def git(root: Path, *words: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The packages as they stand, their sources left out but for one, committed."""
    for package in workspace.packages().values():
        here = tmp_path / "packages" / package.folder.name
        here.mkdir(parents=True)
        for name in ("pyproject.toml", "CHANGELOG.md", "LICENSE", "README.md"):
            shutil.copy(package.folder / name, here)
    ignore = shutil.ignore_patterns("__pycache__", "tests")
    shutil.copytree(workspace.ROOT / "packages/eval", tmp_path / "packages/eval", ignore=ignore, dirs_exist_ok=True)
    shutil.copy(workspace.ROOT / "LICENSE", tmp_path)
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def commit(root: Path) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-qm", "as it stands")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{old} is not in {path}"
    path.write_text(text.replace(old, new))


def test_this_repository_can_be_released() -> None:
    assert release.check() == []


@pytest.mark.parametrize(
    "file, old, new, said",
    [
        (
            "infer/pyproject.toml",
            'version = "0.1.0"',
            'version = "0.1.1"',
            "infer: CHANGELOG.md begins with 0.1.0, .* says 0.1.1",
        ),
        ("schema/CHANGELOG.md", "## 0.1.0 (unreleased)", "## 0.1.0 (soon)", "schema: CHANGELOG.md: '## 0.1.0 .soon.' is neither"),
        ("schema/CHANGELOG.md", "## 0.1.0", "## 0.0.1 (2025-01-01)\n\n## 0.1.0", "schema: .* not in order"),
        (
            "schema/CHANGELOG.md",
            "## 0.1.0",
            "## 0.1.0 (2025-01-01)\n\n## Unreleased\n\n## 0.0.9",
            "schema: .*unreleased stands first",
        ),
        (
            "eval/pyproject.toml",
            "jumar-infer>=0.1,<0.2",
            "jumar-infer>=0.2,<0.3",
            "eval: 'jumar-infer>=0.2,<0.3' shuts out jumar-infer 0.1.0",
        ),
        (
            "eval/pyproject.toml",
            "jumar-infer>=0.1,<0.2",
            "jumar-infer>=0.1",
            "eval: .* no upper bound; expected jumar-infer>=0.1,<0.2",
        ),
        ("data-prep/LICENSE", "Apache", "apache", "data-prep: its LICENSE"),
        ("device/pyproject.toml", "license = ", "licence = ", "device: pyproject.toml: no license"),
    ],
)
def test_what_does_not_fit_is_said(file: str, old: str, new: str, said: str, root: Path) -> None:
    assert release.check(root) == []
    edit(root / "packages" / file, old, new)
    assert any(re.search(said, fault) for fault in release.check(root))


def test_a_first_version_is_dated_and_goes_on(root: Path) -> None:
    with pytest.raises(release.Refused, match=r"0\.1\.0 is not released yet: scripts/release\.py bump infer as-is"):
        release.bump("infer", "minor", DAY, root)
    assert release.bump("infer", "as-is", DAY, root)[0] == f"jumar-infer 0.1.0, {DAY}"
    with pytest.raises(release.Refused, match="uncommitted changes"):
        release.bump("infer", "patch", DAY, root)
    commit(root)
    with pytest.raises(release.Refused, match="nothing is unreleased"):
        release.bump("infer", "patch", DAY, root)

    changelog = root / "packages/infer/CHANGELOG.md"
    edit(changelog, "\n## 0.1.0", "\n## Unreleased\n\n- Faster.\n\n## 0.1.0")
    commit(root)
    said = release.bump("infer", "patch", DAY, root)
    assert said[0] == "jumar-infer 0.1.0 -> 0.1.1"
    assert len(said) == 2  # nobody's range has to change
    assert release.headings(changelog.read_text()) == [("0.1.1", DAY), ("0.1.0", DAY)]
    assert f"# Changelog\n\n## 0.1.1 ({DAY})\n\n- Faster.\n\n## 0.1.0 ({DAY})\n" in changelog.read_text()
    assert release.check(root) == []


def test_a_minor_version_mends_the_ranges_of_those_who_need_it(root: Path) -> None:
    for name in ("schema", "eval"):
        release.bump(name, "as-is", DAY, root)
        commit(root)
    edit(root / "packages/schema/CHANGELOG.md", "\n## 0.1.0", "\n## Unreleased\n\n- Another name.\n\n## 0.1.0")
    commit(root)
    said = "\n".join(release.bump("schema", "minor", DAY, root))
    ours = workspace.packages(root)
    users = {p.name for p in ours.values() if "jumar-schema" in workspace.siblings(p, ours)}
    assert len(users) > 5
    assert all(f"{name} asks for >=0.2,<0.3 of it now" in said for name in users)
    assert "jumar-schema[chat,cli]>=0.2,<0.3" in ours["jumar-eval"].requirements()
    assert "jumar-infer>=0.1,<0.2" in ours["jumar-eval"].requirements(["local"])
    assert release.check(root) == []
    of_eval = (root / "packages/eval/CHANGELOG.md").read_text()
    assert of_eval.startswith(f"# Changelog\n\n## Unreleased\n\n- Needs jumar-schema >=0.2,<0.3.\n\n## 0.1.0 ({DAY})\n")
    of_infer = (root / "packages/infer/CHANGELOG.md").read_text()
    assert release.headings(of_infer) == [("0.1.0", "unreleased")]
    assert of_infer.endswith("- Needs jumar-schema >=0.2,<0.3.\n")


@pytest.mark.parametrize(
    "version, part, expected, asked",
    [
        ("0.3.4", "patch", "0.3.5", ">=0.3,<0.4"),
        ("0.3.4", "minor", "0.4.0", ">=0.4,<0.5"),
        ("0.3.4", "major", "1.0.0", ">=1.0,<2"),
        ("1.4.2", "minor", "1.5.0", ">=1.5,<2"),
    ],
)
def test_versions_and_what_is_compatible(version: str, part: str, expected: str, asked: str) -> None:
    assert release.following(version, part) == expected
    assert release.compatible(expected) == asked


def test_what_is_built_is_looked_at(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    dist = tmp_path_factory.mktemp("dist")
    with pytest.raises(release.Refused, match="packages/eval: changes are unreleased"):
        release.build(["eval"], dist, root)
    release.bump("eval", "as-is", DAY, root)
    commit(root)
    said = release.build(["eval"], dist, root)
    assert said[-1] == "git tag -a jumar-eval-0.1.0 -m 'jumar-eval 0.1.0'"
    assert [line.split("  ")[1] for line in said[:-1]] == ["jumar_eval-0.1.0-py3-none-any.whl", "jumar_eval-0.1.0.tar.gz"]

    package = workspace.packages(root)["jumar-eval"]
    with zipfile.ZipFile(dist / "jumar_eval-0.1.0-py3-none-any.whl") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert artifacts.faults_of_wheel(files, package) == []
    info = "jumar_eval-0.1.0.dist-info/"
    damages = {
        "METADATA": ({info + "METADATA": files[info + "METADATA"].replace(b"Summary: ", b"Summry: ")}, "summry"),
        "name": ({info + "METADATA": files[info + "METADATA"].replace(b"Name: jumar-eval", b"Name: jumar eval!")}, "name"),
        "code": ({"jumar/eval/cli.py": b""}, "jumar/eval/cli.py is not what RECORD says"),
        "other": ({"jumar/__init__.py": b""}, "jumar/__init__.py is not in jumar/eval"),
    }
    for changed, fault in damages.values():
        found = artifacts.faults_of_wheel(files | changed, package)
        assert any(fault in line for line in found), found
    for left_out, fault in ((info + "licenses/LICENSE", "no license text"), ("jumar/eval/cli.py", "its command starts")):
        kept = {name: content for name, content in files.items() if name != left_out}
        assert any(fault in found for found in artifacts.faults_of_wheel(kept, package))


@pytest.mark.slow
def test_every_package_can_be_built(tmp_path: Path) -> None:
    for package in workspace.packages().values():
        wheel, sdist = workspace.build([package], tmp_path, "wheel", "sdist")
        assert artifacts.faults(wheel, sdist, package) == []
