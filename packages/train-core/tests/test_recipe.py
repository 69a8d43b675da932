"""The recipe, and the text that `jumar-train schema` makes of it."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

from jumar.schema.errors import Exit, ToolError
from jumar.schema.recipe import load_recipe, validate
from jumar.train_core import recipe as sections
from jumar.train_core.recipe import EITHER, Parallel, Recipe, Source
from jumar.train_core.schema_text import described, json_schema, schema_text

KINDS = [kind for kind in vars(sections).values() if is_dataclass(kind) and kind is not Recipe]


def test_the_schema_is_the_default_recipe() -> None:
    assert validate(Recipe, yaml.safe_load(schema_text()), "schema") == Recipe()


def test_commented_sections_can_be_taken_in() -> None:
    text = schema_text().replace("recompute: null", "recompute:").replace("    # ", "    ")
    text = text.replace("project: ...", "project: p").replace("wandb: null", "wandb:")
    read = validate(Recipe, yaml.safe_load(text), "schema")
    assert read.features.recompute == sections.Recompute()
    assert read.log.wandb == sections.Wandb(project="p")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_is_explained(kind: type) -> None:
    """In its section's docstring, or by being a section that explains itself."""
    about, meanings = described(kind)
    assert about
    hints = get_type_hints(kind)
    silent = [f.name for f in fields(kind) if f.name not in meanings]
    assert [name for name in silent if not any(is_dataclass(t) for t in (hints[name], *get_args(hints[name])))] == []
    assert set(meanings) <= {f.name for f in fields(kind)}


def test_lines_of_the_schema() -> None:
    lines = schema_text().splitlines()
    assert "  seq_len: 4096  # tokens a sample; sft: of a packed row, and the most that a conversation may have (int)" in lines
    assert "  eps: 1.0e-08  # added to the root of the latter (float)" in lines
    assert "    # modules: [core_attn]  # of selective: what is computed again " in "\n".join(lines)
    assert any(line.startswith("  precision: bf16  # ") and line.endswith("(fp32 | bf16 | fp16)") for line in lines)


def test_json_schema_has_every_section() -> None:
    assert list(json_schema()["properties"]) == [f.name for f in fields(Recipe)]


@pytest.mark.parametrize(
    "sets, said",
    [
        (["parallel.ttp=2"], "unknown key parallel.ttp"),
        (["features.recompute.granularity=all"], "features.recompute.granularity"),
        (["train.steps=many"], "train.steps"),
        (["parallel.schedule=dualpipev"], "unknown key parallel.schedule"),
        (["parallel.tp_extend_ep=true"], "unknown key parallel.tp_extend_ep"),
        (["features.recompute.modules=[mlpp]"], "features.recompute.modules"),
    ],
)
def test_syntax_is_exit_2(sets: list[str], said: str) -> None:
    with pytest.raises(ToolError) as fault:
        load_recipe(Recipe, None, sets)
    assert fault.value.code == Exit.USAGE
    assert said in fault.value.message


def test_epochs_take_the_recipe_s_steps_out_and_the_other_way_round(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for text, sets, expected in (
        ("train: {steps: 7}", ["train.epochs=2"], sections.Train(epochs=2.0)),
        ("train: {epochs: 3}", ["train.steps=5"], sections.Train(steps=5)),
        ("train: {steps: 7}", ["train.steps=null", "train.epochs=2"], sections.Train(epochs=2.0)),
        ("train: {epochs: 3}", ["train.epochs=null"], sections.Train()),
        ("train: {steps: 7, epochs: 3}", [], sections.Train(steps=7, epochs=3.0)),
    ):
        path.write_text(text)
        assert load_recipe(Recipe, path, sets, instead=EITHER).train == expected


@pytest.mark.parametrize(
    "item, says, hint",
    [
        ("data.train=[a, b]", 'data.train is ["a", "b"], expected path or list of {prefix, weight}', "'[{prefix: PATH}]'"),
        ("save.hf=last", 'save.hf is "last", expected bool or end', "--set save.hf=true"),
        ("data.split=98", "data.split is 98, expected list of float or null", "--set data.split='[0.5, 0.5]'"),
    ],
)
def test_a_wrong_type_in_our_words(item: str, says: str, hint: str) -> None:
    with pytest.raises(ToolError) as fault:
        load_recipe(Recipe, None, [item])
    assert says in fault.value.message
    assert hint in (fault.value.hint or "")


def test_a_blend_and_numbers() -> None:
    given = load_recipe(Recipe, None, ["data.train=[{prefix: a, weight: 2}, {prefix: b}]", "parallel.layers_per_stage=[3, 5]"])
    assert given.data.train == (Source(prefix=Path("a"), weight=2.0), Source(prefix=Path("b")))
    assert given.parallel == Parallel(layers_per_stage=(3, 5))
