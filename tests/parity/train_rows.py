"""The rows of the parity matrix, as data: a model, a number of ranks, what the recipe changes, and what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

FEW = 6
"""Steps of rows that are not slow."""
Changes = dict[str, Any]
TP2: Changes = {"parallel.tp": 2}
TP2_WHOLE: Changes = TP2 | {"parallel.sequence_parallel": False}
PP2: Changes = {"parallel.pp": 2}
VPP2: Changes = PP2 | {"parallel.vpp": 2}
CP2: Changes = {"parallel.cp": 2}
EP2: Changes = {"parallel.ep": 2}
DP2: Changes = {"features.distributed_optimizer": False}
SPREAD: Changes = {"features.distributed_optimizer": True}
OVERLAP: Changes = SPREAD | {"features.overlap_grad_reduce": True, "features.overlap_param_gather": True}
ALLGATHER: Changes = {"features.moe.dispatcher": "allgather"}
SEQUENTIAL: Changes = {"features.moe.grouped_gemm": False}
ONE_BY_ONE: Changes = {"train.micro_batch_size": 1}

MASK: Changes = {"data.train": "ends", "data.eod_mask_loss": True}
MEANS: Changes = {"train.loss": "micro_batch"}
ROUTED: Changes = {"features.moe.aux_loss": 0.5, "features.moe.z_loss": 0.05}
QUIET: Changes = {"features.moe.balancing": "none"}
BY_SEQUENCE: Changes = {"features.moe.balancing": "sequence", "features.moe.aux_loss": 0.5}
BF16: Changes = {"train.precision": "bf16", "optim.lr": 3e-4}  # at ten times as much these models enlarge any rounding
FP16: Changes = {"train.precision": "fp16", "optim.initial_loss_scale": 1024.0}
FAST: Changes = {"optim.lr": 5e-3}  # state-space layers learn little in 20 steps at the others' rate
EVALUATED: Changes = {"train.eval_every": 1, "train.eval_batches": 1, "data.valid": "ends"}
SPREADS: dict[str, Changes] = {
    "tp2": TP2,
    "tp2-whole": TP2_WHOLE,
    "pp2": PP2,
    "cp2": CP2,
    "dp2": DP2,
    "dp2-spread": SPREAD,
    "dp2-overlap": OVERLAP,
    "tp2-recompute": TP2 | {"features.recompute": {"granularity": "full", "method": "uniform", "layers": 1}},
}


def recompute(*modules: str) -> Changes:
    return {"features.recompute": {"granularity": "selective", "modules": list(modules)}}


def recompute_full(method: str, layers: int) -> Changes:
    return {"features.recompute": {"granularity": "full", "method": method, "layers": layers}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison.

    variant: of train_models; world: ranks; task: the command
    changes: of the recipe: the layout, which may change no number
    same:    of the recipe and of the one process that the row is compared with: what a run computes
    first:   the layout of the first half of the steps; `changes` is then that of the second half, which goes on from a checkpoint
    like:    the row to compare with; None: one process
    trap:    a mend that is taken away (train_traps): the row must then differ
    loss, norm, gradient: largest difference of losses; of norms, and of each gradient, relative to its largest element
    """

    name: str
    variant: str = "llama"
    world: int = 2
    task: str = "pretrain"
    changes: Changes = field(default_factory=dict)
    same: Changes = field(default_factory=dict)
    first: Changes | None = None
    like: str | None = None
    trap: str | None = None
    slow: bool = False
    steps: int = 20
    loss: float = 2e-6
    norm: float = 1e-5
    gradient: float | None = 2e-5


def row(name: str, world: int, changes: Changes, *, slow: bool = False, **more: Any) -> Row:
    variant, _, _ = name.partition(":")
    return Row(name=name.replace(":", "-"), variant=variant, world=world, changes=changes, slow=slow, **more)


def slow(name: str, world: int, changes: Changes, **more: Any) -> Row:
    return row(name, world, changes, slow=True, **more)


