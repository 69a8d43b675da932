"""Opening a Megatron `torch` checkpoint: its layout from its own args, its model from hf/, the manifest or the args."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

from jumar.ckpt_convert.checkpoint import Checkpoint, OpenOptions, Replica
from jumar.ckpt_convert.compare import unlike
from jumar.ckpt_convert.formats import legacy
from jumar.ckpt_convert.formats.megatron import ShardFile, find_shards, iteration_directory, optimizer_files, read_shard
from jumar.ckpt_convert.gather import SourceFiles
from jumar.ckpt_convert.open_args import LAYOUT_ARGS, Args, ask_for, complete, fitting_etps, hints_for_a_source, values_given
from jumar.ckpt_convert.open_hf import check_counts, read_base, read_config
from jumar.ckpt_convert.open_lora import adapter_of, bears_lora, joined, read_lora, refuse_bearing, set_apart
from jumar.ckpt_convert.plan import Ints, SourceBox, boxes_of, prove_geometry
from jumar.ckpt_convert.shown import EMBEDDING, Shown
from jumar.ckpt_convert.tensors import TensorRef
from jumar.schema.errors import Exit, ToolError
from jumar.schema.family import Family
from jumar.schema.manifest import above, read_manifest
from jumar.schema.placement import ExpertLayout, Placed, Placement
from jumar.schema.read_megatron_args import NEEDS, contradictions, layout_from_args, missing_args, spec_from_args
from jumar.schema.registry import family_of
from jumar.schema.spec import ModelSpec, spec_from_dict

AGREED = tuple(LAYOUT_ARGS.values())
ITERATION = re.compile(r"(?:iter_)?(\d+|release)")


def iteration_of(directory: Path, said: int) -> str:
    """An iteration by its directory's name, or that of what a link leads to; else what its files say."""
    named = ITERATION.fullmatch(directory.name) or ITERATION.fullmatch(directory.resolve().name)
    if named is None:
        return str(said)
    return named[1] if named[1] == "release" else str(int(named[1]))


