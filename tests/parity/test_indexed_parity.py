"""Datasets that megatron-core reads and writes, and ours: the same items, the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from jumar.schema.indexed import DTYPES, IndexedReader, IndexedWriter, dtype_for

DOCUMENTS = [[[1, 2, 3]], [[4], [5, 6]], [[65499, 0, 7, 8], [9], [10, 11]], [[12]]]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@pytest.mark.parametrize("modes", [False, True])
def test_both_ways(tmp_path: Path, dtype: type[np.generic], modes: bool) -> None:
    theirs = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype, multimodal=modes)
    with IndexedWriter(tmp_path / "ours", dtype, modes=modes) as ours:
        for number, document in enumerate(DOCUMENTS):
            flat, lengths = [v for s in document for v in s], [len(s) for s in document]
            kinds = [number] * len(lengths)
            theirs.add_document(torch.tensor(flat), lengths, kinds)
            ours.add(flat, lengths, kinds)
    theirs.finalize(str(tmp_path / "theirs.idx"))
    for end in (".bin", ".idx"):
        assert (tmp_path / f"ours{end}").read_bytes() == (tmp_path / f"theirs{end}").read_bytes()

    read = IndexedDataset(str(tmp_path / "ours"), multimodal=modes)
    again = IndexedReader(tmp_path / "theirs")
    assert len(read) == len(again) == 7
    assert read.index.dtype is dtype
    assert again.dtype == dtype
    np.testing.assert_array_equal(read.document_indices, again.documents)
    np.testing.assert_array_equal(read.sequence_lengths, again.lengths)
    np.testing.assert_array_equal(read.index.sequence_pointers, again.pointers)
    for index, sequence in enumerate(again.sequences()):
        item = read[index]
        np.testing.assert_array_equal(item[0] if modes else item, sequence)
    if modes:
        assert again.modes is not None
        assert again.modes.tolist() == [0, 1, 1, 2, 2, 2, 3]


def test_the_same_table_of_dtypes() -> None:
    assert {code.value: np.dtype(code.name) for code in DType} == {code: np.dtype(name) for code, name in DTYPES.items()}
    for size in (100, 65499, 65500, 151936):
        assert dtype_for(size) == DType.optimal_dtype(size)
