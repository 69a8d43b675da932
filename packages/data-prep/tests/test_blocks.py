"""Real files of every kind, whole and broken: what comes out of their blocks is what was put in, in order, on the right lines."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
import subprocess
import sys
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from block_files import THREE, Read, Record, lines_of, parquet, write, zst
from jumar.data_prep import elements, tables
from jumar.data_prep.blocks import blocks
from jumar.data_prep.inputs import find_inputs
from jumar.data_prep.payloads import ByteRange, Fault, Row
from jumar.data_prep.rows import Rows

NAMES = [
    "a.jsonl", "a.ndjson.gz", "a.jsonl.zst", "a.json", "array.json", "array-flat.json.gz", "array.json.zst", "values.json",
    "a.csv", "a.tsv.gz", "a.csv.zst", "a.parquet", "stream.arrow", "file.arrow", "file.feather",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_gives_the_records_in_order(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, THREE * 5)
    read = Read(tmp_path / name)
    assert read.records == THREE * 5
    assert (read.bad, read.fault) == ([], None)
    assert len(read.blocks) > 2
    assert [b.number for b in read.blocks] == list(range(len(read.blocks)))


@pytest.mark.parametrize("name", NAMES)
def test_skipping_is_leaving_out_the_first_blocks(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, THREE * 3)
    (tmp_path / "zz.txt").write_text("x\n" * 50)
    inputs = find_inputs([str(tmp_path / name), str(tmp_path / "zz.txt")])
    whole = list(blocks(inputs, 64))
    for count in range(len(whole) + 1):
        assert list(blocks(inputs, 64, skip=count)) == whole[count:]


def test_lines_are_numbered_as_an_editor_does(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[\n  {"a": 1}, {"a": 2},\n\n  {\n    "a": 3\n  }\n]\n')
    (tmp_path / "b.csv").write_text('a,b\n1,"x\ny"\n\n2,z\n')
    (tmp_path / "c.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    assert [n for n, _ in Read(tmp_path / "a.json", 1).rows] == [2, 2, 4]
    assert [n for n, _ in Read(tmp_path / "b.csv", 1).rows] == [2, 5]
    assert [n for n, _ in Read(tmp_path / "c.jsonl", 1).rows] == [1, 3]
    assert Read(tmp_path / "b.csv").blank == Read(tmp_path / "c.jsonl").blank == 1


def test_plain_lines_stay_where_they_are_and_blocks_stay_small(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"n": n, "pad": "x" * 1000} for n in range(200)])
    read = Read(tmp_path / "a.jsonl", 10_000)
    payloads = [b.payload for b in read.blocks]
    assert all(isinstance(p, ByteRange) for p in payloads)
    assert all(10_000 <= p.size < 12_000 for p in payloads[:-1] if isinstance(p, ByteRange))
    assert max(len(pickle.dumps(b)) for b in read.blocks) < 500
    assert [r["n"] for r in read.records] == list(range(200))


# --- text


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_text_is_a_record_a_line(tmp_path: Path, suffix: str) -> None:
    data = b"\xef\xbb\xbf" + "一\r\n \n\n  two\n\u3000\nNUL\0\nlast".encode()
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes({".gz": gzip.compress, ".zst": zst}.get(suffix, bytes)(data))
    for size in (1, 7, 1000):
        read = Read(path, size)
        assert read.rows == [(1, {"text": "一"}), (4, {"text": "  two"}), (6, {"text": "NUL\0"}), (7, {"text": "last"})]
        assert read.blank == 3


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow", "a.txt.gz", "a.txt.zst"])
def test_an_empty_file_has_no_block(tmp_path: Path, name: str) -> None:
    data = {".gz": gzip.compress(b""), ".zst": zst(b"")}.get(Path(name).suffix, b"")
    (tmp_path / name).write_bytes(data)
    assert Read(tmp_path / name).blocks == []


def test_blank_lines_alone_give_no_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n \r\n\t\n\n")
    read = Read(tmp_path / "a.jsonl", 1)
    assert (read.records, read.bad, read.blank) == ([], [], 4)


# --- bad records


def test_bad_lines_say_what_is_wrong_and_the_others_come_through(tmp_path: Path) -> None:
    lines = [b'{"a": 1}', b'{"a": "\xff"}', b'{"a": NaN}', b"[1]", b"\0\0", b'{"a": "\\ud800"}', b'{"a": 1, "a": 2}\r', b'{"a"']
    for name, press in (("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress)):
        (tmp_path / name).write_bytes(press(b"\n".join(lines)))
        for size in (1, 20, 1 << 20):
            read = Read(tmp_path / name, size)
            assert read.rows == [(1, {"a": 1}), (7, {"a": 2})]
            assert [(b.line, b.reason) for b in read.bad] == [
                (2, "not UTF-8"), (3, "not JSON"), (4, "not an object"), (5, "not JSON"), (6, "not JSON"), (8, "not JSON"),
            ]  # fmt: skip
    assert read.bad[0].detail == "at byte 7"
    assert read.bad[0].excerpt == '{"a": "\\xff"}'
    assert "column 7" in read.bad[1].detail


def test_bad_bytes_in_the_middle_of_a_long_file_cost_one_record(tmp_path: Path) -> None:
    data = bytearray(lines_of([{"n": n} for n in range(1000)]))
    data[data.index(b"500") - 1] = 0xC0
    (tmp_path / "a.jsonl").write_bytes(data)
    read = Read(tmp_path / "a.jsonl", 1000)
    assert [r["n"] for r in read.records] == [n for n in range(1000) if n != 500]
    assert [b.line for b in read.bad] == [501]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.jsonl.gz", "a.txt.zst", "a.csv", "values.json"])
@pytest.mark.parametrize("block_bytes", [64, 5000, 1 << 20])
def test_a_record_too_long_is_bad_and_what_follows_is_good(tmp_path: Path, name: str, block_bytes: int) -> None:
    write(tmp_path / name, [{"text": "a"}, {"text": "b" * 30_000}, {"text": "c"}, {"text": "d" * 900}])
    read = Read(tmp_path / name, block_bytes, max_record_bytes=1000)
    assert [(b.reason, len(b.excerpt)) for b in read.bad] == [("record too long", 200)]
    assert len(read.records) == 3
    assert read.rows[-1][0] - read.bad[0].line == (6 if name == "values.json" else 2)


@pytest.mark.parametrize("length", [998, 999, 1000, 1001, 1002])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_what_is_too_long_does_not_depend_on_where_the_blocks_are_cut(
    tmp_path: Path, length: int, last: bool, suffix: str
) -> None:
    path = tmp_path / f"a.txt{suffix}"
    data = b"x" * 10 + b"\n" + b"y" * length + (b"" if last else b"\nz\n")
    path.write_bytes(gzip.compress(data) if suffix else data)
    for block_bytes in (1, 11, 12, 500, 1010, 1011, 1012, 1013, 5000):
        read = Read(path, block_bytes, max_record_bytes=1000)
        assert [b.line for b in read.bad] == ([2] if length > 1000 else [])
        assert len(read.records) == 3 - last - (length > 1000)


def test_csv_rows_of_another_length_are_bad_and_quotes_hold_anything(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(
        b'\xef\xbb\xbfq,a\r\n1,"two\r\nlines, a comma and ""quotes"""\r\n1\r\n1,2,3\r\n\xff,2\r\n1,"a"b\r\n\r\n\xe4\xbd\xa0,\r\n'
    )
    for size in (1, 1000):
        read = Read(tmp_path / "a.csv", size)
        assert read.rows == [(2, {"q": "1", "a": 'two\r\nlines, a comma and "quotes"'}), (9, {"q": "你", "a": ""})]
        assert [(b.line, b.reason) for b in read.bad] == [
            (4, "wrong number of fields"), (5, "wrong number of fields"), (6, "not UTF-8"), (7, "not CSV"),
        ]  # fmt: skip


