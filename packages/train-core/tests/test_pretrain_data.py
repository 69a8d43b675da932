"""Pretraining data: the samples that megatron-core would draw, and index maps that no accident makes wrong."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from data_jobs import make_data, make_job
from data_ranks import run_all
from jumar.schema.errors import Exit, ToolError
from jumar.schema.indexed import IndexedWriter
from jumar.train_core.data import pretrain
from jumar.train_core.data.blends import weights_of
from jumar.train_core.data.end import eod_id
from jumar.train_core.data.pretrain import datasets
from jumar.train_core.recipe import Data, Source

SEQ_LEN = 16


def tokens_of(dataset: Any) -> list[list[int]]:
    return [dataset[i]["tokens"].tolist() for i in range(len(dataset))]


def maps(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.npy"))


# --- samples


class Tokenizer:
    eod, vocab_size = 0, None
    unique_identifiers = {"class": "theirs"}  # noqa: RUF012  # as megatron-core has it


def theirs(folder: Path, sizes: list[int], seed: int = 1234, **given: Any) -> list[Any]:
    """What megatron-core itself makes of the same, in one process."""
    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=SEQ_LEN,
        path_to_cache=str(folder),
        tokenizer=Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        **given,
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()


@pytest.fixture
def alone(tmp_path: Path) -> Any:
    """megatron-core's blends ask for the rank."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("steps", [3, 30])  # less than an epoch, and several
