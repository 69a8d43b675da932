"""Megatron's `args` of a checkpoint: written from a ModelSpec and a layout, and read back.

Names are those of megatron.training's argument parser (`--num-layers` is `num_layers`), MindSpeed-LLM's where Megatron has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from jumar.schema.errors import ToolError
from jumar.schema.family import Family
from jumar.schema.parallel import ParallelLayout
from jumar.schema.placement import Placement
from jumar.schema.spec import Mla, ModelSpec, Moe, Rope, RopeScaling, Ssm

OPTIONAL_SIZES = (
    *("vocab_size", "padded_vocab_size", "max_position_embeddings", "num_query_groups", "kv_channels", "mtp_num_layers"),
    *("moe_ffn_hidden_size", "moe_shared_expert_intermediate_size", "moe_router_topk", "q_lora_rank", "mamba_num_heads"),
)


UNREAD_SPLITS = (
    "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split",
    "pipeline_model_parallel_layout",
)
"""Arguments that say how layers are spread, and that are not understood here."""


@contextmanager
def _of_the_wrong_kind() -> Iterator[None]:
    """Values that Megatron would not have saved, as a ToolError."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, ZeroDivisionError, OverflowError) as fault:
        raise ToolError(
            f"the checkpoint's args hold a value of the wrong kind: {fault}", hint="correct it with --set NAME=VALUE"
        ) from fault


def to_args(placement: Placement, *, dtype: str, iteration: int) -> dict[str, Any]:
    """The arguments under which Megatron would have saved this checkpoint; plain values only.

    dtype: "bfloat16", "float16", "float32".
    """
    spec, layout = placement.spec, placement.layout
    return {
        **_model_args(spec, layout),
        **_layout_args(layout, spec.num_layers),
        "moe_grouped_gemm": placement.expert_layout == "grouped",
        "transformer_impl": "transformer_engine" if placement.dialect == "te" else "local",
        "vocab_size": spec.vocab_size,
        "padded_vocab_size": placement.padded_vocab,
        "make_vocab_size_divisible_by": placement.vocab_divisible_by,
        "params_dtype": f"torch.{dtype}",
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "iteration": iteration,
        "consumed_train_samples": 0,
        "consumed_valid_samples": 0,
        "use_mcore_models": True,
        "model_type_hf": spec.model_type,
    }


def _model_args(spec: ModelSpec, layout: ParallelLayout) -> dict[str, Any]:
    position = {"rope": "rope", "learned": "learned_absolute", "none": "none"}[spec.position]
    args: dict[str, Any] = {
        "num_layers": spec.num_layers + len(layout.noop_layers),
        "hidden_size": spec.hidden_size,
        "ffn_hidden_size": spec.ffn_size or (spec.moe.ffn_size if spec.moe else None),
        "seq_length": spec.max_position_embeddings or None,
        "max_position_embeddings": spec.max_position_embeddings or None,
        "position_embedding_type": position,
        "add_position_embedding": spec.position == "learned",
        "normalization": "RMSNorm" if spec.norm == "rms" else "LayerNorm",
        "norm_epsilon": spec.norm_eps,
        "apply_layernorm_1p": spec.zero_centered_gamma,
        "swiglu": spec.gated and spec.activation == "silu",
        "untie_embeddings_and_output_weights": not spec.tied,
        "add_bias_linear": spec.mlp_bias,
        "add_qkv_bias": spec.qkv_bias,
        "add_dense_bias": spec.proj_bias,
        "qk_layernorm": spec.qk_norm or spec.mla is not None,
        "window_size": (spec.sliding_window - 1, 0) if spec.sliding_window else None,
        "mtp_num_layers": spec.mtp_layers or None,
    }
    if spec.num_heads:
        args |= {
            "num_attention_heads": spec.num_heads,
            "group_query_attention": spec.num_kv_heads not in (0, spec.num_heads),
            "num_query_groups": spec.num_kv_heads or spec.num_heads,
            "kv_channels": spec.head_dim or None,
        }
    if spec.position == "rope":
        args |= {
            "rotary_base": spec.rope.base,
            "rotary_percent": spec.rope.fraction,
            "rotary_interleaved": spec.rope.interleaved and spec.mla is None,
            "use_rotary_position_embeddings": True,
        }
        if scaling := spec.rope.scaling:
            args |= {"rope_scaling_type": scaling.kind, "use_rope_scaling": scaling.kind == "llama3"}
            args["rope_scaling_factor"] = scaling.factor
    if spec.moe:
        args |= _moe_args(spec, spec.moe, layout.noop_layers)
    if mla := spec.mla:
        args |= {
            "multi_latent_attention": True,
            "q_lora_rank": mla.q_lora_rank or None,
            "kv_lora_rank": mla.kv_lora_rank,
            "qk_head_dim": mla.nope_dim,
            "qk_pos_emb_head_dim": mla.rope_dim,
            "v_head_dim": mla.v_dim,
        }
    if ssm := spec.ssm:
        args |= {
            "is_hybrid_model": True,
            "mamba_state_dim": ssm.state_size,
            "mamba_head_dim": ssm.head_dim,
            "mamba_num_groups": ssm.num_groups,
            "mamba_num_heads": ssm.num_heads,
        }
    return args


