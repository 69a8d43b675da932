"""What a run is: the recipe's sections as frozen dataclasses. `jumar-train schema` prints them.

Sizes count tokens, sequences or steps, as each says; `null` means "decided from the model or the other fields".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Precision = Literal["fp32", "bf16", "fp16"]
EITHER = (("train.steps", "train.epochs"),)
"""Fields of which `--set` of one takes the other out of the recipe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The architecture.

    path:      directory with the model's config.json: Hugging Face, or Megatron with `hf/`; null: that of `load.path`
    config:    config.json keys laid over it, such as {num_hidden_layers: 4}
    hidden_dropout: probability, of what attention and the MLP add to the residual stream, and of embeddings
    attention_dropout: probability; 0 alone is possible, as attention is fused
    init_std:  standard deviation of random weights; null: the model's initializer_range, or 0.02
    vocab_divisible_by: the vocabulary is padded to a multiple of this times tp
    """

    path: Path | None = None
    config: dict[str, Any] = field(default_factory=dict)
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float | None = None
    vocab_divisible_by: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Where the weights come from.

    path:      a checkpoint of any format and layout that jumar-convert reads; null: random weights
    iteration: of a Megatron directory; null: the newest
    """

    path: Path | None = None
    iteration: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One `.bin/.idx` dataset of a blend.

    prefix: its path without .bin and .idx
    weight: its share of the samples; null: the share that its size gives
    """

    prefix: Path
    weight: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The token files: prefixes of `.bin/.idx` files, or blends of several.

    train:    a prefix without .bin and .idx (sft: the one that jumar-data was given), or a list of {prefix, weight}
    valid:    likewise; its loss is told every train.eval_every steps
    test:     likewise; its loss is told once, after the last step
    split:    shares of training, validation and test documents of `train`, such as [98, 1, 1]; without it all of `train` trains
    seq_len:  tokens a sample; sft: of a packed row, and the most that a conversation may have
    cache:    where index maps are kept, and what is prepared of raw files; null: `cache/` beside the data
    pack:     sft: raw files (Alpaca, ShareGPT: .jsonl, .json, .parquet, ...; extra `[data]`) are packed to rows of seq_len
    template: sft: of raw files: auto (the model's own), or a name that jumar-data knows
    eod_mask_loss: pretrain: no loss where the end-of-document token is the input, so none of the next document's first token
    eod_id:   that token; null: from the model's generation or model config
    borders:  sft: how packed rows say where conversations begin: the attention mask counts them, or each ends with an EOS;
              none: nothing is packed; null: as the manifest or the files say
    shuffle:  sft: every epoch in another order; false: in that of the files
    pad_to_multiple_of: sft: the longest of a micro batch is padded to a multiple of it, and the others to the longest
    any_tokenizer: train on data whose manifest names another tokenizer than the model's
    workers:  processes that read ahead, a rank; null: none on the CPU, 2 elsewhere
    """

    train: Path | tuple[Source, ...] | None = None
    valid: Path | tuple[Source, ...] | None = None
    test: Path | tuple[Source, ...] | None = None
    split: tuple[float, ...] | None = None
    seq_len: int = 4096
    cache: Path | None = None
    pack: bool = False
    template: str = "auto"
    eod_mask_loss: bool = False
    eod_id: int | None = None
    borders: Literal["mask", "eos", "none"] | None = None
    shuffle: bool = True
    pad_to_multiple_of: int = 8
    any_tokenizer: bool = False
    workers: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """Parallel sizes; data parallelism takes the ranks that are left.

    tp:     tensor parallelism: ranks that each matrix is cut over
    pp:     pipeline stages
    vpp:    model chunks a pipeline stage
    cp:     context parallelism: ranks that each sequence is cut over
    ep:     expert parallelism: ranks that the experts of a layer are shared out over
    etp:    tensor parallelism of the experts; null: 1
    layers_per_stage: layers of each pipeline stage, where they are uneven
    noop_layers: slots without a layer, in the padded numbering
    sequence_parallel: activations between blocks are cut over tp; null: where tp > 1
    """

    tp: int = 1
    pp: int = 1
    vpp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int | None = None
    layers_per_stage: tuple[int, ...] | None = None
    noop_layers: tuple[int, ...] = ()
    sequence_parallel: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Optim:
    """AdamW, https://arxiv.org/abs/1711.05101. Biases and norms are not decayed.

    lr:     the learning rate at its highest
    weight_decay: decoupled, of matrices
    beta1, beta2: decay of the mean of gradients, and of that of their squares
    eps:    added to the root of the latter
    clip_grad: largest norm of the global gradient; 0: no clipping
    loss_scale: fp16 only; null: dynamic
    initial_loss_scale: fp16 only: where dynamic scaling begins
    """

    lr: float = 3e-4
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_grad: float = 1.0
    loss_scale: float | None = None
    initial_loss_scale: float = 2.0**32


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The learning rate: a linear warm-up, then `kind` down to min_lr.

    kind:   the curve
    warmup_steps: steps of the warm-up
    decay_steps: steps until min_lr is reached, with the warm-up; null: all of training
    min_lr: the learning rate at the end
    wsd_steps: of `wsd` (warm-up, stable, decay), the steps of the decay at the end
    wsd_decay: its curve
    """

    kind: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup_steps: int = 0
    decay_steps: int | None = None
    min_lr: float = 0.0
    wsd_steps: int | None = None
    wsd_decay: Literal["linear", "cosine", "exponential", "minus_sqrt"] = "linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """The loop.

    steps: optimizer steps
    epochs: sft: instead of steps, how often every conversation is seen; 1.5 is possible
    global_batch_size: samples a step, over all ranks
    micro_batch_size: samples a rank computes at once
    precision: of weights and activations; gradients and optimizer state are fp32
    seed:  of random weights, dropout and the order of samples
    loss:  "token": the mean over the global batch's tokens, equal under every layout; "micro_batch": the mean of the means
    eval_every: steps between evaluations; null: none
    eval_batches: global batches of an evaluation
    on_nan: what a loss or gradient that is not finite does: stop the run, or skip that step
    max_skipped: steps skipped in a row before the run stops
    deterministic: algorithms that give the same bytes again, where a device has others
    """

    steps: int = 1000
    epochs: float | None = None
    global_batch_size: int = 8
    micro_batch_size: int = 1
    precision: Precision = "bf16"
    seed: int = 1234
    loss: Literal["token", "micro_batch"] = "token"
    eval_every: int | None = None
    eval_batches: int = 10
    on_nan: Literal["stop", "skip"] = "stop"
    max_skipped: int = 10
    deterministic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """Checkpoints, and everything else that a run writes, under `path`. A run that finds a checkpoint there goes on from it.

    path:  the run's directory; null: nothing is written
    every: steps between checkpoints; null: only at the end
    keep:  newest checkpoints that are kept; null: all
    background: written by a process of its own while training goes on
    optimizer: whether its state is saved; without it a run cannot go on exactly
    storage: shared: all nodes see the same `path`; per_node: it is on a disk of each node's own
    hf:    a Hugging Face directory beside each checkpoint, or beside the last alone, made while training goes on
    """

    path: Path | None = None
    every: int | None = None
    keep: int | None = None
    background: bool = False
    optimizer: bool = True
    storage: Literal["shared", "per_node"] = "shared"
    hf: bool | Literal["end"] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wandb:
    """Weights & Biases (extra `[wandb]`).

    project, name, entity: as there
    mode: offline writes files only, for `wandb sync`
    """

    project: str
    name: str | None = None
    entity: str | None = None
    mode: Literal["online", "offline"] = "offline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What is told while training. metrics.jsonl gets every step.

    every: steps between lines
    tensorboard: write event files (extra `[tensorboard]`)
    """

    every: int = 1
    tensorboard: bool = False
    wandb: Wandb | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recompute:
    """Activations that are computed again in the backward pass instead of being kept.

    granularity: full: whole layers; selective: `modules` of each layer
    method: of full: uniform: every `layers` layers are one unit; block: the first `layers` of each model chunk
    layers: of full: layers of a unit, or of each model chunk, as `method` says
    modules: of selective: what is computed again
    """

    granularity: Literal["full", "selective"] = "selective"
    method: Literal["uniform", "block"] = "uniform"
    layers: int = 1
    modules: tuple[Literal["core_attn", "mlp", "layernorm", "moe_act", "moe", "mla_up_proj", "shared_experts"], ...] = (
        "core_attn",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeTraining:
    """How experts are trained.

    dispatcher: how tokens travel to experts
    grouped_gemm: one call for the experts of a rank
    balancing: the auxiliary loss: of each micro batch, of each sequence, or none
    aux_loss: its coefficient; null: the model's
    z_loss: coefficient of the router's z-loss, https://arxiv.org/abs/2202.08906; 0: none
    bias_rate: step of the balancing bias, where the model has one, https://arxiv.org/abs/2408.15664
    """

    dispatcher: Literal["alltoall", "allgather"] = "alltoall"
    grouped_gemm: bool = True
    balancing: Literal["micro_batch", "sequence", "none"] = "micro_batch"
    aux_loss: float | None = None
    z_loss: float = 0.0
    bias_rate: float = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Ways to compute the same sooner or in less memory.

    distributed_optimizer: optimizer state is spread over data-parallel ranks
    overlap_grad_reduce: gradients are reduced while the backward pass goes on
    overlap_param_gather: parameters are gathered while the forward pass goes on
    mtp_loss: weight of the multi-token-prediction loss, where the model has such layers
    """

    distributed_optimizer: bool = True
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    recompute: Recompute | None = None
    moe: MoeTraining = field(default_factory=MoeTraining)
    mtp_loss: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A training run."""

    model: Model = field(default_factory=Model)
    load: Load = field(default_factory=Load)
    data: Data = field(default_factory=Data)
    parallel: Parallel = field(default_factory=Parallel)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    train: Train = field(default_factory=Train)
    save: Save = field(default_factory=Save)
    log: Log = field(default_factory=Log)
    features: Features = field(default_factory=Features)
