"""Data made ready as a jumar-data command."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from jumar.chain.facts import RAW, Facts
from jumar.chain.jobs import Flag, Job
from jumar.chain.options import classed, line, option
from jumar.chain.tables import tables
from jumar.chain.verdicts import Made, Outcome, text, whole, words
from jumar.schema.slots import template_names

MADE_ALREADY = "the data is made already; jumar-data says how conversations are read"
"""Why flags of training.yaml that say how data is made have no effect, where it is made."""
INDEXED = (".idx", "_text_document.idx", "_packed_input_ids_document.idx", "_input_ids_document.idx")
RENDERED = ("sft", "pairwise", "prompts")
GOES_WITH: dict[str, tuple[str, ...]] = {
    "--key": ("pretrain",),
    "--append-eod": ("pretrain",),
    "--split-sentences": ("pretrain",),
    "--format": RENDERED,
    "--template": RENDERED,
    "--template-arg": RENDERED,
    "--map": (*RENDERED, "process-reward"),
    "--seq-len": (*RENDERED, "process-reward"),
    "--pack": ("sft",),
    "--placeholder": ("process-reward",),
    "--reward-token": ("process-reward",),
    "--extra-key": ("prompts",),
}
"""Options that not every command has (docs/data.md)."""
MAKING = ("pretrain", "sft", "pairwise", "process-reward", "prompts")


class Preparation(Facts):
    """What a script that prepares data says."""

    @property
    def handler(self) -> list[str]:
        """The command of its handler, and the format of its records if the handler says one; nothing where it is not known."""
        found = tables()["preprocessing"].more["handlers"].get(self.said("--handler-name") or "GeneralPretrainHandler")
        return list(found) if found is not None else []

    @property
    def command(self) -> str:
        if self.has("--merge-group-keys") or self.job.program.endswith("merge_datasets.py"):
            return "merge"
        return next(iter(self.handler), "pretrain")


def _handler(t: Facts, flag: Flag) -> Outcome:
    assert isinstance(t, Preparation)
    if not t.handler:
        return Outcome(
            "refused", why="records of this handler are not read: bring them into `messages`, and give a handler of those"
        )
    command, *form = t.handler
    named = f"jumar-data {command}"
    return Outcome("mapped", " --format ".join([named, *form]), sets={"--format": form[0]} if form else {})


def _inputs(t: Facts, flag: Flag) -> Outcome:
    return option("INPUT", words(flag))


def _prefix(t: Facts, flag: Flag) -> Outcome:
    path = text(flag)
    if path.endswith("/"):
        return Outcome("refused", why=f"a folder; expected what the files' names begin with: {path}NAME")
    return option("--output", path)


def _tokenizer(t: Facts, flag: Flag) -> Outcome:
    path = text(flag)
    if path.endswith((".model", ".json", ".vocab")):
        return option("--tokenizer", path.rpartition("/")[0] or ".", "the directory that holds it")
    return option("--tokenizer", path)


def _pretraining(t: Facts, flag: Flag) -> Outcome:
    assert isinstance(t, Preparation)
    return option("--append-eod", True) if t.command == "pretrain" else Outcome("no effect", why="the template ends answers")


def _map(t: Facts, flag: Flag) -> Outcome:
    try:
        found = json.loads(text(flag))
        pairs = [(name, column) for name, column in found.items() if not isinstance(column, dict)]
        pairs += [(f"tags.{tag}", said) for tag, said in found.get("tags", {}).items()]
    except (ValueError, AttributeError):
        return Outcome(
            "refused", why='expected a JSON object such as {"prompt":"instruction"}: map columns with --map NAME=COLUMN'
        )
    given = [f"{name}={column}" for name, column in pairs if column]
    return option("--map", given) if given else Outcome("default", why="columns have their usual names")


def _template(t: Facts, flag: Flag) -> Outcome:
    kind, file = t.said("--prompt-type"), t.said("--prompt-type-path")
    if kind is None:
        return Outcome("no effect", why="no --prompt-type names a template of it")
    if file is None and kind not in template_names():
        return Outcome("refused", why="jumar-data templates lists the names; leave the flag out for the model's own template")
    return option("--template", f"{file}:{kind}" if file else kind)


def _thinking(t: Facts, flag: Flag) -> Outcome:
    said = text(flag).lower()
    return (
        option("--template-arg", f"enable_thinking={said}")
        if said in ("true", "false")
        else Outcome("default", why="as the template has it")
    )


def _length(t: Facts, flag: Flag) -> Outcome:
    return option("--seq-len", str(whole(flag)))


def _merging(t: Facts, flag: Flag) -> Outcome:
    return Outcome("mapped", f"jumar-data merge: {' '.join(words(flag))}")


RULES = {
    "handler": _handler,
    "inputs": _inputs,
    "prefix": _prefix,
    "tokenizer": _tokenizer,
    "pretraining": _pretraining,
    "map": _map,
    "template": _template,
    "thinking": _thinking,
    "length": _length,
    "merging": _merging,
}


def migrate_preparation(job: Job, name: str, model: str | None = None) -> Made:
    """The jumar-data command; of --merge-group-keys one for each key."""
    t = Preparation(job)

    def amend(outcome: Outcome) -> Outcome:
        for key in outcome.sets:
            if t.command not in (GOES_WITH.get(key) or MAKING) and key not in ("INPUT", "--output"):
                return Outcome("no effect", why=f"jumar-data {t.command} has no use for it")
        return outcome

    verdicts, options = classed(job, RULES, t, amend)
    if t.command not in RENDERED:
        options.pop("--format", None)
    if model is not None and t.command != "merge":
        options["--tokenizer"] = model
    needed = [("--input", "INPUT"), ("--output-prefix", "--output")]
    needed += [("--tokenizer-name-or-path", "--tokenizer")] if t.command != "merge" else []
    faults = [f"{flag} is not given: name it" for flag, key in needed if key not in options]
    if options.get("--pack") and "--seq-len" not in options:
        faults.append("--pack needs to know how long a packed sample is: add --seq-length to the script")
    commands: tuple[str, ...] = (line(["jumar-data", t.command], options, ("INPUT",)),)
    if t.command == "merge" and not faults:
        commands = tuple(_merges(t, str(options["--output"])))
    return Made(job, verdicts, commands, faults=tuple(faults))


# --- raw files that a training script names


@dataclass(frozen=True, slots=True)
class Prepared:
    """outcomes: flag of the training script -> what it is to the making of its data, and to the recipe."""

    commands: tuple[str, ...]
    outcomes: dict[str, Outcome]
    faults: tuple[str, ...]


def preparation(t: Facts, name: str, model: str | None) -> Prepared | None:
    """The making of the data where --data-path names raw files, as MindSpeed-LLM's trainers take them; None elsewhere."""
    data = t.job.last("--data-path")
    if data is None or len(data.values) != 1 or not _raw(t, data.text):
        return None
    table, prefix = tables()["preprocessing"], f"data/{name}"
    tasks = {"sft": "AlpacaStyleInstructionHandler", "pretrain": "GeneralPretrainHandler"}
    flags = [replace(flag, rule=table.rules[flag.name]) for flag in t.job.flags if flag.name in table.rules]
    flags += [replace(data, name="--input", rule=table.rules["--input"])]
    flags += [
        replace(data, name="--output-prefix", rule=table.rules["--output-prefix"], values=(data.values[0]._replace(text=prefix),))
    ]
    if t.said("--handler-name") is None:
        handler = data.values[0]._replace(text=tasks[t.task])
        flags += [replace(data, name="--handler-name", rule=table.rules["--handler-name"], values=(handler,))]
    made = migrate_preparation(
        replace(t.job, table="preprocessing", program="preprocess_data.py", flags=tuple(flags), launcher=()), name, model
    )
    own = {flag.name: flag.rule for flag in t.job.flags}
    outcomes = {
        each.flag: Outcome(each.kind, f"jumar-data: {each.ours}", each.why)
        for flag, each in zip(flags, made.verdicts, strict=True)
        if each.kind in ("mapped", "refused") and (rule := own.get(flag.name)) is not None and rule.why == MADE_ALREADY
    }
    outcomes["--data-path"] = Outcome("mapped", f"data.train: {prefix}", "which jumar-data makes of it", {"data.train": prefix})
    return Prepared(made.commands, outcomes, made.faults)


def _raw(t: Facts, path: str) -> bool:
    """Whether a path is of files that are not token files yet: by its suffix, or since the script names a handler for it."""
    if PurePath(path).suffix in RAW:
        return True
    return t.has("--handler-name") and not any(Path(f"{path}{end}").exists() for end in INDEXED)


def _merges(t: Preparation, output: str) -> list[str]:
    """Every dataset of a folder, or those of each key."""
    inputs = t.job.last("--input")
    folder = words(inputs)[0].rstrip("/") if inputs is not None else "."
    keys = t.job.last("--merge-group-keys")
    groups = (
        [(f"{folder}/*{key}*.idx", f"{output}_{key}") for key in words(keys)]
        if keys is not None
        else [(f"{folder}/*.idx", output)]
    )
    return [f"jumar-data merge {pattern} --output {place}" for pattern, place in groups]
