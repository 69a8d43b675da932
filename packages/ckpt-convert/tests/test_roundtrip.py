"""Every family under every layout: Hugging Face to Megatron and back, and from one layout to another, byte for byte.

What does not fit must be refused, and what fits must not: `fits` says from plain numbers which is which.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import by_hand
import tiny_hf
from by_hand import Wanted
from drawn import layout_of
from jumar.ckpt_convert import Checkpoint, Plan, open_checkpoint, plan_hf, plan_megatron, run_plan, slices_for, verify
from jumar.ckpt_convert.formats.archive import read_archive
from jumar.ckpt_convert.gather import record_array
from jumar.ckpt_convert.plan import compose
from jumar.schema.errors import Exit, ToolError
from jumar.schema.registry import families

pytestmark = pytest.mark.matrix

LAYERS = 4
PIPELINES: dict[str, dict[str, Any]] = {
    "pp1": {},
    "pp2": {"pp": 2},
    "pp4": {"pp": 4},
    "pp3": {"pp": 3},
    "vpp2": {"pp": 2, "vpp": 2},
    "pp4 vpp2": {"pp": 4, "vpp": 2},
    "uneven": {"pp": 2, "stages": (3, 1)},
    "uneven pp3": {"pp": 3, "stages": (1, 2, 1)},
    "no-op at a border": {"pp": 2, "noop": (2, 3)},
    "no-op first": {"pp": 3, "noop": (0, 5)},
    "no-op stage": {"pp": 3, "noop": (4, 5)},
    "no-op chunks": {"pp": 2, "vpp": 3, "noop": (1, 4)},
    "dualpipev": {"pp": 2, "vpp": 2, "dualpipev": True},
    "dualpipev no-op": {"pp": 4, "vpp": 2, "noop": (0, 2, 4, 7), "dualpipev": True},
    "dualpipev pp1": {"pp": 1, "vpp": 2, "dualpipev": True},
}
EXPERTS: dict[str, dict[str, Any]] = {
    "ep1": {},
    "ep2": {"ep": 2},
    "ep4": {"ep": 4},
    "ep3": {"ep": 3},
    "etp1": {"etp": 1},
    "ep2 etp1": {"ep": 2, "etp": 1},
    "ep4 etp1": {"ep": 4, "etp": 1},
    "ep2 etp2": {"ep": 2, "etp": 2},
    "etp4": {"etp": 4},
    "extend": {"extend": True},
    "ep2 extend": {"ep": 2, "extend": True},
}
AXES: dict[str, tuple[Any, ...]] = {
    "tp": (1, 2, 4),
    "pipeline": tuple(PIPELINES),
    "experts": tuple(EXPERTS),
    "grouped": (False, True),
    "dialect": ("mcore", "te", "mindspeed"),
    "divisible_by": (1, 40),  # 40: at TP 4 a rank of nothing but padding
}
MOE = [name for name, family in families().items() if family.spec(family.tiny).moe]
Combo = tuple[Any, ...]  # one value for each axis


def wanted(combo: Combo) -> Wanted:
    chosen = dict(zip(AXES, combo, strict=True))
    return Wanted(**PIPELINES[chosen.pop("pipeline")], **EXPERTS[chosen.pop("experts")], **chosen)


def fits(config: Mapping[str, Any], want: Wanted) -> bool:
    """Whether a tiny model can be laid out so."""
    model_type, tp = config["model_type"], want.tp
    num_experts = next((config[k] for k in ("num_experts", "num_local_experts", "n_routed_experts") if k in config), 0)
    if want.dialect not in families()[model_type].dialects:
        return False
    if want.stages is None and (LAYERS + len(want.noop)) % (want.pp * want.vpp):
        return False
    if not num_experts:
        plain = want.ep == 1 and not want.extend and not want.grouped and want.etp in (None, 1, tp)
        shared_out = {"gpt2": ["n_head"], "mamba2": ["n_groups"]}.get(model_type, ["num_key_value_heads", "intermediate_size"])
        shared_out += ["n_groups"] if model_type == "nemotron_h" else []
        return plain and all(config[k] % tp == 0 for k in shared_out)
    ranks = want.ep * (tp if want.extend else 1)
    etp = 1 if want.extend else want.etp or tp
    ffn = config.get("moe_intermediate_size", config["intermediate_size"])
    return num_experts % ranks == 0 and ffn % etp == 0 and by_hand.expert_files(want, moe=True) is not None


def chosen_few(model_type: str) -> list[Combo]:
    """Layouts among which every two values of two axes meet that can, for each family.

    Pipelines meet experts over all families together: that would be too many otherwise.
    """
    config, shuffle = families()[model_type].tiny, random.Random(model_type)
    every = [c for c in itertools.product(*AXES.values()) if fits(config, wanted(c))]
    shuffle.shuffle(every)
    mine = {c: pairs(c, model_type) for c in every}
    left, few = set().union(*mine.values()), []
    while left:
        some = list(itertools.islice((c for c in every if mine[c] & left), 40))
        few.append(max(some, key=lambda c: len(mine[c] & left)))
        left -= mine[few[-1]]
    return few


def pairs(combo: Combo, model_type: str) -> set[tuple[int, Any, int, Any]]:
    found = set()
    for (i, a), (j, b) in itertools.combinations(enumerate(combo), 2):
        if model_type in MOE and (i, j) == (1, 2):
            turn = AXES["pipeline"].index(a) + AXES["experts"].index(b)
            if turn % len(MOE) != MOE.index(model_type):
                continue
        found.add((i, a, j, b))
    return found


def a_few_that_do_not_fit(model_type: str) -> list[Combo]:
    config = families()[model_type].tiny
    none = [c for c in itertools.product(*AXES.values()) if not fits(config, wanted(c))]
    return random.Random(model_type).sample(none, 150)


@dataclass
class Source:
    """A tiny model on disk, and what must come back."""

    checkpoint: Checkpoint
    tensors: dict[str, tuple[str, list[int], bytes]]
    files: dict[str, bytes]

    @property
    def config(self) -> Mapping[str, Any]:
        return self.checkpoint.family.tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    made: dict[str, Source] = {}

    def make(model_type: str) -> Source:
        if model_type not in made:
            config = families()[model_type].tiny | {"torch_dtype": "bfloat16"}
            home = tmp_path_factory.mktemp(model_type) / "hf"
            tiny_hf.write_hf(home, config, tiny_hf.random_tensors(config), shards=2)
            made[model_type] = Source(open_checkpoint(home), tiny_hf.read_hf(home), small_files(home))
        return made[model_type]

    return make


@pytest.fixture(scope="module", autouse=True)
def _disk_without_waiting() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        patch.setattr(os, "fdatasync", lambda fd: None)
        yield


def small_files(home: Path) -> dict[str, bytes]:
    """All that is neither weights nor index nor manifest."""
    names = {p.name for p in home.iterdir() if p.is_file()} - {"manifest.json", "model.safetensors.index.json"}
    return {n: (home / n).read_bytes() for n in names if not n.endswith(".safetensors")}


def plan(checkpoint: Checkpoint, want: Wanted) -> Plan:
    return plan_megatron(
        checkpoint,
        layout_of(want),
        dialect=want.dialect,
        expert_layout="grouped" if want.grouped else "sequential",
        vocab_divisible_by=want.divisible_by,
        mla_mm_split=want.mm_split,
    )


def everything(home: Path) -> dict[str, bytes]:
    """Path -> bytes of all files of a Megatron directory but its manifest, which says where it came from."""
    files = (p for p in home.rglob("*") if p.is_file() and p != home / "manifest.json")
    return {str(p.relative_to(home)): p.read_bytes() for p in files}


def there_and_back(source: Source, combos: list[Combo], home: Path) -> tuple[int, int]:
    """Converts each that fits: from Hugging Face and back, and from the layout before it. Counts (converted, refused)."""
    before: Checkpoint | None = None
    converted = refused = 0
    for number, combo in enumerate(combos):
        want = wanted(combo)
        if not fits(source.config, want):
            with pytest.raises(ToolError) as caught:
                plan(source.checkpoint, want)
            assert caught.value.code == Exit.INPUT, want
            assert caught.value.hint, want
            refused += 1
            continue
        here = home / str(number)
        run_plan(plan(source.checkpoint, want), here / "mcore")
        checkpoint = open_checkpoint(here / "mcore")
        run_plan(plan_hf(checkpoint), here / "back")
        assert tiny_hf.read_hf(here / "back") == source.tensors, want
        assert small_files(here / "back") == source.files, want
        direct = everything(here / "mcore")
        assert {n.removeprefix("hf/"): b for n, b in direct.items() if n.startswith("hf/")} == source.files, want
        if before is not None:
            run_plan(plan(before, want), here / "again")
            assert everything(here / "again") == direct, f"{before.layout} -> {want}"
            shutil.rmtree(before.paths[0].parent)
        before, converted = checkpoint, converted + 1
    return converted, refused


@pytest.mark.parametrize("model_type", families())
def test_a_sample_of_layouts(
    model_type: str, source: Callable[[str], Source], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Every feature with every other."""
    counts = there_and_back(source(model_type), chosen_few(model_type) + a_few_that_do_not_fit(model_type), tmp_path)
    for name, count in zip(("converted", "refused"), counts, strict=True):
        record_property(name, count)


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("model_type", families())
def test_all_layouts(
    model_type: str,
    pipeline: str,
    source: Callable[[str], Source],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """The full product, with one way to pad the vocabulary and the other in turn."""
    *others, paddings = AXES.values()
    combos = [(*c, paddings[i % 2]) for i, c in enumerate(itertools.product(*others)) if c[1] == pipeline]
    random.Random(0).shuffle(combos)  # so that from one layout to the next more than one thing changes
    counts = there_and_back(source(model_type), combos, tmp_path)
    for name, count in zip(("converted", "refused"), counts, strict=True):
        record_property(name, count)


# ---- what a checkpoint can do without, and what it may carry

SOME = ["pp2", "vpp2", "uneven", "no-op at a border", "dualpipev"]


@pytest.mark.parametrize("without", [("hf",), ("hf", "manifest.json")], ids=["manifest", "args"])
@pytest.mark.parametrize("model_type", families())
def test_shards_say_themselves_what_they_are(
    model_type: str, without: tuple[str, ...], source: Callable[[str], Source], tmp_path: Path
) -> None:
    """Without the Hugging Face files, by the manifest; without that, by the arguments in the shards."""
    family, own = families()[model_type], source(model_type)
    for number, (pipeline, dialect) in enumerate(zip(SOME, itertools.cycle(family.dialects), strict=False)):
        tp = 1 if dialect == "mindspeed-v1" else 2  # its latent attention has no other
        spread = {"ep": 2, "etp": 1 if number % 2 and tp > 1 else None, "grouped": number > 2} if model_type in MOE else {}
        want = Wanted(tp=tp, divisible_by=8, dialect=dialect, **PIPELINES[pipeline], **spread)
        home = tmp_path / str(number)
        run_plan(plan(own.checkpoint, want), home / "mcore")
        for name in without:
            remove(home / "mcore" / name)
        checkpoint = open_checkpoint(home / "mcore")
        assert checkpoint.spec == own.checkpoint.spec, want
        assert checkpoint.layout == layout_of(want), want
        run_plan(plan_hf(checkpoint), home / "back")
        assert tiny_hf.read_hf(home / "back") == own.tensors, want
        assert family.spec(json.loads((home / "back" / "config.json").read_text())) == own.checkpoint.spec


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_names_without_the_prefix_come_back_without_it(tmp_path: Path) -> None:
    """As GPT-2 was published: `h.0.` and not `transformer.h.0.`, and buffers of masks that are no weights."""
    config = dict(families()["gpt2"].tiny)
    tensors = {n.removeprefix("transformer."): a for n, a in tiny_hf.random_tensors(config).items()}
    masks = {f"h.{i}.attn.bias": np.ones((1, 1, 4, 4), np.uint16) for i in range(LAYERS)}
    checkpoint = open_checkpoint(tiny_hf.write_hf(tmp_path / "hf", config, tensors | masks))
    assert len(checkpoint.dropped) == LAYERS
    run_plan(plan(checkpoint, Wanted(tp=2, pp=2)), tmp_path / "mcore")
    run_plan(plan(open_checkpoint(tmp_path / "mcore"), Wanted(tp=4)), tmp_path / "again")
    run_plan(plan_hf(open_checkpoint(tmp_path / "again")), tmp_path / "back")
    tiny_hf.write_hf(tmp_path / "expected", config, tensors)
    assert tiny_hf.read_hf(tmp_path / "back") == tiny_hf.read_hf(tmp_path / "expected")


@pytest.mark.parametrize(
    "model_type, copies",
    [
        ("qwen2", {"lm_head.weight": "model.embed_tokens.weight"}),
        ("gpt2", {"lm_head.weight": "transformer.wte.weight"}),
        (
            "deepseek_v3",
            {
                "model.layers.4.embed_tokens.weight": "model.embed_tokens.weight",
                "model.layers.4.shared_head.head.weight": "lm_head.weight",
            },
        ),
    ],
)
def test_tensors_that_are_there_twice_come_back_twice(model_type: str, copies: dict[str, str], tmp_path: Path) -> None:
    config = dict(families()[model_type].tiny)
    tensors = tiny_hf.random_tensors(config)
    tensors |= {name: tensors[original] for name, original in copies.items()}
    hf = tiny_hf.write_hf(tmp_path / "hf", config, tensors)
    run_plan(plan(open_checkpoint(hf), Wanted(tp=2, pp=2)), tmp_path / "mcore")
    run_plan(plan(open_checkpoint(tmp_path / "mcore"), Wanted(pp=4)), tmp_path / "again")
    run_plan(plan_hf(open_checkpoint(tmp_path / "again")), tmp_path / "back")
    assert tiny_hf.read_hf(tmp_path / "back") == tiny_hf.read_hf(hf)


@pytest.mark.parametrize("model_type", families())
def test_tensors_of_several_dtypes_keep_them(model_type: str, tmp_path: Path) -> None:
    """Vectors in float32 beside matrices in bfloat16. What is joined must be alike: biases of q, k and v are."""
    config = dict(families()[model_type].tiny)
    tensors = {n: a if a.ndim > 1 else a.astype(np.uint32) * 65539 for n, a in tiny_hf.random_tensors(config).items()}
    hf = tiny_hf.write_hf(tmp_path / "hf", config, tensors)
    run_plan(plan(open_checkpoint(hf), Wanted(tp=2, pp=2)), tmp_path / "mcore")
    run_plan(plan_hf(open_checkpoint(tmp_path / "mcore")), tmp_path / "back")
    assert {dtype for dtype, _, _ in tiny_hf.read_hf(hf).values()} == {"BF16", "F32"}
    assert tiny_hf.read_hf(tmp_path / "back") == tiny_hf.read_hf(hf)


def test_parts_of_different_dtypes_are_not_joined(tmp_path: Path) -> None:
    config = dict(families()["llama"].tiny)
    tensors = tiny_hf.random_tensors(config)
    tensors["model.layers.2.mlp.up_proj.weight"] = tensors["model.layers.2.mlp.up_proj.weight"].astype(np.uint32)
    checkpoint = open_checkpoint(tiny_hf.write_hf(tmp_path / "hf", config, tensors))
    with pytest.raises(ToolError, match=r"linear_fc1.* joins tensors of different dtypes \(BF16, F32\)") as caught:
        plan(checkpoint, Wanted())
    assert "--dtype" in (caught.value.hint or "")


def test_one_iteration_is_a_source_too(source: Callable[[str], Source], tmp_path: Path) -> None:
    """The root, iter_*, and a directory of shards under any name; tracker and folder of the target are the same."""
    own = source("llama")
    run_plan(plan(own.checkpoint, Wanted(pp=2)), tmp_path / "mcore")
    shutil.copytree(tmp_path / "mcore" / "iter_0000001", tmp_path / "shards of a friend")
    shutil.copytree(tmp_path / "mcore" / "hf", tmp_path / "shards of a friend" / "hf")
    run_plan(plan(own.checkpoint, Wanted(tp=2)), tmp_path / "direct")
    for number, path in enumerate(("mcore", "mcore/iter_0000001", "shards of a friend")):
        run_plan(plan(open_checkpoint(tmp_path / path), Wanted(tp=2)), tmp_path / str(number))
        assert everything(tmp_path / str(number)) == everything(tmp_path / "direct"), path


def test_nodes_that_kept_their_own_ranks_are_one_checkpoint(source: Callable[[str], Source], tmp_path: Path) -> None:
    own = source("mixtral")
    run_plan(plan(own.checkpoint, Wanted(tp=2, pp=2, ep=2)), tmp_path / "mcore")
    nodes = [tmp_path / f"node{i}" for i in range(3)]
    shutil.copytree(tmp_path / "mcore", nodes[0], ignore=shutil.ignore_patterns("mp_rank_*"))
    for i, shard in enumerate(sorted((tmp_path / "mcore" / "iter_0000001").iterdir())):
        shutil.copytree(shard, nodes[i % 3] / "iter_0000001" / shard.name)
    run_plan(plan_hf(open_checkpoint(*nodes)), tmp_path / "back")
    assert tiny_hf.read_hf(tmp_path / "back") == own.tensors
    assert small_files(tmp_path / "back") == own.files


@pytest.mark.parametrize("model_type", ["gpt2", "deepseek_v3", "mamba2"])
def test_one_flipped_bit_is_found_and_named(model_type: str, source: Callable[[str], Source], tmp_path: Path) -> None:
    """In each tensor of one shard in turn: `verify` names the HF tensors of it, and nothing else."""
    own = source(model_type)
    run_plan(plan(own.checkpoint, Wanted(tp=2, pp=2, divisible_by=8)), tmp_path / "mcore")
    clean = verify(own.checkpoint, open_checkpoint(tmp_path / "mcore"))
    assert clean.same
    assert clean.equal == len(own.tensors)
    shard = tmp_path / "mcore" / "iter_0000001" / "mp_rank_01_001" / "model_optim_rng.pt"
    content, tree = shard.read_bytes(), read_archive(shard)
    assert isinstance(tree, dict)
    placement = open_checkpoint(tmp_path / "mcore").placement
    assert placement
    last = next(s for s in placement.shards if (s.tp, s.pp) == (1, 1))
    for placed in placement.tensors(last):
        ref = tree["model"][placed.name]
        changed = bytearray(content)
        changed[ref.offset] ^= 1
        shard.write_bytes(changed)
        report = verify(own.checkpoint, open_checkpoint(tmp_path / "mcore"))
        assert not report.same, placed.name
        assert {d.name for d in report.differences} <= set(placed.sources), placed.name


@settings(max_examples=60)
@given(data=st.data())
def test_any_part_of_any_tensor_can_be_read(source: Callable[[str], Source], data: st.DataObject) -> None:
    """`Checkpoint.array` takes slices as numpy does, whatever files and ranks they lie in."""
    opened = data.draw(st.sampled_from(OPENED))
    if opened not in CHECKPOINTS:
        model_type, want = opened
        home = source(model_type).checkpoint.paths[0].parent / str(len(CHECKPOINTS))
        run_plan(plan(source(model_type).checkpoint, want), home)
        CHECKPOINTS[opened] = open_checkpoint(home)
    original = source(opened[0]).checkpoint
    name = data.draw(st.sampled_from(list(original.tensors)))
    index = tuple(slice(*sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2)))) for n in original.tensors[name])
    found = CHECKPOINTS[opened].array(name, index)
    expected = original.array(name)[index]
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


