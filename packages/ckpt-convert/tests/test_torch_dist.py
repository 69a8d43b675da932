"""`torch_dist`: every family, written as defined by hand, read in whatever chunks; and refused where it is not whole."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import by_hand
import dist_by_hand
import drawn
import failing
import tiny_hf
from failing import contents, refused, run
from jumar.ckpt_convert import open_checkpoint, plan_hf, plan_megatron, run_plan, verify
from jumar.ckpt_convert.dist_plan import plan_dist
from jumar.ckpt_convert.formats.archive import ArchiveLayout, read_archive
from jumar.ckpt_convert.formats.dist_metadata import Chunk, DistTensor, metadata_bytes, read_metadata
from jumar.ckpt_convert.formats.pickling import Global, Made, dump
from jumar.schema.megatron_args import to_args
from jumar.schema.parallel import ParallelLayout
from jumar.schema.placement import Placement
from jumar.schema.registry import families

SPELLINGS = {"stacked": (True, False), "per layer": (False, False), "singleton": (False, True)}
EXAMPLES = 8


@pytest.fixture(scope="module", autouse=True)
def _disk_without_waiting() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda fd: None)
        patch.setattr("os.fdatasync", lambda fd: None)
        yield


@st.composite
def cases(draw: st.DrawFn, model_type: str) -> tuple[dict[str, Any], by_hand.Wanted, str]:
    config, want = draw(drawn.cases(model_type).filter(lambda case: case[1].dialect in ("mcore", "te")))
    return config, want, draw(st.sampled_from([name for name in SPELLINGS if name != "stacked" or alike(config)]))


def alike(config: dict[str, Any]) -> bool:
    """Whether all layers have the same tensors, and are not Mamba's."""
    layers = config.get("num_hidden_layers", 0)
    dense = {i for i in range(layers) if i < config.get("first_k_dense_replace", 0) or i % config.get("moe_layer_freq", 1)}
    dense |= {i for i in range(layers) if (i + 1) % config.get("decoder_sparse_step", 1)}
    dense |= set(config.get("mlp_only_layers", []))
    return config["model_type"] not in by_hand.MIXERS and len(dense) in (0, layers)


@pytest.mark.parametrize("model_type", families())
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_what_is_written_is_as_defined_by_hand(model_type: str, data: st.DataObject) -> None:
    config, want, spelling = data.draw(cases(model_type))
    stacked, _ = SPELLINGS[spelling]
    hf = tiny_hf.random_tensors(config)
    with tempfile.TemporaryDirectory() as home:
        source = open_checkpoint(tiny_hf.write_hf(Path(home) / "hf", config, hf))
        made = plan_dist(
            source, drawn.layout_of(want), dialect=want.dialect, vocab_divisible_by=want.divisible_by, stacked=stacked or None
        )
        assert run_plan(made, Path(home) / "dist")
        found = dist_by_hand.read(Path(home) / "dist/iter_0000001")
        default = config["model_type"] not in by_hand.MIXERS and not any("expert" in key for key in config)
        expected = dist_by_hand.whole(hf, config, want, stacked=stacked or default)
        assert found.keys() == expected.keys()
        assert [name for name in found if not np.array_equal(found[name], expected[name])] == []
        back = open_checkpoint(Path(home) / "dist")
        assert verify(source, back).same
        assert run_plan(plan_hf(back), Path(home) / "back")
        assert tiny_hf.read_hf(Path(home) / "back") == tiny_hf.read_hf(Path(home) / "hf")


def random_grid(seed: int) -> dist_by_hand.Grid:
    """Cuts each axis of each tensor at up to two random places."""
    random = np.random.default_rng(seed)

    def grid(name: str, shape: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        boxes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((), ())]
        for n in shape:
            cuts = sorted({0, n, *map(int, random.integers(0, n + 1, random.integers(0, 3)))})
            spans = [(a, b - a) for a, b in pairwise(cuts)]
            boxes = [((*start, a), (*size, m)) for start, size in boxes for a, m in spans]
        return boxes

    return grid