@pytest.mark.parametrize("quoted", [True, False])
def test_a_csv_line_too_long_leaves_the_rows_around_it(tmp_path: Path, quoted: bool) -> None:
    long = "x" * 5000
    (tmp_path / "a.csv").write_text(f'q,a\n1,2\n3,"{long}\nend"\n5,6\n' if quoted else f"q,a\n1,2\n3,{long}\n5,6\n")
    read = Read(tmp_path / "a.csv", max_record_bytes=1000)
    assert [r["q"] for r in read.records] == ["1", "5"]
    assert [(b.line, b.reason) for b in read.bad] == [(3, "record too long")]


@pytest.mark.parametrize("header", [b"a,a\n1,2\n", b"a,,b\n1,2,3\n", b"\n1,2\n", b'"a\n1,2\n', b"\xc4\xe3,a\n1,2\n"])
def test_a_csv_without_names_is_a_fault(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(header)
    read = Read(tmp_path / "a.csv")
    assert read.records == []
    assert read.fault
    assert read.fault.line == 1


# --- broken files


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("kind", ["a.jsonl", "array.json", "a.csv"])
def test_a_cut_compressed_file_gives_what_is_whole_in_it(tmp_path: Path, kind: str, suffix: str) -> None:
    import random

    random.seed(1)
    records: list[Record] = [{"text": random.randbytes(30).hex(), "n": str(n)} for n in range(20_000)]
    write(tmp_path / (kind + suffix), records)
    whole = (tmp_path / (kind + suffix)).read_bytes()
    for share in (0.3, 0.8, 0.999):
        (tmp_path / (kind + suffix)).write_bytes(whole[: int(len(whole) * share)])
        read = Read(tmp_path / (kind + suffix), 100_000)
        assert read.fault
        assert "cut" in read.fault.what or "Truncated" in read.fault.what
        good = read.records
        assert good == records[: len(good)]
        assert abs(len(good) / len(records) - share) < 0.15  # zstd works in blocks of 128 KiB
        assert len(read.bad) == (1 if kind == "a.csv" and read.bad else 0)


def test_of_a_cut_gz_every_whole_line_is_there(tmp_path: Path) -> None:
    press = zlib.compressobj(wbits=31)
    (tmp_path / "a.txt.gz").write_bytes(press.compress(b"one\ntwo\nthr") + press.flush(zlib.Z_SYNC_FLUSH))
    read = Read(tmp_path / "a.txt.gz")
    assert read.records == [{"text": "one"}, {"text": "two"}]  # "thr" would pass for a line
    assert read.fault == Fault(str(tmp_path / "a.txt.gz"), 3, "the compressed file is cut: it ends in the middle")


def test_members_and_frames_follow_one_another_and_what_is_neither_is_a_fault(tmp_path: Path) -> None:
    for suffix, press in ((".gz", gzip.compress), (".zst", zst)):
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(press(b"one\ntw") + press(b"o\n"))
        assert Read(path).records == [{"text": "one"}, {"text": "two"}]
        path.write_bytes(press(b"one\n") + b"garbage and more of it")
        read = Read(path)
        assert read.records == [{"text": "one"}]
        assert read.fault
        path.write_bytes(b"one\n")
        read = Read(path)
        assert read.records == []
        assert read.fault


@pytest.mark.parametrize(
    "text, good, line, what",
    [
        ('[{"a": 1},\n{"a": 2},\n{"a": ', 2, 3, "middle of a value"),
        ('[{"a": 1},\n{"a": 2}', 2, 2, "not closed"),
        ('[{"a": 1},\n', 1, 2, "not closed"),
        ("[", 0, 1, "not closed"),
        ('[{"a": 1}\n{"a": 2}]', 1, 2, "comma"),
        ('[{"a": 1},\n,{"a": 2}]', 1, 2, "before this comma"),
        ('[{"a": 1},\n{"a": tru}]', 1, 2, "not JSON"),
        ('[{"a": 1},\n{"a": 2 "b": 3},\n{"c": "' + "x" * 100 + '"}]', 1, 2, "not JSON"),
        ('[{"a": 1}]\n[{"a": 2}]', 1, 2, "follows the end"),
        ('[{"a": 1},\n{"a": "no end', 1, 2, "middle of a value"),
        ("[" + "[" * 100_000, 0, 1, "nested"),
    ],
)
def test_a_broken_array_gives_what_stands_before(tmp_path: Path, text: str, good: int, line: int, what: str) -> None:
    (tmp_path / "a.json").write_text(text)
    read = Read(tmp_path / "a.json", 1)
    assert len(read.records) == good
    assert read.fault
    assert read.fault.line == line
    assert what in read.fault.what


def test_in_an_array_a_bad_element_is_bad_alone_if_its_end_is_known(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'[{"a": 1},\n{"a": "\xff"},\n3,\n{"a": NaN},\n{"a": "tab\there"},\n{"a": 2},]')
    read = Read(tmp_path / "a.json", 1)
    assert read.records == [{"a": 1}, {"a": 2}]
    assert [(b.line, b.reason) for b in read.bad] == [
        (2, "not UTF-8"), (3, "not an object"), (4, "not JSON"), (5, "not JSON"),
    ]  # fmt: skip
    assert read.fault is None


def test_among_values_a_broken_one_ends_where_the_next_object_begins(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{\n  "a": 1,,\n}\n{\n  "a": 2\n}\n{"a": 3} {"a": 4}\n{"a": ')
    read = Read(tmp_path / "a.json", 1)
    assert read.rows == [(4, {"a": 2}), (7, {"a": 3}), (7, {"a": 4})]
    assert [(b.line, b.reason) for b in read.bad] == [(1, "not JSON")]
    assert read.fault == Fault(str(tmp_path / "a.json"), 8, "the file ends in the middle of a value")


def test_numbers_are_not_cut_where_the_buffer_ends(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" + ", ".join(["1234567890"] * 200_000) + "]")
    assert {b.excerpt for b in Read(tmp_path / "a.json", 1 << 20).bad} == {"1234567890"}


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 11])
def test_values_may_be_read_in_pieces_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(elements, "_CHUNK_BYTES", chunk)
    one = '{"a": -12.5e+10, "b": [true, false, null], "c": "\\u4f60\\ud83d\\ude00好\\\\\\"", "d": {}}'
    for name, text in (("a.json", f"[{one} ,\n{one},{one}\n]\n"), ("b.json", f"{one} {one}\n{one}")):
        (tmp_path / name).write_text(text, encoding="utf-8")
        read = Read(tmp_path / name, 1)
        assert read.rows == [(n, json.loads(one)) for n in ((1, 2, 2) if name == "a.json" else (1, 1, 2))]
        assert (read.bad, read.fault) == ([], None)
    (tmp_path / "c.json").write_text('{"a": 1,,}\n{"a": 2}\n\n{"a" 3}\n', encoding="utf-8")
    read = Read(tmp_path / "c.json", 1)
    assert read.rows == [(2, {"a": 2})]
    assert [(b.line, b.excerpt) for b in read.bad] == [(1, '{"a": 1,,}'), (4, '{"a" 3}')]


def test_a_broken_value_may_end_where_what_is_read_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = '{"a": 1,, "b": "0123456789"}\n'
    monkeypatch.setattr(elements, "_CHUNK_BYTES", len(broken))
    (tmp_path / "a.json").write_text(broken + '{"a": 2}\n')
    read = Read(tmp_path / "a.json", 1)
    assert (read.rows, [b.line for b in read.bad]) == ([(2, {"a": 2})], [1])


def test_an_array_that_never_ends_a_value_is_not_held_in_memory(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"a": 1}, {"a": "' + "x" * 3_000_000)
    read = Read(tmp_path / "a.json", max_record_bytes=1000)
    assert read.fault
    assert "too long" in read.fault.what


@pytest.mark.parametrize("name", ["a.parquet", "stream.arrow", "file.arrow"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_table_is_a_fault_and_arrow_gives_its_whole_batches(tmp_path: Path, name: str, share: float) -> None:
    records = [{"text": f"{n}" * 50} for n in range(100)]
    write(tmp_path / name, records)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    read = Read(tmp_path / name, 1000)
    assert read.fault
    assert read.records == records[: len(read.records)]
    if name != "a.parquet" and share > 0.1:
        assert len(read.records) > 100 * share * 0.6


def test_a_table_damaged_in_the_middle_gives_what_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet(path, [{"text": f"{n} " * 100} for n in range(100)], row_group_size=50, compression="zstd")
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 200] = b"\xaa" * 200
    path.write_bytes(data)
    read = Read(path, 1 << 20)
    assert len(read.records) == 50
    assert read.fault
    assert read.fault.line == 51
    assert "49 more" in read.fault.what


def test_text_in_a_table_that_is_not_utf8_costs_its_row(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"\xff", b"fine"], pa.binary())
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 3, raw.buffers())})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False)
    read = Read(tmp_path / "a.parquet")
    assert read.rows == [(1, {"text": "good"}), (3, {"text": "fine"})]
    assert [(b.line, b.reason, b.excerpt) for b in read.bad] == [(2, "not UTF-8", "\\xff")]


