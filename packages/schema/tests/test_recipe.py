"""Recipes: files, `--set`, types, and how mistakes are answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jumar.schema.errors import Exit, ToolError
from jumar.schema.parallel import ParallelLayout
from jumar.schema.recipe import apply_set, load_recipe, read_file, validate


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    steps: int = 10
    lr: float = 1e-3
    path: str | None = "here"
    resume: bool = True
    schedule: Literal["cosine", "linear"] = "cosine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    name: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    train: Train = Train()
    warmup: Train | None = None
    sources: tuple[Source, ...] = ()
    parallel: ParallelLayout = field(default_factory=ParallelLayout)
    extra: dict[str, Any] = field(default_factory=dict)


def load(*sets: str, text: str | None = None, tmp_path: Path | None = None, suffix: str = ".yaml") -> Recipe:
    path = None
    if text is not None:
        assert tmp_path
        path = tmp_path / f"recipe{suffix}"
        path.write_text(text, encoding="utf-8")
    return load_recipe(Recipe, path, sets)


YAML = """
train: {steps: 3, lr: 1e-4, path: null}
sources:
  - {name: a, weight: 2}
  - name: b
parallel: {tp: 2, layers_per_stage: [1, 3], pp: 2}
"""
TOML = """
[train]
steps = 3
lr = 1e-4
[[sources]]
name = "a"
weight = 2
[[sources]]
name = "b"
[parallel]
tp = 2
pp = 2
layers_per_stage = [1, 3]
"""


def test_without_a_file_all_is_default() -> None:
    assert load() == Recipe()


@pytest.mark.parametrize("text, suffix, path", [(YAML, ".yaml", None), (YAML, ".yml", None), (TOML, ".toml", "here")])
def test_a_file_is_read_by_its_suffix(text: str, suffix: str, path: str | None, tmp_path: Path) -> None:
    assert load(text=text, tmp_path=tmp_path, suffix=suffix) == Recipe(
        train=Train(steps=3, lr=1e-4, path=path),
        sources=(Source(name="a", weight=2.0), Source(name="b")),
        parallel=ParallelLayout(tp=2, pp=2, layers_per_stage=(1, 3)),
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "---\n"])
def test_an_empty_file_is_all_default(text: str, tmp_path: Path) -> None:
    assert load(text=text, tmp_path=tmp_path) == Recipe()


@pytest.mark.parametrize(
    "item, field_name, value",
    [
        ("train.steps=20", "steps", 20),
        ("train.steps=0", "steps", 0),
        ("train.steps = 7", "steps", 7),
        ("train.lr=1e-5", "lr", 1e-5),
        ("train.lr=0.0", "lr", 0.0),
        ("train.path=null", "path", None),
        ("train.path=a=b", "path", "a=b"),
        ("train.path=", "path", ""),
        ("train.path=''", "path", ""),
        ("train.path='7'", "path", "7"),
        ("train.resume=false", "resume", False),
        ("train.schedule=linear", "schedule", "linear"),
    ],
)
def test_set_reads_a_value_as_yaml(item: str, field_name: str, value: object) -> None:
    """Also those that are false in a truth test."""
    assert getattr(load(item).train, field_name) == value
    assert type(getattr(load(item).train, field_name)) is type(value)


def test_set_lies_over_the_file_and_the_last_one_counts(tmp_path: Path) -> None:
    made = load("train.steps=4", "train.steps=5", "parallel.tp=4", text=YAML, tmp_path=tmp_path)
    assert (made.train.steps, made.train.lr, made.parallel.tp, made.parallel.pp) == (5, 1e-4, 4, 2)


def test_set_makes_sections_that_are_not_there(tmp_path: Path) -> None:
    assert load("warmup.steps=4").warmup == Train(steps=4)
    assert load("train.steps=4", text="train:\n  # steps: 3\n", tmp_path=tmp_path).train.steps == 4
    assert load("sources=[]", "extra={}", "extra.deep.er=1").extra == {"deep": {"er": 1}}


@given(
    st.dictionaries(
        st.sampled_from("abc"), st.one_of(st.none(), st.booleans(), st.integers(), st.lists(st.integers())), min_size=1
    )
)
def test_every_value_comes_through_set(values: dict[str, object]) -> None:
    made: dict[str, Any] = {}
    for key, value in values.items():
        apply_set(made, f"x.{key}={'null' if value is None else str(value).lower()}")
    assert made == {"x": values}


@pytest.mark.parametrize(
    "item, key, hint",
    [
        ("train.stps=3", "train.stps", "did you mean train.steps?"),
        ("trian.steps=3", "trian", "did you mean train?"),
        ("warmup.step=3", "warmup.step", "did you mean warmup.steps?"),
        ("parallel.expert=2", "parallel.expert", "known here: tp, pp, vpp"),
        ("sources=[{name: a, wieght: 2}]", "sources.wieght", "did you mean sources.weight?"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(item: str, key: str, hint: str) -> None:
    with pytest.raises(ToolError) as caught:
        load(item)
    assert caught.value.message == f"--set: unknown key {key}"
    assert (caught.value.hint or "").startswith(hint)
    assert caught.value.code == Exit.USAGE


@pytest.mark.parametrize(
    "item, message, hint",
    [
        ("train.steps=many", 'train.steps is "many", expected int', "--set train.steps=1"),
        ("train.steps=1.5", "train.steps is 1.5, expected int", "--set train.steps=1"),
        ("train.resume=perhaps", 'train.resume is "perhaps", expected bool', "--set train.resume=true"),
        ("train.path=7", "train.path is 7, expected str or null", "--set train.path=NAME"),
        ("train.schedule=zigzag", 'train.schedule is "zigzag", expected cosine | linear', "--set train.schedule=cosine"),
        ("train=3", "train is 3, expected {steps, lr, path, resume, schedule}", "--set train='{steps: 1}'"),
        ("sources=[{weight: 1}]", "sources.0.name is missing, expected str", "name: NAME"),
        ("sources=[a, b]", 'sources is ["a", "b"], expected list of {name, weight}', "--set sources='[{name: NAME}]'"),
        ("parallel.layers_per_stage=[1, x]", 'layers_per_stage is [1, "x"], expected list of int', "layers_per_stage='[1, 1]'"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_its_key(item: str, message: str, hint: str) -> None:
    with pytest.raises(ToolError) as caught:
        load(item)
    assert message in caught.value.message
    assert "; " not in caught.value.message, "one fault, one sentence"
    assert hint in (caught.value.hint or "")
    assert caught.value.code == Exit.USAGE


def test_a_null_is_the_default_where_a_field_has_none(tmp_path: Path) -> None:
    """Of --set alone: in a file it is a value that was forgotten."""
    made = load("train.steps=null", "train.path=null", "extra.a=null", text="train: {steps: 3, lr: 1e-4}", tmp_path=tmp_path)
    assert made == Recipe(train=Train(lr=1e-4, path=None), extra={"a": None})
    with pytest.raises(ToolError, match="steps is null, expected int"):
        load(text="train: {steps: null}", tmp_path=tmp_path)
    with pytest.raises(ToolError, match=r"unknown key train\.stps"):
        load("train.stps=null")


@pytest.mark.parametrize(
    "sets, expected",
    [
        (["train.lr=2"], {"lr": 2.0}),
        (["train.steps=5"], {"steps": 5}),
        (["train.lr=null"], {"steps": 3}),
        (["train.lr=2", "train.steps=5"], {"lr": 2.0, "steps": 5}),
    ],
)
def test_one_of_two_fields_takes_the_other_out(sets: list[str], expected: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("train: {steps: 3}")
    made = load_recipe(Recipe, path, sets, instead=[("train.lr", "train.steps")])
    assert made == Recipe(train=Train(**expected))


@pytest.mark.parametrize(
    "item", ["train.steps", "=3", ".=3", "train.=3", "train..steps=3", "", "train.steps=[1", "train.steps.x=1"]
)
def test_a_set_that_cannot_be_read_is_quoted(item: str) -> None:
    with pytest.raises(ToolError) as caught:
        load("train.steps=1", item)
    assert f"--set {item!r}" in caught.value.message
    assert caught.value.code == Exit.USAGE


def test_a_layout_checks_itself_with_its_own_message() -> None:
    with pytest.raises(ToolError, match="tp=0: expected a positive whole number"):
        load("parallel.tp=0")


@pytest.mark.parametrize(
    "text, suffix, message",
    [
        ("- a\n- b\n", ".yaml", "a list, expected keys and values"),
        ("[]", ".yaml", "a list, expected keys and values"),
        ("false", ".yaml", "a bool, expected keys and values"),
        ("a: b: c", ".yaml", "not YAML"),
        ("!!python/object/apply:os.system ['true']", ".yaml", "not YAML"),
        ("train = [", ".toml", "recipe.toml"),
        ("[train]\nsteps = 1\nsteps = 2\n", ".toml", "recipe.toml"),
        ("3: 4", ".yaml", "unknown key 3"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(text: str, suffix: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ToolError) as caught:
        load(text=text, tmp_path=tmp_path, suffix=suffix)
    assert message in caught.value.message
    assert f"recipe{suffix}" in caught.value.message
    assert caught.value.code == Exit.USAGE


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name, message in ("absent.yaml", "does not exist"), ("binary.yaml", "is not a recipe"), ("", "is not a recipe"):
        with pytest.raises(ToolError, match=message) as caught:
            read_file(tmp_path / name)
        assert caught.value.code == Exit.USAGE


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("train:\n  steps: 3\nlog: {}\ntrain:\n  seed: 1\n")
    with pytest.raises(ToolError, match=r"'train' stands in lines 1 and 4"):
        read_file(path)


@dataclass(frozen=True)
class Part:
    prefix: str
    weight: float = 1.0


@dataclass(frozen=True)
class Blended:
    train: str | tuple[Part, ...] | None = None


def test_a_key_inside_a_list_of_a_union_is_known_or_refused() -> None:
    with pytest.raises(ToolError, match=r"unknown key train\.weigth"):
        validate(Blended, {"train": [{"prefix": "a", "weigth": 2}]}, "here")
    assert validate(Blended, {"train": [{"prefix": "a", "weight": 2}]}, "here").train == (Part("a", 2.0),)


@dataclass(frozen=True)
class File:
    prefix: Path


@dataclass(frozen=True)
class Files:
    train: Path | tuple[File, ...] | None = None


@pytest.mark.parametrize(
    "values, message",
    [
        ({"train": ""}, "here: train is empty, expected path or list of {prefix} or null"),
        ({"train": [{"prefix": "a"}, {"prefix": ""}]}, "here: train.prefix is empty, expected path"),
    ],
)
def test_an_empty_path_is_not_the_working_directory(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ToolError) as caught:
        validate(Files, values, "here")
    assert (caught.value.message, caught.value.code) == (message, Exit.USAGE)
    assert "is a variable of your script not set?" in (caught.value.hint or "")
    assert validate(Files, {"train": "."}, "here").train == Path(".")
