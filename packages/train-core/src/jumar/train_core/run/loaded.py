"""The checkpoint that a run takes its weights from: any that jumar-convert reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jumar.schema.errors import Exit, ToolError
from jumar.schema.manifest import identify

if TYPE_CHECKING:
    from jumar.ckpt_convert import Checkpoint


def open_weights(path: Path, iteration: int | None) -> Checkpoint:
    """Its headers. Raises ToolError (4) without the extra [convert], else as `open_checkpoint`."""
    try:
        from jumar.ckpt_convert import OpenOptions, open_checkpoint
    except ImportError:
        raise ToolError(
            f"reading weights from {path} needs jumar-ckpt-convert",
            hint="pip install 'jumar-train-core[convert]'",
            code=Exit.ENVIRONMENT,
        ) from None
    return open_checkpoint(path, options=OpenOptions(iteration=None if iteration is None else str(iteration)))


def loaded_files(path: Path | None, iteration: int | None) -> list[dict[str, Any]] | None:
    """Its files as manifests know them; None: random weights."""
    if path is None:
        return None
    return [identify(file) for file in sorted(open_weights(path, iteration).files, key=str)]