@pytest.mark.compat("read", "torch 2.13", "`torch_dist` in any chunks", "DCP directories, every family")
@pytest.mark.parametrize("model_type", families())
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_any_chunks_are_read(model_type: str, data: st.DataObject) -> None:
    config, want, spelling = data.draw(cases(model_type))
    stacked, singleton = SPELLINGS[spelling]
    hf = tiny_hf.random_tensors(config)
    family = families()[model_type]
    spec = family.spec(config)
    layout = ParallelLayout(noop_layers=want.noop)
    args = to_args(Placement(family=family, spec=spec, layout=layout, dialect=want.dialect), dtype="bfloat16", iteration=7)
    with tempfile.TemporaryDirectory() as home:
        tensors = dist_by_hand.whole(hf, config, want, stacked=stacked, singleton=singleton)
        dist_by_hand.write(Path(home) / "dist/iter_0000007", tensors, args, random_grid(data.draw(st.integers(0, 1 << 32))))
        (Path(home) / "dist/hf").mkdir()
        (Path(home) / "dist/hf/config.json").write_text(json.dumps(config))
        found = open_checkpoint(Path(home) / "dist")
        assert found.iteration == "7"
        for name, expected in hf.items():
            array = found.array(name)
            assert array.shape == expected.shape
            assert np.array_equal(array.view(expected.dtype), expected), name


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("dist")
    source = open_checkpoint(failing.model(home / "hf"))
    assert run_plan(plan_dist(source, ParallelLayout(tp=2, pp=2)), home / "dist")
    return home / "dist"


@pytest.mark.compat("read", "MindSpeed-LLM", "`torch_dist` under its modules' own names", "layout as documented")
@pytest.mark.parametrize("model_type", ["deepseek_v2", "deepseek_v3", "llama", "qwen3_moe"])
def test_names_of_another_framework(model_type: str, tmp_path: Path) -> None:
    """Its modules' own names, per layer: nothing renamed on the way into the checkpoint."""
    family = families()[model_type]
    config = dict(family.tiny)
    hf = tiny_hf.random_tensors(config)
    want = by_hand.Wanted(dialect="mindspeed")
    ((_, states),) = by_hand.shards(hf, config, want)
    tensors = {}
    experts: dict[str, dict[int, np.ndarray]] = {}
    for name, array in states["model"].items():
        before, found, after = name.partition(".local_experts.")
        if found:
            number, _, rest = after.partition(".")
            experts.setdefault(f"{before}.experts.{rest}", {})[int(number)] = array
        else:
            tensors[name] = array
    tensors |= {name: np.stack([found[e] for e in sorted(found)]) for name, found in experts.items()}
    placement = Placement(family=family, spec=family.spec(config), layout=ParallelLayout(), dialect="mindspeed")
    dist_by_hand.write(tmp_path / "iter_0000007", tensors, to_args(placement, dtype="bfloat16", iteration=7), random_grid(0))
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text(json.dumps(config))
    opened = open_checkpoint(tmp_path)
    assert [name for name in hf if not np.array_equal(opened.array(name).view(hf[name].dtype), hf[name])] == []


def test_shards_from_torch_dist_are_those_from_hugging_face(dist: Path, tmp_path: Path) -> None:
    layout = ParallelLayout(tp=4, pp=2, vpp=2)
    for name, source in ("direct", dist.parent / "hf"), ("through", dist):
        assert run_plan(plan_megatron(open_checkpoint(source), layout), tmp_path / name)
    same = [contents(tmp_path / name / "iter_0000001") for name in ("direct", "through")]
    assert same[0] == same[1]


