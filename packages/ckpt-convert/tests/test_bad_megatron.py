"""Megatron sources that are incomplete, contradictory, damaged or hostile: what is said, and that nothing is written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import failing
from failing import ITERATION, contents, copied, edit_json, edit_shard, huggingface, megatron, ok, refused, run, shard, untouched

TRACKER = "latest_checkpointed_iteration.txt"
FC1 = "decoder.layers.0.mlp.linear_fc1.weight"
EMBEDDING = "embedding.word_embeddings.weight"
Damage = Callable[[Path], object]


def every_shard(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(root: Path) -> None:
        for file in root.glob("*/mp_rank_*/*.pt"):
            edit_shard(file, change)

    return damage


def one(change: Callable[[dict[str, Any]], object], rank: str = "01_001") -> Damage:
    return lambda root: edit_shard(shard(root, rank), change)


def tensor(name: str, value: np.ndarray | None, rank: str = "01_001") -> Damage:
    """Replaces or removes a tensor of one rank."""
    return one(lambda tree: tree["model"].pop(name) if value is None else tree["model"].update({name: value}), rank)


def argument(name: str, value: object) -> Damage:
    return every_shard(lambda tree: setattr(tree["args"], name, value))


def tracker(text: str) -> Damage:
    return lambda root: (root / TRACKER).write_text(text)


def swap_in(path: Path, llama: Path, **layout: Any) -> Damage:
    """Puts a shard of another layout in the place of one."""

    def damage(root: Path) -> None:
        other = megatron(path, llama, **layout)
        shutil.copy(shard(other, "01_001"), shard(root, "01_001"))

    return damage


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


DAMAGE: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "missing rank": (
        lambda root: shutil.rmtree(shard(root, "01_001").parent),
        ("1 of 4 ranks are missing for tp=2 pp=2", "mp_rank_01_001", "name every node's directory"),
    ),
    "rank without its file": (lambda root: shard(root, "01_001").unlink(), ("mp_rank_01_001 holds no model_optim_rng.pt",)),
    "extra rank": (
        lambda root: shutil.copytree(shard(root, "01_001").parent, shard(root, "02_001").parent),
        ("tp=2 pp=2", "has no rank mp_rank_02_001"),
    ),
    "no ranks": (
        lambda root: (shutil.rmtree(root / ITERATION), (root / ITERATION).mkdir()),
        ("no mp_rank_* directories", ITERATION),
    ),
    "two iterations mixed": (
        one(lambda tree: tree.update(iteration=7)),
        ("mp_rank_01_001", "is of iteration 7", "mp_rank_00_000", "of 1"),
    ),
    "tracker garbage": (tracker("step one\n"), ("'step one'", "expected a number or 'release'", "--iteration")),
    "tracker empty": (tracker(""), ("iteration ''", "expected a number or 'release'")),
    "tracker with a digit that is none": (tracker("²"), ("'²'", "expected a number or 'release'")),
    "tracker with an escape sequence": (tracker("\x1b[31mred"), ("'\\x1b[31mred'",)),
    "tracker names a missing iteration": (tracker("900"), ("there is no iter_0000900", "iterations here: iter_0000001")),
    "tracker names a missing release": (tracker("release"), ("there is no release", "iterations here: iter_0000001")),
    "no tracker": (lambda root: (root / TRACKER).unlink(), (f"no {TRACKER}", "iterations here: iter_0000001", "--iteration")),
    "missing tensor": (tensor(FC1, None), ("mp_rank_01_001", f"model has no {FC1}")),
    "unknown tensor": (
        tensor("decoder.layers.0.brand_new.weight", zeros(3)),
        ("mp_rank_01_001", "no rule of llama names 1 tensor(s): model/decoder.layers.0.brand_new.weight"),
    ),
    "tensor of another shape": (tensor(FC1, zeros(3, 3)), ("mp_rank_01_001", f"{FC1} is [3, 3], expected [96, 64]")),
    "no embedding": (tensor(EMBEDDING, None, "00_000"), ("mp_rank_00_000", f"no {EMBEDDING}")),
    "an embedding too short": (tensor(EMBEDDING, zeros(2, 64), "00_000"), ("2 + 66 rows, the model's vocabulary 131",)),
    "an embedding without rows": (tensor(EMBEDDING, zeros(), "00_000"), ("0 + 66 rows, the model's vocabulary 131",)),
    "dtypes that differ between ranks": (
        tensor(FC1, np.zeros((96, 64), np.float16)),
        ("model.layers.2.mlp.gate_proj.weight joins tensors of different dtypes (F16, F32)", "--dtype"),
    ),
    "no model": (one(lambda tree: tree.pop("model"), "00_000"), ("mp_rank_00_000", "no 'model' or 'model0'", "keys: args")),
    "nested state dict without tensors": (
        one(lambda tree: tree.update(model={"language_model": {"embedding": {}}}), "00_000"),
        ("mp_rank_00_000", f"no {EMBEDDING}"),
    ),
    "nested state dict that holds something else": (
        one(lambda tree: tree.update(model={"language_model": {"encoder": [1]}}), "00_000"),
        ("model/language_model.encoder is a list, expected a tensor",),
    ),
    "not a dict": (
        lambda root: failing.write_archive(shard(root, "00_000"), [1, 2]),
        ("mp_rank_00_000", "a list, expected a Megatron checkpoint's dict"),
    ),
    "truncated shard": (
        lambda root: os.truncate(shard(root, "01_001"), 5000),
        ("mp_rank_01_001", "is a zip archive, cut short or damaged (5000 bytes"),
    ),
    "shard cut by one byte": (
        lambda root: os.truncate(shard(root, "01_001"), shard(root, "01_001").stat().st_size - 1),
        ("mp_rank_01_001", "cut short or damaged"),
    ),
    "empty shard": (lambda root: os.truncate(shard(root, "01_001"), 0), ("mp_rank_01_001", "is not a zip archive (0 bytes")),
    "args say nonsense of tp": (argument("tensor_model_parallel_size", "two"), ("tensor_model_parallel_size='two'",)),
    "args say nonsense of vpp": (
        argument("virtual_pipeline_model_parallel_size", [2]),
        ("virtual_pipeline_model_parallel_size=[2]",),
    ),
    "args say an unknown schedule": (argument("schedules_method", "zigzag"), ("schedules_method='zigzag'", "--set schedule=")),
    "args say stages that are not there": (argument("num_layer_list", "1,3"), ("mp_rank_00_000", "no rule of llama names")),
    "stages split in a way that is not described": (
        argument("account_for_loss_in_pipeline_split", True),
        ("account_for_loss_in_pipeline_split", "--set layers_per_stage="),
    ),
    "hf/config.json of another model": (
        lambda root: failing.edit_json(root / "hf" / "config.json", intermediate_size=48),
        (FC1, "is [96, 64], expected [48, 64]", "hf/config.json"),
    ),
    "hf/config.json of a model that no files hold": (
        lambda root: failing.edit_json(root / "hf" / "config.json", num_hidden_layers=10**9),
        ("'num_hidden_layers' is 1000000000, expected",),
    ),
    "hf/config.json is not JSON": (
        lambda root: (root / "hf" / "config.json").write_text("{"),
        ("hf/config.json is not JSON",),
    ),
    "manifest is not JSON": (lambda root: (root / "manifest.json").write_text("{"), ("manifest.json is not JSON",)),
    "manifest of a later version": (
        lambda root: failing.edit_json(root / "manifest.json", schema=99),
        ("manifest schema 99, this version reads 1",),
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_source(name: str, sharded: Path, tmp_path: Path) -> None:
    damage, words = DAMAGE[name]
    source = copied(sharded, tmp_path / "mcore")
    damage(source)
    refused(run("to-hf", source, tmp_path / "out"), 3, *words)
    untouched(tmp_path / "out")


def test_shards_of_two_layouts(sharded: Path, llama: Path, tmp_path: Path) -> None:
    source = copied(sharded, tmp_path / "mcore")
    swap_in(tmp_path / "other", llama, tp=4, pp=2)(source)
    said = refused(run("to-hf", source, tmp_path / "out"), 3, "tensor_model_parallel_size=4", "says 2", "mp_rank_01_001")
    assert "shards of two runs are mixed" in said
    untouched(tmp_path / "out")


@pytest.mark.compat("refused", "any", "a pickle that would run code", "the global is named; nothing is called")
def test_hostile_shard(sharded: Path, tmp_path: Path) -> None:
    """A shard whose pickle would run a command is refused by the name of what it asks for, and runs nothing."""
    source, victim = copied(sharded, tmp_path / "mcore"), tmp_path / "victim"
    failing.hostile(shard(source, "00_000"), victim)
    for command in (("to-hf", source, tmp_path / "out"), ("inspect", source), ("verify", source, sharded)):
        refused(run(*command), 3, "mp_rank_00_000", "os.system", "refused")
    assert not victim.exists()
    untouched(tmp_path / "out")


# Which iteration


def test_iteration_is_chosen(sharded: Path, tmp_path: Path) -> None:
    source = copied(sharded, tmp_path / "mcore")
    shutil.copytree(source / ITERATION, source / "release")
    said = refused(run("to-hf", source, tmp_path / "out", "--iteration", 5), 3, "there is no iter_0000005")
    assert "iterations here: iter_0000001, release" in said
    for wrong in ("-1", "latest", "1.0"):
        refused(run("to-hf", source, tmp_path / "out", f"--iteration={wrong}"), 3, f"iteration {wrong!r}", "expected a number")
    untouched(tmp_path / "out")
    for named in (1, "iter_0000001"):
        assert json.loads(ok(run("inspect", source, f"--iteration={named}", "--json")).out)["iteration"] == "1"
    found = json.loads(ok(run("inspect", source, "--iteration", "release", "--json")).out)
    assert found["iteration"] == "release"
    ok(run("to-megatron", source, tmp_path / "again", "--iteration", "release"))
    assert (tmp_path / "again" / TRACKER).read_text() == "release"
    assert (tmp_path / "again" / "release" / "mp_rank_00" / "model_optim_rng.pt").exists()


def test_config_that_contradicts_the_args(sharded: Path, tmp_path: Path) -> None:
    """Half as many heads, each twice as wide: every shape fits, and q, k and v would be cut in the wrong places."""
    source = copied(sharded, tmp_path / "mcore")
    edit_json(source / "hf" / "config.json", num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    said = refused(run("to-hf", source, tmp_path / "out"), 3, "num_attention_heads is 8, expected 4", "num_query_groups is 4")
    assert str(source / "hf") in said
    untouched(tmp_path / "out")


def test_args_that_the_config_does_not_know_are_noted(sharded: Path, tmp_path: Path) -> None:
    source = copied(sharded, tmp_path / "mcore")
    edit_json(source / "hf" / "config.json", rope_theta=500000.0)
    assert "rotary_base is 10000, expected 500000" in ok(run("to-hf", source, tmp_path / "out")).err


def test_verify_takes_what_its_hints_advise(llama: Path, sharded: Path, tmp_path: Path) -> None:
    bare = copied(sharded, tmp_path / "bare")
    shutil.rmtree(bare / "hf")
    (bare / "manifest.json").unlink()
    for file in bare.glob(f"{ITERATION}/*/model_optim_rng.pt"):
        edit_shard(file, lambda shard: delattr(shard["args"], "model_type_hf"))
    refused(run("verify", llama, bare), 3, "nothing says which model this is")
    assert "equal" in ok(run("verify", llama, bare, "--family", "llama")).out
    away = tmp_path / "node1" / ITERATION
    away.mkdir(parents=True)
    (bare / ITERATION / "mp_rank_01_000").rename(away / "mp_rank_01_000")
    refused(run("verify", llama, bare, "--family", "llama"), 3, "mp_rank_01_000")
    assert "equal" in ok(run("verify", llama, bare, "--and-b", tmp_path / "node1", "--family", "llama")).out


def test_shards_in_a_directory_of_any_name(sharded: Path, tmp_path: Path) -> None:
    """Somebody copied an iteration out of its checkpoint; the shards know which one it was."""
    source = copied(sharded / ITERATION, tmp_path / "final-weights")
    shutil.copytree(sharded / "hf", source / "hf")
    ok(run("to-megatron", source, tmp_path / "out"))
    assert (tmp_path / "out" / TRACKER).read_text() == "1"


# Several directories


def nodes(sharded: Path, tmp_path: Path) -> tuple[Path, Path]:
    """One checkpoint over two nodes, each with the ranks of its pipeline stage."""
    a, b = copied(sharded, tmp_path / "node0"), copied(sharded, tmp_path / "node1")
    for tp in ("00", "01"):
        shutil.rmtree(shard(a, f"{tp}_001").parent)
        shutil.rmtree(shard(b, f"{tp}_000").parent)
    return a, b


def test_ranks_on_several_nodes(sharded: Path, llama: Path, tmp_path: Path) -> None:
    a, b = nodes(sharded, tmp_path)
    said = refused(run("to-hf", a, tmp_path / "out"), 3, "2 of 4 ranks are missing", "mp_rank_00_001, mp_rank_01_001")
    assert "NODE0/ckpt NODE1/ckpt" in said
    (tmp_path / "gone").mkdir()
    refused(run("to-hf", a, tmp_path / "gone", tmp_path / "out"), 3, "2 sources, and not all are Megatron checkpoints")
    refused(run("to-hf", a, a, tmp_path / "out"), 3, "rank mp_rank_00_000 is there twice")
    untouched(tmp_path / "out")
    ok(run("to-hf", a, b, tmp_path / "out"))
    assert ok(run("verify", llama, tmp_path / "out")).out.startswith("equal")


def test_only_one_node_has_the_tracker(sharded: Path, tmp_path: Path) -> None:
    """Megatron writes the tracker on one node, and only that one need have the Hugging Face files."""
    a, b = nodes(sharded, tmp_path)
    for name in (TRACKER, "manifest.json"):
        (b / name).unlink()
    shutil.rmtree(b / "hf")
    ok(run("to-hf", a, b, tmp_path / "out"))
    ok(run("to-hf", b, a, tmp_path / "turned"))
    assert failing.read_raw(tmp_path / "out" / "model.safetensors") == failing.read_raw(tmp_path / "turned" / "model.safetensors")


def test_same_rank_on_two_nodes(sharded: Path, tmp_path: Path) -> None:
    a, b = nodes(sharded, tmp_path)
    shutil.copytree(shard(a, "01_000").parent, shard(b, "01_000").parent)
    refused(run("to-hf", a, b, tmp_path / "out"), 3, "mp_rank_01_000 is there twice", str(a), str(b), "stale copy")
    untouched(tmp_path / "out")


def test_nodes_at_two_iterations(sharded: Path, tmp_path: Path) -> None:
    """One node did not save the last iteration."""
    a, b = nodes(sharded, tmp_path)
    (b / ITERATION).rename(b / "iter_0000009")
    (b / TRACKER).write_text("9")
    every_shard(lambda tree: tree.update(iteration=9))(b)
    refused(run("to-hf", a, b, tmp_path / "out"), 3, "iteration 9", "of 1", "two saves are mixed")
    refused(run("to-hf", a, b, tmp_path / "out", "--iteration", 1), 3, str(b), "there is no iter_0000001", "iter_0000009")
    untouched(tmp_path / "out")


# What the files do not say


def bare(sharded: Path, path: Path) -> Path:
    """A checkpoint that carries neither config nor manifest, and does not name its model."""
    source = copied(sharded, path)
    shutil.rmtree(source / "hf")
    (source / "manifest.json").unlink()
    every_shard(lambda tree: delattr(tree["args"], "model_type_hf"))(source)
    return source


def test_nothing_says_which_model(sharded: Path, llama: Path, tmp_path: Path) -> None:
    source = bare(sharded, tmp_path / "mcore")
    said = refused(run("to-hf", source, tmp_path / "out"), 3, "nothing says which model this is", "hf/config.json, manifest")
    assert "hint: add --family NAME" in said
    refused(run("to-hf", source, tmp_path / "out", "--family", "brontosaurus"), 3, "'brontosaurus' is not known", "llama")
    refused(run("to-hf", source, tmp_path / "out", "--family", "gpt2"), 3, "describe no gpt2")
    said = refused(run("to-hf", source, tmp_path / "out", "--family", "deepseek_v3"), 3, "do not say num_experts, kv_lora_rank")
    assert "--set num_experts=..." in said
    untouched(tmp_path / "out")
    ok(run("to-hf", source, tmp_path / "out", "--family", "llama"))
    ok(run("verify", llama, tmp_path / "out"))


def test_a_head_that_is_no_copy_of_the_embedding(sharded: Path, tmp_path: Path) -> None:
    """An untied model that is said to be tied would lose its head."""
    source = bare(sharded, tmp_path / "mcore")
    line = ("to-hf", source, tmp_path / "out", "--family", "llama", "--set", "untie_embeddings_and_output_weights=false")
    refused(run(*line), 3, "output_layer.weight is no copy of the embedding", "--set untie_embeddings_and_output_weights")
    untouched(tmp_path / "out")


def test_args_are_missing(sharded: Path, llama: Path, tmp_path: Path) -> None:
    """What the files show is not asked for; what they do not show is asked for at once."""
    source = bare(sharded, tmp_path / "mcore")
    every_shard(lambda tree: tree.pop("args"))(source)
    convert = ("to-hf", source, tmp_path / "out")
    needed = "num_attention_heads, max_position_embeddings, norm_epsilon, untie_embeddings_and_output_weights, rotary_base"
    said = refused(run(*convert, "--family", "llama"), 3, f"args do not say {needed}\n")
    asked = " ".join(f"--set {name}=..." for name in needed.split(", "))
    assert f"hint: give them: {asked}; or put the model's Hugging Face files" in said
    said = refused(run(*convert), 3, "nothing says which model this is", "do not say norm_epsilon, untie_embeddings")
    assert "hint: add --family NAME" in said
    facts = dict(num_attention_heads=8, max_position_embeddings=128, norm_epsilon=1e-5, rotary_base=10000)
    facts |= dict(untie_embeddings_and_output_weights=True, vocab_size=131)
    given = ["--family=llama", *(f"--set={name}={fact}" for name, fact in facts.items())]
    for wrong in ("hidden_size=wide", "num_layers=2.5", "num_attention_heads=0", "kv_channels=x", "vocab_size=[1]"):
        name, _, value = wrong.partition("=")
        refused(
            run(*convert, *given, f"--set={wrong}"),
            2,
            f"--set {name}=",
            value.strip("[]"),
            f"hint: correct it with --set {name}=",
        )
    refused(run(*convert, *given, "--set=rotary_base=x"), 3, "wrong kind", "'x'")
    untouched(tmp_path / "out")
    ok(run(*convert, *given))
    ok(run("verify", llama, tmp_path / "out"))


SETS = {
    "num_layers=8": (2, "num_layers: has no effect on this checkpoint"),  # hf/config.json says it already
    "vocab_size=7": (2, "vocab_size: has no effect on this checkpoint"),
    "a.b=c": (2, "a: has no effect on this checkpoint"),
    "tp": (2, "--set 'tp': expected KEY=VALUE"),
    "=3": (2, "--set '=3': expected KEY=VALUE"),
    "tp=[1": (2, "--set 'tp=[1': not YAML"),
    "expert_layout=stacked": (2, "--set expert_layout=stacked: expected sequential or grouped"),
    "tp=abc": (2, "tensor_model_parallel_size='abc', expected a whole number"),
    "tp=0": (2, "tp=0: expected a positive whole number"),
    "tp=-1": (2, "tensor_model_parallel_size=-1, expected a whole number"),
    "tp=true": (2, "tensor_model_parallel_size=True, expected a whole number"),
    "tp=1.5": (2, "tensor_model_parallel_size=1.5, expected a whole number"),
    "tp=1": (3, "has no rank mp_rank_01_000, mp_rank_01_001"),
    "tp=4": (3, "4 of 8 ranks are missing for tp=4 pp=2"),
    "pp=1": (3, "ranks are missing for tp=2 pp=1"),
    "vpp=2": (3, "mp_rank_00_000"),
    "noop_layers=3": (3, "4 layers + 1 no-op layers"),
    "layers_per_stage=5": (2, "layers_per_stage has 1 numbers for pp=2"),
    "layers_per_stage=3,3": (3, "layers_per_stage 3,3 adds up to 6"),
    "layers_per_stage=3,1": (3, "model has no decoder.layers.2."),
    "schedule=zigzag": (2, "schedules_method='zigzag'"),
    "schedule=dualpipev": (3, f"model0 has no {EMBEDDING}"),
    "dialect=deepspeed": (2, "--set dialect=deepspeed: does not exist for llama"),
    "dialect=te": (3, "mp_rank_00_000", "model has no"),
}


@pytest.mark.parametrize("item", SETS)
def test_set_that_is_wrong(item: str, sharded: Path, tmp_path: Path) -> None:
    code, *words = SETS[item]
    refused(run("to-hf", sharded, tmp_path / "out", "--set", item), int(code), *map(str, words), hint=code == 3)
    untouched(tmp_path / "out")


def test_family_against_the_config(sharded: Path, tmp_path: Path) -> None:
    refused(run("to-hf", sharded, tmp_path / "out", "--family", "gpt2"), 2, "--family gpt2", "hf/config.json says llama")
    untouched(tmp_path / "out")
    ok(run("to-hf", sharded, tmp_path / "out", "--family", "llama"))


# Entries that are no weights


def test_entries_that_are_no_weights_are_listed(sharded: Path, llama: Path, tmp_path: Path) -> None:
    """TransformerEngine's state is dropped: counted by the conversion, named by inspect and by the manifest."""
    source = copied(sharded, tmp_path / "mcore")
    name = "decoder.layers.0.mlp.linear_fc1._extra_state"
    every_shard(lambda tree: tree["model"].update({name: np.zeros(3, np.uint8)}))(source)
    assert json.loads(ok(run("inspect", source, "--json")).out)["dropped"] == [name]
    assert "1 entries that are no weights" in ok(run("inspect", source)).out
    assert "1 declared drops" in ok(run("to-hf", source, tmp_path / "out")).out
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["hf"]["dropped"] == [name]
    assert (
        contents(huggingface(tmp_path / "clean", sharded))["model.safetensors"] == contents(tmp_path / "out")["model.safetensors"]
    )