DENSE = (
    row("llama:tp2", 2, TP2),
    slow("llama:tp2-whole", 2, TP2_WHOLE),
    row("llama:pp2", 2, PP2),
    row("llama:pp2vpp2", 2, VPP2),
    slow("llama:dp2-overlap", 2, OVERLAP),
    row("llama:cp2", 2, CP2),
    row("llama:recompute-block", 1, recompute_full("block", 2), gradient=0, loss=0, norm=0),
    slow("llama:recompute-parts", 1, recompute("core_attn", "mlp", "layernorm")),
    row("llama_tied:pp2", 2, PP2),
    slow("llama_tied:dp2pp2-overlap", 4, PP2 | OVERLAP),
    slow("llama:uneven", 2, PP2 | {"parallel.layers_per_stage": [1, 3]}),
    row("llama:cp2tp2", 4, CP2 | TP2 | SPREAD),
    row("mistral:cp2", 2, CP2),
    row("gpt2:tp2", 2, TP2),
    row("llama:mask-cp2", 2, CP2, same=MASK),
    slow("llama:mask-means-cp2", 2, CP2, same=MASK | MEANS),
    slow("llama:dp2", 2, DP2),
    slow("llama:dp2-spread", 2, SPREAD),
    slow("llama:dp2-grad-overlap", 2, DP2 | {"features.overlap_grad_reduce": True}),
    slow("llama:recompute-uniform", 1, recompute_full("uniform", 1), gradient=0, loss=0, norm=0),
    slow("llama:recompute-uniform-2", 1, recompute_full("uniform", 2), gradient=0, loss=0, norm=0),
    *(slow(f"llama:recompute-{part}", 1, recompute(part)) for part in ("core_attn", "mlp", "layernorm")),
    slow("llama:tp2-recompute", 2, TP2 | recompute_full("uniform", 1)),
    slow("llama:tp2-recompute-parts", 2, TP2 | recompute("core_attn", "mlp", "layernorm")),
    slow("llama:pp2vpp2-recompute", 2, VPP2 | recompute_full("block", 1)),
    slow("llama:noop", 2, PP2 | {"parallel.noop_layers": [1, 5]}, same={"model.config": {"num_hidden_layers": 4}}),
    slow("llama:noop-vpp2", 2, VPP2 | {"parallel.noop_layers": [0, 3, 4, 7]}),
    slow("llama_8:noop-vpp2", 2, VPP2 | {"parallel.noop_layers": [0, 11, 3, 6]}),
    slow("llama:tp2pp2", 4, TP2 | PP2),
    slow("llama:dp2cp2", 4, CP2 | SPREAD),
    slow("llama:dp2cp2-overlap", 4, CP2 | OVERLAP),
    slow("llama:cp2tp2-whole", 4, CP2 | TP2_WHOLE),
    slow("llama:cp2pp2", 4, CP2 | PP2),
    slow("llama:cp4", 4, {"parallel.cp": 4}),
    slow("llama:pp4", 4, {"parallel.pp": 4}),
    slow("llama:dp2tp2", 4, TP2 | OVERLAP),
    slow("llama_8:pp2vpp2dp2-overlap", 4, VPP2 | OVERLAP),
    slow("llama:cp2tp2pp2", 8, CP2 | TP2 | PP2),
    slow("llama:dp2tp2pp2", 8, TP2 | PP2 | OVERLAP),
    slow("llama:vocabulary", 2, TP2 | {"model.vocab_divisible_by": 16}),
    slow("llama:one-by-one", 1, ONE_BY_ONE),
    slow("llama:one-by-one-dp2", 2, ONE_BY_ONE | SPREAD),
    slow("llama:all-at-once-tp2", 2, TP2 | {"train.micro_batch_size": 8}),
    slow("llama:means-dp2", 2, DP2, same=MEANS),
    slow("llama:means-pp2", 2, PP2, same=MEANS),
    slow("llama:mask-dp2", 2, DP2, same=MASK),
    slow("llama:mask-tp2", 2, TP2, same=MASK),
    slow("llama:mask-means-dp2", 2, SPREAD, same=MASK | MEANS),
    slow("llama:mask-means-dp2cp2", 4, CP2 | SPREAD, same=MASK | MEANS),
    slow("llama:mask-dp2cp2", 4, CP2 | SPREAD, same=MASK),
    slow("llama:evaluated-dp2", 2, OVERLAP, same=EVALUATED),
)
FAMILIES = (
    slow("qwen2:tp2", 2, TP2),
    slow("qwen3:tp2-whole", 2, TP2_WHOLE),
    row("gemma2:tp2", 2, TP2),
    row("glm4:tp2", 2, TP2),
    slow("qwen3:tp2", 2, TP2),
    slow("qwen3:pp2", 2, PP2),
    slow("qwen3:cp2", 2, CP2),
    slow("qwen2:tp2-whole", 2, TP2_WHOLE),
    slow("qwen2:pp2", 2, PP2),
    slow("qwen2:cp2", 2, CP2),
    slow("gemma2:tp2-whole", 2, TP2_WHOLE),
    slow("gemma2:pp2", 2, PP2),
    slow("gemma2:cp2", 2, CP2),
    slow("gemma2:pp2vpp2", 2, VPP2),
    slow("gemma2:cp2tp2", 4, CP2 | TP2),
    slow("glm4:tp2-whole", 2, TP2_WHOLE),
    slow("glm4:pp2", 2, PP2),
    slow("glm4:cp2", 2, CP2),
    slow("gpt2:tp2-whole", 2, TP2_WHOLE),
    slow("gpt2:pp2", 2, PP2),
    slow("gpt2:cp2", 2, CP2),
    slow("mistral:tp2", 2, TP2),
    slow("mistral:cp4", 4, {"parallel.cp": 4}),
    slow("llama_tied:tp2pp2", 4, TP2 | PP2),
    slow("llama_tied:pp2vpp2", 2, VPP2),
    slow("llama_3:tp2", 2, TP2),
    slow("llama_3:cp2", 2, CP2),
    slow("llama_yarn:cp2", 2, CP2),
    slow("llama_yarn:tp2", 2, TP2),
)
EXPERTS = (
    row("mixtral:ep2", 2, EP2),
    slow("mixtral:routed-mask-cp2", 2, CP2, same=ROUTED | MASK),
    slow("mixtral:routed-mask-tp2", 2, TP2, same=ROUTED | MASK),
    row("mixtral:tp2ep2", 4, TP2 | EP2 | SPREAD),
    row("qwen2_moe:tp2", 2, TP2),
    slow("mixtral:ep2-allgather", 2, EP2 | ALLGATHER),
    slow("mixtral:ep2-sequential", 2, EP2 | SEQUENTIAL),
    slow("mixtral:ep2-allgather-sequential", 2, EP2 | ALLGATHER | SEQUENTIAL),
    slow("mixtral:ep2-spread", 2, EP2 | SPREAD),
    slow("mixtral:ep2-overlap", 2, EP2 | OVERLAP),
    slow("mixtral:sequential", 1, SEQUENTIAL),
    slow("mixtral:tp2", 2, TP2),
    slow("mixtral:tp2-spread", 2, TP2 | SPREAD),
    slow("mixtral:tp2etp2", 2, TP2 | {"parallel.etp": 2}),
    slow("mixtral:tp2etp2-allgather", 2, TP2 | ALLGATHER | {"parallel.etp": 2}),
    slow("mixtral:tp2ep2-one-dp", 2, TP2 | EP2),
    slow("mixtral:tp2ep2etp2", 4, TP2 | EP2 | {"parallel.etp": 2}),
    slow("mixtral:cp2ep2", 2, CP2 | EP2),
    slow("mixtral:pp2", 2, PP2),
    slow("mixtral:pp2vpp2dp2-overlap", 4, VPP2 | OVERLAP),
    slow("mixtral:tp2ep2pp2", 4, TP2 | EP2 | PP2),
    slow("mixtral:tp2ep2pp2etp2", 8, TP2 | EP2 | PP2 | {"parallel.etp": 2}),
    slow("mixtral:ep4", 4, {"parallel.ep": 4} | SPREAD),
    slow("mixtral:tp2cp2ep2", 4, TP2 | CP2 | EP2),
    slow("mixtral:routed-dp2", 2, SPREAD, same=ROUTED),
    slow("mixtral:routed-tp2cp2ep2", 4, TP2 | CP2 | EP2, same=ROUTED | MASK),
    slow("mixtral:routed-mask-pp2-recompute", 2, PP2 | recompute_full("uniform", 1), same=ROUTED | MASK),
    slow("mixtral:tp2-overlap", 2, TP2 | OVERLAP),  # experts have a gather of parameters of their own
    slow("mixtral:routed-means-cp2", 2, CP2, same=ROUTED | MEANS),
    slow("mixtral:routed-means-mask-cp2", 2, CP2, same=ROUTED | MEANS | MASK),
    slow("mixtral:routed-means-tp2", 2, TP2, same=ROUTED | MEANS),
    slow("mixtral:sequence-cp2", 2, CP2, same=BY_SEQUENCE),
    slow("mixtral:sequence-tp2", 2, TP2, same=BY_SEQUENCE),
    slow("mixtral:sequence-ep2", 2, EP2, same=BY_SEQUENCE),
    *(slow(f"mixtral:recompute-{part}", 1, recompute(part), same=ROUTED) for part in ("moe", "moe_act")),
    slow("mixtral:ep2-recompute", 2, EP2 | recompute("moe", "layernorm"), same=ROUTED),
    slow("qwen2_moe:ep2", 2, EP2),
    slow("qwen2_moe:pp2", 2, PP2),
    slow("qwen2_moe:tp2etp2", 2, TP2 | {"parallel.etp": 2}),
    slow("qwen2_moe:uneven", 2, PP2 | {"parallel.layers_per_stage": [1, 3]}),
    slow("qwen2_moe:recompute-shared", 1, recompute("shared_experts", "mlp")),
    slow("qwen3_moe:tp2ep2", 2, TP2 | EP2),
    slow("qwen3_moe:cp2", 2, CP2),
)
LATENT = (
    row("deepseek_v2_dense:tp2-whole", 2, TP2_WHOLE),
    slow("deepseek_v2:tp2ep2", 2, TP2 | EP2),
    slow("deepseek_v3_mtp:mask-cp2", 2, CP2, same=MASK | ROUTED),
    row("deepseek_v3_mtp:pp2", 2, PP2),
    slow("deepseek_v2_dense:tp2", 2, TP2),
    slow("deepseek_v2:tp2", 2, TP2),
    slow("deepseek_v2:pp2", 2, PP2),
    slow("deepseek_v2:cp2", 2, CP2),
    slow("deepseek_v2:ep2", 2, EP2),
    slow("deepseek_v2:tp2cp2", 4, TP2 | CP2),
    slow("deepseek_v2:tp2ep2pp2", 4, TP2 | EP2 | PP2),
    slow("deepseek_v2:recompute-up", 1, recompute("mla_up_proj")),
    slow("deepseek_v2:tp2-recompute-up", 2, TP2 | recompute("mla_up_proj", "layernorm")),
    slow("deepseek_v2_lite:tp2", 2, TP2),
    slow("deepseek_v2_lite:cp2", 2, CP2),
    slow("deepseek_v2_groups:tp2ep2", 2, TP2 | EP2),
    slow("deepseek_v2_groups:sequence-cp2", 2, CP2, same=BY_SEQUENCE),
    slow("deepseek_v3:ep2", 2, EP2),
    slow("deepseek_v3:tp2ep2", 2, TP2 | EP2, same=BY_SEQUENCE),
    slow("deepseek_v3:pp2vpp2", 2, VPP2),
    slow("deepseek_v3_mtp:tp2ep2", 2, TP2 | EP2, same=MASK | BY_SEQUENCE),
    slow("deepseek_v3_mtp:dp2", 2, OVERLAP, same=MASK),
    slow("deepseek_v3_mtp:cp2", 2, CP2),
    slow("deepseek_v3_mtp:means-mask-cp2", 2, CP2, same=MASK | MEANS),
    slow("deepseek_v3_mtp:recompute", 1, recompute_full("uniform", 1), same=MASK, gradient=0, loss=0, norm=0),
    slow("deepseek_v3_mtp:tp2ep2pp2", 4, TP2 | EP2 | PP2, same=MASK),
    slow("deepseek_v3_mtp:pp2vpp2", 2, VPP2, same=MASK),
    slow("deepseek_v3_mtp:evaluated-dp2", 2, SPREAD, same=EVALUATED | {"features.moe.bias_rate": 0.02}),
)
STATES = (
    row("mamba2:short-cp2", 2, CP2, same=FAST, steps=2),
    row("nemotron_h:short-tp2", 2, TP2, same=FAST, steps=2),
    *(
        slow(f"{variant}:{name}", 2, changes, same=FAST)
        for variant in ("mamba2", "nemotron_h")
        for name, changes in SPREADS.items()
    ),
    *(
        slow(f"{variant}:recompute-{method}", 1, recompute_full(method, layers), same=FAST, gradient=0, loss=0, norm=0)
        for variant in ("mamba2", "nemotron_h")
        for method, layers in (("uniform", 2), ("block", 3))
    ),
    slow("nemotron_h:recompute-parts", 1, recompute("core_attn", "mlp", "layernorm"), same=FAST),
    slow("nemotron_h:uneven", 2, PP2 | {"parallel.layers_per_stage": [1, 3]}, same=FAST),
    slow("mamba2:mask-cp2", 2, CP2, same=FAST | MASK),
    slow("mamba2_tied:pp2", 2, PP2, same=FAST),
    slow("mamba2_tied:noop", 2, PP2 | {"parallel.noop_layers": [1, 5]}, same=FAST),
    slow("mamba2_biased:cp2", 2, CP2, same=FAST),
    slow("mamba2:cp2tp2", 4, CP2 | TP2, same=FAST),
    slow("nemotron_h:cp2tp2", 4, CP2 | TP2 | SPREAD, same=FAST),
    slow("nemotron_h:tp2pp2", 4, TP2 | PP2, same=FAST),
)
RESUMED = (
    row("llama:resumed-dp2", 2, OVERLAP, first=OVERLAP, like="llama-dp2-overlap", loss=0, norm=0, gradient=0),
    slow("llama:resumed-dp2-tp2", 2, TP2, first=SPREAD),
    slow("llama:resumed-tp2", 2, TP2, first=TP2, like="llama-tp2", loss=0, norm=0, gradient=0),
    slow("llama:resumed-tp2-pp2", 2, PP2, first=TP2),
    slow("llama:resumed-cp2-dp2", 2, SPREAD, first=CP2),
    slow("llama:resumed-dp2-tp2pp2", 4, TP2 | PP2, first=SPREAD),
    slow("llama:resumed-pp2vpp2-dp2", 2, SPREAD, first=VPP2),
    slow("mixtral:resumed-ep2", 2, EP2, first=EP2, like="mixtral-ep2", loss=0, norm=0, gradient=0),
    slow("mixtral:resumed-ep2-tp2", 2, TP2, first=EP2 | SPREAD),
    slow("mixtral:resumed-tp2-tp2", 2, TP2, first=TP2, like="mixtral-tp2", loss=0, norm=0, gradient=0),
    slow("mixtral:resumed-tp2-ep2", 2, EP2, first=TP2 | SPREAD),
    slow("deepseek_v3_mtp:resumed-pp2-tp2ep2", 2, TP2 | EP2, first=PP2, same=MASK),
    slow("gemma2:resumed-tp2-pp2", 2, PP2, first=TP2),
    slow("mamba2:resumed-dp2", 2, OVERLAP, first=OVERLAP, same=FAST, like="mamba2-dp2-overlap", loss=0, norm=0, gradient=0),
    slow("mamba2:resumed-tp2-pp2", 2, PP2, first=TP2, same=FAST),
    slow("nemotron_h:resumed-dp2-tp2", 2, TP2, first=SPREAD, same=FAST),
    slow("nemotron_h:resumed-pp2-cp2", 2, CP2, first=PP2, same=FAST),
)
HALF = dict(loss=2e-3, norm=5e-3, gradient=None)
CHOOSING = dict(loss=1e-2, norm=5e-2, gradient=None)
"""In bf16 some token's experts are always close together, and rounding sends it elsewhere."""
HALVES = (
    row("llama:bf16-dp2", 2, OVERLAP, same=BF16, **HALF),
    slow("llama:bf16-tp2", 2, TP2, same=BF16, **HALF),
    slow("llama:bf16-pp2", 2, PP2, same=BF16, **HALF),
    slow("llama:bf16-cp2", 2, CP2, same=BF16, **HALF),
    slow("llama:fp16-dp2", 2, SPREAD, same=FP16, **HALF),
    slow("llama:fp16-tp2", 2, TP2, same=FP16, **HALF),
    slow("mixtral:bf16-ep2", 2, EP2 | SPREAD, same=BF16, **CHOOSING),
    slow("deepseek_v2_dense:bf16-tp2", 2, TP2, same=BF16, **HALF),
    slow("mamba2:bf16-pp2", 2, PP2, same=BF16, **HALF),
    slow("mamba2:bf16-dp2", 2, OVERLAP, same=BF16, **HALF),
    slow("nemotron_h:bf16-tp2", 2, TP2 | SPREAD, same=BF16, **HALF),
)
TALKS: Changes = {"data.train": "talks"}
PACKED: Changes = {"data.train": "packed"}
SLOWER: Changes = {"optim.lr": 2e-3}  # few tokens are trained here: at 5e-3 rounding grows to 5e-5 of Mamba-2's norm in 20 steps
OTHER_ORDER: Changes = {"train.seed": 1}  # in which no token is between two experts
TUNED_VALID: Changes = TALKS | {"data.valid": "packed", "train.eval_every": 10, "train.eval_batches": 2}


