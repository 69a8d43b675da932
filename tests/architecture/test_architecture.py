"""Rules of the house that no linter knows. Which package may import which is in pyproject.toml, for import-linter."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from typer.main import get_command

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
SOURCES = sorted(ROOT.glob("packages/*/src/**/*.py"))
HEAVY = ("megatron", "pyarrow", "safetensors", "tokenizers", "torch", "torch_npu", "transformers")
SLOW = ("asyncio", "httpx", "hypothesis", "jinja2", "ml_dtypes", "numpy", "orjson", "yaml")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def import_name(package: Path) -> str:
    """`jumar` itself is the namespace: the package of that name brings jumar.chain."""
    return "jumar." + ("chain" if package.name == "jumar" else package.name.replace("-", "_"))


def test_no_package_hides_its_siblings() -> None:
    """`jumar` is a namespace: with an __init__.py in one package, the others could not be imported."""
    assert PACKAGES
    hiding = [relative(path) for path in ROOT.glob("packages/*/src/jumar/__init__.py")]
    assert not hiding, "\n".join(hiding)


def test_every_folder_below_the_namespace_is_a_package() -> None:
    """import-linter and mypy pass over folders without an __init__.py."""
    folders = sorted({path.parent for path in SOURCES})
    unseen = [relative(folder) for folder in folders if not (folder / "__init__.py").exists()]
    assert not unseen, "\n".join(unseen)


def test_no_source_file_is_over_500_lines() -> None:
    lengths = {relative(path): len(path.read_text().splitlines()) for path in SOURCES}
    long = [f"{path}: {lines} lines" for path, lines in lengths.items() if lines > 500]
    assert not long, "\n".join(long)


def test_every_error_says_what_to_do_next() -> None:
    """A ToolError without `hint` leaves its reader with the fault alone."""
    bare = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "ToolError":
                hints = [word.value for word in node.keywords if word.arg == "hint"]
                if not hints or (isinstance(hints[0], ast.Constant) and not hints[0].value):
                    bare.append(f"{relative(path)}:{node.lineno}")
    assert not bare, "\n".join(bare)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_importing_a_package_loads_nothing_heavy(package: Path) -> None:
    code = f"import sys, {import_name(package)}; print(*sorted(set(sys.modules) & set({HEAVY})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


COMMANDS = {
    "jumar.chain.cli": ["", "migrate"],
    "jumar.ckpt_convert.cli": ["", "to-megatron", "to-hf", "merge-lora", "to-peft", "verify", "inspect", "families"],
    "jumar.data_prep.cli": [
        *("", "pretrain", "sft", "pairwise", "process-reward", "prompts"),
        *("inspect", "merge", "split", "blend", "report", "templates"),
    ],
    "jumar.eval.cli": ["", "run", "list", "compare", "report"],
    "jumar.infer.cli": ["", "generate", "chat", "serve", "score"],
    "jumar.train_core.cli": ["", "pretrain", "sft", "schema", "doctor"],
}
WITHOUT_JSON = {
    ("jumar.infer.cli", "chat"): "a person types and reads; scripts have generate",
    ("jumar.infer.cli", "serve"): "it answers over HTTP, in JSON",
}


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_is_for_scripts_too(module: str) -> None:
    """`--json` is on each, unless there is a reason, and says the same thing everywhere."""
    app = get_command(import_module(module).app)
    assert sorted(app.commands) == sorted(filter(None, COMMANDS[module]))  # type: ignore[attr-defined]
    for name, command in app.commands.items():  # type: ignore[attr-defined]
        options = {flag: option for option in command.params for flag in option.opts}
        if (module, name) in WITHOUT_JSON:
            assert "--json" not in options, f"{module} {name} has it: take it out of WITHOUT_JSON"
        else:
            assert "--json" in options, f"{module} {name}"
            assert options["--json"].help == "One JSON object on standard output."


@pytest.mark.parametrize("module, command", [(module, command) for module, all_ in COMMANDS.items() for command in all_])
def test_help_imports_no_work(module: str, command: str) -> None:
    """Help is what a person waits for (`benchmarks/startup.py` has the time): the parser and typer are all that it may load."""
    code = f"""
import sys
sys.argv = [{module!r}, *{command.split()}, "--help"]
import {module} as cli
try:
    cli.main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("loaded", *sorted(set(sys.modules) & {{*{HEAVY}, *{SLOW}}}))
print("ours", *sorted(name for name in sys.modules if name.startswith("jumar.")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *text, loaded, ours = done.stdout.splitlines()
    assert any("Usage" in line for line in text)
    assert loaded == "loaded"
    package = module.rpartition(".")[0]
    parsing = {
        package,
        module,
        f"{package}.options",
        "jumar.schema",
        "jumar.schema.cli",
        "jumar.schema.dialects",
        "jumar.schema.errors",
        "jumar.schema.options",
    }
    assert set(ours.split()[1:]) <= parsing


def test_devices_are_touched_in_one_place() -> None:
    """The literal torch.cuda stands in the device package and in what train-core mends in megatron-core."""
    allowed = ("packages/device/", "packages/train-core/src/jumar/train_core/megatron.py")
    asking = [relative(path) for path in SOURCES if "torch.cuda." in path.read_text()]
    elsewhere = [path for path in asking if not path.startswith(allowed)]
    assert not elsewhere, "\n".join(elsewhere)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_public_name_is_no_module_of_its_package(package: Path) -> None:
    """A module that has been imported would stand in the place of what the package names."""
    name = import_name(package)
    folder = package / "src" / Path(*name.split("."))
    public = getattr(import_module(name), "__all__", [])
    assert [each for each in public if (folder / f"{each}.py").exists() or (folder / each).is_dir()] == []
