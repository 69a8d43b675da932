"""Opening: what is this path, and who reads it."""

from __future__ import annotations

from pathlib import Path

from jumar.ckpt_convert.checkpoint import Checkpoint, OpenOptions
from jumar.ckpt_convert.formats import hf, megatron, peft
from jumar.ckpt_convert.open_dist import is_dist_checkpoint, open_dist
from jumar.ckpt_convert.open_hf import open_hf
from jumar.ckpt_convert.open_megatron import open_megatron
from jumar.ckpt_convert.open_peft import open_peft
from jumar.schema.errors import Exit, ToolError


def is_gguf(path: Path) -> bool:
    """Whether a file is in GGUF format, by its first bytes (or, if it is damaged, by its name)."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF" or path.suffix == ".gguf"


def open_checkpoint(*paths: Path | str, options: OpenOptions | None = None) -> Checkpoint:
    """A Hugging Face directory, a PEFT adapter, or a Megatron checkpoint or adapter: its root, or one iteration of it.

    Several directories are one Megatron checkpoint whose nodes kept their own ranks.

    Nothing but headers is read. Raises ToolError (3) for what is missing, damaged, contradictory or not understood.
    """
    options = options or OpenOptions()
    roots = tuple(Path(p) for p in paths)
    if not roots:
        raise ToolError("no checkpoint is named", hint="open_checkpoint(PATH)")
    for root in roots:
        if not root.exists():
            looks_like_hub = len(root.parts) == 2 and not str(root).startswith((".", "/"))
            hub = " (hub names are not fetched: jumar never opens the network)" if looks_like_hub else ""
            raise ToolError(f"{root} does not exist{hub}", hint="give the path of a directory on this machine")
    if len(roots) == 1 and roots[0].is_dir() and is_dist_checkpoint(roots[0], options.iteration):
        return open_dist(roots[0], options)
    if all(root.is_dir() and megatron.is_checkpoint(root) for root in roots):
        return open_megatron(roots, options)
    if len(roots) > 1:
        raise ToolError(
            f"{len(roots)} sources, and not all are Megatron checkpoints: {', '.join(map(str, roots))}",
            hint="several sources are for one Megatron checkpoint whose nodes kept their own ranks",
        )
    (root,) = roots
    if root.is_dir() and peft.is_adapter(root):
        return open_peft(root, options)
    if options.base is not None:
        raise ToolError(f"{root} is no adapter: --base has no effect on it", hint="leave --base out", code=Exit.USAGE)
    if root.is_dir() and (hf.has_weights(root) or (root / "config.json").exists()):
        return open_hf(root, options)
    if is_gguf(root):
        raise ToolError(f"{root} is a GGUF file, which to-hf alone reads", hint=f"first: jumar-convert to-hf {root} HF_DIR")
    raise ToolError(
        f"{root} is no checkpoint that jumar reads",
        hint="expected a Hugging Face directory (config.json and *.safetensors) or a Megatron one (iter_*/mp_rank_*)",
    )
