"""examples/recipes: each command that a recipe's head names resolves, fits its model, and takes the memory that the head says.

The models' config.json stand here with the published sizes; the data are stand-ins.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from jobs import model_dir, texts, token_file
from jumar.schema.indexed import IndexedWriter
from jumar.schema.recipe import apply_set, read_file, validate
from jumar.schema.registry import family_of
from jumar.train_core.checks import check
from jumar.train_core.cli import app
from jumar.train_core.estimate import ranks, whole_parameters
from jumar.train_core.job import Job, Task, resolve
from jumar.train_core.recipe import Recipe
from model_sizes import PARAMETERS, SIZES

EXAMPLES = Path(__file__).parents[3] / "examples"
RECIPES = EXAMPLES / "recipes"
ROOM_GIB = {"NPU 64 GB": 0.9 * 64, "GPU 80 GB": 0.9 * 80, "CPU": 16.0}
"""What tensors may take: the rest is the device's own, its libraries' workspaces and fragmentation."""
ROW = re.compile(r"^#   (\d+) x (.+?)  +(\d+) GiB  +(.*)$", re.MULTILINE)


@dataclass
class Row:
    """A line of a recipe's head: a number of devices, the estimate, the command."""

    recipe: str
    devices: int
    device: str
    gib: int
    command: str
    sets: list[str] = field(default_factory=list)

    @property
    def ranks(self) -> int:
        """As the command says: a node is 8 devices."""
        for pattern, each in ((r"--nproc (\d+)", 1), (r"--nodes (\d+)", 8)):
            if found := re.search(pattern, self.command):
                return int(found[1]) * each
        return 1

    @property
    def task(self) -> Task:
        return "sft" if f"sft {self.recipe}" in self.command else "pretrain"


def rows(recipe: str) -> list[Row]:
    found = [
        Row(recipe, int(n), device, int(gib), command)
        for n, device, gib, command in ROW.findall((RECIPES / recipe).read_text(encoding="utf-8"))
    ]
    for row in found:
        words = shlex.split(row.command)
        row.sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    return found


NAMES = sorted(path.name for path in RECIPES.iterdir())
ROWS = [row for name in NAMES for row in rows(name)]


def values_of(row: Row) -> dict[str, Any]:
    values = read_file(RECIPES / row.recipe)
    for item in row.sets:
        apply_set(values, item)
    return values


def model_of(values: dict[str, Any]) -> str:
    return str(values.get("load", values.get("model"))["path"])


def tuning_file(prefix: Path, rows: int, length: int) -> Path:
    """A packed tuning dataset: two conversations a row."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    half = length // 2
    contents = {
        "input_ids": np.arange(length) % 131,
        "labels": np.arange(length) % 131,
        "attention_mask": np.repeat([1, 2], [half, length - half]),
    }
    for key, row in contents.items():
        with IndexedWriter(prefix.with_name(f"{prefix.name}_packed_{key}_document"), np.int32) as writer:
            for _ in range(rows):
                writer.add(row.astype(np.int32))
    return prefix


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with each model's config.json and data of both kinds."""
    folder = tmp_path_factory.mktemp("examples")
    for name, (family, sizes) in SIZES.items():
        model_dir(folder / name, family, **sizes)
    token_file(folder / "corpus", documents=1700, length=1000)
    return folder


def example(row: Row, stand_ins: Path, folder: Path) -> Job:
    """The job of a row, its paths led to stand-ins. The recipe's own numbers stay."""
    values = values_of(row)
    model, data = str(stand_ins / model_of(values)), values["data"]
    values["model"] = values.get("model", {}) | {"path": model}
    if "load" in values:
        values["load"]["path"] = model
    prefix = stand_ins / "corpus"
    if row.task == "sft":
        prefix = tuning_file(folder / "chat", 96, data["seq_len"])
    for part in ("train", "valid"):
        if isinstance(data.get(part), list):
            data[part] = [source | {"prefix": str(prefix)} for source in data[part]]
        elif part in data:
            data[part] = str(prefix)
    values["save"]["path"] = str(folder / "run")
    return resolve(validate(Recipe, values, row.recipe), world=row.ranks, device="cpu", task=row.task)


