"""What lies beside the checkpoints of a run: `hf/`, so that nothing else is needed to convert it or talk to it; the manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from jumar.schema.cli import dist_version
from jumar.schema.manifest import NAME, manifest_text, template_sha256, tokenizer_sha256
from jumar.train_core.job import Job

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
WEIGHT_LISTS = (".index.json",)


def write_beside(job: Job, root: Path) -> None:
    """Writes hf/ and the manifest into a run directory, once."""
    if (root / NAME).exists() and (root / "hf").is_dir():
        return
    making = root / ".hf.new"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    for file in sorted(job.hf.iterdir()) if job.hf is not None else ():
        if file.is_file() and not file.name.endswith(WEIGHTS + WEIGHT_LISTS) and file.name != NAME:
            shutil.copyfile(file, making / file.name)
    (making / "config.json").write_text(json.dumps(dict(job.config), indent=2, ensure_ascii=False) + "\n")
    shutil.rmtree(root / "hf", ignore_errors=True)
    making.rename(root / "hf")
    (root / NAME).write_text(manifest(job))


def manifest(job: Job) -> str:
    layout = job.layout
    sizes: dict[str, Any] = {name: getattr(layout, name) for name in ("tp", "pp", "vpp", "cp", "ep", "dp")}
    return manifest_text(
        tool="jumar-train",
        version=dist_version("jumar-train-core"),
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