def test_the_same_source_gives_the_same_bytes(dist: Path, tmp_path: Path) -> None:
    source = open_checkpoint(dist.parent / "hf")
    assert run_plan(plan_dist(source, ParallelLayout(tp=2, pp=2)), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(dist)


def test_a_stopped_run_goes_on(dist: Path, tmp_path: Path) -> None:
    source = open_checkpoint(dist.parent / "hf")
    plan = plan_dist(source, ParallelLayout(tp=2, pp=2))
    written = 0

    def stop(nbytes: int) -> None:
        nonlocal written
        written += nbytes
        if written > plan.nbytes // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, tmp_path / "out", threads=1, progress=stop)
    assert not (tmp_path / "out").exists()
    assert run_plan(plan, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(dist)


def test_the_command(dist: Path, tmp_path: Path) -> None:
    command = ["to-megatron", dist, tmp_path / "out", "--format", "torch_dist", "--pp", 4]
    plan = json.loads(failing.ok(run(*command, "--plan", "--json")).out)
    assert len(plan["files"]) == 4
    failing.ok(run(*command))
    assert sorted(p.name for p in (tmp_path / "out/iter_0000001").iterdir()) == [
        ".metadata", *(f"__{rank}_0.distcp" for rank in range(4)), "common.pt", "metadata.json",
    ]  # fmt: skip
    said = json.loads(failing.ok(run("inspect", tmp_path / "out", "--json")).out)
    assert (said["format"], said["layout"]) == ("torch_dist", "pp=4")
    failing.ok(run("verify", dist, tmp_path / "out"))
    failing.ok(run("to-hf", tmp_path / "out", tmp_path / "hf"))
    failing.ok(run("verify", dist.parent / "hf", tmp_path / "hf"))


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--format", "zarr"], "torch or torch_dist"),
        (["--dist-layers", "stacked"], "--format torch_dist"),
        (["--no-optimizer"], "--format torch_dist"),
        (["--format", "torch_dist", "--dist-layers", "all"], "stacked or separate"),
    ],
)
def test_flags_that_do_not_fit(flags: list[str], word: str, dist: Path, tmp_path: Path) -> None:
    refused(run("to-megatron", dist, tmp_path / "out", *flags), 2, word, hint=False)
    failing.untouched(tmp_path / "out")


@pytest.mark.parametrize("family", ["mamba2", "deepseek_v2"])
def test_layers_that_do_not_stack(family: str, tmp_path: Path) -> None:
    failing.model(tmp_path / "hf", family)
    result = run("to-megatron", tmp_path / "hf", tmp_path / "out", "--format", "torch_dist", "--dist-layers", "stacked")
    refused(result, 3, "cannot be stacked")
    failing.untouched(tmp_path / "out")


def test_a_dialect_that_has_none(dist: Path, tmp_path: Path) -> None:
    result = run("to-megatron", dist, tmp_path / "out", "--format", "torch_dist", "--dialect", "mindspeed")
    refused(result, 3, "mindspeed has no torch_dist", "mcore or te")


# What is not whole


def iteration(root: Path) -> Path:
    return root / "iter_0000001"


def changed_metadata(root: Path, change: Callable[[dict[str, DistTensor]], object]) -> None:
    found = read_metadata(iteration(root))
    tensors = dict(found.tensors)
    change(tensors)
    (iteration(root) / ".metadata").write_bytes(metadata_bytes(tensors, found.objects))


def without_a_chunk(tensors: dict[str, DistTensor]) -> None:
    name = "decoder.layers.mlp.linear_fc2.weight"
    tensors[name] = DistTensor(tensors[name].dtype, tensors[name].shape, tensors[name].chunks[1:])


def twice(tensors: dict[str, DistTensor]) -> None:
    name = "decoder.layers.mlp.linear_fc2.weight"
    first, second, *rest = tensors[name].chunks
    moved = Chunk(first.start, second.size, second.item)
    tensors[name] = DistTensor(tensors[name].dtype, tensors[name].shape, (first, moved, *rest))


