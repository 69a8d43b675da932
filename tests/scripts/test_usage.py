"""Scripts say how they are called, refuse what they do not know, and write nothing meanwhile."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path for path in ROOT.glob("scripts/*.py") if "__main__" in path.read_text(encoding="utf-8"))
WRITTEN = ("docs/*.md", "docs/zh/*.md", "constraints.txt", "packages/*/pyproject.toml", "*")


def state() -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for pattern in WRITTEN for path in ROOT.glob(pattern) if not path.is_dir()}


def run(*words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "JUMAR_DEMO"} | environment
    return subprocess.run([*map(str, words)], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_help_of_each_script(tmp_path: Path) -> None:
    before = state()
    running = {
        script.name: subprocess.Popen(
            [sys.executable, script, "--help"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for script in SCRIPTS
        if script.name != "docs.py" or sys.version_info >= (3, 11)
    }
    assert {"offline.py", "support.py", "update_constraints.py"} <= running.keys()
    for name, process in running.items():
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, ""), f"{name}: {err}"
        assert f"scripts/{name}" in out
    assert state() == before
    assert list(tmp_path.iterdir()) == []


def test_what_scripts_do_not_know(tmp_path: Path) -> None:
    for name, *words in (("offline.py", "no-such"), ("update_constraints.py", "no-such"), ("flags.py", "--chekc")):
        done = run(sys.executable, ROOT / "scripts" / name, *words, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert words[0] in done.stderr
        assert "Traceback" not in done.stderr


def test_help_of_the_examples(tmp_path: Path) -> None:
    before = sorted(ROOT.iterdir())
    for name in ("quickstart.sh", "pretrain.sh", "pipeline.sh", "pipeline.py"):
        done = run(sys.executable if name.endswith(".py") else "bash", ROOT / "examples" / name, "--help", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"examples/{name}" in done.stdout
        assert "set -euo" not in done.stdout
    assert sorted(ROOT.iterdir()) == before


def test_what_examples_do_not_know(tmp_path: Path) -> None:
    for script, words, short, said in (
        ("pretrain.sh", ["nosuch", tmp_path / "out"], "", "hint: llama or mixtral"),
        ("quickstart.sh", ["--no-such"], "", "no option --no-such"),
        ("quickstart.sh", [tmp_path / "out"], "1", "JUMAR_DEMO=1: expected short"),
    ):
        done = run("bash", ROOT / "examples" / script, *words, cwd=tmp_path, JUMAR_DEMO=short)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert list(tmp_path.iterdir()) == []


def test_an_example_writes_where_its_caller_stands(tmp_path: Path) -> None:
    """With nothing installed it stops behind its first step, which writes the pages."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    path = os.pathsep.join([str(tmp_path / "bin"), "/usr/bin", "/bin"])
    done = run("bash", ROOT / "examples/pretrain.sh", "llama", "mine", cwd=tmp_path, PATH=path, PYTHONPATH="")
    assert done.returncode != 0
    assert re.search(r"^\d+ pages$", done.stdout, re.MULTILINE)
    assert (tmp_path / "mine/pages.jsonl").is_file()
    assert not (ROOT / "mine").exists()
