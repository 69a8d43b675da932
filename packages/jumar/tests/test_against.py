"""Flags of the architecture against config.json: the same, laid over it, or refused; never taken on trust."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jumar.chain.against import OF_LAYERS, against_config
from jumar.chain.facts import Facts
from jumar.chain.jobs import jobs
from jumar.chain.migrate import migrate
from jumar.chain.shell.reader import read_script
from jumar.chain.tables import tables
from jumar.chain.traits import traits
from jumar.chain.verdicts import Made, Verdict
from jumar.schema.megatron_args import to_args
from jumar.schema.parallel import ParallelLayout
from jumar.schema.placement import Placement
from jumar.schema.recipe import load_recipe
from jumar.schema.registry import families
from jumar.train_core.job import resolve
from jumar.train_core.recipe import Recipe

TRAIN = "torchrun --nproc_per_node 2 pretrain_gpt.py --tokenizer-name-or-path model --data-path d --train-iters 9 --lr 1e-3 "
LLAMA = {**families()["llama"].tiny, "tie_word_embeddings": True}
NESTED = {
    **{key: value for key, value in LLAMA.items() if key != "rope_theta"},
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
}


def made(home: Path, config: dict[str, Any], flags: str) -> Made:
    (home / "model").mkdir(exist_ok=True)
    (home / "model/config.json").write_text(json.dumps(config))
    (home / "run.sh").write_text(TRAIN + flags)
    (found,) = migrate(home / "run.sh").made
    return found


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def of(found: Made, flag: str) -> Verdict:
    (verdict,) = [each for each in found.verdicts if each.flag == flag]
    return verdict


@pytest.mark.parametrize(
    "flags, said",
    [
        ("--num-experts 8 --moe-router-topk 2", "nothing of it, the script 8"),
        ("--multi-latent-attention --kv-lora-rank 512", "not so by the model's config.json"),
        ("--sliding-window 16", "nothing of it, the script 16"),
        ("--window-size 16,0", "nothing of it, the script 16,0"),
        ("--normalization LayerNorm", "says RMSNorm, the script LayerNorm"),
        ("--position-embedding-type learned_absolute", "says rope, the script learned_absolute"),
        ("--squared-relu", "not so by"),
        ("--add-qkv-bias", "not so by"),
        ("--qk-layernorm", "not so by"),
        ("--rotary-interleaved", "not so by"),
        ("--attn-logit-softcapping 50", "nothing of it, the script 50"),
        ("--mtp-num-layers 1", "says 0, the script 1"),
        ("--model-type-hf qwen2", "is of llama, the script's of qwen2"),
        ("--rope-scaling-type longrope", "nothing of it, the script longrope"),
        ("--hidden-size $HIDDEN", "$HIDDEN is not known"),
    ],
)
def test_another_model_is_refused(flags: str, said: str, tmp_path: Path) -> None:
    for config in (LLAMA, NESTED):
        found = of(made(tmp_path, config, flags), flags.split()[0])
        assert found.kind == "refused"
        assert said in found.why


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    "config, flags, changes",
    [
        (LLAMA, "--rotary-base 500000", {"rope_theta": 500000.0}),
        (NESTED, "--rotary-base 10000", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
        (LLAMA, "--rotary-percent 0.5", {"partial_rotary_factor": 0.5}),
        (LLAMA, "--untie-embeddings-and-output-weights", {"tie_word_embeddings": False}),
        (LLAMA, "--vocab-size 32000", {"vocab_size": 32000}),
        (LLAMA, "--kv-channels 32", {"head_dim": 32}),
        (LLAMA, "--group-query-attention --num-query-groups 2", {"num_key_value_heads": 2}),
        (LLAMA, "--num-attention-heads 6 --group-query-attention --num-query-groups 3", {"num_attention_heads": 6}),
        (
            LLAMA,
            "--rope-scaling-type yarn --rope-scaling-factor 4 --rope-scaling-original-max-position-embeddings 64",
            {"rope_scaling": YARN},
        ),
        (families()["mixtral"].tiny, "--num-experts 2 --moe-router-topk 1", {"num_local_experts": 2, "num_experts_per_tok": 1}),
        (families()["mixtral"].tiny, "--num-experts 1 --moe-router-topk 1", {"num_local_experts": 1, "num_experts_per_tok": 1}),
        (families()["mistral"].tiny, "--window-size 15,0", {"sliding_window": 16}),
    ],
)
def test_what_config_json_can_carry_is_laid_over_it(
    config: dict[str, Any], flags: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    found = made(tmp_path, config, flags)
    assert not found.of("refused")
    (text,) = found.files.values()
    (tmp_path / "run.yaml").write_text(text)
    job = resolve(load_recipe(Recipe, tmp_path / "run.yaml"), world=2, device="cpu")
    laid = job.recipe.model.config
    assert {key: laid[key] for key in changes} == changes
    facts = Facts(jobs(read_script(TRAIN + flags))[0][0])
    assert all(each.kind != "mapped" for each in against_config(facts, {**config, **laid}).values())


@pytest.mark.parametrize("family", families())
def test_a_model_agrees_with_the_arguments_that_megatron_would_have(family: str, tmp_path: Path) -> None:
    """Each argument that a checkpoint of the model would carry, as a flag: nothing contradicts."""
    found = families()[family]
    spec = found.spec(found.tiny)
    args = to_args(Placement(family=found, spec=spec, layout=ParallelLayout()), dtype="bfloat16", iteration=1)
    known = tables()["training"].rules
    flags = []
    for name, value in args.items():
        flag = f"--{name.replace('_', '-')}"
        if flag not in known or not known[flag].config or value in (None, False) or name in ("model_type_hf", *LISTS):
            continue
        flags += [flag] if value is True else [flag, *map(str, value if isinstance(value, tuple) else [value])]
    against = made(tmp_path, dict(found.tiny), " ".join(flags))
    assert len(flags) > 12
    assert not [each for each in against.verdicts if each.kind == "refused" or "model.config" in each.ours]
    assert not against.faults


LISTS = ("moe_layer_freq", "window_attn_skip_freq")


def test_every_flag_of_the_architecture_is_compared() -> None:
    of_names = "the family that"
    rules = [rule for rule in tables()["training"].rules.values() if rule.config and not rule.why.startswith(of_names)]
    known = traits(families()["llama"].spec(families()["llama"].tiny))
    assert {rule.flag for rule in rules} - set(known) == {"--model-type-hf"}
    assert set(OF_LAYERS) <= set(known)
    assert set(tables()["training"].more["keys"]) <= set(known)


@pytest.mark.parametrize(
    "flags, kind",
    [
        ("--moe-layer-freq [0]*1+[1]*3", "default"),
        ("--moe-layer-freq [0]*2+[1]*2", "refused"),
        ("--first-k-dense-replace 1 --moe-layer-freq 1", "default"),
        ("--first-k-dense-replace 2", "mapped"),
        ("--kv-channels 9", "no effect"),
        ("--rope-type yarn", "refused"),
    ],
)
def test_layers_without_experts(flags: str, kind: str, tmp_path: Path) -> None:
    config = {**families()["deepseek_v3"].tiny, "first_k_dense_replace": 1}
    found = made(tmp_path, config, f"--multi-latent-attention --num-experts {config['n_routed_experts']} {flags}")
    assert of(found, flags.split()[0]).kind == kind


def test_a_config_that_is_not_read_is_told(tmp_path: Path) -> None:
    found = made(tmp_path, {"model_type": "unheard_of"}, "--num-layers 2")
    assert "model_type 'unheard_of' is not known" in found.faults[0]