def tuned(name: str, world: int, changes: Changes, same: Changes, *, slow: bool = False, **more: Any) -> Row:
    return replace(row(name, world, changes, same=same, slow=slow, **more), task="sft")


TUNING = (
    tuned("llama:talks-tp2", 2, TP2, TALKS, slow=True),
    tuned("llama:talks-pp2", 2, PP2, TUNED_VALID),
    tuned("llama:talks-cp2", 2, CP2, TALKS, slow=True),
    tuned("llama:packed-tp2", 2, TP2, PACKED, slow=True),
    tuned("llama:packed-pp2", 2, PP2, PACKED),
    tuned("llama_8:packed-pp2vpp2", 2, VPP2, PACKED, slow=True),
    tuned("llama:packed-cp2", 2, CP2, PACKED),
    tuned("llama:packed-dp2-spread", 2, SPREAD, PACKED),
    tuned("llama:packed-means-cp2", 2, CP2, PACKED | MEANS | ONE_BY_ONE, slow=True),
    tuned("llama:packed-recompute", 2, PP2 | recompute("core_attn"), PACKED, slow=True),
    tuned("llama:packed-recompute-full", 2, TP2 | recompute_full("uniform", 1), PACKED, slow=True),
    tuned("llama:packed-cp4", 4, {"parallel.cp": 4}, PACKED, slow=True),
    tuned("llama:packed-tp2cp2", 4, TP2 | CP2, PACKED, slow=True),
    tuned("gpt2:packed-cp2", 2, CP2, PACKED, slow=True),
    tuned("gemma2:packed-cp2", 2, CP2, PACKED, slow=True),
    tuned("mixtral:talks-ep2", 2, EP2, TALKS | ROUTED),
    tuned("mixtral:talks-pp2", 2, PP2 | recompute("moe"), TALKS | ROUTED, slow=True),
    tuned("qwen3_moe:talks-cp2", 2, CP2, TALKS | ROUTED, slow=True),
    tuned("qwen3_moe:packed-tp2", 2, TP2, PACKED | BY_SEQUENCE | OTHER_ORDER, slow=True),
    tuned("deepseek_v3:talks-tp2", 2, TP2, TALKS, slow=True),
    tuned("mixtral:packed-ep2", 2, EP2, PACKED, slow=True),
    tuned("mixtral:packed-ep2-allgather", 2, EP2 | ALLGATHER, PACKED, slow=True),
    tuned("deepseek_v2_dense:packed-cp2", 2, CP2, PACKED),
    tuned("deepseek_v3_mtp:packed-cp2", 2, CP2, PACKED | ONE_BY_ONE | OTHER_ORDER),
    tuned("mamba2:packed-cp2", 2, CP2, PACKED | SLOWER),
    tuned("mamba2:talks-tp2", 2, TP2, TALKS | SLOWER, slow=True),
    tuned("nemotron_h:packed-tp2", 2, TP2, PACKED, slow=True),
    tuned("nemotron_h:packed-cp2", 2, CP2, PACKED, slow=True),
    tuned("nemotron_h:packed-pp2", 2, PP2, PACKED, slow=True),
    tuned("deepseek_v3_mtp:packed-pp2", 2, PP2, PACKED | ONE_BY_ONE | OTHER_ORDER, slow=True),
)
WRITTEN = (*DENSE, *FAMILIES, *EXPERTS, *LATENT, *STATES, *RESUMED, *HALVES, *TUNING)


