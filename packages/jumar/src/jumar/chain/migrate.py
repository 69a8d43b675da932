"""A launch script as commands and recipes of ours."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jumar.chain.answering import migrate_evaluation, migrate_inference, migrate_lm_eval, migrate_scores
from jumar.chain.converting import migrate_conversion
from jumar.chain.facts import Facts
from jumar.chain.jobs import Flag, Job, all_flags, jobs, settings_job
from jumar.chain.preparing import migrate_preparation
from jumar.chain.shell.files import wrapped
from jumar.chain.shell.reader import read_script
from jumar.chain.shell.values import PLACEHOLDER, Argument
from jumar.chain.tables import Class, tables
from jumar.chain.training import migrate_training, outcome
from jumar.chain.verdicts import Made, Outcome, Verdict, by_table, verdict
from jumar.schema.errors import Exit, ToolError

Maker = Callable[[Job, str, str | None], Made]
MAKERS: Mapping[str, Maker] = {
    "training": migrate_training,
    "conversion": migrate_conversion,
    "preprocessing": migrate_preparation,
    "inference": migrate_inference,
    "evaluation": migrate_evaluation,
    "lm_eval": migrate_lm_eval,
    "scores": migrate_scores,
}
BESIDE = ("ray", "pip", "tests")
"""Commands of which nothing is made, and need not be."""
STARTS_NOTHING = "it starts nothing that trains, converts, prepares data, generates or evaluates"
KNOWN = "pretrain_gpt.py, posttrain_gpt.py, convert_ckpt_v2.py, preprocess_data.py, inference.py, evaluation.py and their like"


@dataclass(frozen=True, slots=True)
class Migrated:
    """A script's jobs. notes: (line, text) of what was not read as bash would, and of what could not be."""

    made: tuple[Made, ...]
    notes: tuple[tuple[int, str], ...]

    @property
    def refused(self) -> bool:
        return any(made.of("refused") or made.faults for made in self.made)

    @property
    def unknown(self) -> bool:
        return any(made.of("unknown") for made in self.made)


def migrate(
    path: Path,
    given: Iterable[str] = (),
    variables: Mapping[str, str] | None = None,
    model: str | None = None,
    out: Path | None = None,
) -> Migrated:
    """A script, read and never run, as our commands.

    given: what stands for `$1`, `$2`, ...; variables: set before it; model: the directory of config.json and tokenizer;
    out: where recipes will lie.
    Raises ToolError where it cannot be read, or starts nothing that is known here.
    """
    content, encoding = _content(path)
    script = read_script(content, list(given) or None, {**_slurm(content), **(variables or {})}, path)
    found, passed_over = jobs(script)
    if not any(job.table not in BESIDE for job in found):
        if (settings := settings_job(script)) is None:
            told = "; ".join(f"line {line}: {text}" for line, text in passed_over[:3])
            raise ToolError(f"{path} is no launch script: {told or STARTS_NOTHING}", hint=f"known are {KNOWN}")
        found = [settings]
    made: list[Made] = []
    for job in found:
        name = path.stem if not any(each.files for each in made) else f"{path.stem}-{len(made) + 1}"
        maker = _classed if job.refused else MAKERS.get(job.table, _classed)
        made.append(_checked(maker(job, str(out / name) if out else name, model)))
    notes = sorted({*script.notes, *encoding, *passed_over, *(note for each in made for note in each.notes)})
    return Migrated(tuple(made), tuple(notes))


SLURM = (
    (r"(?:--nodes[= ]\s*|-N\s*)", ("SLURM_NNODES", "SLURM_JOB_NUM_NODES")),
    (r"--ntasks-per-node[= ]\s*", ("SLURM_NTASKS_PER_NODE",)),
    (r"--gpus-per-node[= ]\s*", ("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE")),
)
"""Options of #SBATCH lines, and the variables that Slurm sets by them. https://slurm.schedmd.com/sbatch.html"""


