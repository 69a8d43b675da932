"""`torch_dist` directories written out by hand: whole tensors from `by_hand`'s single rank, cut into any chunks, and read back.

Names from megatron-core's `sharded_state_dict` methods; nothing here uses the converter's rules or placement.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import by_hand
from by_hand import Arrays, Config, Wanted
from jumar.ckpt_convert.formats.archive import ArchiveLayout, TensorSpec, read_archive
from jumar.ckpt_convert.formats.dist_metadata import Chunk, DistTensor, Item, metadata_bytes, read_metadata
from tiny_hf import bits

FUSED = {"input_layernorm": "self_attention.linear_qkv.layer_norm", "pre_mlp_layernorm": "mlp.linear_fc1.layer_norm"}
Grid = Callable[[str, tuple[int, ...]], list[tuple[tuple[int, ...], tuple[int, ...]]]]


def whole(hf: Arrays, config: Config, want: Wanted, *, stacked: bool, singleton: bool = False) -> Arrays:
    """Every tensor of a `torch_dist` checkpoint. Of `want`, the dialect and the no-op slots count."""
    one = Wanted(noop=want.noop, dialect=want.dialect, divisible_by=want.tp * want.divisible_by)
    ((_, states),) = by_hand.shards(hf, config, one)
    layers = by_hand.layers_of(config) + len(want.noop)
    tensors: Arrays = {}
    stacks: dict[str, dict[tuple[int, ...], np.ndarray]] = {}
    for name, array in states["model"].items():
        key, place = renamed(name, config, one, stacked, singleton)
        for suffix, piece in pieces(name, array, config, singleton):
            if place:
                stacks.setdefault(key + suffix, {})[place] = piece
            else:
                tensors[key + suffix] = piece
    for key, found in stacks.items():
        some = next(iter(found.values()))
        experts = 1 + max(place[-1] for place in found)
        counts = {1: (experts,), 2: (layers, experts)}[len(next(iter(found)))]
        if key.startswith("decoder.layers.") and not re.match(r"decoder\.layers\.\d", key):
            counts = (layers, *counts[1:])
        tensors[key] = np.zeros((*counts, *some.shape), some.dtype)
        for place, piece in found.items():
            tensors[key][place] = piece
    return tensors


def renamed(name: str, config: Config, want: Wanted, stacked: bool, singleton: bool) -> tuple[str, tuple[int, ...]]:
    """A tensor's name, and its place along the stacked axes."""
    match = re.fullmatch(r"(decoder\.layers|mtp\.layers)\.(\d+)\.(transformer_layer\.)?(.*)", name)
    if match is None:
        return name, ()
    kind, number, block, rest = match[1], int(match[2]), match[3] or "", match[4]
    if want.dialect == "mcore" and "kv_lora_rank" not in config and config["model_type"] not in by_hand.MIXERS:
        first, _, last = rest.rpartition(".")
        rest = f"{FUSED[first]}_{last}" if first in FUSED else rest
    place: tuple[int, ...] = ()
    prefix = f"{kind}.{number}.{block}"
    if kind == "decoder.layers" and stacked:
        prefix, place = "decoder.layers.", (number,)
    expert = re.fullmatch(r"mlp\.experts\.local_experts\.(\d+)\.(.*)", rest)
    if expert and singleton:
        rest = f"mlp.experts.experts.{expert[1]}.{expert[2]}"
    elif expert:
        rest, place = f"mlp.experts.experts.{expert[2]}", (*place, int(expert[1]))
    return prefix + rest, place


def pieces(name: str, array: np.ndarray, config: Config, singleton: bool) -> list[tuple[str, np.ndarray]]:
    """What is saved as tensors of their own: Mamba's projections; gate and up, as singletons."""
    if name.endswith(("mixer.in_proj.weight", "mixer.conv1d.weight", "mixer.conv1d.bias")):
        inner, groups, heads = by_hand.mixer_sizes(config)
        sizes = {"z": inner, "x": inner, "B": groups, "C": groups, "dt": heads}
        if "conv1d" in name:
            del sizes["z"], sizes["dt"]
        ends = np.cumsum(list(sizes.values()))
        assert ends[-1] == len(array)
        return [(f".{piece}", array[end - n : end]) for (piece, n), end in zip(sizes.items(), ends, strict=True)]
    if singleton and ".linear_fc1." in name and "layer_norm" not in name and config["model_type"] not in ("gpt2", "nemotron_h"):
        gate, up = np.split(array, 2)
        return [("_w", gate), ("_v", up)]
    return [("", array)]


def write(iteration: Path, tensors: Arrays, args: Mapping[str, Any], grid: Grid, files: int = 2) -> None:
    """A directory as megatron-core writes it, with each tensor cut as `grid` says; and the tracker."""
    iteration.mkdir(parents=True)
    dtype = {2: "BF16", 4: "F32"}
    index: dict[str, DistTensor] = {}
    contents = [b""] * files
    for number, (name, array) in enumerate(tensors.items()):
        chunks = []
        for turn, (start, size) in enumerate(grid(name, array.shape)):
            part = np.ascontiguousarray(array[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))])
            file = (number + turn) % files
            data = archive(part, dtype[array.itemsize])
            chunks.append(Chunk(start, size, Item(f"__{file}_0.distcp", len(contents[file]), len(data))))
            contents[file] += data
        index[name] = DistTensor(dtype[array.itemsize], array.shape, tuple(chunks))
    for file, content in enumerate(contents):
        (iteration / f"__{file}_0.distcp").write_bytes(content)
    (iteration / ".metadata").write_bytes(metadata_bytes(index, {}))
    common = {"args": argparse.Namespace(**args), "checkpoint_version": 3.0, "iteration": 7}
    (iteration / "common.pt").write_bytes(ArchiveLayout.plan(common).content())
    said = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1}
    (iteration / "metadata.json").write_text(json.dumps(said))
    (iteration.parent / "latest_checkpointed_iteration.txt").write_text(str(int(iteration.name.removeprefix("iter_"))))


def archive(part: np.ndarray, dtype: str) -> bytes:
    return ArchiveLayout.plan(TensorSpec(dtype, part.shape)).content([part.tobytes()])


def read(iteration: Path) -> Arrays:
    """Every tensor, put together from its chunks, each element exactly once (no-op slots stay zero)."""
    found: Arrays = {}
    for name, tensor in read_metadata(iteration).tensors.items():
        array = np.zeros(tensor.shape, {"BF16": np.uint16, "F32": np.uint32}[tensor.dtype])
        seen = np.zeros(tensor.shape, np.uint8)
        for chunk in tensor.chunks:
            file = iteration / chunk.item.file
            with file.open("rb") as opened:
                content = os.pread(opened.fileno(), chunk.item.length, chunk.item.offset)
            copy = file.with_suffix(".one")
            copy.write_bytes(content)  # a chunk is a file of torch.save's within the file
            ref: Any = read_archive(copy)
            where = tuple(slice(a, a + n) for a, n in zip(chunk.start, chunk.size, strict=True))
            array[where] = bits(ref)
            seen[where] += 1
            assert zlib.crc32(content) is not None
            copy.unlink()
        assert seen.max(initial=1) == 1
        assert seen.min(initial=1) == 1 or name.startswith("decoder.layers.")
        assert math.prod(tensor.shape) == array.size
        found[name] = array
    return found
