"""Memory of what the forward pass keeps for the backward pass.

After https://arxiv.org/abs/2205.05198 (section 4), taken apart by tensor so that grouped-query and latent attention, gated MLPs
and experts are counted too. Attention is taken to be fused, so that no scores are kept, unless they are soft-capped. Tokens are
taken to be shared out evenly over experts. Scans of state-space layers are in plain torch, whose copies are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jumar.schema.spec import Ssm
from jumar.train_core.job import Job

SCORES = 3
"""Copies of soft-capped scores: tanh's output, the masked ones, the softmax."""
SCAN_SCORES, SCAN_INNER, SCAN_STATES, SCAN_ENDS = 3, 5, 3, 3
"""Copies that a scan keeps: of scores, of x, of B and C for each head, of the states at the ends of chunks."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """What a layer keeps for one micro batch, in bytes: its parts, as they are recomputed."""

    inputs: float  # of attention and of the MLP: the residual stream
    norms: float
    projections: float  # q, k and v
    core: float  # what fused attention keeps beside its output
    output: float
    feed: float  # inside the MLP or the experts
    act: float  # of that, what the activation function gives in experts
    shared: float

    @property
    def total(self) -> float:
        return self.inputs + self.norms + self.projections + self.core + self.output + self.feed + self.shared


def activation_bytes(job: Job, stage: int) -> int:
    """Activations of one rank of a stage at their peak, without the logits: chunks in flight, and what is being recomputed."""
    chunks = [chunk for chunk in job.chunks if chunk.pp == stage]
    kept, recomputed = 0.0, 0.0
    for chunk in chunks:
        layers = [slot for slot in chunk.slots if slot is not None]
        if chunk.last:
            layers += range(job.spec.num_layers, job.spec.num_layers + job.spec.mtp_layers)
        here, again = _chunk_bytes(job, layers)
        kept, recomputed = kept + here, max(recomputed, again)
    return round(kept / len(chunks) * in_flight(job, stage) + recomputed)


def in_flight(job: Job, stage: int) -> int:
    """Model chunks whose activations a stage holds at most, over micro batches.

    1F1B: pp - stage; interleaved: 2 (pp - stage - 1) + (vpp - 1) pp + 1, https://arxiv.org/abs/2104.04473 (2.2).
    """
    pp, vpp, micro = job.layout.pp, job.layout.vpp, job.micro_batches
    chunks = pp - stage if vpp == 1 else 2 * (pp - stage - 1) + (vpp - 1) * pp + 1
    return min(chunks, micro * vpp)


def _chunk_bytes(job: Job, layers: list[int]) -> tuple[float, float]:
    """(kept for each micro batch, held while one unit is recomputed)."""
    sizes = [_layer(job, layer) for layer in layers]
    wanted = job.recipe.features.recompute
    if wanted is None or not sizes:
        return sum(size.total for size in sizes), 0.0
    entry = _stream(job)
    if wanted.granularity == "full":
        if wanted.method == "block":
            again = sizes[: wanted.layers]
            return entry * len(again) + sum(s.total for s in sizes[wanted.layers :]), max(s.total for s in again)
        units = [sizes[i : i + wanted.layers] for i in range(0, len(sizes), wanted.layers)]
        return entry * len(units), max(sum(s.total for s in unit) for unit in units)
    kept = [_selective(job, layer, size) for layer, size in zip(layers, sizes, strict=True)]
    return sum(kept), max(size.total - left for size, left in zip(sizes, kept, strict=True))


def _selective(job: Job, layer: int, size: _Layer) -> float:
    """What a layer keeps when only some of its modules are recomputed."""
    wanted = job.recipe.features.recompute
    assert wanted is not None
    moe = job.spec.is_moe_layer(layer)
    if layer < job.spec.num_layers and job.spec.layer_kind(layer) == "ssm":
        return size.total
    saved = {
        "core_attn": size.core,
        "layernorm": size.norms,
        "mla_up_proj": size.projections,
        "mlp": 0.0 if moe else size.feed,
        "moe": size.feed + size.shared if moe else 0.0,
        "moe_act": size.act,
        "shared_experts": size.shared,
    }
    return size.total - sum(saved[name] for name in wanted.modules)


def _element(job: Job) -> int:
    return 4 if job.recipe.train.precision == "fp32" else 2


def _tokens(job: Job) -> float:
    """Tokens of a micro batch on one rank, before tensor parallelism."""
    return job.recipe.train.micro_batch_size * job.recipe.data.seq_len / job.layout.cp


def _stream(job: Job) -> float:
    """The residual stream of one layer on one rank: cut over tp only with sequence parallelism."""
    return _element(job) * _tokens(job) * job.spec.hidden_size / (job.layout.tp if job.sequence_parallel else 1)


def _layer(job: Job, layer: int) -> _Layer:
    kind = "block" if layer >= job.spec.num_layers else job.spec.layer_kind(layer)
    if kind == "ssm":
        return _mixer(job)
    whole = _block(job, layer)
    if kind == "block":
        return whole
    half = replace(whole, inputs=whole.inputs / 2, norms=whole.norms / 2)  # one norm, one residual
    if kind == "attention":
        return replace(half, feed=0.0, act=0.0, shared=0.0)
    return replace(half, projections=0.0, core=0.0, output=0.0)


def _mixer(job: Job) -> _Layer:
    """A state-space layer: the input, its norm; z, x, B, C, dt, and x, B, C after the convolution and after its activation; what
    the scan keeps; its output before and after the norm."""
    ssm, tp, tokens, stream, each = job.spec.ssm, job.layout.tp, _tokens(job), _stream(job), _element(job)
    assert ssm is not None
    inner, state = ssm.num_heads * ssm.head_dim, 2 * ssm.num_groups * ssm.state_size
    residual = stream * (4 / each if ssm.residual_in_fp32 else 1)
    dropout = stream / each if job.recipe.model.hidden_dropout else 0.0
    projected = 2 * inner + state + ssm.num_heads
    return _Layer(
        inputs=residual + dropout,
        norms=stream,
        projections=each * tokens * (projected + 2 * (inner + state)) / tp,
        core=_scan(job, ssm),
        output=each * tokens * 2 * inner / tp,
        feed=0.0,
        act=0.0,
        shared=0.0,
    )


def _scan(job: Job, ssm: Ssm) -> float:
    """What `ssd_scan` in plain torch keeps, all in fp32, for a token and head: SCAN_SCORES numbers for each of a chunk's tokens,
    SCAN_INNER copies of x, SCAN_STATES of B and C, and SCAN_ENDS states a chunk."""
    chunk = min(ssm.chunk_size, job.recipe.data.seq_len)
    numbers: float = SCAN_SCORES * chunk + SCAN_INNER * ssm.head_dim + SCAN_STATES * ssm.state_size
    numbers += SCAN_ENDS * ssm.head_dim * ssm.state_size / chunk
    return 4 * _tokens(job) * ssm.num_heads / job.layout.tp * numbers


def _block(job: Job, layer: int) -> _Layer:
    spec, tp, moe = job.spec, job.layout.tp, job.spec.is_moe_layer(layer)
    stream, each, tokens = _stream(job), _element(job), _tokens(job)
    dropout = 2 * stream / each if job.recipe.model.hidden_dropout else 0.0  # a byte an element
    norms = (4 if spec.post_norms else 2) * stream
    if spec.mla is not None:
        mla = spec.mla
        heads = spec.num_heads * (2 * (mla.nope_dim + mla.rope_dim) + mla.v_dim)
        latent = 2 * (mla.q_lora_rank + mla.kv_lora_rank) + mla.rope_dim
        projections, out = each * tokens * (heads / tp + latent), spec.num_heads * mla.v_dim
        gathered = spec.num_heads * (mla.nope_dim + mla.rope_dim + mla.v_dim)
    else:
        width = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
        normed = (spec.num_heads + spec.num_kv_heads) * spec.head_dim if spec.qk_norm else 0
        projections, out = each * tokens * (width + normed) / tp, spec.num_heads * spec.head_dim
        gathered = 2 * spec.num_kv_heads * spec.head_dim
    scores = SCORES * job.recipe.data.seq_len if spec.attn_softcap else 0
    everyone = each * tokens * job.layout.cp * gathered / tp if job.layout.cp > 1 else 0.0  # keys and values of all cp ranks
    feed, act, shared = _experts(job) if moe else (_mlp(job, spec.ffn_size, tp), 0.0, 0.0)
    return _Layer(
        inputs=2 * stream + dropout,
        norms=norms,
        projections=projections,
        core=4 * tokens * spec.num_heads / tp * (1 + scores) + everyone,
        output=each * tokens * out / tp,
        feed=feed,
        act=act,
        shared=shared,
    )


def _mlp(job: Job, width: int, tp: int) -> float:
    """Input of the activation function (two halves where it is gated), and its output."""
    return _element(job) * _tokens(job) * width * (3 if job.spec.gated else 2) / tp


def _experts(job: Job) -> tuple[float, float, float]:
    """Inside the experts of a layer: (all of it, the activation function's output, the shared experts)."""
    moe, etp = job.spec.moe, job.layout.expert_tp
    assert moe is not None
    copies = _tokens(job) / (job.layout.tp if job.sequence_parallel else 1) * moe.top_k * etp
    act = _element(job) * copies * moe.ffn_size / etp
    inner = act * (3 if job.spec.gated else 2)
    moved = 2 * _element(job) * copies * job.spec.hidden_size  # as they come to the experts, and as they leave
    return inner + moved, act, _mlp(job, moe.shared_ffn_size, job.layout.tp)


def logits_bytes(job: Job) -> int:
    """Logits of the last stage: as the output layer gives them, and three copies in fp32 (themselves, exponentials, gradient)."""
    each = 2 if _element(job) == 2 else 0
    return round(_tokens(job) * job.padded_vocab / job.layout.tp * (each + 12) * (1 + job.spec.mtp_layers))
