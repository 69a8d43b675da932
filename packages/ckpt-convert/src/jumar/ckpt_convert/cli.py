"""jumar-convert: parse, call one function, print."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from jumar.schema.cli import make_app, run
from jumar.schema.dialects import DIALECTS
from jumar.schema.errors import Exit, ToolError
from jumar.schema.options import one_of, path

if TYPE_CHECKING:
    from jumar.ckpt_convert.checkpoint import Checkpoint, OpenOptions
    from jumar.ckpt_convert.convert import Plan

T = TypeVar("T")
app = make_app(
    "jumar-convert",
    "jumar-ckpt-convert",
    "Convert checkpoints between Hugging Face and Megatron, for any parallel layout. "
    "Every conversion is planned and proven before a byte moves; memory does not grow with the model.",
    epilog="Example: jumar-convert to-megatron hf/ mcore/ --tp 2 --pp 2",
)


Sources = Annotated[
    list[Path],
    typer.Argument(parser=path, metavar="SRC... DST", help="Source (several where each node kept its ranks), then target."),
]
Iteration = Annotated[
    str | None, typer.Option(help="Iteration of a Megatron source: a number or 'release'.", show_default="the tracker's")
]
FamilyName = Annotated[str | None, typer.Option("--family", help="model_type of a Megatron source without a config.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="What the source's files do not say: tp=2, vocab_size=32000, ..."),
]
Ignore = Annotated[str | None, typer.Option("--ignore-config-keys", metavar="A,B", help="config.json keys to pass over.")]
Dtype = Annotated[str | None, typer.Option(help="Cast the weights: bf16, fp16 or fp32.", show_default="every byte as it is")]
ShowPlan = Annotated[bool, typer.Option("--plan", help="Print the proven plan and stop.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a target that is not empty.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads.")]
Base = Annotated[
    Path | None,
    typer.Option(
        parser=path, metavar="DIR", help="The model that an adapter adapts (config.json is enough), if it does not say."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
THREADS = min(4, os.cpu_count() or 1)


@app.command("to-megatron")
def to_megatron(
    paths: Sources,
    tp: Annotated[int, typer.Option(help="Tensor parallel size.", rich_help_panel="Layout")] = 1,
    pp: Annotated[int, typer.Option(help="Pipeline parallel size.", rich_help_panel="Layout")] = 1,
    vpp: Annotated[int | None, typer.Option(help="Model chunks per pipeline stage.", rich_help_panel="Layout")] = None,
    layers_per_stage: Annotated[
        str | None, typer.Option(metavar="5,5,6", help="Uneven stages.", rich_help_panel="Layout")
    ] = None,
    schedule: Annotated[str, typer.Option(help="1f1b or dualpipev.", rich_help_panel="Layout")] = "1f1b",
    noop_layers: Annotated[
        str | None, typer.Option(metavar="3,7", help="Slots without weights, in the padded numbering.", rich_help_panel="Layout")
    ] = None,
    ep: Annotated[int, typer.Option(help="Expert parallel size.", rich_help_panel="Layout")] = 1,
    etp: Annotated[
        int | None, typer.Option(help="Expert tensor parallel size.", show_default="as --tp", rich_help_panel="Layout")
    ] = None,
    tp_extend_ep: Annotated[
        bool, typer.Option("--moe-tp-extend-ep", help="Whole experts over ep * tp ranks (MindSpeed).", rich_help_panel="Layout")
    ] = False,
    expert_layout: Annotated[str, typer.Option(help="sequential or grouped.", rich_help_panel="Layout")] = "sequential",
    dialect: Annotated[str, typer.Option(help=one_of(*DIALECTS), rich_help_panel="Layout")] = DIALECTS[0],
    mla_mm_split: Annotated[
        bool, typer.Option("--mla-mm-split", help="Part MLA's up-projections (MindSpeed).", rich_help_panel="Layout")
    ] = False,
    vocab_divisible_by: Annotated[
        int, typer.Option(min=1, max=1 << 20, help="Pad the vocabulary to a multiple of N * tp.", rich_help_panel="Layout")
    ] = 1,
    form: Annotated[
        str, typer.Option("--format", help="torch (mp_rank_* shards) or torch_dist.", rich_help_panel="Layout")
    ] = "torch",
    dist_layers: Annotated[
        str,
        typer.Option(
            help="torch_dist: layers stacked in one tensor, or separate.",
            show_default="as megatron-core",
            rich_help_panel="Layout",
        ),
    ] = "auto",
    no_optimizer: Annotated[
        bool, typer.Option("--no-optimizer", help="torch_dist: leave the source's optimizer state out.", rich_help_panel="Layout")
    ] = False,
    dtype: Dtype = None,
    adapter: Annotated[
        Path | None,
        typer.Option(parser=path, metavar="DIR", help="Write this LoRA beside the weights (base_layer, lora_A, lora_B)."),
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Merge the LoRA (--adapter's, or the source's own) instead.")] = False,
    base: Base = None,
    iteration: Iteration = None,
    family: FamilyName = None,
    sets: Sets = None,
    ignore: Ignore = None,
    plan: ShowPlan = False,
    resume: Resume = False,
    force: Force = False,
    threads: Threads = THREADS,
    as_json: Json = False,
) -> None:
    """Write Megatron shards (mp_rank_*) from a Hugging Face directory, from Megatron shards of any other layout, or from a
    LoRA adapter alone."""
    from jumar.ckpt_convert.convert import plan_megatron
    from jumar.schema.parallel import ParallelLayout

    _choice("--schedule", schedule, "1f1b", "dualpipev")
    _choice("--expert-layout", expert_layout, "sequential", "grouped")
    _choice("--dialect", dialect, *DIALECTS)
    _choice("--format", form, "torch", "torch_dist")
    _choice("--dist-layers", dist_layers, "auto", "stacked", "separate")
    if form == "torch" and (dist_layers != "auto" or no_optimizer):
        flag = "--no-optimizer" if no_optimizer else "--dist-layers"
        raise ToolError(f"{flag} goes with --format torch_dist only", hint="add --format torch_dist", code=Exit.USAGE)
    if form == "torch_dist" and mla_mm_split:
        raise ToolError("--mla-mm-split goes with --format torch only", hint="leave one of them out", code=Exit.USAGE)
    layout = _made_of_flags(
        ParallelLayout,
        tp=tp,
        pp=pp,
        vpp=vpp if vpp is not None else 2 if schedule == "dualpipev" else 1,
        ep=ep,
        etp=None if etp == tp and not tp_extend_ep else etp,
        layers_per_stage=_numbers("--layers-per-stage", layers_per_stage),
        noop_layers=_numbers("--noop-layers", noop_layers) or (),
        schedule=schedule,
        tp_extend_ep=tp_extend_ep,
    )
    sources, dst = _split(paths)
    source = _with_adapter(sources, adapter, merge, _options(iteration, family, sets, ignore, base, bearing=True))
    options: dict[str, Any] = dict(
        dialect=dialect, expert_layout=expert_layout, vocab_divisible_by=vocab_divisible_by, dtype=dtype
    )
    if form == "torch_dist":
        from jumar.ckpt_convert.dist_plan import plan_dist

        stacked = {"auto": None, "stacked": True, "separate": False}[dist_layers]
        made = plan_dist(source, layout, **options, stacked=stacked, optimizer=not no_optimizer)
    else:
        made = plan_megatron(source, layout, **options, mla_mm_split=mla_mm_split)
    _carry_out(made, dst, plan=plan, resume=resume, force=force, threads=threads, as_json=as_json)


@app.command("to-hf")
def to_hf(
    paths: Sources,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Largest safetensors file: 5GB, 500MB, 2GiB.")] = "5GB",
    dtype: Dtype = None,
    tokenizer: Annotated[
        Path | None, typer.Option(parser=path, metavar="DIR", help="GGUF: take the tokenizer from there.")
    ] = None,
    iteration: Iteration = None,
    family: FamilyName = None,
    sets: Sets = None,
    ignore: Ignore = None,
    plan: ShowPlan = False,
    resume: Resume = False,
    force: Force = False,
    threads: Threads = THREADS,
    as_json: Json = False,
) -> None:
    """Write a Hugging Face directory from Megatron shards, another Hugging Face directory, or a llama-shaped GGUF file."""
    from jumar.ckpt_convert.convert import plan_hf

    sources, dst = _split(paths)
    size = _size(max_shard_size)
    from jumar.ckpt_convert.opening import is_gguf

    if len(sources) == 1 and is_gguf(sources[0]):
        if plan or resume or iteration or family or sets or ignore:
            hint = "--dtype, --tokenizer, --max-shard-size, --force and --json go with it"
            raise ToolError(
                f"{sources[0]} is a GGUF file, with which the other options have no effect", hint=hint, code=Exit.USAGE
            )
        _from_gguf(sources[0], dst, dtype, tokenizer, size, force, as_json)
        return
    if tokenizer:
        raise ToolError(
            "--tokenizer goes with a GGUF source only", hint="leave it out; other sources have their own", code=Exit.USAGE
        )
    source = _open(sources, _options(iteration, family, sets, ignore))
    made = plan_hf(source, max_shard_bytes=size, dtype=dtype)
    _carry_out(made, dst, plan=plan, resume=resume, force=force, threads=threads, as_json=as_json)


@app.command("merge-lora")
def merge_lora(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="BASE [ADAPTER] DST", help="Model (its own LoRA is merged if no ADAPTER is named), LoRA, target."),
    ],
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Largest safetensors file: 5GB, 500MB, 2GiB.")] = "5GB",
    dtype: Dtype = None,
    iteration: Iteration = None,
    family: FamilyName = None,
    sets: Sets = None,
    ignore: Ignore = None,
    plan: ShowPlan = False,
    resume: Resume = False,
    force: Force = False,
    threads: Threads = THREADS,
    as_json: Json = False,
) -> None:
    """Write a Hugging Face directory with a LoRA merged into the weights: W + scale * B @ A. Values change.

    For Megatron shards: to-megatron BASE DST --adapter ADAPTER --merge.
    """
    from jumar.ckpt_convert.convert import plan_hf

    if not 2 <= len(paths) <= 3:
        hint = "jumar-convert merge-lora BASE [ADAPTER] DST"
        raise ToolError("expected a model, an adapter unless the model bears one, and a target", hint=hint, code=Exit.USAGE)
    size = _size(max_shard_size)
    adapter = paths[1] if len(paths) == 3 else None
    source = _with_adapter(paths[:1], adapter, True, _options(iteration, family, sets, ignore, None, bearing=True))
    made = plan_hf(source, max_shard_bytes=size, dtype=dtype)
    _carry_out(made, paths[-1], plan=plan, resume=resume, force=force, threads=threads, as_json=as_json)


@app.command("to-peft")
def to_peft(
    paths: Sources,
    dtype: Dtype = None,
    base: Base = None,
    iteration: Iteration = None,
    family: FamilyName = None,
    sets: Sets = None,
    ignore: Ignore = None,
    plan: ShowPlan = False,
    resume: Resume = False,
    force: Force = False,
    threads: Threads = THREADS,
    as_json: Json = False,
) -> None:
    """Write a PEFT adapter directory from a Megatron adapter, or from Megatron shards that bear a LoRA."""
    from jumar.ckpt_convert.to_peft import plan_peft

    sources, dst = _split(paths)
    source = _open(sources, _options(iteration, family, sets, ignore, base, bearing=True))
    made = plan_peft(source, base=base, dtype=dtype)
    _carry_out(made, dst, plan=plan, resume=resume, force=force, threads=threads, as_json=as_json)


@app.command()
def verify(
    first: Annotated[Path, typer.Argument(parser=path, metavar="A", help="A checkpoint of any format.")],
    second: Annotated[Path, typer.Argument(parser=path, metavar="B", help="Another.")],
    first_nodes: Annotated[
        list[Path] | None,
        typer.Option("--and-a", parser=path, metavar="DIR", help="Where another node kept ranks of A; may be repeated."),
    ] = None,
    second_nodes: Annotated[
        list[Path] | None,
        typer.Option("--and-b", parser=path, metavar="DIR", help="Where another node kept ranks of B; may be repeated."),
    ] = None,
    base: Base = None,
    first_iteration: Annotated[
        str | None, typer.Option("--iteration-a", help="Iteration of A, a Megatron checkpoint.", show_default="the tracker's")
    ] = None,
    second_iteration: Annotated[
        str | None, typer.Option("--iteration-b", help="Iteration of B, a Megatron checkpoint.", show_default="the tracker's")
    ] = None,
    family: FamilyName = None,
    sets: Sets = None,
    ignore: Ignore = None,
    threads: Threads = THREADS,
    as_json: Json = False,
) -> None:
    """Compare two checkpoints of any formats and layouts tensor by tensor. Exit code 5 if they differ.

    --family and --set are for those of the two that are Megatron checkpoints.
    """
    from jumar.ckpt_convert import show
    from jumar.ckpt_convert.formats.megatron import is_checkpoint
    from jumar.ckpt_convert.formats.peft import is_adapter
    from jumar.ckpt_convert.verification import verify as compare
    from jumar.schema.cli import ByteProgress

    def opened(paths: list[Path], iteration: str | None) -> Checkpoint:
        megatron = paths[0].is_dir() and is_checkpoint(paths[0])
        own = (family, sets) if megatron else (None, None)
        found = base if megatron or is_adapter(paths[0]) else None
        return _open(paths, _options(iteration, *own, ignore, found, bearing=True))

    a = opened([first, *(first_nodes or ())], first_iteration)
    b = opened([second, *(second_nodes or ())], second_iteration)
    with ByteProgress("verify", sum(x.nbytes for boxes in a.sources.values() for x in boxes), quiet=as_json) as progress:
        report = compare(a, b, threads=threads, progress=progress)
    show.report(report, str(first), str(second), as_json)
    if not report.same:
        raise typer.Exit(Exit.CHECK_FAILED)


@app.command()
def inspect(
    paths: Annotated[
        list[Path],
        typer.Argument(parser=path, metavar="PATH...", help="A checkpoint; several directories of one Megatron checkpoint."),
    ],
    base: Base = None,
    iteration: Iteration = None,
    family: FamilyName = None,
    sets: Sets = None,
    ignore: Ignore = None,
    as_json: Json = False,
) -> None:
    """Say what a checkpoint is: family, sizes, dtypes, layout, dialect, iteration, bytes of each rank."""
    from jumar.ckpt_convert import show
    from jumar.ckpt_convert.inspection import describe

    options = _options(iteration, family, sets, ignore, base, bearing=True)
    show.description(describe(_open(paths, options)), as_json)


@app.command()
def families(as_json: Json = False) -> None:
    """List the model families that can be converted."""
    from jumar.ckpt_convert import show

    show.families(as_json)


def _choice(flag: str, value: str, *allowed: str) -> None:
    if value not in allowed:
        hint = f"for example {flag} {allowed[0]}"
        raise ToolError(f"{flag} {value!r}: expected {' or '.join(allowed)}", hint=hint, code=Exit.USAGE)


def _made_of_flags(kind: Callable[..., T], **values: Any) -> T:
    """What flags say. Whatever is wrong with them before a checkpoint is looked at is a fault of the command line (2)."""
    try:
        return kind(**values)
    except ToolError as fault:
        raise ToolError(fault.message, hint=fault.hint, code=Exit.USAGE) from None


def _numbers(flag: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(n) for n in text.split(","))
    except ValueError:
        raise ToolError(
            f"{flag} {text!r}: expected whole numbers with commas between them", hint=f"for example {flag} 3,7", code=Exit.USAGE
        ) from None


def _size(text: str) -> int:
    powers = {"K": 1, "M": 2, "G": 3, "T": 4}
    units = {"": 1, "B": 1}
    units |= {u + tail: base**n for u, n in powers.items() for tail, base in (("", 1000), ("B", 1000), ("IB", 1024))}
    number = text.rstrip("BKMGTIbkmgti ")
    unit = text[len(number) :].strip().upper()
    hint = "for example --max-shard-size 5GB"
    try:
        size = int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        raise ToolError(f"--max-shard-size {text!r}: expected a size like 5GB or 500MB", hint=hint, code=Exit.USAGE) from None
    if size < 1:
        raise ToolError(f"--max-shard-size {text!r}: expected more than nothing", hint=hint, code=Exit.USAGE)
    return size


def _split(paths: list[Path]) -> tuple[list[Path], Path]:
    if len(paths) < 2:
        raise ToolError("expected a source and a target", hint="jumar-convert COMMAND SRC DST", code=Exit.USAGE)
    return paths[:-1], paths[-1]


def _options(
    iteration: str | None,
    family: str | None,
    sets: list[str] | None,
    ignore: str | None,
    base: Path | None = None,
    *,
    bearing: bool = False,
) -> OpenOptions:
    from jumar.ckpt_convert.checkpoint import OpenOptions

    values: dict[str, Any] = {}
    if sets:
        from jumar.schema.recipe import apply_set

        for item in sets:
            apply_set(values, item)
    keys = frozenset(filter(None, (ignore or "").split(",")))
    return OpenOptions(iteration=iteration, family=family, sets=values, ignore=keys, base=base, bearing=bearing)


def _open(paths: list[Path], options: OpenOptions) -> Checkpoint:
    from jumar.ckpt_convert.opening import open_checkpoint

    return _noted(open_checkpoint(*paths, options=options))


def _with_adapter(paths: list[Path], adapter: Path | None, merge: bool, options: OpenOptions) -> Checkpoint:
    from jumar.ckpt_convert.merge import open_with_adapter

    return _noted(open_with_adapter(paths, adapter, options, merge=merge))


def _noted(checkpoint: Checkpoint) -> Checkpoint:
    from jumar.schema.cli import say

    for note in checkpoint.notes:
        say("note", note)
    return checkpoint


def _carry_out(made: Plan, dst: Path, *, plan: bool, resume: bool, force: bool, threads: int, as_json: bool) -> None:
    import time

    from jumar.ckpt_convert import show
    from jumar.ckpt_convert.convert import differing_replicas, run_plan
    from jumar.schema.cli import ByteProgress, say

    for note in made.notes:
        say("note", note)
    if plan:
        show.plan(made, as_json)
        return
    for name in differing_replicas(made.source):
        say("warning", f"{name}: ranks hold different values; the first rank's are used")
    start = time.monotonic()
    total = sum(r.nbytes for f in made.files for r in f.records)
    try:
        with ByteProgress("writing", total, quiet=as_json) as progress:
            written = run_plan(made, dst, resume=resume, force=force, threads=threads, progress=progress)
    except KeyboardInterrupt:
        say("hint", "what is written is kept; run the same command with --resume", "bold cyan")
        raise
    show.result(made, dst, written, time.monotonic() - start, as_json)


def _from_gguf(path: Path, dst: Path, dtype: str | None, tokenizer: Path | None, size: int, force: bool, as_json: bool) -> None:
    from jumar.ckpt_convert import show
    from jumar.ckpt_convert.from_gguf import convert_gguf
    from jumar.schema.cli import ByteProgress

    with ByteProgress("writing", 1, quiet=as_json) as progress:
        facts = convert_gguf(
            path,
            dst,
            dtype=dtype,
            tokenizer=tokenizer,
            max_shard_bytes=size,
            force=force,
            on_progress=progress.set,
        )
    show.gguf(facts, as_json)


def main() -> None:
    run(app, "jumar-convert")


if __name__ == "__main__":
    main()
