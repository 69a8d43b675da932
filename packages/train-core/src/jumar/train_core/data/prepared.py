"""Raw conversations in a recipe, Alpaca or ShareGPT files: jumar-data makes tuning data of them, once on every file system."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jumar.schema.cli import dist_version, say
from jumar.schema.errors import Exit, ToolError
from jumar.schema.manifest import identify, template_sha256, tokenizer_sha256
from jumar.schema.slots import named_template
from jumar.train_core.data.index_cache import IndexCache
from jumar.train_core.recipe import Data, Recipe, Source

RAW = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst")
PATIENCE_S = 4 * 3600
"""For how long the other ranks of a machine wait for the one that prepares."""
ONLY_WHOLE_FILES = ("--max-bad", "1")
"""A file that breaks off is an error; records that are bad by themselves are left out, with a warning."""


def prepared(recipe: Recipe, model: Callable[[], Path | None]) -> Recipe:
    """The recipe with the prefix of prepared data in the place of every raw file.

    model: finds the directory of the tokenizer. Raises ToolError: 4 without the extra [data], else what jumar-data says.
    """
    data, changes = recipe.data, {}
    for name in ("train", "valid", "test"):
        given: Path | tuple[Source, ...] | None = getattr(data, name)
        if isinstance(given, tuple):
            new: Any = tuple(replace(each, prefix=_prefix(each.prefix, name, data, model)) for each in given)
        else:
            new = given and _prefix(given, name, data, model)
        if new != given:
            changes[name] = new
    if not changes and (data.pack or data.template != "auto"):
        field = "pack" if data.pack else "template"
        raise ToolError(
            f"data.{field} = {getattr(data, field)} has no effect: it is for raw files, and the data is prepared already",
            hint=f"leave data.{field} out; jumar-data sft has --pack and --template",
            code=Exit.USAGE,
        )
    return replace(recipe, data=replace(data, **changes)) if changes else recipe


def template_name(template: str) -> str:
    """data.template without the directory of its file, FILE.json or FILE.json:NAME: where that lies does not matter."""
    file, colon, name = template.rpartition(":") if ".json:" in template else (template, "", "")
    return f"{Path(file).name}{colon}{name}"


def _template(template: str, hf: Path) -> list[str]:
    """What decides how conversations are written: the template, and what is in its file."""
    if template == "auto":
        return [template, template_sha256(hf) or ""]
    file = Path(template.rpartition(":")[0] if ".json:" in template else template)
    held = [identify(file, full=True)["sha256"]] if file.suffix == ".json" and file.is_file() else []
    return [template_name(template), *held]


def is_raw(path: Path) -> bool:
    return path.suffix in RAW and path.is_file()


def _prefix(path: Path, name: str, data: Data, model: Callable[[], Path | None]) -> Path:
    if not is_raw(path):
        if path.suffix in RAW and not path.exists() and not list(path.parent.glob(f"{path.name}*.idx")):
            raise ToolError(f"data.{name}: {path} does not exist", hint="look at the path; ~ is not expanded in a recipe")
        return path
    if find_spec("jumar.data_prep") is None:
        raise ToolError(
            f"data.{name}: {path} is a raw file, which jumar-data prepares, and that is not installed",
            hint="pip install 'jumar-train-core[data]', or prepare it elsewhere and give the prefix",
            code=Exit.ENVIRONMENT,
        )
    _check_template(data.template)
    hf = model()
    if hf is None:
        raise ToolError(f"data.{name}: {path} is a raw file, and the model has no tokenizer", hint="put it into the model's hf/")
    return _made(path, name, data, hf)


def _made(path: Path, name: str, data: Data, hf: Path) -> Path:
    facts = [
        identify(path, full=True),
        tokenizer_sha256(hf),
        _template(data.template, hf),
        data.seq_len,
        data.pack,
        ONLY_WHOLE_FILES,
        dist_version("jumar-data-prep"),
    ]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    cache = IndexCache(data.cache or path.parent / "cache", key, what="what is prepared of raw files")
    prefix = cache.folder / path.name.split(".")[0]
    if cache.facts() is not None:
        return prefix
    if int(os.environ.get("LOCAL_RANK", "0")):
        cache.wait(PATIENCE_S)
        return prefix
    command = ["sft", str(path), "--tokenizer", str(hf), "--template", data.template, "--seq-len", str(data.seq_len)]
    command += ["--pack"] if data.pack else []

    def fill(folder: Path) -> dict[str, Any]:
        say("preparing", f"data.{name}: jumar-data {' '.join(command)}", "bold cyan")
        ended = _jumar_data([*command, *ONLY_WHOLE_FILES, "-o", str(folder / prefix.name)], staging=folder, place=cache.folder)
        if ended.code:
            raise _not_prepared(ended, path, f"data.{name}", command, folder, cache.root)
        return {"from": path.name}

    cache.build(fill)
    return prefix


@dataclass(frozen=True, slots=True)
class Ended:
    """How jumar-data ended: its exit code, and its last words."""

    code: int
    error: str
    hint: str


def _jumar_data(words: list[str], *, staging: Path, place: Path) -> Ended:
    """Runs it and passes on what it says for people, but for the error that it ends with, which is ours to say.

    staging: the directory that it writes to, which is to be called `place` then.
    """
    last: dict[str, str] = {}
    command = [sys.executable, "-m", "jumar.data_prep", *words]
    nowhere, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(command, stdout=nowhere, stderr=pipe, text=True, errors="replace") as process:
        try:
            for line in process.stderr or ():
                word, _, text = line.rstrip("\n").partition(": ")
                if word == "error" or (word == "hint" and last):
                    last[word] = text
                elif word in ("note", "warning", "hint"):
                    say(word, text.replace(str(staging), str(place)), "bold cyan" if word == "hint" else "bold yellow")
                else:
                    sys.stderr.write(line)
        except BaseException:
            process.kill()
            raise
    return Ended(process.returncode, last.get("error", f"exit code {process.returncode}"), last.get("hint", ""))


def _not_prepared(ended: Ended, path: Path, where: str, command: list[str], staging: Path, kept: Path) -> ToolError:
    """The error in the recipe's words. A list of what was refused is moved to `kept`: the staging directory goes."""
    hint = _in_recipe_words(ended.hint)
    for rejects in staging.glob("*.rejects.jsonl"):
        rejects.replace(kept / rejects.name)
        hint = hint.replace(str(rejects), str(kept / rejects.name))
    alone = f"prepare it alone, and give its prefix as {where}: jumar-data {' '.join(command)} -o {path.with_suffix('')}"
    if ONLY_WHOLE_FILES[0] in hint:
        hint = f"mend the file; to take what comes before the fault, {alone}"
    elif not hint or "--" in hint:  # flags, which a recipe has not
        hint = f"{hint}; {alone}" if hint else alone
    known = {code.value for code in Exit} - {Exit.USAGE}  # the command line was ours, so what does not fit is the file
    return ToolError(
        f"{where}: {path} cannot be prepared: {ended.error.removeprefix(f'{path}: ').removeprefix(f'{path}, ')}",
        hint=hint,
        code=Exit(ended.code) if ended.code in known else Exit.INPUT,
    )


def _check_template(name: str) -> None:
    """A template that has a name must be one of jumar-data's; those of files it looks for itself."""
    if name == "auto" or ".json" in name:
        return
    try:
        named_template(name)
    except ToolError as fault:
        raise ToolError(f"data.template: {fault.message}", hint=_in_recipe_words(fault.hint or ""), code=Exit.USAGE) from None


def _in_recipe_words(text: str) -> str:
    return text.replace("--seq-len", "data.seq_len").replace("--template", "data.template")