def test_every_class_is_here_for_every_device() -> None:
    """Each recipe is a row at least; its own name stands in its commands; both kinds of device are there, at 8 and at 32."""
    assert all(rows(name) for name in NAMES)
    assert {(row.device, row.devices) for row in ROWS} >= {(d, n) for d in ("NPU 64 GB", "GPU 80 GB") for n in (8, 32)}
    models = {model_of(values_of(row)) for row in ROWS}
    assert models == set(SIZES)
    for task in ("pretrain", "sft"):
        assert {row.devices for row in ROWS if row.task == task and row.device != "CPU"} >= {8, 32}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.recipe}-{row.devices}-{row.device}-{len(row.sets)}")
def test_a_command_fits_its_model_and_its_devices(
    row: Row, stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jumar.train_core.checks._room", lambda path: None)  # of the machine that the tests run on
    assert row.ranks == row.devices
    assert f"{row.task} {row.recipe}" in row.command
    job = example(row, stand_ins, tmp_path)
    problems = list(check(job))
    assert not texts(problems), texts(problems)
    assert not texts(problems, warnings=True)
    gib = max(rank.total_bytes for rank in ranks(job)) / 2**30
    assert ceil(gib) == row.gib
    assert gib < ROOM_GIB[row.device]


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_a_stand_in_has_the_published_size(name: str, stand_ins: Path) -> None:
    family = family_of(SIZES[name][0])
    config = json.loads((stand_ins / name / "config.json").read_text(encoding="utf-8"))
    assert whole_parameters(family, family.spec(config)) == PARAMETERS[name]


def test_states_of_the_large_ones_do_not_fit_fewer_devices() -> None:
    """What the heads say of 18 bytes a parameter."""
    for recipe, model, gib, devices in (
        ("32b-pretrain.yaml", "Qwen3-32B", 549, 8 * 64),
        ("70b-pretrain.yaml", "Llama-3.1-70B", 1183, 16 * 64),
        ("moe-30b-pretrain.yaml", "Qwen3-30B-A3B", 512, 8 * 64 * 0.9),
    ):
        assert round(PARAMETERS[model] * 18 / 2**30) == gib > devices
        assert f"{gib} GiB" in (RECIPES / recipe).read_text(encoding="utf-8")


def test_a_recipe_by_its_command(stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One as it is typed, with its real number of ranks."""
    monkeypatch.setattr("jumar.train_core.checks._room", lambda path: None)
    sets = (f"load.path={stand_ins / 'Llama-3.1-70B'}", f"data.train={stand_ins / 'corpus'}", f"save.path={tmp_path / 'run'}")
    words = ["pretrain", str(RECIPES / "70b-pretrain.yaml"), "--dry-run", "--nproc", "32"]
    done = CliRunner().invoke(app, [*words, *(word for item in sets for word in ("--set", item))])
    assert done.exit_code == 0, done.output
    assert "ranks: 32, tp: 8, pp: 4" in done.output
    assert "70,553,706,496 parameters" in done.output


def test_the_example_of_the_page_is_the_one_here() -> None:
    page = (RECIPES.parents[1] / "docs/train.md").read_text(encoding="utf-8")
    text = (RECIPES / "tiny-cpu.yaml").read_text(encoding="utf-8")
    assert text[text.index("model:") :] in page


@pytest.mark.parametrize("page", ["docs/train.md", "docs/zh/train.md"])
def test_the_table_of_the_page_has_the_numbers_of_the_heads(page: str) -> None:
    cells: dict[tuple[str, str], dict[tuple[str, int], int]] = {}
    for row in ROWS:
        if row.devices >= 8:
            cells.setdefault((row.recipe, model_of(values_of(row))), {})[row.device, row.devices] = row.gib
    columns = [(device, n) for device in ("NPU 64 GB", "GPU 80 GB") for n in (8, 32)]
    wanted = [
        f"| `{recipe}` | {model} | {' | '.join(str(found.get(column, '-')) for column in columns)} |"
        for (recipe, model), found in cells.items()
    ]
    lines = (EXAMPLES.parent / page).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("| `") and ".yaml` |" in line and "sbatch" not in line] == wanted


def test_recipes_are_plain_yaml() -> None:
    for name in NAMES:
        assert yaml.safe_load((RECIPES / name).read_text(encoding="utf-8"))["save"]["path"] == (
            f"runs/{name.removesuffix('.yaml')}" if name != "tiny-cpu.yaml" else "runs/first"
        )
