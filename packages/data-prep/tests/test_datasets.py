"""Finding, knowing and describing finished datasets, on small real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jumar.data_prep import datasets
from jumar.data_prep.datasets import describe, find_dataset
from jumar.schema.errors import ToolError
from jumar.schema.indexed import IndexedWriter
from jumar.schema.manifest import manifest_text


def make(prefix: Path, sequences: list[list[int]], dtype: str = "int32") -> None:
    with IndexedWriter(prefix, dtype) as writer:
        for sequence in sequences:
            writer.add(sequence)


def make_tuning(prefix: Path, ids: list[list[int]], masks: list[list[int]], labels: list[list[int]]) -> None:
    for key, sequences in (("input_ids", ids), ("attention_mask", masks), ("labels", labels)):
        make(prefix.with_name(f"{prefix.name}_packed_{key}_document"), sequences)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Datasets of several kinds, and names that begin alike."""
    make(tmp_path / "wiki_text_document", [[1, 2, 3], [4]], "uint16")
    make(tmp_path / "wiki_zh_text_document", [[5]], "uint16")
    make_tuning(tmp_path / "alpaca", [[1, 2, 3], [4, 5]], [[1] * 3, [1] * 2], [[-100, 2, 3], [-100, -100]])
    make_tuning(tmp_path / "alpaca_zh", [[7]], [[1]], [[7]])
    return tmp_path


NAMES = ["alpaca", "alpaca_packed", "alpaca_packed_input_ids_document", "alpaca_packed_labels_document.bin"]


@pytest.mark.parametrize("name", [*NAMES, "alpaca_packed_attention_mask_document.idx"])
def test_every_name_of_a_tuning_dataset(folder: Path, name: str) -> None:
    found = find_dataset(str(folder / name))
    assert found.prefix == folder / "alpaca"
    assert list(found.keys) == ["input_ids", "attention_mask", "labels"]
    assert (found.kind, found.borders, found.documents, found.manifest) == ("tuning", None, 2, None)
    assert found.main[1].tolist() == [4, 5]


@pytest.mark.parametrize("name", ["wiki", "wiki_text_document", "wiki_text_document.bin"])
def test_every_name_of_a_text(folder: Path, name: str) -> None:
    found = find_dataset(str(folder / name))
    assert (found.kind, list(found.keys), found.documents) == ("pretraining text", ["text"], 2)


def test_a_file_of_any_name(tmp_path: Path) -> None:
    make(tmp_path / "thing", [[1]])
    found = find_dataset(str(tmp_path / "thing.bin"))
    assert (found.kind, found.path("", tmp_path / "y")) == ("pretraining text", tmp_path / "y")


def test_other_columns_of_text(tmp_path: Path) -> None:
    make(tmp_path / "x_context_sentence", [[1]])
    assert list(find_dataset(str(tmp_path / "x")).keys) == ["context"]


@pytest.mark.parametrize(("name", "near"), [("alpaka", "alpaca"), ("wiki_text", "wiki"), ("qqq", "alpaca")])
def test_nothing_found_names_what_is_near(folder: Path, name: str, near: str) -> None:
    with pytest.raises(ToolError, match="no dataset of this name") as fault:
        find_dataset(str(folder / name))
    assert str(folder / near) in str(fault.value.hint)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="no dataset of this name") as fault:
        find_dataset(str(tmp_path / "none" / "x"))
    assert "no .idx file is in" in str(fault.value.hint)


def test_a_prefix_of_two_datasets(folder: Path) -> None:
    make(folder / "alpaca_text_document", [[1]])
    with pytest.raises(ToolError, match="stands for several datasets"):
        find_dataset(str(folder / "alpaca"))
    assert find_dataset(str(folder / "alpaca_packed")).kind == "tuning"
    assert find_dataset(str(folder / "alpaca_text_document")).kind == "pretraining text"


@pytest.mark.parametrize(
    ("masks", "kind", "borders"),
    [
        ([[1, 1, 2, 0], [1, 2, 3, 3]], "packed tuning", "neat"),
        ([[1] * 4, [1] * 4], "packed tuning", "plain"),
        ([[1] * 4], "tuning", None),
        ([[1, 2, 2, 0]], "packed tuning", "neat"),
    ],
)
def test_packed(tmp_path: Path, masks: list[list[int]], kind: str, borders: str | None) -> None:
    ids = [[1, 2, 3, 0] for _ in masks]
    make_tuning(tmp_path / "x", ids, masks, [[-100, 2, 3, -100] for _ in masks])
    found = find_dataset(str(tmp_path / "x"))
    assert (found.kind, found.borders) == (kind, borders)


