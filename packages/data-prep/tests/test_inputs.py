"""What the command line's words mean: files, folders, patterns, standard input; kinds by name and by how a file begins."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from jumar.data_prep.inputs import find_inputs
from jumar.schema.errors import Exit, ToolError


def write(path: Path, content: bytes | str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def kind(path: Path, content: bytes | str) -> str:
    [found] = find_inputs([write(path, content)])
    return found.kind


def test_a_folder_gives_all_files_of_known_kinds_sorted_and_nothing_hidden(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/z.txt", "a/c.csv.gz", "README.md", ".hidden.jsonl", ".git/x.json", "d.parquet", "e.NDJSON"):
        write(tmp_path / name, gzip.compress(b"a,b\n") if name.endswith(".gz") else b"{}\n")
    found = find_inputs([str(tmp_path)])
    assert [str(i.path.relative_to(tmp_path)) for i in found if i.path] == [
        "a/c.csv.gz",
        "a/z.txt",
        "b.jsonl",
        "d.parquet",
        "e.NDJSON",
    ]
    assert [(i.kind, i.compression) for i in found[:2]] == [("csv", "gz"), ("text", None)]


def test_files_keep_their_order_and_their_repetitions_and_say_their_size(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.txt", ""), write(tmp_path / "b.txt", "xy")
    assert [(i.name, i.size) for i in find_inputs([b, a, b])] == [(b, 2), (a, 0), (b, 2)]


def test_a_pattern_is_sorted_and_one_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    for name in ("part-2.jsonl", "part-1.jsonl", "x/part-0.jsonl"):
        write(tmp_path / name, "{}\n")
    assert [Path(i.name).name for i in find_inputs([str(tmp_path / "part-*.jsonl")])] == ["part-1.jsonl", "part-2.jsonl"]
    assert len(find_inputs([str(tmp_path / "**/*.jsonl")])) == 3
    with pytest.raises(ToolError, match="no file matches"):
        find_inputs([str(tmp_path / "*.parquet")])


def test_a_file_whose_name_is_a_pattern_is_that_file(tmp_path: Path) -> None:
    assert len(find_inputs([write(tmp_path / "part[1].txt", "x")])) == 1


@pytest.mark.parametrize("name", ["x.xlsx", "x", "x.parquet.gz", "x.gz"])
def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(ToolError, match="kind") as error:
        find_inputs([write(tmp_path / name, "x")])
    assert ".jsonl" in str(error.value.hint)
    assert error.value.code == Exit.INPUT


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="no such file"):
        find_inputs([str(tmp_path / "none.jsonl")])
    with pytest.raises(ToolError, match="no file below"):
        find_inputs([str(tmp_path)])


@pytest.mark.parametrize(
    "content, expected",
    [
        ("[\n {}]", "array"),
        (b"\xef\xbb\xbf [1]", "array"),
        ('\n\n{"a": 1}\n{"a": 2}\n', "jsonl"),
        ('{"a": 1}', "jsonl"),
        ('{\n  "a": 1\n}\n', "values"),
        ('{"a": 1} {"a": 2}', "values"),
        ("", "jsonl"),
    ],
)
def test_json_is_told_by_how_it_begins(tmp_path: Path, content: bytes | str, expected: str) -> None:
    assert kind(tmp_path / "x.json", content) == expected
    raw = content if isinstance(content, bytes) else content.encode()
    assert kind(tmp_path / "x.json.gz", gzip.compress(raw)) == expected


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_is_named_with_how_to_convert_it(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(ToolError, match="UTF-16") as error:
        find_inputs([write(tmp_path / "x.txt", "\ufeff你好\n".encode(encoding))])
    assert f"iconv -f {encoding.upper().replace('-LE', 'LE').replace('-BE', 'BE')} -t UTF-8" in str(error.value.hint)


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"[1, 2]", "array"),
        (b'{"a": 1}\n{"a": 2}\n', "jsonl"),
        (b'{\n "a": 1}\n', "values"),
        ("你好\n".encode(), "text"),
        (b"", "text"),
    ],
)
@pytest.mark.parametrize("before", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_standard_input_is_told_by_how_it_begins(
    monkeypatch: pytest.MonkeyPatch, before: bytes, content: bytes, expected: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(before + content))))
    [found] = find_inputs(["-"])
    assert (found.path, found.kind, found.size) == (None, expected, None)


def test_standard_input_comes_once_and_uncompressed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(gzip.compress(b"{}\n")))))
    with pytest.raises(ToolError, match="compressed") as error:
        find_inputs(["-"])
    assert "gzip -dc" in str(error.value.hint)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(b"{}\n"))))
    with pytest.raises(ToolError, match="twice"):
        find_inputs(["-", "-"])


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    code = (
        "from jumar.data_prep.inputs import find_inputs\nfrom jumar.data_prep.blocks import blocks\n"
        "from jumar.data_prep.rows import Rows\n"
        "print(sum(row.value['n'] for block in blocks(find_inputs(['-']), 1000) for row in Rows(block)))"
    )
    lines = "".join(json.dumps({"n": n}) + "\n" for n in range(5000))
    run = subprocess.run([sys.executable, "-c", code], input=lines, capture_output=True, text=True, timeout=60, check=True)
    assert int(run.stdout) == sum(range(5000))
