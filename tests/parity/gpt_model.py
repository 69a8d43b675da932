"""megatron-core's GPTModel with its local layer spec, built for this rank from a Hugging Face config.json."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec, get_gpt_mtp_block_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.moe.experts import GroupedMLP
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

QKV_BIAS = {"qwen2", "qwen2_moe"}
QK_NORM = {"qwen3", "qwen3_moe"}
MLA = {"deepseek_v2", "deepseek_v3"}


class CausalAttention(torch.nn.Module):
    """softmax(q k^T scale) v for MLA, whose values are narrower than its keys: the local spec's own cannot take that."""

    def __init__(self, *, softmax_scale: float, **_ignored: object) -> None:
        super().__init__()
        self.softmax_scale = softmax_scale

    def forward(self, query_SBND, key_SBND, value_SBND, *_args, **_kwargs):
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query_SBND, key_SBND, value_SBND))
        out_BNSD = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.softmax_scale)
        return out_BNSD.permute(2, 0, 1, 3).flatten(2)


def read_config(hf_dir: Path) -> dict:
    """config.json, with GPT-2's names and the older spelling of RoPE translated."""
    hf = json.loads((hf_dir / "config.json").read_text())
    if hf["model_type"] == "gpt2":
        hf |= dict(
            hidden_size=hf["n_embd"],
            num_hidden_layers=hf["n_layer"],
            num_attention_heads=hf["n_head"],
            intermediate_size=hf["n_inner"] or 4 * hf["n_embd"],
            rms_norm_eps=hf["layer_norm_epsilon"],
            max_position_embeddings=hf["n_positions"],
        )
    older = {"rope_type": "default", "rope_theta": hf.get("rope_theta", 10000.0)} | (hf.get("rope_scaling") or {})
    hf.setdefault("rope_parameters", older)
    hf.setdefault("tie_word_embeddings", hf["model_type"] == "gpt2")
    return hf


def moe_fields(hf: dict, grouped: bool, every_layer: bool = False) -> dict:
    """The fields of a mixture of experts; none for a dense model."""
    experts = hf.get("n_routed_experts") or hf.get("num_local_experts") or hf.get("num_experts")
    if not experts:
        return {}
    dense_layers = range(hf.get("first_k_dense_replace", 0))
    sigmoid = hf["model_type"] == "deepseek_v3"
    renormalised = hf["model_type"] == "mixtral" or hf.get("norm_topk_prob", False)
    fields = dict(
        num_moe_experts=experts,
        moe_grouped_gemm=grouped,
        moe_layer_freq=1 if every_layer else [int(i not in dense_layers) for i in range(hf["num_hidden_layers"])],
        moe_ffn_hidden_size=hf.get("moe_intermediate_size", hf["intermediate_size"]),
        moe_router_topk=hf["num_experts_per_tok"],
        moe_router_score_function="sigmoid" if sigmoid else "softmax",
        # softmax over the chosen alone is softmax over all, renormalised; transformers never does so in deepseek_v2
        moe_router_pre_softmax=sigmoid or hf["model_type"] == "deepseek_v2" or not renormalised,
        moe_router_topk_scaling_factor=hf.get("routed_scaling_factor"),
        moe_router_enable_expert_bias=sigmoid,
        moe_router_load_balancing_type="none",
        moe_token_dispatcher_type="allgather",
    )
    if sigmoid or hf.get("topk_method") == "group_limited_greedy":
        fields |= dict(moe_router_num_groups=hf["n_group"], moe_router_group_topk=hf["topk_group"])
    if hf.get("n_shared_experts"):
        fields["moe_shared_expert_intermediate_size"] = hf["n_shared_experts"] * hf["moe_intermediate_size"]
    if hf.get("shared_expert_intermediate_size"):
        fields["moe_shared_expert_intermediate_size"] = hf["shared_expert_intermediate_size"]
        fields["moe_shared_expert_gate"] = True
    return fields


