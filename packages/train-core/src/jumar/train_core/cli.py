"""jumar-train: parse, call one function, print."""

# Without `from __future__ import annotations`: typer would compile the text of every annotation, for help too.
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from jumar.schema.cli import make_app, print_json, run, stdout_for_data
from jumar.schema.errors import Exit
from jumar.schema.options import one_of, path

app = make_app(
    "jumar-train",
    "jumar-train-core",
    "Train language models in parallel on Ascend NPUs, CUDA GPUs and CPUs, with megatron-core as the engine. "
    "What does not fit is said before anything is launched.",
    epilog="Example: jumar-train pretrain recipe.yaml --nproc 8 --set load.path=hf/",
)
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
DeviceName = Annotated[str, typer.Option("--device", help=one_of("auto", group="jumar.devices"))]


Recipe = Annotated[
    Path, typer.Argument(parser=path, metavar="RECIPE.yaml", help="What to train: `jumar-train schema` shows all of it.")
]
Nproc = Annotated[int | None, typer.Option("--nproc", min=1, help="Ranks on this machine.", show_default="1, or torchrun's")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="A recipe field; may be repeated.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what the run would be, and stop.")]


@app.command()
def pretrain(
    recipe: Recipe,
    nproc: Nproc = None,
    sets: Sets = None,
    dry_run: DryRun = False,
    device: DeviceName = "auto",
    as_json: Json = False,
) -> None:
    """Train on documents: recipe.yaml names the model, the data and the layout.

    On one machine with --nproc; on several the same on each, with PET_NNODES, PET_NODE_RANK and PET_MASTER_ADDR set.
    """
    _start("pretrain", recipe, nproc, sets, dry_run, device, as_json)


@app.command()
def sft(
    recipe: Recipe,
    nproc: Nproc = None,
    sets: Sets = None,
    dry_run: DryRun = False,
    device: DeviceName = "auto",
    as_json: Json = False,
) -> None:
    """Tune on conversations, one by one or packed: data.train is the prefix that jumar-data sft was given.

    On one machine with --nproc; on several the same on each, with PET_NNODES, PET_NODE_RANK and PET_MASTER_ADDR set.
    """
    _start("sft", recipe, nproc, sets, dry_run, device, as_json)


def _start(
    task: Literal["pretrain", "sft"],
    recipe: Path,
    nproc: int | None,
    sets: list[str] | None,
    dry_run: bool,
    device: str,
    as_json: bool,
) -> None:
    from contextlib import nullcontext

    from jumar.train_core.run.stop import interruptible

    begin = time.monotonic()
    with interruptible(), stdout_for_data() if as_json and not dry_run else nullcontext():
        from jumar.train_core.start import start

        outcome = start(task, recipe, sets or [], nproc=nproc, device=device, dry_run=dry_run, as_json=as_json)
    if as_json and outcome.recipe is not None and outcome.speaks and outcome.code in (Exit.OK, Exit.STOPPED):
        from jumar.train_core.trained import trained

        print_json(trained(outcome.recipe, outcome.already, time.monotonic() - begin).as_json())
    if outcome.code:
        raise typer.Exit(outcome.code)


@app.command()
def schema(as_json: Json = False) -> None:
    """Print every recipe field with its default and meaning, as YAML to begin with."""
    from jumar.train_core.schema_text import json_schema, schema_text

    print_json(json_schema()) if as_json else print(schema_text(), end="")


@app.command()
def doctor(as_json: Json = False, device: DeviceName = "auto") -> None:
    """Look at what a training needs here: engine, device, driver, limits, ports. Exit code 4 if something is missing."""
    from dataclasses import asdict

    from jumar.train_core import show
    from jumar.train_core.doctor import examine

    checks = list(examine(device))
    failed = [check for check in checks if check.status == "fail"]
    if as_json:
        print_json({"ok": not failed, "checks": [asdict(check) for check in checks]})
    else:
        show.doctor(checks)
    if failed:
        raise typer.Exit(Exit.ENVIRONMENT)


def main() -> None:
    run(app, "jumar-train")


if __name__ == "__main__":
    main()
