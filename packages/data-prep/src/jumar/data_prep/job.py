"""What one run is asked to do: the command line, checked."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jumar.schema.errors import Exit, ToolError

MOST = 1 << 26  # tokens of a sample
LONG = ("truncate", "split", "drop")
TUNING_KEYS = ("input_ids", "attention_mask", "labels")
NOT_OF_THE_BYTES = ("output", "workers", "engine", "shards", "force", "strict", "max_bad")


@dataclass(frozen=True, slots=True)
class Job:
    """One run. What does not apply to its command stays at its default.

    seq_len:   longest sample in tokens; None: samples are as long as they are.
    long:      what is done with longer ones.
    shard:     (i, n): only every n-th block from the i-th on, counted from 0.
    max_bad:   share of bad records above which the run stops; None: never. strict: at the first.
    block_bytes: 0: `block` says.
    workers:   processes; 0: as many as the machine has cores.
    """

    command: str
    inputs: tuple[str, ...]
    output: Path
    tokenizer: Path
    keys: tuple[str, ...] = ("text",)
    format: str = "auto"
    map: tuple[str, ...] = ()
    template: str = "auto"
    template_args: tuple[str, ...] = ()
    date: str | None = None
    seq_len: int | None = None
    pack: bool = False
    long: str = "truncate"
    train_on: str = "all"
    append_eod: bool = False
    eod: str | None = None
    special: bool = True
    split_sentences: bool = False
    language: str = "en"
    placeholder: str = "ки"
    reward_tokens: tuple[str, ...] = ("+", "-")
    max_samples: int | None = None
    tokenizer_engine: str = "auto"
    seed: int = 1234
    block_bytes: int = 0
    shard: tuple[int, int] | None = None
    workers: int = 0
    engine: str = "local"
    shards: int = 0
    strict: bool = False
    max_bad: float | None = None
    force: bool = False

    def __post_init__(self) -> None:
        for flag, value, allowed in (
            ("--long", self.long, LONG),
            ("--train-on", self.train_on, ("all", "last")),
            ("--engine", self.engine, ("local", "ray")),
        ):
            if value not in allowed:
                raise usage(f"{flag} {value!r}: expected {' or '.join(allowed)}", f"for example {flag} {allowed[0]}")
        if self.seq_len is not None and not 2 <= self.seq_len <= MOST:
            raise usage(f"--seq-len {self.seq_len}: expected 2 to {MOST}", "for example --seq-len 2048")
        if self.seq_len is None and self.long != "truncate" and self.command != "prompts":
            raise usage(f"--long {self.long}: nothing is too long without --seq-len", "add --seq-len 2048")
        if self.command == "pretrain" and self.eod is not None and not self.append_eod:
            raise usage("--eod has no effect without --append-eod", "add --append-eod")
        if self.language != "en" and not self.split_sentences:
            raise usage("--language has no effect without --split-sentences", "add --split-sentences")
        if self.shards and self.engine != "ray":
            raise usage("--shards goes with --engine ray", "to make one shard: --shard 1/4")
        for key in self.keys:
            if not key or "/" in key or "\0" in key or self.keys.count(key) > 1:
                raise usage(f"column {key!r} cannot name a file, or is given twice", "rename it, or leave it out")
        if self.pack and self.seq_len is None:
            raise usage("--pack needs to know how long a packed sample is", "add --seq-len 2048")
        if self.pack and self.command != "sft":
            raise usage(f"--pack goes with sft, not with {self.command}", "leave it out")
        if self.long == "split" and self.command != "sft":
            raise usage(f"--long split goes with sft, not with {self.command}", "use truncate or drop")
        if self.shard is not None and not 0 <= self.shard[0] < self.shard[1]:
            raise usage(f"--shard {self.shard[0] + 1}/{self.shard[1]}: expected 1/n to n/n", "for example --shard 1/4")
        if self.shard is not None and self.max_samples is not None:
            raise usage("--max-samples does not go with --shard", "leave one out")
        if self.engine == "ray" and self.shard is not None:
            raise usage("--engine ray makes the shards itself", "leave --shard out; --shards N says how many")

    @property
    def block(self) -> int:
        """Bytes of text that a worker takes at once: fewer of conversations, which are many Python objects."""
        return self.block_bytes or (1 << 20 if self.command in ("pretrain", "process-reward") else 1 << 18)

    @property
    def packed_name(self) -> str:
        """Between prefix and key: tuning data is called packed whether it is or not (docs/contracts.md, 10)."""
        return "" if self.command == "pretrain" else "_packed"

    @property
    def level(self) -> str:
        """What a sequence is: a document, or one of its sentences."""
        return "sentence" if self.split_sentences else "document"

    def prefix_of(self, key: str) -> Path:
        """A key's files without their suffix."""
        return Path(f"{self.output}{self.packed_name}_{key}_{self.level}")

    def beside(self, name: str) -> Path:
        """A file beside the prefix: PREFIX.name."""
        return Path(f"{self.output}.{name}")

    @property
    def work(self) -> Path:
        """Where a run keeps what it has made so far."""
        if self.shard is not None:
            return self.beside(f"shard-{self.shard[0] + 1}-of-{self.shard[1]}")
        return self.beside("work")

    @property
    def template_file(self) -> tuple[Path | None, str]:
        """FILE.json or FILE.json:NAME as both; (None, NAME) of a template that has a name alone."""
        file, _, name = self.template.rpartition(":")
        if file.endswith(".json"):
            return Path(file), name
        return (Path(self.template), "") if self.template.endswith(".json") else (None, self.template)

    def template_at(self, file: Path | None) -> str:
        """`template` with its file in another place; None, and one that is no file's: as it is."""
        name = self.template_file[1]
        return self.template if file is None else f"{file}:{name}" if name else str(file)

    def recipe(self) -> dict[str, Any]:
        """What decides the output's bytes, for manifests: options that are not at their defaults. A template file's name alone:
        its hash says what is in it."""
        facts = {k: v for k, v in asdict(self).items() if k not in (*NOT_OF_THE_BYTES, "inputs", "tokenizer", "shard")}
        plain = asdict(Job(self.command, (), Path(), Path()))
        kept = {k: v for k, v in facts.items() if k == "command" or v != plain[k]}
        if (file := self.template_file[0]) is not None:
            kept["template"] = self.template_at(Path(file.name))
        plain_values: dict[str, Any] = json.loads(json.dumps(kept))
        return plain_values | {"seed": self.seed}

    def template_variables(self) -> dict[str, Any]:
        """`--template-arg name=value` as values: JSON where it is, text where not."""
        out: dict[str, Any] = {}
        for item in self.template_args:
            name, sign, text = item.partition("=")
            if not sign or not name.isidentifier():
                raise usage(f"--template-arg {item!r}: expected NAME=VALUE", "for example --template-arg enable_thinking=false")
            try:
                out[name] = json.loads(text)
            except ValueError:
                out[name] = text
        return out

    def day(self) -> datetime.date | None:
        """The date that templates tell."""
        if self.date is None:
            return None
        try:
            return datetime.date.fromisoformat(self.date)
        except ValueError:
            raise usage(f"--date {self.date!r}: expected a date", "for example --date 2026-01-31") from None


def usage(message: str, hint: str) -> ToolError:
    """A fault of the command line."""
    return ToolError(message, hint=hint, code=Exit.USAGE)
