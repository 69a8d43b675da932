"""The plan of a PEFT adapter directory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from jumar.ckpt_convert.checkpoint import Checkpoint
from jumar.ckpt_convert.convert import Plan, dtype_name, facts_of, manifest_of
from jumar.ckpt_convert.formats.hf import SafetensorsFile
from jumar.ckpt_convert.formats.peft import ADAPTER, CONFIG, PREFIX, adapter_config
from jumar.ckpt_convert.plan import Coverage, compose, identity
from jumar.schema.adapters import module_sizes, turned_modules
from jumar.schema.errors import ToolError


def plan_peft(source: Checkpoint, *, base: Path | None = None, dtype: str | None = None) -> Plan:
    """The plan of an adapter directory for peft, from a Megatron adapter, or from shards that bear one.

    base: what it says of the model that it adapts; None: what the source says. dtype: "bf16", "fp16", "fp32".
    """
    adapter = source if source.lora else source.adapter
    if adapter is None:
        raise ToolError(f"{source.paths[0]} holds no LoRA", hint="see jumar-convert inspect")
    if adapter.placement is None:
        raise ToolError(f"{source.paths[0]} is a PEFT adapter already", hint="expected Megatron shards with lora_A and lora_B")
    cast = dtype_name(dtype) if dtype else None
    records, casts, coverage = [], Counter[tuple[str, str]](), Coverage()
    for name, shape in adapter.tensors.items():
        record = compose(PREFIX + adapter.hf_name(name), identity(shape), [name], adapter.sources, cast)
        coverage.add(identity(shape), [name])
        casts.update(record.casts)
        records.append(record)
    coverage.prove(adapter.tensors)
    files = (SafetensorsFile.plan(ADAPTER, records),)
    lora = next(iter(adapter.lora.values()))  # Megatron has one rank and one factor for all
    carried = dict(adapter.peft) | ({"base_model_name_or_path": str(base)} if base else {})
    turned = not turned_modules(adapter.family, adapter.spec).isdisjoint(adapter.lora)
    config = adapter_config(lora.rank, lora.scale, _target_modules(adapter), carried, fan_in_fan_out=turned)
    sidecars: dict[str, bytes | Path] = {CONFIG: (json.dumps(config, indent=2) + "\n").encode()}
    facts = facts_of(adapter, files, len(adapter.replicas), 0)
    manifest = manifest_of(adapter, "to-peft", {"dtype": dtype}, facts)
    return Plan(adapter, "peft", files, sidecars, manifest, facts, casts, tuple(_notes(adapter)))


def _target_modules(adapter: Checkpoint) -> list[str]:
    """Last names where these mean exactly the adapter's modules, else every name in full."""
    modules = [adapter.hf_name(m) for m in adapter.lora]
    leaves = sorted({m.rpartition(".")[2] for m in modules})
    every = {adapter.hf_name(m) for m in module_sizes(adapter.family, adapter.spec)}
    return leaves if {m for m in every if m.rpartition(".")[2] in leaves} == set(modules) else modules


def _notes(adapter: Checkpoint) -> Iterator[str]:
    prefixes = tuple(adapter.family.layer.format(l=adapter.spec.num_layers + k) for k in range(adapter.spec.mtp_layers))
    if mtp := [m for m in adapter.lora if prefixes and m.startswith(prefixes)]:
        yield f"{len(mtp)} modules are of MTP layers, which transformers does not build: peft passes over them"
    leaves = {m.rpartition(".")[2] for m in adapter.lora if ".experts." in m}
    if beside := [m for m in adapter.lora if ".experts." not in m and m.rpartition(".")[2] in leaves]:
        yield (
            f"{len(beside)} modules beside the experts are called as these are; on transformers 5, which fuses experts, "
            f"peft passes over them: {beside[0]} ..."
        )
