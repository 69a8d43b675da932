"""The commands of a script that train, convert, prepare, generate or evaluate, with their flags."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from jumar.chain.shell.reader import Script, Started
from jumar.chain.shell.values import Argument
from jumar.chain.tables import Rule, Table, tables

ENCODERS = "decoders alone are trained here: GPT, Mamba, hybrids"
OTHER_TASKS = "what this program does is not here: jumar-train pretrains and tunes language models on text"
PROGRAMS: tuple[tuple[str, str, str], ...] = (
    (
        r".*(multimodal|mimo|vlm|rl|retro|academic_paper_scripts|msdp|detxoify_lm|modelopt|post_training)/.*\.py",
        "training",
        OTHER_TASKS,
    ),
    (r"(train|inference)_fsdp2\.py", "fsdp2", ""),
    (r"(rlhf|ray)_gpt\.py|train_rl\.py", "rlhf", ""),
    (r".*(dequant|merge_experts).*\.py", "dequantise", ""),
    (r"pretrain_(bert|t5|ict|retro|vision_\w+|vlm|realm|biencoder|mimo)\.py", "training", ENCODERS),
    (r"(pre|post)train_\w+\.py|finetune_\w+\.py|pretrain\w*\.py", "training", ""),
    (r"convert_ckpt(_\w+)?\.py|checkpoint/convert(er)?\.py|checkpoint_util\.py", "conversion", ""),
    (r"preprocess_data\w*\.py|merge_datasets\.py", "preprocessing", ""),
    (r"inference\w*\.py|run_\w*text_generation\w*\.py|gpt_\w+_inference\w*\.py|generate_\w+\.py", "inference", ""),
    (r"evaluation\w*\.py", "evaluation", ""),
    (r"lm[_-]eval", "lm_eval", ""),
)
"""Program, its table of flags, and why it is refused as a whole."""
WITH_TRAINING = ("inference", "evaluation")
"""Programs that take the flags of training too."""
LAUNCHERS = ("torch.distributed.launch", "torch.distributed.run", "accelerate.commands.launch")
CONTINUES = "it begins a command of its own, since the line before it does not end in a backslash; read as belonging to it"


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
    """A command that is migrated. loose: words that belong to no flag. refused: why it is, as a whole."""

    table: str
    program: str
    line: int
    launcher: tuple[Flag, ...]
    flags: tuple[Flag, ...]
    loose: tuple[Argument, ...] = ()
    refused: str = ""

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
        elif _place(command.words) is not None:
            words.append(command.words)
        elif (other := _other(command)) is not None:
            found.append(other)
        elif any(word.text.startswith("--") for word in command.words) and _program(command.words):
            notes.append(
                (command.line, f"{_program(command.words)} is no program of the two projects that is known here: passed over")
            )
    found += [_job(each) for each in words]
    return sorted(dict.fromkeys(found), key=lambda job: job.line), notes


def _place(words: Sequence[Argument]) -> tuple[int, str, str] | None:
    """(position, table, why refused) of the program in a command."""
    for at, word in enumerate(words):
        name = word.text
        if at and words[at - 1].text == "-m" and name not in LAUNCHERS:
            name = "lm_eval" if name.startswith("lm_eval") else name.replace(".", "/") + ".py"
        for pattern, table, refused in PROGRAMS:
            if re.fullmatch(rf"(.*/)?({pattern})", name) and not name.startswith("-"):
                return at, table, refused
    return None


def _program(words: Sequence[Argument]) -> str:
    return next((word.text for word in words if word.text.endswith(".py")), "")


def _other(command: Started) -> Job | None:
    """Ray and pip: told of, and nothing is made of them."""
    name = command.words[0].text.rpartition("/")[2]
    table = {"ray": "ray", "pip": "pip", "pip3": "pip"}.get(name)
    if table is None or not any(word.text.startswith("--") for word in command.words):
        return None
    flags, _ = _flags(command.words[1:], [tables()[table]])
    return Job(table, name, command.line, (), tuple(flags))


def _job(words: tuple[Argument, ...]) -> Job:
    place = _place(words)
    assert place is not None
    at, table, refused = place
    known = [tables()[table], *([tables()["training"]] if table in WITH_TRAINING else [])]
    launcher, _ = _flags(words[:at], [tables()["launchers"]])
    flags, loose = _flags(words[at + 1 :], known)
    program = words[at].text
    launching = tuple(flag for flag in launcher if flag.written.startswith("--"))
    return Job(table, program, words[at].line, launching, tuple(flags), tuple(loose), refused)


def _flags(words: Sequence[Argument], known: list[Table]) -> tuple[list[Flag], list[Argument]]:
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
        if name in table.rules:
            return name, table.rules[name], ()
    plain = {each.replace("_", "-"): each for each in reversed(names)}
    near = difflib.get_close_matches(written.replace("_", "-"), plain, n=3, cutoff=0.75)
    return written, None, tuple(plain[each] for each in near)


def _fitted(flag: Flag) -> Flag:
    """With as many values as its rule says; what is left stands in `extra`."""
    takes = flag.rule.takes if flag.rule is not None else "X..."
    most = {"": 0, "[X]": 1}.get(takes, len(flag.values) if takes.endswith("...") else 1)
    return replace(flag, values=flag.values[:most], extra=flag.values[most:])


def all_flags(job: Job) -> Iterator[Flag]:
    yield from job.launcher
    yield from job.flags
