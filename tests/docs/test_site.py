"""The documentation is built for a browser in both languages, and a warning of the builder is an error."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pages import ROOT

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="MyST of these versions needs Python 3.11")
HOMES = {"en": "docs/index.md", "zh": "docs/zh/index.md"}


def build(script: Path, output: Path) -> subprocess.CompletedProcess[str]:
    plain = {**os.environ, "NO_COLOR": "1"}  # Sphinx colours what it writes to a pipe where CI or FORCE_COLOR is set
    line = [sys.executable, script, "--output", output]
    return subprocess.run(line, env=plain, capture_output=True, text=True, timeout=250)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("site")
    done = build(ROOT / "scripts/docs.py", output)
    assert done.returncode == 0, done.stderr
    return output


def test_both_languages_are_built_without_a_warning_and_every_page_is_in_the_navigation(site: Path) -> None:
    for language, home in HOMES.items():
        folder = (ROOT / home).parent
        inside = [page for page in folder.rglob("*.md") if language == "zh" or folder / "zh" not in page.parents]
        page = site / language / Path(home).with_suffix(".html")
        tree = page.read_text(encoding="utf-8").partition('class="sidebar-tree"')[2].partition("</aside>")[0]
        linked = {(page.parent / target).resolve() for target in re.findall(r'href="([^"#]+)"', tree)} | {page}
        assert linked >= {site / language / one.relative_to(ROOT).with_suffix(".html") for one in inside}
    assert all((site / target).exists() for target in re.findall(r'href="(.*?)"', (site / "index.html").read_text()))


def test_a_page_leads_to_the_same_page_of_the_other_language(site: Path) -> None:
    for page in (site / "en/docs/guides/multi-node.html", site / "zh/docs/zh/guides/multi-node.html", site / "en/README.html"):
        links = re.findall(r'<a class="(?:language|reference external)" href="([^"]+?\.html)', page.read_text(encoding="utf-8"))
        assert len(set(links)) == 1, "the sidebar's link and the page's own"
        other = (page.parent / links[0]).resolve()
        assert other.exists()
        assert {other.relative_to(site).parts[0], page.relative_to(site).parts[0]} == {"en", "zh"}


def test_chinese_is_found_by_pairs_of_characters(site: Path) -> None:
    index = (site / "zh/searchindex.js").read_text(encoding="utf-8")
    terms = json.loads(index[index.index("(") + 1 : index.rindex(")")])["terms"]
    assert terms.keys() >= {"张量", "量并", "并行", "megatron"}
    assert "matchAll" in (site / "zh/_static/language_data.js").read_text(encoding="utf-8")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two pages in each language, whose links are right."""
    for name in ("scripts/docs.py", "docs/sphinx"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    for home in HOMES.values():
        (tmp_path / home).parent.mkdir(exist_ok=True)
        (tmp_path / home).write_text("# Home\n\n## Start\n\n- [Other](other.md): a page\n")
        (tmp_path / home).with_name("other.md").write_text("# Other\n\n## A part\n\n[it](#a-part), [home](index.md#start)\n")
    return tmp_path


def test_a_link_out_of_both_builds_is_an_error(small: Path) -> None:
    (small / "notes.md").write_text("# Notes\n")
    with (small / "docs/zh/other.md").open("a") as page:
        page.write("\n[notes](../../notes.md), [a part](../other.md#a-part), [no part](../other.md#no-part)\n")
    done = build(small / "scripts/docs.py", small / "out")
    assert done.returncode == 1, done.stdout
    there = "dead link: zh/docs/zh/other.html: ../../../en"
    assert done.stderr.splitlines() == [f"{there}/notes.html", f"{there}/docs/other.html#no-part"]


def test_a_link_that_leads_nowhere_is_an_error(small: Path) -> None:
    with (small / "docs/zh/other.md").open("a") as page:
        page.write("\n[gone](gone.md), [no part](index.md#no-part), ![picture](gone.png)\n")
    done = build(small / "scripts/docs.py", small / "out")
    assert done.returncode == 1, done.stdout
    warned = re.findall(r"^(\S+): WARNING: (.*)$", done.stderr, re.MULTILINE)
    assert {where for where, _ in warned} == {f"{small}/docs/zh/other.md:7"}
    assert len(warned) == 3
    assert all(any(name in what for _, what in warned) for name in ("'gone.md'", "'no-part'", "gone.png"))