def foreign(tensors: dict[str, DistTensor]) -> None:
    tensors["decoder.layers.adapter.weight"] = tensors["decoder.final_layernorm.weight"]


def another_shape(tensors: dict[str, DistTensor]) -> None:
    held = tensors["decoder.final_layernorm.weight"]
    (chunk,) = held.chunks
    small = (chunk.size[0] - 1,)
    tensors["decoder.final_layernorm.weight"] = DistTensor(held.dtype, small, (Chunk(chunk.start, small, chunk.item),))


def another_dtype(tensors: dict[str, DistTensor]) -> None:
    held = tensors["decoder.final_layernorm.weight"]
    tensors["decoder.final_layernorm.weight"] = DistTensor("BF16", held.shape, held.chunks)


def missing_tensor(tensors: dict[str, DistTensor]) -> None:
    del tensors["decoder.final_layernorm.weight"]


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 100)


def hostile(root: Path) -> None:
    data, _ = dump(Made(Global("posix", "system"), ("touch pwned",)))
    (iteration(root) / ".metadata").write_bytes(data)


def other_backend(root: Path) -> None:
    (iteration(root) / "metadata.json").write_text('{"sharded_backend": "zarr", "sharded_backend_version": 1}')


DAMAGE: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "a .distcp file is missing": (
        lambda root: (iteration(root) / "__1_0.distcp").unlink(),
        ("__1_0.distcp is missing", ".metadata"),
    ),
    "a .distcp file is cut short": (lambda root: truncate(iteration(root) / "__1_0.distcp"), ("__1_0.distcp", "truncated")),
    "no metadata.json": (lambda root: (iteration(root) / "metadata.json").unlink(), ("no metadata.json", "--iteration")),
    "no .metadata": (lambda root: (iteration(root) / ".metadata").unlink(), (".metadata", "cannot be read")),
    "another backend": (other_backend, ("'zarr'", "torch_dist")),
    "a pickle that runs code": (hostile, ("posix.system", "refused")),
    ".metadata cut short": (lambda root: truncate(iteration(root) / ".metadata"), (".metadata", "cannot be read")),
    "common.pt cut short": (lambda root: truncate(iteration(root) / "common.pt"), ("common.pt", "damaged")),
    "a chunk is missing": (lambda root: changed_metadata(root, without_a_chunk), ("linear_fc2.weight", "do not make it")),
    "a chunk is there twice": (lambda root: changed_metadata(root, twice), ("linear_fc2.weight", "do not make it")),
    "a tensor of no rule": (lambda root: changed_metadata(root, foreign), ("no rule", "adapter.weight")),
    "a tensor is missing": (lambda root: changed_metadata(root, missing_tensor), ("final_layernorm.weight",)),
    "another shape": (lambda root: changed_metadata(root, another_shape), ("final_layernorm.weight", "expected [64]")),
    "another dtype": (lambda root: changed_metadata(root, another_dtype), ("final_layernorm.weight", "expected BF16")),
}


@pytest.mark.compat(
    "refused", "any", "`torch_dist` with missing, doubled or foreign chunks, or cut short", "named, before anything is written"
)
@pytest.mark.parametrize("name", DAMAGE)
def test_damage(name: str, dist: Path, tmp_path: Path) -> None:
    damage, words = DAMAGE[name]
    damage(failing.copied(dist, tmp_path / "dist"))
    refused(run("to-hf", tmp_path / "dist", tmp_path / "out", cwd=tmp_path), 3, *words)
    failing.untouched(tmp_path / "out")
    assert not (tmp_path / "pwned").exists()


