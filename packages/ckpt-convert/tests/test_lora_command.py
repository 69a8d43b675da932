"""The commands of LoRA: what they write and say, what is refused and how, and that a killed merge goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import failing
import tiny_lora
from failing import contents, copied, edit_json, edit_shard, edit_tensors, ok, refused, run, shard, tiny_config, untouched
from jumar.ckpt_convert import open_checkpoint
from jumar.schema.registry import families
from test_resume import killed_at

pytestmark = pytest.mark.matrix

Q = "base_model.model.model.layers.0.self_attn.q_proj."
HALF = "decoder.layers.0.self_attention.linear_qkv.lora_A.default.weight"
CONFIG = "adapter_config.json"


@pytest.fixture(scope="module")
def peft(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """An adapter of `llama` on all its matrices, one lora_A for each of Megatron's modules."""
    groups = (tiny_lora.QKV, tiny_lora.PROJ, tiny_lora.FC1, tiny_lora.FC2)
    tensors = tiny_lora.adapter(tiny_config("llama"), groups, 4, values="real")
    return tiny_lora.write_peft(tmp_path_factory.mktemp("adapter") / "peft", tensors, lora_alpha=8)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, llama: Path, peft: Path) -> Path:
    """`peft` as Megatron shards, TP 2 PP 2."""
    target = tmp_path_factory.mktemp("alone") / "mcore"
    ok(run("to-megatron", peft, target, "--base", llama, "--tp", 2, "--pp", 2))
    return target


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, llama: Path, peft: Path) -> Path:
    """`llama` with `peft` beside its weights, TP 2 PP 2."""
    target = tmp_path_factory.mktemp("both") / "mcore"
    ok(run("to-megatron", llama, target, "--adapter", peft, "--tp", 2, "--pp", 2))
    return target


def values(hf: Path) -> dict[str, Any]:
    return {n: a for n, (_, a) in open_all(hf).items()}


def open_all(hf: Path) -> dict[str, tuple[str, np.ndarray]]:
    checkpoint = open_checkpoint(hf)
    return {n: (checkpoint.dtype(n), checkpoint.array(n)) for n in checkpoint.tensors}


def test_every_way_to_merge_gives_the_same(
    llama: Path, peft: Path, alone: Path, both: Path, sharded: Path, tmp_path: Path
) -> None:
    """Model and adapter from Hugging Face and from shards, the LoRA that a model bears, and by way of merged shards."""
    said = ok(run("merge-lora", llama, peft, tmp_path / "merged")).out
    assert "not bit-exact 28 weights are W + scale * B @ A" in said
    ways = {
        "adapter shards": ("merge-lora", llama, alone),
        "both shards": ("merge-lora", sharded, alone),
        "its own": ("merge-lora", both),
        "an adapter with weights": ("merge-lora", sharded, both),
    }
    for name, line in ways.items():
        result = ok(run(*line, tmp_path / name, "--threads", 3))
        assert contents(tmp_path / name)["model.safetensors"] == contents(tmp_path / "merged")["model.safetensors"], name
        assert ("also holds the model's weights; they equal" in result.err) == (name == "an adapter with weights")
    for name, line in {"merge": (both, "--merge"), "adapter": (llama, "--adapter", alone, "--merge")}.items():
        ok(run("to-megatron", line[0], tmp_path / name, *line[1:], "--tp", 4))
        assert ok(run("verify", tmp_path / name, tmp_path / "merged")).out.startswith("equal")
    manifest = json.loads((tmp_path / "merged" / "manifest.json").read_text())
    assert manifest["bit_exact"] is False
    assert manifest["counts"]["merged"] == 28
    assert {i["name"] for i in manifest["inputs"]} == {"model.safetensors", "adapter_model.safetensors"}
    assert not (tmp_path / "merged" / CONFIG).exists()
    before, after = values(llama), values(tmp_path / "merged")
    changed = [n for n in before if not np.array_equal(before[n], after[n])]
    assert len(changed) == 28