def _moe_args(spec: ModelSpec, moe: Moe, noop: tuple[int, ...]) -> dict[str, Any]:
    layers = iter(range(spec.num_layers))
    slots = [None if slot in noop else next(layers) for slot in range(spec.num_layers + len(noop))]
    return {
        "num_experts": moe.num_experts,
        "moe_router_topk": moe.top_k,
        "moe_ffn_hidden_size": moe.ffn_size,
        "moe_shared_expert_intermediate_size": moe.shared_ffn_size or None,
        "moe_shared_expert_gate": moe.shared_gate,
        "moe_layer_freq": [0 if layer is None or layer in moe.dense_layers else 1 for layer in slots],
        "moe_router_score_function": moe.score,
        "moe_router_enable_expert_bias": moe.score_bias,
        "moe_router_pre_softmax": not moe.norm_topk,
        "moe_router_topk_scaling_factor": moe.scaling_factor,
        "moe_router_num_groups": moe.num_groups if moe.num_groups > 1 else None,
        "moe_router_group_topk": moe.topk_groups if moe.num_groups > 1 else None,
        "moe_aux_loss_coeff": moe.aux_loss_coef,
    }


def _layout_args(layout: ParallelLayout, num_layers: int) -> dict[str, Any]:
    uneven, slots = layout.layers_per_stage, num_layers + len(layout.noop_layers)
    interleaved = layout.vpp > 1 and layout.schedule == "1f1b"
    return {
        "tensor_model_parallel_size": layout.tp,
        "pipeline_model_parallel_size": layout.pp,
        "virtual_pipeline_model_parallel_size": layout.vpp if layout.vpp > 1 else None,
        "context_parallel_size": layout.cp,
        "expert_model_parallel_size": layout.ep,
        "expert_tensor_parallel_size": layout.expert_tp,
        "num_layers_per_virtual_pipeline_stage": slots // (layout.pp * layout.vpp) if interleaved else None,
        "decoder_first_pipeline_num_layers": None,
        "decoder_last_pipeline_num_layers": None,
        "num_layer_list": ",".join(map(str, uneven)) if uneven else None,
        "noop_layers": ",".join(map(str, layout.noop_layers)) if layout.noop_layers else None,
        "schedules_method": "dualpipev" if layout.schedule == "dualpipev" else None,
        "moe_tp_extend_ep": layout.tp_extend_ep,
    }


@_of_the_wrong_kind()
def layout_from_args(args: Mapping[str, Any], num_layers: int) -> ParallelLayout:
    """The layout that a checkpoint's arguments describe. num_layers: of the model, without no-op layers.

    Raises ToolError for a pipeline split that is not understood.
    """
    pp = _count(args, "pipeline_model_parallel_size")
    noop = _indices(args.get("noop_layers"))
    schedule = args.get("schedules_method")
    if schedule not in (None, "", "1f1b", "dualpipev"):
        raise ToolError(
            f"the checkpoint's args say schedules_method={schedule!r}, expected dualpipev or none",
            hint="correct it with --set schedule=1f1b or schedule=dualpipev",
        )
    dualpipev = schedule == "dualpipev"
    vpp = 2 if dualpipev else _count(args, "virtual_pipeline_model_parallel_size") or 1
    per_chunk = args.get("num_layers_per_virtual_pipeline_stage")
    if vpp == 1 and per_chunk and pp > 1:
        vpp = (num_layers + len(noop)) // (pp * int(per_chunk))
    extend = bool(args.get("moe_tp_extend_ep"))
    tp = _count(args, "tensor_model_parallel_size")
    etp = _count(args, "expert_tensor_parallel_size") if args.get("expert_tensor_parallel_size") else None
    return ParallelLayout(
        tp=tp,
        pp=pp,
        vpp=vpp,
        cp=_count(args, "context_parallel_size"),
        ep=_count(args, "expert_model_parallel_size"),
        etp=None if extend or etp == tp else etp,
        layers_per_stage=_stages(args, pp, num_layers, len(noop)),
        noop_layers=noop,
        schedule="dualpipev" if dualpipev else "1f1b",
        tp_extend_ep=extend,
    )


