"""ModelSpec to megatron-core's MambaModel: decoders whose layers are Mamba-2 mixers, or each a mixer, attention or an MLP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.mamba.mamba_model import MambaModel
from megatron.core.ssm.mamba_block import MambaStack, MambaStackSubmodules
from megatron.core.ssm.mamba_layer import MambaLayer, MambaLayerSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules, get_transformer_layer_offset
from megatron.core.utils import make_viewless_tensor
from torch import Tensor

from jumar.device import Ops
from jumar.schema.spec import LayerKind
from jumar.train_core.job import Job
from jumar.train_core.model.mamba import Mixer


def hybrid(job: Job, config: TransformerConfig, ops: Ops, block: ModuleSpec, norm: ModuleSpec) -> MambaModel:
    """This rank's chunk. block: an ordinary layer, whose attention and MLP are taken; norm: that before each of them."""
    spec = job.spec
    assert spec.ssm is not None
    assert spec.position == "none", "the families with state-space layers have no positions"
    chunk = next(chunk for chunk in job.chunks if chunk.pp == parallel_state.get_pipeline_model_parallel_rank())
    kinds = [spec.layer_kind(slot) for slot in chunk.slots if slot is not None]
    stack = ModuleSpec(
        module=Stack,
        params={"kinds": kinds, "norm": norm, "eps": spec.norm_eps, "fp32_residual": spec.ssm.residual_in_fp32},
        submodules=_layers(block, norm, {"spec": spec, "ops": ops}),
    )
    return Model(
        config,
        stack,
        vocab_size=job.padded_vocab,
        max_sequence_length=job.recipe.data.seq_len,
        pre_process=chunk.first,
        post_process=chunk.last,
        share_embeddings_and_output_weights=spec.tied,
        position_embedding_type="none",
    )


def _layers(block: ModuleSpec, norm: ModuleSpec, ours: dict[str, Any]) -> MambaStackSubmodules:
    parts = block.submodules
    attention = TransformerLayerSubmodules(
        input_layernorm=norm, self_attention=parts.self_attention, self_attn_bda=parts.self_attn_bda
    )
    mlp = TransformerLayerSubmodules(pre_mlp_layernorm=norm, mlp=parts.mlp, mlp_bda=parts.mlp_bda)
    mixer = MambaLayerSubmodules(
        norm=replace(norm, params={**norm.params, "eps": ours["spec"].norm_eps}),  # which MambaLayer does not hand on
        mixer=ModuleSpec(module=Mixer, params=dict(ours)),
        mamba_bda=into_residual,
    )
    return MambaStackSubmodules(
        mamba_layer=ModuleSpec(module=MambaLayer, submodules=mixer),
        attention_layer=replace(block, submodules=attention),
        mlp_layer=replace(block, submodules=mlp),
    )


def into_residual(training: bool, fused: bool = False) -> Any:
    """Bias, dropout, and the sum in the dtype of the residual, which megatron-core's casts to that of the output."""

    def add(out_with_bias: tuple[Tensor, Tensor | None], residual: Tensor, dropout: float) -> Tensor:
        out, bias = out_with_bias
        return residual + F.dropout(out if bias is None else out + bias, dropout, training)

    return add


class Model(MambaModel):  # type: ignore[misc]  # megatron-core has no types
    """megatron-core's, called as GPTModel is."""

    def forward(self, *args: Any, loss_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """loss_mask is for multi-token prediction, which these models do not have."""
        out: Tensor = super().forward(*args, **kwargs)
        return out


class Stack(MambaStack):  # type: ignore[misc]
    """The layers of one chunk.

    megatron-core's own takes its final norm from TransformerEngine, recomputes nothing, and shares layers out evenly.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: MambaStackSubmodules,
        *,
        kinds: Sequence[LayerKind],
        norm: ModuleSpec,
        eps: float,
        fp32_residual: bool,
        pre_process: bool,
        post_process: bool,
        pg_collection: Any,
        **_unused: Any,
    ) -> None:
        MegatronModule.__init__(self, config)
        self.pre_process, self.post_process = pre_process, post_process
        self.pp_group, self.tp_group = pg_collection.pp, pg_collection.tp
        self.input_tensor: Tensor | None = None
        offset = get_transformer_layer_offset(config)
        layers = {"ssm": submodules.mamba_layer, "attention": submodules.attention_layer, "mlp": submodules.mlp_layer}
        self.layers = torch.nn.ModuleList()
        for number, kind in enumerate(kinds, start=1):
            settings: dict[str, Any] = {"config": config, "pg_collection": pg_collection, "layer_number": number}
            if kind == "ssm":  # the others add the offset themselves
                settings |= {"residual_in_fp32": fp32_residual, "pp_layer_offset": offset, "layer_number": number + offset}
            self.layers.append(build_module(layers[kind], **settings))
        if post_process:
            self.final_norm = build_module(norm, config, config.hidden_size, eps=eps)

    def forward(
        self, hidden_states: Tensor | None, attention_mask: Tensor | None = None, packed_seq_params: Any = None, **_unused: Any
    ) -> Tensor:
        """[S, B, H], on later stages what `set_input_tensor` was given, to the same."""
        x = hidden_states if self.pre_process else self.input_tensor
        assert x is not None
        tracker = tensor_parallel.get_cuda_rng_tracker()
        with tracker.fork() if self.config.sequence_parallel else nullcontext():  # other tokens, other dropout
            for layers, again in self._units():
                run = partial(_through, layers, packed_seq_params)
                x = tensor_parallel.checkpoint(run, False, x) if again else run(x)
        if self.post_process:
            x = self.final_norm(x).to(self.config.params_dtype)
        out: Tensor = make_viewless_tensor(inp=x, requires_grad=x.requires_grad, keep_graph=True)
        return out

    def _units(self) -> Iterator[tuple[list[torch.nn.Module], bool]]:
        """Layers that are recomputed together, or run as they are."""
        layers, size = list(self.layers), self.config.recompute_num_layers
        if self.config.recompute_granularity != "full" or not self.training:
            yield layers, False
        elif self.config.recompute_method == "block":
            yield from (([layer], True) for layer in layers[:size])
            yield layers[size:], False
        else:
            yield from ((layers[start : start + size], True) for start in range(0, len(layers), size))


def _through(layers: Sequence[torch.nn.Module], packed_seq_params: Any, x: Tensor) -> Tensor:
    for layer in layers:
        out = layer(hidden_states=x, attention_mask=None, packed_seq_params=packed_seq_params)
        x = out[0] if isinstance(out, tuple) else out
    return x
