"""What tests, benchmarks and scripts import is declared: another machine installs requirements-dev.txt, and nothing that is there
only because something else needs it."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

from jumar.schema.recipe import read_file

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("tests", "packages/*/tests", "benchmarks", "scripts")
SOURCES = [ROOT / "conftest.py", *sorted(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*.py"))]
PROVIDERS = packages_distributions()
IMPORTING = ("import_module", "importorskip", "find_spec")
REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def modules(tree: ast.Module) -> Iterator[str]:
    """Names of modules that it imports, wherever; also by `importorskip("name")` and its like."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Call) and node.args and isinstance(first := node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in IMPORTING and isinstance(first.value, str):
                yield first.value


def declared() -> set[str]:
    """Distributions that requirements-dev.txt and the packages' own lists name."""
    lines = [line for line in (ROOT / "requirements-dev.txt").read_text().splitlines() if line and line[0].isalpha()]
    for path in ROOT.glob("packages/*/pyproject.toml"):
        project = read_file(path)["project"]
        lines += [*project["dependencies"], *chain(*project.get("optional-dependencies", {}).values())]
    return {canonical(name[0]) for line in lines if (name := REQUIREMENT.match(line))}


def undeclared(source: Path, text: str, known: set[str]) -> list[str]:
    tree = ast.parse(text)
    ours = {"jumar", *(path.stem for path in SOURCES)}
    # A benchmark names the peers that it measures, which whoever wants its numbers installs.
    peers = (ast.get_docstring(tree) or "").lower() if source.is_relative_to(ROOT / "benchmarks") else ""
    found = []
    for name in sorted({module.partition(".")[0] for module in modules(tree)} - sys.stdlib_module_names - ours):
        dists = {canonical(dist) for dist in PROVIDERS.get(name, [name])}
        if not dists & known and not re.search(rf"\b{name}\b", peers):
            found.append(f"{source.relative_to(ROOT)}: {name} (of {', '.join(sorted(dists))})")
    return found


def test_what_is_imported_is_declared() -> None:
    known = declared()
    missing = [line for source in SOURCES for line in undeclared(source, source.read_text(), known)]
    assert not missing, "name them in requirements-dev.txt:\n" + "\n".join(missing)


def test_what_is_not_declared_is_seen() -> None:
    known = declared()
    assert {"torch", "pyyaml", "megatron-core", "pytest", "gguf"} <= known
    for text in ("import sympy.core", "def f():\n    from networkx import Graph", "pytest.importorskip('sympy')"):
        assert undeclared(ROOT / "tests/x.py", text, known)
        assert undeclared(ROOT / "benchmarks/x.py", text, known)
    assert not undeclared(ROOT / "benchmarks/x.py", '"""Against sympy."""\nimport sympy', known)
    assert undeclared(ROOT / "tests/x.py", "import yaml", known - {"pyyaml"})