def _count(args: Mapping[str, Any], name: str) -> int:
    value = args.get(name)
    if value is None:
        return 1
    if isinstance(value, bool | float) or not str(value).isdecimal():
        raise ToolError(
            f"the checkpoint's args say {name}={value!r}, expected a whole number", hint="correct it with --set NAME=VALUE"
        )
    return int(value)


def _indices(value: Any) -> tuple[int, ...]:
    return () if value in (None, "", ()) else tuple(sorted(_indices_in_order(value)))


def _stages(args: Mapping[str, Any], pp: int, num_layers: int, noops: int) -> tuple[int, ...] | None:
    if args.get("num_layer_list"):
        stages = _indices_in_order(args["num_layer_list"])
        even = len(stages) == pp and len(set(stages)) == 1 and sum(stages) in (num_layers, num_layers + noops)
        return None if even else stages
    for name in UNREAD_SPLITS:
        if args.get(name):
            raise ToolError(f"the checkpoint was split with {name}", hint="say how: --set layers_per_stage=5,5,6")
    first, last = args.get("decoder_first_pipeline_num_layers"), args.get("decoder_last_pipeline_num_layers")
    if first is None and last is None:
        return None
    ends = [n for n in (first, last) if n is not None]
    middle, rest = divmod(num_layers - sum(ends), max(pp - len(ends), 1))
    if rest:
        raise ToolError(f"{num_layers} layers with stages of {ends} at the ends do not share out over pp={pp}")
    inner = [middle] * (pp - len(ends))
    return (*([first] if first is not None else []), *inner, *([last] if last is not None else []))


def _indices_in_order(value: Any) -> tuple[int, ...]:
    items = value.split(",") if isinstance(value, str) else (value,) if isinstance(value, int) else value
    return tuple(int(i) for i in items)


@_of_the_wrong_kind()
def spec_from_args(args: Mapping[str, Any], family: Family) -> ModelSpec:
    """Traits of a checkpoint that carries no config: sizes from its arguments, the rest from what its family always has.

    Raises ToolError naming every argument that is missing.
    """
    base = family.spec(family.tiny)
    need = ["num_layers", "hidden_size", *(["num_attention_heads"] if base.num_heads else [])]
    need += ["ffn_hidden_size"] if base.ffn_size else []
    need += ["max_position_embeddings"] if base.max_position_embeddings else []
    need += ["num_experts"] if base.moe else []
    need += ["kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim"] if base.mla else []
    need += ["mamba_state_dim", "mamba_head_dim", "mamba_num_groups"] if base.ssm else []
    missing = [n for n in need if args.get(n) is None]
    if not (args.get("vocab_size") or args.get("padded_vocab_size")):
        missing.append("vocab_size")
    if missing:
        said = " ".join(f"--set {n}=..." for n in missing)
        raise ToolError(f"the checkpoint's args do not say {', '.join(missing)}", hint=f"give them: {said}")
    given = [n for n in (*need, *OPTIONAL_SIZES) if args.get(n) is not None]
    wrong = [n for n in given if not _is_size(args.get(n)) and (n in need or args.get(n) != 0)]
    if wrong:
        raise ToolError(
            f"the checkpoint's args say {wrong[0]}={args.get(wrong[0])!r}, expected a positive whole number",
            hint=f"correct it with --set {wrong[0]}=N",
        )
    layers = args["num_layers"] - len(_indices(args.get("noop_layers")))
    tied = not args.get("untie_embeddings_and_output_weights", not base.tied)
    scale = base.embed_scale and args["hidden_size"] ** 0.5
    spec = replace(
        base,
        num_layers=layers,
        hidden_size=args["hidden_size"],
        vocab_size=args.get("vocab_size") or args["padded_vocab_size"],
        max_position_embeddings=args.get("max_position_embeddings") or base.max_position_embeddings,
        norm_eps=float(args.get("norm_epsilon", base.norm_eps)),
        tied=tied,
        embed_scale=scale,
        mtp_layers=args.get("mtp_num_layers") or 0,
        dtype=_dtype(args, base.dtype),
        moe=_moe_from_args(args, base.moe, layers),
    )
    if base.num_heads:
        spec = _attention_from_args(args, spec)
    if base.ssm:
        spec = replace(spec, ssm=_ssm_from_args(args, base.ssm, args["hidden_size"]))
    return spec


