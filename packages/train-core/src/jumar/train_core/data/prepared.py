"""Raw conversations in a recipe, Alpaca or ShareGPT files: jumar-data makes tuning data of them, once on every file system."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jumar.schema.cli import dist_version, say
from jumar.schema.errors import Exit, ToolError
from jumar.schema.manifest import identify, template_sha256, tokenizer_sha256
from jumar.train_core.data.index_cache import IndexCache
from jumar.train_core.recipe import Data, Recipe, Source

RAW = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst")
PATIENCE_S = 4 * 3600
"""For how long the other ranks of a machine wait for the one that prepares."""


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
    hf = model()
    if hf is None:
        raise ToolError(f"data.{name}: {path} is a raw file, and the model has no tokenizer", hint="put it into the model's hf/")
    return _made(path, name, data, hf)


def _made(path: Path, name: str, data: Data, hf: Path) -> Path:
    template = [data.template]
    if data.template == "auto":
        template.append(template_sha256(hf) or "")
    facts = [identify(path), tokenizer_sha256(hf), template, data.seq_len, data.pack, dist_version("jumar-data-prep")]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    cache = IndexCache(data.cache or path.parent / "cache", key)
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
        whole = [sys.executable, "-m", "jumar.data_prep", *command, "-o", str(folder / prefix.name)]
        done = subprocess.run(whole, stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            known = {code.value for code in Exit}
            raise ToolError(
                f"data.{name}: jumar-data could not prepare {path}: exit code {done.returncode}",
                hint=f"try it alone: jumar-data {' '.join(command)} -o {path.with_suffix('')}",
                code=Exit(done.returncode) if done.returncode in known else Exit.INPUT,
            )
        return {"from": path.name}

    cache.build(fill)
    return prefix
