"""The command: exit codes of real processes, what is printed where, and how soon."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import model_dir, token_file, write_recipe
from jumar.schema.errors import Exit
from jumar.train_core.exit_file import ExitFile
from jumar.train_core.schema_text import schema_text


def jumar_train(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jumar.train_core", *map(str, words)]
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", **variables}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe for one rank that has no faults."""
    values: dict[str, Any] = {
        "model": {"path": str(model_dir(tmp_path / "hf"))},
        "data": {"train": str(token_file(tmp_path / "data/a")), "seq_len": 32},
        "train": {"steps": 2, "global_batch_size": 4, "precision": "fp32"},
        "save": {"path": str(tmp_path / "run")},
    }
    return write_recipe(tmp_path / "recipe.yaml", values)


@pytest.mark.parametrize(
    "words", [["--help"], ["pretrain", "--help"], ["sft", "--help"], ["schema", "--help"], ["doctor", "--help"]]
)
def test_help_answers_at_once(words: list[str]) -> None:
    """In processor time: the clock also counts what else the machine does. What shares the core's caches costs some of it too."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    times: list[float] = []
    while len(times) < 12 and (not times or min(times) >= 1):
        before = spent()
        assert "Usage: jumar-train" in jumar_train(*words).stdout
        times.append(spent() - before)
    assert min(times) < 1, "torch alone takes several"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("rank", [None, "1"])
def test_a_signal_while_it_only_looks(tmp_path: Path, number: signal.Signals, rank: str | None) -> None:
    """As Ctrl-C, from the moment that the recipe is read; one rank of several says nothing of it."""
    recipe = tmp_path / "recipe.yaml"
    os.mkfifo(recipe)
    variables = {} if rank is None else {"RANK": rank, "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "jumar.train_core", "pretrain", str(recipe)]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **variables})
    with started as process, recipe.open("w"):  # as soon as there is a reader
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (Exit.INTERRUPTED, "" if rank else "stopped")


def test_the_commands_and_flags_of_the_help() -> None:
    out = jumar_train("--help").stdout
    assert all(f" {name} " in out for name in ("pretrain", "schema", "doctor"))
    flags = jumar_train("pretrain", "--help").stdout
    assert all(flag in flags for flag in ("RECIPE.yaml", "--nproc", "--set", "--dry-run", "--device"))


def test_nothing_heavy_is_imported() -> None:
    script = "import sys, jumar.train_core, jumar.train_core.cli, jumar.train_core.job, jumar.train_core.checks; "
    script += "print([m for m in ('torch', 'megatron', 'jumar.ckpt_convert', 'pydantic') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"


def test_public_names() -> None:
    import jumar.train_core as package

    assert [getattr(package, name).__name__ for name in package.__all__ if name != "check"]
    with pytest.raises(AttributeError, match="nobody"):
        package.nobody  # noqa: B018


def test_schema() -> None:
    done = jumar_train("schema")
    assert (done.returncode, done.stdout, done.stderr) == (0, schema_text(), "")
    assert set(json.loads(jumar_train("schema", "--json").stdout)["properties"]) == set(yaml.safe_load(done.stdout))


def test_the_schema_is_a_recipe(tmp_path: Path, recipe: Path) -> None:
    """What it prints can be saved, changed and run."""
    given = yaml.safe_load(recipe.read_text())
    path = tmp_path / "full.yaml"
    path.write_text(jumar_train("schema").stdout)
    sets = [f"--set={section}.{name}={value}" for section, values in given.items() for name, value in values.items()]
    assert jumar_train("pretrain", path, "--dry-run", *sets).returncode == 0


def test_dry_run_prints_and_touches_nothing(tmp_path: Path, recipe: Path) -> None:
    done = jumar_train("pretrain", recipe, "--dry-run", "--nproc", "4", "--set", "parallel.tp=2")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(title in done.stdout for title in ("recipe", "resolved", "ranks that work together", "stages", "steps"))
    assert "tp  [0, 1] [2, 3]" in done.stdout
    assert "2 steps of 4 samples = 128 tokens; 256 tokens in all; 0 evaluations, 1 checkpoint" in done.stdout
    assert not (tmp_path / "run").exists()
    told = json.loads(jumar_train("pretrain", recipe, "--dry-run", "--nproc", "4", "--json").stdout)
    assert (told["derived"]["dp"], told["steps"]["tokens"], len(told["stages"])) == (4, 256, 1)


@pytest.mark.parametrize(
    "words, code, error, hint",
    [
        (["--set", "parallel.ttp=2"], 2, "unknown key parallel.ttp", "did you mean parallel.tp?"),
        (["--set", "train.steps=x"], 2, "train.steps", ""),
        (["--set", "oops"], 2, "expected KEY=VALUE", "train.steps=20"),
        (["--set", "parallel.tp=2"], 3, "tp=2 x pp=1 x cp=1 needs 2 ranks", "--nproc 2"),
        (
            ["--set", "parallel.tp=3", "--nproc", "3", "--set", "train.global_batch_size=3"],
            3,
            "8 attention heads",
            "divisors of 8",
        ),
        (["--set", "data.train=nowhere"], 3, "no dataset nowhere", ".idx"),
        (["--device", "tpu"], 2, "no device 'tpu'", "give one of them"),
        (["--device", "npu"], 4, "device npu cannot be used", ""),
        (["--nproc", "0"], 2, "--nproc", ""),
        (["--fast"], 2, "--fast", ""),
    ],
)
def test_exit_codes(recipe: Path, words: list[str], code: int, error: str, hint: str) -> None:
    done = jumar_train("pretrain", recipe, *words)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert error in done.stderr
    assert hint in done.stderr
    assert "Traceback" not in done.stderr
    run = recipe.parent / "run/exit.json"
    if code in (3, 4) or "tpu" in words:  # the recipe is read, and names a directory
        assert json.loads(run.read_text())["code"] == code


def test_no_recipe(tmp_path: Path) -> None:
    done = jumar_train("pretrain", tmp_path / "none.yaml")
    assert (done.returncode, done.stderr) == (
        2,
        f"error: {tmp_path / 'none.yaml'} does not exist\nhint: give the path of a YAML or TOML file\n",
    )


def test_every_fault_is_told_once(recipe: Path) -> None:
    done = jumar_train("pretrain", recipe, "--set", "optim.lr=0", "--set", "train.steps=0", "--set", "load.iteration=3")
    assert done.returncode == Exit.INPUT
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(set(errors)) == 3
    assert done.stderr.count("hint: ") == 3


def test_warnings_are_told(recipe: Path) -> None:
    done = jumar_train("pretrain", recipe, "--dry-run", "--set", "save.path=null")
    assert done.returncode == 0
    assert done.stderr == "warning: nothing is saved: save.path is not set; set save.path=runs/NAME to keep what is trained\n"


def test_under_torchrun_rank_0_speaks(recipe: Path) -> None:
    """Every rank exits with the code; one of them says why."""
    ranks = [
        jumar_train("pretrain", recipe, "--set", "parallel.tp=3", RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
        for rank in range(2)
    ]
    assert [done.returncode for done in ranks] == [3, 3]
    assert ["error: " in done.stderr for done in ranks] == [True, False]
    assert json.loads((recipe.parent / "run/exit.json").read_text())["rank"] == 0


def test_what_all_ranks_find_is_said_once(tmp_path: Path) -> None:
    """A rank that another was quicker than is silent, unless it has something else to say, or nobody spoke."""
    from jumar.schema.errors import ToolError
    from jumar.train_core.start import _said

    here = ExitFile(tmp_path)
    assert _said(ToolError("step 3: the loss is nan"), 1, False, here) is None
    ExitFile(tmp_path).write(3, "step 3: the loss is nan", 0)
    assert _said(ToolError("step 3: the loss is nan"), 1, False, here) == 3
    assert _said(ToolError("a file is damaged"), 1, False, here) is None


def test_nproc_and_torchrun_contradict(recipe: Path) -> None:
    done = jumar_train("pretrain", recipe, "--nproc", "4", RANK="0", WORLD_SIZE="2")
    assert done.returncode == Exit.INPUT
    assert "torchrun starts the ranks" in done.stderr


def test_a_shadowed_engine_is_refused(tmp_path: Path, recipe: Path) -> None:
    core = tmp_path / "Megatron-LM/megatron/core"
    core.mkdir(parents=True)
    (core / "__init__.py").touch()
    done = jumar_train(
        "pretrain", recipe, PYTHONPATH=os.pathsep.join((str(tmp_path / "Megatron-LM"), os.environ.get("PYTHONPATH", "")))
    )
    assert done.returncode == Exit.ENVIRONMENT
    assert f"remove {tmp_path / 'Megatron-LM'} from PYTHONPATH" in done.stderr


def test_a_patched_engine_is_refused(tmp_path: Path, recipe: Path) -> None:
    """mindspeed imported by sitecustomize, as its installation guides have it."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/mindspeed.py").touch()
    (tmp_path / "site/sitecustomize.py").write_text("import mindspeed\n")
    done = jumar_train("pretrain", recipe, PYTHONPATH=os.pathsep.join((str(tmp_path / "site"), os.environ.get("PYTHONPATH", ""))))
    assert done.returncode == Exit.ENVIRONMENT
    assert f"{tmp_path / 'site/sitecustomize.py'} imports it" in done.stderr


def test_doctor() -> None:
    done = jumar_train("doctor", "--device", "cpu")
    assert done.returncode == 0
    assert "megatron-core" in done.stdout
    told = json.loads(jumar_train("doctor", "--device", "npu", "--json").stdout)
    assert told["ok"] is False
    assert {"name", "status", "got", "expected", "hint"} == set(told["checks"][0])


def test_a_doctor_who_finds_something_says_4() -> None:
    assert jumar_train("doctor", "--device", "npu").returncode == Exit.ENVIRONMENT
