"""Commands of ours: flags that become options, and the line to type."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence

from jumar.chain.facts import Facts
from jumar.chain.jobs import Flag, Job
from jumar.chain.tables import Rule, tables
from jumar.chain.verdicts import (
    Outcome,
    Unreadable,
    Verdict,
    by_table,
    real,
    text,
    verdict,
    where_nothing_is_trained,
    whole,
    words,
)

Value = str | bool | list[str]
Rules = Mapping[str, Callable[[Facts, Flag], Outcome]]
Classed = tuple[tuple[Verdict, ...], dict[str, Value]]


def option(name: str, value: Value, why: str = "") -> Outcome:
    """An option with its value (True: none; a list: once for each), or a word of the command where the name is no option."""
    return Outcome("mapped", " ".join(_words(name, value)), why, {name: value})


def _words(name: str, value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    named = [name] if name.startswith("-") else []
    return [word for each in values for word in (*named, *([] if each is True else [quoted(str(each))]))]


def quoted(word: str) -> str:
    """A word as a shell takes it; variables that stay unknown keep their dollar."""
    return word if word.startswith("$") and word[1:].isidentifier() else shlex.quote(word)


def typed(rule: Rule, flag: Flag) -> Outcome:
    how = rule.how
    if how.startswith("= "):
        return option(rule.ours, how[2:])
    if how == "flag":
        return option(rule.ours, True)
    if how == "many":
        return option(rule.ours, words(flag))
    if how == "int":
        return option(rule.ours, str(whole(flag)))
    if how == "float":
        real(flag)
    return option(rule.ours, text(flag))


def classed(
    job: Job,
    rules: Rules,
    facts: Facts,
    amend: Callable[[Outcome], Outcome] = lambda outcome: outcome,
    ranks: str = "one process does it",
) -> Classed:
    """A verdict for every flag of a job, and the options that they become.

    amend: what the command makes of a mapped one; ranks: why the launcher's flags have no effect.
    """
    verdicts: list[Verdict] = []
    options: dict[str, Value] = {}
    own, trains = tables()[job.table].rules, tables()["training"].rules
    for flag in (*job.launcher, *job.flags):
        outcome = by_table(flag, job)
        if flag.rule is not None:
            if flag in job.launcher:
                outcome = outcome or Outcome("no effect", why=ranks)
            elif own.get(flag.name) is not flag.rule and trains.get(flag.name) is flag.rule:
                outcome = where_nothing_is_trained(flag.rule)
        outcome = outcome or amend(_mapped(facts, flag, rules))
        for name, value in outcome.sets.items():
            assert isinstance(value, str | bool | list)
            options[name] = value
        verdicts.append(verdict(flag, outcome))
    return tuple(verdicts), options


def _mapped(facts: Facts, flag: Flag, rules: Rules) -> Outcome:
    rule = flag.rule
    assert rule is not None
    try:
        if rule.how.startswith("by "):
            return rules[rule.how[3:]](facts, flag)
        return typed(rule, flag)
    except Unreadable as fault:
        return Outcome("refused", why=str(fault))


def line(words_: Sequence[str], options: Mapping[str, Value], front: Iterable[str] = ()) -> str:
    """The command: words, those of `front` among the options in this order, then the options."""
    first = [name for name in front if name in options]
    parts = [" ".join(quoted(word) for word in words_)]
    parts += [" ".join(_words(name, options[name])) for name in (*first, *(name for name in options if name not in first))]
    return " ".join(parts)
