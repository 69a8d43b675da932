"""The tensors of a `torch_dist` checkpoint: whole ones under names of their own, each saved as boxes (DCP's "chunks").

Names and shapes are those of megatron-core's `sharded_state_dict`. A tensor is not cut over TP, PP or EP; a layout only says
which boxes of it were saved by which rank. Layers, and the experts of a layer, are either stacked along leading axes of one
tensor, or tensors of their own.
Source: megatron/core/transformer/{transformer_block,mlp}.py, moe/experts.py, ssm/mamba_mixer.py, dist_checkpointing/mapping.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from jumar.schema.errors import ToolError
from jumar.schema.parallel import Shard
from jumar.schema.placement import Placed, Placement
from jumar.schema.weights import Geometry, Rule, cut_rows, expand

FUSED = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_", "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"}
"""`sharded_state_dict_keys_map` of the local layer spec: it saves norms under TransformerEngine's names, but for MLA."""

NAMED_SEGMENTS = {
    "mixer.in_proj.weight": ("z", "x", "B", "C", "dt"),
    "mixer.conv1d.weight": ("x", "B", "C"),
    "mixer.conv1d.bias": ("x", "B", "C"),
}
"""Tensors whose segments are saved one by one, as NAME.SEGMENT."""

GATE, UP = "_w", "_v"
DIALECTS = ("mcore", "te")
"""Those that are written; `mindspeed` is read too."""


@dataclass(frozen=True, slots=True)
class Spelling:
    """How tensors are named.

    stacked:   layers are a leading axis of one tensor (megatron-core's way for layers that are all alike)
    singleton: each layer, each expert, and gate and up, are tensors of their own (metadata `singleton_local_shards`)
    fused:     the local spec's norms are named as TransformerEngine's; specs of other frameworks may not rename them
    """

    stacked: bool
    singleton: bool = False
    fused: bool = True


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor, and what it holds.

    key, shape: name and shape of the tensor
    start:      where the box begins
    geometry:   the box without the stacked axes, at which it is one thick
    """

    key: str
    shape: tuple[int, ...]
    start: tuple[int, ...]
    geometry: Geometry
    sources: tuple[str, ...]
    keep_dtype: bool

    @property
    def stacked(self) -> int:
        """How many leading axes are stacked."""
        return len(self.shape) - len(self.geometry.shape)

    @property
    def size(self) -> tuple[int, ...]:
        return (*(1,) * self.stacked, *self.geometry.shape)


def default_spelling(placement: Placement) -> Spelling:
    """What megatron-core itself would write: layers with experts by a list of `moe_layer_freq`, and Mamba's, one by one."""
    return Spelling(stacked=placement.spec.moe is None and placement.spec.ssm is None)


def can_stack(placement: Placement) -> bool:
    """Whether all layers are alike, so that they can be one tensor."""
    moe = placement.spec.moe
    return placement.spec.ssm is None and (moe is None or len(moe.dense_layers) in (0, placement.spec.num_layers))


def check(placement: Placement, spelling: Spelling) -> None:
    """Raises ToolError for a dialect in which megatron-core does not write `torch_dist`, and for layers that do not stack."""
    if spelling.stacked and not can_stack(placement):
        raise ToolError(
            f"the layers of this {placement.spec.model_type} are not all alike, or Mamba's, and cannot be stacked",
            hint="leave out --dist-layers",
        )
    if placement.dialect not in DIALECTS:
        raise ToolError(f"dialect {placement.dialect} has no torch_dist format", hint=f"choose --dialect {' or '.join(DIALECTS)}")


def pieces(placement: Placement, shard: Shard, spelling: Spelling) -> Iterator[Piece]:
    """The boxes that one rank would save, in the model's order. Copies (a tied head) are left out."""
    placement = replace(placement, expert_layout="sequential")
    numbers = _numbers(placement)
    for placed in placement.tensors(shard):
        if placed.origin is not None and placed.origin.stage in ("tied_last", "mtp") and placed.origin.scope == "model":
            continue  # the embedding, saved by the first stage
        key, lead = _name(placed, placement, spelling, numbers)
        for suffix, start, whole, geometry in _segments(placed, placement, shard, spelling):
            yield Piece(
                key + suffix,
                (*(n for _, n in lead), *whole),
                (*(i for i, _ in lead), *start),
                geometry,
                placed.sources,
                placed.keep_dtype,
            )


def _numbers(placement: Placement) -> list[int]:
    """The number of each layer, no-op slots counted."""
    noop = set(placement.layout.noop_layers)
    return [n for n in range(placement.spec.num_layers + len(noop)) if n not in noop]


