"""Who answers: the checkpoint in a directory, or an endpoint. Neither is opened before it is asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jumar.eval.requests import Model, Opening
from jumar.eval.run import Say, Settings, evaluate
from jumar.schema.errors import Exit, ToolError

ADDRESS = ("http://", "https://")
AT_ONCE = 16
"""Requests that an endpoint is sent at once, unless told."""
AS_FAST = ("max_batch", "cache_tokens")
"""Of an opening what changes no answer."""
Opens = Callable[[], Model]


def score(
    model: str | Path,
    settings: Settings,
    *,
    opening: Opening | None = None,
    name: str | None = None,
    say: Say = lambda word, text: None,
) -> dict[str, Any]:
    """What `jumar-eval run MODEL` does: `evaluate` for a directory or an address.

    opening: how a directory is opened; name: the model's at an endpoint, None: its only one
    Raises ToolError as `evaluate`; 4 where jumar-infer is needed, and not installed.
    """
    opening = opening or Opening()
    asked = settings_for(str(model), settings, opening)
    return evaluate(opener(str(model), name, opening, chat=settings.chat), asked, say)


def is_address(model: str) -> bool:
    """An endpoint's, not a directory's. Raises ToolError (2) for other protocols."""
    if "://" in model and not model.startswith(ADDRESS):
        hint = "http://HOST/v1, or the directory of a checkpoint"
        raise ToolError(f"{model}: an address begins with http:// or https://", hint=hint, code=Exit.USAGE)
    return model.startswith(ADDRESS)


def without_effect(model: str, name: str | None, opening: Opening) -> Iterator[str]:
    """Options of another kind of MODEL."""
    if not is_address(model):
        if name is not None:
            yield "--name has no effect: it is of endpoints, and MODEL is a directory"
        return
    asked = ("max_batch", "tp", "pp")  # which an endpoint has, or refuses
    others = ((key, value) for key, value in asdict(opening).items() if key not in asked)
    if given := [f"--{key.replace('_', '-')}" for key, value in others if value not in (None, "auto")]:
        yield f"without effect: {', '.join(given)}; of checkpoints, and MODEL is an endpoint, whose server opens its model"


def opener(model: str, name: str | None, opening: Opening, *, chat: bool) -> Opens:
    """What opens a model when it is called."""

    def remote() -> Model:
        from jumar.eval.remote import RemoteModel

        if opening.tp * opening.pp > 1:
            raise ToolError("--tp and --pp are of checkpoints", hint="the server spreads its model", code=Exit.USAGE)
        return RemoteModel(model, name=name, at_once=opening.max_batch or AT_ONCE, chat=chat)

    def local() -> Model:
        with need_infer():
            from jumar.eval.local import LocalModel
        return LocalModel(Path(model), opening)

    return remote if is_address(model) else local


def settings_for(model: str, settings: Settings, opening: Opening) -> Settings:
    """Settings that also say whom they ask: all of the model and of its opening that may change an answer, and its files."""
    without = (*AS_FAST, *(key for key in ("tp", "pp") if getattr(opening, key) == 1))
    without = tuple(asdict(opening)) if is_address(model) else without
    same = {key: str(value) for key, value in asdict(opening).items() if value is not None and key not in without}
    arguments = {
        "model": model,
        "num_fewshot": settings.shots,
        "limit": settings.limit,
        "apply_chat_template": settings.chat,
        "system_instruction": settings.system,
        **same,
    }
    return replace(settings, arguments=arguments, files=_files(model, opening))


def _files(model: str, opening: Opening) -> tuple[Path, ...]:
    """Those of a checkpoint. Of several processes the first alone needs them."""
    if is_address(model) or int(os.environ.get("RANK", "0")):
        return ()
    with need_infer():
        from jumar.infer.files import model_files
    known = {name: getattr(opening, name) for name in ("tokenizer", "adapter", "iteration", "family")}
    return tuple(model_files(Path(model), **known))


@contextmanager
def need_infer() -> Iterator[None]:
    """Where jumar-infer is imported. Raises ToolError (4) where it is not installed."""
    try:
        yield
    except ModuleNotFoundError as fault:
        if fault.name is None or not fault.name.startswith(("jumar.infer", "jumar.ckpt_convert", "torch")):
            raise
        raise ToolError(
            "scoring a checkpoint needs jumar-infer, which is not installed",
            hint='pip install "jumar-eval[local]"; an endpoint (http://HOST/v1) needs no more than is here',
            code=Exit.ENVIRONMENT,
        ) from None