def test_pairwise_and_prompts(tmp_path: Path) -> None:
    for key, rows in (("chosen_input_ids", [[1, 2]]), ("chosen_labels", [[-100, 2]]), ("rejected_input_ids", [[1]])):
        make(tmp_path / f"dpo_packed_{key}_document", rows)
    make(tmp_path / "dpo_packed_rejected_labels_document", [[-100]])
    found = find_dataset(str(tmp_path / "dpo"))
    assert found.kind == "pairwise"
    assert describe(found)["trained_share"] == {"chosen_labels": 0.5, "rejected_labels": 0.0}

    for key, rows in (("input_ids", [[1, 2]]), ("attention_mask", [[1, 1]]), ("labels", [[9]]), ("ref_labels", [[3, 4, 5]])):
        make(tmp_path / f"rl_packed_{key}_document", rows)
    for name in ("rl", "rl_packed_ref_labels_document", "rl_packed_input_ids_document"):
        found = find_dataset(str(tmp_path / name))
        assert (found.kind, list(found.keys)) == ("prompts", ["input_ids", "attention_mask", "labels", "ref_labels"])


def test_process_reward_by_its_manifest(folder: Path) -> None:
    assert "cannot be told" in describe(find_dataset(str(folder / "alpaca")))["note"]
    text = manifest_text(tool="jumar-data", version="1", recipe={"command": "process-reward"})
    (folder / "alpaca.manifest.json").write_text(text)
    found = find_dataset(str(folder / "alpaca"))
    assert found.kind == "process reward"
    assert "note" not in describe(found)


def test_manifests(folder: Path) -> None:
    (folder / "alpaca.manifest.json").write_text('{"tool": "webpack"}')
    assert find_dataset(str(folder / "alpaca")).manifest is None
    (folder / "alpaca.manifest.json").write_text("{")
    with pytest.raises(ToolError, match=r"alpaca.manifest.json is not JSON"):
        find_dataset(str(folder / "alpaca"))


@pytest.mark.parametrize(
    ("key", "rows", "said"),
    [
        ("labels", [[1, 2, 3]], "2 sequences of input_ids, but 1 of labels"),
        ("labels", [[-100, 2, 3], [4]], "sequence 1 has 2 numbers in input_ids, but 1 in labels"),
        ("attention_mask", [[1, 1], [1, 1]], "sequence 0 has 3 numbers in input_ids, but 2 in attention_mask"),
    ],
)
def test_keys_that_disagree(folder: Path, key: str, rows: list[list[int]], said: str) -> None:
    make(folder / f"alpaca_packed_{key}_document", rows)
    with pytest.raises(ToolError, match=said):
        find_dataset(str(folder / "alpaca"))


def test_other_documents(folder: Path) -> None:
    with IndexedWriter(folder / "alpaca_packed_labels_document", "int32") as writer:
        writer.add([-100, 2, 3, 4, 5], [3, 2])
    with pytest.raises(ToolError, match="not cut into the same documents"):
        find_dataset(str(folder / "alpaca"))


def test_describe(tmp_path: Path) -> None:
    ids = [[1, 2, 3, 0], [4, 5, 6, 7]]
    make_tuning(tmp_path / "x", ids, [[1, 1, 2, 0], [1, 2, 3, 3]], [[-100, 2, 3, -100], [-100, -100, 6, 7]])
    facts: dict[str, Any] = describe(find_dataset(str(tmp_path / "x")))
    assert json.loads(json.dumps(facts)) == facts
    wanted = {"kind": "packed tuning", "sequences": 2, "documents": 2, "tokens": 8, "trained_share": 0.5, "padding_share": 0.125}
    assert {name: facts[name] for name in wanted} == wanted
    assert facts["sub_samples"] == {"mean": 2.5, "max": 3, "total": 5}
    assert facts["looked_at"] == {"sequences": 2, "of": 2, "all": True}
    assert facts["keys"]["labels"]["dtype"] == "int32"
    assert facts["keys"]["labels"]["lengths"] == {"min": 4, "max": 4, "mean": 4.0, "p50": 4, "p90": 4, "p99": 4, "looked_at": 2}
    assert facts["bytes"] == sum(file.stat().st_size for file in tmp_path.iterdir())


def test_a_large_dataset_is_sampled_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "LOOKED_AT", 10)
    monkeypatch.setattr(datasets, "CHUNK", 7)
    rows = [[i] * (i % 5 + 1) for i in range(100)]
    make_tuning(tmp_path / "x", rows, rows, [[-100] * len(row) for row in rows])
    facts = describe(find_dataset(str(tmp_path / "x")))
    assert facts["looked_at"] == {"sequences": 10, "of": 100, "all": False}
    lengths = facts["keys"]["input_ids"]["lengths"]
    assert (facts["tokens"], lengths["min"], lengths["max"], lengths["mean"], lengths["looked_at"]) == (300, 1, 5, 3.0, 7)


def test_nothing_in_it(tmp_path: Path) -> None:
    make_tuning(tmp_path / "x", [], [], [])
    facts = describe(find_dataset(str(tmp_path / "x")))
    assert (facts["kind"], facts["tokens"], facts["documents"]) == ("tuning", 0, 0)