def mla_fields(hf: dict) -> dict:
    """The fields of latent attention. The interleaved rotary layout needs none: MLA always takes it from the weights."""
    rope = hf["rope_parameters"]
    fields = dict(
        q_lora_rank=hf["q_lora_rank"],
        kv_lora_rank=hf["kv_lora_rank"],
        qk_head_dim=hf["qk_nope_head_dim"],
        qk_pos_emb_head_dim=hf["qk_rope_head_dim"],
        v_head_dim=hf["v_head_dim"],
        rotary_base=rope["rope_theta"],
        rope_type={"default": "rope", "yarn": "yarn"}[rope["rope_type"]],
    )
    if rope["rope_type"] == "yarn":
        fields |= dict(
            rotary_scaling_factor=rope["factor"],
            original_max_position_embeddings=rope["original_max_position_embeddings"],
            beta_fast=rope.get("beta_fast", 32),
            beta_slow=rope.get("beta_slow", 1),
            mscale=rope.get("mscale", 1.0),
            mscale_all_dim=rope.get("mscale_all_dim", 0.0),
        )
    return fields


def transformer_config(
    hf: dict, *, tp: int, pp: int, vpp: int, ep: int, etp: int, grouped: bool, every_layer: bool = False
) -> TransformerConfig:
    gpt2 = hf["model_type"] == "gpt2"
    mla = hf["model_type"] in MLA
    model = dict(
        num_layers=hf["num_hidden_layers"],
        mtp_num_layers=hf.get("num_nextn_predict_layers") or None,
        hidden_size=hf["hidden_size"],
        num_attention_heads=hf["num_attention_heads"],
        num_query_groups=None if mla else hf.get("num_key_value_heads"),
        kv_channels=None if mla else hf.get("head_dim"),
        ffn_hidden_size=hf["intermediate_size"],
        normalization="LayerNorm" if gpt2 else "RMSNorm",
        layernorm_epsilon=hf["rms_norm_eps"],
        qk_layernorm=mla or hf["model_type"] in QK_NORM,
        add_bias_linear=gpt2,
        add_qkv_bias=hf["model_type"] in QKV_BIAS,
        gated_linear_unit=not gpt2,
        activation_func=functools.partial(F.gelu, approximate="tanh") if gpt2 else F.silu,
    )
    parallel = dict(
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vpp if vpp > 1 else None,
        expert_model_parallel_size=ep,
        expert_tensor_parallel_size=etp,
        pipeline_dtype=torch.float32,
    )
    plain = dict(  # nothing fused, nothing random, nothing on a device
        use_cpu_initialization=True,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        gradient_accumulation_fusion=False,
    )
    fields = model | parallel | plain | moe_fields(hf, grouped, every_layer)
    return MLATransformerConfig(**fields, **mla_fields(hf)) if mla else TransformerConfig(**fields)


def build_chunk(hf: dict, config: TransformerConfig, vp_stage: int | None) -> GPTModel:
    spec = get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization=config.normalization, vp_stage=vp_stage)
    if config.multi_latent_attention:
        for layer in spec.layer_specs:
            layer.submodules.self_attention.submodules.core_attention = CausalAttention
    mtp = None
    if config.mtp_num_layers:
        mtp = get_gpt_mtp_block_spec(config, spec, use_transformer_engine=False, vp_stage=vp_stage)
    rope = hf["rope_parameters"]
    tp = config.tensor_model_parallel_size
    model = GPTModel(
        config,
        spec,
        vocab_size=-(-hf["vocab_size"] // tp) * tp,
        max_sequence_length=hf["max_position_embeddings"],
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
        parallel_output=False,
        share_embeddings_and_output_weights=hf["tie_word_embeddings"],
        position_embedding_type="learned_absolute" if hf["model_type"] == "gpt2" else "rope",
        rotary_base=rope["rope_theta"],
        rope_scaling=rope["rope_type"] == "llama3",
        rope_scaling_factor=rope.get("factor", 1.0),
        mtp_block_spec=mtp,
        vp_stage=vp_stage,
    )
    model.mtp_process = False  # its weights are loaded, but it runs only on the way to a loss
    for module in model.modules():
        if isinstance(module, GroupedMLP):  # refuses to run unless the config says bf16, which nothing here is
            module.config = copy.copy(config)
            module.config.bf16 = True
    return model.eval()


def build(hf: dict, **layout: int) -> list[GPTModel]:
    """This rank's model chunks, one per virtual pipeline stage.

    `layout` is tp, pp, vpp, ep, etp and grouped; every_layer: experts are announced by a frequency of 1, not by a list.
    """
    config = transformer_config(hf, **layout)
    vpp = layout["vpp"]
    chunks = [build_chunk(hf, config, v if vpp > 1 else None) for v in range(vpp)]
    config.mtp_num_layers = None  # as mtp_process
    return chunks