CHECKPOINTS: dict[tuple[str, Wanted], Checkpoint] = {}
OPENED = [
    ("llama", Wanted(tp=4, pp=2, divisible_by=40)),
    ("gpt2", Wanted(tp=2, pp=2, vpp=2)),
    ("mamba2", Wanted(tp=4)),
    ("qwen3_moe", Wanted(tp=2, ep=2, etp=1, grouped=True)),
    ("deepseek_v2", Wanted(tp=2, ep=2, dialect="mindspeed")),
]


@pytest.mark.parametrize("model_type", families())
def test_a_trainer_can_read_what_its_rank_holds(model_type: str, source: Callable[[str], Source], tmp_path: Path) -> None:
    """`slices_for` names, from any checkpoint, the tensors that a conversion to that layout would write."""
    own, want = source(model_type), Wanted(tp=2, pp=2, vpp=2, ep=2 if model_type in MOE else 1)
    run_plan(plan(own.checkpoint, want), tmp_path / "mcore")
    written = tiny_hf.read_megatron(tmp_path / "mcore" / "iter_0000001")
    layout = layout_of(want)
    for rank in layout.shards(moe=model_type in MOE):
        found: dict[str, tiny_hf.Arrays] = {"model0": {}, "model1": {}}
        for placed in slices_for(own.checkpoint.spec, layout, rank):
            record = compose(placed.name, placed.geometry, placed.sources, own.checkpoint.sources, None)
            array = record_array(record).reshape(record.stored)
            found[placed.key][placed.name] = array.view(tiny_hf.BITS[record.dtype])
        assert {k: sorted(s) for k, s in found.items()} == {k: sorted(s) for k, s in written[rank.name].items()}
        assert all((array == written[rank.name][k][n]).all() for k, state in found.items() for n, array in state.items())


