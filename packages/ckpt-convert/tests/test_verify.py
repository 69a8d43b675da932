"""Comparisons: what differs is named, whatever the formats, layouts and iterations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from failing import ITERATION, as_json, copied, edit_shard, flip_tensor, ok, refused, run, shard


def test_verify_equal(llama: Path, sharded: Path) -> None:
    found = as_json("verify", llama, sharded)
    assert found == {"same": True, "equal": 39, "bytes": 140224 * 4, "differences": []}
    result = ok(run("verify", sharded, llama))
    assert result.out.startswith(f"equal {sharded} and {llama}: 39 tensors, 547.8 KiB, byte for byte, 9 replicas")


EMBEDDED = "embedding.word_embeddings.weight"
CUT = [  # HF name, Megatron name, the rank that holds it alone
    ("model.layers.3.mlp.down_proj.weight", "decoder.layers.1.mlp.linear_fc2.weight", "01_001"),
    ("model.embed_tokens.weight", "embedding.word_embeddings.weight", "00_000"),
    ("lm_head.weight", "output_layer.weight", "00_001"),
]


@pytest.mark.parametrize(("hf", "name", "rank"), CUT)
def test_verify_names_the_tensor_of_one_flipped_byte(
    hf: str, name: str, rank: str, llama: Path, sharded: Path, tmp_path: Path
) -> None:
    other = copied(sharded, tmp_path / "mcore")
    flip_tensor(shard(other, rank), name)
    for a, b in ((llama, other), (other, llama), (sharded, other)):
        result = run("verify", a, b)
        assert result.code == 5, str(result)
        assert "Traceback" not in result.err
        rows = [line for line in result.out.splitlines() if line.strip().startswith(("model.", "lm_head."))]
        assert [row.split()[0] for row in rows] == [hf]
        assert "1 differences, 38 tensors equal" in result.out
    result = run("verify", llama, other, "--json")
    assert result.code == 5
    (difference,) = json.loads(result.out, parse_constant=pytest.fail)["differences"]
    assert set(difference) == {"name", "what", "largest"}
    assert difference["name"] == hf
    assert difference["what"] == "values"


def test_verify_finds_ranks_that_disagree(llama: Path, sharded: Path, tmp_path: Path) -> None:
    """A norm is on both TP ranks; only the first copy is converted, and it is the other one that is damaged."""
    other = copied(sharded, tmp_path / "mcore")
    flip_tensor(shard(other, "01_001"), "decoder.layers.0.input_layernorm.weight")
    result = run("verify", llama, other)
    assert result.code == 5
    assert "model.layers.2.input_layernorm.weight" in result.out
    assert "ranks mp_rank_00_001 and mp_rank_01_001 of the second checkpoint hold different values" in result.out
    result = run("verify", other, other)
    assert result.code == 5
    assert "of the first checkpoint" in result.out


def test_conversion_warns_of_ranks_that_disagree(llama: Path, sharded: Path, tmp_path: Path) -> None:
    other = copied(sharded, tmp_path / "mcore")
    flip_tensor(shard(other, "01_001"), "decoder.layers.0.input_layernorm.weight")
    for flags in ([], ["--json"]):
        result = ok(run("to-hf", other, tmp_path / f"out{len(flags)}", *flags))
        (warning,) = result.err.splitlines()
        name = "model.layers.2.input_layernorm.weight"
        assert warning == f"warning: {name}: ranks hold different values; the first rank's are used"
        if flags:
            json.loads(result.out)
    ok(run("verify", llama, tmp_path / "out0"))


def test_verify_other_differences(llama: Path, moe: Path, tmp_path: Path) -> None:
    cast = tmp_path / "bf16"
    ok(run("to-hf", llama, cast, "--dtype", "bf16"))
    result = run("verify", llama, cast)
    assert result.code == 5
    assert "dtype F32 against BF16" in result.out
    result = run("verify", llama, moe)
    assert result.code == 5
    assert "llama against qwen3_moe" in result.out
    assert "not in the first checkpoint" in result.out
    assert json.loads(run("verify", llama, moe, "--json").out, parse_constant=pytest.fail)["same"] is False


def test_verify_of_an_iteration(sharded: Path, llama: Path, tmp_path: Path) -> None:
    """Two saves of one run lie in one directory."""
    source = copied(sharded, tmp_path / "mcore")
    shutil.copytree(source / ITERATION, source / "iter_0000002")
    for file in (source / "iter_0000002").glob("*/*.pt"):
        edit_shard(file, lambda tree: tree.update(iteration=2))
    flip_tensor(shard(source, "00_000").parent.parent.parent / "iter_0000002" / "mp_rank_00_000" / "model_optim_rng.pt", EMBEDDED)
    ok(run("verify", source, source, "--iteration-a", 1))
    ok(run("verify", source, source, "--iteration-a", 2, "--iteration-b", "iter_0000002"))
    assert run("verify", source, source, "--iteration-b", 2).code == 5
    assert run("verify", llama, source, "--iteration-b", 2).code == 5
    refused(run("verify", source, source, "--iteration-a", 3), 3, "iter_0000003")
    refused(run("verify", llama, source, "--iteration-a", 1), 2, "is a Hugging Face directory")
