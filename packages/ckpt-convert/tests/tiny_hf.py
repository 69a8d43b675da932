"""Checkpoints of random bytes, written and read without the converter (but for the archives that torch.save writes)."""

from __future__ import annotations

import argparse
import json
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jumar.ckpt_convert.formats.archive import ArchiveLayout, TensorSpec, read_archive
from jumar.ckpt_convert.tensors import TensorRef
from jumar.schema.registry import families

Arrays = dict[str, np.ndarray]
BITS = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}
"""Tensors are compared as bits: bfloat16 as uint16, float32 as uint32."""

SIDECARS = {
    "tokenizer.json": b'{"version": "1.0",\r\n "added_tokens": []}',
    "tokenizer_config.json": '{"model_max_length": 128, "pad_token": "\u00e9"}'.encode(),
    "generation_config.json": b'{"do_sample": false}\n',
    "chat_template.jinja": b"{% for m in messages %}{{ m.content }}{% endfor %}",
    "modeling_tiny.py": b"# remote code\n",
    "LICENSE": b"none\n",
}


def random_tensors(config: Mapping[str, Any], seed: int = 0) -> Arrays:
    """HF name -> bits. bfloat16, and float32 where the family keeps it; every other bit pattern occurs, NaNs too."""
    family = families()[config["model_type"]]
    spec = family.spec(config)
    random, kept = np.random.default_rng(seed), family.kept_dtypes(spec)
    return {
        name: random.integers(0, 1 << (32 if name in kept else 16), shape, dtype=np.uint32 if name in kept else np.uint16)
        for name, shape in family.hf_tensors(spec).items()
    }


def write_hf(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], shards: int = 1) -> Path:
    """A model directory: config.json, safetensors files, and small files of every kind."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config, indent=3) + "\n\n")
    for name, content in SIDECARS.items():
        (directory / name).write_bytes(content)
    names = list(tensors)
    files = [names[i::shards] for i in range(shards)]
    titles = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)] if shards > 1 else ["model.safetensors"]
    for title, group in zip(titles, files, strict=True):
        write_safetensors(directory / title, {n: tensors[n] for n in group})
    if shards > 1:
        index = {"weight_map": {n: title for title, group in zip(titles, files, strict=True) for n in group}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    header, here = {}, 0
    for name, array in tensors.items():
        dtype = {2: "BF16", 4: "F32"}[array.itemsize]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [here, here + array.nbytes]}
        here += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in tensors.values()))


def read_hf(directory: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """HF name -> dtype, shape, bytes, of every safetensors file there."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        content = path.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            assert name not in found
            found[name] = entry["dtype"], entry["shape"], content[start:stop]
    return found


def read_megatron(iteration: Path) -> dict[str, dict[str, Arrays]]:
    """Shard -> state-dict key -> tensor -> bits, of every file below iter_*/."""
    shards = {}
    for path in sorted(iteration.glob("mp_rank_*/model_optim_rng.pt")):
        tree = read_archive(path)
        assert isinstance(tree, dict)
        states = {k: v for k, v in tree.items() if k.startswith("model")}
        shards[path.parent.name] = {k: {n: bits(ref) for n, ref in dotted(state)} for k, state in states.items()}
    return shards


def dotted(state: Mapping[str, Any]) -> Iterator[tuple[str, TensorRef]]:
    """Dicts in dicts as names with dots."""
    for key, value in state.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", ref) for name, ref in dotted(value))
        else:
            yield key, value


def write_megatron(
    iteration: Path,
    shards: Mapping[str, Mapping[str, Arrays]],
    args: Mapping[str, Any] | None,
    shape: Callable[[Arrays], dict[str, Any]] = dict,
    **more: Any,
) -> None:
    """The files of `shards`, as a training run leaves them, and the tracker.

    args:  None: the files have none
    shape: a state dict as it is to be stored, dicts in dicts
    more:  other entries of each file; None: no such entry
    """
    for name, states in shards.items():
        said = {"args": None if args is None else argparse.Namespace(**args), "checkpoint_version": 3.0, "iteration": 7, **more}
        arrays: list[np.ndarray] = []
        tree = {k: specs(v, arrays) for k, v in said.items() if v is not None}
        tree |= {key: specs(shape(dict(state)), arrays) for key, state in states.items()}
        layout = ArchiveLayout.plan(tree)
        (iteration / name).mkdir(parents=True)
        with (iteration / name / "model_optim_rng.pt").open("wb") as file:
            layout.write_skeleton(file.fileno())
            for record, array in zip(layout.records, arrays, strict=True):
                os.pwrite(file.fileno(), array.tobytes(), record.offset)
            layout.finish(file.fileno(), [zlib.crc32(a.tobytes()) for a in arrays])
    (iteration.parent / "latest_checkpointed_iteration.txt").write_text(str(int(iteration.name.removeprefix("iter_"))))


def specs(value: Any, arrays: list[np.ndarray]) -> Any:
    """A tree with its arrays as what is to be written; they are appended to `arrays` in the order of the pickle."""
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return TensorSpec({2: "BF16", 4: "F32"}[value.itemsize], value.shape)
    return {k: specs(v, arrays) for k, v in value.items()} if isinstance(value, dict) else value


def bits(ref: TensorRef) -> np.ndarray:
    assert ref.contiguous
    count = math.prod(ref.shape)
    return np.fromfile(ref.file, BITS[ref.dtype], count, offset=ref.offset).reshape(ref.shape)
