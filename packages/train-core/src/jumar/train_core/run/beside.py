"""What lies beside the checkpoints of a run: `hf/`, so that nothing else is needed to convert it or talk to it; the manifest."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jumar.schema.cli import dist_version
from jumar.schema.errors import ToolError
from jumar.schema.manifest import NAME, manifest_text, read_manifest, template_sha256, tokenizer_sha256
from jumar.train_core.job import Job

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
WEIGHT_LISTS = (".index.json",)


def write_beside(job: Job, root: Path, inputs: Sequence[Mapping[str, Any]]) -> None:
    """hf/ and the manifest of a run's directory: the one once, the other whenever it has become another."""
    if not (root / "hf").is_dir():
        _write_hf(job, root)
    text = manifest(job, inputs)
    if not (root / NAME).exists() or (root / NAME).read_text() != text:
        replace_file(root / NAME, text)


def _write_hf(job: Job, root: Path) -> None:
    making = root / ".hf.new"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    for file in sorted(job.hf.iterdir()) if job.hf is not None else ():
        if file.is_file() and not file.name.endswith(WEIGHTS + WEIGHT_LISTS) and file.name != NAME:
            shutil.copyfile(file, making / file.name)
    (making / "config.json").write_text(json.dumps(dict(job.config), indent=2, ensure_ascii=False) + "\n")
    making.rename(root / "hf")


def check_same_run(job: Job, root: Path, inputs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A run that goes on, against the one that began. Raises ToolError (3) for another model; returns warnings of other data.

    inputs: the data's files, as they are now.
    """
    warnings: list[str] = []
    before = read_manifest(root) or {}
    now = json.loads(manifest(job, inputs))
    if "model" in before and before["model"] != now["model"]:
        old, new = ({**each["model"].get("spec", {}), **each["model"]} for each in (before, now))
        other = [f"{key} {old.get(key)} there, {new.get(key)} here" for key in new if key != "spec" and old.get(key) != new[key]]
        raise ToolError(
            f"{root} holds a run of another model: {'; '.join(other[:3])}",
            hint="set another save.path, or the model.path and model.config that the run began with",
        )
    order = {"seed": "train.seed"} | ({"seq_len": "data.seq_len"} if job.task == "pretrain" else {})
    for name, what in order.items():
        if name in before and before[name] != now[name]:
            warnings.append(
                f"{what} was {before[name]} when the run began, and is {now[name]}: samples come in another order from here on"
            )
    old_files, new_files = before.get("inputs", []), now.get("inputs", [])
    changed = [new["name"] for new in new_files if new not in old_files] or [
        old["name"] for old in old_files if old not in new_files
    ]
    if "inputs" in before and changed:
        warnings.append(f"the data is not what the run began with ({', '.join(changed[:4])}): other samples come from here on")
    return warnings


def replace_file(path: Path, text: str) -> None:
    """A small file's new content, whole or not at all."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    sync(beside)
    beside.rename(path)


def sync(path: Path) -> None:
    """What is in a file or directory is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def manifest(job: Job, inputs: Sequence[Mapping[str, Any]]) -> str:
    layout = job.layout
    sizes: dict[str, Any] = {name: getattr(layout, name) for name in ("tp", "pp", "vpp", "cp", "ep", "dp")}
    return manifest_text(
        tool="jumar-train",
        version=dist_version("jumar-train-core"),
        inputs=[dict(each) for each in inputs] or None,
        model={"model_type": job.spec.model_type, "spec": job.spec.to_dict()},
        layout={**sizes, "etp": layout.expert_tp},
        dialect="mcore",
        vocab_size=job.spec.vocab_size,
        padded_vocab_size=job.padded_vocab,
        tokenizer_sha256=tokenizer_sha256(job.hf) if job.hf else None,
        template_sha256=template_sha256(job.hf) if job.hf else None,
        seq_len=job.recipe.data.seq_len,
        seed=job.recipe.train.seed,
    )