def _slurm(content: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for option, names in SLURM:
        if said := re.search(rf"^#SBATCH\s+(?:.*\s)?{option}(\d+)\s*(?:#.*)?$", content, re.MULTILINE):
            found |= dict.fromkeys(names, said[1])
    return found


def _content(path: Path) -> tuple[str, list[tuple[int, str]]]:
    """(text, notes): UTF-8, else as Chinese editors on Windows write it, else byte by byte."""
    try:
        return path.read_text(encoding="utf-8"), []
    except UnicodeDecodeError as fault:
        line = fault.object[: fault.start].count(b"\n") + 1
        text, name = path.read_text(encoding="latin-1"), "latin-1"
        with contextlib.suppress(UnicodeDecodeError):
            chinese = path.read_text(encoding="gb18030")
            pairs = re.search(rb"[\x81-\xfe]{2}", fault.object)  # a letter with an accent is one byte between others
            text, name = (chinese, "gb18030") if pairs and re.search(r"[\u4e00-\u9fff]", chinese) else (text, name)
        return text, [(line, f"the script is not UTF-8: read as {name}; look at the paths that are not ASCII")]
    except FileNotFoundError:
        raise ToolError(f"{path} does not exist", hint="give the path of a launch script", code=Exit.USAGE) from None
    except OSError as fault:
        raise ToolError(f"{path}: {fault.strerror}", hint="give the path of a launch script", code=Exit.USAGE) from None


def _classed(job: Job, name: str, model: str | None = None) -> Made:
    """A command of which nothing is made: its flags are classed all the same."""
    facts, trains = Facts(job), tables()["training"].rules
    verdicts = []
    for flag in all_flags(job):
        rule = flag.rule
        if rule is not None and (flag in job.launcher or trains.get(flag.name) is rule):
            found = outcome(facts, flag, {})
        else:
            found = by_table(flag, job) or Outcome("mapped", rule.ours if rule is not None else "")
        verdicts.append(verdict(flag, found))
    return Made(job, tuple(verdicts), (), faults=(job.refused,) if job.refused else ())


def _checked(made: Made) -> Made:
    """With the words that belong to no flag, and what is still to be filled in."""
    job, more, empty = made.job, list[Verdict](), list[str]()
    for flag, word in _extra(job):
        if word.unknown == (word.text,) and word.text.startswith("$"):
            empty.append(word.text)
        else:
            kind: Class = "refused" if job.refused else "unknown"
            why = job.refused or (f"{flag.written} does not take it" if flag is not None else "it belongs to no flag")
            more.append(Verdict(word.text, "", word.line, kind, why=why))
    notes = [*made.notes, *((job.line, text) for text in _open(job, empty))]
    return replace(made, verdicts=(*made.verdicts, *more), notes=tuple(notes))


def _open(job: Job, empty: list[str]) -> Iterator[str]:
    """What is to be known of a job before it runs. empty: variables in the place of flags."""
    unknown = {text: flag.written for flag in all_flags(job) for text in flag.unknown}
    to_fill_in = {v.text: flag.written for flag in all_flags(job) for v in flag.values if PLACEHOLDER.match(v.text)}
    if empty:
        names = ", ".join(dict.fromkeys(empty))
        yield f"{names} {'are' if len(set(empty)) > 1 else 'is'} set nowhere in the script: read as empty"
    if unknown:
        numbered = any(text.strip("${}").isdigit() for text in unknown)
        how = "what stands behind the script's name is $1, $2, ...; --var NAME=VALUE" if numbered else "--var NAME=VALUE"
        names = ", ".join(f"{text} ({flag})" for text, flag in unknown.items())
        yield f"not known before the script runs: {names}; {how} gives {'them' if len(unknown) > 1 else 'it'}"
    if to_fill_in:
        yield "fill in " + ", ".join(f"{text!r} ({flag})" for text, flag in to_fill_in.items())
    if job.wrapper:
        yield wrapped(job.wrapper)


def _extra(job: Job) -> list[tuple[Flag | None, Argument]]:
    behind = [(flag, word) for flag in all_flags(job) for word in flag.extra]
    return [*((None, word) for word in job.loose), *behind]
