"""The commands of a script that train, convert, prepare, generate or evaluate, with their flags."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from jumar.chain.programs import place
from jumar.chain.shell.files import PASSED_OVER, WRAPPERS
from jumar.chain.shell.reader import Script, Started
from jumar.chain.shell.values import Argument
from jumar.chain.tables import Rule, Table, tables

CONTINUES = "it begins a command of its own, since the line before it does not end in a backslash; read as belonging to it"


SETTINGS = "variables alone"
SOURCED = "it starts nothing: give the script that sources it, with what that takes as $1"
STARTERS = re.compile(r"(.*/)?(python[\d.]*|torchrun|msrun|accelerate|deepspeed)|\$\{?\w*PYTHON\w*\}?", re.IGNORECASE)
"""What starts a program, with flags of the launcher's own before it."""


MPI = ("mpirun", "mpiexec")


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of a command.

    name:   as the tables spell it; written: as it stands in the script
    rule:   None: no table has it; near: names alike, then
    extra:  words behind it that it does not take
    """

    name: str
    written: str
    values: tuple[Argument, ...]
    line: int
    rule: Rule | None = None
    near: tuple[str, ...] = ()
    extra: tuple[Argument, ...] = ()

    @property
    def text(self) -> str:
        return " ".join(value.text for value in self.values)

    @property
    def unknown(self) -> tuple[str, ...]:
        """What of its values could not be expanded."""
        return tuple(text for value in self.values for text in value.unknown)


@dataclass(frozen=True, slots=True)
class Job:
    """A command that is migrated.

    table: of its flags, which says the tool; loose: words that belong to no flag; refused: why it is, as a whole
    wrapper: the program before it that starts it elsewhere or watches it, such as srun
    """

    table: str
    program: str
    line: int
    launcher: tuple[Flag, ...]
    flags: tuple[Flag, ...]
    loose: tuple[Argument, ...] = ()
    refused: str = ""
    wrapper: str = ""

    def last(self, name: str) -> Flag | None:
        """A flag by its name; of several the last, as argparse takes it."""
        return next((flag for flag in reversed((*self.launcher, *self.flags)) if flag.name == name), None)


def jobs(script: Script) -> tuple[list[Job], list[tuple[int, str]]]:
    """The jobs of a script, and notes of commands that are none."""
    found: list[Job] = []
    notes: list[tuple[int, str]] = []
    words: list[tuple[Argument, ...]] = []
    for command in script.commands:
        if command.words[0].text.startswith("--") and words:  # a blank line broke it off
            notes.append((command.line, CONTINUES))
            words[-1] = (*words[-1], *command.words)
        elif place(command.words) is not None:
            words.append(command.words)
        elif (other := _other(command)) is not None:
            found.append(other)
        elif _program(command.words) and any(word.text.startswith("--") for word in command.words):
            notes.append(
                (command.line, f"{_program(command.words)} is no program of the two projects that is known here: passed over")
            )
    found += [_job(each) for each in words]
    if words:
        notes += _untaken(script)
    return sorted(dict.fromkeys(found), key=lambda job: job.line), notes


def _untaken(script: Script) -> Iterator[tuple[int, str]]:
    """Notes of variables whose flags no command takes."""
    taken = {word.text for command in script.commands for word in command.words}
    for name, words in script.settings:
        flags = [word for word in words if word.text.startswith("--")]
        if not taken & {word.text for word in flags}:
            yield flags[0].line, f"${name} holds flags, and no command takes it: {' '.join(word.text for word in flags)}"


def _program(words: Sequence[Argument]) -> str:
    if words[0].text.rpartition("/")[2] in PASSED_OVER:
        return ""
    return next((word.text for word in words if word.text.endswith(".py")), "")


def _other(command: Started) -> Job | None:
    """Ray and pip: told of, and nothing is made of them."""
    name = command.words[0].text.rpartition("/")[2]
    table = {"ray": "ray", "pip": "pip", "pip3": "pip"}.get(name)
    if table is None or not any(word.text.startswith("--") for word in command.words):
        return None
    flags, _ = parted(command.words[1:], [tables()[table]])
    return Job(table, name, command.line, (), tuple(replace(flag, extra=()) for flag in flags))


def _job(words: tuple[Argument, ...]) -> Job:
    found = place(words)
    assert found is not None
    at, program = found
    start = next((i for i in reversed(range(at)) if STARTERS.fullmatch(words[i].text)), 0)
    ranks = _mpi(words[: start or at])
    before = [
        name for word in words[:start] if (name := word.text.rpartition("/")[2]) in WRAPPERS and not (ranks and name in MPI)
    ]
    launcher, _ = parted(words[start:at], [tables()["launchers"]])
    flags, loose = parted(words[at + 1 :], [tables()[name] for name in (program.table, *program.more)])
    return Job(
        program.table,
        words[at].text,
        words[at].line,
        (*ranks, *(flag for flag in launcher if flag.written.startswith("--"))),
        tuple(flags),
        tuple(loose),
        program.refused,
        next(iter(before), ""),
    )


def _mpi(words: Sequence[Argument]) -> tuple[Flag, ...]:
    """`mpirun -np 4`: the ranks, which the command here starts itself."""
    at = next((i for i, word in enumerate(words) if word.text.rpartition("/")[2] in MPI), len(words))
    said = next((i for i, word in enumerate(words) if i > at and word.text in ("-np", "--np", "-n")), len(words))
    name = "--nproc_per_node"
    return tuple(
        Flag(name, words[said].text, (count,), count.line, tables()["launchers"].rules[name]) for count in words[said + 1 :][:1]
    )


def settings_job(script: Script) -> Job | None:
    """The flags in the variables of a script that starts nothing, for another that sources it; None where there are none."""
    known = [tables()[name] for name in ("training", "inference", "reinforced", "modelopt", "multimodal", "papers", "launchers")]
    flags, _ = parted([word for _, words in script.settings for word in words], known)
    flags = [flag for flag in flags if flag.written.startswith("--")]
    if sum(flag.rule is not None for flag in flags) * 2 <= len(flags):
        return None
    return Job("settings", SETTINGS, flags[0].line, (), tuple(replace(flag, extra=()) for flag in flags), refused=SOURCED)


def parted(words: Sequence[Argument], known: list[Table]) -> tuple[list[Flag], list[Argument]]:
    """Flags with their values, as argparse parts them; and the words before the first."""
    loose: list[Argument] = []
    found: list[Flag] = []
    for word in words:
        if re.match(r"--\w|-[A-Za-z]", word.text):
            written, sign, value = word.text.partition("=")
            name, rule, near = look_up(written, known)
            values = (word._replace(text=value),) if sign else ()
            found.append(Flag(name, written, values, word.line, rule, near))
        elif found:
            found[-1] = replace(found[-1], values=(*found[-1].values, word))
        else:
            loose.append(word)
    return [_fitted(flag) for flag in found], loose


def look_up(written: str, known: list[Table]) -> tuple[str, Rule | None, tuple[str, ...]]:
    """A flag's name and rule; as argparse does, also of a beginning that is of one name alone. Else names alike."""
    names = [name for table in known for name in table.rules]
    name = written.split(".")[0] if "." in written and known[0].name == "fsdp2" else written
    starting = [each for each in dict.fromkeys(names) if each.startswith(name)]
    if name not in names and len(starting) == 1 and len(name) > 4:
        name = starting[0]
    for table in known:
        spelled = f"--{name[2:].replace('-', '_')}" if table.name == "launchers" else name
        if spelled in table.rules:
            return spelled, table.rules[spelled], ()
    plain = {each.replace("_", "-"): each for each in reversed(names)}
    near = difflib.get_close_matches(written.replace("_", "-"), plain, n=3, cutoff=0.75)
    return written, None, tuple(plain[each] for each in near)


def _fitted(flag: Flag) -> Flag:
    """With as many values as its rule says; what is left stands in `extra`."""
    takes = flag.rule.takes if flag.rule is not None else "X..."
    if takes in ("N", "X") and len(flag.values) > 1 and all(value.text.endswith(",") for value in flag.values[:-1]):
        together = "".join(value.text for value in flag.values)  # 11, 13, 19: blanks that were not meant to part it
        return replace(flag, values=(flag.values[0]._replace(text=together),))
    most = {"": 0, "[X]": 1}.get(takes, len(flag.values) if takes.endswith("...") else 1)
    return replace(flag, values=flag.values[:most], extra=flag.values[most:])


def all_flags(job: Job) -> Iterator[Flag]:
    yield from job.launcher
    yield from job.flags
