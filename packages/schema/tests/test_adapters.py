"""Adapters as derived from rules. That their tensors are right is shown in ckpt-convert, shard by shard."""

from __future__ import annotations

import pytest

from jumar.schema.adapters import adapter_family, fused_modules, module_sizes, target_names, target_rules
from jumar.schema.registry import families, family_of

EVERY = [(name, dialect) for name, family in families().items() for dialect in family.dialects]


@pytest.mark.parametrize("name, dialect", EVERY)
def test_each_module_has_one_lora_b_and_each_fused_one_a_lora_a(name: str, dialect: str) -> None:
    family = family_of(name)
    spec = family.spec(family.tiny)
    fused, sizes = list(fused_modules(family, spec, dialect)), module_sizes(family, spec)
    targets = {r.name for r in target_rules(family, spec, dialect)}
    tensors = adapter_family(family, spec, dialect, targets, 5).hf_tensors(spec)
    a = {f"{f.modules[0]}.lora_A.weight": (5, sizes[f.modules[0]][1]) for f in fused}
    b = {f"{m}.lora_B.weight": (sizes[m][0], 5) for f in fused for m in f.modules}
    assert tensors == a | b
    assert len(b) == sum(len(f.modules) for f in fused)  # no module is in two of them
    assert all(sizes[m][1] == sizes[f.modules[0]][1] for f in fused for m in f.modules)
    assert bool(tensors) == (name != "mamba2")


FC1 = "linear_fc1.weight"


@pytest.mark.parametrize(
    "targets, names, more",
    [
        ({"self_attention.linear_q_up_proj.weight"}, ("linear_q_up_proj",), set()),
        ({f"mlp.{FC1}", f"mlp.shared_experts.{FC1}", f"mlp.experts.local_experts.{{e}}.{FC1}"}, ("linear_fc1",), set()),
        ({f"mlp.shared_experts.{FC1}"}, ("shared_experts.linear_fc1",), set()),
        ({f"mlp.{FC1}"}, ("mlp.linear_fc1",), set()),
        # an expert's number is in its name: no ending means experts alone
        (
            {f"mlp.experts.local_experts.{{e}}.{FC1}"},
            ("linear_fc1",),
            {f"mlp.{FC1}", f"mlp.shared_experts.{FC1}"},
        ),
    ],
)
def test_targets_are_called_by_the_shortest_name_that_means_no_other(
    targets: set[str], names: tuple[str, ...], more: set[str]
) -> None:
    family = family_of("deepseek_v2")
    spec = family.spec(family.tiny)
    assert targets <= {r.name for r in target_rules(family, spec, "mcore")}
    assert target_names(family, spec, "mcore", targets) == (names, targets | more)