@pytest.mark.parametrize("model_type", ["llama", "deepseek_v3", "mamba2"])
def test_a_cast_rounds_and_leaves_what_megatron_keeps(model_type: str, tmp_path: Path) -> None:
    """float32 to bfloat16, to nearest, ties to even; router biases and Mamba's A_log and D stay; config.json says so."""
    config, random_ = dict(families()[model_type].tiny), np.random.default_rng(0)
    shapes = {n: a.shape for n, a in tiny_hf.random_tensors(config).items()}
    tensors = {n: random_.standard_normal(shape, np.float32).view(np.uint32) for n, shape in shapes.items()}
    hf = tiny_hf.write_hf(tmp_path / "hf", config, tensors)
    run_plan(plan_megatron(open_checkpoint(hf), layout_of(Wanted(tp=2, pp=2)), dtype="bf16"), tmp_path / "mcore")
    run_plan(plan_hf(open_checkpoint(tmp_path / "mcore")), tmp_path / "back")
    run_plan(plan_hf(open_checkpoint(hf), dtype="bf16"), tmp_path / "direct")
    mixer = ["A_log", ".D"]
    kept = tuple({"deepseek_v3": ["e_score_correction_bias"], "mamba2": mixer, "nemotron_h": mixer}.get(model_type, ()))
    halves = {n: a if n.endswith(kept or ("?",)) else rounded(a) for n, a in tensors.items()}
    tiny_hf.write_hf(tmp_path / "expected", config, halves)
    for made in ("back", "direct"):
        assert tiny_hf.read_hf(tmp_path / made) == tiny_hf.read_hf(tmp_path / "expected")
        assert json.loads((tmp_path / made / "config.json").read_text()) == config | {"torch_dtype": "bfloat16"}


def rounded(bits: np.ndarray) -> np.ndarray:
    """The upper half of float32 bits, after adding just under half of it (half, where the last bit kept is odd)."""
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
