"""Answers to a file of prompts, from Python: what `jumar-infer generate MODEL FILE.jsonl -o OUT.jsonl` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jumar.infer.conversation import JINJA
from jumar.infer.files import model_files
from jumar.infer.output import Output

SHAPING = ("tokenizer", "adapter", "iteration", "family")
"""Options of opening a model that name files."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A file of answers, a JSON object a line. already_done: an earlier call had made it; tokens: of the answers."""

    out: Path
    already_done: bool
    samples: int
    tokens: int


def answer_file(
    model: str | Path,
    prompts: str | Path,
    out: str | Path,
    *,
    template: str = "auto",
    max_batch: int = 8,
    force: bool = False,
    opening: Mapping[str, Any] | None = None,
    **asked: Any,
) -> Answered:
    """Answers every line of a file, {"prompt": ...} or {"messages": [...]}, unless this has been done before.

    opening: options of `Engine.open`; asked: fields of `Sampling`, over the model's own settings
    Raises ToolError: 3 for a line that is at fault, and where `out` was made of something else, unless `force`; as `Engine.open`.
    """
    from jumar.infer import generate as work
    from jumar.infer.engine import Engine, Limits

    opening, how = dict(opening or {}), work.How()
    output = output_of(Path(out), Path(model), str(prompts), opening, **how.recipe(), template=template, **asked)
    already = output.already(force=force)
    if not already:
        limits = Limits(max_batch=max_batch, cache_tokens=opening.pop("cache_tokens", None))
        engine = Engine.open(model, limits, **opening)
        output.write(work.many_prompts(engine, str(prompts), engine.defaults.sampling(**asked), how, template))
    return Answered(Path(out), already, **output.counts())


def output_of(out: Path, model: Path, source: str | None, opening: Mapping[str, Any], **recipe: Any) -> Output:
    """source: a file of prompts; opening: how the model is opened; recipe: what else decides what is written."""
    known = {name: opening.get(name) for name in SHAPING}
    inputs = [*model_files(model, **known), *([Path(source)] if source is not None else [])]
    if (template := str(recipe.get("template"))).endswith(JINJA):
        inputs.append(Path(template))
        recipe["template"] = Path(template).name
    recipe |= {name: opening[name] for name in ("engine", "dtype", "quantize") if opening.get(name, "auto") != "auto"}
    return Output(out, inputs, [model, *(path for name in SHAPING[:2] if (path := known[name]) is not None)], recipe)
