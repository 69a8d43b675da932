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
from jumar.train_core.data.prepared import template_name
from jumar.train_core.dry_run import changed
from jumar.train_core.job import Job
from jumar.train_core.recipe import Recipe
from jumar.train_core.run.loaded import loaded_files

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
WEIGHT_LISTS = (".index.json",)
SHAPING = ("model", "data", "optim", "schedule", "train")
"""Sections of a recipe that decide what the weights become."""
NO_MATTER = {
    "model": ("path",),
    "data": ("cache", "workers"),
    "train": ("epochs", "micro_batch_size", "eval_every", "eval_batches"),
}
"""Fields of them that do not, or are told otherwise: a model by its traits, epochs by steps."""


def write_beside(job: Job, root: Path, inputs: Sequence[Mapping[str, Any]]) -> None:
    """hf/ and the manifest of a run's directory: the one once, the other whenever it has become another."""
    if not (root / "hf").is_dir():
        _write_hf(job, root)
    began = (
        (read_manifest(root) or {}).get("load")
        if any(root.glob("iter_*[0-9]"))
        else loaded_files(job.recipe.load.path, job.recipe.load.iteration)
    )
    text = manifest(job, inputs, began)
    if not (root / NAME).exists() or (root / NAME).read_text(encoding="utf-8") != text:
        replace_file(root / NAME, text)


def _write_hf(job: Job, root: Path) -> None:
    making = root / ".hf.new"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    for file in sorted(job.hf.iterdir()) if job.hf is not None else ():
        if file.is_file() and not file.name.endswith(WEIGHTS + WEIGHT_LISTS) and file.name != NAME:
            shutil.copyfile(file, making / file.name)
    (making / "config.json").write_text(json.dumps(dict(job.config), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
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


def differences(job: Job, root: Path, inputs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What of a run that has all its steps was otherwise than it would be now. Raises ToolError as `check_same_run`."""
    found, before = check_same_run(job, root, inputs), read_manifest(root) or {}
    if "recipe" in before:
        old, new = before["recipe"], json.loads(json.dumps(recipe_facts(job)))
        for name in sorted({*old, *new} - {"command"}):
            one, other = ({**each.get(name, {})} for each in (old, new))
            fields = sorted(key for key in {*one, *other} - {"steps", "seed"} if one.get(key) != other.get(key))
            found += [f"{name}.{key} was {_shown(one, key)}, and is {_shown(other, key)}" for key in fields]
    load = job.recipe.load
    if load.path is not None and "load" in before and before["load"] != loaded_files(load.path, load.iteration):
        found.append(f"the weights of load.path ({load.path}) are not those that it began with")
    return found


def _shown(section: Mapping[str, Any], key: str) -> str:
    return json.dumps(section[key], ensure_ascii=False) if key in section else "the default"


def recipe_facts(job: Job) -> dict[str, Any]:
    """The fields of the recipe that decide what the weights become and differ from the defaults. Data by its names: where it lies
    does not matter, and `inputs` say what it is."""
    given = changed(job.recipe, Recipe())
    facts = {name: {k: v for k, v in given.get(name, {}).items() if k not in NO_MATTER.get(name, ())} for name in SHAPING}
    for key in ("train", "valid", "test"):
        if key in facts["data"]:
            facts["data"][key] = _names(facts["data"][key])
    if "template" in facts["data"]:
        facts["data"]["template"] = template_name(facts["data"]["template"])
    return {"command": job.task, **{name: section for name, section in facts.items() if section}}


def _names(data: Any) -> Any:
    """A prefix, or those of a blend, without their directories."""
    if isinstance(data, list):
        return [{**each, "prefix": Path(each["prefix"]).name} for each in data]
    return Path(data).name


def replace_file(path: Path, text: str) -> None:
    """A small file's new content, whole or not at all."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    sync(beside)
    beside.rename(path)


def sync(path: Path) -> None:
    """What is in a file or directory is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def manifest(job: Job, inputs: Sequence[Mapping[str, Any]], load: Sequence[Mapping[str, Any]] | None = None) -> str:
    """load: files of the weights that the run began with."""
    layout = job.layout
    sizes: dict[str, Any] = {name: getattr(layout, name) for name in ("tp", "pp", "vpp", "cp", "ep", "dp")}
    return manifest_text(
        tool="jumar-train",
        version=dist_version("jumar-train-core"),
        inputs=[dict(each) for each in inputs] or None,
        load=load and [dict(each) for each in load],
        recipe=recipe_facts(job),
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
