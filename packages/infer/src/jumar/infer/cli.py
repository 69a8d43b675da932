"""jumar-infer: parse, call one function, print."""

# Without `from __future__ import annotations`: typer would compile the text of every annotation, for help too.
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jumar.schema.cli import make_app, print_json, run, say
from jumar.schema.errors import Exit, ToolError

if TYPE_CHECKING:
    from jumar.infer.engine import Engine

app = make_app(
    "jumar-infer",
    "jumar-infer",
    "Generate with, chat with, serve and score any checkpoint, Hugging Face or Megatron, whatever its layout. "
    "Weights are read where they lie; nothing is converted on disk.",
    epilog="Example: jumar-infer chat mcore/",
)
HOW, WHAT = "How it runs", "How it answers"
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A Hugging Face or Megatron directory.")]
Prompt = Annotated[str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="One prompt; the answer streams.")]
MaxNew = Annotated[
    int | None,
    typer.Option("--max-new-tokens", min=1, help="At most.", show_default="the model's, else 256", rich_help_panel=WHAT),
]
Temperature = Annotated[
    float | None,
    typer.Option(help="0: always the most probable token.", show_default="the model's, else 0", rich_help_panel=WHAT),
]
TopK = Annotated[
    int | None, typer.Option(help="Only the K most probable; 0: all.", show_default="the model's", rich_help_panel=WHAT)
]
TopP = Annotated[
    float | None, typer.Option(help="Only the most probable that sum to P.", show_default="the model's", rich_help_panel=WHAT)
]
MinP = Annotated[
    float | None,
    typer.Option(help="Only those at least P times as probable as the best.", show_default="the model's", rich_help_panel=WHAT),
]
Penalty = Annotated[
    float | None,
    typer.Option("--repetition-penalty", help="More than 1: less repetition.", show_default="the model's", rich_help_panel=WHAT),
]
Stop = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="End before this text; may be repeated.", rich_help_panel=WHAT)
]
Seed = Annotated[int | None, typer.Option(help="The same answers again.", show_default="another each time", rich_help_panel=WHAT)]
TemplateName = Annotated[str, typer.Option("--template", help="auto (the model's), a name, or FILE.jinja.", rich_help_panel=WHAT)]
EngineName = Annotated[
    str,
    typer.Option("--engine", help="auto, jumar or transformers; auto: jumar, where it knows the model.", rich_help_panel=HOW),
]
DeviceName = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or npu.", rich_help_panel=HOW)]
Dtype = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.", rich_help_panel=HOW)]
Quantize = Annotated[
    str | None, typer.Option(metavar="KIND", help="Matrices as int8 or int8-dynamic.", show_default="no", rich_help_panel=HOW)
]
TokenizerDir = Annotated[
    Path | None, typer.Option("--tokenizer", metavar="DIR", help="tokenizer.json's.", show_default="MODEL's", rich_help_panel=HOW)
]
Adapter = Annotated[
    Path | None, typer.Option(metavar="DIR", help="A LoRA of this model, PEFT's or Megatron's.", rich_help_panel=HOW)
]
Iteration = Annotated[
    str | None, typer.Option(help="Of a Megatron directory.", show_default="the tracker's", rich_help_panel=HOW)
]
FamilyName = Annotated[
    str | None, typer.Option("--family", help="model_type of a Megatron directory without a config.", rich_help_panel=HOW)
]
Stages = Annotated[
    int, typer.Option("--pp", min=1, help="Stages under torchrun; the processes of each share its layers.", rich_help_panel=HOW)
]
MaxBatch = Annotated[int, typer.Option(min=1, help="Answers at once.", rich_help_panel=HOW)]
CacheTokens = Annotated[
    int | None,
    typer.Option(min=32, help="Tokens whose keys are held.", show_default="by the free memory", rich_help_panel=HOW),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@app.command()
def generate(
    model: Model,
    source: Annotated[
        str | None, typer.Argument(metavar="[FILE.jsonl | -]", help='Lines {"prompt": ...} or {"messages": [...]}.')
    ] = None,
    prompt: Prompt = None,
    chat_prompt: Annotated[bool, typer.Option("--chat", help="-p is a user's message: through the chat template.")] = False,
    max_new_tokens: MaxNew = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = None,
    stop: Stop = None,
    seed: Seed = None,
    num_return: Annotated[int, typer.Option(min=1, help="Answers to each prompt.", rich_help_panel=WHAT)] = 1,
    num_beams: Annotated[int, typer.Option(min=1, help="Beam search; 1: none.", rich_help_panel=WHAT)] = 1,
    length_penalty: Annotated[
        float, typer.Option(help="Of beams: more than 0 is for longer answers.", rich_help_panel=WHAT)
    ] = 1.0,
    logprobs: Annotated[
        int | None, typer.Option(min=0, help="Log-probabilities, with N alternatives each.", rich_help_panel=WHAT)
    ] = None,
    template: TemplateName = "auto",
    engine_name: EngineName = "auto",
    device: DeviceName = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    tokenizer: TokenizerDir = None,
    adapter: Adapter = None,
    iteration: Iteration = None,
    family: FamilyName = None,
    pp: Stages = 1,
    max_batch: MaxBatch = 8,
    cache_tokens: CacheTokens = None,
    as_json: Json = False,
) -> None:
    """Answer one prompt (-p), or every line of a file: one JSON object a line, in order."""
    if (prompt is None) == (source is None):
        raise ToolError("give one of -p TEXT and a file", hint='jumar-infer generate MODEL -p "..."', code=Exit.USAGE)
    if chat_prompt and prompt is None:
        raise ToolError("--chat goes with -p", hint='in a file write {"messages": [...]}', code=Exit.USAGE)
    from jumar.infer import generate as work

    _check_input(source)
    batch = max(max_batch if prompt is None else num_return, num_beams)
    engine = _engine(model, batch, cache_tokens, engine_name, device, dtype, quantize, tokenizer, adapter, iteration, family, pp)
    if seed is None and _world() > 1:  # ranks draw the same tokens
        seed = engine.decoder.ranks.same(secrets.randbits(40))
    sampling = engine.defaults.sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=tuple(stop or ()),
        seed=seed,
        logprobs=logprobs,
    )
    how = work.How(num_return, num_beams, length_penalty)
    how.check(sampling)
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
def chat(
    model: Model,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system message.")] = None,
    max_new_tokens: MaxNew = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = None,
    stop: Stop = None,
    seed: Seed = None,
    template: TemplateName = "auto",
    engine_name: EngineName = "auto",
    device: DeviceName = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    tokenizer: TokenizerDir = None,
    adapter: Adapter = None,
    iteration: Iteration = None,
    family: FamilyName = None,
    cache_tokens: CacheTokens = None,
) -> None:
    """Talk to a model. /help lists what can be typed beside messages; Ctrl-C stops an answer."""
    from jumar.infer.chat import Chat
    from jumar.infer.generate import chat_template, with_stops

    engine = _engine(model, 1, cache_tokens, engine_name, device, dtype, quantize, tokenizer, adapter, iteration, family)
    opened = chat_template(engine, template)
    sampling = engine.defaults.sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=tuple(stop or ()),
        seed=seed,
    )
    Chat(engine, opened, with_stops(sampling, opened), system).run()


