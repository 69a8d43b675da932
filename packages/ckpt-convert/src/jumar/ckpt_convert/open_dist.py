"""Opening a Megatron `torch_dist` checkpoint: whole tensors in chunks, whatever layout saved them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jumar.ckpt_convert.checkpoint import Checkpoint, OpenOptions
from jumar.ckpt_convert.formats.dist_metadata import DistTensor
from jumar.ckpt_convert.formats.megatron import iteration_directory
from jumar.ckpt_convert.formats.torch_dist import Chunks, DistDirectory, is_dist, open_directory
from jumar.ckpt_convert.open_args import Args, hints_for_a_source, values_given
from jumar.ckpt_convert.open_hf import check_counts
from jumar.ckpt_convert.open_megatron import iteration_of, kept_facts, model_from_args, model_of
from jumar.ckpt_convert.plan import Ints, SourceBox, tiling_fault
from jumar.ckpt_convert.shown import EMBEDDING
from jumar.ckpt_convert.tensors import TensorRef
from jumar.ckpt_convert.training_state import (
    FLAT,
    LAYOUT_BOUND,
    OTHERS,
    TrainingState,
    carried_common,
    is_plain,
    lacking,
    names_by_kind,
)
from jumar.schema.distributed import DIALECTS, Piece, Spelling, pieces
from jumar.schema.errors import Exit, ToolError
from jumar.schema.manifest import above, read_manifest
from jumar.schema.parallel import ParallelLayout
from jumar.schema.placement import Placement
from jumar.schema.read_megatron_args import contradictions, layout_from_args
from jumar.schema.weights import within

READ_DIALECTS = (*DIALECTS, "mindspeed")
PER_LAYER = re.compile(r"decoder\.layers\.\d+\.")
SINGLETON = re.compile(r".*(\.experts\.experts\.\d+\.|linear_fc1\.(weight|bias)_[wv]$)")
EXTRA_STATE = re.compile(r".*\._extra_state(/shard_[\d._]+)?")
HINT = "is the model right (hf/config.json), or the dialect (--set dialect=te)?"


def is_dist_checkpoint(root: Path, iteration: str | None = None) -> bool:
    """Whether a directory is a distributed checkpoint: one iteration of it, or its root."""
    if is_dist(root):
        return True
    try:
        return is_dist(iteration_directory(root, iteration))
    except (ToolError, OSError):
        return any(is_dist(path) for path in root.glob("iter_*"))


@hints_for_a_source()
@hints_for_a_source()
def open_dist(root: Path, options: OpenOptions) -> Checkpoint:
    """A `torch_dist` checkpoint as a Checkpoint. Every chunk must be where it is said to be, and none be left over."""
    directory = root if is_dist(root) else iteration_directory(root, options.iteration)
    if not is_dist(directory):
        raise ToolError(f"{directory}: is no torch_dist iteration", hint="choose one with --iteration")
    found = open_directory(directory)
    tensors = {name: t for name, t in found.metadata.tensors.items() if not OTHERS.fullmatch(name)}
    homes = list(dict.fromkeys((root, directory, *above(directory))))
    manifest = next((m for home in homes if (m := read_manifest(home))), None)
    args = Args(found.args, options.sets)
    family, spec, extras = model_of(homes, manifest, options)
    if family is None or spec is None:
        family, spec = model_from_args(args, options, [], root)
    spec = replace(spec, mtp_layers=_mtp_layers(tensors)) if spec.mtp_layers else spec
    wrong, notes = contradictions(args, spec)
    if wrong:
        raise ToolError(
            f"{directory}: its args contradict the model's config: {'; '.join(wrong)}",
            hint=f"does {extras or 'the manifest'} belong to these weights?",
        )
    check_counts(spec, sum(len(t.chunks) for t in tensors.values()), "the checkpoint's config")
    with values_given(args):
        saved = layout_from_args({"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1, **args}, spec.num_layers)
    args.seen.update(args.given)  # a layout has nothing to say here but for its no-op slots
    whole = ParallelLayout(noop_layers=saved.noop_layers)
    rows = tensors[EMBEDDING].shape[0] if EMBEDDING in tensors else spec.vocab_size
    if rows < spec.vocab_size:
        raise ToolError(
            f"the embedding has {rows} rows, the model's vocabulary {spec.vocab_size}",
            hint="does hf/config.json (or --set vocab_size) belong to these weights?",
        )
    placement = Placement(family=family, spec=spec, layout=whole, vocab_rows=(rows,))
    placement, spelling = _spelling(placement, tensors, args.get("dialect") or (manifest or {}).get("dialect"))
    expected = [p for shard in placement.shards for p in pieces(placement, shard, spelling)]
    _check(directory, placement, expected, tensors)
    sources, padding = _boxes(found, expected, tensors)
    shapes = family.hf_tensors(spec)
    facts = kept_facts(manifest, shapes)
    return Checkpoint(
        paths=(root,),
        format="torch_dist",
        family=family,
        spec=spec,
        tensors=shapes,
        sources={n: sources[n] for n in shapes},
        extras=extras,
        placement=replace(placement, layout=saved, vocab_rows=None, expert_layout=_expert_layout(args)),
        iteration=iteration_of(directory, int(found.common.get("iteration") or 0)),
        copies=facts.get("copies", {}),
        dropped=tuple(sorted(n for n in found.metadata.objects if EXTRA_STATE.fullmatch(n))),
        padding=padding,
        args=found.args,
        training=_training(found, placement, expected),
        notes=tuple(f"the checkpoint's args differ from the config that goes along: {note}" for note in notes),
        base=facts.get("base", True),
    )


def _mtp_layers(tensors: Mapping[str, DistTensor]) -> int:
    return len({name.split(".")[2] for name in tensors if name.startswith("mtp.layers.")})


def _expert_layout(args: Mapping[str, Any]) -> Any:
    return "grouped" if args.get("moe_grouped_gemm") and args.get("num_experts") else "sequential"


def _spelling(placement: Placement, tensors: Mapping[str, DistTensor], dialect: str | None) -> tuple[Placement, Spelling]:
    """Dialect and spelling, by what the names fit best."""
    if dialect not in (None, *READ_DIALECTS):
        raise ToolError(
            f"--set dialect={dialect}: torch_dist is read as {', '.join(READ_DIALECTS)}",
            hint="leave it out: it is recognised",
            code=Exit.USAGE,
        )
    spelling = Spelling(
        stacked=not any(PER_LAYER.match(name) for name in tensors),
        singleton=any(SINGLETON.fullmatch(name) for name in tensors),
        fused=not any(name.endswith(".input_layernorm.weight") for name in tensors),
    )
    best: tuple[int, Placement] | None = None
    for name in (dialect,) if dialect else READ_DIALECTS:
        if name not in placement.family.dialects:
            continue
        tried = replace(placement, dialect=name)
        missing = sum(len({p.key for p in pieces(tried, shard, spelling)} - tensors.keys()) for shard in tried.shards)
        if best is None or missing < best[0]:
            best = missing, tried
    if best is None:
        raise ToolError(
            f"{placement.spec.model_type} has no torch_dist dialect", hint="jumar-convert families lists the dialects"
        )
    return best[1], spelling


def _check(directory: Path, placement: Placement, expected: list[Piece], tensors: Mapping[str, DistTensor]) -> None:
    """Names and shapes must be those of the model; the chunks of each tensor must tile it (no-op slots excepted)."""
    shapes = {piece.key: piece for piece in expected}
    if missing := [key for key in shapes if key not in tensors]:
        raise ToolError(f"{directory}: has no {', '.join(missing[:6])}{_more(missing, 6)}", hint=HINT)
    if foreign := [name for name in tensors if name not in shapes]:
        kind = placement.spec.model_type
        raise ToolError(f"{directory}: no rule of {kind} names {', '.join(foreign[:6])}{_more(foreign, 6)}", hint=HINT)
    for key, piece in shapes.items():
        if tensors[key].shape != piece.shape:
            raise ToolError(f"{directory}: {key} is {list(tensors[key].shape)}, expected {list(piece.shape)}", hint=HINT)
        _check_chunks(directory, key, tensors[key], piece, placement)


def _check_chunks(directory: Path, name: str, tensor: DistTensor, piece: Piece, placement: Placement) -> None:
    boxes = [(c.start, c.size) for c in tensor.chunks]
    fault = tiling_fault(tensor.shape, boxes)
    if fault and placement.layout.noop_layers and piece.key.startswith("decoder.layers.") and not PER_LAYER.match(piece.key):
        inner = piece.shape[1:]
        boxes += [((n, *(0,) * len(inner)), (1, *inner)) for n in placement.layout.noop_layers]
        fault = tiling_fault(tensor.shape, boxes)  # slots without a layer have no chunks
    if fault:
        raise ToolError(f"{directory}: the chunks of {name} do not make it: {fault}", hint="copy the whole directory again")


def _training(found: DistDirectory, placement: Placement, expected: list[Piece]) -> TrainingState:
    """Optimizer state and counters: carried where each state has the name and shape of its parameter."""
    held, objects = found.metadata.tensors, found.metadata.objects
    common, strange = carried_common(found.common)
    rng = "rng_state" in found.common or any(name.startswith("rng_state") for name in objects)
    facts = found.common.get("content_metadata")
    state = TrainingState(common=common, facts=facts if isinstance(facts, dict) and is_plain(facts) else {}, rng=rng)
    by_kind = names_by_kind(held)
    if any(FLAT.fullmatch(name) for name in (*held, *objects)):
        return replace(state, refused=f"it was saved as flat buffers of that run's ranks; {LAYOUT_BOUND}")
    if "optimizer" in strange:
        return replace(state, refused="common.pt holds parameter groups that are no plain values")
    if by_kind and "optimizer" not in common:
        return replace(state, refused="common.pt is missing, or holds no parameter groups")
    if partial := lacking(by_kind):
        return replace(state, refused=f"it is not whole: {partial}")
    shapes = {piece.key: piece for piece in expected}
    kinds: dict[str, dict[str, list[SourceBox]]] = {}
    for kind, names in by_kind.items():
        for key, name in names.items():
            if key not in shapes or held[name].shape != shapes[key].shape:
                return replace(state, refused=f"{name} has not its parameter's shape (flat pieces of it); {LAYOUT_BOUND}")
            _check_chunks(found.path, name, held[name], shapes[key], placement)
        kinds[kind], _ = _boxes(found, [p for p in expected if p.key in names], {k: held[n] for k, n in names.items()})
    bare = [p.key for p in expected if not p.keep_dtype and not any(p.key in names for names in by_kind.values())]
    return replace(state, kinds=kinds, bare=tuple(dict.fromkeys(bare)) if kinds else ())


def _more(names: list[str], shown: int) -> str:
    return f" and {len(names) - shown} more" if len(names) > shown else ""


def _boxes(
    found: DistDirectory, expected: list[Piece], tensors: Mapping[str, DistTensor]
) -> tuple[dict[str, list[SourceBox]], int]:
    """Where each HF tensor's boxes lie; and how many elements are padding."""
    sources: dict[str, list[SourceBox]] = {}
    chunks: dict[str, Chunks] = {}
    refs: dict[tuple[str, Ints], TensorRef] = {}
    padding = 0
    for piece in expected:
        tensor = tensors[piece.key]
        if piece.key not in chunks:
            chunks[piece.key] = Chunks(tensor, piece.stacked)
        for chunk in chunks[piece.key][piece.start[: piece.stacked]]:
            if (piece.key, chunk.start) not in refs:
                refs[piece.key, chunk.start] = found.ref(piece.key, tensor, chunk)
            for name, box in _meeting(piece, chunk.start, refs[piece.key, chunk.start]):
                sources.setdefault(name, []).append(box)
        rest = 1
        for n in piece.geometry.shape[1:]:
            rest *= n
        padding += piece.geometry.padding * rest
    return sources, padding


def _meeting(piece: Piece, start: Ints, ref: TensorRef) -> Iterator[tuple[str, SourceBox]]:
    """The HF boxes of a piece that a chunk (at `start` of the whole tensor) holds."""
    k = piece.stacked
    low = tuple(max(c - p, 0) for c, p in zip(start[k:], piece.start[k:], strict=True))
    high = tuple(c + n - p for c, n, p in zip(start[k:], ref.shape[k:], piece.start[k:], strict=True))
    lead = sum((p - c) * step for p, c, step in zip(piece.start[:k], start[:k], ref.strides[:k], strict=True))
    strides = ref.strides[k:]
    for whole in piece.geometry.boxes:
        box = within(whole, low, high)
        if box is None:
            continue
        at = (p + a - c for p, a, c in zip(piece.start[k:], box.at, start[k:], strict=True))
        offset = ref.offset + (lead + sum(n * step for n, step in zip(at, strides, strict=True))) * ref.itemsize
        yield (
            piece.sources[box.part],
            SourceBox(box.start, box.size, ref.dtype, ref.file, offset, tuple(strides[a] for a in box.axes)),
        )
