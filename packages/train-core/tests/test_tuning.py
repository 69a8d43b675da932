"""Tuning data: what is found on disk, in which order it comes, how it is padded, and what does not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import make_job, texts
from jumar.schema.errors import ToolError
from jumar.schema.indexed import IndexedReader, IndexedWriter
from jumar.schema.manifest import manifest_text
from jumar.train_core import show
from jumar.train_core.checks import check
from jumar.train_core.data import conversations
from jumar.train_core.data.batch import Batches
from jumar.train_core.data.conversations import IGNORED, Sample, open_conversations
from jumar.train_core.data.prepared import prepared
from jumar.train_core.data.tuning import datasets
from jumar.train_core.data.tuning_plan import with_steps
from jumar.train_core.dry_run import report
from jumar.train_core.job import Job

KEYS = ("input_ids", "attention_mask", "labels")
EOS = 9


def write(prefix: Path, rows: list[tuple[list[int], list[int], list[int]]], *, keys: Any = KEYS, packed: str = "_packed") -> Path:
    prefix.parent.mkdir(parents=True, exist_ok=True)
    for at, key in enumerate(KEYS):
        if key in keys:
            with IndexedWriter(prefix.with_name(f"{prefix.name}{packed}_{key}_document"), np.int32) as writer:
                for row in rows:
                    writer.add(row[at])
    return prefix


def talk(number: int, length: int) -> tuple[list[int], list[int], list[int]]:
    """A prompt of two tokens, and an answer; every token tells the number."""
    ids = [number] * length
    return ids, [1] * length, [IGNORED] * 2 + ids[2:]


def talks(folder: Path, count: int = 20, **settings: Any) -> Path:
    return write(folder / "data/t", [talk(number, 4 + number % 7) for number in range(count)], **settings)


def tuning_job(folder: Path, prefix: Path | None = None, **sets: Any) -> Job:
    usual = {"train__steps": 1000} if "train__epochs" in sets else {}
    job = make_job(folder, **{"data__train": str(prefix or talks(folder)), "train__global_batch_size": 4, **usual, **sets})
    return dataclasses.replace(job, recipe=with_steps(job.recipe), task="sft")


def sample(found: Sample) -> tuple[list[int], list[int], list[int] | None]:
    return found.tokens.tolist(), found.targets.tolist(), None if found.documents is None else found.documents.tolist()


# --- files


@pytest.mark.parametrize("name", ["t", "t_packed", "t_packed_labels_document", "t_packed_input_ids_document.idx"])
def test_a_dataset_by_any_of_its_names(name: str, tmp_path: Path) -> None:
    talks(tmp_path)
    found = open_conversations("data.train", tmp_path / "data" / name)
    assert (found.prefix.name, len(found), found.borders) == ("t", 20, "none")
    assert sample(found[1]) == ([1] * 5, [IGNORED, 1, 1, 1, IGNORED], None)


def test_without_packed_in_the_name(tmp_path: Path) -> None:
    prefix = talks(tmp_path, packed="")
    assert len(open_conversations("data.train", prefix)) == 20


def test_packed_rows_with_numbers(tmp_path: Path) -> None:
    row = ([4, 4, 5, 5, 5, 0], [1, 1, 2, 2, 2, 0], [IGNORED, 4, 5, 5, 5, IGNORED])
    found = open_conversations("data.train", write(tmp_path / "p", [row, row]))
    assert found.borders == "mask"
    assert sample(found[0]) == (row[0], [4, IGNORED, 5, 5, IGNORED, IGNORED], row[1])


@pytest.mark.parametrize(
    ("ids", "labels", "documents"),
    [
        ([4, EOS, 5, 5, EOS, 0, 0], [IGNORED, EOS, IGNORED, 5, EOS, IGNORED, IGNORED], [1, 1, 2, 2, 2, 0, 0]),
        ([4, EOS, 5, 5, EOS, EOS, EOS], [4, EOS, 5, 5, EOS, IGNORED, IGNORED], [1, 1, 2, 2, 2, 0, 0]),
        ([4, 4, EOS, 5, 5, 5, EOS], [4, 4, EOS, 5, 5, 5, EOS], [1, 1, 1, 2, 2, 2, 2]),
        ([4, 4, EOS, 5, 5, 5, EOS], [4, 4, EOS, 5, 5, 5, IGNORED], [1, 1, 1, 2, 2, 2, 2]),
        ([4, 4, 4, 4, 4, 4, 4], [4, 4, 4, 4, 4, 4, 4], [1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_packed_rows_with_an_eos_after_each(ids: list[int], labels: list[int], documents: list[int], tmp_path: Path) -> None:
    """As --pack of MindSpeed-LLM writes them: the mask is 1, padding too."""
    prefix = write(tmp_path / "data/p", [(ids, [1] * 7, labels)] * 4)
    job = tuning_job(tmp_path, prefix, data__seq_len=7, data__eod_id=EOS)
    share = datasets(job).train.shares[0]
    assert share.source.borders == "eos"
    assert share.source[0].documents is not None
    assert share.source[0].documents.tolist() == documents


def test_what_a_manifest_says_of_borders(tmp_path: Path) -> None:
    row = ([1, 2, 3], [1, 1, 1], [1, 2, 3])
    prefix = write(tmp_path / "m", [row, row])
    assert open_conversations("data.train", prefix).borders == "eos"
    manifest = tmp_path / "m.manifest.json"
    manifest.write_text(manifest_text(tool="jumar-data", version="0"))
    assert open_conversations("data.train", prefix).borders == "none"
    manifest.write_text(manifest_text(tool="jumar-data", version="0", packed={"samples": 2}))
    assert open_conversations("data.train", prefix).borders == "mask"
    assert open_conversations("data.train", prefix, "none").borders == "none"


# --- order


def order(job: Job, part: str = "train") -> list[int]:
    dataset = getattr(datasets(job), part)
    return [dataset.order[number][1] for number in range(len(dataset))]


def test_every_epoch_has_every_conversation_once_in_another_order(tmp_path: Path) -> None:
    job = tuning_job(tmp_path, train__epochs=2)
    assert job.recipe.train.steps == 10
    found = order(job)
    assert sorted(found[:20]) == sorted(found[20:]) == list(range(20))
    assert found[:20] != found[20:] != list(range(20))
    assert order(job) == found, "not the same twice"
    assert order(tuning_job(tmp_path, train__epochs=2, train__seed=5)) != found
    assert order(tuning_job(tmp_path, train__epochs=2, data__shuffle=False)) == list(range(20)) * 2


def test_the_order_is_written_down() -> None:
    """It must be the same with every numpy: a resumed run goes on in it."""
    from jumar.train_core.data.tuning import Order

    class Ten:
        weight = None

        def __len__(self) -> int:
            return 10

    found = Order([Ten()], seed=1234)  # type: ignore[list-item]
    assert [found[n][1] for n in range(10)] == [0, 5, 2, 7, 3, 4, 8, 1, 6, 9]
    assert [found[n][1] for n in range(10, 20)] == [4, 7, 9, 0, 5, 6, 2, 8, 3, 1]


def test_lists_mix_by_size_and_by_weight(tmp_path: Path) -> None:
    a = write(tmp_path / "data/a", [talk(1, 5 + n % 2) for n in range(30)])
    b = write(tmp_path / "data/b", [talk(2, 5 + n % 2) for n in range(10)])
    plain = [{"prefix": str(a)}, {"prefix": str(b)}]
    dataset = datasets(tuning_job(tmp_path, data__train=plain, train__steps=10)).train
    drawn = [dataset.order[n] for n in range(40)]
    assert len(set(drawn)) == 40
    weighted = [{"prefix": str(a), "weight": 1}, {"prefix": str(b), "weight": 3}]
    dataset = datasets(tuning_job(tmp_path, data__train=weighted, train__steps=10)).train
    drawn = [dataset.order[n] for n in range(40)]
    assert [share for share, _ in drawn].count(1) == 30
    assert len({at for share, at in drawn if share == 1}) == 10
    with pytest.raises(ToolError, match="data drawn by weights"):
        tuning_job(tmp_path, data__train=weighted, train__epochs=1)


def test_a_split_holds_out_the_end(tmp_path: Path) -> None:
    job = tuning_job(tmp_path, data__split=[80, 20], train__eval_every=5, train__epochs=1)
    assert job.recipe.train.steps == 4
    found = datasets(job)
    assert (found.train.shares[0].first, found.train.shares[0].last) == (0, 16)
    assert (found.valid.shares[0].first, found.valid.shares[0].last) == (16, 20)
    assert order(job, "valid") == [0, 1, 2, 3]


# --- batches


def batches(job: Job, part: str = "train", **settings: Any) -> list[dict[str, Any]]:
    dataset = getattr(datasets(job), part)
    common = {"global_batch_size": job.recipe.train.global_batch_size, "micro_batch_size": 2, "dp_rank": 0, "dp_size": 1}
    return list(Batches(dataset, vocab_size=job.spec.vocab_size, **common | settings))


def test_a_micro_batch_is_padded_to_its_longest(tmp_path: Path) -> None:
    job = tuning_job(tmp_path, data__shuffle=False, data__pad_to_multiple_of=4, train__steps=5)
    found = batches(job)
    assert [batch["tokens"].shape[1] for batch in found[:4]] == [8, 8, 12, 12]  # 4 5 | 6 7 | 8 9 | 10 4
    first = found[0]
    assert first["tokens"].tolist() == [[0] * 8, [1] * 5 + [0] * 3]
    assert first["labels"].tolist() == [[0] * 8, [0, 1, 1, 1, 0, 0, 0, 0]]
    assert first["loss_mask"].tolist() == [[0, 1, 1, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0, 0]]
    assert first["position_ids"].tolist() == [list(range(8))] * 2
    assert first["tokens_here"].tolist() == [4, 5]
    assert "documents" not in first


def test_stages_have_one_length_a_step(tmp_path: Path) -> None:
    job = tuning_job(tmp_path, data__shuffle=False, data__pad_to_multiple_of=1, train__steps=5)
    job = dataclasses.replace(job, layout=dataclasses.replace(job.layout, pp=2))
    assert [batch["tokens"].shape[1] for batch in batches(job)[:4]] == [7, 7, 10, 10]
    resumed = batches(job, consumed=2)  # after a step of another global batch size: 6 7 8 9
    assert [batch["tokens"].shape[1] for batch in resumed[:2]] == [9, 9]


def test_an_evaluation_reads_everything_once(tmp_path: Path) -> None:
    """5 conversations and a global batch of 4: three samples of the second are empty."""
    job = tuning_job(tmp_path, data__split=[75, 25], train__eval_every=1)
    found = batches(job, "valid")
    assert len(found) == 4
    seen = [int(row[0]) for batch in found for row, size in zip(batch["tokens"], batch["tokens_here"], strict=True) if size]
    assert seen == [15, 16, 17, 18, 19]
    assert sum(float(batch["loss_mask"].sum()) for batch in found[2:]) == 4 + 19 % 7 - 2


@pytest.mark.parametrize(
    ("ids", "labels", "what"),
    [([5, 131, 5], [IGNORED, 5, 5], "token id 131"), ([5, 5, 5], [5, 5, 400], "label 400"), ([5, 5, 5], [5, -7, 5], "label -7")],
)
def test_a_token_that_the_model_has_not(tmp_path: Path, ids: list[int], labels: list[int], what: str) -> None:
    """Said before a launch where no manifest tells the vocabulary, else where it is met."""
    prefix = write(tmp_path / "data/big", [talk(5, 6), (ids, [1] * 3, labels)] * 4)
    job = tuning_job(tmp_path, prefix)
    assert f"data.train: {prefix}: {what} in sequence 1; the model's vocabulary is 0 to 130" in said(job)
    with pytest.raises(ToolError, match=rf"big: {what} in sequence \d+; the model's vocabulary is 0 to 130"):
        batches(job)
    (tmp_path / "data/big.manifest.json").write_text(manifest_text(tool="jumar-data", version="0", vocab_size=131))
    assert said(tuning_job(tmp_path, prefix)) == ""


def test_every_number_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of some sequences, of which one may be longer than a block."""
    monkeypatch.setattr(conversations, "CHUNK", 10)
    lengths = [3, 12, 1, 4, 4, 2, 30, 5]
    for at in range(sum(lengths)):
        values, ends = np.full(sum(lengths), IGNORED), np.cumsum(lengths)
        values[at] = 99
        with IndexedWriter(tmp_path / "x", np.int32) as writer:
            for end, length in zip(ends, lengths, strict=True):
                writer.add(values[end - length : end])
        reader = IndexedReader(tmp_path / "x")
        assert conversations.first_outside(reader, 99, IGNORED, 1 << 20) == (int(np.searchsorted(ends, at, "right")), 99)
        assert conversations.first_outside(reader, 100, IGNORED, 1 << 20) is None
        assert conversations.first_outside(reader, 100, None, 1 << 20) == (int(at == 0 and lengths[0] == 1), IGNORED)
        assert (conversations.first_outside(reader, 99, IGNORED, 15) is None) == (at >= 15), "blocks of 3 and 12, and no more"