@app.command()
def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    name: Annotated[str | None, typer.Option(help="The model's name in the API.", show_default="the directory's")] = None,
    api_key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Bearer keys, one a line.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer, at most.", rich_help_panel="Limits")] = 4096,
    max_body_mb: Annotated[int, typer.Option(min=1, help="Of a request.", rich_help_panel="Limits")] = 4,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that wait for their turn.", rich_help_panel="Limits")] = 256,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="For a whole answer.", rich_help_panel="Limits")] = 600,
    drain_s: Annotated[float, typer.Option(min=0, help="For answers at the end.", rich_help_panel="Limits")] = 60,
    template: TemplateName = "auto",
    engine_name: EngineName = "auto",
    device: DeviceName = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    tokenizer: TokenizerDir = None,
    adapter: Adapter = None,
    iteration: Iteration = None,
    family: FamilyName = None,
    max_batch: MaxBatch = 8,
    cache_tokens: CacheTokens = None,
) -> None:
    """Serve an OpenAI-compatible API, and a small chat page at /. SIGTERM lets answers be finished."""
    from jumar.infer import serve as work
    from jumar.infer.conversation import open_template

    keys = work.read_keys(api_key_file)
    with work.listen(host, port):
        pass  # a port that is taken is told before the model is read
    engine = _engine(model, max_batch, cache_tokens, engine_name, device, dtype, quantize, tokenizer, adapter, iteration, family)
    opened = None
    if engine.tokenizer is not None and (template != "auto" or engine.tokenizer.has_template):
        opened = open_template(engine.tokenizer, template)
    settings = work.Settings(
        name=name or model.resolve().name,
        keys=keys,
        max_tokens=max_tokens,
        default_tokens=min(max_tokens, 1024),
        max_body_bytes=max_body_mb << 20,
        timeout_s=timeout_s,
        drain_s=drain_s,
    )
    work.serve(engine, opened, settings, host=host, port=port, max_waiting=max_waiting)


