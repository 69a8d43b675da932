"""What becomes of each flag: its class, what it is here, and why."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from jumar.chain.jobs import Flag, Job, all_flags
from jumar.chain.tables import Class, Rule, case_of

NOT_TRAINED = "nothing is trained here"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A flag's class. ours: the recipe field, option or variable with its value. why: of all but what is mapped."""

    flag: str
    values: str
    line: int
    kind: Class
    ours: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rule makes of a mapped flag.

    sets: recipe fields or options, with their values; environment: variables before the command
    """

    kind: Class = "mapped"
    ours: str = ""
    why: str = ""
    sets: dict[str, object] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


class Unreadable(ValueError):
    """A value that is not what the flag takes."""


def verdict(flag: Flag, outcome: Outcome) -> Verdict:
    return Verdict(flag.written, flag.text, flag.line, outcome.kind, outcome.ours, outcome.why)


def by_table(flag: Flag, job: Job, facts: Iterable[str] = ()) -> Outcome | None:
    """The class of a flag that its table alone decides; None for one that is mapped."""
    rule = flag.rule
    if rule is None:
        near = f"did you mean {' or '.join(flag.near)}?" if flag.near else "no table has it: it is neither passed on nor dropped"
        return Outcome("unknown", why=near)
    later = next((each for each in reversed(list(all_flags(job))) if each.name == flag.name), flag)
    if later is not flag and rule.kind != "refused":
        return Outcome("no effect", why=f"given again in line {later.line}, which holds")
    if rule.cases:
        kind, why = case_of(rule, flag.text, facts)
        return Outcome(kind, why=why)
    return None if rule.kind == "mapped" else Outcome(rule.kind, why=rule.why)


def where_nothing_is_trained(rule: Rule) -> Outcome:
    """What a flag of training is to inference and evaluation."""
    if rule.config:
        return Outcome("default", why="the model's config.json says it")
    if rule.model or (rule.kind == "no effect" and rule.why.startswith("each device")):
        return Outcome(rule.kind, why=rule.why)
    return Outcome("no effect", why=NOT_TRAINED)


# --- values


def whole(flag: Flag) -> int:
    return int(_number(flag, int, "a whole number"))


def real(flag: Flag) -> float:
    return _number(flag, float, "a number")


def _number(flag: Flag, kind: type[int] | type[float], wanted: str) -> float:
    if flag.unknown:
        names = ", ".join(dict.fromkeys(flag.unknown))
        raise Unreadable(f"{names} is not known before the script runs: give it, --var NAME=VALUE or as an argument")
    try:
        number = kind(flag.text)
    except ValueError:
        got = repr(flag.text) if flag.values else "nothing"
        raise Unreadable(f"expected {wanted}, got {got}") from None
    if not math.isfinite(number):
        raise Unreadable(f"expected {wanted}, got {flag.text!r}")
    return number


def words(flag: Flag) -> list[str]:
    return [value.text for value in flag.values]


def text(flag: Flag) -> str:
    if not flag.values or not flag.text:
        raise Unreadable("expected a value, got nothing")
    return flag.text


# --- what comes of a job


@dataclass(frozen=True, slots=True)
class Made:
    """What a job is here.

    commands: lines to type; files: name -> content, to be written beside
    notes:    (line, text) of what is to be known; faults: what keeps it from being made, with what to do
    """

    job: Job
    verdicts: tuple[Verdict, ...]
    commands: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)
    notes: tuple[tuple[int, str], ...] = ()
    faults: tuple[str, ...] = ()

    def of(self, kind: Class) -> list[Verdict]:
        return [each for each in self.verdicts if each.kind == kind]
