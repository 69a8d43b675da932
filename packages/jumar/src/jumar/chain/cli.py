"""jumar: parse, call one function, print."""

# Without `from __future__ import annotations`: typer would compile the text of every annotation, for help too.
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jumar.schema.cli import make_app, print_json, run, say
from jumar.schema.errors import Exit, ToolError
from jumar.schema.options import path

if TYPE_CHECKING:
    from jumar.chain.migrate import Migrated


def _chain(as_json: bool) -> None:
    from jumar.chain.tools import chain, lines

    if as_json:
        print_json({"chain": chain()})
        return
    for line in lines():
        print(line)


app = make_app(
    "jumar",
    "jumar",
    "Data, weights, training, generation, scores: a chain of separate tools. Without a command: what is installed of it.",
    epilog="Example: jumar migrate pretrain_qwen3_8b.sh -o recipes/",
    alone=_chain,
)


@app.command("migrate")
def migrate_(
    script: Annotated[
        Path, typer.Argument(parser=path, metavar="SCRIPT.sh", help="A launch script of Megatron-LM or MindSpeed-LLM.")
    ],
    given: Annotated[list[str] | None, typer.Argument(metavar="[ARG]...", help="What stands for $1, $2, ... in it.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", parser=path, metavar="DIR", help="Where recipes are written.", show_default="only shown"),
    ] = None,
    variables: Annotated[
        list[str] | None, typer.Option("--var", metavar="NAME=VALUE", help="A variable that is set outside; may be repeated.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="DIR", help="The model: config.json, tokenizer.", show_default="the script's")
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Go on without the flags that are refused.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace recipes that are there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Read a launch script, never run it: our commands and recipes for it, and what becomes of every flag.

    Exit code 3 if a flag is refused (unless --partial) or unknown.
    """
    from jumar.chain.migrate import migrate
    from jumar.chain.report import as_json as object_of
    from jumar.chain.report import lines

    migrated = migrate(script, given or (), _pairs(variables or ()), model, output)
    for number, text in migrated.notes:
        say("note", f"line {number}: {text}", "bold cyan")
    whole = partial or not (migrated.refused or migrated.unknown)
    writes = output is not None and whole and not migrated.unknown
    changed = _write(migrated, force=force) if writes else []
    if as_json:
        there = any(made.files for made in migrated.made) and writes
        print_json({**object_of(migrated), "out": str(output) if there else None, "already_done": there and not changed})
    else:
        for line in lines(migrated, whole=whole, written=writes):
            print(line)
    _end(migrated, partial=partial)


def _pairs(variables: "list[str] | tuple[str, ...]") -> dict[str, str]:
    found = {}
    for item in variables:
        name, sign, value = item.partition("=")
        if not sign or not name.isidentifier():
            raise ToolError(
                f"--var {item!r}: expected NAME=VALUE", hint="for example --var DATA_PATH=data/corpus", code=Exit.USAGE
            )
        found[name] = value
    return found


def _write(migrated: "Migrated", *, force: bool) -> "list[Path]":
    """The files that were written; those that lay there already are told too."""
    from jumar.chain.writing import write

    files = {Path(name): content for made in migrated.made for name, content in made.files.items()}
    changed = write(files, force=force)
    for file in files:
        say("written" if file in changed else "already done", str(file))
    return changed


def _end(migrated: "Migrated", *, partial: bool) -> None:
    """Raises ToolError (3) where something is refused or unknown."""
    unknown = [v.flag for made in migrated.made for v in made.of("unknown")]
    refused = [v.flag for made in migrated.made if not made.job.refused for v in made.of("refused")]
    faults = dict.fromkeys(
        f"{made.job.program}: {fault}" if made.job.refused else fault for made in migrated.made for fault in made.faults
    )
    makes = any(made.commands for made in migrated.made)
    if unknown:
        beside = "" if not makes else "; nothing is written" if partial else "; --partial shows what there is without them"
        hint = f"correct them in the script, or take them out{beside}"
        raise ToolError(f"unknown: {', '.join(dict.fromkeys(unknown))}", hint=hint)
    if (refused or faults) and not (partial and makes):
        said = [*([f"refused: {', '.join(dict.fromkeys(refused))}"] if refused else []), *faults]
        hint = "each says what to do" + (
            "; --partial goes on without them" if makes else "; what becomes of its flags stands above"
        )
        raise ToolError("; ".join(said), hint=hint)


def main() -> None:
    """The command."""
    run(app, "jumar")


if __name__ == "__main__":
    main()