# Copies in the place of ranks


def bare_args(root: Path, **changes: Any) -> Path:
    every_shard(lambda tree: [setattr(tree["args"], name, value) for name, value in changes.items()])(root)
    return root


@pytest.mark.parametrize(("first", "second"), [("00_000", "01_000"), ("01_001", "00_001"), ("00_000", "00_001")])
def test_rank_that_is_a_copy_of_another(first: str, second: str, sharded: Path, tmp_path: Path) -> None:
    """A run's shards each say their rank."""
    source = copied(sharded, tmp_path / "mcore")
    for number, rank in enumerate(("00_000", "01_000", "00_001", "01_001")):
        edit_shard(shard(source, rank), lambda tree, number=number: setattr(tree["args"], "rank", number))
    ok(run("inspect", source))
    shutil.copy(shard(source, first), shard(source, second))
    refused(run("to-hf", source, tmp_path / "out"), 3, f"mp_rank_{first}", f"mp_rank_{second}", "rank")
    refused(run("inspect", source), 3, f"mp_rank_{first}", f"mp_rank_{second}", "rank")
    untouched(tmp_path / "out")


@pytest.mark.parametrize("rank", [None, 0], ids=["no rank", "a converter's rank"])
@pytest.mark.parametrize(("first", "second"), [("00_000", "01_000"), ("01_001", "00_001")])
def test_tp_rank_with_the_values_of_another(first: str, second: str, rank: int | None, sharded: Path, tmp_path: Path) -> None:
    """Every shape is right, and the tensors made of it would hold one half twice."""
    source = bare_args(copied(sharded, tmp_path / "mcore"), rank=rank)
    ok(run("to-hf", source, tmp_path / "right"))
    shutil.copy(shard(source, first), shard(source, second))
    said = refused(run("to-hf", source, tmp_path / "out"), 3, f"mp_rank_{first}", f"mp_rank_{second}", "the same values")
    assert "hint: one is a copy of the other" in said
    refused(run("to-megatron", source, tmp_path / "out"), 3, "the same values")
    untouched(tmp_path / "out")


