"""What the pages tell people to install is enough: nothing of ours is on an index yet, so every sibling has to be named."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import workspace

LOCAL = re.compile(r"\./packages/([a-z-]+)(?:\[([a-z,-]+)\])?")


def lines(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in text.splitlines() if line.startswith("pip install") and "./packages/" in line]


def missing(line: str) -> list[str]:
    """Siblings and extras that the named packages need and the line does not bring."""
    ours = workspace.packages()
    names = {package.folder.name: name for name, package in ours.items()}
    named = {
        names[found[1]]: tuple((found[2] or "").split(",")) if found[2] else ()
        for word in shlex.split(line, comments=True)
        if (found := LOCAL.fullmatch(word))
    }
    needed = set().union(*(workspace.closure(name, extras, ours) for name, extras in named.items()))
    return sorted(needed - set(named))


PAGES = [page for page in sorted(workspace.ROOT.glob("**/*.md")) if not {".venv", ".venv-alone", "runs"} & set(page.parts)]
INSTALL = [(page, line) for page in PAGES for line in lines(page)]


@pytest.mark.parametrize(
    "page, line", INSTALL, ids=[f"{page.relative_to(workspace.ROOT)}-{i}" for i, (page, _) in enumerate(INSTALL)]
)
def test_what_a_page_installs_is_enough(page: Path, line: str) -> None:
    absent = missing(line)
    assert not absent, f"{page}: {line}\nneeds {', '.join(absent)} beside it"


def test_a_line_that_is_not_enough() -> None:
    assert len(INSTALL) > 20
    assert missing("pip install ./packages/ckpt-convert  # ./packages/schema") == ["jumar-schema"]
