"""Indexed datasets against a literal reading of the format, and every way in which files can be wrong."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jumar.schema import indexed
from jumar.schema.errors import ToolError
from jumar.schema.indexed import IndexedReader, IndexedWriter, dtype_for, write_index

CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float64": 6, "float32": 7, "uint16": 8}


def literal_index(dtype: str, lengths: list[int], documents: list[int], modes: list[int] | None = None) -> bytes:
    """The .idx spelled out."""
    size, at, out = np.dtype(dtype).itemsize, 0, b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, CODES[dtype])
    out += struct.pack("<QQ", len(lengths), len(documents)) + struct.pack(f"<{len(lengths)}i", *lengths)
    for length in lengths:
        out += struct.pack("<q", at)
        at += length * size
    out += struct.pack(f"<{len(documents)}q", *documents)
    return out + (struct.pack(f"{len(modes)}b", *modes) if modes is not None else b"")


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """Three sequences (3, 0 and 2 numbers) in two documents."""
    (tmp_path / "x.bin").write_bytes(struct.pack("<5H", 1, 2, 65499, 4, 5))
    (tmp_path / "x.idx").write_bytes(literal_index("uint16", [3, 0, 2], [0, 2, 3]))
    return tmp_path / "x"


@pytest.mark.parametrize("end", ["", ".bin", ".idx"])
def test_reads(pair: Path, end: str) -> None:
    reader = IndexedReader(pair.with_name("x" + end))
    assert reader.dtype == np.uint16
    assert len(reader) == 3
    assert [s.tolist() for s in reader.sequences()] == [[1, 2, 65499], [], [4, 5]]
    assert [s.tolist() for s in reader.sequences(1, 3)] == [[], [4, 5]]
    assert reader[-1].tolist() == [4, 5]
    assert reader.values(0, 3).tolist() == [1, 2, 65499, 4, 5]
    assert reader.documents.tolist() == [0, 2, 3]
    assert reader.pointers.tolist() == [0, 6, 6]
    assert reader.modes is None
    assert reader.contiguous
    assert not reader[0].flags.owndata
    assert not reader[0].flags.writeable
    with pytest.raises(IndexError):
        reader[3]


def test_a_prefix_with_dots(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "qwen2.5_text_document", np.int32) as writer:
        writer.add([1, 2])
    assert IndexedReader(tmp_path / "qwen2.5_text_document")[0].tolist() == [1, 2]


def test_sequences_in_another_order_than_the_bin(pair: Path) -> None:
    raw = bytearray(literal_index("uint16", [2, 3], [0, 1, 2]))
    raw[34 + 8 : 34 + 24] = struct.pack("<2q", 6, 0)
    pair.with_name("x.idx").write_bytes(raw)
    reader = IndexedReader(pair)
    assert not reader.contiguous
    assert reader.values(0, 2).tolist() == [4, 5, 1, 2, 65499]


def test_nothing_in_it(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "x", np.int32):
        pass
    reader = IndexedReader(tmp_path / "x")
    assert (len(reader), reader.documents.tolist(), list(reader.sequences())) == (0, [0], [])


def test_one_number_per_chunk(pair: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(indexed, "CHUNK", 1)
    write_index(tmp_path / "y.idx", "uint16", np.array([3, 0, 2]), np.array([0, 2, 3]), np.array([0, 1, -1]))
    assert (tmp_path / "y.idx").read_bytes() == literal_index("uint16", [3, 0, 2], [0, 2, 3], [0, 1, -1])
    assert IndexedReader(pair).contiguous
    pair.with_name("x.idx").write_bytes(literal_index("uint16", [3, 0, 2], [0, 2, 1, 3]))
    with pytest.raises(ToolError, match="document 1 runs from sequence 2 to 1"):
        IndexedReader(pair)
    with pytest.raises(ValueError, match="ascending"):
        write_index(tmp_path / "z.idx", "uint16", np.array([3, 0, 2]), np.array([0, 2, 1, 3]))


def patched(at: int, layout: str, value: int) -> bytes:
    raw = bytearray(literal_index("uint16", [3, 0, 2], [0, 2, 3]))
    struct.pack_into(layout, raw, at, value)
    return bytes(raw)


WHOLE = literal_index("uint16", [3, 0, 2], [0, 2, 3])


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"PK\x03\x04" + WHOLE[4:], r"begins with b'PK"),
        (b"", r"begins with b''"),
        (WHOLE[:20], r"20 bytes, the header alone has 34"),
        (patched(9, "<Q", 2), r"version 2, this reader knows 1"),
        (patched(17, "<B", 9), r"dtype code 9, expected one of 1 = uint8"),
        (WHOLE[:-1], r"was cut: 93 bytes, but 3 sequences and 3 entries of documents make 94 \(or 97 with modes\)"),
        (WHOLE + b"\0", r"does not end where it should: 95 bytes"),
        (patched(18, "<Q", 1 << 60), r"was cut"),
        (patched(34, "<i", -1), r"sequence 0 has length -1, expected 0 or more"),
        (patched(46 + 16, "<q", 8), r"x.bin: 10 bytes, but x.idx puts sequence 2 of 3 at bytes 8 to 12"),
        (patched(46 + 16, "<q", -2), r"at bytes -2 to 2"),
        (patched(46 + 16, "<q", (1 << 63) - 2), r"sequence 2 of 3"),  # the end overflows
        (patched(70 + 8, "<q", 4), r"document 1 runs from sequence 4 to 3, expected ascending"),
        (patched(70 + 16, "<q", 2), r"documents: from 0 to 2, expected from 0 to 3"),
        (literal_index("uint16", [3, 0, 2], []), r"documents: no entries"),
    ],
)
def test_a_wrong_index_is_named(pair: Path, raw: bytes, said: str) -> None:
    pair.with_name("x.idx").write_bytes(raw)
    with pytest.raises(ToolError, match=said) as fault:
        IndexedReader(pair)
    assert fault.value.hint


def test_a_cut_bin(pair: Path) -> None:
    pair.with_name("x.bin").write_bytes(b"123456789")
    with pytest.raises(ToolError, match=r"x.bin: 9 bytes, but x.idx puts sequence 2 of 3 at bytes 6 to 10"):
        IndexedReader(pair)


@pytest.mark.parametrize("gone", ["x.bin", "x.idx"])
def test_half_a_pair(pair: Path, gone: str) -> None:
    pair.with_name(gone).unlink()
    with pytest.raises(ToolError, match=f"{gone} is not there") as fault:
        IndexedReader(pair)
    assert "needs it beside it" in str(fault.value.hint)


@given(
    dtype=st.sampled_from(["uint8", "int16", "int32", "int64", "uint16"]),
    documents=st.lists(st.lists(st.lists(st.integers(0, 127), max_size=5), max_size=3), max_size=6),
    modes=st.booleans(),
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, dtype: str, documents: list[list[list[int]]], modes: bool) -> None:
    prefix = tmp_path_factory.mktemp("round") / "x"
    kinds = [[len(s) - 1 for s in d] for d in documents]
    with IndexedWriter(prefix, dtype, modes=modes) as writer:
        for document, kind in zip(documents, kinds, strict=True):
            writer.add([v for s in document for v in s], [len(s) for s in document], kind)
    flat = [s for d in documents for s in d]
    ends = np.cumsum([0] + [len(d) for d in documents]).tolist()
    flat_kinds = [m for k in kinds for m in k]
    assert prefix.with_name("x.idx").read_bytes() == literal_index(
        dtype, [len(s) for s in flat], ends, flat_kinds if modes else None
    )
    reader = IndexedReader(prefix)
    assert [s.tolist() for s in reader.sequences()] == flat
    assert reader.documents.tolist() == ends
    assert reader.dtype == dtype
    assert (reader.modes.tolist() if reader.modes is not None else []) == (flat_kinds if modes else [])


def test_many_documents_at_once(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "x", "uint16") as writer:
        writer.add([7], [1])
        writer.add_each(np.array([1, 2, 3]), [2, 1])
    reader = IndexedReader(tmp_path / "x")
    assert reader.documents.tolist() == [0, 1, 2, 3]
    assert [s.tolist() for s in reader.sequences()] == [[7], [1, 2], [3]]


def test_a_number_too_large_is_refused_not_wrapped(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="numbers from 1 to 65536 in a dataset of uint16"),
        IndexedWriter(tmp_path / "x", "uint16") as w,
    ):
        w.add([1, 65536])
    assert not (tmp_path / "x.idx").exists()


@pytest.mark.parametrize(
    ("dtype", "lengths", "documents", "modes", "said"),
    [
        ("complex64", [1], [0, 1], None, "dtype complex64"),
        ("int32", [1, 1], [0, 1], None, "documents must run from 0 to 2"),
        ("int32", [1], [], None, "documents must run from 0 to 1"),
        ("int32", [1, 1], [0, 2], [1], "1 modes for 2"),
        ("int32", [-1], [0, 1], None, "expected 0 to 2147483647"),
        ("int32", [1 << 31], [0, 1], None, "expected 0 to 2147483647"),
    ],
)
def test_what_cannot_be_written(
    tmp_path: Path, dtype: str, lengths: list[int], documents: list[int], modes: list[int] | None, said: str
) -> None:
    given_modes = None if modes is None else np.array(modes)
    with pytest.raises(ValueError, match=said):
        write_index(tmp_path / "x.idx", dtype, np.array(lengths), np.array(documents), given_modes)


@pytest.mark.parametrize(("size", "dtype"), [(100, "uint16"), (65499, "uint16"), (65500, "int32"), (151936, "int32")])
def test_dtype_for(size: int, dtype: str) -> None:
    assert dtype_for(size) == dtype
