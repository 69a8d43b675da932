"""jumar-eval: parse, call one function, print."""

# Without `from __future__ import annotations`: typer would compile the text of every annotation, for help too.
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jumar.schema.cli import make_app, print_json, run, say
from jumar.schema.errors import Exit, ToolError
from jumar.schema.options import named, one_of, path

if TYPE_CHECKING:
    from jumar.eval.requests import Model

    Opens = Callable[[], Model]

app = make_app(
    "jumar-eval",
    "jumar-eval",
    "Benchmark scores of any checkpoint, Hugging Face or Megatron, or of an OpenAI-compatible endpoint; from local files, "
    "equal to lm-eval's request by request.",
    epilog="Example: jumar-eval run hf/ --tasks mmlu,gsm8k --data eval-data/",
)
HOW, WHAT, WHERE = "How it runs", "What is asked", "Where it goes"
DeviceName = Annotated[str, typer.Option("--device", help=one_of("auto", group="jumar.devices"), rich_help_panel=HOW)]
Dtype = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.", rich_help_panel=HOW)]
Quantize = Annotated[
    str | None, typer.Option(metavar="KIND", help="Matrices as int8 or int8-dynamic.", show_default="no", rich_help_panel=HOW)
]
TokenizerDir = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer", parser=path, metavar="DIR", help="tokenizer.json's.", show_default="MODEL's", rich_help_panel=HOW
    ),
]
Adapter = Annotated[
    Path | None, typer.Option(parser=path, metavar="DIR", help="A LoRA of this model, PEFT's or Megatron's.", rich_help_panel=HOW)
]
Iteration = Annotated[
    str | None, typer.Option(help="Of a Megatron directory.", show_default="the tracker's", rich_help_panel=HOW)
]
FamilyName = Annotated[
    str | None, typer.Option("--family", help="model_type of a Megatron directory without a config.", rich_help_panel=HOW)
]
Protocol = Annotated[str, typer.Option(help="Whose way of asking: lm-eval or mindspeed.", rich_help_panel=WHAT)]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@app.command("run")
def run_(
    model: Annotated[
        str, typer.Argument(parser=named, metavar="MODEL", help="A Hugging Face or Megatron directory, or http://HOST/v1.")
    ],
    tasks: Annotated[str, typer.Option("--tasks", metavar="A,B", help="Names, or YAML files of your own.", rich_help_panel=WHAT)],
    data: Annotated[
        Path, typer.Option("--data", parser=path, metavar="DIR", help="Holds the benchmarks' files.", rich_help_panel=WHAT)
    ] = Path("."),
    protocol: Protocol = "lm-eval",
    shots: Annotated[
        int | None, typer.Option(min=0, help="Worked examples.", show_default="the task's", rich_help_panel=WHAT)
    ] = None,
    fewshot: Annotated[
        list[str] | None,
        typer.Option(metavar="[TASK=]FILE", help="JSON with worked examples; may be repeated.", rich_help_panel=WHAT),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of an answer.", show_default="the task's", rich_help_panel=WHAT)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Documents of each task or subject.", show_default="all", rich_help_panel=WHAT)
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Through the model's chat template.", rich_help_panel=WHAT)] = False,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A system message before all.", show_default="none", rich_help_panel=WHAT)
    ] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run programs that the model writes, walled in.", rich_help_panel=WHAT)
    ] = False,
    allow_unsandboxed: Annotated[
        bool,
        typer.Option("--allow-unsandboxed", help="Also where they cannot be walled in: with your rights.", rich_help_panel=WHAT),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", parser=path, metavar="OUT", help="For results and samples.", show_default="none", rich_help_panel=WHERE
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with OUT.", rich_help_panel=WHERE)] = False,
    force: Annotated[bool, typer.Option("--force", help="Remove the run in OUT first.", rich_help_panel=WHERE)] = False,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK.METRIC=X", help="Exit 5 below it; may be repeated.", rich_help_panel=WHERE),
    ] = None,
    device: DeviceName = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    tokenizer: TokenizerDir = None,
    adapter: Adapter = None,
    iteration: Iteration = None,
    family: FamilyName = None,
    engine: Annotated[str, typer.Option(help="auto, jumar or transformers, as of jumar-infer.", rich_help_panel=HOW)] = "auto",
    tp: Annotated[int, typer.Option(min=1, help="Under torchrun: processes that share every layer.", rich_help_panel=HOW)] = 1,
    pp: Annotated[int, typer.Option(min=1, help="Under torchrun: stages; the rest are copies.", rich_help_panel=HOW)] = 1,
    batch: Annotated[
        str, typer.Option("--batch", metavar="N", help="Answers at once; auto: by the memory.", rich_help_panel=HOW)
    ] = "auto",
    cache_tokens: Annotated[
        int | None,
        typer.Option(min=32, help="Tokens whose keys are held.", show_default="by the free memory", rich_help_panel=HOW),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name at an endpoint.", show_default="its only one", rich_help_panel=HOW)
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a model on benchmarks."""
    from jumar.eval.models import opener, settings_for, without_effect
    from jumar.eval.requests import Opening
    from jumar.eval.results import check
    from jumar.eval.run import Settings, evaluate

    opening = Opening(
        device=device,
        dtype=dtype,
        quantize=quantize,
        tokenizer=tokenizer,
        adapter=adapter,
        iteration=iteration,
        family=family,
        engine=engine,
        tp=tp,
        pp=pp,
        max_batch=_at_once(batch),
        cache_tokens=cache_tokens,
    )
    settings = Settings(
        tasks=tuple(name.strip() for name in tasks.split(",") if name.strip()),
        data=data,
        protocol=protocol,
        shots=shots,
        fewshot=tuple(fewshot or ()),
        max_new_tokens=max_new_tokens,
        limit=limit,
        chat=chat,
        system=system,
        allow_code=allow_code,
        allow_unsandboxed=allow_unsandboxed,
        fail_under=tuple(fail_under or ()),
        out=out,
        resume=resume,
        force=force,
    )
    opens = opener(model, name, opening, chat=chat)

    def work(opens: "Opens") -> dict[str, Any]:
        for text in without_effect(model, name, opening):
            _say("warning", text)
        return evaluate(opens, settings_for(model, settings, opening), _say)

    results = _evaluated(opens, work)
    if results is None:
        return
    print_json(results) if as_json else _table(results)
    for wanted in fail_under or ():
        check(results, wanted)


def _at_once(batch: str) -> int | None:
    if batch != "auto" and not (batch.isdecimal() and int(batch) > 1):
        raise ToolError(f"--batch {batch}: expected auto, or a number from 2 on", hint="leave it out", code=Exit.USAGE)
    return None if batch == "auto" else int(batch)


def _evaluated(opener: "Opens", work: "Callable[[Opens], dict[str, Any]]") -> dict[str, Any] | None:
    """Results; of several processes those of the first, which alone has any."""
    if _world() == 1:
        return work(opener)
    from jumar.eval.models import need_infer

    with need_infer():
        from jumar.eval.ranks import together
    return together(opener, work)


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _say(word: str, text: str) -> None:
    say(word, text, "bold cyan" if word == "note" else "bold yellow")


def _table(results: dict[str, Any]) -> None:
    from jumar.eval.results import rows

    _print(["task", "answer", "shots", "metric", "value", "stderr"], rows(results), right=4)


def _print(head: list[str], rows: "Sequence[tuple[str, ...]]", right: int) -> None:
    """A table whose columns from `right` on are numbers; no line is folded."""
    lines = [head, *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        cells = [c.rjust(w) if i >= right else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        print("  ".join(cells).rstrip())


@app.command("list")
def list_(
    data: Annotated[
        Path | None,
        typer.Option("--data", parser=path, metavar="DIR", help="Where to look for their files.", show_default="nowhere"),
    ] = None,
    protocol: Protocol = "lm-eval",
    as_json: Json = False,
) -> None:
    """Every task, where its files are, or what to fetch from where."""
    from jumar.eval.listing import lines, listing

    found = listing(data, protocol)
    if as_json:
        print_json({"tasks": found})
        return
    for line in lines(found):
        print(line)


@app.command("compare")
def compare_(
    first: Annotated[Path, typer.Argument(parser=path, metavar="OUT1", help="Results of a run, ours or lm-eval's.")],
    second: Annotated[Path, typer.Argument(parser=path, metavar="OUT2", help="Those of another one.")],
    show: Annotated[int, typer.Option(min=0, help="Documents of each score that flipped, with both answers.")] = 0,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK.METRIC=X", help="Exit 5 where OUT2 is not X better than OUT1; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Differences of two runs, with their significance, and which documents flipped.

    --fail-under mmlu.acc=0 is for pipelines: no loss; -0.01 lets so much pass, 0.02 asks for so much more.
    """
    from dataclasses import asdict

    from jumar.eval.compare import check_changes, compare, flips, table

    compared = compare(first, second)
    check_changes(compared, fail_under or (), names_only=True)
    flipped = flips(first, second, compared, show) if show or as_json else []
    if as_json:
        differences = [{**asdict(d), "change": d.change} for d in compared.differences]
        print_json({"differences": differences, "notes": list(compared.notes), "flips": flipped})
        check_changes(compared, fail_under or ())
        return
    for note in compared.notes:
        _say("note", note)
    _print(
        ["task", "answer", "metric", "documents", "first", "second", "change", "stderr", "p", "flips"], table(compared), right=3
    )
    for flip in flipped:
        answers = " -> ".join(map(repr, flip["answers"]))
        right = f", right is {flip['target']!r}" if flip["target"] else ""
        print(f"{flip['task']} document {flip['doc_id']} ({flip['why']}): {answers}{right}")
    check_changes(compared, fail_under or ())


@app.command()
def report(
    out: Annotated[Path, typer.Argument(parser=path, metavar="OUT", help="Results of a run, ours or lm-eval's.")],
    errors: Annotated[int, typer.Option(min=0, help="Of each task that are shown.")] = 50,
    against: Annotated[
        Path | None, typer.Option(parser=path, metavar="OUT2", help="Another run to compare with.", show_default="none")
    ] = None,
    as_json: Json = False,
) -> None:
    """OUT/report.html: scores, subjects as bars, differences, errors to be read one by one."""
    from jumar.eval.report import write_report

    path, already = write_report(out, errors, against)
    if as_json:
        print_json({"out": str(path), "already_done": already})
        return
    print(f"already done: {path}" if already else path)


def main() -> None:
    """The command."""
    try:
        run(app, "jumar-eval")
    except SystemExit as end:
        if not end.code or _world() == 1:
            raise
        sys.stderr.flush()
        os._exit(int(end.code))  # threads that wait for other processes would make torch abort