def test_a_large_row_group_and_many_small_ones_are_cut_alike(tmp_path: Path) -> None:
    records = [{"text": str(n).zfill(100)} for n in range(3000)]
    for rows in (7, 3000):
        parquet(tmp_path / "a.parquet", records, row_group_size=rows, use_dictionary=False)
        tables.forget()
        read = Read(tmp_path / "a.parquet", 20_000)
        assert read.rows == list(enumerate(records, 1))
        assert 10 < len(read.blocks) < 40


def test_blocks_of_a_table_may_be_read_in_any_order(tmp_path: Path) -> None:
    for name in ("a.parquet", "stream.arrow"):
        write(tmp_path / name, [{"text": str(n)} for n in range(50)])
        read = [
            [row.value["text"] for row in Rows(b) if isinstance(row, Row)] for b in reversed(Read(tmp_path / name, 30).blocks)
        ]
        assert [int(n) for part in reversed(read) for n in part] == list(range(50))


def test_a_file_that_became_shorter_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, [{"n": n} for n in range(100)])
    [block] = blocks(find_inputs([str(path)]))
    path.write_bytes(path.read_bytes()[:500])
    rows = Rows(block)
    assert 30 < len(list(rows)) < 60
    assert rows.fault
    assert "shorter" in rows.fault.what