def test_shards_that_bear_a_lora(both: Path, peft: Path, llama: Path, tmp_path: Path) -> None:
    said = refused(run("to-hf", both, tmp_path / "out"), 3, "bear a LoRA beside their weights", hint=True)
    assert "merge-lora" in said
    assert "to-peft" in said
    untouched(tmp_path / "out")
    ok(run("to-peft", both, tmp_path / "peft"))
    assert ok(run("verify", peft, tmp_path / "peft", "--base", llama)).out.startswith("equal")
    ok(run("to-megatron", both, tmp_path / "tp4", "--tp", 4))
    ok(run("to-megatron", llama, tmp_path / "direct", "--adapter", peft, "--tp", 4))
    assert ok(run("verify", tmp_path / "tp4", tmp_path / "direct")).out.startswith("equal")
    found = json.loads(ok(run("inspect", both, "--json")).out)["lora"]
    assert (found["rank"], found["alpha"], found["modules"]) == ([4], [8.0], 28)
    assert "LoRA" in ok(run("inspect", both)).out
    args = failing.read_archive(shard(both, "00_000"))["args"]  # type: ignore[index,call-overload]
    assert (args.lora_r, args.lora_alpha, args.lora_target_modules) == (
        *(4, 8),
        ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"],
    )


def test_ranks_that_hold_different_adapters(both: Path, alone: Path, tmp_path: Path) -> None:
    """lora_A of a column-parallel module is the same on every TP rank; if it is not, that is said."""
    for number, root in enumerate((both, alone)):
        bad = copied(root, tmp_path / f"{number}")
        failing.flip_tensor(shard(bad, "01_000"), HALF)
        result = ok(run("to-megatron", bad, tmp_path / f"out{number}"))
        assert "model.layers.0.self_attn.q_proj.lora_A.weight: ranks hold different values" in result.err


def test_verify_finds_another_factor_and_another_adapter(peft: Path, alone: Path, llama: Path, tmp_path: Path) -> None:
    other = copied(peft, tmp_path / "peft")
    edit_json(other / CONFIG, lora_alpha=16)
    assert "alpha / rank 4 against 2" in run("verify", other, alone, "--base", llama).out
    failing.flip_tensor(shard(copied(alone, tmp_path / "alone"), "01_001"), HALF.replace("lora_A", "lora_B"))
    found = run("verify", peft, tmp_path / "alone", "--base", llama)
    assert found.code == 5
    assert "layers.2.self_attn" in found.out


def test_a_product_that_is_not_finite(llama: Path, peft: Path, tmp_path: Path) -> None:
    broken = copied(peft, tmp_path / "peft")

    def grow(tensors: failing.Tensors) -> None:
        for name, (dtype, shape, data) in tensors.items():
            tensors[name] = dtype, shape, (np.frombuffer(data, np.float32) * np.float32(1e30)).tobytes()

    failing.edit_tensors(broken / "adapter_model.safetensors", grow)
    said = refused(run("merge-lora", llama, broken, tmp_path / "out"), 3, "no finite numbers")
    assert "Warning" not in said
    untouched(tmp_path / "out")


def test_plan_and_json(llama: Path, peft: Path, tmp_path: Path) -> None:
    planned = json.loads(ok(run("merge-lora", llama, peft, tmp_path / "out", "--plan", "--json")).out)
    assert planned["changes"] == ["28 weights are W + scale * B @ A of the adapter, computed in fp32 and rounded once"]
    untouched(tmp_path / "out")
    half = tiny_lora.adapter(tiny_config("llama"), (tiny_lora.QKV,), 4, values="real", keep=lambda m: m.endswith("q_proj"))
    some = tiny_lora.write_peft(tmp_path / "some", half)
    said = ok(run("to-megatron", some, tmp_path / "mcore", "--base", llama))
    assert "8 modules without an adapter are zeros" in said.err
    assert f"{4 * 2 * 32 * 4} zeros by declaration" in said.out


