"""What `jumar migrate` prints, and what it exits with."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jumar.chain.migrate import Migrated, migrate
from jumar.chain.report import command_lines, lines
from jumar.schema.errors import Exit

SCRIPTS = Path(__file__).parent / "scripts"
BASE = "torchrun --nproc_per_node 2 pretrain_gpt.py --tokenizer-name-or-path m --data-path d --train-iters 9 --lr 1e-3 "


def written(tmp_path: Path, text: str) -> Migrated:
    path = tmp_path / "run.sh"
    path.write_text(text)
    return migrate(path)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", ["pretrain_ms", "pretrain_moe", "tune_lora", "data_tune", "chat"])
def test_a_report_fits_the_terminal(name: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    migrated = migrate(SCRIPTS / f"{name}.sh")
    shown = list(lines(migrated, whole=True, written=True))
    assert all(len(line) <= columns or len(line.split()) < 3 for line in shown)
    for each in migrated.made[0].verdicts:
        assert any(each.flag in line for line in shown)


def test_a_flag_beside_its_field_is_not_told_twice() -> None:
    migrated = migrate(SCRIPTS / "pretrain_ms.sh")
    shown, written_ = (list(lines(migrated, whole=True, written=written)) for written in (False, True))
    assert sum("--micro-batch-size" in line for line in shown) == sum("--micro-batch-size" in line for line in written_) == 1
    assert any(re.fullmatch(r"mapped: \d+ flags, \d+ of them beside their fields above", line) for line in shown)


def test_what_a_script_holds_does_not_steer_the_terminal(tmp_path: Path) -> None:
    migrated = written(tmp_path, BASE + "--save $'\\x1b[2J' --our-own \x1b[31m")
    assert not any("\x1b" in line for line in lines(migrated, whole=True, written=False))


def test_a_long_command_is_typed_as_it_stands() -> None:
    command = "jumar-data sft 'a b.jsonl' --output data/x --map prompt=instruction --map query=input --pack --seq-len 4096"
    shown = command_lines(command, 60)
    assert len(shown) > 1
    assert all(len(line) <= 60 for line in shown)
    assert shlex.split(re.sub(r"\\\n", " ", "\n".join(shown))) == shlex.split(command)


# --- the command line


def run(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jumar.chain", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "COLUMNS": "100"}, timeout=60)


def test_the_command_line(tmp_path: Path) -> None:
    done = run("migrate", SCRIPTS / "pretrain_mlm.sh", "runs/a", "data/corpus", "-o", "out", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (job,) = json.loads(done.stdout)["jobs"]
    assert job["commands"] == ["JUMAR_COLLECTIVE_TIMEOUT_S=600 jumar-train pretrain out/pretrain_mlm.yaml --nproc 4"]
    assert {each["class"] for each in job["flags"]} == {"mapped", "default", "no effect"}
    assert (tmp_path / "out/pretrain_mlm.yaml").read_text() == job["files"]["out/pretrain_mlm.yaml"]
    (tmp_path / "out/pretrain_mlm.yaml").write_text("mine: 1\n")
    assert run("migrate", SCRIPTS / "pretrain_mlm.sh", "-o", "out", cwd=tmp_path).returncode == 3
    assert (tmp_path / "out/pretrain_mlm.yaml").read_text() == "mine: 1\n"


def test_recipes_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text(BASE)
    words = ("migrate", "run.sh", "-o", "out", "--model", "m")
    recipe = tmp_path / "out/run.yaml"
    command = f"ulimit -f 0; exec {sys.executable} -B -m jumar.chain {' '.join(words)}"
    full = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert full.returncode == Exit.ENVIRONMENT, full.stderr
    assert not list((tmp_path / "out").iterdir())
    first, again = run(*words, "--json", cwd=tmp_path), run(*words, "--json", cwd=tmp_path)
    assert [json.loads(each.stdout)["already_done"] for each in (first, again)] == [False, True]
    assert json.loads(again.stdout)["out"] == "out"
    assert again.stderr.splitlines()[-1] == "already done: out/run.yaml"
    recipe.write_bytes(b"\xff\xfe\x00")
    other = run(*words, cwd=tmp_path)
    assert other.returncode == 3
    assert "is there, with another content" in other.stderr
    assert recipe.read_bytes() == b"\xff\xfe\x00"
    assert run(*words, "--force", cwd=tmp_path).returncode == 0
    assert recipe.read_text().startswith("# From pretrain_gpt.py")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.yaml"]


def test_beside_an_unknown_flag_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text(BASE + "--our-own-flag 4")
    done = run("migrate", "run.sh", "-o", "out", "--partial", cwd=tmp_path)
    assert done.returncode == 3
    assert "or take them out; nothing is written" in done.stderr
    assert "# From pretrain_gpt.py" in done.stdout
    assert not (tmp_path / "out").exists()


def test_exit_codes(tmp_path: Path) -> None:
    refused = run("migrate", SCRIPTS / "tune_lora.sh", "-o", "out", cwd=tmp_path)
    assert refused.returncode == 3
    assert "refused: --lora-r" in refused.stderr
    assert not (tmp_path / "out").exists()
    assert run("migrate", SCRIPTS / "tune_lora.sh", "-o", "out", "--partial", cwd=tmp_path).returncode == 0
    assert (tmp_path / "out/tune_lora.yaml").exists()
    (tmp_path / "typo.sh").write_text(BASE + "--mirco-batch-size 4")
    unknown = run("migrate", "typo.sh", "--partial", cwd=tmp_path)
    assert unknown.returncode == 3
    assert "did you mean --micro-batch-size" in unknown.stdout
    assert run("migrate", "absent.sh", cwd=tmp_path).returncode == 2


def test_an_error_comes_after_the_table_in_one_pipe(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jumar.chain", "migrate", SCRIPTS / "tune_lora.sh"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, env=env, timeout=60)
    assert done.stdout.index("mapped:") < done.stdout.index("error: refused: --lora-r")


def test_alone_it_shows_the_chain(tmp_path: Path) -> None:
    done = run(cwd=tmp_path)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) <= 10
    for name in ("jumar-data", "jumar-convert", "jumar-train", "jumar-infer", "jumar-eval", "jumar migrate"):
        assert name in done.stdout
    steps = json.loads(run("--json", cwd=tmp_path).stdout)["chain"]
    assert [step["example"] for step in steps] == [line.partition("  # ")[0].rstrip() for line in done.stdout.splitlines()[:-1]]
    assert {step["package"] for step in steps} >= {"jumar-data-prep", "jumar-train-core"}
    misplaced = run("--json", "migrate", "x.sh", cwd=tmp_path)
    assert (misplaced.returncode, misplaced.stdout) == (2, "")
    assert "behind the command" in misplaced.stderr
