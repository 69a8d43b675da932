"""jumar-infer: parse, call one function, print."""

# Without `from __future__ import annotations`: typer would compile the text of every annotation, for help too.
import functools
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from jumar.schema.cli import make_app, mute, print_json, say
from jumar.schema.cli import run as run_app
from jumar.schema.errors import Exit, ToolError
from jumar.schema.options import grouped, named, one_of, path

if TYPE_CHECKING:
    from jumar.infer.engine import Engine
    from jumar.infer.output import Output
    from jumar.infer.sampling import Sampling

T = TypeVar("T")
app = make_app(
    "jumar-infer",
    "jumar-infer",
    "Generate with, chat with, serve and score any checkpoint, Hugging Face or Megatron, whatever its layout. "
    "Weights are read where they lie; nothing is converted on disk.",
    epilog="Example: jumar-infer chat mcore/",
)
HOW, WHAT = "How it runs", "How it answers"


def how(*names: str, **words: Any) -> Any:
    """An option of how a model runs."""
    return typer.Option(*names, rich_help_panel=HOW, **words)


def what(*names: str, **words: Any) -> Any:
    """An option of how it answers."""
    return typer.Option(*names, rich_help_panel=WHAT, **words)


Model = Annotated[Path, typer.Argument(parser=path, metavar="MODEL", help="A Hugging Face or Megatron directory.")]
Prompt = Annotated[str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="One prompt; the answer streams.")]
TemplateName = Annotated[str, what("--template", help="auto (the model's), a name, or FILE.jinja.")]
MaxBatch = Annotated[int, how(min=1, help="Answers at once.")]
WHERE = "Where it goes"
Out = Annotated[
    Path | None,
    typer.Option(
        "-o", "--out", parser=path, metavar="OUT.jsonl", help="A file.", show_default="standard output", rich_help_panel=WHERE
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the file in OUT.", rich_help_panel=WHERE)]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@dataclass
class Run:
    """How a model runs."""

    engine: Annotated[str, how(help="auto, jumar or transformers; auto: jumar, where it knows the model.")] = "auto"
    device: Annotated[str, how(help=one_of("auto", group="jumar.devices"))] = "auto"
    dtype: Annotated[str, how(help="auto, fp32, bf16 or fp16.")] = "auto"
    quantize: Annotated[str | None, how(metavar="KIND", help="Matrices as int8 or int8-dynamic.", show_default="no")] = None
    tokenizer: Annotated[Path | None, how(parser=path, metavar="DIR", help="tokenizer.json's.", show_default="MODEL's")] = None
    adapter: Annotated[Path | None, how(parser=path, metavar="DIR", help="A LoRA of this model, PEFT's or Megatron's.")] = None
    iteration: Annotated[str | None, how(help="Of a Megatron directory.", show_default="the tracker's")] = None
    family: Annotated[str | None, how(help="model_type of a Megatron directory without a config.")] = None
    pp: Annotated[int, how(min=1, help="Stages under torchrun; the processes of each share its layers.")] = 1
    cache_tokens: Annotated[int | None, how(min=32, help="Tokens whose keys are held.", show_default="by the free memory")] = None

    def open(self, model: Path, max_batch: int = 1) -> "Engine":
        """The model. Every rank computes, one speaks."""
        from jumar.infer.engine import Engine, Limits

        options = dict(vars(self))
        engine = Engine.open(model, Limits(max_batch=max_batch, cache_tokens=options.pop("cache_tokens")), **options)
        if _rank():
            mute()
            return engine
        for note in engine.notes:
            say("note", note, "bold cyan")
        return engine

    def output(self, out: Path, model: Path, source: str | None, **recipe: Any) -> "Output":
        """The file that answers go to. Raises ToolError (2) for prompts that a second call could not find again."""
        from jumar.infer.answers import output_of

        if source == "-":
            raise ToolError("-o goes with a file of prompts, which a manifest can name", hint="give a file", code=Exit.USAGE)
        return output_of(out, model, source, vars(self), **recipe)


@dataclass
class Asked:
    """How it answers."""

    max_new_tokens: Annotated[int | None, what(min=1, help="At most.", show_default="the model's, else 256")] = None
    temperature: Annotated[float | None, what(help="0: always the most probable token.", show_default="the model's, else 0")] = (
        None
    )
    top_k: Annotated[int | None, what(help="Only the K most probable; 0: all.", show_default="the model's")] = None
    top_p: Annotated[float | None, what(help="Only the most probable that sum to P.", show_default="the model's")] = None
    min_p: Annotated[
        float | None, what(help="Only those at least P times as probable as the best.", show_default="the model's")
    ] = None
    repetition_penalty: Annotated[float | None, what(help="More than 1: less repetition.", show_default="the model's")] = None
    stop: Annotated[list[str] | None, what(metavar="TEXT", help="End before this text; may be repeated.")] = None
    seed: Annotated[int | None, what(help="The same answers again.", show_default="another each time")] = None

    def _given(self, more: dict[str, Any]) -> dict[str, Any]:
        return {**vars(self), "stop": tuple(self.stop or ()), **more}

    def typed(self, **more: Any) -> "Sampling":
        """What was typed alone, before a model is opened. Raises ToolError (2), in the words of options."""
        from jumar.infer.sampling import LIMITS, Sampling

        try:
            return Sampling(**{name: value for name, value in self._given(more).items() if value is not None})
        except ToolError as fault:
            options = {name: "--" + name.replace("_", "-") for name, _, _ in LIMITS}
            words = [" ".join(options.get(word, word) for word in text.split(" ")) for text in (fault.message, fault.hint or "")]
            raise ToolError(words[0], hint=words[1], code=fault.code) from None

    def sampling(self, engine: "Engine", **more: Any) -> "Sampling":
        """The model's own settings under these."""
        return engine.defaults.sampling(**self._given(more))


@app.command()
@grouped
def generate(
    *,
    model: Model,
    source: Annotated[
        str | None, typer.Argument(parser=named, metavar="[FILE.jsonl | -]", help='Lines {"prompt": ...} or {"messages": [...]}.')
    ] = None,
    prompt: Prompt = None,
    chat_prompt: Annotated[bool, typer.Option("--chat", help="-p is a user's message: through the chat template.")] = False,
    asked: Asked,
    num_return: Annotated[int, what(min=1, help="Answers to each prompt.")] = 1,
    num_beams: Annotated[int, what(min=1, max=64, help="Beam search; 1: none.")] = 1,
    length_penalty: Annotated[float, what(help="Of beams: more than 0 is for longer answers.")] = 1.0,
    logprobs: Annotated[int | None, what(min=0, help="Log-probabilities, with N alternatives each.")] = None,
    template: TemplateName = "auto",
    run: Run,
    max_batch: MaxBatch = 8,
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Answer one prompt (-p), or every line of a file: one JSON object a line, in order."""
    if (prompt is None) == (source is None):
        raise ToolError("give one of -p TEXT and a file", hint='jumar-infer generate MODEL -p "..."', code=Exit.USAGE)
    if chat_prompt and prompt is None:
        raise ToolError("--chat goes with -p", hint='in a file write {"messages": [...]}', code=Exit.USAGE)
    if prompt is not None and not chat_prompt and template != "auto":
        raise ToolError("--template goes with --chat, or a file", hint="give --chat as well, or leave it out", code=Exit.USAGE)
    from jumar.infer import generate as work

    _check_input(source)
    how = work.How(num_return, num_beams, length_penalty)
    how.check(asked.typed(logprobs=logprobs), final=asked.temperature is not None)
    _check_typed(template, prompt)
    batch = max(max_batch if prompt is None else num_return, num_beams)

    def opened() -> "tuple[Engine, Sampling]":
        engine = run.open(model, batch)
        if asked.seed is None and _world() > 1:  # ranks draw the same tokens
            asked.seed = engine.decoder.ranks.same(secrets.randbits(40))
        sampling = asked.sampling(engine, logprobs=logprobs)
        how.check(sampling)
        return engine, sampling

    if out is not None:
        given = {**vars(asked), "logprobs": logprobs, "prompt": prompt, "chat": chat_prompt or None, "template": template}
        output = run.output(out, model, source, **how.recipe(), **given)
        every = functools.partial(work.all_answers, how=how, source=source, prompt=prompt, template=template, chat=chat_prompt)
        _kept(output, force, as_json, opened, every)
        return
    engine, sampling = opened()
    if prompt is None:
        assert source is not None
        answers = work.many_prompts(engine, source, sampling, how, template)
        print_json({"answers": list(answers)}) if as_json else work.write_lines(answers)
        return
    ids, sampling = work.prompt_ids(engine, prompt, sampling, template if chat_prompt else None)
    if not as_json and num_return == num_beams == 1 and logprobs is None:
        work.one_prompt(engine, ids, sampling, sys.stdout)
        return
    found = [work.answer(engine, request) for request in how.answers(engine, ids, sampling)]
    if as_json:
        print_json({"prompt": prompt, "answers": found})
    elif num_return == 1 and logprobs is None:
        sys.stdout.write(found[0]["text"] + "\n")
    else:
        work.write_lines(iter(found))


@app.command()
@grouped
def chat(
    *,
    model: Model,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system message.")] = None,
    asked: Asked,
    template: TemplateName = "auto",
    run: Run,
) -> None:
    """Talk to a model. /help lists what can be typed beside messages; Ctrl-C stops an answer."""
    from jumar.infer.chat import Chat
    from jumar.infer.followers import follow, leading
    from jumar.infer.generate import chat_template, with_stops

    asked.typed()
    _check_typed(template, system)
    engine = run.open(model)
    if _rank():
        follow(engine)
        return
    with leading(engine):
        opened = chat_template(engine, template)
        sampling = with_stops(asked.sampling(engine), opened)
        talk = Chat(engine, opened, sampling, system, stops=_world() == 1)
        talk.run()
    if talk.code and not sys.stdin.isatty():  # on a terminal it was seen, and mended
        raise typer.Exit(talk.code)


@app.command()
@grouped
def serve(
    *,
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    name: Annotated[str | None, typer.Option(help="The model's name in the API.", show_default="the directory's")] = None,
    api_key_file: Annotated[Path | None, typer.Option(parser=path, metavar="FILE", help="Bearer keys, one a line.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer, at most.", rich_help_panel="Limits")] = 4096,
    max_body_mb: Annotated[int, typer.Option(min=1, help="Of a request.", rich_help_panel="Limits")] = 4,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that wait for their turn.", rich_help_panel="Limits")] = 256,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="For a whole answer.", rich_help_panel="Limits")] = 600,
    drain_s: Annotated[float, typer.Option(min=0, help="For answers at the end.", rich_help_panel="Limits")] = 60,
    template: TemplateName = "auto",
    run: Run,
    max_batch: MaxBatch = 8,
) -> None:
    """Serve an OpenAI-compatible API, and a small chat page at /. SIGTERM lets answers be finished."""
    from jumar.infer import serve as work
    from jumar.infer.conversation import open_template
    from jumar.infer.followers import follow, leading

    if _rank():
        follow(run.open(model, max_batch))
        return
    _check_typed(template, None)
    keys = work.read_keys(api_key_file)
    settings = work.Settings(
        name=name or model.resolve().name,
        keys=keys,
        max_tokens=max_tokens,
        max_body_bytes=max_body_mb << 20,
        timeout_s=timeout_s,
        drain_s=drain_s,
    )
    with work.bound(host, port) as open_socket:  # before the model is read: a port that is taken is told at once
        engine = run.open(model, max_batch)
        with leading(engine):
            opened = None
            if engine.tokenizer is not None and (template != "auto" or engine.tokenizer.has_template):
                opened = open_template(engine.tokenizer, template)
            work.serve(engine, opened, settings, open_socket, max_waiting=max_waiting)


@app.command()
@grouped
def score(
    *,
    model: Model,
    source: Annotated[
        str, typer.Argument(metavar="FILE.jsonl | -", help='Lines {"text": ...} or {"prompt": ..., "completion": ...}.')
    ],
    each: Annotated[bool, typer.Option("--logprobs", help="Those of every token too.")] = False,
    run: Run,
    max_batch: MaxBatch = 8,
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Log-probability and perplexity of texts, or of completions after prompts: one JSON object a line, in order."""
    from jumar.infer.generate import write_lines
    from jumar.infer.score import score_rows

    _check_input(source)
    if out is not None:
        output = run.output(out, model, source, command="score", logprobs=each or None)
        _kept(output, force, as_json, lambda: (run.open(model, max_batch), None), lambda e, _: score_rows(e, source, each=each))
        return
    engine = run.open(model, max_batch)
    found = score_rows(engine, source, each=each)
    print_json({"scores": list(found)}) if as_json else write_lines(found)


def _kept(
    output: "Output",
    force: bool,
    as_json: bool,
    opened: "Callable[[], tuple[Engine, T]]",
    answers: "Callable[[Engine, T], Iterator[dict[str, Any]]]",
) -> None:
    """Answers to a file, or the word that they are there. Of several ranks the first decides, and writes."""
    begin, both = time.monotonic(), opened() if _world() > 1 else None
    already = True if _rank() else output.already(force=force)
    if both is not None:
        already = bool(both[0].decoder.ranks.same(already))
    if not already:
        found = answers(*(both or opened()))
        output.write(found) if not _rank() else [None for _ in found]
    if _rank():
        return
    counts = output.counts()
    if as_json:
        about = {"out": str(output.path), "already_done": already, "seconds": round(time.monotonic() - begin, 3)}
        print_json({**about, **counts})
        return
    word = "already done:" if already else "done"
    print(f"{word} {output.path}: {counts['samples']:,} lines, {counts['tokens']:,} tokens")


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _check_input(source: str | None) -> None:
    if _world() > 1 and source == "-":
        raise ToolError("standard input cannot be shared by several processes", hint="give a file", code=Exit.USAGE)


def _check_typed(template: str, text: str | None) -> None:
    """Before a model is opened: a template's name, and a text from the command line."""
    from jumar.infer.conversation import check_template
    from jumar.infer.tokenizer import check_unicode

    check_template(template)
    check_unicode(text or "", "what was typed", Exit.USAGE)


def main() -> None:
    """The command."""
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # kernels for each number of rows: 1,024 take 0.6 GB
        os.environ.setdefault(name, "64")  # read when torch is loaded
    run_app(app, "jumar-infer")
