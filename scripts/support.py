"""Writes docs/support.md, and its Chinese: what there is, from the registries; what was run of it, from the tests that name it.

python scripts/support.py            writes the pages
python scripts/support.py --check    fails if they are not what registries and tests say
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from chinese import rows, translator
from jumar.eval.task import PROTOCOLS, load_task, task_files
from jumar.schema.registry import families

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "docs/support.md", ROOT / "docs/zh/support.md"]
START, END = "<!-- support tables: scripts/support.py writes them -->", "<!-- end of the support tables -->"
SHOWN = {
    "converted, byte for byte": ("packages/ckpt-convert/tests/test_roundtrip.py", "test_a_sample_of_layouts"),
    "back in transformers": ("tests/parity/test_transformers_logits.py", "test_the_model_that_comes_back_is_the_same"),
    "in megatron-core's model": ("tests/parity/test_megatron_logits.py", "test_logits_are_those_of_transformers"),
    "trained in layouts": ("tests/parity/test_train_layouts.py", "test_a_layout_computes_what_one_process_computes"),
    "answers of transformers": ("packages/infer/tests/test_parity.py", ""),
    "whole chain": ("tests/e2e/test_chain.py", ""),
}
"""Column -> file and test (empty: any of the file) that shows it, on a CPU."""
RUN = {"cpu": "run: the tests of this repository"}
"""Devices on which tests have run; no other has run."""


class Collector:
    """A pytest plugin that notes each test's file, name, parameters, and whether it is slow."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, str, bool]] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            path, name = item.path.relative_to(ROOT).as_posix(), getattr(item, "originalname", item.name)
            values = list(item.callspec.params.values()) if hasattr(item, "callspec") else []
            slow = item.get_closest_marker("slow") is not None
            self.found.append((path, name, f"{item.name.removeprefix(name)} {values}", slow))


def collected() -> list[tuple[str, str, str, bool]]:
    collector = Collector()
    files = sorted({str(ROOT / path) for path, _ in SHOWN.values()})
    with contextlib.redirect_stdout(io.StringIO()) as said:
        options = ["--collect-only", "-q", "-p", "no:cacheprovider", "-m", "slow or not slow", f"--rootdir={ROOT}"]
        code = pytest.main([*options, *files], plugins=[collector])
    if code:
        sys.exit(f"the tests cannot be collected:\n{said.getvalue()[-4000:]}")
    return collector.found


def of_families() -> list[str]:
    """A row a family: by which tests it is shown, "slow" where only the slow ones do."""
    tests = collected()
    rows = [f"| model_type | {' | '.join(SHOWN)} | dialects |", "| --- " * (len(SHOWN) + 2) + "|"]
    for name, family in families().items():
        cells = []
        for file, test in SHOWN.values():
            word = re.compile(rf"(?<![a-z0-9_]){name}(?![a-z0-9_])")
            slow = [s for path, n, params, s in tests if path == file and n.startswith(test) and word.search(params)]
            cells.append("-" if not slow else "slow" if all(slow) else "yes")
        rows.append(f"| `{name}` | {' | '.join(cells)} | {', '.join(family.dialects)} |")
    return rows


def of_devices() -> list[str]:
    rows = ["| device | |", "| --- | --- |"]
    return rows + [f"| `{p.name}` | {RUN.get(p.name, 'not run')} |" for p in sorted(entry_points(group="jumar.devices"))]


def of_tasks() -> list[str]:
    rows = ["| task | protocol | kind | shots | |", "| --- | --- | --- | --- | --- |"]
    for protocol in PROTOCOLS:
        for name in sorted(task_files(protocol)):
            task = load_task(name, protocol)
            rows.append(f"| `{name}` | {protocol} | {task.kind} | {task.shots} | {task.title} |")
    return rows


def rewritten(text: str, tables: dict[str, list[str]]) -> str:
    """A page's text with the tables of today."""
    head, _, rest = text.partition(START)
    body = "\n\n".join(f"## {title}\n\n" + "\n".join(lines) for title, lines in tables.items())
    return f"{head}{START}\n\n{body}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the pages are not so")
    options = parser.parse_args()
    english = {"Model families": of_families(), "Devices": of_devices(), "Benchmarks": of_tasks()}
    say = translator("support")
    chinese = {say(title): rows("support", lines) for title, lines in english.items()}
    for page, tables in zip(PAGES, (english, chinese), strict=True):
        text = page.read_text(encoding="utf-8")
        new = rewritten(text, tables)
        if not options.check:
            page.write_text(new, encoding="utf-8")
        elif new != text:
            sys.exit(f"{page.relative_to(ROOT)} is not what is there: python scripts/support.py")


if __name__ == "__main__":
    main()
