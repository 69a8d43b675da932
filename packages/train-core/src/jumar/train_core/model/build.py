"""ModelSpec to megatron-core's GPTModel or MambaModel, chunk by chunk, with our layers in megatron-core's places."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_mtp_block_spec,
)
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch import Tensor

from jumar.device import Ops
from jumar.schema.spec import ModelSpec
from jumar.train_core.job import Job
from jumar.train_core.model.attention import CoreAttention, LatentAttention, SelfAttention
from jumar.train_core.model.config import transformer_config
from jumar.train_core.model.hybrid import hybrid
from jumar.train_core.model.layers import MLP, GroupedExperts, LayerNorm, RMSNorm, SharedExperts, TransformerLayer
from jumar.train_core.model.rotary import Rotary
from jumar.train_core.model.router import Router


def build(job: Job, ops: Ops, device: torch.device) -> tuple[TransformerConfig, list[LanguageModule]]:
    """This rank's configuration and model chunks, one a virtual pipeline stage, with random weights, on `device`."""
    config = transformer_config(job)
    stages = range(job.layout.vpp) if job.layout.vpp > 1 else [None]
    if job.spec.ssm is not None:
        model = hybrid(job, config, ops, _layer(job.spec, ops, False, False), _norm(job.spec, ops))
        _finish(model, job)
        return config, [model.to(device)]
    return config, [_chunk(job, config, ops, device, stage) for stage in stages]


def _chunk(job: Job, config: TransformerConfig, ops: Ops, device: torch.device, vp_stage: int | None) -> GPTModel:
    spec = job.spec
    block = _block(spec, config, ops, job.recipe.features.moe.grouped_gemm, vp_stage)
    mtp = _mtp(spec, config, ops, job.recipe.features.moe.grouped_gemm, vp_stage) if spec.mtp_layers else None
    rope = spec.position == "rope"
    model = GPTModel(
        config,
        block,
        vocab_size=job.padded_vocab,
        max_sequence_length=spec.max_position_embeddings if spec.position == "learned" else job.recipe.data.seq_len,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
        share_embeddings_and_output_weights=spec.tied,
        position_embedding_type="rope" if rope else {"learned": "learned_absolute", "none": "none"}[spec.position],
        mtp_block_spec=mtp,
        vp_stage=vp_stage,
    )
    if rope and spec.mla is None:
        cp = parallel_state.get_context_parallel_group()
        dim = int(spec.head_dim * spec.rope.fraction)
        model.rotary_pos_emb = Rotary(spec.rope, dim, cp_rank=cp.rank(), cp_size=cp.size(), device=device)
    _finish(model, job)
    if spec.moe and job.layout.ep == 1 and job.layout.expert_tp != job.layout.tp:
        _mark_experts(model)
    return model.to(device)


def _block(
    spec: ModelSpec, config: TransformerConfig, ops: Ops, grouped: bool, vp_stage: int | None
) -> TransformerBlockSubmodules:
    """The layers of one chunk."""
    offset = get_transformer_layer_offset(config, vp_stage=vp_stage)
    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    kinds = {moe: _layer(spec, ops, moe, grouped) for moe in (False, True) if not moe or spec.moe}
    layers = [kinds[spec.is_moe_layer(offset + i)] for i in range(count)]
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=_norm(spec, ops))


def _norm(spec: ModelSpec, ops: Ops) -> ModuleSpec:
    return ModuleSpec(module=RMSNorm if spec.norm == "rms" else LayerNorm, params={"spec": spec, "ops": ops})


def _layer(spec: ModelSpec, ops: Ops, moe: bool, grouped: bool) -> ModuleSpec:
    """megatron-core's local specification of a layer, with our modules in it."""
    layer = get_gpt_layer_local_spec(
        num_experts=spec.moe.num_experts if spec.moe and moe else None,
        qk_layernorm=spec.qk_norm or spec.mla is not None,
        multi_latent_attention=spec.mla is not None,
        normalization="RMSNorm" if spec.norm == "rms" else "LayerNorm",
    )
    ours: dict[str, Any] = {"spec": spec, "ops": ops}
    norm = _norm(spec, ops)
    parts = layer.submodules
    layer.module, layer.params = TransformerLayer, dict(ours)
    parts.input_layernorm = parts.pre_mlp_layernorm = norm

    attention = parts.self_attention
    attention.module, attention.params = LatentAttention if spec.mla else SelfAttention, attention.params | ours
    attention.submodules.core_attention = ModuleSpec(module=CoreAttention, params=dict(ours))
    for name in ("q_layernorm", "kv_layernorm") if spec.mla else ("q_layernorm", "k_layernorm"):
        if spec.qk_norm or spec.mla:
            setattr(attention.submodules, name, norm)

    if not moe:
        parts.mlp.module, parts.mlp.params = MLP, dict(ours)
        return layer
    inside = parts.mlp.submodules
    inside.router = partial(Router, spec=spec)
    if inside.shared_experts is not None:
        inside.shared_experts.module, inside.shared_experts.params = SharedExperts, dict(ours)
    if grouped:
        inside.experts.module, inside.experts.params = GroupedExperts, dict(ours)
    return layer


def _mtp(spec: ModelSpec, config: TransformerConfig, ops: Ops, grouped: bool, vp_stage: int | None) -> Any:
    """The multi-token-prediction layers, where this chunk has them. Their inner layer is that of a layer after the last."""
    inner = TransformerBlockSubmodules(layer_specs=[_layer(spec, ops, spec.is_moe_layer(spec.num_layers), grouped)])
    mtp = get_gpt_mtp_block_spec(config, inner, use_transformer_engine=False, vp_stage=vp_stage)
    for layer in mtp.layer_specs if mtp is not None else ():
        layer.submodules.enorm = layer.submodules.hnorm = layer.submodules.layer_norm = _norm(spec, ops)
    return mtp


def _finish(model: LanguageModule, job: Job) -> None:
    """What surrounds the layers and is no module: embeddings are scaled, logits capped, and padded vocabulary rows have none.

    https://arxiv.org/abs/2408.00118 for the first two. A padded row's logit is 0 in megatron-core, and takes part
    in the loss, which so depends on tp through the padding. (Never passed labels: `runtime_gather_output`, Megatron-LM 7452.)
    """
    spec = job.spec
    if spec.embed_scale is not None and hasattr(model, "embedding"):
        model.embedding.register_forward_hook(partial(_scale, spec.embed_scale))
    if hasattr(model, "output_layer"):
        if spec.final_softcap is not None:
            model.output_layer.register_forward_hook(partial(_cap, spec.final_softcap))
        rows = job.padded_vocab // job.layout.tp
        real = spec.vocab_size - rows * parallel_state.get_tensor_model_parallel_rank()
        if real < rows:
            model.output_layer.register_forward_hook(partial(_without_padding, max(real, 0)))


def _mark_experts(model: GPTModel) -> None:
    """megatron-core takes experts for ordinary parameters where ep is 1. With their own tp, they are reduced over other ranks."""
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            parameter.allreduce = False


def _scale(factor: float, _module: Any, _inputs: Any, out: Tensor) -> Tensor:
    return out * torch.tensor(factor, dtype=out.dtype)  # rounded to the dtype first, as the model was trained


def _cap(cap: float, _module: Any, _inputs: Any, out: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    return cap * torch.tanh(out[0] / cap), out[1]


def _without_padding(real: int, _module: Any, _inputs: Any, out: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    out[0][..., real:] = float("-inf")
    return out
