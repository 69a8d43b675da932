"""How paths are spelled, and where files lie, changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from making import chats, cli, contents, make_tokenizer, write_jsonl

TEMPLATE = {
    "name": "brief",
    "format_user": {"slots": ["Q: {{content}}\n"]},
    "format_assistant": {"slots": ["A: {{content}}\n"]},
    "stop_words": ["<|im_end|>"],
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A tokenizer, conversations, a template in a file; and a link to all of it."""
    home = tmp_path / "home"
    make_tokenizer(home / "hf")
    (home / "in/z").mkdir(parents=True)
    (home / "in/b").mkdir()
    write_jsonl(home / "in/z/1.jsonl", chats(20))
    write_jsonl(home / "in/b/2.jsonl", chats(20, 1))
    (home / "my.json").write_text(json.dumps([TEMPLATE]))
    (tmp_path / "link").symlink_to(home)
    return home


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_however_paths_are_spelled_the_same_is_already_done(home: Path, tmp_path: Path) -> None:
    out = home / "out"
    out.mkdir()

    def run(cwd: Path, inputs: str, tokenizer: str, template: str, prefix: str) -> tuple[int, str]:
        line = ("sft", inputs, "--tokenizer", tokenizer, "--template", template, "-o", prefix, "--seq-len", 128)
        done = cli(*line, cwd=cwd)
        return done.returncode, done.stdout.split(":")[0] or done.stderr

    assert run(home, "in", "hf", "my.json", "out/x")[0] == 0
    before = times(out)
    for spelled in (
        (home, "./in/", "hf/", "./my.json", "./out/x"),
        (home / "in", ".", "../hf/tokenizer.json", "../my.json", "../out/x"),
        (home / "hf", "../in/*/*.jsonl", ".", "../my.json", f"{tmp_path}/link/out/x"),
        (tmp_path, "link/in", "link/hf", f"{home}/my.json", "link/out/x"),
    ):
        assert run(*spelled) == (0, "already done"), spelled
    assert times(out) == before
    (home / "my.json").write_text(json.dumps([TEMPLATE | {"format_user": {"slots": ["Question: {{content}}\n"]}}]))
    code, said = run(home, "in", "hf", "my.json", "out/x")
    assert code == 3
    assert "is of another run" in said


def test_shards_are_merged_wherever_one_stands(home: Path, tmp_path: Path) -> None:
    """Each shard of another directory, with the template and the tokenizer as they are seen from there."""
    words = ("--seq-len", 128)
    for number, cwd in ((1, home), (2, home / "in")):
        up = "." if cwd == home else ".."
        line = ("sft", f"{up}/in", "--tokenizer", f"{up}/hf", "--template", f"{up}/my.json", "-o", f"{up}/x", *words)
        done = cli(*line, "--shard", f"{number}/2", cwd=cwd)
        assert done.returncode == 0, done.stderr
    (tmp_path / "elsewhere").mkdir()
    done = cli("merge", home / "x", cwd=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    (home / "whole").mkdir()
    cli("sft", "in", "--tokenizer", tmp_path / "link/hf", "--template", "my.json", "-o", "whole/x", *words, cwd=home)
    merged = {name: content for name, content in contents(home).items() if name.startswith("x") and ".shard-" not in name}
    whole = {name.removeprefix("whole/"): content for name, content in contents(home / "whole").items()}
    assert {name for name in merged if merged[name] != whole[name]} <= {"x.report.json", "x.report.html"}
    reports = [json.loads(each["x.report.json"]) for each in (merged, whole)]
    assert reports[0]["settings"] == reports[1]["settings"]
    assert cli("merge", "x", cwd=home).stdout.startswith("already done")
    shutil.copytree(home / "hf", home / "old")
    (home / "hf/tokenizer.json").write_text((home / "hf/tokenizer.json").read_text() + "\n")
    done = cli("merge", home / "x", "--force")
    assert done.returncode == 3
    assert "is another tokenizer than the shards were made with" in done.stderr
    shutil.rmtree(home / "hf")
    done = cli("merge", home / "x", "--force")
    assert done.returncode == 3
    assert f"the tokenizer of the shards is not there: {home / 'hf'}" in done.stderr