def _name(placed: Placed, placement: Placement, spelling: Spelling, numbers: list[int]) -> tuple[str, list[tuple[int, int]]]:
    """A tensor's name, and its place (index, count) along each stacked axis."""
    rule, layer, spec = placed.origin, placed.layer, placement.spec
    assert rule is not None
    if layer is None or rule.scope == "mtp":
        return placed.name, []
    lead: list[tuple[int, int]] = []
    suffix = rule.name_in(placement.dialect)
    if spelling.fused and placement.dialect != "te" and spec.mla is None and spec.ssm is None:
        suffix = next((new + suffix[len(old) :] for old, new in FUSED.items() if suffix.startswith(old)), suffix)
    if layer >= spec.num_layers:
        prefix = f"mtp.layers.{layer - spec.num_layers}.transformer_layer."
    elif spelling.stacked:
        prefix, lead = "decoder.layers.", [(numbers[layer], spec.num_layers + len(placement.layout.noop_layers))]
    else:
        prefix = f"decoder.layers.{numbers[layer]}."
    if rule.expert:
        assert spec.moe is not None
        assert placed.expert is not None
        suffix = suffix.split(".local_experts.{e}.")[1]
        if spelling.singleton:
            prefix += f"mlp.experts.experts.{placed.expert}."
        else:
            prefix += "mlp.experts.experts."
            lead.append((placed.expert, spec.moe.num_experts))
    return prefix + suffix, lead


Segment = tuple[str, tuple[int, ...], tuple[int, ...], Geometry]


def _segments(placed: Placed, placement: Placement, shard: Shard, spelling: Spelling) -> Iterator[Segment]:
    """(suffix of the name, start in the whole tensor, shape of the whole tensor, what it holds) of each piece."""
    rule, geometry = placed.origin, placed.geometry
    assert rule is not None
    index, count = (shard.etp, placement.layout.expert_tp) if rule.expert else (shard.tp, placement.layout.tp)
    axis = rule.shard
    if axis is None:
        index, count = 0, 1
    full = expand(rule, placement.spec).shape
    whole = [placement.padded_vocab, *full[1:]] if rule.padded else list(full)
    names = NAMED_SEGMENTS.get(rule.name)
    glu = placement.spec.gated and ".linear_fc1." in f".{rule.name}" and len(geometry.segments[0]) == 2
    if axis != 0 or len(geometry.segments[0]) == 1:
        start = [0] * len(full)
        if axis is not None:
            start[axis] = index * geometry.shape[axis]
        yield "", tuple(start), tuple(whole), geometry
        return
    here = first = 0
    for number, segment in enumerate(geometry.segments[0]):
        part = cut_rows(geometry, here, segment.size)
        rest = (0,) * (len(full) - 1)
        if names is not None or (glu and spelling.singleton):
            suffix = f".{names[number]}" if names is not None else (GATE, UP)[number]
            yield suffix, (index * segment.size, *rest), (count * segment.size, *whole[1:]), part
        else:
            yield "", (first + index * segment.size, *rest), tuple(whole), part
        here += segment.size
        first += count * segment.size


def states(placement: Placement, shard: Shard, spelling: Spelling) -> Iterator[str]:
    """Keys of the empty `_extra_state` objects that megatron-core's parallel linear layers save, and ask for."""
    placement = replace(placement, expert_layout="sequential")
    numbers = _numbers(placement)
    seen: set[tuple[str, tuple[tuple[int, int], ...]]] = set()
    for placed in placement.tensors(shard):
        rule = placed.origin
        if rule is None or not _has_state(rule, placement.dialect):
            continue
        key, lead = _name(placed, placement, spelling, numbers)
        module = key.rpartition(".")[0]
        found = (module, tuple(lead))
        if found in seen:
            continue
        seen.add(found)
        at, of = zip(*(lead or [(0, 1)]), strict=True)
        yield f"{module}._extra_state/shard_{'.'.join(map(str, at))}_{'.'.join(map(str, of))}"


def _has_state(rule: Rule, dialect: str) -> bool:
    """Whether a rule's module is a parallel linear layer (or, in TransformerEngine, a norm of its own)."""
    module, _, kind = rule.name_in(dialect).rpartition(".")
    last = module.rpartition(".")[2]
    if kind != "weight" or not module:
        return False
    if last.startswith("linear_") or last in ("eh_proj", "in_proj", "out_proj"):
        return True
    return dialect == "te" and "norm" in last
