"""A recipe resolved against its model and its ranks."""

from __future__ import annotations

import json
import tempfile
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import EXPERTS, FAMILIES, make_job, make_recipe, model_dir
from jumar.schema.errors import Exit, ToolError
from jumar.schema.manifest import manifest_text
from jumar.schema.registry import family_of
from jumar.train_core.checks import check
from jumar.train_core.estimate import ranks
from jumar.train_core.features import settings as megatron_settings
from jumar.train_core.groups import rank_groups
from jumar.train_core.job import Job, resolve
from jumar.train_core.recipe import Load, Model, Parallel, Recipe


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read(tmp_path: Path, family: str) -> None:
    job = make_job(tmp_path, family)
    assert job.spec == family_of(family).spec(family_of(family).tiny)
    assert (job.layout.dp, job.layout.etp, job.sequence_parallel, job.micro_batches) == (1, 1, False, 8)


def test_sizes_that_follow(tmp_path: Path) -> None:
    sizes = {"tp": 2, "pp": 2, "cp": 1, "ep": 2}
    job = make_job(tmp_path, "qwen3_moe", world=16, parallel=sizes, train__micro_batch_size=2, model__vocab_divisible_by=8)
    assert (job.layout.dp, job.expert_dp, job.micro_batches) == (4, 4, 1)
    assert job.sequence_parallel  # since tp > 1
    assert job.padded_vocab == 144  # 131 up to a multiple of 8 * 2
    assert job.tokens_per_step == 8 * 32


def test_sequence_parallelism_can_be_left_off(tmp_path: Path) -> None:
    assert not make_job(tmp_path, world=2, parallel__tp=2, parallel__sequence_parallel=False).sequence_parallel


def test_changes_of_the_config(tmp_path: Path) -> None:
    job = make_job(tmp_path, model__config={"num_hidden_layers": 6, "rope_theta": 5e5})
    assert (job.spec.num_layers, job.spec.rope.base, job.config["rope_theta"]) == (6, 5e5, 5e5)


def test_a_megatron_directory(tmp_path: Path) -> None:
    hf = model_dir(tmp_path / "mcore/hf")
    for path in (tmp_path / "mcore", tmp_path / "mcore/iter_0000010"):
        path.mkdir(exist_ok=True)
        assert resolve(Recipe(load=Load(path=path)), world=1, device="cpu").hf == hf


def test_a_megatron_directory_from_within_and_by_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = model_dir(tmp_path / "mcore/hf")
    (tmp_path / "mcore/iter_0000010/mp_rank_00").mkdir(parents=True)
    (tmp_path / "best").symlink_to(tmp_path / "mcore/iter_0000010")
    for cwd, path in (("mcore/iter_0000010", "."), ("mcore/iter_0000010/mp_rank_00", ".."), (".", "best")):
        monkeypatch.chdir(tmp_path / cwd)
        found = resolve(Recipe(load=Load(path=Path(path))), world=1, device="cpu").hf
        assert found is not None
        assert found.samefile(hf), path


def test_a_model_known_by_its_manifest(tmp_path: Path) -> None:
    spec = family_of("qwen2").spec(family_of("qwen2").tiny)
    text = manifest_text(tool="jumar-convert", version="0", model={"model_type": "qwen2", "spec": spec.to_dict()})
    (tmp_path / "manifest.json").write_text(text)
    job = resolve(Recipe(model=Model(path=tmp_path)), world=1, device="cpu")
    assert (job.spec, job.hf) == (spec, None)


def test_model_path_goes_before_load_path(tmp_path: Path) -> None:
    first, second = model_dir(tmp_path / "a"), model_dir(tmp_path / "b", "gpt2")
    job = resolve(Recipe(model=Model(path=first), load=Load(path=second)), world=1, device="cpu")
    assert job.family.model_type == "llama"


