"""Megatron's `args` of a checkpoint, read: its layout, its model where it carries no config, and what contradicts a config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from jumar.schema.errors import ToolError
from jumar.schema.family import Family
from jumar.schema.megatron_args import YARN
from jumar.schema.parallel import ParallelLayout
from jumar.schema.spec import MOST_LAYERS, Mla, ModelSpec, Moe, Rope, RopeScaling, Ssm, check_spec

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
        raise ToolError(
            f"{num_layers} layers with stages of {ends} at the ends do not share out over pp={pp}", hint="change the ends, or pp"
        )
    inner = [middle] * (pp - len(ends))
    return (*([first] if first is not None else []), *inner, *([last] if last is not None else []))


def _indices_in_order(value: Any) -> tuple[int, ...]:
    items = value.split(",") if isinstance(value, str) else (value,) if isinstance(value, int) else value
    return tuple(int(i) for i in items)


NEEDS = ("num_layers", "hidden_size", "norm_epsilon", "untie_embeddings_and_output_weights")
"""What every model's arguments must say."""


def missing_args(args: Mapping[str, Any], family: Family) -> list[str]:
    """The arguments that a model of this family cannot be read without, and that are not there."""
    base = family.spec(family.tiny)
    need = [*_sizes_needed(base), *NEEDS]
    need += ["hybrid_override_pattern"] if base.pattern else []
    need += ["rotary_base"] if base.position == "rope" else []
    need += ["moe_router_topk"] if base.moe else []
    need += ["query_pre_attn_scalar"] if base.attn_scale is not None else []
    missing = [n for n in dict.fromkeys(need) if args.get(n) is None]
    if 0 < len(base.sliding_layers) < base.num_layers and "window_size" not in args:
        missing.append("window_size")  # a family whose layers take turns has one; it may not be guessed
    return missing if args.get("vocab_size") or args.get("padded_vocab_size") else [*missing, "vocab_size"]


def _sizes_needed(base: ModelSpec) -> list[str]:
    need = ["num_layers", "hidden_size", *(["num_attention_heads"] if base.num_heads else [])]
    need += ["ffn_hidden_size"] if base.ffn_size else []
    need += ["max_position_embeddings"] if base.max_position_embeddings else []
    need += ["num_experts"] if base.moe else []
    need += ["kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim"] if base.mla else []
    return need + (["mamba_state_dim", "mamba_head_dim", "mamba_num_groups"] if base.ssm else [])


