"""What each flag of the two projects is here: the tables of flags/*.yaml, read once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from jumar.schema.recipe import read_file

Class = Literal["mapped", "default", "no effect", "refused", "unknown"]
CLASSES: tuple[Class, ...] = ("unknown", "refused", "mapped", "default", "no effect")
FLAG = re.compile(r"(--[\w.-]+)(?:[ \t]+(\[[A-Z]\]|[A-Z](?:\.\.\.)?)(?=\s|$))?")
FILES = ("training", "conversion", "preprocessing", "inference", "evaluation", "launchers")
OTHERS = "elsewhere"


@dataclass(frozen=True, slots=True)
class Rule:
    """What a flag is.

    takes: "" no value, "N" or "X" one, "X..." several, "[X]" one or none
    ours:  the recipe field, option, variable or word that it becomes, where it is mapped
    how:   a type, "= value" or "by RULE"
    cases: where its value decides: value ("else": any other) -> (class, why)
    config: the model's config.json says the same
    model: refused since no model here has it
    """

    flag: str
    takes: str
    kind: Class
    ours: str = ""
    how: str = ""
    why: str = ""
    cases: tuple[tuple[str, Class, str], ...] = ()
    config: bool = False
    model: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """The flags of a program. more: what else its file says, such as names of handlers."""

    name: str
    rules: Mapping[str, Rule]
    more: Mapping[str, Any]


@lru_cache(maxsize=1)
def tables() -> Mapping[str, Table]:
    """Every table by its name."""
    folder = Path(__file__).parent / "flags"
    found = {name: _table(name, read_file(folder / f"{name}.yaml")) for name in FILES}
    for name, content in read_file(folder / f"{OTHERS}.yaml").items():
        found[name] = _table(name, content)
    return found


SECTIONS = ("mapped", "depends", "default", "no effect", "refused")


def _table(name: str, content: Mapping[str, Any]) -> Table:
    rules: dict[str, Rule] = {}
    for rule in _rules(content):
        if rule.flag in rules:
            raise ValueError(f"flags/{name}.yaml: {rule.flag} stands there twice")
        rules[rule.flag] = rule
    return Table(name, rules, {key: value for key, value in content.items() if key not in SECTIONS})


def _rules(content: Mapping[str, Any]) -> Iterator[Rule]:
    for text, what in content.get("mapped", {}).items():
        flag, takes = _spelled(text)
        ours, how = _mapped(what)
        yield Rule(flag, takes, "mapped", ours, how)
    for text, cases in content.get("depends", {}).items():
        flag, takes = _spelled(text)
        yield Rule(flag, takes, "default", cases=tuple(_case(each) for each in cases), config=any("config" in c for c in cases))
    for kind in ("default", "no effect", "refused"):
        for group in content.get(kind, ()):
            for flag, takes in FLAG.findall(group["flags"]):
                why, model = group["why"], group.get("of") == "model"
                yield Rule(flag, takes, kind, why=why, config=bool(group.get("config")), model=model)


def _spelled(text: str) -> tuple[str, str]:
    found = FLAG.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no flag")
    return found[1], found[2] or ""


def _mapped(text: str) -> tuple[str, str]:
    """ "train.steps int" -> field and type; "the command by stage", "--dtype = bf16"."""
    for sign in (" = ", " by "):
        if sign in text:
            ours, _, how = text.partition(sign)
            return ours, f"{sign.strip()} {how}"
    ours, _, how = text.rpartition(" ")
    return ours, how


def _case(each: Mapping[Any, Any]) -> tuple[str, Class, str]:
    value = next(key for key in each if key not in ("why", "config"))
    return str(value), each[value], str(each["why"])


def case_of(rule: Rule, value: str, facts: Iterable[str] = ()) -> tuple[Class, str]:
    """The class of a flag whose value decides, and why. facts: what else holds, such as "tuning"."""
    for wanted, kind, why in rule.cases:
        if wanted == "else" or wanted in facts or _equal(wanted, value):
            return kind, why
    raise AssertionError(f"{rule.flag}: no case for {value!r}")


def _equal(wanted: str, value: str) -> bool:
    try:
        return float(wanted) == float(value)
    except ValueError:
        return wanted.lower() == value.lower()
