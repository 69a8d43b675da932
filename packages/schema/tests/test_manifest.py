"""Manifests: the same facts give the same bytes; what other projects call manifest.json is left alone."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from jumar.schema.errors import Exit, ToolError
from jumar.schema.manifest import (
    HEAD_BYTES,
    SPREAD,
    SPREAD_BYTES,
    above,
    differing,
    identify,
    identify_all,
    manifest_text,
    read_manifest,
    states,
    template_sha256,
    tokenizer_sha256,
)

WHOLE = HEAD_BYTES + SPREAD * SPREAD_BYTES


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_order_of_facts_does_not_matter() -> None:
    one = manifest_text(tool="jumar-x", version="1", counts={"b": 2, "a": 1}, seed=7)
    other = manifest_text(version="1", seed=7, counts={"a": 1, "b": 2}, tool="jumar-x")
    assert one == other
    assert json.loads(one) == {"schema": 1, "tool": "jumar-x", "version": "1", "counts": {"a": 1, "b": 2}, "seed": 7}


def test_what_does_not_apply_is_absent_and_what_is_zero_is_not() -> None:
    content = json.loads(manifest_text(tool="jumar-x", version="1", seq_len=None, seed=0, inputs=[]))
    assert content == {"schema": 1, "tool": "jumar-x", "version": "1", "seed": 0, "inputs": []}


def test_a_manifest_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(
        manifest_text(tool="jumar-convert", version="1", dialect="te", name="Qwen 千问"), "utf-8"
    )
    assert read_manifest(tmp_path) == {"schema": 1, "tool": "jumar-convert", "version": "1", "dialect": "te", "name": "Qwen 千问"}


@pytest.mark.parametrize("content", ['{"tool": "webpack", "schema": 9}', '{"name": "app"}', "[1, 2]", "3"])
def test_a_manifest_of_another_project_is_none_of_ours(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    assert read_manifest(tmp_path) is None


def test_no_manifest_is_no_fault(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_manifest_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ToolError, match=r"manifest\.json is not JSON") as caught:
        read_manifest(tmp_path)
    assert caught.value.code == Exit.INPUT
    assert caught.value.hint


@pytest.mark.parametrize(
    "content",
    [
        *({"hf": value} for value in (None, 3, [], {"copies": 2}, {"copies": {"a": 1}}, {"copies": None}, {"base": "yes"})),
        *({"model": value} for value in (None, 3, {"spec": None}, {"spec": [1]})),
        *({"outputs": value} for value in (None, 3, "abc", [1], {"a": 1})),
        {"dialect": 3},
        {"layout": []},
    ],
    ids=str,
)
def test_values_of_the_wrong_kind_are_refused(content: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"tool": "jumar-convert", "schema": 1, **content}))
    with pytest.raises(ToolError, match=r"manifest\.json is damaged: " + next(iter(content))) as caught:
        read_manifest(tmp_path)
    assert caught.value.code == Exit.INPUT
    assert "remove it" in (caught.value.hint or "")


def test_a_manifest_never_holds_what_json_does_not_have() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        manifest_text(tool="jumar-x", version="1", counts={"a": float("nan")})


def test_a_manifest_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"tool": "jumar-convert", "schema": 2}')
    with pytest.raises(ToolError, match="manifest schema 2, this version reads 1") as caught:
        read_manifest(tmp_path)
    assert "upgrade" in (caught.value.hint or "")


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 5_000_000])
def test_a_file_is_known_by_name_size_and_head(size: int, tmp_path: Path) -> None:
    content = bytes(i % 251 for i in range(min(size, 200))) + bytes(max(size - 200, 0))
    (tmp_path / "a.bin").write_bytes(content)
    head = {"name": "a.bin", "size": size, "head_sha256": sha256(content[:100])}
    told = identify(tmp_path / "a.bin", head=100)
    assert ("spread_sha256" in told) == (size > 100)
    assert {name: value for name, value in told.items() if name != "spread_sha256"} == head
    assert identify(tmp_path / "a.bin", full=True) == {"name": "a.bin", "size": size, "sha256": sha256(content)}


@pytest.mark.parametrize("rest", [1, SPREAD_BYTES - 1, SPREAD_BYTES + 1, 3 * SPREAD_BYTES, SPREAD * SPREAD_BYTES - 7])
def test_every_byte_behind_the_head_of_a_small_file_counts(rest: int, tmp_path: Path) -> None:
    content, file = bytearray(100 + rest), tmp_path / "a.bin"
    file.write_bytes(content)
    before = identify(file, head=100)
    assert before["spread_sha256"] == identify(file, head=100)["spread_sha256"]
    places = {100, 99 + rest, *(100 + at for at in range(0, rest, max(1, rest // 50)))}
    for at in places:
        file.write_bytes(content[:at] + b"x" + content[at + 1 :])
        assert identify(file, head=100)["spread_sha256"] != before["spread_sha256"], at


def test_a_matrix_in_a_large_file_counts(tmp_path: Path) -> None:
    """Of a model and what was tuned of it the embedding, which comes first, may be the same. The last bytes are looked at too."""
    size, file = 1 << 30, tmp_path / "model.safetensors"
    file.touch()
    os.truncate(file, size)  # holes: nothing on the disk
    seen = [identify(file)]
    for at, count in ((size // 3, 32 << 20), (size - 1, 1)):
        with file.open("r+b") as there:
            there.seek(at)
            there.write(b"x" * count)
        seen.append(identify(file))
    assert len({each["head_sha256"] for each in seen}) == 1
    assert len({each["spread_sha256"] for each in seen}) == 3


def test_files_stand_in_the_order_of_their_names_however_their_paths_are_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "a-zebra").mkdir()
    files = [tmp_path / "model/b.bin", tmp_path / "model/a.bin", tmp_path / "a-zebra/c.jsonl"]
    for file in files:
        file.write_text(file.name)
    monkeypatch.chdir(tmp_path)
    found = identify_all(files, tmp_path / "model")
    assert [each["name"] for each in found] == ["a.bin", "b.bin", "c.jsonl"]
    spelled = [file.relative_to(tmp_path) for file in files]
    assert identify_all([*spelled, files[2]], Path("model")) == found
    assert identify_all([*files[:2], spelled[2]], tmp_path / "model") == found


def test_names_below_a_root_however_both_are_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data/model/sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "blob").write_text("a link of its own, as in a hub's cache")
    (tmp_path / "data/model/sub/w.bin").symlink_to(tmp_path / "blob")
    (tmp_path / "data/q.jsonl").write_text("q")
    monkeypatch.chdir(tmp_path / "data")
    expected = ["model/sub/w.bin", "q.jsonl"]
    for home in (Path(), tmp_path / "data", tmp_path / "link", Path("../link"), Path("model/..")):
        for model in (Path("model"), tmp_path / "data/model", tmp_path / "link/model", Path("../link/model")):
            files = [model / "sub/w.bin", Path("q.jsonl"), tmp_path / "link/q.jsonl"]
            assert [each["name"] for each in identify_all(files, home, model)] == expected, (home, model)
    assert [each["name"] for each in identify_all([Path("q.jsonl")], Path("q.jsonl"))] == ["q.jsonl"]  # a file as the root


@pytest.mark.parametrize("size", [1, HEAD_BYTES + 1, WHOLE, WHOLE + 1])
def test_a_source_that_was_touched_is_another_if_the_manifest_does_not_tell_it_whole(size: int, tmp_path: Path) -> None:
    """A copy of it has a new time; of one whose every byte is told it says nothing."""
    source, beside, manifest = (tmp_path / name for name in ("a.bin", "b.bin", "m.json"))
    source.write_bytes(b"a" * size)
    beside.write_bytes(b"b")
    facts = {"tool": "jumar-x", "version": "1", "inputs": identify_all([source]), "recipe": {"tp": 2}}
    manifest.write_text(manifest_text(**facts))
    later(manifest, beside)
    assert states(manifest, facts, [source, beside])
    later(source, manifest)
    assert states(manifest, facts, [source]) == (size <= WHOLE)
    touched = [] if size <= WHOLE else ["a.bin (begins alike, but was touched since)"]
    assert differing(manifest, facts, [source]) == touched
    later(beside, manifest)
    assert not states(manifest, facts, [source, beside]), "inputs do not tell it"
    assert differing(manifest, facts | {"recipe": {"tp": 4, "pp": 2}}, [source]) == ["pp", "tp"]
    source.write_bytes(b"c" * size)
    assert differing(manifest, facts | {"inputs": identify_all([source])}, []) == ["a.bin"]
    assert differing(tmp_path / "nowhere", facts, []) is None


def later(file: Path, than: Path) -> None:
    """Touches a file until its time of change is after another's, whatever the clock's grain."""
    while file.stat().st_ctime_ns <= than.stat().st_mtime_ns:
        file.touch()


def test_where_a_directory_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run/iter").mkdir(parents=True)
    (tmp_path / "best").symlink_to(tmp_path / "run/iter")
    monkeypatch.chdir(tmp_path / "run/iter")
    for spelled in (Path(), Path("../iter"), tmp_path / "run/iter", tmp_path / "best"):
        assert above(spelled)[-1] == tmp_path / "run", spelled
    assert above(Path("..")) == [tmp_path]
    assert above(tmp_path / "best")[0] == tmp_path


def test_a_tokenizer_is_known_by_its_main_file(tmp_path: Path) -> None:
    assert tokenizer_sha256(tmp_path) is None
    (tmp_path / "vocab.json").write_bytes(b"{}")
    (tmp_path / "merges.txt").write_bytes(b"a b")
    pairs = [("merges.txt", sha256(b"a b")), ("vocab.json", sha256(b"{}"))]
    assert tokenizer_sha256(tmp_path) == sha256(json.dumps(pairs).encode())
    (tmp_path / "tokenizer.json").write_bytes(b"whole")
    assert tokenizer_sha256(tmp_path) == sha256(b"whole")


def test_a_template_is_known_wherever_it_stands(tmp_path: Path) -> None:
    assert template_sha256(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"model_max_length": 3}')
    assert template_sha256(tmp_path) is None
    config.write_text(json.dumps({"chat_template": "{{ é }}"}))
    assert template_sha256(tmp_path) == sha256("{{ é }}".encode())
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert template_sha256(tmp_path) == sha256(b"y")
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "z"}))
    assert template_sha256(tmp_path) == sha256(b"z")
    (tmp_path / "chat_template.jinja").write_text("{{ x }}")
    assert template_sha256(tmp_path) == sha256(b"{{ x }}")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_tokenizer_config_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ToolError, match=r"tokenizer_config\.json") as caught:
        template_sha256(tmp_path)
    assert caught.value.code == Exit.INPUT