@pytest.mark.parametrize(
    "sets, world, message, hint",
    [
        ({"parallel__tp": 2}, 1, "tp=2 x pp=1 x cp=1 needs 2 ranks or a multiple of them, there is 1", "--nproc 2"),
        ({"parallel__tp": 2}, 3, "3 ranks do not fit tp=2 x pp=1 x cp=1 = 2", "--nproc 4"),
        ({"parallel__tp": 0}, 1, "parallel.tp is 0", "set parallel.tp=1"),
        ({"parallel__pp": 3}, 3, "4 layers cannot be shared out evenly over pp=3", "parallel.layers_per_stage"),
        ({"parallel__pp": 2, "parallel__layers_per_stage": [1, 2]}, 2, "adds up to 3, the model has 4 layers", "add up to 4"),
        ({"parallel__pp": 2, "parallel__layers_per_stage": [4]}, 2, "layers_per_stage has 1 numbers for pp=2", "one number"),
        ({"parallel__vpp": 2}, 1, "vpp=2 needs more than one pipeline stage", "parallel.pp"),
        ({"parallel__pp": 2, "parallel__noop_layers": [9, 1]}, 2, "noop_layers [9]", "number the slots"),
        ({"train__global_batch_size": 9}, 2, "9 is not a multiple of micro_batch_size 1 x dp=2 = 2", "global_batch_size=8"),
        ({"train__micro_batch_size": 0}, 1, "train.micro_batch_size is 0", "set train.micro_batch_size=1"),
        ({"model__config": {"hidden_sise": 3}}, 1, "hidden_sise", "model.config: hidden_sise"),
        ({"model__config": {"attention_dropout": 0.1}}, 1, "no effect there", "set model.attention_dropout"),
        ({"model__config": {"model_type": "nobody"}}, 1, "model_type 'nobody' is not known", "known: "),
        ({"model__vocab_divisible_by": 0}, 1, "vocab_divisible_by is 0", "vocab_divisible_by=1"),
        ({"model__path": "meta/llama"}, 1, "meta/llama does not exist (hub names are not fetched", "on this machine"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, sets: dict[str, Any], world: int, message: str, hint: str) -> None:
    with pytest.raises(ToolError) as fault:
        make_job(tmp_path, world=world, **sets)
    assert message in fault.value.message
    assert hint in (fault.value.hint or "")
    assert "--pp" not in str(fault.value)
    assert fault.value.code == Exit.INPUT


def test_experts_need_their_share_of_the_world(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="etp=1 x ep=4 x pp=1 needs 4 ranks"):
        make_job(tmp_path, "mixtral", world=2, parallel__ep=4)


def test_no_model_is_a_fault_of_the_recipe() -> None:
    with pytest.raises(ToolError, match="names no model") as fault:
        resolve(Recipe(), world=1, device="cpu")
    assert fault.value.code == Exit.USAGE


@pytest.mark.parametrize("text, message", [("{", "not JSON"), ("[]", "a list"), ('{"model_type": 3}', "no model_type")])
def test_a_damaged_config(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ToolError, match=message):
        resolve(Recipe(model=Model(path=tmp_path)), world=1, device="cpu")


def test_an_empty_directory_names_the_flag(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"holds no config\.json") as fault:
        resolve(Recipe(load=Load(path=tmp_path)), world=1, device="cpu")
    assert "model.path" in (fault.value.hint or "")


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    model_dir(tmp_path, quantization_config={"quant_method": "gptq"})
    with pytest.raises(ToolError, match="quantised \\(gptq\\)"):
        resolve(Recipe(model=Model(path=tmp_path)), world=1, device="cpu")


SIZES = st.sampled_from([0, 1, 1, 1, 2, 2, 3, 4, 8])
LAYOUTS = st.fixed_dictionaries(
    {
        **dict.fromkeys(("tp", "pp", "vpp", "cp", "ep"), SIZES),
        "etp": st.one_of(st.none(), SIZES),
        "layers_per_stage": st.one_of(st.none(), st.none(), st.lists(st.integers(0, 4), min_size=1, max_size=3)),
        "noop_layers": st.one_of(st.just([]), st.just([]), st.lists(st.integers(-1, 6), max_size=3)),
        "sequence_parallel": st.sampled_from([None, None, True, False]),
    }
)
MODEL = Path(tempfile.mkdtemp(prefix="jumar-test-job-"))
for _family in FAMILIES:
    model_dir(MODEL / _family, _family)


@settings(max_examples=300, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    world=st.sampled_from([1, 2, 3, 4, 6, 8, 16]),
    layout=LAYOUTS,
    batch=st.integers(0, 17),
    micro=st.integers(0, 3),
    seq_len=st.sampled_from([1, 8, 24, 32]),
)
def test_any_recipe_fits_exactly_or_is_refused(
    family: str, world: int, layout: dict[str, Any], batch: int, micro: int, seq_len: int
) -> None:
    """Never another exception; and what resolves and has no faults can be told in whole numbers to every rank."""
    recipe = _recipe(MODEL / family, layout, batch, micro, seq_len)
    job = resolved(recipe, world)
    if job is None:
        return
    used = job.layout
    assert used.tp * used.pp * used.cp * used.dp == world
    assert used.expert_tp * used.ep * used.pp * job.expert_dp == world
    assert job.micro_batches * recipe.train.micro_batch_size * used.dp == batch
    for groups in rank_groups(job).values():
        assert sorted(rank for group in groups for rank in group) == list(range(world))
    slots = [slot for chunk in job.chunks for slot in chunk.slots if slot is not None]
    assert sorted(slots) == list(range(job.spec.num_layers))
    problems = [problem for problem in check(job) if not problem.warning]
    assert all(problem.code in (Exit.USAGE, Exit.INPUT) for problem in problems)
    if all("data" in problem.message for problem in problems):
        megatron_settings(job)
        assert prod(rank.total_bytes for rank in ranks(job)) > 0


def resolved(recipe: Recipe, world: int) -> Job | None:
    """The job, or None where it is refused with exit code 2 or 3."""
    try:
        return resolve(recipe, world=world, device="cpu")
    except ToolError as fault:
        if fault.code not in (Exit.USAGE, Exit.INPUT):
            raise
        return None


def _recipe(model: Path, layout: dict[str, Any], batch: int, micro: int, seq_len: int) -> Recipe:
    from jumar.train_core.recipe import Data, Train

    parts = {name: tuple(value) if isinstance(value, list) else value for name, value in layout.items()}
    train = Train(steps=3, global_batch_size=batch, micro_batch_size=micro)
    return Recipe(model=Model(path=model), data=Data(seq_len=seq_len), parallel=Parallel(**parts), train=train)


@pytest.mark.parametrize("family", EXPERTS)
def test_a_job_does_not_change_its_recipe(tmp_path: Path, family: str) -> None:
    recipe = make_recipe(tmp_path, family)
    before = repr(recipe)
    assert resolve(recipe, world=1, device="cpu").recipe is recipe
    assert repr(recipe) == before
    assert json.loads((tmp_path / "hf/config.json").read_text()) == family_of(family).tiny