# --- any records, any block size

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
RECORDS = st.lists(st.fixed_dictionaries({"text": TEXTS, "b": TEXTS}), min_size=1, max_size=30)


def cuts(data: bytes, block_bytes: int) -> int:
    """How many blocks: each ends with the line that its `block_bytes`-th byte falls into."""
    at = count = 0
    while at < len(data):
        end = data.find(b"\n", at + block_bytes - 1) + 1
        at, count = end or len(data), count + 1
    return count


@settings(max_examples=60, deadline=None)
@given(records=RECORDS, block_bytes=st.integers(1, 400), indent=st.sampled_from([None, 1]), blank=st.integers(0, 2))
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_any_lines_and_arrays(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, records: list[Record], block_bytes: int, indent: int | None, blank: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    press = {".gz": gzip.compress, ".zst": zst}.get(suffix, bytes)
    lines = ("\n" * blank).join(json.dumps(r) + "\n" for r in records)
    (folder / f"a.jsonl{suffix}").write_bytes(press(lines.encode()))
    read = Read(folder / f"a.jsonl{suffix}", block_bytes)
    assert len(read.blocks) == cuts(lines.encode(), block_bytes)
    assert read.rows == [(1 + n * (1 + blank), r) for n, r in enumerate(records)]
    assert read.blank == blank * (len(records) - 1)

    array = json.dumps(records, ensure_ascii=False, indent=indent)
    (folder / f"b.json{suffix}").write_bytes(press(array.encode()))
    read = Read(folder / f"b.json{suffix}", block_bytes)
    assert read.records == records
    if indent is None:
        assert {n for n, _ in read.rows} == {1}
    else:
        assert [n for n, _ in read.rows] == [2 + 4 * n for n in range(len(records))]
    assert (read.bad, read.fault) == ([], None)


@settings(max_examples=60, deadline=None)
@given(records=RECORDS, block_bytes=st.integers(1, 400), group=st.integers(1, 9))
def test_any_tables(tmp_path_factory: pytest.TempPathFactory, records: list[Record], block_bytes: int, group: int) -> None:
    folder = tmp_path_factory.mktemp("any")
    pq.write_table(pa.Table.from_pylist(records), folder / "a.parquet", row_group_size=group)
    assert Read(folder / "a.parquet", block_bytes).rows == list(enumerate(records, 1))
    table = pa.Table.from_pylist(records)
    for new, name in ((pa.ipc.new_stream, "b.arrow"), (pa.ipc.new_file, "c.arrow")):
        with new(str(folder / name), table.schema) as writer:
            writer.write_table(table, max_chunksize=group)
        assert Read(folder / name, block_bytes).rows == list(enumerate(records, 1))


@settings(max_examples=60, deadline=None)
@given(records=RECORDS, block_bytes=st.integers(1, 400))
def test_any_csv(tmp_path_factory: pytest.TempPathFactory, records: list[Record], block_bytes: int) -> None:
    path = tmp_path_factory.mktemp("any") / "a.csv"
    records = [{k: v.replace("\0", "") for k, v in r.items()} for r in records]  # the csv module of Python 3.10 refuses NUL
    out = io.StringIO()
    lines = []
    writer = csv.DictWriter(out, ["text", "b"], quoting=csv.QUOTE_ALL)
    writer.writeheader()
    for record in records:
        lines.append(out.getvalue().count("\n") + 1)
        writer.writerow(record)
    path.write_bytes(out.getvalue().encode())
    assert Read(path, block_bytes).rows == list(zip(lines, records, strict=True))


# --- memory

STREAM = """
import resource, sys
from jumar.data_prep.blocks import blocks
from jumar.data_prep.inputs import find_inputs
from jumar.data_prep.rows import Rows
import orjson, pyarrow.parquet
inputs = find_inputs(sys.argv[1:])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = sum(1 for block in blocks(inputs) for row in Rows(block))
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.csv", "a.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    path, count = tmp_path / name, 30_000  # 60 MB
    texts = [f"{n:06}" + "0123456789" * 200 for n in range(count)]
    if name == "a.parquet":
        table = pa.table({"text": texts})
        pq.write_table(table, path, row_group_size=count, use_dictionary=False)
    else:
        body = {"a.json": json.dumps([{"text": t} for t in texts], indent=0), "a.csv": "text\n" + "\n".join(texts)}
        data = body.get(name, "".join(f'{{"text": "{t}"}}\n' for t in texts)).encode()
        path.write_bytes({".gz": lambda d: gzip.compress(d, 1), ".zst": zst}.get(path.suffix, bytes)(data))
    run = subprocess.run([sys.executable, "-c", STREAM, path], capture_output=True, text=True, timeout=120, check=True)
    rows, grown_kib = map(int, run.stdout.split())
    assert rows == count
    assert grown_kib < 45 * 1024, f"{grown_kib // 1024} MiB for a file of 60 MB in blocks of 4 MiB"


def test_a_line_of_seventy_megabytes_is_never_held(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": 1}\n{"a": "')
        for _ in range(70):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"a": 2}\n')
    code = STREAM.replace("blocks(inputs)", "blocks(inputs, max_record_bytes=1 << 20)")
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=120, check=True)
    rows, grown_kib = map(int, run.stdout.split())
    assert rows == 3
    assert grown_kib < 30 * 1024
