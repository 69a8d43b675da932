"""Builds the documentation in both languages, for a browser; a warning is an error. Needs Python 3.11 or newer.

python scripts/docs.py                   to runs/docs/index.html
python scripts/docs.py --output DIR
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs/docs")
    output: Path = parser.parse_args().output
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    codes = [build(language, output) for language in ("en", "zh")]
    (output / "index.html").write_text(DOOR, encoding="utf-8")
    if any(codes):
        sys.exit(1)
    print(f"{output}/index.html")


if __name__ == "__main__":
    main()