def _dtype(args: Mapping[str, Any], default: str) -> str:
    for flag, name in (("bf16", "bfloat16"), ("fp16", "float16")):
        if args.get(flag):
            return name
    return "float32" if "bf16" in args else default


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _attention_from_args(args: Mapping[str, Any], base: ModelSpec) -> ModelSpec:
    heads = args["num_attention_heads"]
    groups = args.get("num_query_groups") if args.get("group_query_attention", True) else heads
    everywhere = base.mlp_bias and bool(args.get("add_bias_linear"))  # Megatron's one flag for all biases
    base = replace(
        base,
        num_heads=heads,
        ffn_size=args["ffn_hidden_size"] if base.ffn_size else 0,
        qkv_bias=bool(args.get("add_qkv_bias", base.qkv_bias)) or everywhere,
        proj_bias=bool(args.get("add_dense_bias", base.proj_bias)) or everywhere,
        mlp_bias=bool(args.get("add_bias_linear", base.mlp_bias)),
    )
    rope = Rope(
        base=float(args.get("rotary_base") or base.rope.base),
        fraction=float(args.get("rotary_percent") or base.rope.fraction),
        interleaved=base.rope.interleaved,
        scaling=_rope_scaling(args),
    )
    window = args.get("window_size")
    every = base.sliding_layers in ((), tuple(range(len(base.sliding_layers))))  # else every other layer, from the first on
    base = replace(
        base,
        rope=rope if base.position == "rope" else base.rope,
        sliding_window=window[0] + 1 if window else None,
        sliding_layers=tuple(i for i in range(base.num_layers) if every or i % 2 == 0) if window else (),
    )
    if base.mla is not None:
        mla = Mla(
            kv_lora_rank=args["kv_lora_rank"],
            nope_dim=args["qk_head_dim"],
            rope_dim=args["qk_pos_emb_head_dim"],
            v_dim=args["v_head_dim"],
            q_lora_rank=args.get("q_lora_rank") or 0,
        )
        return replace(base, mla=mla)
    return replace(base, num_kv_heads=groups or heads, head_dim=args.get("kv_channels") or args["hidden_size"] // heads)


def _rope_scaling(args: Mapping[str, Any]) -> RopeScaling | None:
    kind = args.get("rope_scaling_type") or ("llama3" if args.get("use_rope_scaling") else None)
    if kind is None:
        return None
    if kind != "llama3":
        raise ToolError(
            f"the checkpoint's args say rope_scaling_type={kind!r}, which they do not describe fully",
            hint="bring the model's config.json: put its Hugging Face files into CHECKPOINT/hf/",
        )
    # Megatron fixes the other constants: megatron/core/models/common/embeddings/rotary_pos_embedding.py
    return RopeScaling(
        kind="llama3",
        factor=float(args.get("rope_scaling_factor") or 8.0),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )


def _moe_from_args(args: Mapping[str, Any], base: Moe | None, layers: int) -> Moe | None:
    if base is None:
        return None
    noop = _indices(args.get("noop_layers"))
    freq, first = args.get("moe_layer_freq") or 1, args.get("first_k_dense_replace") or 0
    slots = range(layers + len(noop))
    pattern = [int(i >= first and i % freq == 0) for i in slots] if isinstance(freq, int) else list(freq)
    pattern = [moe for i, moe in enumerate(pattern) if i not in noop or len(pattern) == layers]
    return replace(
        base,
        num_experts=args["num_experts"],
        top_k=args.get("moe_router_topk", base.top_k),
        ffn_size=args.get("moe_ffn_hidden_size") or args["ffn_hidden_size"],
        shared_ffn_size=args.get("moe_shared_expert_intermediate_size") or 0,
        dense_layers=tuple(i for i, moe in enumerate(pattern) if not moe),
        norm_topk=not args.get("moe_router_pre_softmax", not base.norm_topk),
        scaling_factor=args.get("moe_router_topk_scaling_factor") or 1.0,
        num_groups=args.get("moe_router_num_groups") or 1,
        topk_groups=args.get("moe_router_group_topk") or 1,
        aux_loss_coef=args.get("moe_aux_loss_coeff", base.aux_loss_coef),
    )


def _ssm_from_args(args: Mapping[str, Any], base: Ssm, hidden: int) -> Ssm:
    head_dim = args["mamba_head_dim"]
    return replace(
        base,
        state_size=args["mamba_state_dim"],
        head_dim=head_dim,
        num_groups=args["mamba_num_groups"],
        num_heads=args.get("mamba_num_heads") or 2 * hidden // head_dim,
    )
