"""Dialects: how one Megatron tensor is called in the checkpoints of different stacks.

Three have rules of their own (`Rule.dialects`, `te`, `mindspeed`). The others cut and join tensors as one of these does, and
only call them otherwise: a table of names, and no rules.
"""

from __future__ import annotations

from dataclasses import dataclass

from jumar.schema.errors import ToolError

DIALECTS = ("mcore", "te", "mindspeed", "mindspeed-v1", "legacy")


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a dialect takes from another.

    base:    the dialect whose rules it follows
    renames: words of the base's names (between dots) -> words here
    tied:    the module that holds the copy of a tied embedding, where it is not the output layer's
    mla_tp1: its latent attention exists at TP 1 only
    """

    base: str
    renames: tuple[tuple[str, str], ...] = ()
    tied: str | None = None
    mla_tp1: bool = False

    def name(self, base_name: str) -> str:
        """A tensor's name here, from its full name in the base."""
        name = f".{base_name}."
        for old, new in self.renames:
            name = name.replace(f".{old}.", f".{new}.")
        return name[1:-1]

    def base_name(self, name: str) -> str:
        """The way back."""
        name = f".{name}."
        for old, new in self.renames:
            name = name.replace(f".{new}.", f".{old}.")
        return name[1:-1]


_DERIVED = {
    # MindSpeed-LLM (ModelLink) 1.0: mindspeed_llm/tasks/checkpoint/models.py, get_module_mapping
    "mindspeed-v1": Dialect(
        "mindspeed",
        (
            ("linear_q_up_proj", "linear_qb"),
            ("linear_kv_up_proj", "linear_kvb"),
            ("kv_layernorm", "k_layernorm"),
            ("shared_experts.gate_weight", "shared_expert_gate.weight"),
        ),
        mla_tp1=True,
    ),
    # Megatron-LM before megatron-core: megatron/legacy/model/{language_model,gpt_model,transformer}.py
    "legacy": Dialect(
        "mcore",
        (
            ("embedding", "language_model.embedding"),
            ("decoder.final_layernorm", "language_model.encoder.final_norm"),
            ("decoder.layers", "language_model.encoder.layers"),
            ("output_layer", "language_model.output_layer"),
            ("input_layernorm", "input_norm"),
            ("pre_mlp_layernorm", "post_attention_norm"),
            ("linear_qkv", "query_key_value"),
            ("linear_proj", "dense"),
            ("linear_fc1", "dense_h_to_4h"),
            ("linear_fc2", "dense_4h_to_h"),
        ),
        tied="word_embeddings_for_head",
    ),
}


def dialect_of(name: str) -> Dialect:
    """A dialect by name. Raises ToolError for one that does not exist."""
    if name not in DIALECTS:
        raise ToolError(f"dialect {name!r} does not exist", hint=f"choose --dialect among: {', '.join(DIALECTS)}")
    return _DERIVED.get(name) or Dialect(name)
