"""Inspection: what a checkpoint is, from its headers alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

from jumar.ckpt_convert.checkpoint import Checkpoint
from jumar.ckpt_convert.plan import Ints
from jumar.ckpt_convert.tensors import DTYPES
from jumar.schema.parallel import ParallelLayout


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Facts about a checkpoint as plain values: family, sizes, dtypes, layout, bytes of each rank."""
    spec, placement = checkpoint.spec, checkpoint.placement
    numel = {n: _numel(shape) for n, shape in checkpoint.tensors.items()}
    facts: dict[str, Any] = {
        "path": [str(p) for p in checkpoint.paths],
        "format": f"{checkpoint.format} adapter" if checkpoint.lora and checkpoint.placement else checkpoint.format,
        "model_type": spec.model_type,
        "parameters": sum(numel.values()),
        "tensors": len(numel),
        "bytes": sum(box.nbytes for boxes in checkpoint.sources.values() for box in boxes),
        "dtypes": dict(Counter(checkpoint.dtype(n) for n in numel).most_common()),
        "spec": spec.to_dict(),
        "files": len(checkpoint.files),
        "hf_files": str(checkpoint.extras) if checkpoint.extras else None,
        "dropped": list(checkpoint.dropped),
        "notes": list(checkpoint.notes),
    }
    if placement is not None:
        facts |= {
            "iteration": checkpoint.iteration,
            "layout": layout_text(placement.layout),
            "dialect": placement.dialect,
            "mla_mm_split": placement.mla_mm_split if spec.mla else None,
            "optimizer": _optimizer(checkpoint),
            "expert_layout": placement.expert_layout if spec.moe else None,
            "padded_vocab_size": None if checkpoint.lora else placement.padded_vocab,
            "ranks": {
                shard.name: sum(
                    _numel(t.geometry.shape) * _itemsize(checkpoint, t.sources[0])
                    for t in placement.tensors(shard)
                    if t.sources[0] in checkpoint.sources
                )
                for shard in placement.shards
            },
        }
    adapter = checkpoint if checkpoint.lora else checkpoint.adapter
    return facts | ({"lora": lora_facts(adapter)} if adapter else {})


def lora_facts(adapter: Checkpoint) -> dict[str, Any]:
    """An adapter in numbers. alpha: of the common rank, as Megatron has it; targets: last names of the modules."""
    ranks, scales = ({getattr(lora, name) for lora in adapter.lora.values()} for name in ("rank", "scale"))
    return {
        "rank": sorted(ranks),
        "scale": sorted(map(float, scales)),
        "alpha": sorted({float(lora.rank * lora.scale) for lora in adapter.lora.values()}),
        "modules": len(adapter.lora),
        "targets": sorted({module.rpartition(".")[2] for module in adapter.lora}),
        "parameters": sum(_numel(shape) for shape in adapter.tensors.values()),
    }


def _optimizer(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Optimizer state: where and how much of it there is, and what of it goes along to another layout."""
    if held := checkpoint.optimizer:
        return {"files": len(held), "bytes": sum(held.values()), "carried": []}
    training = checkpoint.training
    if training is None or not training.there:
        return None
    boxes = [box for kind in training.kinds.values() for found in kind.values() for box in found]
    files, nbytes = len({box.file for box in boxes}), sum(box.nbytes for box in boxes)
    return {"files": files, "bytes": nbytes, "carried": sorted(training.kinds), "refused": training.refused}


def layout_text(layout: ParallelLayout) -> str:
    """ "tp=2 pp=2 vpp=2": what differs from one rank."""
    names = {"tp": layout.tp, "pp": layout.pp, "vpp": layout.vpp, "ep": layout.ep}
    parts = [f"{n}={v}" for n, v in names.items() if v > 1]
    if layout.etp not in (None, layout.tp):
        parts.append(f"etp={layout.etp}")
    if layout.layers_per_stage:
        parts.append("layers_per_stage=" + ",".join(map(str, layout.layers_per_stage)))
    if layout.noop_layers:
        parts.append("noop_layers=" + ",".join(map(str, layout.noop_layers)))
    if layout.schedule != "1f1b":
        parts.append(f"schedule={layout.schedule}")
    if layout.tp_extend_ep:
        parts.append("tp_extend_ep")
    return " ".join(parts) or "tp=1 pp=1"


def _numel(shape: Ints) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def _itemsize(checkpoint: Checkpoint, name: str) -> int:
    return DTYPES[checkpoint.dtype(name)].itemsize
