"""Builds the documentation in both languages, for a browser; a warning or a dead link is an error. Needs Python 3.11 or newer.

python scripts/docs.py                   to runs/docs/index.html
python scripts/docs.py --output DIR
python -m http.server -d runs/docs       to look at it: from files, the search has no excerpts
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

if sys.version_info < (3, 11):
    sys.exit("error: the documentation is built with Python 3.11 or newer")

from sphinx.cmd.build import build_main

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ROOT / "docs/sphinx"
DOOR = """\
<!doctype html>
<meta charset="utf-8">
<title>jumar</title>
<script>location.replace((navigator.language.startsWith("zh") ? "zh/docs/zh" : "en/docs") + "/index.html")</script>
<p><a href="en/docs/index.html">English</a></p>
<p><a href="zh/docs/zh/index.html" lang="zh">中文</a></p>
"""


def build(language: str, output: Path, *, source: Path = ROOT) -> int:
    """Sphinx's exit code. Every page is read: what an earlier run has warned of must be said again."""
    words = ["--quiet", "--fail-on-warning", "--keep-going", "--nitpicky", "--fresh-env", "--jobs", "auto", "--tag", language]
    words += ["--conf-dir", str(SETTINGS), "--doctree-dir", str(output / ".doctrees" / language)]
    return build_main([*words, str(source), str(output / language)])


class Page(HTMLParser):
    """What a page links to or loads, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name == "id" and value:
                self.anchors.add(value)


def dead_links(site: Path) -> Iterator[str]:
    """ "PAGE: LINK" of each that leads to no file, or to no anchor of it; Sphinx sees the build of one language alone."""
    read = cache(Page)
    for page in sorted(site.rglob("*.html")):
        for link in dict.fromkeys(read(page).links):
            if re.match(r"[a-z]+:|//", link):
                continue
            path, anchor = (unquote(part) for part in (urlsplit(link).path, urlsplit(link).fragment))
            there = (page.parent / path).resolve() if path else page
            if not there.exists() or (anchor and there.suffix == ".html" and anchor not in read(there).anchors):
                yield f"{page.relative_to(site)}: {link}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs/docs")
    output: Path = parser.parse_args().output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    codes = [build(language, output) for language in ("en", "zh")]
    (output / "index.html").write_text(DOOR, encoding="utf-8")
    dead = list(dead_links(output))
    for line in dead:
        print(f"dead link: {line}", file=sys.stderr)
    if any(codes) or dead:
        sys.exit(1)
    print(f"{output}/index.html")


if __name__ == "__main__":
    main()
