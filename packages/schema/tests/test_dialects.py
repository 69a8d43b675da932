"""Dialects that follow another: what they call its tensors, on every rank of every family that has them."""

from __future__ import annotations

import pytest

from jumar.schema.dialects import DIALECTS, dialect_of
from jumar.schema.errors import ToolError
from jumar.schema.family import Family
from jumar.schema.parallel import ParallelLayout
from jumar.schema.placement import Placement
from jumar.schema.registry import families

NAMES = {
    "mindspeed-v1": {
        "decoder.layers.0.self_attention.linear_q_up_proj.weight": "decoder.layers.0.self_attention.linear_qb.weight",
        "mtp.layers.0.transformer_layer.self_attention.kv_layernorm.weight": "mtp.layers.0.transformer_layer."
        "self_attention.k_layernorm.weight",
        "decoder.layers.3.mlp.shared_experts.gate_weight": "decoder.layers.3.mlp.shared_expert_gate.weight",
        "decoder.layers.3.mlp.shared_experts.linear_fc1.weight": "decoder.layers.3.mlp.shared_experts.linear_fc1.weight",
        "decoder.layers.3.self_attention.q_layernorm.weight": "decoder.layers.3.self_attention.q_layernorm.weight",
    },
    "legacy": {
        "embedding.word_embeddings.weight": "language_model.embedding.word_embeddings.weight",
        "decoder.layers.12.pre_mlp_layernorm.bias": "language_model.encoder.layers.12.post_attention_norm.bias",
        "decoder.layers.1.mlp.linear_fc2.weight": "language_model.encoder.layers.1.mlp.dense_4h_to_h.weight",
        "decoder.final_layernorm.weight": "language_model.encoder.final_norm.weight",
        "output_layer.weight": "language_model.output_layer.weight",
    },
}


@pytest.mark.parametrize("dialect", NAMES)
def test_names(dialect: str) -> None:
    for base, name in NAMES[dialect].items():
        assert dialect_of(dialect).name(base) == name
        assert dialect_of(dialect).base_name(name) == base


@pytest.mark.parametrize("family", families().values(), ids=lambda f: f.model_type)
def test_only_names_differ_from_the_dialect_that_is_followed(family: Family) -> None:
    spec = family.spec(family.tiny)
    for name in family.dialects:
        follows = dialect_of(name)
        if follows.base == name:
            continue
        layout = ParallelLayout(tp=1 if spec.mla else 2, pp=2)
        base = "mcore" if follows.base not in family.dialects else follows.base
        ours, theirs = (Placement(family=family, spec=spec, layout=layout, dialect=d) for d in (name, base))
        for shard in ours.shards:
            pairs = list(zip(ours.tensors(shard), theirs.tensors(shard), strict=True))
            assert all(a.geometry == b.geometry and a.sources == b.sources for a, b in pairs)
            names = [a.name for a, _ in pairs]
            assert len(names) == len(set(names))


def test_a_dialect_that_does_not_exist() -> None:
    with pytest.raises(ToolError, match="dialect 'v0' does not exist") as caught:
        dialect_of("v0")
    assert all(d in (caught.value.hint or "") for d in DIALECTS)