@hints_for_a_source()
def open_megatron(roots: tuple[Path, ...], options: OpenOptions) -> Checkpoint:
    """A checkpoint of any layout, in one directory or in one for each node."""
    directories = [iteration_directory(root, options.iteration, roots) for root in roots]
    files = find_shards(directories)
    shards = {name: read_shard(name, file) for name, file in files.items()}
    some = next(iter(shards.values()))
    homes = list(dict.fromkeys(p for root, d in zip(roots, directories, strict=True) for p in (root, d, *above(d))))
    manifest = next((m for home in homes if (m := read_manifest(home))), None)
    _check_agreement(shards.values())
    _check_ranks_said(shards.values())
    everything = shards
    shards, loras = set_apart(shards) if bears_lora(shards) else (shards, {})
    args, shown = Args(some.args, options.sets), Shown(joined(shards, loras))
    family, spec, extras = model_of(homes, manifest, options)
    missing, seen = complete(args, shown, spec)
    if shown.legacy:
        missing += _check_version(args, some)
    if spec is None:
        family, spec = model_from_args(args, options, missing, roots[0])
    elif missing:
        raise ask_for(missing, roots[0])
    assert family is not None
    spec = replace(spec, mtp_layers=args.get("mtp_num_layers") or 0) if spec.mtp_layers else spec
    wrong, notes = contradictions(args, spec)
    if wrong:
        raise ToolError(
            f"{some.file}: its args contradict the model's config: {'; '.join(wrong)}",
            hint=f"does {extras or 'the manifest'} belong to these weights?",
        )
    names = {n for shard in shards.values() for state in shard.states.values() for n in state}
    check_counts(spec, sum(len(s) for shard in everything.values() for s in shard.states.values()), "the checkpoint's config")
    with values_given(args):
        layout = layout_from_args(args, spec.num_layers)
    if spec.moe is None:
        layout = replace(layout, etp=None)  # Megatron's args always have one
    lora = read_lora(shards, loras, args, spec.moe.num_experts // layout.expert_ranks if spec.moe else 0) if loras else None
    names |= lora.base_names if lora else set()
    if lora and not (lora.alone or options.bearing):
        refuse_bearing(directories[0])
    if lora and lora.alone and args.get("transformer_impl") == "transformer_engine":
        names.add(".layer_norm_weight")  # an adapter has no norm by which TransformerEngine's spec is recognised
    dialect = args.get("dialect") or (manifest or {}).get("dialect") or _dialect(names, spec)
    grouped = args.get("expert_layout") or _expert_layout(names)
    if dialect not in family.dialects and "dialect" in args.given:
        raise ToolError(
            f"--set dialect={dialect}: does not exist for {spec.model_type}",
            hint=f"known: {', '.join(family.dialects)}",
            code=Exit.USAGE,
        )
    if grouped not in get_args(ExpertLayout):
        raise ToolError(
            f"--set expert_layout={grouped}: expected {' or '.join(get_args(ExpertLayout))}",
            hint="leave it out: the files show it",
            code=Exit.USAGE,
        )
    mm_split = any(n.endswith(".self_attention.linear_kv_nope.weight") for n in names)
    placement = Placement(family=family, spec=spec, layout=layout, dialect=dialect, expert_layout=grouped, mla_mm_split=mm_split)
    placement.check_dialect()
    args.refuse_unused()
    _check_ranks(placement, shards, directories, fitting_etps(args, shown))
    alone = lora is not None and lora.alone
    if not alone:
        placement = replace(placement, vocab_rows=_vocab_rows(placement, shards))
    sources, replicas, padding = ({}, [], 0) if alone else _boxes(placement, shards)
    shapes = {} if alone else family.hf_tensors(spec)
    if missing := [n for n in shapes if n not in sources]:
        raise ToolError(
            f"{directories[0]}: nothing holds {', '.join(missing[:8])}", hint="is a rank's file or a node's directory missing?"
        )
    facts = kept_facts(manifest, shapes)
    opened = Checkpoint(
        paths=roots,
        format="megatron",
        family=family,
        spec=spec,
        tensors=shapes,
        sources={n: sources[n] for n in shapes},
        extras=extras,
        placement=placement,
        iteration=iteration_of(directories[0], some.iteration),
        copies=facts.get("copies", {}),
        dropped=tuple(sorted({d for s in shards.values() for d in s.dropped})),
        replicas=tuple(replicas),
        padding=padding,
        args=some.args,
        notes=(*seen, *(f"the checkpoint's args differ from the config that goes along: {note}" for note in notes)),
        base=facts.get("base", True),
        optimizer={s.file: s.optimizer_bytes for s in everything.values() if s.optimizer_bytes}
        | {file: file.stat().st_size for file in optimizer_files(directories)},
    )
    if lora is None:
        return opened
    adapter = adapter_of(lora, opened, (manifest or {}).get("adapter", {}))
    return adapter if lora.alone else replace(opened, adapter=adapter)


def model_of(
    homes: Iterable[Path], manifest: Mapping[str, Any] | None, options: OpenOptions
) -> tuple[Family | None, ModelSpec | None, Path | None]:
    """Family, traits and HF files, from hf/config.json or the manifest (docs/contracts.md, 3); None where there is neither.

    --base is looked at first.
    """
    if options.base is not None:
        model = read_base(options.base, options.ignore)
        _check_family(options.family, model.spec, options.base)
        return model.family, model.spec, model.extras
    for home in homes:
        if (home / "hf" / "config.json").exists():
            family, spec = read_config(home / "hf" / "config.json", options.ignore)
            _check_family(options.family, spec, home / "hf" / "config.json")
            return family, spec, home / "hf"
    if manifest and isinstance(manifest.get("model"), dict) and isinstance(manifest["model"].get("spec"), dict):
        spec = spec_from_dict(manifest["model"]["spec"])
        _check_family(options.family, spec, "its manifest.json")
        return family_of(spec.model_type), spec, None
    return None, None, None


def model_from_args(args: Args, options: OpenOptions, missing: list[str], where: Path) -> tuple[Family, ModelSpec]:
    """Family and traits from --family or args.model_type_hf, and the args. One error names all that is missing."""
    name = options.family or args.get("model_type_hf")
    if not isinstance(name, str):
        names = missing + [n for n in NEEDS if args.peek(n) is None]
        raise ask_for(names, where, "or put the model's Hugging Face files into CHECKPOINT/hf/")
    family = family_of(name)
    if names := missing + missing_args(args, family):
        raise ask_for(names, where)
    with values_given(args):
        spec = spec_from_args(args, family)
    _check_expressible(family, spec)
    return family, spec


def _check_expressible(family: Family, spec: ModelSpec) -> None:
    """Raises ToolError if no config.json of the family describes the model: what is converted could not be loaded."""
    try:
        back = family.spec(family.config(spec))
    except (ToolError, AssertionError) as fault:
        wrong = [str(fault)]
    else:
        pairs = {f.name: (getattr(spec, f.name), getattr(back, f.name)) for f in fields(ModelSpec)}
        wrong = [f"{name} is {said!r}, {family.model_type} has {has!r}" for name, (said, has) in pairs.items() if said != has]
    if wrong:
        raise ToolError(
            f"the checkpoint's args describe no {family.model_type}: {'; '.join(wrong)}",
            hint="is --family right? or put the model's Hugging Face files into CHECKPOINT/hf/",
        )


def kept_facts(manifest: Mapping[str, Any] | None, shapes: Mapping[str, Ints]) -> Mapping[str, Any]:
    """What a manifest says of the way back. Raises ToolError for copies of what there is not."""
    facts: Mapping[str, Any] = (manifest or {}).get("hf", {})
    if wrong := [f"{name} ({original})" for name, original in facts.get("copies", {}).items() if original not in shapes]:
        raise ToolError(
            f"manifest.json is damaged: hf.copies repeats what the model does not have: {', '.join(wrong[:4])}",
            hint="copy it again, or remove it to go on without",
        )
    return facts


def _check_version(args: Args, shard: ShardFile) -> list[str]:
    """Megatron-LM before 2.0 had two other orders of q, k and v: checkpointing.py, fix_query_key_value_ordering."""
    version = args.get("checkpoint_version", shard.version)
    if version is None:
        return ["checkpoint_version"]
    if not isinstance(version, int | float) or version < 2:
        raise ToolError(
            f"{shard.file}: checkpoint_version {version}, in which query, key and value stand in another order than since 2.0",
            hint="load it with Megatron-LM 2.0 or newer, which reorders them, and save it again",
        )
    return []


def _check_family(wanted: str | None, spec: ModelSpec, where: object) -> None:
    if wanted not in (None, spec.model_type):
        raise ToolError(
            f"--family {wanted}: {where} says {spec.model_type}",
            hint="leave --family out; it is for checkpoints that do not say",
            code=Exit.USAGE,
        )


def _check_agreement(shards: Iterable[ShardFile]) -> None:
    """All shards must have been saved under one layout, at one iteration."""
    first, *rest = shards
    for shard in rest:
        differing = [k for k in AGREED if _plain(shard.args.get(k)) != _plain(first.args.get(k))]
        if differing:
            key = differing[0]
            raise ToolError(
                f"{shard.file} says {key}={shard.args.get(key)}, {first.file} says {first.args.get(key)}",
                hint="shards of two runs are mixed; remove the stale ones",
            )
        if shard.iteration != first.iteration:
            raise ToolError(
                f"{shard.file} is of iteration {shard.iteration}, {first.file} of {first.iteration}",
                hint="shards of two saves are mixed",
            )


def _check_ranks_said(shards: Iterable[ShardFile]) -> None:
    """Each process writes its own rank into its args. A converter is one process: there all ranks are the same, or none."""
    said = [(shard.args.get("rank"), shard) for shard in shards]
    first: dict[Any, ShardFile] = {}
    if any(type(rank) is not int for rank, _ in said) or len({rank for rank, _ in said}) == 1:
        return
    for rank, shard in said:
        if first.setdefault(rank, shard) is not shard:
            raise ToolError(
                f"{first[rank].file} and {shard.file} both say that they are of rank {rank}",
                hint="one is a copy of the other; get that rank's own file",
            )


def _plain(value: Any) -> Any:
    return str(sorted(value)) if isinstance(value, (set, frozenset)) else str(value)


def _dialect(names: set[str], spec: ModelSpec) -> str:
    if legacy.is_legacy(dict.fromkeys(names)):
        return "legacy"
    latent = ("self_attention.linear_kvb.weight", "self_attention.k_layernorm.weight") if spec.mla else ()
    if any(n.endswith((*latent, "mlp.shared_expert_gate.weight")) for n in names):
        return "mindspeed-v1"
    if any(n.endswith((".layer_norm_weight", ".post_layernorm.weight")) for n in names):
        return "te"
    joined = spec.mla is not None and any(n.endswith("self_attention.linear_qkv.weight") for n in names)
    return "mindspeed" if joined or any(n.startswith("mtp.final_layernorms.") for n in names) else "mcore"


def _expert_layout(names: set[str]) -> ExpertLayout:
    grouped = any(n.endswith(("experts.weight1", "experts.weight2", "experts.linear_fc1.weight0")) for n in names)
    return "grouped" if grouped else "sequential"


def _check_ranks(placement: Placement, shards: Mapping[str, ShardFile], directories: list[Path], etps: list[int]) -> None:
    """The files there must be exactly those of the layout. etps: values of etp under which they would be."""
    layout = placement.layout
    experts = f" ep={layout.ep} etp={layout.expert_tp}" if placement.spec.moe else ""
    said = f"tp={layout.tp} pp={layout.pp}{experts}"
    expected = [s.name for s in placement.shards]
    missing = [n for n in expected if n not in shards]
    if etps and set(expected) != set(shards):
        raise ToolError(
            f"{directories[0]}: {said} has {len(expected)} ranks, there are {len(shards)}: they are those of "
            + " or ".join(f"etp={n}" for n in etps),
            hint=f"if the experts are cut so, say it: --set etp={etps[0]}",
        )
    if missing:
        raise ToolError(
            f"{', '.join(map(str, directories))}: {len(missing)} of {len(expected)} ranks are missing for {said}: "
            + ", ".join(missing[:16]),
            hint="name every node's directory: jumar-convert COMMAND NODE0/ckpt NODE1/ckpt ... DST",
        )
    if extra := [n for n in shards if n not in expected]:
        raise ToolError(
            f"{shards[extra[0]].file.parent.parent}: {said} has no rank {', '.join(extra[:16])}",
            hint="stale shards of another layout? remove them; or correct the layout with --set",
        )


def _vocab_rows(placement: Placement, shards: Mapping[str, ShardFile]) -> tuple[int, ...]:
    """Rows of the embedding on each TP rank, padding included; some tools cut them unevenly."""
    rows: dict[int, int] = {}
    name = placement.names.name(EMBEDDING)
    for shard in placement.shards:
        refs = [state[name] for state in shards[shard.name].states.values() if name in state]
        if not refs or shard.pp != 0:
            continue
        count = refs[0].shape[0] if refs[0].shape else 0
        if rows.setdefault(shard.tp, count) != count:
            raise ToolError(
                f"{shards[shard.name].file}: {name} has {count} rows, other ranks {rows[shard.tp]}",
                hint="shards of two runs are mixed; remove the stale ones",
            )
    if len(rows) != placement.layout.tp:
        raise ToolError(f"{shards[placement.shards[0].name].file}: no {name}", hint="is this a language model's checkpoint?")
    counts = tuple(rows[t] for t in range(placement.layout.tp))
    if sum(counts) < placement.spec.vocab_size:
        raise ToolError(
            f"the embedding has {' + '.join(map(str, counts))} rows, the model's vocabulary {placement.spec.vocab_size}",
            hint="does hf/config.json (or --set vocab_size) belong to these weights?",
        )
    return counts


def _boxes(placement: Placement, shards: Mapping[str, ShardFile]) -> tuple[dict[str, list[SourceBox]], list[Replica], int]:
    """Where each HF tensor's boxes lie. A box seen before is a replica: the first one is used."""
    sources: dict[str, list[SourceBox]] = {}
    first: dict[tuple[str, tuple[int, ...], tuple[int, ...]], SourceBox] = {}
    replicas: list[Replica] = []
    padding = 0
    for shard in placement.shards:
        file = shards[shard.name]
        left = {(key, name): ref for key, state in file.states.items() for name, ref in state.items()}
        for placed in placement.tensors(shard):
            ref = left.pop((placed.key, placed.name), None)
            if ref is None:
                raise ToolError(
                    f"{file.file}: {placed.key} has no {placed.name}",
                    hint="is the layout right (--set), the dialect (--set dialect=te), the model (hf/config.json)?",
                )
            _check_shape(file, placed, ref)
            prove_geometry(placed)
            padding += placed.geometry.padding * math.prod(placed.geometry.shape[1:])
            head = placed.origin is not None and placed.origin.stage == "tied_last"
            for name, box in boxes_of(placed, ref):
                held = first.setdefault((name, box.start, box.size), box)
                if held is box:
                    sources.setdefault(name, []).append(box)
                else:
                    replicas.append(Replica(name, held, box))
                    if head and unlike(held, box, SourceFiles()):
                        raise ToolError(
                            f"{file.file}: {placed.name} is no copy of the embedding, so the model is not tied",
                            hint="is tie_word_embeddings in hf/config.json right, or --set untie_embeddings_and_output_weights?",
                        )
        if left:
            foreign = [f"{key}/{name}" for key, name in left]
            raise ToolError(
                f"{file.file}: no rule of {placement.spec.model_type} names {len(foreign)} tensor(s): {', '.join(foreign[:8])}",
                hint="is the layout right (--set), the dialect (--set dialect=te), the model (hf/config.json)?",
            )
    return sources, replicas, padding


def _check_shape(file: ShardFile, placed: Placed, ref: TensorRef) -> None:
    if ref.shape != placed.geometry.stored:
        raise ToolError(
            f"{file.file}: {placed.name} is {list(ref.shape)}, expected {list(placed.geometry.stored)}",
            hint="is the layout right (--set), and does hf/config.json belong to these weights?",
        )
