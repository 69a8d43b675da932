"""How much a run takes: parameters of each rank, exactly; its memory, estimated; floating-point operations of a token.

Memory is what tensors take, without the device's own context, its libraries' workspaces and fragmentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from jumar.schema.family import Family
from jumar.schema.parallel import Chunk, ParallelLayout, Shard
from jumar.schema.placement import ExpertLayout, Placed, Placement
from jumar.schema.registry import family_of
from jumar.schema.spec import ModelSpec, Ssm
from jumar.train_core.activations import activation_bytes, logits_bytes
from jumar.train_core.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One rank of a pipeline stage; those of a stage are alike.

    dense, experts: trained parameters; layers: decoder layers of each model chunk
    """

    stage: int
    layers: tuple[tuple[int, ...], ...]
    dense: int
    experts: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    logits_bytes: int

    @property
    def parameters(self) -> int:
        return self.dense + self.experts

    @property
    def total_bytes(self) -> int:
        states = self.weights_bytes + self.gradients_bytes + self.optimizer_bytes
        return states + self.activations_bytes + self.logits_bytes


def ranks(job: Job) -> tuple[Rank, ...]:
    """One rank of each pipeline stage, stage by stage."""
    return tuple(_rank(job, stage) for stage in range(job.layout.pp))


def _rank(job: Job, stage: int) -> Rank:
    dense, experts = stage_parameters(job, stage)
    chunks = [chunk for chunk in job.chunks if chunk.pp == stage]
    each = 4 if job.recipe.train.precision == "fp32" else 2
    state = 8 if each == 4 else 12  # Adam's two moments, and fp32 weights where the trained ones are not
    spread = job.recipe.features.distributed_optimizer
    dense_ranks, expert_ranks = (job.layout.dp * job.layout.cp, job.expert_dp) if spread else (1, 1)
    return Rank(
        stage=stage,
        layers=tuple(_layers(chunk) for chunk in chunks),
        dense=dense,
        experts=experts,
        weights_bytes=each * (dense + experts),
        gradients_bytes=4 * (dense + experts),
        optimizer_bytes=-(-state * dense // dense_ranks) + -(-state * experts // expert_ranks),
        activations_bytes=activation_bytes(job, stage),
        logits_bytes=logits_bytes(job) if stage == job.layout.pp - 1 else 0,
    )


def _layers(chunk: Chunk) -> tuple[int, ...]:
    return tuple(slot for slot in chunk.slots if slot is not None)


def stage_parameters(job: Job, stage: int) -> tuple[int, int]:
    """Trained parameters of one rank of a pipeline stage: (outside experts, of its experts)."""
    dense = experts = 0
    for placed in _tensors(job.family, job.spec, job.layout, stage, job.recipe.model.vocab_divisible_by):
        if placed.expert is None:
            dense += prod(placed.geometry.shape)
        else:
            experts += prod(placed.geometry.shape)
    return dense, experts


def _tensors(family: Family, spec: ModelSpec, layout: ParallelLayout, stage: int, unit: int = 1) -> Iterator[Placed]:
    """The trained tensors of the first rank of a stage; the experts of a layer in one. A balancing bias is not trained."""
    grouped: ExpertLayout = "grouped" if spec.moe is not None else "sequential"
    placement = Placement(family=family, spec=spec, layout=layout, vocab_divisible_by=unit, expert_layout=grouped)
    return (placed for placed in placement.tensors(Shard("", tp=0, pp=stage)) if not placed.name.endswith(".expert_bias"))


def whole_parameters(family: Family, spec: ModelSpec) -> int:
    """Trained parameters of the whole model, the vocabulary not padded."""
    return sum(prod(placed.geometry.shape) for placed in _tensors(family, spec, ParallelLayout(), 0))


def active_parameters(family: Family, spec: ModelSpec) -> int:
    """Those that one token meets: of the experts, `top_k`."""
    return sum(_active(spec, placed) for placed in _tensors(family, spec, ParallelLayout(), 0))


def _active(spec: ModelSpec, placed: Placed) -> int:
    size = prod(placed.geometry.shape)
    return size * spec.moe.top_k // spec.moe.num_experts if spec.moe is not None and placed.expert is not None else size


def flops_per_token(spec: ModelSpec, seq_len: int) -> float:
    """Floating-point operations of matrix products for one token, forward and backward, without recomputation.

    6 for each parameter of a matrix that the token meets (the output layer's too, the embedding's not; of experts the chosen),
    https://arxiv.org/abs/2001.08361, and 6 for each product of a query with a key and a score with a value, of which causal
    attention has half: https://arxiv.org/abs/2204.02311, appendix B; and so for the products inside and between the chunks of
    state-space layers.
    """
    family, output = family_of(spec.model_type), spec.vocab_size * spec.hidden_size
    matrices = 0
    for placed in _tensors(family, spec, ParallelLayout(), 0):
        if len(placed.geometry.shape) > 1 and not placed.name.startswith(("embedding.", "output_layer.")):
            matrices += _active(spec, placed)
    matrices += output * (1 + spec.mtp_layers)
    if spec.mla is not None:
        width = spec.num_heads * (spec.mla.nope_dim + spec.mla.rope_dim + spec.mla.v_dim)
    else:
        width = 2 * spec.num_heads * spec.head_dim
    kinds = [spec.layer_kind(layer) for layer in range(spec.num_layers)] + ["block"] * spec.mtp_layers
    keys = sum(_keys(spec, layer, seq_len) for layer, kind in enumerate(kinds) if kind in ("block", "attention"))
    scans = kinds.count("ssm") * _scan(spec.ssm, seq_len) if spec.ssm is not None else 0.0
    return 6.0 * (matrices + keys * width + scans)


def _scan(ssm: Ssm, seq_len: int) -> float:
    """Multiplications of a token in a state-space layer's scan, https://arxiv.org/abs/2405.21060 (6): inside a chunk C with B and
    the scores with x, of which half are not masked; a state made of x and B, and read by C."""
    chunk = min(ssm.chunk_size, seq_len)
    inner = ssm.num_heads * ssm.head_dim
    return chunk / 2 * (ssm.num_groups * ssm.state_size + inner) + 2 * inner * ssm.state_size


def _keys(spec: ModelSpec, layer: int, seq_len: int) -> float:
    """Keys that a token looks at in a layer, on average: half the text, less behind a sliding window."""
    window = spec.sliding_window if layer in spec.sliding_layers and spec.sliding_window else seq_len
    window = min(window, seq_len)
    return window - window * window / (2 * seq_len)
