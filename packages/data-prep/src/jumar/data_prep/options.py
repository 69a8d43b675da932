"""The options that several commands of jumar-data have."""

from pathlib import Path
from typing import Annotated

import typer

from jumar.schema.errors import Exit, ToolError


def path(text: str) -> Path:
    if not text:
        raise ToolError("a path is empty", hint="is a variable of your script not set?", code=Exit.USAGE)
    return Path(text)


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
Form = Annotated[str, typer.Option("--format", help="auto, alpaca, sharegpt or messages.", rich_help_panel="Records")]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="NAME=COLUMN",
        help="Where a field stands: prompt=question, tags.user_tag=human.",
        rich_help_panel="Records",
    ),
]
Template = Annotated[
    str,
    typer.Option(help="auto (the model's own), a name (chatml, qwen, ...) or FILE.json:NAME.", rich_help_panel="Records"),
]
TemplateArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--template-arg", metavar="NAME=VALUE", help="For the model's template: enable_thinking=false.", rich_help_panel="Records"
    ),
]
Date = Annotated[
    str | None, typer.Option(metavar="YYYY-MM-DD", help="The day, for templates that tell it.", rich_help_panel="Records")
]
SeqLen = Annotated[
    int | None, typer.Option("--seq-len", metavar="N", help="Longest sample, in tokens.", rich_help_panel="Length")
]
LongTwo = Annotated[str, typer.Option("--long", help="Longer samples: truncate or drop.", rich_help_panel="Length")]
Eod = Annotated[
    str | None, typer.Option(metavar="TOKEN", help="End token.", show_default="the tokenizer's EOS", rich_help_panel="Tokens")
]
Engine = Annotated[
    str,
    typer.Option("--tokenizer-engine", help="auto, tokenizers, fastokens or gigatoken. Ids are the same.", rich_help_panel="Run"),
]
Workers = Annotated[int, typer.Option(min=0, help="Processes.", show_default="all cores", rich_help_panel="Run")]
Shard = Annotated[str | None, typer.Option(metavar="I/N", help="Only this part; `merge` joins them.", rich_help_panel="Run")]
Cluster = Annotated[
    str, typer.Option("--engine", help="local, or ray: shards on a Ray cluster (RAY_ADDRESS).", rich_help_panel="Run")
]
Shards = Annotated[int, typer.Option(min=0, help="With ray.", show_default="one a CPU", rich_help_panel="Run")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first bad record.", rich_help_panel="Run")]
MaxBad = Annotated[
    str | None,
    typer.Option("--max-bad", metavar="SHARE", help="Stop past this share of bad ones: 1%, 0.01.", rich_help_panel="Run"),
]
MaxSamples = Annotated[int | None, typer.Option(min=1, help="Only the first N records.", rich_help_panel="Run")]
BlockSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Text a worker takes at once.", show_default="1MiB; 256KiB of chats", rich_help_panel="Run"
    ),
]
Seed = Annotated[int, typer.Option(help="Of what is drawn by lot.", rich_help_panel="Run")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.", rich_help_panel="Run")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.", rich_help_panel="Run")]
