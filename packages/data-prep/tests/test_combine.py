"""Datasets put together, split and blended: whole documents, all keys at once, the same again with the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jumar.data_prep import combine
from jumar.data_prep.combine import blend, concatenate, draw, split
from jumar.data_prep.datasets import Dataset, find_dataset
from jumar.schema.errors import Exit, ToolError
from jumar.schema.indexed import IndexedWriter
from jumar.schema.manifest import manifest_text


def texts(prefix: Path, documents: list[list[list[int]]], dtype: str = "uint16") -> Dataset:
    with IndexedWriter(prefix.with_name(prefix.name + "_text_document"), dtype) as writer:
        for document in documents:
            writer.add([v for s in document for v in s], [len(s) for s in document])
    return find_dataset(str(prefix))


def tuning(prefix: Path, first: int, count: int, **facts: object) -> Dataset:
    """Documents of one to three tokens, each of its own number: labels 1000 more, the first untrained."""
    for key, shift in (("input_ids", 0), ("attention_mask", None), ("labels", 1000)):
        with IndexedWriter(prefix.with_name(f"{prefix.name}_packed_{key}_document"), "int32") as writer:
            for i in range(first, first + count):
                row = [1] * (i % 3 + 1) if shift is None else [i + shift] * (i % 3 + 1)
                writer.add([-100, *row[1:]] if key == "labels" else row)
    if facts:
        text = manifest_text(tool="jumar-data", version="1", recipe={"command": "sft"}, **facts)
        prefix.with_name(prefix.name + ".manifest.json").write_text(text)
    return find_dataset(str(prefix))


def read(dataset: Dataset, key: str) -> list[list[list[int]]]:
    reader = dataset.keys[key]
    return [
        [s.tolist() for s in reader.sequences(a, b)] for a, b in zip(reader.documents[:-1], reader.documents[1:], strict=True)
    ]


def firsts(dataset: Dataset) -> list[int]:
    return [document[0][0] for document in read(dataset, "input_ids")]


A, B = [[[1, 2], [3]], [[4]]], [[[5]], [[6, 7], [], [8]], []]


def test_concatenate_keeps_documents_and_sequences(tmp_path: Path) -> None:
    one, other = texts(tmp_path / "a", A), texts(tmp_path / "b", B)
    both = concatenate([one, other], tmp_path / "out" / "ab")
    whole = texts(tmp_path / "whole", A + B)
    for end in ("bin", "idx"):
        assert both.keys["text"].prefix.with_name(f"ab_text_document.{end}").read_bytes() == (
            (tmp_path / f"whole_text_document.{end}").read_bytes()
        )
    assert whole.documents == both.documents == 5
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["ab.manifest.json", "ab_text_document.bin", "ab_text_document.idx"]
    manifest = json.loads((tmp_path / "out" / "ab.manifest.json").read_text())
    assert manifest["counts"] == {"documents": 5, "sequences": 7, "tokens": 8}
    assert manifest["outputs"] == names[1:]
    assert [given["name"] for given in manifest["inputs"]] == [
        f"{name}_text_document.{end}" for name in "ab" for end in ("idx", "bin")
    ]


def test_in_small_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combine, "CHUNK", 1)
    both = concatenate([texts(tmp_path / "a", A), texts(tmp_path / "b", B)], tmp_path / "ab")
    assert read(both, "text") == A + B
    picked = blend([texts(tmp_path / "a", A), texts(tmp_path / "b", B)], None, tmp_path / "x", 50, seed=3)
    assert picked.documents == 50


def test_all_keys_move_together(tmp_path: Path) -> None:
    both = blend([tuning(tmp_path / "a", 0, 20), tuning(tmp_path / "b", 500, 30)], [0.3, 0.7], tmp_path / "ab", "interleave_over")
    ids, masks, labels = (read(both, key) for key in ("input_ids", "attention_mask", "labels"))
    assert {document[0][0] for document in ids} == {*range(20), *range(500, 530)}
    for (row,), (mask,), (label,) in zip(ids, masks, labels, strict=True):
        assert mask == [1] * len(row)
        assert label == [-100, *[row[0] + 1000] * (len(row) - 1)]


def test_split(tmp_path: Path) -> None:
    data = tuning(tmp_path / "x", 0, 100, tokenizer_sha256="t", seq_len=8)
    train, test = split(data, tmp_path / "x", [0.9, 0.1], ["train", "test"], seed=7)
    assert (train.prefix.name, test.prefix.name) == ("x_train", "x_test")
    assert len(firsts(test)) == 10
    assert sorted(firsts(train) + firsts(test)) == list(range(100))
    assert firsts(test) == sorted(firsts(test)) != list(range(90, 100))
    again = split(data, tmp_path / "y", [0.9, 0.1], ["train", "test"], seed=7)
    assert firsts(again[1]) == firsts(test)
    assert firsts(split(data, tmp_path / "z", [0.9, 0.1], ["train", "test"], seed=8)[1]) != firsts(test)
    plain = split(data, tmp_path / "p", [0.5, 0.25, 0.25], ["a", "ab", "c"])
    assert [firsts(part) for part in plain] == [list(range(50)), list(range(50, 75)), list(range(75, 100))]
    manifest = plain[0].manifest
    assert manifest is not None
    assert manifest["tokenizer_sha256"] == "t"
    assert manifest["recipe"] == {"command": "sft", "made_by": "split", "part": "a", "share": 0.5}
    assert len(manifest["outputs"]) == 6
    assert "seed" not in manifest
    assert find_dataset(str(tmp_path / "x")).documents == 100  # its parts beside it are not it


@pytest.mark.parametrize(
    ("parts", "names", "said"),
    [
        ([0.5, 0.4], ["a", "b"], "make 0.9, expected shares that make 1"),
        ([1.5, -0.5], ["a", "b"], "-0.5 is no share, expected more than 0"),
        ([0.5, 0.5, 0.0], ["a", "b", "c"], "0 is no share, expected more than 0"),
        ([1.0], ["a", "b"], "a name of its own"),
        ([0.5, 0.5], ["a", "a"], "a name of its own"),
        ([0.999, 0.001], ["a", "b"], "part b: 0.001 of 10 documents is none"),
    ],
)
def test_parts_that_cannot_be(tmp_path: Path, parts: list[float], names: list[str], said: str) -> None:
    with pytest.raises(ToolError, match=said) as fault:
        split(tuning(tmp_path / "x", 0, 10), tmp_path / "x", parts, names)
    assert fault.value.hint
    assert not list(tmp_path.glob(".*"))


def as_hugging_face(lengths: list[int], shares: list[float], seed: int, oversampling: bool) -> list[tuple[int, int]]:
    """interleave_datasets of `datasets`, spelled out (arrow_dataset._interleave_map_style_datasets)."""
    rng, current, exhausted = np.random.default_rng(seed), [0] * len(lengths), np.full(len(lengths), False)
    out: list[tuple[int, int]] = []
    while True:
        for source in (int(i) for i in rng.choice(len(lengths), size=1000, p=shares)):
            if np.all(exhausted) if oversampling else np.any(exhausted):
                return out
            out.append((source, current[source]))
            current[source] += 1
            if current[source] >= lengths[source]:
                exhausted[source] = True
                current[source] = 0


@given(
    st.lists(st.tuples(st.integers(1, 1500), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(0, 2**31),
    st.booleans(),
)
def test_the_order_is_hugging_faces(sizes: list[tuple[int, int]], seed: int, over: bool) -> None:
    lengths, shares = [n for n, _ in sizes], np.array([w for _, w in sizes]) / sum(w for _, w in sizes)
    source, document = draw(lengths, shares, "interleave_over" if over else "interleave_under", seed)
    expected = as_hugging_face(lengths, shares.tolist(), seed, over)
    assert list(zip(source.tolist(), document.tolist(), strict=True)) == expected


def test_blend_by_count_and_again(tmp_path: Path) -> None:
    given = [tuning(tmp_path / "a", 0, 5), tuning(tmp_path / "b", 500, 9)]
    one = blend(given, [3, 1], tmp_path / "one", 40, seed=1)
    two = blend(given, [3, 1], tmp_path / "two", 40, seed=1)
    other = blend(given, [3, 1], tmp_path / "other", 40, seed=2)
    assert len(firsts(one)) == 40
    assert firsts(one) == firsts(two) != firsts(other)
    assert [n for n in firsts(one) if n < 500][:7] == [0, 1, 2, 3, 4, 0, 1]
    assert sum(n < 500 for n in firsts(one)) > 20
    under = blend(given, None, tmp_path / "under", "interleave_under")
    assert under.documents < 14
    assert blend(given, None, tmp_path / "all", "concat").documents == 14
    assert (one.manifest or {})["recipe"]["weights"] == [0.75, 0.25]


def test_blends_that_cannot_be(tmp_path: Path) -> None:
    a, empty = tuning(tmp_path / "a", 0, 5), tuning(tmp_path / "e", 0, 0)
    for weights, strategy, said in (
        ([1.0], "concat", "weights have no effect"),
        ([1.0, 0.0], "interleave_over", "expected a positive number"),
        ([1.0], "interleave_over", "for 2 datasets"),
        ([1.0, float("nan")], 3, "expected a positive number"),
        (None, "shuffle", "expected concat, interleave_under"),
        (None, 0, "expected 1 or more"),
        ([1.0, 1e-9], "interleave_over", "documents would be drawn from 10"),
    ):
        with pytest.raises(ToolError, match=said):
            blend([a, a], weights, tmp_path / "out", strategy)
    with pytest.raises(ToolError, match="dataset 2 has no documents"):
        blend([a, empty], None, tmp_path / "out", 3)
    assert not [file for file in tmp_path.iterdir() if file.name.startswith((".", "out"))]


def test_datasets_that_cannot_be_one(tmp_path: Path) -> None:
    one = tuning(tmp_path / "a", 0, 5, tokenizer_sha256="t")
    for other, said in (
        (texts(tmp_path / "t", A), "keys: attention_mask, input_ids, labels in"),
        (tuning(tmp_path / "b", 0, 5, tokenizer_sha256="u"), "different tokenizers"),
    ):
        with pytest.raises(ToolError, match=said):
            concatenate([one, other], tmp_path / "out")
    with pytest.raises(ToolError, match=r"dtypes: text uint16 in .*, but text int32 in"):
        concatenate([texts(tmp_path / "t", A), texts(tmp_path / "u", A, "int32")], tmp_path / "out")
    assert concatenate([one, tuning(tmp_path / "c", 9, 1)], tmp_path / "out").documents == 6  # foreign: no manifest, no objection


def test_other_tokens_under_the_same_index_are_other_data(tmp_path: Path) -> None:
    """As of packed datasets with as many samples, whose names are the same too."""
    for name in "xy":
        (tmp_path / name).mkdir()
    one, other = texts(tmp_path / "x/c", [[[1]], [[2]]]), texts(tmp_path / "y/c", [[[3]], [[4]]])
    assert one.main.idx.read_bytes() == other.main.idx.read_bytes()
    concatenate([one], tmp_path / "out")
    with pytest.raises(ToolError, match="is there already"):
        concatenate([other], tmp_path / "out")
    assert concatenate([one], tmp_path / "out").already


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    a = texts(tmp_path / "a", A)
    texts(tmp_path / "out", B)
    with pytest.raises(ToolError, match=r"out_text_document.bin is there already") as fault:
        concatenate([a, a], tmp_path / "out")
    assert "--force" in str(fault.value.hint)
    assert read(find_dataset(str(tmp_path / "out")), "text") == B
    assert read(concatenate([a, a], tmp_path / "out", force=True), "text") == A + A
    assert concatenate([a, a], tmp_path / "out").already
    raw = a.main.bin.read_bytes()
    a.main.bin.write_bytes(raw[::-1])  # the index, which manifests identify, is as it was
    with pytest.raises(ToolError, match="is there already"):
        concatenate([a, a], tmp_path / "out")
    a.main.bin.write_bytes(raw)
    assert (
        read(concatenate([find_dataset(str(tmp_path / "out")), a], tmp_path / "out", force=True), "text") == A * 3
    )  # onto itself


def test_a_fault_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = texts(tmp_path / "a", A)
    before = sorted(file.name for file in tmp_path.iterdir())
    monkeypatch.setattr(combine, "write_index", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ToolError, match=f"{tmp_path}/out: No space") as fault:
        concatenate([a, a], tmp_path / "out")
    assert fault.value.code == Exit.ENVIRONMENT
    assert sorted(file.name for file in tmp_path.iterdir()) == before


def test_sequences_that_do_not_lie_end_to_end(tmp_path: Path) -> None:
    a = texts(tmp_path / "a", [[[1, 2]], [[3]]])
    raw = bytearray(a.main.idx.read_bytes())
    raw[34 + 8 : 34 + 24] = np.array([2, 0], "<i8").tobytes()
    a.main.idx.write_bytes(raw)
    both = concatenate([find_dataset(str(tmp_path / "a"))] * 2, tmp_path / "out")
    assert read(both, "text") == [[[2, 3]], [[1]]] * 2
