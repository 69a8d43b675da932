"""The options that several commands of jumar-data have."""

# Without `from __future__ import annotations`: typer would compile the text of every annotation, for help too.
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from jumar.schema.errors import Exit, ToolError
from jumar.schema.options import path


def prefix(text: str) -> Path:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ToolError(f"-o {text!r}: a name that is not UTF-8", hint="choose another", code=Exit.USAGE) from None
    if text.endswith("/") or path(text).is_dir():
        where = f"{text.rstrip('/')}/NAME"
        raise ToolError(f"-o {text}: a folder; expected what the files' names begin with", hint=f"-o {where}", code=Exit.USAGE)
    return Path(text)


Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...", help="Files (.jsonl .json .txt .csv .tsv .parquet .arrow .gz .zst), folders, patterns, -."
    ),
]
Output = Annotated[
    Path, typer.Option("-o", "--output", parser=prefix, metavar="PREFIX", help="What the files' names begin with.")
]
TokenizerDir = Annotated[Path, typer.Option(parser=path, metavar="DIR", help="Directory of the model, or of its tokenizer.json.")]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="NAME=COLUMN",
        help="Where a field stands: prompt=question, tags.user_tag=human.",
        rich_help_panel="Records",
    ),
]
SeqLen = Annotated[
    int | None, typer.Option("--seq-len", metavar="N", help="Longest sample, in tokens.", rich_help_panel="Length")
]
LongTwo = Annotated[str, typer.Option("--long", help="Longer samples: truncate or drop.", rich_help_panel="Length")]
Eod = Annotated[
    str | None, typer.Option(metavar="TOKEN", help="End token.", show_default="the tokenizer's EOS", rich_help_panel="Tokens")
]
Seed = Annotated[int, typer.Option(help="Of what is drawn by lot.", rich_help_panel="Run")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.", rich_help_panel="Run")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.", rich_help_panel="Run")]


@dataclass(kw_only=True)
class Rendering:
    """How conversations are read and rendered."""

    form: Annotated[str, typer.Option("--format", help="auto, alpaca, sharegpt or messages.", rich_help_panel="Records")] = "auto"
    map_: Map = None
    template: Annotated[
        str,
        typer.Option(help="auto (the model's own), a name (chatml, qwen, ...) or FILE.json:NAME.", rich_help_panel="Records"),
    ] = "auto"
    template_arg: Annotated[
        list[str] | None,
        typer.Option(
            "--template-arg",
            metavar="NAME=VALUE",
            help="For the model's template: enable_thinking=false.",
            rich_help_panel="Records",
        ),
    ] = None
    date: Annotated[
        str | None, typer.Option(metavar="YYYY-MM-DD", help="The day, for templates that tell it.", rich_help_panel="Records")
    ] = None
    seq_len: SeqLen = None

    def values(self) -> dict[str, Any]:
        """As a Job takes them."""
        return dict(
            format=self.form,
            map=tuple(self.map_ or ()),
            template=self.template,
            template_args=tuple(self.template_arg or ()),
            date=self.date,
            seq_len=self.seq_len,
        )


@dataclass(kw_only=True)
class Making:
    """How a dataset is made."""

    tokenizer_engine: Annotated[
        str,
        typer.Option(
            "--tokenizer-engine", help="auto, tokenizers, fastokens or gigatoken. Ids are the same.", rich_help_panel="Run"
        ),
    ] = "auto"
    workers: Annotated[int, typer.Option(min=0, help="Processes.", show_default="all cores", rich_help_panel="Run")] = 0
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only this part; `merge` joins them.", rich_help_panel="Run")
    ] = None
    engine: Annotated[
        str, typer.Option("--engine", help="local, or ray: shards on a Ray cluster (RAY_ADDRESS).", rich_help_panel="Run")
    ] = "local"
    shards: Annotated[int, typer.Option(min=0, help="With ray.", show_default="one a CPU", rich_help_panel="Run")] = 0
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad record.", rich_help_panel="Run")] = False
    max_bad: Annotated[
        str | None,
        typer.Option("--max-bad", metavar="SHARE", help="Stop past this share of bad ones: 1%, 0.01.", rich_help_panel="Run"),
    ] = None
    max_samples: Annotated[int | None, typer.Option(min=1, help="Only the first N records.", rich_help_panel="Run")] = None
    block_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Text a worker takes at once.", show_default="1MiB; 256KiB of chats", rich_help_panel="Run"
        ),
    ] = None
    force: Force = False

    def values(self) -> dict[str, Any]:
        """As a Job takes them."""
        names = ("tokenizer_engine", "workers", "engine", "shards", "strict", "max_samples", "force")
        return dict(
            **{name: getattr(self, name) for name in names},
            shard=_shard(self.shard),
            max_bad=None if self.max_bad is None else share("--max-bad", self.max_bad),
            block_bytes=0 if self.block_size is None else _size(self.block_size),
        )


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found:
        raise ToolError(f"--shard {text!r}: expected I/N", hint="for example --shard 1/4, ..., --shard 4/4", code=Exit.USAGE)
    return int(found[1]) - 1, int(found[2])


def number(flag: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ToolError(f"{flag} {text!r}: expected a number", hint="for example 0.7", code=Exit.USAGE) from None


def share(flag: str, text: str) -> float:
    """ "1%" and "0.01" -> 0.01."""
    value = number(flag, text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    if not 0 <= value <= 1:
        raise ToolError(f"{flag} {text!r}: expected a share from 0 to 1", hint="for example 1%, or 0.01", code=Exit.USAGE)
    return value


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+)\s*([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2].upper()] if found else 0
    if not 1 << 10 <= size <= 1 << 30:
        raise ToolError(f"--block-size {text!r}: expected 1KiB to 1GiB", hint="for example --block-size 1MiB", code=Exit.USAGE)
    return size