@pytest.mark.parametrize("split", [None, (8, 1, 1)])
@pytest.mark.parametrize("weights", [(), (3, 1)])
def test_the_same_samples_as_megatron(tmp_path: Path, weights: tuple[float, ...], split: Any, steps: int) -> None:
    prefixes = [make_data(tmp_path / "data" / name, 90, first=1000 * n, seed=n) for n, name in enumerate("ab")]
    train = tuple(Source(prefix=p, weight=w) for p, w in zip(prefixes, weights, strict=True)) if weights else prefixes[0]
    data = Data(train=train, split=split, seq_len=SEQ_LEN, cache=tmp_path / "ours")
    ours = datasets(make_job(tmp_path, data, steps=steps, eval_every=2, eval_batches=1))
    blend = ([str(p) for p in prefixes], list(weights)) if weights else ([str(prefixes[0])], None)
    given = {"blend": blend, "split": "8,1,1"} if split else {"blend_per_split": [blend, None, None]}
    wanted = theirs(tmp_path / "theirs", [8 * steps, 8 if split else 0, 8 if split else 0], **given)
    for mine, other in zip((ours.train, ours.valid, ours.test), wanted, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            assert tokens_of(mine) == tokens_of(other)
    assert len(ours.train) >= 8 * steps


def test_separate_data_for_validation_and_test(tmp_path: Path) -> None:
    a, b, c = (make_data(tmp_path / name, first=1000 * n) for n, name in enumerate("abc"))
    data = Data(train=a, valid=b, test=(Source(prefix=c), Source(prefix=a)), seq_len=SEQ_LEN)
    job = make_job(tmp_path, data, eval_every=5, eval_batches=2)
    found = datasets(job)
    assert len(found.valid) >= 16
    assert {t // 1000 for row in tokens_of(found.train) for t in row} == {0}
    assert {t // 1000 for row in tokens_of(found.valid) for t in row} == {1}
    assert {t // 1000 for row in tokens_of(found.test) for t in row} == {0, 2}
    assert [each["name"] for each in found.inputs] == [f"{n}.{end}" for n in "abc" for end in ("idx", "bin")]
    assert datasets(make_job(tmp_path, data)).valid is None  # no evaluation, no maps


@pytest.mark.parametrize("weights", [(0.7, 0.2, 0.1), (1, 1, 1), (5, 94, 1), (0.0001, 1, 2)])
def test_blends_are_within_one_sample_of_their_weights(tmp_path: Path, weights: tuple[float, ...]) -> None:
    sources = tuple(
        Source(prefix=make_data(tmp_path / name, 30, first=1000 * n, seed=n), weight=weight)
        for n, (name, weight) in enumerate(zip("abc", weights, strict=True))
    )
    found = datasets(make_job(tmp_path, Data(train=sources, seq_len=SEQ_LEN), steps=40))
    seen = [row[0] // 1000 for row in tokens_of(found.train)]
    assert len(seen) >= 320
    for upto in (10, 77, 320):
        drawn = Counter(seen[:upto])
        for n, weight in enumerate(weights):
            assert abs(drawn[n] - upto * weight / sum(weights)) <= 1


@pytest.mark.parametrize("sources", [2, 7, 40])
@pytest.mark.parametrize("steps", [1, 3])
def test_blends_of_few_samples(tmp_path: Path, sources: int, steps: int) -> None:
    """Where rounding asks a dataset for more than its share, megatron-core gives up; here it is given more of it."""
    rng = np.random.default_rng(sources)
    drawn = [
        Source(prefix=make_data(tmp_path / f"d{n}", 3, first=100 * n, longest=30), weight=float(rng.random() ** 6 + 1e-6))
        for n in range(sources)
    ]
    found = datasets(make_job(tmp_path, Data(train=tuple(drawn), seq_len=SEQ_LEN), steps=steps))
    assert len(tokens_of(found.train)) >= 8 * steps


def test_weights() -> None:
    assert weights_of([None, None], [30, 10]) == (0.75, 0.25)
    assert weights_of([3, 1], [5, 50000]) == (0.75, 0.25)
    assert weights_of([None, 2, 1], [25, 25, 50]) == pytest.approx((0.25, 0.5, 0.25))
    with pytest.raises(ToolError, match=r"data.valid: weight 0"):
        weights_of([0, 1], [1, 1], "valid")


def test_splits_share_no_document(tmp_path: Path) -> None:
    prefix = make_data(tmp_path / "x", 100)
    found = datasets(make_job(tmp_path, Data(train=prefix, split=(80, 15, 5), seq_len=SEQ_LEN), steps=40, eval_every=1))
    seen = [{t for row in tokens_of(part) for t in row} for part in (found.train, found.valid, found.test)]
    assert seen[0] <= set(range(80))
    assert seen[1] <= set(range(80, 95))
    assert seen[2] <= set(range(95, 100))
    assert all(seen)


def test_samples_of_another_seed_and_of_the_same(tmp_path: Path) -> None:
    prefix = make_data(tmp_path / "x")
    first, again, other = (
        tokens_of(datasets(make_job(tmp_path, Data(train=prefix, seq_len=SEQ_LEN), seed=seed)).train) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_data_shorter_than_a_sample(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "x", np.uint16) as writer:
        writer.add([1, 2, 3])
    found = datasets(make_job(tmp_path, Data(train=tmp_path / "x", seq_len=SEQ_LEN)))
    tokens = found.train[79]["tokens"].tolist()
    assert tokens in [([1, 2, 3] * 6)[at : at + SEQ_LEN] for at in range(3)]


def test_the_end_of_documents(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "x", np.uint16) as writer:
        for _ in range(50):
            writer.add([5, 6, 9])
    data = Data(train=tmp_path / "x", seq_len=SEQ_LEN, eod_mask_loss=True, eod_id=9)
    sample = datasets(make_job(tmp_path, data)).train[0]
    assert torch.equal(sample["loss_mask"], (sample["tokens"] != 9).float())
    job = make_job(tmp_path, Data(train=tmp_path / "x", seq_len=SEQ_LEN, eod_mask_loss=True))
    assert job.hf is not None
    generation = job.hf / "generation_config.json"
    generation.write_text('{"eos_token_id": 4}')
    assert eod_id(job, "why") == 4
    assert eod_id(replace(job, config={"eos_token_id": 3}), "why") == 3
    generation.write_text('{"eos_token_id": [3, 4]}')
    with pytest.raises(ToolError, match="which one token ends a document") as raised:
        datasets(job)
    assert raised.value.code is Exit.USAGE
    assert "data.eod_id" in str(raised.value.hint)


# --- names


@pytest.mark.parametrize("name", ["x_text_document", "x", "x.bin", "x.idx", "x_text_document.bin", "x_text_document.idx"])
def test_spellings_of_a_prefix(tmp_path: Path, name: str) -> None:
    make_data(tmp_path / "x_text_document")
    assert len(datasets(make_job(tmp_path, Data(train=tmp_path / name, seq_len=SEQ_LEN))).train) >= 80


def test_a_prefix_beside_what_a_link_leads_to(tmp_path: Path) -> None:
    """LINK/.. is not where the link lies, and there may be other data there."""
    make_data(tmp_path / "far/x")
    make_data(tmp_path / "x", first=1000)
    (tmp_path / "far/inner").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far/inner")
    found = datasets(make_job(tmp_path, Data(train=tmp_path / "link/../x", seq_len=SEQ_LEN)))
    assert tokens_of(found.train) == tokens_of(
        datasets(make_job(tmp_path, Data(train=tmp_path / "far/x", seq_len=SEQ_LEN))).train
    )


def expect(tmp_path: Path, text: str, hint: str, data: Data, **train: Any) -> ToolError:
    with pytest.raises(ToolError) as raised:
        datasets(make_job(tmp_path, data, **train))
    assert text in raised.value.message
    assert hint in str(raised.value.hint)
    return raised.value


def test_what_is_not_there(tmp_path: Path) -> None:
    make_data(tmp_path / "data" / "wiki_text_document")
    make_data(tmp_path / "data" / "chat_packed_input_ids_document")
    for name in ("wikki", ""):
        expect(tmp_path, "data.train: no dataset", "wiki_text_document", Data(train=tmp_path / "data" / name))
    expect(tmp_path, "tuning data", "jumar-data pretrain", Data(train=tmp_path / "data" / "chat"))
    expect(tmp_path, "data.train: no dataset", "has no .idx file", Data(train=tmp_path / "nowhere" / "x"))
    (tmp_path / "data" / "wiki_text_document.idx").unlink()
    expect(tmp_path, "wiki_text_document.idx is not there", "copy both", Data(train=tmp_path / "data" / "wiki"))
    assert expect(tmp_path, "names no data", "data.train", Data()).code is Exit.USAGE


def test_splits_that_cannot_be(tmp_path: Path) -> None:
    prefix = make_data(tmp_path / "x", 20)
    for split in ((), (0, 1), (1, -1), (1, 1, 1, 1), (float("nan"),)):
        expect(tmp_path, "data.split", "[98, 1, 1]", Data(train=prefix, split=split))
    expect(tmp_path, "data.split cuts", "one of the two", Data(train=prefix, valid=prefix, split=(9, 1)))
    expect(tmp_path, "valid 0 of the 20 documents", "larger share", Data(train=prefix, split=(99, 1)), eval_every=1)
    datasets(make_job(tmp_path, Data(train=prefix, split=(99, 1), seq_len=SEQ_LEN)))  # nobody evaluates


def test_numbers_that_are_no_tokens(tmp_path: Path) -> None:
    for name, dtype, values in (("f", np.float32, [0.5]), ("e", np.uint16, [])):
        with IndexedWriter(tmp_path / name, dtype) as writer:
            writer.add(values)
    expect(tmp_path, "numbers of float32", "", Data(train=tmp_path / "f"))
    expect(tmp_path, "holds no token", "", Data(train=tmp_path / "e"))


# --- index maps


def job_of(tmp_path: Path, prefix: Path, **changes: Any) -> Any:
    return make_job(tmp_path, Data(train=prefix, seq_len=SEQ_LEN, split=(9, 1), **changes), eval_every=1)


def test_maps_are_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = make_data(tmp_path / "data" / "x")
    first = datasets(job_of(tmp_path, prefix))
    assert isinstance(first.train.shuffle_index, np.memmap)
    there = maps(tmp_path / "data" / "cache")
    assert len(there) == 6
    monkeypatch.setattr(pretrain, "_build", None)
    assert tokens_of(datasets(job_of(tmp_path, prefix)).train) == tokens_of(first.train)
    os.utime(prefix.with_name("x.bin"))  # touched or copied, not changed
    datasets(job_of(tmp_path, prefix))


def test_other_data_of_the_same_name(tmp_path: Path) -> None:
    """All lengths but one the same, far behind, and the files as large as before."""
    lengths = np.random.default_rng(0).integers(1, 9, 500)
    prefix = tmp_path / "x"
    seen = []
    for swap in (False, True):
        order = [*lengths[:-2], *sorted((3, 7), reverse=swap)]
        with IndexedWriter(prefix, np.uint16) as writer:
            for number, length in enumerate(order):
                writer.add(np.full(length, number))
        found = datasets(job_of(tmp_path, prefix))
        seen.append(tokens_of(found.valid))
    assert seen[0] != seen[1]
    assert len({path.parent for path in maps(tmp_path / "cache")}) == 2


@pytest.mark.parametrize("cut", ["half", "empty", "gone", "list"])
@pytest.mark.parametrize("number", [0, 5])
def test_damaged_maps_are_built_again(tmp_path: Path, number: int, cut: str) -> None:
    prefix = make_data(tmp_path / "x")
    want = tokens_of(datasets(job_of(tmp_path, prefix)).train)
    path = maps(tmp_path / "cache")[number]
    whole = path.read_bytes()
    if cut == "list":
        (path.parent / "complete.json").write_text('{"facts": {"surplus"')
    elif cut == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[: len(whole) // 2 if cut == "half" else 0])
    assert tokens_of(datasets(job_of(tmp_path, prefix)).train) == want
    assert path.read_bytes() == whole
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_a_run_killed_while_it_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = make_data(tmp_path / "x")
    save, saved = np.save, []

    def dies(name: str, array: Any) -> None:
        saved.append(name)
        if len(saved) == 3:
            raise KeyboardInterrupt
        save(name, array)

    monkeypatch.setattr(pretrain.np, "save", dies)
    monkeypatch.setattr("shutil.rmtree", lambda *args, **how: None)  # killed: nobody tidies up
    with pytest.raises(KeyboardInterrupt):
        datasets(job_of(tmp_path, prefix))
    monkeypatch.undo()
    assert maps(tmp_path / "cache")
    assert len(tokens_of(datasets(job_of(tmp_path, prefix)).train)) >= 80
    (half,) = (tmp_path / "cache").glob("*.tmp")
    os.utime(half, (0, 0))
    datasets(make_job(tmp_path, Data(train=prefix, seq_len=8)))  # the next one that builds
    assert not half.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    prefix = make_data(tmp_path / "data" / "x")
    prefix.parent.chmod(0o555)
    expect(tmp_path, "cannot be written", "data.cache", Data(train=prefix, seq_len=SEQ_LEN))


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    prefix = make_data(tmp_path / "data" / "x")
    (tmp_path / "data" / "cache").write_text("a file")
    fault = expect(tmp_path, "cannot be written to", "set data.cache", Data(train=prefix, seq_len=SEQ_LEN))
    assert fault.code is Exit.ENVIRONMENT
    datasets(make_job(tmp_path, Data(train=prefix, seq_len=SEQ_LEN, cache=tmp_path / "elsewhere" / "deep")))


# --- several processes


def test_two_jobs_build_at_once(tmp_path: Path) -> None:
    """And a damaged set lies there, which both find."""
    prefix = make_data(tmp_path / "data" / "x")
    job = make_job(tmp_path, Data(train=prefix, seq_len=SEQ_LEN))
    want = tokens_of(datasets(job).train)
    cache = tmp_path / "data" / "cache"
    for _ in range(3):
        maps(cache)[0].write_bytes(b"")
        seen = run_all([job] * 3, together=True)
        assert seen == [{"tokens": want, "built": [str(cache)]}] * 3
        assert len(list(cache.iterdir())) == 1


def test_nodes_without_a_common_file_system(tmp_path: Path) -> None:
    """Ranks 0 and 2 share a cache, 1 and 3 another: the lowest rank of each builds."""
    sources = tuple(
        Source(prefix=make_data(tmp_path / "data" / name, first=500 * n), weight=2 - n) for n, name in enumerate("xy")
    )
    caches = [tmp_path / f"node{rank % 2}" / "cache" for rank in range(4)]
    jobs = [make_job(tmp_path, Data(train=sources, seq_len=SEQ_LEN, cache=cache)) for cache in caches]
    seen = run_all(jobs, tmp_path / "store")
    assert all(each["tokens"] == seen[0]["tokens"] for each in seen)
    assert len(seen[0]["tokens"]) >= 80
    assert [each["built"] for each in seen] == [[str(caches[0])], [str(caches[1])], [], []]
    for cache in caches:
        (only,) = cache.iterdir()  # no marks, nothing half-filled
        assert len(list(only.glob("*.npy"))) == 8
    (only / "complete.json").unlink()  # one node's is lost
    again = run_all(jobs, tmp_path / "store2")
    assert [each["built"] for each in again] == [[], [str(caches[1])], [], []]


def test_a_fault_of_one_rank_is_raised_on_all(tmp_path: Path) -> None:
    """Rank 1 has other data than rank 0; and then none; and then nowhere to write."""
    for number in (0, 1):
        make_data(tmp_path / f"node{number}" / "x", seed=number)
    (tmp_path / "file").touch()
    right, other, none = (Data(train=tmp_path / name / "x", seq_len=SEQ_LEN) for name in ("node0", "node1", "nowhere"))
    unwritable = Data(train=right.train, seq_len=SEQ_LEN, cache=tmp_path / "file" / "cache")
    for wrong, text in (
        (other, "x.idx is not the same file on ranks 0 and 1"),
        (none, "nowhere"),
        (unwritable, "cannot be written"),
    ):
        jobs = [make_job(tmp_path, right), make_job(tmp_path, wrong)]
        first, second = run_all(jobs, tmp_path / f"store {text}")
        assert first == second
        assert text in first["error"]


def test_a_bug_of_one_rank_does_not_leave_the_others_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise IndexError("oversamples")

    monkeypatch.setattr(pretrain, "_build", broken)
    job = make_job(tmp_path, Data(train=make_data(tmp_path / "x"), seq_len=SEQ_LEN))
    seen = run_all([job] * 2, tmp_path / "store")
    assert [each["error"] for each in seen] == ["oversamples", "rank 0: IndexError('oversamples')"]
