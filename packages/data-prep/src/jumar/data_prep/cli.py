"""jumar-data: parse, call one function, print."""

# Without `from __future__ import annotations`: typer would compile the text of every annotation, for help too.
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from jumar.data_prep.options import (
    BlockSize,
    Cluster,
    Date,
    Engine,
    Eod,
    Force,
    Form,
    Inputs,
    Json,
    LongTwo,
    Map,
    MaxBad,
    MaxSamples,
    Output,
    Seed,
    SeqLen,
    Shard,
    Shards,
    Strict,
    Template,
    TemplateArgs,
    TokenizerDir,
    Workers,
    path,
)
from jumar.schema.cli import make_app, run
from jumar.schema.errors import Exit, ToolError

app = make_app(
    "jumar-data",
    "jumar-data-prep",
    "Turn text and conversations into the token files that Megatron trains on. Nothing is lost without a word: every record is "
    "kept, or counted with its reason.",
    epilog="Example: jumar-data sft alpaca.jsonl -o data/alpaca --tokenizer hf/ --seq-len 2048 --pack",
)


@app.command()
def pretrain(
    inputs: Inputs,
    output: Output,
    tokenizer: TokenizerDir,
    key: Annotated[
        list[str] | None,
        typer.Option(help="Column of the text; may be repeated.", show_default="text", rich_help_panel="Records"),
    ] = None,
    append_eod: Annotated[
        bool, typer.Option("--append-eod", help="End every document with EOS.", rich_help_panel="Tokens")
    ] = False,
    eod: Eod = None,
    no_special_tokens: Annotated[
        bool,
        typer.Option("--no-special-tokens", help="Without what the tokenizer adds to a text (BOS).", rich_help_panel="Tokens"),
    ] = False,
    split_sentences: Annotated[
        bool,
        typer.Option("--split-sentences", help="Sentences as sequences (pysbd's rules, not nltk's).", rich_help_panel="Records"),
    ] = False,
    language: Annotated[str, typer.Option(help="Of the sentences.", rich_help_panel="Records")] = "en",
    tokenizer_engine: Engine = "auto",
    workers: Workers = 0,
    shard: Shard = None,
    engine: Cluster = "local",
    shards: Shards = 0,
    strict: Strict = False,
    max_bad: MaxBad = None,
    max_samples: MaxSamples = None,
    block_size: BlockSize = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Documents for pretraining: PREFIX_text_document.bin and .idx."""
    _run(
        "pretrain",
        inputs,
        output,
        tokenizer,
        as_json,
        keys=tuple(key or ["text"]),
        append_eod=append_eod,
        eod=eod,
        special=not no_special_tokens,
        split_sentences=split_sentences,
        language=language,
        **_common(locals()),
    )


@app.command()
def sft(
    inputs: Inputs,
    output: Output,
    tokenizer: TokenizerDir,
    form: Form = "auto",
    map_: Map = None,
    template: Template = "auto",
    template_arg: TemplateArgs = None,
    date: Date = None,
    seq_len: SeqLen = None,
    pack: Annotated[
        bool, typer.Option("--pack", help="Several conversations in a sample of exactly --seq-len.", rich_help_panel="Length")
    ] = False,
    long: Annotated[
        str, typer.Option(help="Longer ones: truncate, split (between turns) or drop.", rich_help_panel="Length")
    ] = "truncate",
    train_on: Annotated[str, typer.Option(help="all answers, or the last.", rich_help_panel="Tokens")] = "all",
    eod: Eod = None,
    tokenizer_engine: Engine = "auto",
    workers: Workers = 0,
    shard: Shard = None,
    engine: Cluster = "local",
    shards: Shards = 0,
    strict: Strict = False,
    max_bad: MaxBad = None,
    max_samples: MaxSamples = None,
    block_size: BlockSize = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Conversations for tuning: PREFIX_packed_{input_ids,attention_mask,labels}_document."""
    _run(
        "sft",
        inputs,
        output,
        tokenizer,
        as_json,
        pack=pack,
        train_on=train_on,
        eod=eod,
        **_chat(locals()),
        **_common(locals()),
    )


@app.command()
def pairwise(
    inputs: Inputs,
    output: Output,
    tokenizer: TokenizerDir,
    form: Form = "auto",
    map_: Map = None,
    template: Template = "auto",
    template_arg: TemplateArgs = None,
    date: Date = None,
    seq_len: SeqLen = None,
    long: LongTwo = "truncate",
    eod: Eod = None,
    tokenizer_engine: Engine = "auto",
    workers: Workers = 0,
    shard: Shard = None,
    engine: Cluster = "local",
    shards: Shards = 0,
    strict: Strict = False,
    max_bad: MaxBad = None,
    max_samples: MaxSamples = None,
    block_size: BlockSize = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Two answers, one preferred, for DPO and reward models: PREFIX_packed_{chosen,rejected}_{input_ids,labels}_document."""
    _run("pairwise", inputs, output, tokenizer, as_json, eod=eod, **_chat(locals()), **_common(locals()))


@app.command("process-reward")
def process_reward(
    inputs: Inputs,
    output: Output,
    tokenizer: TokenizerDir,
    map_: Map = None,
    placeholder: Annotated[str, typer.Option(help="The token that ends a step.", rich_help_panel="Tokens")] = "ки",
    reward_token: Annotated[
        list[str] | None, typer.Option(help="A reward; repeat for each.", show_default="+ and -", rich_help_panel="Tokens")
    ] = None,
    seq_len: SeqLen = None,
    long: LongTwo = "truncate",
    tokenizer_engine: Engine = "auto",
    workers: Workers = 0,
    shard: Shard = None,
    engine: Cluster = "local",
    shards: Shards = 0,
    strict: Strict = False,
    max_bad: MaxBad = None,
    max_samples: MaxSamples = None,
    block_size: BlockSize = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Texts with a reward for every step, for process reward models: PREFIX_packed_{input_ids,labels,attention_mask}_document."""
    _run(
        "process-reward",
        inputs,
        output,
        tokenizer,
        as_json,
        map=tuple(map_ or ()),
        placeholder=placeholder,
        reward_tokens=tuple(reward_token or ("+", "-")),
        seq_len=seq_len,
        long=long,
        **_common(locals()),
    )


@app.command()
def prompts(
    inputs: Inputs,
    output: Output,
    tokenizer: TokenizerDir,
    form: Form = "auto",
    map_: Map = None,
    template: Template = "auto",
    template_arg: TemplateArgs = None,
    date: Date = None,
    extra_key: Annotated[
        list[str] | None,
        typer.Option(help="A column for the reward, as tokens; `labels` is the answer.", rich_help_panel="Records"),
    ] = None,
    seq_len: SeqLen = None,
    eod: Eod = None,
    tokenizer_engine: Engine = "auto",
    workers: Workers = 0,
    shard: Shard = None,
    engine: Cluster = "local",
    shards: Shards = 0,
    strict: Strict = False,
    max_bad: MaxBad = None,
    max_samples: MaxSamples = None,
    block_size: BlockSize = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Prompts for reinforcement learning: PREFIX_packed_{input_ids,attention_mask}_document."""
    long = "drop"
    _run(
        "prompts",
        inputs,
        output,
        tokenizer,
        as_json,
        keys=tuple(extra_key or ()),
        eod=eod,
        **_chat(locals()),
        **_common(locals()),
    )


@app.command()
def inspect(
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="A dataset, with or without what its files' names end with.")],
    tokenizer: Annotated[Path | None, typer.Option(parser=path, metavar="DIR", help="To show text.")] = None,
    show: Annotated[int, typer.Option(min=0, help="Samples to show.")] = 0,
    as_json: Json = False,
) -> None:
    """Say what a dataset is: kind, keys, sequences, tokens, lengths, what is trained. Whoever wrote it."""
    from jumar.data_prep import show as printed
    from jumar.data_prep.inspection import inspect as look

    printed.inspection(look(prefix, tokenizer, show), as_json)


@app.command()
def merge(
    prefixes: Annotated[
        list[str], typer.Argument(metavar="PREFIX...", help="Datasets of one kind; or the PREFIX whose shards are all made.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", parser=path, metavar="PREFIX", help="Where to.", show_default="of shards: their own PREFIX"
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Join datasets, or the shards of one run: then the bytes are those of a run that was never sharded."""
    from jumar.data_prep import show as printed
    from jumar.data_prep.merge import merge as join

    printed.merged(join(prefixes, output, force=force, say=_say), as_json)


@app.command()
def split(
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="A dataset.")],
    output: Output,
    parts: Annotated[str, typer.Option(metavar="A,B,...", help="Shares of the documents.")] = "0.98,0.01,0.01",
    names: Annotated[
        str, typer.Option(metavar="A,B,...", help="What the parts are called: PREFIX_train, ...")
    ] = "train,valid,test",
    seed: Annotated[int | None, typer.Option(help="Draw the documents by lot.", show_default="in order")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Part a dataset by documents, for training, validation and test."""
    from jumar.data_prep import show as printed
    from jumar.data_prep.combine import split as part
    from jumar.data_prep.datasets import find_dataset

    shares = [_share("--parts", text) for text in parts.split(",")]
    printed.made(part(find_dataset(prefix), output, shares, names.split(","), seed, force=force), as_json)


@app.command()
def blend(
    prefixes: Annotated[list[str], typer.Argument(metavar="PREFIX[:WEIGHT]...", help="Datasets of one kind and their weights.")],
    output: Output,
    strategy: Annotated[
        str, typer.Option(help="concat, interleave_under (until the first is used up) or interleave_over (until all are).")
    ] = "interleave_under",
    seed: Seed = 1234,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Mix datasets document by document, by weight."""
    from jumar.data_prep import show as printed
    from jumar.data_prep.combine import blend as mix
    from jumar.data_prep.datasets import find_dataset

    found = [re.fullmatch(r"(.+?)(?::([0-9.eE+-]+))?", prefix) for prefix in prefixes]
    weights = [_number("weight", match[2]) if match and match[2] else 1.0 for match in found]
    datasets = [find_dataset(match[1]) for match in found if match]
    given = weights if any(match and match[2] for match in found) or strategy != "concat" else None
    printed.made([mix(datasets, given, output, strategy, seed, force=force)], as_json)


@app.command()
def report(
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="A dataset.")],
    tokenizer: Annotated[Path | None, typer.Option(parser=path, metavar="DIR", help="To show samples.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", parser=path, metavar="FILE.html", help="Where to.", show_default="PREFIX.report.html"),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make the report page of a dataset, whoever wrote it: lengths, trained share, packing, samples."""
    from jumar.data_prep import show as printed
    from jumar.data_prep.inspection import report as make

    printed.reported(make(prefix, tokenizer, output, force=force), as_json)


@app.command()
def templates(as_json: Json = False) -> None:
    """List the prompt templates that have a name."""
    from jumar.data_prep import show as printed

    printed.templates(as_json)


def _chat(given: dict[str, Any]) -> dict[str, Any]:
    """The options of commands that render conversations."""
    return dict(
        format=given["form"],
        map=tuple(given["map_"] or ()),
        template=given["template"],
        template_args=tuple(given["template_arg"] or ()),
        date=given["date"],
        seq_len=given["seq_len"],
        long=given["long"],
    )


def _common(given: dict[str, Any]) -> dict[str, Any]:
    """The options of all commands that make data."""
    names = ("tokenizer_engine", "workers", "engine", "shards", "strict", "max_samples", "force")
    return dict(
        **{name: given[name] for name in names},
        shard=_shard(given["shard"]),
        max_bad=None if given["max_bad"] is None else _share("--max-bad", given["max_bad"]),
        block_bytes=0 if given["block_size"] is None else _size(given["block_size"]),
    )


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found:
        raise ToolError(f"--shard {text!r}: expected I/N", hint="for example --shard 1/4, ..., --shard 4/4", code=Exit.USAGE)
    return int(found[1]) - 1, int(found[2])


def _number(flag: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ToolError(f"{flag} {text!r}: expected a number", hint="for example 0.7", code=Exit.USAGE) from None


def _share(flag: str, text: str) -> float:
    """ "1%" and "0.01" -> 0.01."""
    value = _number(flag, text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    if not 0 <= value <= 1:
        raise ToolError(f"{flag} {text!r}: expected a share from 0 to 1", hint="for example 1%, or 0.01", code=Exit.USAGE)
    return value


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+)\s*([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2].upper()] if found else 0
    if not 1 << 10 <= size <= 1 << 30:
        raise ToolError(f"--block-size {text!r}: expected 1KiB to 1GiB", hint="for example --block-size 1MiB", code=Exit.USAGE)
    return size


def _run(command: str, inputs: list[str], output: Path, tokenizer: Path, as_json: bool, **options: Any) -> None:
    from jumar.data_prep import show
    from jumar.data_prep.job import Job
    from jumar.schema.cli import ByteProgress, say

    job = Job(command, tuple(inputs), output, tokenizer, **options)
    try:
        with ByteProgress("read", 1, quiet=as_json) as progress:
            if job.engine == "ray":
                from jumar.data_prep.on_ray import run_on_ray

                done = run_on_ray(job, say=_say)
            else:
                from jumar.data_prep.pipeline import run as carry_out

                done = carry_out(job, say=_say, progress=progress.set)
    except KeyboardInterrupt:
        say("hint", "what is done is kept; run the same command to go on", "bold cyan")
        raise
    show.finished(done, job, as_json)


def _say(word: str, text: str) -> None:
    from jumar.schema.cli import say

    say(word, text)


def main() -> None:
    run(app, "jumar-data")


if __name__ == "__main__":
    main()
