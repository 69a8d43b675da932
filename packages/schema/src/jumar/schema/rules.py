"""Groups of weight rules that families share.

Names on the left are megatron-core's local layer spec; `te` and `mindspeed` where those differ.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jumar.schema.weights import Part, Rule

Rules = tuple[Rule, ...]


def norm(name: str, hf: str, *, te: str | None = None, mindspeed: str | None = None, axes: str = "hidden", **where: Any) -> Rules:
    """A norm's weight, and its bias where the norm is a LayerNorm.

    `te`, `mindspeed`: its prefix there ("...layer_norm_" or "x.").
    """

    def one(kind: str) -> Rule:
        return Rule(
            f"{name}.{kind}",
            (Part(f"{hf}.{kind}", axes),),
            te=te and te + kind,
            mindspeed=mindspeed and mindspeed + kind,
            **where,
        )

    return one("weight"), replace(one("bias"), when="norm=layer")


def embeddings(embed: str, head: str = "lm_head.weight", positions: str | None = None) -> Rules:
    """Embeddings and the output layer; tied models keep a copy of the first on the last stage, if that is another."""
    word = (Part(embed, "vocab hidden"),)
    name, output = "embedding.word_embeddings.weight", "output_layer.weight"
    learned = (
        (Rule("embedding.position_embeddings.weight", (Part(positions, "positions hidden"),), scope="model"),)
        if positions
        else ()
    )
    return (
        Rule(name, word, shard=0, scope="model", stage="first"),
        Rule(name, word, shard=0, scope="model", stage="mtp", when="mtp_layers"),
        *learned,
        Rule(output, word, shard=0, scope="model", stage="tied_last", when="tied"),
        Rule(output, (Part(head, "vocab hidden"),), shard=0, scope="model", stage="last", unless="tied"),
    )


def final_norm(hf: str = "model.norm") -> Rules:
    """The norm before the output layer. MindSpeed takes it out of the decoder when there are MTP layers."""
    name = "decoder.final_layernorm"
    plain = norm(name, hf, scope="model", stage="last")
    moved = tuple(replace(r, mindspeed="final_layernorm." + r.name.rsplit(".", 1)[1]) for r in plain)
    return (
        *(replace(r, unless="mtp_layers") for r in plain),
        replace(moved[0], when="mtp_layers"),
    )


def norms(attention: str, mlp: str, *, post_attention: str | None = None, post_mlp: str | None = None) -> Rules:
    """The norms of a layer by their HF names.

    TransformerEngine fuses them into the matrix that follows, except before experts and MLA.
    """
    before = norm("input_layernorm", attention)
    fused = norm("input_layernorm", attention, te="self_attention.linear_qkv.layer_norm_")
    rules = (
        *(replace(r, when="mla") for r in before[:1]),
        *(replace(r, unless="mla") for r in fused),
        *norm("pre_mlp_layernorm", mlp, te="mlp.linear_fc1.layer_norm_", layers="dense"),
        *norm("pre_mlp_layernorm", mlp, layers="moe"),
    )
    if post_attention:
        rules += norm("post_attn_norm", post_attention, te="self_attention.linear_proj.post_layernorm.")[:1]
    if post_mlp:
        rules += norm("post_mlp_layernorm", post_mlp, te="mlp.linear_fc2.post_layernorm.")[:1]
    return rules


def attention(prefix: str = "self_attn") -> Rules:
    """Grouped-query attention: q, k and v interleaved by KV group; biases and per-head norms by trait."""
    axes = {"q": "q", "k": "kv", "v": "kv"}

    def qkv(kind: str) -> tuple[Part, ...]:
        return tuple(Part(f"{prefix}.{x}_proj.{kind}", axes[x] + (" hidden" if kind == "weight" else "")) for x in "qkv")

    return (
        Rule("self_attention.linear_qkv.weight", qkv("weight"), shard=0, interleave=True),
        Rule("self_attention.linear_qkv.bias", qkv("bias"), shard=0, interleave=True, when="qkv_bias"),
        Rule("self_attention.linear_proj.weight", (Part(f"{prefix}.o_proj.weight", "hidden q"),), shard=1),
        Rule("self_attention.linear_proj.bias", (Part(f"{prefix}.o_proj.bias", "hidden"),), when="proj_bias"),
        Rule("self_attention.q_layernorm.weight", (Part(f"{prefix}.q_norm.weight", "head"),), when="qk_norm"),
        Rule("self_attention.k_layernorm.weight", (Part(f"{prefix}.k_norm.weight", "head"),), when="qk_norm"),
    )


def mla(prefix: str = "self_attn") -> Rules:
    """Multi-head latent attention. The down-projections are cut over TP in the local spec and whole in TransformerEngine's;
    MindSpeed joins them into one matrix that every rank holds, and with --mla-mm-split parts each head of the others."""
    a = "self_attention."
    q = Part(f"{prefix}.q_proj.weight", "mla_q hidden")
    q_a = Part(f"{prefix}.q_a_proj.weight", "q_lora hidden")
    kv_a = Part(f"{prefix}.kv_a_proj_with_mqa.weight", "kv_a hidden")
    has, mcore, te, mindspeed = "mla.q_lora_rank", ("mcore",), ("te",), ("mindspeed",)
    up, q_b, kv_b = a + "linear_q_up_proj.", f"{prefix}.q_b_proj.weight", f"{prefix}.kv_b_proj.weight"

    def of_each_head(name: str, hf: str, axes: str, pick: int, **where: Any) -> Rule:
        return Rule(f"{a}{name}.weight", (Part(hf, axes, pick=pick, each=True),), shard=0, mm_split=True, **where)

    return (
        Rule(a + "linear_q_proj.weight", (q,), shard=0, unless=has, dialects=("mcore", "te")),
        Rule(a + "linear_q_down_proj.weight", (q_a,), shard=0, when=has, dialects=mcore),
        Rule(a + "linear_q_down_proj.weight", (q_a,), when=has, dialects=te),
        Rule(a + "linear_kv_down_proj.weight", (kv_a,), shard=0, dialects=mcore),
        Rule(a + "linear_kv_down_proj.weight", (kv_a,), dialects=te),
        Rule(a + "linear_qkv.weight", (q_a, kv_a), when=has, dialects=mindspeed),
        Rule(a + "linear_qkv.weight", (q, kv_a), unless=has, dialects=mindspeed),
        Rule(up + "weight", (Part(q_b, "mla_q q_lora"),), shard=0, when=has, mm_split=False),
        Rule(a + "linear_kv_up_proj.weight", (Part(kv_b, "mla_kv kv_lora"),), shard=0, mm_split=False),
        of_each_head("linear_qk_nope", q_b, "nope+rope q_lora", 0, when=has),
        of_each_head("linear_qk_rope", q_b, "nope+rope q_lora", 1, when=has),
        of_each_head("linear_kv_nope", kv_b, "nope+v kv_lora", 0),
        of_each_head("linear_v", kv_b, "nope+v kv_lora", 1),
        Rule(
            a + "q_layernorm.weight", (Part(f"{prefix}.q_a_layernorm.weight", "q_lora"),), when=has, te=up + "layer_norm_weight"
        ),
        Rule(
            a + "kv_layernorm.weight",
            (Part(f"{prefix}.kv_a_layernorm.weight", "kv_lora"),),
            te=a + "linear_kv_up_proj.layer_norm_weight",
        ),
        Rule(a + "linear_proj.weight", (Part(f"{prefix}.o_proj.weight", "hidden mla_o"),), shard=1),
    )


def mlp(prefix: str = "mlp", gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> Rules:
    """A gated MLP in the dense layers: each rank holds its part of the gate and its part of up."""
    fc1, fc2 = "mlp.linear_fc1.", "mlp.linear_fc2."
    return (
        Rule(fc1 + "weight", tuple(Part(f"{prefix}.{x}.weight", "ffn hidden") for x in (gate, up)), shard=0, layers="dense"),
        Rule(
            fc1 + "bias", tuple(Part(f"{prefix}.{x}.bias", "ffn") for x in (gate, up)), shard=0, layers="dense", when="mlp_bias"
        ),
        Rule(fc2 + "weight", (Part(f"{prefix}.{down}.weight", "hidden ffn"),), shard=1, layers="dense"),
        Rule(fc2 + "bias", (Part(f"{prefix}.{down}.bias", "hidden"),), layers="dense", when="mlp_bias"),
    )


def experts(
    prefix: str = "mlp", gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj", router: str = "gate"
) -> Rules:
    """Router and experts. Named as sequential experts; the placement groups them where that is asked for."""
    e, name = f"{prefix}.experts.{{e}}.", "mlp.experts.local_experts.{e}."
    return (
        Rule("mlp.router.weight", (Part(f"{prefix}.{router}.weight", "experts hidden"),), layers="moe"),
        Rule(
            "mlp.router.expert_bias",
            (Part(f"{prefix}.{router}.e_score_correction_bias", "experts"),),
            layers="moe",
            when="moe.score_bias",
            keep_dtype=True,
        ),
        Rule(
            name + "linear_fc1.weight",
            tuple(Part(f"{e}{x}.weight", "expert_ffn hidden") for x in (gate, up)),
            shard=0,
            layers="moe",
        ),
        Rule(name + "linear_fc2.weight", (Part(f"{e}{down}.weight", "hidden expert_ffn"),), shard=1, layers="moe"),
    )


def shared_experts(prefix: str) -> Rules:
    """Experts that every token visits, as one wide MLP, with a gate by trait."""
    name, has = "mlp.shared_experts.", "moe.shared_ffn_size"
    fc1 = tuple(Part(f"{prefix}.{x}_proj.weight", "shared_ffn hidden") for x in ("gate", "up"))
    return (
        Rule(name + "linear_fc1.weight", fc1, shard=0, layers="moe", when=has),
        Rule(
            name + "linear_fc2.weight",
            (Part(f"{prefix}.down_proj.weight", "hidden shared_ffn"),),
            shard=1,
            layers="moe",
            when=has,
        ),
        Rule(name + "gate_weight", (Part(f"{prefix}_gate.weight", "1 hidden"),), layers="moe", when="moe.shared_gate"),
    )


def mtp() -> Rules:
    """The parts of a multi-token-prediction layer around its block; its embedding and head are the model's own."""
    return (
        Rule("enorm.weight", (Part("enorm.weight", "hidden"),), scope="mtp"),
        Rule("hnorm.weight", (Part("hnorm.weight", "hidden"),), scope="mtp"),
        Rule("eh_proj.weight", (Part("eh_proj.weight", "hidden 2hidden"),), shard=0, scope="mtp"),
        Rule(
            "final_layernorm.weight",
            (Part("shared_head.norm.weight", "hidden"),),
            scope="mtp",
            mindspeed="/mtp.final_layernorms.{k}.weight",
        ),
    )
