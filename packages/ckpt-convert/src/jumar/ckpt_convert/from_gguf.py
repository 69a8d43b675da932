"""A llama-shaped GGUF file as a Hugging Face directory: the one source whose values change, since its weights are dequantised."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jumar.ckpt_convert.checkpoint import stamp
from jumar.ckpt_convert.convert import dtype_name
from jumar.ckpt_convert.formats.gguf import import_gguf
from jumar.ckpt_convert.formats.gguf_header import read_header
from jumar.ckpt_convert.journal import NAME as JOURNAL
from jumar.ckpt_convert.journal import Journal
from jumar.ckpt_convert.target import Target
from jumar.ckpt_convert.tensors import DTYPES
from jumar.schema.cli import dist_version
from jumar.schema.errors import Exit, ToolError
from jumar.schema.manifest import NAME as MANIFEST
from jumar.schema.manifest import identify, manifest_text, template_sha256, tokenizer_sha256

HEADER_BYTES = 1 << 20
BEGUN = "gguf"
"""What the journal names instead of a plan: nothing of a stopped run is gone on with."""


def convert_gguf(
    path: Path,
    dst: Path,
    *,
    dtype: str | None = None,
    tokenizer: Path | None = None,
    max_shard_bytes: int = 5_000_000_000,
    force: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Writes `dst` from a GGUF file, dequantised to `dtype` ("fp32" unless said otherwise).

    tokenizer: a directory whose tokenizer is taken instead of the file's own.
    Returns the facts that the command prints; `already_done` is True if `dst` held exactly this before.
    Raises ToolError as `import_gguf` and `Target.claim` do.
    """
    if not path.is_file():
        raise ToolError(f"{path} does not exist", hint="give the path of a .gguf file on this machine")
    start, kind = time.monotonic(), dtype_name(dtype or "fp32")
    recipe = {"command": "to-hf", "dtype": kind, "max_shard_bytes": max_shard_bytes}
    recipe["tokenizer"] = tokenizer_sha256(tokenizer) if tokenizer else None
    stated = {"inputs": [identify(path, head=HEADER_BYTES)], "recipe": {k: v for k, v in recipe.items() if v is not None}}
    target = Target(dst, [path])
    if not force and target.states(stated, [path], head=HEADER_BYTES):
        target.tidy()
        return {"out": str(dst), "already_done": True, "seconds": round(time.monotonic() - start, 3)}
    target.drop_stopped(BEGUN)
    target.claim(resume=False, force=force)
    target.check_space(_dequantised_bytes(path, kind))
    with _begun(target):
        before = stamp(path)
        made = import_gguf(
            path, target.staging, dtype=kind, tokenizer=tokenizer, max_shard_bytes=max_shard_bytes, on_progress=on_progress
        )
        if stamp(path) != before:
            hint = "wait until nothing writes there, then run the same command again"
            raise ToolError(f"{path} changed while it was read", hint=hint)
        target.finish({MANIFEST: _manifest(target.staging, stated, made).encode()}, resumable=False)
    return {
        "out": str(dst),
        "already_done": False,
        "seconds": round(time.monotonic() - start, 3),
        "dtype": kind,
        "types": made["quantisation"],
        "tensors": made["tensors"],
        "bytes": made["bytes"],
        "files": made["shards"],
        "not_carried": made["not_carried"],
    }


@contextmanager
def _begun(target: Target) -> Iterator[None]:
    """The staging directory, locked by its journal; gone if anything fails. What a killed run leaves, the next one removes."""
    try:
        journal = Journal(target.staging, BEGUN, resume=False)
        try:
            yield
        finally:
            journal.close()
    except OSError as fault:
        raise ToolError(
            f"{target.dst}: cannot be written: {fault.strerror or fault}",
            hint="choose an empty or new directory on a disk with room",
            code=Exit.ENVIRONMENT,
        ) from fault
    finally:
        shutil.rmtree(target.staging, ignore_errors=True)


def _manifest(staging: Path, stated: dict[str, Any], made: dict[str, Any]) -> str:
    files = (p.relative_to(staging).as_posix() for p in staging.rglob("*") if p.is_file())
    return manifest_text(
        tool="jumar-convert",
        version=dist_version("jumar-ckpt-convert"),
        **stated,
        model={"model_type": json.loads((staging / "config.json").read_text(encoding="utf-8"))["model_type"]},
        tokenizer_sha256=tokenizer_sha256(staging),
        template_sha256=template_sha256(staging),
        counts={"tensors": made["tensors"], "bytes": made["bytes"]},
        outputs=sorted(name for name in files if name != JOURNAL),
        bit_exact=False,
    )


def _dequantised_bytes(path: Path, dtype: str) -> int:
    _, tensors = read_header(path)
    return sum(math.prod(tensor.shape) for tensor in tensors.values()) * DTYPES[dtype].itemsize