def with_state(dist: Path, root: Path) -> Path:
    """A copy with Adam's moments: the weights once more, under other names."""
    failing.copied(dist, root)

    def change(tensors: dict[str, DistTensor]) -> None:
        for kind in ("exp_avg", "exp_avg_sq"):
            tensors |= {f"optimizer.state.{kind}.{n}": t for n, t in tensors.items() if not n.startswith("optimizer")}

    changed_metadata(root, change)
    common = {"iteration": 1, "checkpoint_version": 3.0, "optimizer": {"optimizer": {"param_groups": [{"lr": 0.1, "step": 3}]}}}
    (iteration(root) / "common.pt").write_bytes(ArchiveLayout.plan(common).content())
    return root


def test_optimizer_state_goes_along(dist: Path, tmp_path: Path) -> None:
    source = with_state(dist, tmp_path / "dist")
    command = ("to-megatron", source, tmp_path / "out", "--format", "torch_dist", "--pp", 4)
    assert "not carried" not in failing.ok(run(*command)).err
    found, common = read_metadata(iteration(tmp_path / "out")).tensors, read_archive(iteration(tmp_path / "out") / "common.pt")
    assert sum(name.startswith("optimizer.state.exp_avg_sq.") for name in found) == len(found) // 3
    assert common["optimizer"] == {"optimizer": {"param_groups": [{"lr": 0.1, "step": 3}]}}
    arrays = dist_by_hand.read(iteration(tmp_path / "out"))
    assert all(np.array_equal(arrays[f"optimizer.state.exp_avg.{n}"], a) for n, a in arrays.items() if "optimizer" not in n)
    left = failing.ok(run(*command[:2], tmp_path / "left", *command[3:], "--no-optimizer"))
    assert "optimizer" not in left.err
    assert not any(name.startswith("optimizer") for name in read_metadata(iteration(tmp_path / "left")).tensors)


@pytest.mark.parametrize("fault", ["no common.pt", "one moment is missing", "a weight is frozen"])
def test_optimizer_state_that_is_not_whole(fault: str, dist: Path, tmp_path: Path) -> None:
    source = with_state(dist, tmp_path / "dist")
    frozen = "decoder.final_layernorm.weight"
    if fault == "no common.pt":
        (iteration(source) / "common.pt").unlink()
        said = "not carried: common.pt is missing"
    elif fault == "one moment is missing":
        changed_metadata(source, lambda tensors: tensors.pop(f"optimizer.state.exp_avg.{frozen}"))
        said = f"not carried: it is not whole: {frozen} has no exp_avg"
    else:
        changed_metadata(source, lambda t: [t.pop(f"optimizer.state.{kind}.{frozen}") for kind in ("exp_avg", "exp_avg_sq")])
        said = f"1 tensors of the model have no optimizer state (were they frozen?): {frozen}"
    result = failing.ok(run("to-megatron", source, tmp_path / "out", "--format", "torch_dist", "--pp", 2))
    assert said in result.err
    carried = any(name.startswith("optimizer") for name in read_metadata(iteration(tmp_path / "out")).tensors)
    assert carried == (fault == "a weight is frozen")


def test_a_save_that_was_stopped_is_passed_over_on_demand(dist: Path, tmp_path: Path) -> None:
    root = failing.copied(dist, tmp_path / "dist")
    (root / "iter_0000002").mkdir()
    shutil.copy(iteration(root) / ".metadata", root / "iter_0000002")
    (root / "latest_checkpointed_iteration.txt").write_text("2")
    refused(run("inspect", root), 3, "no metadata.json", "--iteration")
    failing.ok(run("inspect", root, "--iteration", 1))


def test_nothing_says_which_model(dist: Path, tmp_path: Path) -> None:
    root = failing.copied(dist, tmp_path / "dist")
    shutil.rmtree(root / "hf")
    (root / "manifest.json").unlink()
    common = iteration(root) / "common.pt"
    common.write_bytes(ArchiveLayout.plan({"iteration": 1}).content())
    refused(run("inspect", root), 3, "nothing says which model", "--family")
    text = refused(run("inspect", root, "--family", "llama"), 3, "--set num_layers=...")
    assert "--set hidden_size=..." in text