@_of_the_wrong_kind()
def spec_from_args(args: Mapping[str, Any], family: Family) -> ModelSpec:
    """Traits of a checkpoint that carries no config: sizes from its arguments, the rest from what its family always has.

    Raises ToolError naming every argument that is missing.
    """
    base = family.spec(family.tiny)
    need = _sizes_needed(base)
    if missing := missing_args(args, family):
        said = " ".join(f"--set {n}=..." for n in missing)
        raise ToolError(f"the checkpoint's args do not say {', '.join(missing)}", hint=f"give them: {said}")
    given = [n for n in (*need, *OPTIONAL_SIZES) if args.get(n) is not None]
    wrong = [n for n in given if not _is_size(args.get(n)) and (n in need or args.get(n) != 0)]
    if wrong:
        raise ToolError(
            f"the checkpoint's args say {wrong[0]}={args.get(wrong[0])!r}, expected a positive whole number",
            hint=f"correct it with --set {wrong[0]}=N",
        )
    if args["num_layers"] > MOST_LAYERS:
        raise ToolError(f"the checkpoint's args say num_layers={args['num_layers']}", hint="correct it with --set num_layers=N")
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
        pattern = args["hybrid_override_pattern"] if base.pattern else ""
        spec = replace(spec, ssm=_ssm_from_args(args, base.ssm, args["hidden_size"]), pattern=str(pattern))
    check_spec(spec, "the checkpoint's args give a model that cannot be", hint="correct them with --set NAME=VALUE")
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
    freq = args.get("window_attn_skip_freq")
    pattern = (
        [int((i + 1) % freq != 0) for i in range(base.num_layers)] if isinstance(freq, int) else freq or [1] * base.num_layers
    )
    base = replace(
        base,
        rope=rope if base.position == "rope" else base.rope,
        sliding_window=window[0] + 1 if window else None,
        sliding_layers=tuple(i for i, slides in enumerate(pattern) if slides) if window else (),
        **_softcaps(args, base),
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


def _softcaps(args: Mapping[str, Any], base: ModelSpec) -> dict[str, Any]:
    """Softmax scale and soft-capping of a family that has its own."""
    if base.attn_scale is None:
        return {}
    scalar = args.get("query_pre_attn_scalar")
    if not scalar:
        raise ToolError(
            "the checkpoint's args do not say query_pre_attn_scalar",
            hint="give it as config.json has it: --set query_pre_attn_scalar=N",
        )
    attention = args.get("attn_logit_softcapping", base.attn_softcap)
    return {
        "attn_scale": float(scalar) ** -0.5,
        "attn_softcap": attention,
        "final_softcap": args.get("output_logit_softcapping", base.final_softcap),
    }


def _rope_scaling(args: Mapping[str, Any]) -> RopeScaling | None:
    """What the args say of RoPE scaling. Raises ToolError for what they name and do not describe fully."""
    kind = args.get("rope_scaling_type") or ("llama3" if args.get("use_rope_scaling") else None)
    stretched, yarn = args.get("rotary_seq_len_interpolation_factor"), args.get("rotary_scaling_factor")
    if kind == "llama3":
        # Megatron fixes the other constants: megatron/core/models/common/embeddings/rotary_pos_embedding.py
        return RopeScaling(
            kind="llama3",
            factor=float(args.get("rope_scaling_factor") or 8.0),
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        )
    if kind in (None, "linear") and stretched not in (None, 1):
        return RopeScaling(kind="linear", factor=float(stretched))
    if kind == "yarn" or (kind is None and args.get("rope_type") == "yarn" and yarn not in (None, 1)):
        if yarn is not None and args.get("beta_fast") is not None:
            return RopeScaling(kind="yarn", factor=float(yarn), **{n: args.get(n) for n in YARN})
        kind = "yarn"
    if kind is None:
        return None
    raise ToolError(
        f"the checkpoint's args say RoPE scaling {kind!r}, which they do not describe fully",
        hint="bring the model's config.json: put its Hugging Face files into CHECKPOINT/hf/",
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
        norm_topk=_norm_topk(args, base),
        scaling_factor=args.get("moe_router_topk_scaling_factor") or 1.0,
        num_groups=args.get("moe_router_num_groups") or 1,
        topk_groups=args.get("moe_router_group_topk") or 1,
        aux_loss_coef=args.get("moe_aux_loss_coeff", base.aux_loss_coef),
    )


def _norm_topk(args: Mapping[str, Any], base: Moe) -> bool:
    """MindSpeed says it; Megatron always normalises sigmoid scores, and softmax scores unless they are taken before."""
    said = args.get("norm_topk_prob")
    if said is not None:
        return bool(said)
    return base.norm_topk if base.score == "sigmoid" else not args.get("moe_router_pre_softmax", not base.norm_topk)


def _ssm_from_args(args: Mapping[str, Any], base: Ssm, hidden: int) -> Ssm:
    head_dim = args["mamba_head_dim"]
    return replace(
        base,
        state_size=args["mamba_state_dim"],
        head_dim=head_dim,
        num_groups=args["mamba_num_groups"],
        num_heads=args.get("mamba_num_heads") or 2 * hidden // head_dim,
        chunk_size=args.get("mamba_chunk_size") or 256,
        conv_kernel=args.get("mamba_d_conv") or 4,
    )


def contradictions(args: Mapping[str, Any], spec: ModelSpec) -> tuple[list[str], list[str]]:
    """What a checkpoint's own args say otherwise than the model's config: (head geometry, other arithmetic), as texts.

    Wrong head geometry can leave every shape right and cut q, k and v in the wrong places.
    """
    geometry: dict[str, Any] = {}
    if spec.num_heads:
        geometry["num_attention_heads"] = spec.num_heads
    if spec.num_kv_heads and args.get("group_query_attention"):
        geometry["num_query_groups"] = spec.num_kv_heads
    if spec.head_dim and spec.mla is None:
        geometry["kv_channels"] = spec.head_dim
    if mla := spec.mla:
        geometry |= {"qk_head_dim": mla.nope_dim, "qk_pos_emb_head_dim": mla.rope_dim, "v_head_dim": mla.v_dim}
    if ssm := spec.ssm:
        geometry |= {"mamba_state_dim": ssm.state_size, "mamba_head_dim": ssm.head_dim, "mamba_num_groups": ssm.num_groups}
    if moe := spec.moe:
        geometry |= {"num_experts": moe.num_experts}
    other: dict[str, Any] = {"norm_epsilon": spec.norm_eps}
    if spec.position == "rope":
        other |= {"rotary_base": spec.rope.base, "rotary_percent": spec.rope.fraction}
    return _differing(args, geometry), _differing(args, other)


def _differing(args: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    said = {name: args.get(name) for name in expected}
    numbers = {n: v for n, v in said.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    return [f"{n} is {v:g}, expected {expected[n]:g}" for n, v in numbers.items() if v != expected[n]]
