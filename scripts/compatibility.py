"""Writes docs/compatibility.md, and its Chinese, from the tests: every row is a `compat` marker, with the tests that carry it.

    python scripts/compatibility.py            writes the pages
    python scripts/compatibility.py --check    fails if they are not what the tests say

A marker says what a test shows:

    @pytest.mark.compat("read", "megatron-core 0.16.1", "torch_dist, stacked layers", "saved by 4 processes, TP2 PP2")

does ("read", "written" or "refused"); of which framework and version; which file; how, or why not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from chinese import rows

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "docs/compatibility.md", ROOT / "docs/zh/compatibility.md"]
START, END = "<!-- compat table: scripts/compatibility.py writes it -->", "<!-- end of the compat table -->"
ORDER = ("read", "written", "refused")
Row = tuple[str, str, str, str]


class Collector:
    """A pytest plugin that notes the markers of every test, whether it is run or not."""

    def __init__(self) -> None:
        self.rows: defaultdict[Row, set[str]] = defaultdict(set)
        self.faults: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            test = f"{item.path.relative_to(ROOT).as_posix()}::{getattr(item, 'originalname', item.name)}"
            for marker in item.iter_markers("compat"):
                does, framework, file, how = marker.args
                if does not in ORDER:
                    self.faults.append(f"{test}: {does!r} is none of {', '.join(ORDER)}")
                self.rows[framework, file, does, how].add(test)


def table() -> list[str]:
    """The table of all markers, sorted by framework, file and what is done with it."""
    collector = Collector()
    tests = (path for folder in ("tests", "packages/*/tests") for path in ROOT.glob(f"{folder}/**/test_*.py"))
    marked = [str(path) for path in tests if "mark.compat" in path.read_text(encoding="utf-8")]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", *marked], plugins=[collector])
    if code or collector.faults:
        sys.exit("\n".join(collector.faults) or f"the tests cannot be collected:\n{said.getvalue()[-4000:]}")
    lines = ["| from | file | | how, or why not | shown by |", "| --- | --- | --- | --- | --- |"]
    for row in sorted(collector.rows, key=lambda r: (r[0].casefold(), r[1].casefold(), ORDER.index(r[2]), r[3])):
        framework, file, does, how = row
        tests = "<br>".join(f"`{test.rpartition('/')[2]}`" for test in sorted(collector.rows[row]))
        lines.append(f"| {framework} | {file} | {does} | {how} | {tests} |")
    return lines


def rewritten(text: str, lines: list[str]) -> str:
    """A page's text with the table of today."""
    head, _, rest = text.partition(START)
    body = "\n".join(lines)
    return f"{head}{START}\n\n{body}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the pages are not so")
    options = parser.parse_args()
    english = table()
    for page, lines in zip(PAGES, (english, rows("compatibility", english)), strict=True):
        text = page.read_text(encoding="utf-8")
        new = rewritten(text, lines)
        if not options.check:
            page.write_text(new, encoding="utf-8")
        elif new != text:
            sys.exit(f"{page.relative_to(ROOT)} is not what the tests say: python scripts/compatibility.py")


if __name__ == "__main__":
    main()