def _short_and_long(written: Row) -> list[Row]:
    """What is not slow has few steps; all of them are a slow row of its own."""
    if not _shortened(written):
        return [replace(written, like=_long(written.like))]
    return [replace(written, steps=FEW), replace(written, name=f"{written.name}-long", slow=True, like=_long(written.like))]


def _shortened(written: Row) -> bool:
    """Not rows in bf16, whose rate is too small for a loss that falls in few steps."""
    return not (written.slow or written.steps <= FEW or "train.eval_every" in written.same or "train.precision" in written.same)


def _long(name: str | None) -> str | None:
    return f"{name}-long" if any(each.name == name and _shortened(each) for each in WRITTEN) else name


ROWS = tuple(each for written in WRITTEN for each in _short_and_long(written))

TRAPPED = tuple(
    replace(
        found,
        name=f"{found.name}-{trap}",
        trap=trap,
        slow=not quick,
        steps=20 if trap in ("shared_step", "bias_in_evaluation") else 4,
    )
    for name, trap, quick in (
        ("llama-pp2vpp2", "batched_sends", True),
        ("deepseek_v2_dense-tp2-whole", "rotary_key", False),
        ("deepseek_v2-tp2", "rotary_key", False),
        ("deepseek_v2_dense-tp2-whole", "latent_norms", True),
        ("llama-resumed-dp2-tp2", "shared_step", False),
        ("llama-tp2", "padded_rows", False),
        ("mixtral-routed-mask-cp2", "router_tokens", False),
        ("mixtral-routed-mask-tp2", "router_tokens", True),
        ("mixtral-tp2", "experts_unmarked", False),
        ("llama-cp2tp2", "world_is_cp", False),
        ("llama-cp2", "no_zigzag", False),
        ("llama-mask-means-cp2", "local_tokens", False),
        ("deepseek_v3_mtp-mask-cp2", "unmasked_prediction", False),
        ("deepseek_v3_mtp-means-mask-cp2", "own_predictions", False),
        ("deepseek_v3_mtp-evaluated-dp2", "bias_in_evaluation", False),
    )
    for found in ROWS
    if found.name == name
)