def test_ranks_with_constant_values_are_no_copies(tmp_path: Path) -> None:
    """Zeros everywhere: what some write to try a layout out."""
    zeroed = failing.model(tmp_path / "hf")
    failing.edit_tensors(
        zeroed / "model.safetensors", lambda t: t.update({n: (d, s, bytes(len(b))) for n, (d, s, b) in t.items()})
    )
    ok(run("to-hf", megatron(tmp_path / "mcore", zeroed, tp=2), tmp_path / "out"))


# A family that is not the args'


def test_family_that_contradicts_the_args(sharded: Path, tmp_path: Path) -> None:
    """Llama's shards would be called qwen2, whose biases no file holds."""
    source = bare(sharded, tmp_path / "mcore")
    every_shard(lambda tree: setattr(tree["args"], "add_qkv_bias", False))(source)
    said = refused(run("to-hf", source, tmp_path / "out", "--family", "qwen2"), 3, "describe no qwen2: qkv_bias is False")
    assert "hint: is --family right?" in said
    untouched(tmp_path / "out")


@pytest.mark.parametrize("key", ["hf", "model", "outputs"])
def test_damaged_manifest(key: str, sharded: Path, tmp_path: Path) -> None:
    source = copied(sharded, tmp_path / "mcore")
    edit_json(source / "manifest.json", **{key: None})
    said = refused(run("to-hf", source, tmp_path / "out"), 3, f"manifest.json is damaged: {key} is None")
    assert "remove it" in said
    edit_json(source / "manifest.json", **{key: ..., "hf": {"copies": {"a": "b"}}})
    refused(run("to-hf", source, tmp_path / "out"), 3, "manifest.json is damaged", "a (b)")
    untouched(tmp_path / "out")