# --- what does not fit


def said(job: Job, *, warnings: bool = False) -> str:
    return texts(check(job), warnings=warnings)


def test_a_missing_key(tmp_path: Path) -> None:
    prefix = talks(tmp_path, keys=("input_ids", "labels"))
    assert "has no t_packed_attention_mask_document.idx" in said(tuning_job(tmp_path, prefix))


def test_keys_of_different_runs(tmp_path: Path) -> None:
    prefix = talks(tmp_path)
    write(prefix, [talk(1, 9)] * 20, keys=("labels",))
    assert "sequence 0 of" in said(tuning_job(tmp_path, prefix))
    write(prefix, [talk(1, 9)] * 19, keys=("labels",))
    assert "has 20 sequences of input_ids, but 19 of labels" in said(tuning_job(tmp_path, prefix))


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("t_packed_chosen_input_ids_document", "is pairwise data"),
        ("t_text_document", "is pretraining text: jumar-train pretrain"),
    ],
)
def test_data_of_another_kind(key: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with IndexedWriter(tmp_path / "data" / key, np.int32) as writer:
        writer.add([1, 2])
    assert hint in said(tuning_job(tmp_path, tmp_path / "data/t"))


def test_a_conversation_longer_than_a_sample(tmp_path: Path) -> None:
    text = said(tuning_job(tmp_path, data__seq_len=8))
    assert "5 of the 20 conversations of" in text
    assert "number 5 has 9 tokens\n  set data.seq_len=10" in text


def test_packed_rows_of_another_length(tmp_path: Path) -> None:
    row = ([4, 4, 5, 5], [1, 1, 2, 2], [4, 4, 5, 5])
    prefix = write(tmp_path / "data/p", [row, row])
    assert "which is packed, has 4 tokens, data.seq_len is 32\n  set data.seq_len=4" in said(tuning_job(tmp_path, prefix))


def test_labels_that_teach_nothing(tmp_path: Path) -> None:
    empty = ([1, 1, 1], [1, 1, 1], [IGNORED] * 3)
    prefix = write(tmp_path / "data/e", [empty, talk(3, 6), empty])
    assert "2 of the 3 conversations of" in said(tuning_job(tmp_path, prefix), warnings=True)
    assert "the first is number 0" in said(tuning_job(tmp_path, prefix), warnings=True)
    prefix = write(tmp_path / "data/n", [empty, ([1, 1], [1, 1], [IGNORED] * 2)])
    assert "none of the 2 conversations of" in said(tuning_job(tmp_path, prefix))


def test_another_template_and_a_smaller_vocabulary(tmp_path: Path) -> None:
    job = tuning_job(tmp_path)
    assert job.hf is not None
    (job.hf / "chat_template.jinja").write_text("x")
    facts = {"vocab_size": 200, "template_sha256": "f" * 64}
    (tmp_path / "data/t.manifest.json").write_text(manifest_text(tool="jumar-data", version="0", **facts))
    assert "was made with a vocabulary of 200, the model has 131" in said(job)
    assert "was made with another chat template (ffffffffffff)" in said(job, warnings=True)


def test_fields_of_the_other_command(tmp_path: Path) -> None:
    assert "data.eod_mask_loss = True has no effect" in said(tuning_job(tmp_path, data__eod_mask_loss=True))
    assert "train.epochs = 2.0 has no effect" in said(make_job(tmp_path, train__epochs=2.0))


def test_steps_and_epochs(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"train\.epochs and train\.steps both"):
        tuning_job(tmp_path, train__epochs=2, train__steps=10)
    with pytest.raises(ToolError, match="expected more than 0"):
        tuning_job(tmp_path, train__epochs=0)


def test_epochs_without_end_and_a_directory_for_a_prefix(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="expected more than 0"):
        tuning_job(tmp_path, train__epochs=float("inf"))
    with pytest.raises(ToolError, match="is a directory, expected a prefix"):
        open_conversations("data.train", Path())


def test_raw_files_that_are_not_there_and_settings_that_are_for_them(tmp_path: Path) -> None:
    recipe = make_job(tmp_path, data__train=str(tmp_path / "no.jsonl")).recipe
    with pytest.raises(ToolError, match=r"no\.jsonl does not exist"):
        prepared(recipe, lambda: None)
    recipe = make_job(tmp_path, data__train=str(talks(tmp_path)), data__pack=True).recipe
    with pytest.raises(ToolError, match=r"data\.pack = True has no effect"):
        prepared(recipe, lambda: None)


def test_what_a_dry_run_says(tmp_path: Path) -> None:
    (row,) = report(tuning_job(tmp_path, train__epochs=3))["data"]["train"]
    assert row["documents"] == row["samples"] == 20
    assert row["tokens"] == sum(4 + n % 7 for n in range(20))
    assert row["epochs"] == 3


def test_a_dry_run_speaks_of_what_the_recipe_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of raw files instead of what was made of them, of epochs; and of steps whose samples may be shorter than seq_len."""
    job = tuning_job(tmp_path, train__epochs=3)
    raw = Path("talks.jsonl")
    data, train = dataclasses.replace(job.recipe.data, train=raw), dataclasses.replace(job.recipe.train, steps=1000)
    made = report(job, dataclasses.replace(job.recipe, data=data, train=train))
    assert made["recipe"]["data"]["train"] == made["data"]["train"][0]["prefix"] == "talks.jsonl"
    assert (made["recipe"]["train"]["epochs"], "steps" in made["recipe"]["train"]) == (3.0, False)
    show.dry_run(made)
    assert "15 steps of 4 samples = at most 128 tokens; at most 1,920 tokens in all" in capsys.readouterr().out
    row = ([4, 5] * 16, [1, 2] * 16, [4, 5] * 16)
    assert not report(tuning_job(tmp_path, write(tmp_path / "data/p", [row, row])))["steps"]["at_most"]