def test_weights_beside_an_adapter_that_are_others(both: Path, llama: Path, tmp_path: Path) -> None:
    """MindSpeed-LLM takes them for the model's; here the model's own are used, and it is said."""
    other = failing.model(tmp_path / "other", seed=5)
    result = ok(run("merge-lora", other, both, tmp_path / "merged"))
    assert f"differ from those of {other}, which are used: model.embed_tokens.weight" in result.err
    before, after = values(other), values(tmp_path / "merged")
    assert np.array_equal(before["model.norm.weight"], after["model.norm.weight"])
    assert not np.array_equal(after["model.embed_tokens.weight"], values(llama)["model.embed_tokens.weight"])


def test_a_killed_merge_goes_on(llama: Path, sharded: Path, alone: Path, peft: Path, tmp_path: Path) -> None:
    ok(run("merge-lora", sharded, alone, tmp_path / "whole"))
    dst = tmp_path / "out"
    killed_at("journal line", 9, "after", "merge-lora", sharded, alone, dst, "--threads", 1)
    refused(run("merge-lora", sharded, peft, dst, "--resume"), 3, "was begun with other sources or options")
    ok(run("merge-lora", sharded, alone, dst, "--resume"))
    assert contents(dst) == contents(tmp_path / "whole")
    assert ok(run("merge-lora", sharded, alone, dst)).out.startswith("already done")


def test_an_adapter_says_its_base_itself(llama: Path, peft: Path, tmp_path: Path) -> None:
    own = copied(peft, tmp_path / "peft")
    edit_json(own / CONFIG, base_model_name_or_path=str(llama))
    ok(run("to-megatron", own, tmp_path / "mcore"))
    ok(run("to-peft", tmp_path / "mcore", tmp_path / "back"))
    assert json.loads((tmp_path / "back" / CONFIG).read_text())["base_model_name_or_path"] == str(llama)


# What is refused

SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "bias": ({"bias": "all"}, "bias='all'"),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "DoRA": ({"use_dora": True}, "use_dora"),
    "layer replication": ({"layer_replication": [[0, 4], [2, 4]]}, "layer_replication"),
    "another method": ({"peft_type": "LOHA"}, "peft_type LOHA"),
    "parameters": ({"target_parameters": ["experts.bias"]}, "target_parameters"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4' changed the base model"),
    "a key of tomorrow": ({"use_frobnication": True}, "use_frobnication=True"),
    "another rank": ({"r": 5}, "expected [5, 64] (r=5"),
    "no rank": ({"r": "four"}, "a value of the wrong kind"),
    "no number": ({"lora_alpha": True}, "a value of the wrong kind"),
    "a pattern that is none": ({"target_modules": "*"}, "a value of the wrong kind"),
    "targets that are others": ({"target_modules": ["o_proj"]}, "24 modules have tensors, and target_modules does not name them"),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.compat(
    "refused",
    "peft",
    "DoRA, bias, modules_to_save, other target_parameters than experts' matrices, PiSSA",
    "named; merge it with peft first",
)
def test_settings_that_cannot_be_carried(name: str, llama: Path, peft: Path, tmp_path: Path) -> None:
    change, words = SETTINGS[name]
    bad, out = copied(peft, tmp_path / "peft"), tmp_path / "out"
    edit_json(bad / CONFIG, **change)
    refused(run("merge-lora", llama, bad, out), 3, words)
    refused(run("to-megatron", bad, out, "--base", llama), 3, words)
    untouched(out)


TENSORS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "DoRA": (lambda t: t.update({f"{Q}lora_magnitude_vector": t[f"{Q}lora_A.weight"]}), "DoRA"),
    "embedding": (
        lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": t[f"{Q}lora_A.weight"]}),
        "embedding",
    ),
    "bias": (lambda t: t.update({f"{Q}lora_B.bias": t[f"{Q}lora_A.weight"]}), "biases beside the LoRA"),
    "weights": (lambda t: t.update({"base_model.model.lm_head.weight": t[f"{Q}lora_A.weight"]}), "not a tensor of a LoRA"),
    "one half": (lambda t: t.pop(f"{Q}lora_B.weight"), "one of lora_A and lora_B is missing"),
    "another model's": (lambda t: t.update({f"{Q}x.lora_A.weight": t[f"{Q}lora_A.weight"]}), "llama has no matrix"),
    "nothing": (lambda t: t.clear(), "the adapter holds no tensors"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_cannot_be_carried(name: str, llama: Path, peft: Path, tmp_path: Path) -> None:
    change, words = TENSORS[name]
    bad = copied(peft, tmp_path / "peft")
    edit_tensors(bad / "adapter_model.safetensors", change)
    refused(run("merge-lora", llama, bad, tmp_path / "out"), 3, words)
    untouched(tmp_path / "out")


def every(root: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    for file in root.glob("*/mp_rank_*/*.pt"):
        edit_shard(file, change)
    return root


SHARDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no alpha": (lambda r: every(r, lambda t: delattr(t["args"], "lora_alpha")), "--set lora_alpha=N"),
    "alpha of words": (lambda r: every(r, lambda t: setattr(t["args"], "lora_alpha", "high")), "lora_alpha='high'"),
    "another rank": (lambda r: every(r, lambda t: setattr(t["args"], "lora_r", 7)), "lora_A has 4 rows; lora_r is 7"),
    "a half on one rank": (
        lambda r: edit_shard(shard(r, "01_000"), lambda t: t["model"].pop(HALF.replace("lora_A", "lora_B"))),
        "is not whole",
    ),
    "no lora_A": (
        lambda r: [edit_shard(shard(r, x), lambda t: t["model"].pop(HALF)) for x in ("00_000", "01_000")],
        "nothing holds model.layers.0.self_attn.q_proj.lora_A.weight",
    ),
    "two adapters": (
        lambda r: every(r, lambda t: t["model"].update({HALF.replace("default", "other"): t["model"][HALF]})),
        "2 adapters in one checkpoint (default, other)",
    ),
    "DoRA": (
        lambda r: every(r, lambda t: t["model"].update({HALF.replace("lora_A", "lora_magnitude_vector"): t["model"][HALF]})),
        "is no half of a LoRA",
    ),
    "another module": (
        lambda r: every(r, lambda t: t["model"].update({HALF.replace("linear_qkv", "linear_new"): t["model"][HALF]})),
        "llama has no module for 1 tensor(s)",
    ),
}


@pytest.mark.parametrize("name", SHARDS)
def test_shards_that_are_not_whole(name: str, alone: Path, both: Path, tmp_path: Path) -> None:
    damage, words = SHARDS[name]
    for number, root in enumerate((alone, both)):
        bad = copied(root, tmp_path / f"{number}")
        damage(bad)
        assert words in refused(run("to-peft", bad, tmp_path / "out"), 3)
        untouched(tmp_path / "out")


def test_alpha_may_be_given(alone: Path, tmp_path: Path) -> None:
    bad = every(copied(alone, tmp_path / "bad"), lambda t: delattr(t["args"], "lora_alpha"))
    ok(run("to-peft", bad, tmp_path / "peft", "--set", "lora_alpha=8"))
    ok(run("to-peft", alone, tmp_path / "expected"))
    assert (tmp_path / "peft" / CONFIG).read_bytes() == (tmp_path / "expected" / CONFIG).read_bytes()


def test_lines_that_make_no_sense(llama: Path, peft: Path, alone: Path, both: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(run("merge-lora", llama, out), 3, "bears no LoRA", "merge-lora BASE ADAPTER DST")
    refused(run("merge-lora", alone, out), 3, "is an adapter without its model")
    refused(run("merge-lora", alone, peft, out), 2, "is an adapter, expected a model")
    refused(run("merge-lora", llama, llama, out), 3, "holds no LoRA")
    refused(run("merge-lora", both, peft, out), 2, "bears a LoRA of its own")
    refused(run("merge-lora", llama, peft, alone, out), 2, "merge-lora BASE [ADAPTER] DST")
    refused(run("to-peft", llama, out), 3, "holds no LoRA")
    refused(run("to-peft", peft, out, "--base", llama), 3, "is a PEFT adapter already")
    refused(run("to-hf", peft, out), 3, "someone/some-model", "--base HF_DIR", "not fetched")
    refused(run("to-hf", alone, out), 3, "is an adapter", "merge-lora")
    refused(run("to-megatron", llama, out, "--merge"), 3, "bears no LoRA")
    refused(run("to-megatron", llama, out, "--base", llama), 2, "--base has no effect", hint=False)
    refused(run("to-megatron", llama, out, "--adapter", peft, "--base", llama), 2, "--base has no effect", hint=False)
    refused(run("to-megatron", peft, out, "--base", tmp_path / "nowhere"), 3, "no config.json")
    untouched(out)


def test_an_adapter_of_another_model(llama: Path, peft: Path, alone: Path, tmp_path: Path) -> None:
    larger = failing.model(tmp_path / "larger", intermediate_size=128)
    fewer = failing.model(tmp_path / "fewer", num_hidden_layers=2)
    refused(run("merge-lora", larger, peft, tmp_path / "out"), 3, "expected [128, 4] (r=4, of a weight [128, 64])")
    refused(run("merge-lora", larger, alone, tmp_path / "out"), 3, "expected [128, 4]")
    refused(run("merge-lora", fewer, peft, tmp_path / "out"), 3, "llama has no matrix model.layers.2")
    untouched(tmp_path / "out")


@pytest.mark.compat("refused", "megatron-core", "LoRA on grouped experts of TransformerEngine", "no names are documented")
def test_adapters_of_grouped_experts_have_no_names_in_te(moe: Path, tmp_path: Path) -> None:
    tensors = tiny_lora.adapter(tiny_config("qwen3_moe"), (tiny_lora.FC1,), 2)
    peft = tiny_lora.write_peft(tmp_path / "peft", tensors)
    line = ("to-megatron", peft, tmp_path / "out", "--base", moe, "--expert-layout", "grouped")
    refused(run(*line, "--dialect", "te"), 3, "no known names", "--expert-layout sequential")
    ok(run(*line))


def test_what_megatron_does_not_wrap(tmp_path: Path) -> None:
    mamba = failing.model(tmp_path / "mamba", "mamba2")
    tensors = {
        f"backbone.layers.0.mixer.out_proj.lora_{half}.weight": np.ones(shape, np.uint32)
        for half, shape in (("A", (2, 128)), ("B", (64, 2)))
    }
    peft = tiny_lora.write_peft(tmp_path / "peft", tensors)
    refused(run("to-megatron", peft, tmp_path / "out", "--base", mamba), 3, "does not wrap", "merge-lora")
    ok(run("merge-lora", mamba, peft, tmp_path / "merged"))
    assert families()["mamba2"].tiny["hidden_size"] == 64
    shutil.rmtree(tmp_path / "merged")


def test_names_without_the_prefix_come_back_without_it(llama: Path, peft: Path, tmp_path: Path) -> None:
    """As peft saves an adapter of the bare model, without its head: `layers.0` and not `model.layers.0`."""
    bare = copied(peft, tmp_path / "bare")
    start = "base_model.model."

    def rename(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[name.replace(f"{start}model.", start)] = tensors.pop(name)

    edit_tensors(bare / "adapter_model.safetensors", rename)
    edit_json(bare / CONFIG, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    ok(run("to-megatron", bare, tmp_path / "mcore", "--base", llama, "--tp", 2))
    ok(run("to-peft", tmp_path / "mcore", tmp_path / "back"))
    names = set(failing.read_all(tmp_path / "back" / "adapter_model.safetensors"))
    assert names == set(failing.read_all(bare / "adapter_model.safetensors"))
    ok(run("merge-lora", llama, bare, tmp_path / "merged"))
    ok(run("merge-lora", llama, peft, tmp_path / "expected"))
    assert ok(run("verify", tmp_path / "merged", tmp_path / "expected")).out.startswith("equal")
