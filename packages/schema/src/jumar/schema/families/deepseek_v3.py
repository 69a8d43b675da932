"""DeepSeek-V3 and R1: V2 with sigmoid scores, a bias for choosing, and multi-token prediction. https://arxiv.org/abs/2412.19437"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jumar.schema.config import ConfigReader
from jumar.schema.families import deepseek_v2
from jumar.schema.families.deepseek_v2 import read_base, read_moe, write_base
from jumar.schema.family import Copy, Family
from jumar.schema.rules import mtp
from jumar.schema.spec import ModelSpec


def read(config: ConfigReader) -> ModelSpec:
    config.only("topk_method", "noaux_tc")
    config.only("scoring_func", "sigmoid")
    config.only("rope_interleave", True)
    moe = replace(
        read_moe(config),
        score="sigmoid",
        score_bias=True,
        norm_topk=config.get("norm_topk_prob", True),
        num_groups=config.size("n_group", 8),
        topk_groups=config.size("topk_group", 4),
        group_score="top2_sum",
    )
    layers = config.count("num_nextn_predict_layers", config.count("num_mtp_layers"))
    return replace(read_base(config), moe=moe, mtp_layers=layers)


def write(spec: ModelSpec) -> dict[str, Any]:
    assert spec.moe is not None
    return {
        **write_base(spec),
        "n_group": spec.moe.num_groups,
        "topk_group": spec.moe.topk_groups,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "num_nextn_predict_layers": spec.mtp_layers,
        "num_mtp_layers": spec.mtp_layers,
    }


FAMILY = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    read=read,
    write=write,
    weights=(*deepseek_v2.FAMILY.weights, *mtp()),
    copies=(
        *deepseek_v2.FAMILY.copies,
        Copy("model.layers.{l}.embed_tokens.weight", "model.embed_tokens.weight", when="mtp_layers"),
        Copy("model.layers.{l}.shared_head.head.weight", "lm_head.weight", when="mtp_layers"),
    ),
    tiny={
        **deepseek_v2.FAMILY.tiny,
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "n_group": 2,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "n_shared_experts": 1,
        "num_nextn_predict_layers": 1,
    },
)
