"""`torch_dist` against megatron-core's own dist_checkpointing, and against torch's own reader of DCP directories."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as dcp

import harness
import tiny_models

MODELS = list(tiny_models.MODELS)
FEW = ["llama", "qwen2_tied", "mixtral", "deepseek_v3_mtp"]
EXPERTS = ["mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3_mtp"]


def slow(name: str, layout: harness.Layout, models: list[str]):
    return pytest.param(layout, models, id=name, marks=pytest.mark.slow)


def plain_tensors(iteration: Path) -> dict[str, torch.Tensor]:
    """Every tensor, by torch's own reader, without a process group."""
    reader = dcp.FileSystemReader(iteration)
    entries = reader.read_metadata().state_dict_metadata
    found = {n: torch.empty(e.size, dtype=e.properties.dtype) for n, e in entries.items() if hasattr(e, "size")}
    dcp.load(found, storage_reader=reader, no_dist=True)
    return found


def checkpoint(root: Path, hf_dir: Path, iteration: int = 1) -> Path:
    """A directory whose iterations megatron-core is to fill, with what it does not write: the tracker and the config."""
    root.mkdir()
    (root / "latest_checkpointed_iteration.txt").write_text(str(iteration))
    (root / "hf").mkdir()
    shutil.copy(hf_dir / "config.json", root / "hf")
    return root


LAUNCHES = [
    pytest.param({"tp": 2, "pp": 2}, FEW, id="tp2-pp2"),
    slow("tp1", {}, MODELS),
    slow("tp2-pp2-all", {"tp": 2, "pp": 2}, MODELS),
    slow("pp2-vpp2", {"pp": 2, "vpp": 2}, MODELS),
    slow("ep2", {"ep": 2}, EXPERTS),
    slow("tp2-ep2", {"tp": 2, "ep": 2}, EXPERTS),
    slow("tp2-ep2-etp1", {"tp": 2, "ep": 2, "etp": 1}, EXPERTS),
    slow("tp2-ep2-grouped", {"tp": 2, "ep": 2, "grouped": True}, EXPERTS),
]


@pytest.mark.compat("read", "megatron-core 0.16.1", "`torch_dist`, per-layer names", "saved by several processes, byte for byte")
@pytest.mark.compat("read", "megatron-core 0.16.1", "`torch_dist`, stacked layers", "saved by several processes, byte for byte")
@pytest.mark.compat(
    "read",
    "megatron-core 0.16.1",
    "`torch_dist`, `_w` and `_v`",
    "`singleton_local_shards`; saved by several processes, byte for byte",
)
@pytest.mark.compat(
    "written", "megatron-core 0.16.1", "`torch_dist`", "strict load into `GPTModel` at another layout, and transformers' logits"
)
@pytest.mark.parametrize("layout, models", LAUNCHES)
def test_megatron_core_on_both_sides(layout, models, hf, tmp_path, subtests):
    """One launch saves what is to be read, and loads what was written for one rank, and for TP2 PP2."""
    jobs = []
    for name in models:
        harness.convert(hf(name), tmp_path / f"{name}-shards", layout)
        root = checkpoint(tmp_path / f"{name}-saved", hf(name))
        jobs.append(dict(do="save", shards=f"{tmp_path}/{name}-shards", hf=str(hf(name)), out=f"{root}/iter_0000001"))
        for flags in ("", "--tp 2 --pp 2"):
            out = tmp_path / f"{name}-written{'-cut' if flags else ''}"
            harness.jumar_convert("to-megatron", hf(name), out, "--format", "torch_dist", *flags.split())
            jobs.append(dict(do="load", dist=f"{out}/iter_0000001", hf=str(hf(name))))
    if "mixtral" in models:
        for spelling, option in (("singleton", "singleton"), ("stacked", "every_layer")):
            root = checkpoint(tmp_path / f"mixtral-saved-{spelling}", hf("mixtral"))
            shards = f"{tmp_path}/mixtral-shards"
            jobs.append(dict(do="save", shards=shards, hf=str(hf("mixtral")), out=f"{root}/iter_0000001") | {option: True})
        stacked = tmp_path / "mixtral-written-stacked"
        harness.jumar_convert(
            "to-megatron", hf("mixtral"), stacked, "--format", "torch_dist", "--dist-layers", "stacked", "--ep", "2"
        )
        jobs.append(dict(do="load", dist=f"{stacked}/iter_0000001", hf=str(hf("mixtral")), every_layer=True))
    rows = harness.launch_jobs(jobs, layout, tmp_path)
    for job, row in zip(jobs, rows, strict=True):
        with subtests.test(f"{job['do']} {Path(job.get('dist') or job['out']).parent.name}"):
            assert "error" not in row, row["error"]
            if job["do"] == "save":
                harness.jumar_convert("verify", job["hf"], Path(job["out"]).parent)
            else:
                assert row["scale"] > 0.5
                assert row["max_diff"] < 1e-5


