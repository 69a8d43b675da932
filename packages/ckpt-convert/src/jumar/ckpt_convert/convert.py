"""Conversion: open, plan, prove, execute, manifest. Any format to any format."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jumar.ckpt_convert.adapters import Fusion, fuse, refuse_grouped_te, wrapped, wrapped_modules
from jumar.ckpt_convert.checkpoint import Checkpoint, stamp
from jumar.ckpt_convert.compare import first_bytes, same_values
from jumar.ckpt_convert.execute import Executor, Progress, TargetFile, disk_error
from jumar.ckpt_convert.formats.hf import carried_files, left_behind, plan_files
from jumar.ckpt_convert.formats.megatron import TRACKER, MegatronFile, namespace
from jumar.ckpt_convert.gather import SourceFiles
from jumar.ckpt_convert.journal import Journal
from jumar.ckpt_convert.plan import ZEROS, Coverage, Ints, Record, SourceBox, compose, identity
from jumar.ckpt_convert.target import Target
from jumar.schema.cli import dist_version, human_bytes
from jumar.schema.errors import Exit, ToolError
from jumar.schema.manifest import NAME as MANIFEST
from jumar.schema.manifest import identify_all, manifest_text, template_sha256, tokenizer_sha256
from jumar.schema.megatron_args import to_args
from jumar.schema.parallel import ParallelLayout
from jumar.schema.placement import ExpertLayout, Placement
from jumar.schema.read_megatron_args import UNREAD_SPLITS

DTYPE_NAMES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32", "bfloat16": "BF16", "float16": "F16", "float32": "F32"}
TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
HEADER_BYTES = 1 << 16
SMALL_REPLICA = 1 << 20
COUNTERS = ("consumed_train_samples", "consumed_valid_samples")  # a run goes on from there
NOT_KEPT_ARGS = frozenset(
    {"rank", "local_rank", "world_size", "data_parallel_size", "transformer_pipeline_model_parallel_size", *UNREAD_SPLITS}
    | {"model_parallel_size"}  # of before Megatron-LM 2.0: the source's tp
)
LORA_ARGS = frozenset({"lora_r", "lora_alpha", "lora_target_modules", "lora_load", "lora_ckpt_filter"})
"""Args that say nothing true of a model once its LoRA is merged."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be written, proven.

    files:    the target's weight files
    sidecars: the other files, by path in the target: their bytes, or the file they are copied from
    facts:    counts for people and for the manifest
    casts:    tensors whose values are rounded to another dtype, by (from, to)
    changes:  what else is not bit-exact
    notes:    what a user should know before it is carried out
    """

    source: Checkpoint
    kind: str
    files: tuple[TargetFile, ...]
    sidecars: Mapping[str, bytes | Path]
    manifest: Mapping[str, Any]
    facts: Mapping[str, int]
    casts: Mapping[tuple[str, str], int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    changes: tuple[str, ...] = ()
    sidecar_stamps: Mapping[Path, tuple[int, int] | None] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sidecar_stamps", {f: stamp(f) for f in self.sidecars.values() if isinstance(f, Path)})

    @property
    def nbytes(self) -> int:
        return sum(f.size for f in self.files)

    def check_unchanged(self, staging: Path) -> None:
        """Raises ToolError if a source file is another than when it was opened, and removes what was made of it.

        It could be made the old one again, and the journal would then go on with a mixture.
        """
        stamps = {**self.source.stamps, **self.sidecar_stamps}
        if changed := [file for file, before in stamps.items() if stamp(file) != before]:
            shutil.rmtree(staging, ignore_errors=True)
            raise ToolError(
                f"{changed[0]} changed while it was read",
                hint="wait until nothing writes there, then run the same command again",
            )

    def fingerprint(self) -> str:
        """Identity of sources (path, size, time of change) and of every copy: a journal belongs to exactly one plan."""
        digest, numbers = hashlib.sha256(), {file: number for number, file in enumerate(self.source.files)}
        for file in numbers:
            stat = file.stat()
            digest.update(repr((str(file.resolve()), stat.st_size, stat.st_mtime_ns)).encode())
        for target in self.files:
            records = _plainly(target.records, numbers)
            digest.update(repr((target.path, target.size, target.offsets, records)).encode())
        return digest.hexdigest()


def _plainly(value: Any, numbers: Mapping[Path, int]) -> Any:
    """What a plan is made of, with files by their numbers: a path can be spelled in many ways."""
    if isinstance(value, (tuple, list)):
        return value if not value or isinstance(value[0], int) else [_plainly(each, numbers) for each in value]
    if isinstance(value, Path):
        return numbers.get(value, str(value))
    names = getattr(value, "__dataclass_fields__", None)  # which `fields` would look through again for each of millions
    return value if names is None else [_plainly(getattr(value, name), numbers) for name in names]


def plan_megatron(
    source: Checkpoint,
    layout: ParallelLayout,
    *,
    dialect: str = "mcore",
    expert_layout: ExpertLayout = "sequential",
    vocab_divisible_by: int = 1,
    mla_mm_split: bool = False,
    dtype: str | None = None,
) -> Plan:
    """The plan of a Megatron `torch` checkpoint. dtype: "bf16", "fp16", "fp32"; None keeps every byte.

    An adapter gives shards that hold nothing else; a model with an adapter gives shards that bear it beside their weights.

    Raises ToolError (3) where the layout does not fit the model.
    """
    job = prepare_megatron(source, layout, dialect, expert_layout, vocab_divisible_by, dtype, mla_mm_split=mla_mm_split)
    coverage, files, casts, padding = Coverage(), [], Counter[tuple[str, str]](), 0
    for shard in job.placement.shards:
        groups: dict[str, list[Record]] = {key: [] for key in job.placement.keys}
        modules = wrapped_modules(job.fusion, job.placement, shard) if job.fusion else {}
        for placed, sources in ((p, held) for _, held, part in job.parts for p in part.tensors(shard)):
            name = wrapped(placed.name, modules[placed.key]) if job.fusion else placed.name
            cast = None if placed.keep_dtype else job.cast
            record = compose(name, placed.geometry, placed.sources, sources, cast, source.deltas)
            coverage.add(placed.geometry, placed.sources)
            casts.update(record.casts)
            padding += record.padding
            groups[placed.key].append(record)
        shard_args = {**job.args, "rank": None}
        files.append(MegatronFile.plan(f"{job.folder}/{shard.name}/model_optim_rng.pt", groups, shard_args, job.number))
    coverage.prove({name: shape for shapes, _, _ in job.parts for name, shape in shapes.items()})
    return megatron_plan(job, files, {}, coverage, padding, casts)


@dataclass(frozen=True, slots=True)
class MegatronJob:
    """What the plans of all Megatron formats have in common.

    folder, number: of the iteration ("iter_0000001", 1); cast: the dtype to cast to; recipe: the options, for the manifest
    fusion: the LoRA that goes into the shards, as Megatron fuses it
    """

    source: Checkpoint
    placement: Placement
    args: Mapping[str, Any]
    iteration: str
    folder: str
    number: int
    cast: str | None
    recipe: Mapping[str, Any]
    fusion: Fusion | None = None

    @property
    def parts(self) -> list[tuple[Mapping[str, Ints], Mapping[str, Sequence[SourceBox]], Placement]]:
        """What the shards hold: shapes and sources of HF tensors, and their placement; of the model, and of its LoRA."""
        whole = [] if self.source.lora else [(self.source.tensors, self.source.sources, self.placement)]
        if self.fusion is None:
            return whole
        return [*whole, (self.fusion.tensors, self.fusion.sources, self.fusion.placement(self.placement))]

    def namespace(self) -> argparse.Namespace:
        """The args as Megatron holds them."""
        return namespace(self.args)


def prepare_megatron(
    source: Checkpoint,
    layout: ParallelLayout,
    dialect: str,
    expert_layout: ExpertLayout,
    vocab_divisible_by: int,
    dtype: str | None,
    *,
    mla_mm_split: bool = False,
) -> MegatronJob:
    """Checks that a layout fits the model; the args and the iteration of the target."""
    placement = Placement(
        family=source.family,
        spec=source.spec,
        layout=layout,
        dialect=dialect,
        expert_layout=expert_layout,
        vocab_divisible_by=vocab_divisible_by,
        mla_mm_split=mla_mm_split,
    )
    placement.check()
    adapter = source if source.lora else source.adapter
    fusion = fuse(adapter, dialect) if adapter else None
    if fusion:
        refuse_grouped_te(dialect, expert_layout, fusion)
        if mla_mm_split:
            raise ToolError(
                "--mla-mm-split: how MindSpeed names a LoRA on the split projections is not known",
                hint="leave --mla-mm-split out, or merge the LoRA (--merge)",
            )
    cast = dtype_name(dtype) if dtype else None
    main = cast or _main_dtype(source)
    iteration = source.iteration or "1"
    folder = iteration if iteration == "release" else f"iter_{int(iteration):07d}"
    number = 0 if iteration == "release" else int(iteration)
    args = to_args(placement, dtype=TORCH_NAMES.get(main, "float32"), iteration=number)
    kept = _kept_args(source)
    args |= fusion.args if fusion else {}
    args |= {k: kept[k] for k in COUNTERS if k in kept}
    args |= {k: v for k, v in kept.items() if k not in args}  # ours first: the same order from any source
    recipe = {
        "dialect": dialect,
        "mla_mm_split": mla_mm_split or None,
        "expert_layout": expert_layout,
        "dtype": dtype,
        "vocab_divisible_by": vocab_divisible_by,
    }
    return MegatronJob(source, placement, args, iteration, folder, number, cast, recipe, fusion)


def megatron_plan(
    job: MegatronJob,
    files: Sequence[TargetFile],
    sidecars: Mapping[str, bytes | Path],
    coverage: Coverage,
    padding: int,
    casts: Mapping[tuple[str, str], int],
    *,
    form: str | None = None,
    carried: bool | None = False,
) -> Plan:
    """The plan of these files, with the tracker, `hf/` and the manifest.

    form: the format, where it is not `torch`; carried: whether they hold the source's optimizer state; None: not asked for
    """
    source, fusion = job.source, job.fusion
    tracker = job.iteration if job.iteration == "release" else str(job.number)
    beside: dict[str, bytes | Path] = {**sidecars, TRACKER: tracker.encode()}
    beside.update((f"hf/{name}", content) for name, content in _hf_files(source, job.cast).items())
    facts = facts_of(source, files, coverage.replicas, padding) | {"hf_tensors": sum(len(shapes) for shapes, _, _ in job.parts)}
    manifest = manifest_of(source, "to-megatron", {**job.recipe, "format": form}, facts) | {
        "layout": _layout_facts(job.placement.layout),
        "dialect": job.placement.dialect,
        **({"mla_mm_split": True} if job.placement.mla_mm_split else {}),
        "padded_vocab_size": job.placement.padded_vocab,
    }
    adapter = source if source.lora else source.adapter
    if adapter and adapter.peft:
        manifest["adapter"] = dict(adapter.peft)
    notes = (*_notes(source, job.cast), *(fusion.notes if fusion else ()), *_training_notes(source, carried=carried))
    return Plan(source, "megatron", tuple(files), beside, manifest, facts, casts, notes, _changes(source))


def plan_hf(source: Checkpoint, *, max_shard_bytes: int = 5_000_000_000, dtype: str | None = None) -> Plan:
    """The plan of a Hugging Face directory. dtype: as in `plan_megatron`."""
    if source.lora or source.adapter:
        what = "an adapter" if source.lora else "a model that bears a LoRA"
        raise ToolError(
            f"{source.paths[0]} is {what}",
            hint="merge it: jumar-convert merge-lora BASE ADAPTER DST; or write it for peft: jumar-convert to-peft SRC DST",
        )
    cast, kept = dtype_name(dtype) if dtype else None, source.family.kept_dtypes(source.spec)
    records, casts = [], Counter[tuple[str, str]]()
    for name, shape in source.tensors.items():
        record = compose(
            source.hf_name(name), identity(shape), [name], source.sources, None if name in kept else cast, source.deltas
        )
        casts.update(record.casts)
        records.append(record)
    by_name = {r.name: r for r in records}
    for name, original in source.copies.items():
        if name not in source.tensors:
            records.append(replace(by_name[source.hf_name(original)], name=source.hf_name(name)))
    files, index = plan_files(records, max_shard_bytes)
    facts = facts_of(source, files, len(source.replicas), 0)
    manifest = manifest_of(
        source, "merge-lora" if source.deltas else "to-hf", {"dtype": dtype, "max_shard_bytes": max_shard_bytes}, facts
    )
    sidecars = {**index, **_hf_files(source, cast)}
    return Plan(source, "huggingface", tuple(files), sidecars, manifest, facts, casts, _notes(source, cast), _changes(source))


def _training_notes(source: Checkpoint, *, carried: bool | None) -> list[str]:
    return source.training.notes(carried) if source.training and carried is not None else []


def run_plan(
    plan: Plan,
    dst: Path,
    *,
    resume: bool = False,
    force: bool = False,
    threads: int = 2,
    progress: Progress | None = None,
) -> bool:
    """Carries a plan out: written beside `dst`, then renamed. False if `dst` already holds exactly this (nothing is done).

    Raises ToolError: a target that is not empty (3), a disk that is full (4; resumable).
    """
    outputs = sorted({*plan.sidecars, *(f.path for f in plan.files)})
    version = dist_version("jumar-ckpt-convert")
    content = manifest_text(tool="jumar-convert", version=version, outputs=outputs, **plan.manifest)
    target = Target(dst, plan.source.paths)
    if not force and _is_done(plan, target, content):
        target.tidy()
        return False
    sidecars = {**plan.sidecars, MANIFEST: content.encode()}
    try:
        target.refuse_own([*plan.source.files, *(s for s in plan.sidecars.values() if isinstance(s, Path))])
        target.claim(resume=resume, force=force)
        target.check_space(plan.nbytes)
        refuse_twins(plan.source)
        journal = Journal(target.staging, plan.fingerprint(), resume)
        try:
            Executor(target.staging, journal, threads=threads, progress=progress).run(plan.files)
            plan.check_unchanged(target.staging)
            for file in plan.files:
                (target.staging / file.path).stat()  # still there, or it is an OSError
            target.finish(sidecars)
        finally:
            journal.close()
    except OSError as fault:
        raise disk_error(fault, target.staging) from fault
    return True


def _is_done(plan: Plan, target: Target, content: str) -> bool:
    """Whether the target holds exactly what the plan would write."""
    if not target.states(json.loads(content), plan.source.files, head=HEADER_BYTES):
        return False
    weights = ((target.dst / f.path, f.size) for f in plan.files)
    small = ((target.dst / name, source) for name, source in plan.sidecars.items())
    return all(p.is_file() and p.stat().st_size == size for p, size in weights) and all(
        p.is_file() and p.read_bytes() == (s if isinstance(s, bytes) else s.read_bytes()) for p, s in small
    )


def differing_replicas(source: Checkpoint, limit: int = SMALL_REPLICA) -> Iterator[str]:
    """Names of tensors of at most `limit` bytes whose values differ between ranks that should hold the same."""
    files = SourceFiles()
    seen: set[str] = set()
    for replica in (*source.replicas, *(source.adapter.replicas if source.adapter else ())):
        if replica.name in seen or replica.first.nbytes > limit:
            continue
        if not same_values(replica.first, replica.other, files):
            seen.add(replica.name)
            yield replica.name


def refuse_twins(source: Checkpoint, tensors: int = 4) -> None:
    """Raises ToolError (3) if two ranks hold the same values where each should hold its own part: one file is a copy.

    The first 64 KiB of the first `tensors` cut tensors of each file are compared. Left out: what is one value throughout,
    and what is cut unevenly.
    """
    files, seen = SourceFiles(), dict[Path, dict[str, bytes]]()
    for name, boxes in source.sources.items() if source.format == "megatron" else ():
        if len({box.size for box in boxes}) > 1:
            continue  # the vocabulary, whose last part is shorter
        for file, box in {box.file: box for box in reversed(boxes)}.items() if len(boxes) > 1 else ():
            held = seen.setdefault(file, {})
            if len(held) < tensors and (start := first_bytes(box, files)) is not None:
                held[name] = start
    first: dict[tuple[tuple[str, bytes], ...], Path] = {}
    for file, held in seen.items():
        if held and (other := first.setdefault(tuple(held.items()), file)) != file:
            ranks = f"{min(other, file).parent} and {max(other, file).parent}"
            raise ToolError(
                f"{ranks} hold the same values, where each rank has a part of its own: {', '.join(held)}",
                hint="one is a copy of the other; get that rank's own file",
            )


def dtype_name(name: str) -> str:
    """ "bf16" or "bfloat16" -> "BF16", the safetensors name. Raises ToolError (2)."""
    if name not in DTYPE_NAMES:
        raise ToolError(f"--dtype {name!r} is not known", hint="bf16, fp16 or fp32", code=Exit.USAGE)
    return DTYPE_NAMES[name]


def _main_dtype(source: Checkpoint) -> str:
    """The dtype of most tensors."""
    return Counter(source.dtype(n) for n in source.tensors).most_common(1)[0][0]


def _hf_files(source: Checkpoint, cast: str | None) -> dict[str, bytes | Path]:
    """Config, tokenizer, templates, code as they are.

    With a cast, config.json says the new dtype; where there is no config, one is written.
    """
    if source.extras is None:
        config = source.family.config(source.spec)
        return {"config.json": (json.dumps(config, indent=2) + "\n").encode()}
    files: dict[str, bytes | Path] = {str(f): source.extras / f for f in carried_files(source.extras)}
    if cast and not source.lora:
        config = json.loads((source.extras / "config.json").read_text(encoding="utf-8"))
        key = "dtype" if "dtype" in config else "torch_dtype"
        config[key] = TORCH_NAMES[cast]
        files["config.json"] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    return files


def _notes(source: Checkpoint, cast: str | None) -> tuple[str, ...]:
    notes = []
    if source.format == "huggingface" and source.extras and (names := left_behind(source.extras)):
        notes.append(f"not carried along: {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}")
    if source.optimizer:
        size, count = human_bytes(sum(source.optimizer.values())), len(source.optimizer)
        where = "1 file" if count == 1 else f"{count} files"
        notes.append(f"the source's optimizer state ({size} in {where}) is not carried along: weights alone are converted")
    held, said = TORCH_NAMES.get(_main_dtype(source)), source.spec.dtype
    if source.format == "megatron" and source.extras and not (cast or source.lora) and held not in (None, said):
        notes.append(f"the weights are {held}; config.json, which goes along as it is, says {said}")
    return tuple(notes)


def _kept_args(source: Checkpoint) -> dict[str, Any]:
    """A Megatron source's own args (tokenizer, schedule, samples consumed) where their values are plain."""
    gone = LORA_ARGS if source.deltas else frozenset()
    return {k: v for k, v in source.args.items() if k not in NOT_KEPT_ARGS | gone and _is_plain(v)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _changes(source: Checkpoint) -> tuple[str, ...]:
    """What is computed instead of copied."""
    text = f"{len(source.deltas)} weights are W + scale * B @ A of the adapter, computed in fp32 and rounded once"
    return (text,) if source.deltas else ()


def facts_of(source: Checkpoint, files: Sequence[TargetFile], replicas: int, padding: int) -> dict[str, int]:
    """Counts for people and for the manifest."""
    nothing = sum(math.prod(c.size) for f in files for r in f.records for c in r.copies if c.file == ZEROS)
    return {
        "hf_tensors": len(source.tensors),
        "files": len(files),
        "tensors": sum(len(f.records) for f in files),
        "copies": sum(len(r.copies) for f in files for r in f.records),
        "replicas": replicas,
        "padding_elements": padding,
        "source_padding_elements": source.padding,
        "dropped": len(source.dropped),
        "bytes": sum(r.nbytes for f in files for r in f.records),
        **({"zeros": nothing} if nothing else {}),
        **({"merged": len(source.deltas)} if source.deltas else {}),
    }


def manifest_of(source: Checkpoint, command: str, recipe: Mapping[str, Any], facts: Mapping[str, int]) -> dict[str, Any]:
    """What a manifest says of its source and of what was made of it."""
    extras = source.extras
    hf = {"base": source.base, "copies": dict(source.copies), "dropped": sorted(source.dropped)}
    return {
        "inputs": identify_all(source.files, *source.paths, head=HEADER_BYTES),
        "recipe": {"command": command, **{k: v for k, v in recipe.items() if v is not None}},
        "model": {"model_type": source.spec.model_type, "spec": source.spec.to_dict()},
        "vocab_size": source.spec.vocab_size,
        "tokenizer_sha256": tokenizer_sha256(extras) if extras else None,
        "template_sha256": template_sha256(extras) if extras else None,
        "counts": dict(facts),
        "hf": hf,
        "bit_exact": False if source.deltas else None,
    }


def _layout_facts(layout: ParallelLayout) -> dict[str, Any]:
    names = ("tp", "pp", "vpp", "cp", "ep", "etp", "dp", "layers_per_stage", "noop_layers", "schedule", "tp_extend_ep")
    values = {n: getattr(layout, n) for n in names}
    return {n: v for n, v in values.items() if v not in (None, (), False)}
