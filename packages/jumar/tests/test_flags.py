"""The tables of flags: every name in use has its class, and what it becomes exists."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer

from jumar.chain import answering, converting, preparing, training_rules
from jumar.chain.jobs import look_up
from jumar.chain.tables import case_of, tables
from jumar.ckpt_convert.cli import app as convert
from jumar.data_prep.cli import app as data
from jumar.eval.cli import app as evaluate
from jumar.infer.cli import app as infer
from jumar.train_core.recipe import Recipe

NAMES = (Path(__file__).parent / "names.txt").read_text().split()
"""Flags in public example scripts: MindSpeed-LLM 1.0.0 to 26.1.0, Megatron-LM 2.5 to core 0.15, and both heads of August 2026."""
RULES = [(name, rule) for name, table in tables().items() for rule in table.rules.values()]
APPS = {
    "conversion": convert,
    "preprocessing": data,
    "inference": infer,
    "evaluation": evaluate,
    "lm_eval": evaluate,
    "scores": evaluate,
}


def options(app: typer.Typer) -> set[str]:
    """The options of all commands."""
    group: Any = typer.main.get_command(app)
    return {option for command in group.commands.values() for parameter in command.params for option in parameter.opts}


def recipe_fields(kind: Any, prefix: str = "") -> set[str]:
    """Every dotted name of a recipe, sections among them."""
    found: set[str] = set()
    for each in fields(kind):
        found.add(prefix + each.name)
        hint = get_type_hints(kind)[each.name]
        inner = next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)
        if inner is not None:
            found |= recipe_fields(inner, f"{prefix}{each.name}.")
    return found


def test_there_are_many() -> None:
    assert len(NAMES) == len(set(NAMES)) == 855


def test_every_flag_in_use_has_its_class() -> None:
    unclassed = [name for name in NAMES if not any(look_up(name, [table])[1] for table in tables().values())]
    assert not unclassed


WAYS = {
    "training": training_rules.RULES,
    "launchers": training_rules.RULES,
    "conversion": converting.RULES,
    "preprocessing": preparing.RULES,
    "inference": answering.INFERENCE,
    "evaluation": answering.EVALUATION,
    "lm_eval": answering.LM_EVAL,
    "scores": answering.SCORES,
}


@pytest.mark.parametrize("table", tables())
def test_what_a_flag_becomes_exists(table: str) -> None:
    known = recipe_fields(Recipe) | {"the command", "JUMAR_COLLECTIVE_TIMEOUT_S"}
    if table in APPS:
        known = options(APPS[table])
    for rule in tables()[table].rules.values():
        if rule.kind != "mapped":
            assert rule.why or rule.cases, rule.flag
            continue
        if table == "training" or (rule.ours.startswith("--") and table in APPS):
            assert rule.ours in known, rule.flag
        if rule.how.startswith("by "):
            assert rule.how[3:] in WAYS[table], rule.flag
        elif not rule.how.startswith("= "):
            assert rule.how in ("int", "float", "text", "path", "flag", "many"), rule.flag


def test_what_is_refused_says_what_to_do() -> None:
    silent = [rule.flag for _, rule in RULES if rule.kind == "refused" and not any(sign in rule.why for sign in ":;,")]
    assert not silent


@pytest.mark.parametrize("key", tables()["training"].more["keys"])
def test_what_is_compared_with_config_json_is_of_the_architecture(key: str) -> None:
    assert tables()["training"].rules[key].config


def test_values_decide() -> None:
    rule = tables()["training"].rules["--attention-dropout"]
    assert case_of(rule, "0.0")[0] == "default"
    assert case_of(rule, "0.1")[0] == "refused"
    rule = tables()["training"].rules["--reset-position-ids"]
    assert case_of(rule, "", ["tuning"])[0] == "default"
    assert case_of(rule, "")[0] == "refused"


def test_a_beginning_is_a_flag_as_argparse_takes_it() -> None:
    known = [tables()["training"]]
    assert look_up("--num-layers-per-virtual-pipeline-stag", known)[0] == "--num-layers-per-virtual-pipeline-stage"
    assert look_up("--recompute-m", known)[1] is None  # of two
    name, rule, near = look_up("--tensor-model-paralel-size", known)
    assert (name, rule, near[0]) == ("--tensor-model-paralel-size", None, "--tensor-model-parallel-size")