@pytest.mark.parametrize("name", ["llama", pytest.param("mixtral", marks=pytest.mark.slow)])
def test_what_is_written_is_what_megatron_core_writes(name, hf, tmp_path):
    """Same tensors, shapes, dtypes, objects and values at the same layout; torch's own reader finds them."""
    layout = {"tp": 2}
    harness.convert(hf(name), tmp_path / "shards", layout)
    harness.jumar_convert("to-megatron", hf(name), tmp_path / "ours", "--format", "torch_dist", "--tp", 2)
    job = dict(do="save", shards=str(tmp_path / "shards"), hf=str(hf(name)), out=f"{tmp_path}/theirs/iter_0000001")
    harness.launch_jobs([job], layout, tmp_path)
    ours, theirs = (tmp_path / side / "iter_0000001" for side in ("ours", "theirs"))
    found = [dcp.FileSystemReader(side).read_metadata().state_dict_metadata for side in (ours, theirs)]
    assert found[0].keys() == found[1].keys()
    mine, other = plain_tensors(ours), plain_tensors(theirs)
    assert mine.keys() == other.keys()
    assert [n for n in mine if mine[n].dtype != other[n].dtype or not torch.equal(mine[n], other[n])] == []
    boxes = [{n: sorted(tuple(c.offsets) for c in e.chunks) for n, e in side.items() if hasattr(e, "chunks")} for side in found]
    assert boxes[0] == boxes[1]


RUNS = {
    "distributed": {},
    "plain": {"distributed": False},
    "distributed-bf16": {"bf16": True},
    "plain-bf16": {"bf16": True, "distributed": False},
}
FEW_RUNS = ["plain", "distributed-bf16"]


@pytest.mark.compat(
    "read",
    "megatron-core 0.16.1",
    "`torch_dist`, optimizer state (`fully_reshardable`, or not distributed)",
    "carried to `torch_dist`",
)
@pytest.mark.compat(
    "written", "megatron-core 0.16.1", "`torch_dist`, optimizer state", "a run of TP2 DP2 goes on as PP2 DP2 with its state"
)
@pytest.mark.compat(
    "refused",
    "megatron-core 0.16.1",
    "`torch_dist`, optimizer state as `dp_reshardable`",
    "flat buffers of the run's ranks; the weights are converted, with a note before",
)
@pytest.mark.parametrize("names", [pytest.param(FEW_RUNS, id="few"), pytest.param(list(RUNS), id="all", marks=pytest.mark.slow)])
def test_a_run_goes_on_at_another_layout(names, hf, tmp_path, subtests):
    """TP2 DP2 -> jumar -> PP2 DP2, where megatron-core loads it and saves it again: every state is what it was."""
    harness.convert(hf("llama"), tmp_path / "llama-shards", {"tp": 2})
    harness.convert(hf("mixtral"), tmp_path / "mixtral-shards", {"tp": 2})
    runs = {name: ("llama", RUNS[name]) for name in names} | {"experts": ("mixtral", {})}
    jobs = []
    for name, (model, options) in [*runs.items(), ("flat", ("llama", {"sharding": "dp_reshardable"}))]:
        root = checkpoint(tmp_path / name, hf(model), 7)
        shards = f"{tmp_path}/{model}-shards"
        jobs.append(dict(do="train", shards=shards, hf=str(hf(model)), out=f"{root}/iter_0000007", **options))
    harness.launch_jobs(jobs, {"tp": 2, "dp": 2}, tmp_path)
    jobs = []
    for name, (model, options) in runs.items():
        harness.jumar_convert("to-megatron", tmp_path / name, tmp_path / f"{name}-cut", "--format", "torch_dist", "--pp", 2)
        dist = f"{tmp_path}/{name}-cut/iter_0000007"
        out = f"{tmp_path}/{name}-again/iter_0000007"
        jobs.append(dict(do="resume", dist=dist, hf=str(hf(model)), out=out, **options))
    rows = harness.launch_jobs(jobs, {"pp": 2, "dp": 2}, tmp_path)
    for name, row in zip(runs, rows, strict=True):
        with subtests.test(name):
            assert row == {"iteration": 7, "scheduler": {"num_steps": 56, "max_lr": 1e-3}, "samples": 56, "step": 7.0}
            before, after = (plain_tensors(tmp_path / side / "iter_0000007") for side in (name, f"{name}-again"))
            assert before.keys() == after.keys()
            assert any(n.startswith("optimizer.state.exp_avg_sq.decoder") for n in before)
            vocab = json.loads((hf(runs[name][0]) / "config.json").read_text())["vocab_size"]
            differing = [n for n in before if not torch.equal(_trimmed(n, before[n], vocab), _trimmed(n, after[n], vocab))]
            assert differing == []
    with subtests.test("inspect"):
        said = json.loads(harness.run_for_text("inspect", tmp_path / "experts-cut", "--json"))
        assert said["optimizer"]["carried"] == ["exp_avg", "exp_avg_sq", "param"]
    with subtests.test("flat"):
        done = harness.run_for_text("to-megatron", tmp_path / "flat", tmp_path / "flat-cut", "--format", "torch_dist", "--pp", 2)
        assert "the optimizer state is not carried: it was saved as flat buffers" in done
        assert not any(n.startswith("optimizer") for n in plain_tensors(tmp_path / "flat-cut/iter_0000007"))


def _trimmed(name: str, tensor: torch.Tensor, vocab: int) -> torch.Tensor:
    """Without the padding of the vocabulary, which is another under another TP."""
    return tensor[:vocab] if name.endswith(("word_embeddings.weight", "output_layer.weight")) else tensor
