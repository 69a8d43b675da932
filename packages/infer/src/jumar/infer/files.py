"""Which files decide what a model answers: for manifests, and to know whether answers are still its own.."""

from __future__ import annotations

from pathlib import Path

from jumar.ckpt_convert import OpenOptions, open_merged
from jumar.ckpt_convert.formats.hf import carried_files
from jumar.schema.errors import ToolError


def model_files(
    path: Path,
    *,
    tokenizer: Path | None = None,
    adapter: Path | None = None,
    iteration: str | None = None,
    family: str | None = None,
) -> list[Path]:
    """Weights, config, tokenizer, template, generation settings, of the model and of what is laid over it. No torch.

    The options are those of `open_model`. Of a directory that only transformers reads, its own files; so of one that is at
    fault, which is for whoever opens it to say.
    """
    found = [file for each in (tokenizer, adapter) if each is not None for file in _own(each)]
    try:
        checkpoint = open_merged(path, adapter, OpenOptions(iteration=iteration, family=family))
    except ToolError:
        return [*found, *_own(path)]
    extras = checkpoint.extras
    return [*found, *checkpoint.files, *([extras / name for name in carried_files(extras)] if extras is not None else ())]


def _own(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path] if path.is_file() else []
    return sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