@app.command()
def score(
    model: Model,
    source: Annotated[
        str, typer.Argument(metavar="FILE.jsonl | -", help='Lines {"text": ...} or {"prompt": ..., "completion": ...}.')
    ],
    each: Annotated[bool, typer.Option("--logprobs", help="Those of every token too.")] = False,
    engine_name: EngineName = "auto",
    device: DeviceName = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    tokenizer: TokenizerDir = None,
    adapter: Adapter = None,
    iteration: Iteration = None,
    family: FamilyName = None,
    pp: Stages = 1,
    max_batch: MaxBatch = 8,
    cache_tokens: CacheTokens = None,
    as_json: Json = False,
) -> None:
    """Log-probability and perplexity of texts, or of completions after prompts: one JSON object a line, in order."""
    from jumar.infer.generate import write_lines
    from jumar.infer.score import score_rows

    _check_input(source)
    engine = _engine(
        model, max_batch, cache_tokens, engine_name, device, dtype, quantize, tokenizer, adapter, iteration, family, pp
    )
    found = score_rows(engine, source, each=each)
    print_json({"scores": list(found)}) if as_json else write_lines(found)


def _engine(
    model: Path, max_batch: int, cache_tokens: int | None, engine_name: str, device: str, dtype: str, *rest: Any
) -> "Engine":
    from jumar.infer.engine import Engine, Limits

    quantize, tokenizer, adapter, iteration, family, *stages = rest
    if not stages and _world() > 1:
        raise ToolError("chat and serve run in one process", hint="start it without torchrun", code=Exit.USAGE)
    engine = Engine.open(
        model,
        Limits(max_batch=max_batch, cache_tokens=cache_tokens),
        engine=engine_name,
        device=device,
        dtype=dtype,
        quantize=quantize,
        tokenizer=tokenizer,
        adapter=adapter,
        iteration=iteration,
        family=family,
        pp=stages[0] if stages else 1,
    )
    if int(os.environ.get("RANK", "0")):  # every rank computes, one speaks
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
        return engine
    for note in engine.notes:
        say("note", note, "bold cyan")
    return engine


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _check_input(source: str | None) -> None:
    if _world() > 1 and source == "-":
        raise ToolError("standard input cannot be shared by several processes", hint="give a file", code=Exit.USAGE)


def main() -> None:
    """The command."""
    run(app, "jumar-infer")
