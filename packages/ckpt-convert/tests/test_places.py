"""How paths are spelled, and where files lie, changes nothing: the same files with the same options are already done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny_lora
from failing import ITERATION, contents, copied, ok, refused, run, times, tiny_config
from jumar.ckpt_convert.convert import HEADER_BYTES
from test_resume import killed_at

pytestmark = pytest.mark.matrix

LINES = {
    "to-megatron": ("to-megatron", "b/hf", "out", "--tp", "2"),
    "shards": ("to-hf", "b/mcore", "out"),
    "adapter beside": ("to-megatron", "b/hf", "out", "--adapter", "a/peft"),
    "merge": ("merge-lora", "b/hf", "a/peft", "out"),
    "merge shards": ("merge-lora", "b/mcore", "a/peft", "out"),
    "adapter": ("to-megatron", "a/peft", "out", "--base", "b/hf"),
    "nodes": ("to-hf", "c/node0", "a/node1", "out"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, llama: Path, sharded: Path) -> Path:
    """A model, its shards, also as two nodes keep them, and an adapter, which come in another order by name than by use."""
    home = tmp_path_factory.mktemp("places")
    copied(llama, home / "b/hf")
    copied(sharded, home / "b/mcore")
    for node, name in enumerate(("c/node0", "a/node1")):
        copied(sharded, home / name)
        for rank in (home / name).glob(f"iter_*/mp_rank_*_00{1 - node}"):
            shutil.rmtree(rank)
    tensors = tiny_lora.adapter(tiny_config("llama"), (tiny_lora.QKV,), 4, values="real")
    tiny_lora.write_peft(home / "a/peft", tensors, lora_alpha=8)
    (home.parent / "places-link").symlink_to(home)
    return home


def words(line: tuple[str, ...], out: object, spell: Callable[[str, int], object]) -> list[object]:
    """A command, each of whose paths is spelled as `spell` has it by its number."""
    paths = [word for word in line if "/" in word or word == "out"]
    return [out if word == "out" else spell(word, paths.index(word)) if word in paths else word for word in line]


WAYS: dict[str, Callable[[Path], Callable[[str, int], object]]] = {
    "relative": lambda home: lambda name, number: name,
    "the first absolute": lambda home: lambda name, number: home / name if not number else name,
    "the second absolute": lambda home: lambda name, number: home / name if number else name,
    "with dots": lambda home: lambda name, number: f"./a/../{name}/",
    "through a link": lambda home: lambda name, number: home.with_name("places-link") / name,
    "from the model": lambda home: lambda name, number: f"../../{name}",
}


@pytest.mark.parametrize("name", LINES)
def test_however_paths_are_spelled_the_same_is_already_done(name: str, home: Path, tmp_path: Path) -> None:
    out, line = tmp_path / "out", LINES[name]
    ok(run(*words(line, out, lambda name, number: home / name)))
    before = times(out)
    for way, spell in WAYS.items():
        cwd = home / "b/hf" if way == "from the model" else home
        result = ok(run(*words(line, out, spell(home)), cwd=cwd))
        assert result.out.startswith("already done"), f"{way}\n{result}"
    result = ok(run(*words(line, "./out/", WAYS["through a link"](home)), cwd=tmp_path))
    assert result.out.startswith("already done")
    assert times(out) == before


@pytest.mark.parametrize("name", ["to-megatron", "shards", "merge shards"])
def test_a_stopped_run_goes_on_however_paths_are_spelled(name: str, home: Path, tmp_path: Path) -> None:
    out, line = tmp_path / "out", LINES[name]
    killed_at("journal line", 2, "after", *words(line, out, lambda name, number: home / name), "--threads", 1)
    ok(run(*words(line, "out", lambda name, number: home.with_name("places-link") / name), "--resume", cwd=tmp_path))


def test_a_model_that_begins_as_another_is_another(llama: Path, tmp_path: Path) -> None:
    """As one that was tuned by an adapter and merged: the embedding, which comes first, is the same. Both were there before."""
    base, tuned = copied(llama, tmp_path / "base/hf"), copied(llama, tmp_path / "tuned/hf")
    weights = bytearray((tuned / "model.safetensors").read_bytes())
    assert len(weights) > HEADER_BYTES + 8
    weights[-1] ^= 1
    (tuned / "model.safetensors").write_bytes(weights)
    ok(run("to-megatron", base, tmp_path / "mcore"))
    refused(run("to-megatron", tuned, tmp_path / "mcore"), 3, "with other options: model.safetensors")


def test_what_a_copy_is_of(llama: Path, tmp_path: Path) -> None:
    """Files that the manifest tells whole are the same wherever they are copied to."""
    ok(run("to-megatron", copied(llama, tmp_path / "here/hf"), tmp_path / "here/mcore"))
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copy2)
    assert ok(run("to-megatron", "hf", "mcore", cwd=tmp_path / "there")).out.startswith("already done")
    refused(run("to-megatron", "hf", "mcore", "--tp", 2, cwd=tmp_path / "there"), 3, "with other options: tp")


def test_an_iteration_from_within_and_by_a_link(sharded: Path, tmp_path: Path) -> None:
    """Config, tokenizer and manifest lie beside it, whatever it is called."""
    home = copied(sharded, tmp_path / "mcore")
    iteration = (home / ITERATION).rename(home / "iter_0000007")
    (tmp_path / "best").symlink_to(iteration)
    ok(run("to-hf", iteration, tmp_path / "out"))
    assert (tmp_path / "out/tokenizer.json").exists()
    for number, (cwd, spelled) in enumerate(((iteration, "."), (iteration / "mp_rank_00_000", ".."), (tmp_path, "best"))):
        ok(run("to-hf", spelled, tmp_path / f"out{number}", cwd=cwd))
        assert contents(tmp_path / f"out{number}") == contents(tmp_path / "out"), spelled
        assert json.loads(ok(run("inspect", spelled, "--json", cwd=cwd)).out)["iteration"] == "7"
        assert ok(run("to-hf", iteration, tmp_path / f"out{number}")).out.startswith("already done")
