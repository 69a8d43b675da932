"""The parameters of published models, counted by the families' rules."""

from __future__ import annotations

import math

import pytest

import published_dense
import published_experts
from jumar.schema.registry import families, family_of

PUBLISHED = published_dense.PUBLISHED | published_experts.PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_rules_make_every_published_parameter(name: str) -> None:
    count, config = PUBLISHED[name]
    family = family_of(config["model_type"])
    spec = family.spec(config)
    assert sum(map(math.prod, family.hf_tensors(spec).values())) == count
    assert family.spec(family.config(spec)) == spec


def test_every_family_is_here() -> None:
    assert {config["model_type"] for _, config in PUBLISHED.values()} == set(families())
