"""jumar-data: parse, call one function, print."""

# Without `from __future__ import annotations`: typer would compile the text of every annotation, for help too.
import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from jumar.data_prep.options import (
    Eod,
    Force,
    Inputs,
    Json,
    LongTwo,
    Making,
    Map,
    Output,
    Rendering,
    Seed,
    SeqLen,
    TokenizerDir,
    number,
    share,
)
from jumar.schema.cli import make_app, run
from jumar.schema.options import grouped, named, path

app = make_app(
    "jumar-data",
    "jumar-data-prep",
    "Turn text and conversations into the token files that Megatron trains on. Nothing is lost without a word: every record is "
    "kept, or counted with its reason.",
    epilog="Example: jumar-data sft alpaca.jsonl -o data/alpaca --tokenizer hf/ --seq-len 2048 --pack",
)


@app.command()
@grouped
def pretrain(
    *,
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
    making: Making,
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
        **making.values(),
    )


@app.command()
@grouped
def sft(
    *,
    inputs: Inputs,
    output: Output,
    tokenizer: TokenizerDir,
    rendering: Rendering,
    pack: Annotated[
        bool, typer.Option("--pack", help="Several conversations in a sample of exactly --seq-len.", rich_help_panel="Length")
    ] = False,
    long: Annotated[
        str, typer.Option(help="Longer ones: truncate, split (between turns) or drop.", rich_help_panel="Length")
    ] = "truncate",
    train_on: Annotated[str, typer.Option(help="all answers, or the last.", rich_help_panel="Tokens")] = "all",
    eod: Eod = None,
    making: Making,
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
        long=long,
        **rendering.values(),
        **making.values(),
    )


@app.command()
@grouped
def pairwise(
    *,
    inputs: Inputs,
    output: Output,
    tokenizer: TokenizerDir,
    rendering: Rendering,
    long: LongTwo = "truncate",
    eod: Eod = None,
    making: Making,
    as_json: Json = False,
) -> None:
    """Two answers, one preferred, for DPO and reward models: PREFIX_packed_{chosen,rejected}_{input_ids,labels}_document."""
    _run("pairwise", inputs, output, tokenizer, as_json, eod=eod, long=long, **rendering.values(), **making.values())


@app.command("process-reward")
@grouped
def process_reward(
    *,
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
    making: Making,
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
        **making.values(),
    )


@app.command()
@grouped
def prompts(
    *,
    inputs: Inputs,
    output: Output,
    tokenizer: TokenizerDir,
    rendering: Rendering,
    extra_key: Annotated[
        list[str] | None,
        typer.Option(help="A column for the reward, as tokens; `labels` is the answer.", rich_help_panel="Records"),
    ] = None,
    eod: Eod = None,
    making: Making,
    as_json: Json = False,
) -> None:
    """Prompts for reinforcement learning: PREFIX_packed_{input_ids,attention_mask}_document."""
    _run(
        "prompts",
        inputs,
        output,
        tokenizer,
        as_json,
        keys=tuple(extra_key or ()),
        eod=eod,
        long="drop",
        **rendering.values(),
        **making.values(),
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

    start = time.monotonic()
    done = join(prefixes, output, force=force, say=_say)
    printed.merged(done, time.monotonic() - start, as_json)


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

    start, shares, called = time.monotonic(), [share("--parts", text) for text in parts.split(",")], names.split(",")
    made = part(find_dataset(prefix), output, shares, called, seed, force=force)
    printed.parts(made, called, time.monotonic() - start, as_json)


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

    start = time.monotonic()
    found = [re.fullmatch(r"(.+?)(?::([0-9.eE+-]+))?", named(prefix)) for prefix in prefixes]
    weights = [number("weight", match[2]) if match and match[2] else 1.0 for match in found]
    datasets = [find_dataset(match[1]) for match in found if match]
    given = weights if any(match and match[2] for match in found) or strategy != "concat" else None
    mixed = mix(datasets, given, output, strategy, seed, force=force)
    printed.one(mixed, time.monotonic() - start, as_json)


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


def _run(command: str, inputs: list[str], output: Path, tokenizer: Path, as_json: bool, **options: Any) -> None:
    from jumar.data_prep import show
    from jumar.data_prep.job import Job
    from jumar.schema.cli import ByteProgress, say

    job, start = Job(command, tuple(inputs), output, tokenizer, **options), time.monotonic()
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
    show.finished(done, job, time.monotonic() - start, as_json)


def _say(word: str, text: str) -> None:
    from jumar.schema.cli import say

    say(word, text)


def main() -> None:
    run(app, "jumar-data")


if __name__ == "__main__":
    main()
