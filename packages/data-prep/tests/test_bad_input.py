"""What is wrong with inputs and options is said with what to type; a bad record leaves the stream with its reason."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from jumar.schema.errors import Exit, ToolError
from making import CHATML, chats, cli, do, make_tokenizer, text, write_jsonl

# --- bad input


def bad_utf8(folder: Path) -> Path:
    path = folder / "utf8.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff\xfe"}\n{"text": "c"}\n')
    return path


def test_bad_records_leave_the_stream_with_file_line_and_reason(tmp_path: Path, tokenizer: Path) -> None:
    files = [bad_utf8(tmp_path), tmp_path / "broken.jsonl", tmp_path / "cut.json"]
    files[1].write_text('{"text": "a"}\n\n{"text": \n[1]\n{"txt": "a"}\n{"text": " "}\n{"text": 3}\n')
    files[2].write_text('[{"text": "one"},\n {"text": "two"},\n {"text": "thr')
    said: list[tuple[str, str]] = []
    done = do("pretrain", *files, output=tmp_path / "x", tokenizer=tokenizer, said=said)
    rejects = [json.loads(line) for line in (tmp_path / "x.rejects.jsonl").read_text().splitlines()]
    assert [(Path(r["file"]).name, r["line"], r["reason"]) for r in rejects] == [
        ("utf8.jsonl", 2, "not UTF-8"),
        ("broken.jsonl", 3, "not JSON"),
        ("broken.jsonl", 4, "not an object"),
        ("broken.jsonl", 5, "wrong columns"),
        ("broken.jsonl", 6, "empty"),
        ("broken.jsonl", 7, "not text"),
    ]
    assert done.report["records"] == {
        "read": 11,
        "kept": 5,
        "samples": 5,
        "rejected": 6,
        "blank": 1,
        "truncated": 0,
        "split": 0,
        "dropped": 0,
    }
    assert sum(done.report["rejects"].values()) == 6
    [(word, line)] = [(word, line) for word, line in said if "cut.json" in line]
    assert word == "warning"
    assert "line 3" in line
    assert done.report["faults"] == [line.split("; what comes before")[0]]


def test_strict_stops_at_the_first_and_max_bad_past_a_share(tmp_path: Path, tokenizer: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", [{"text": "a"}] * 5000, broken=50)
    with pytest.raises(ToolError, match=r"in\.jsonl, line 50: not JSON"):
        do("pretrain", file, output=tmp_path / "x", tokenizer=tokenizer, strict=True, block_bytes=1024)
    with pytest.raises(ToolError, match=r"records are bad, more than --max-bad 0.01: not JSON"):
        do("pretrain", file, output=tmp_path / "y", tokenizer=tokenizer, max_bad=0.01, block_bytes=1024)
    assert (tmp_path / "y.rejects.jsonl").read_text().count("not JSON") < 50, "it stopped before the end"
    assert do("pretrain", file, output=tmp_path / "z", tokenizer=tokenizer, max_bad=0.02).report["records"]["rejected"] == 100


USAGE, INPUT, ENVIRONMENT = Exit.USAGE, Exit.INPUT, Exit.ENVIRONMENT
LINES: list[tuple[str, Callable[[Path], list[object]], int, str, str]] = [
    ("no file", lambda p: ["pretrain", p / "no.jsonl"], INPUT, "no such file", ""),
    ("empty file", lambda p: ["pretrain", p / "empty.jsonl"], INPUT, "nothing to read", ""),
    ("blank lines", lambda p: ["pretrain", p / "blank.jsonl"], INPUT, "3 empty lines", ""),
    ("wrong columns", lambda p: ["pretrain", p / "chat.jsonl"], INPUT, "none of 3 records can be used: wrong columns", "--key"),
    ("no format", lambda p: ["sft", p / "text.jsonl"], USAGE, "what format is this?", "--map"),
    ("pairs", lambda p: ["sft", p / "pairs.jsonl"], INPUT, "two answers", "jumar-data pairwise"),
    ("short", lambda p: ["sft", p / "system.jsonl", "--seq-len", 8, "--long", "split"], INPUT, "system turn longer", "rejects"),
    ("key", lambda p: ["sft", p / "chat.jsonl", "--map", "answer=x"], USAGE, "has no column answer", ""),
    ("template", lambda p: ["sft", p / "chat.jsonl", "--template", "chatlm"], USAGE, "no template is named", "chatml"),
    ("arg", lambda p: ["sft", p / "chat.jsonl", "--template-arg", "x=1"], USAGE, "does not read it", "it reads"),
    ("date", lambda p: ["sft", p / "chat.jsonl", "--date", "2026-01-31"], USAGE, "does not tell the date", "leave"),
    ("pack", lambda p: ["sft", p / "chat.jsonl", "--pack"], USAGE, "--pack needs", "--seq-len"),
    ("shard", lambda p: ["sft", p / "chat.jsonl", "--shard", "4/3"], USAGE, "expected 1/n to n/n", ""),
    ("folder", lambda p: ["sft", p / "chat.jsonl", "-o", f"{p}/"], USAGE, "a folder", "/NAME"),
    ("suffix", lambda p: ["pretrain", p / "x.docx"], INPUT, "what kind of file", "known: .jsonl"),
    ("utf16", lambda p: ["pretrain", p / "utf16.txt"], INPUT, "UTF-16LE", "iconv"),
    ("share", lambda p: ["pretrain", p / "text.jsonl", "--max-bad", "3"], USAGE, "expected a share", "1%"),
]


@pytest.mark.parametrize("line, code, says, hint", [line[1:] for line in LINES], ids=[line[0] for line in LINES])
def test_what_is_wrong_is_said_with_what_to_type(
    tmp_path: Path, tokenizer: Path, shelf: Path, line: Callable[[Path], list[object]], code: int, says: str, hint: str
) -> None:
    output = [] if "-o" in line(shelf) else ["-o", tmp_path / "x"]
    done = cli(*line(shelf), *output, "--tokenizer", tokenizer, env={**os.environ, "COLUMNS": "300"})
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "error:" in done.stderr
    assert hint in done.stderr.partition("hint:")[2]
    assert not list(tmp_path.glob("x*.bin"))
    assert not (tmp_path / "x.work").exists() or says == "none of"


def test_tokenizers_that_cannot_be_used_are_refused(tmp_path: Path, shelf: Path) -> None:
    out = dict(output=tmp_path / "x")
    with pytest.raises(ToolError, match="does not exist"):
        do("sft", shelf / "chat.jsonl", tokenizer=tmp_path / "none", **out)
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow/tokenizer.model").write_bytes(b"x")
    with pytest.raises(ToolError, match="slow tokenizer only") as caught:
        do("sft", shelf / "chat.jsonl", tokenizer=tmp_path / "slow", **out)
    assert "save_pretrained" in (caught.value.hint or "")
    no_eos = make_tokenizer(tmp_path / "no-eos", eos=None)
    with pytest.raises(ToolError, match="names no eos_token") as caught:
        do("pretrain", shelf / "text.jsonl", tokenizer=no_eos, append_eod=True, **out)
    assert "--eod" in (caught.value.hint or "")
    done = do("pretrain", shelf / "text.jsonl", tokenizer=no_eos, append_eod=True, eod="<|endoftext|>", **out)
    assert done.report["tokens"]["total"] == 6
    bare = make_tokenizer(tmp_path / "bare", template=None)
    with pytest.raises(ToolError, match="has no chat template") as caught:
        do("sft", shelf / "chat.jsonl", tokenizer=bare, **out)
    assert "--template chatml" in (caught.value.hint or "")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/tokenizer.json").write_text("{")
    with pytest.raises(ToolError, match="is not JSON"):
        do("pretrain", shelf / "text.jsonl", tokenizer=tmp_path / "damaged", output=tmp_path / "y")


def test_a_template_that_refuses_a_record_rejects_it(tmp_path: Path) -> None:
    strict = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}{% endfor %}"
    tokenizer = make_tokenizer(tmp_path / "tokenizer", template=strict + CHATML)
    talk = chats(2)
    talk[1]["messages"].insert(2, {"role": "tool", "content": "x"})
    file = write_jsonl(tmp_path / "in.jsonl", talk)
    done = do("sft", file, output=tmp_path / "x", tokenizer=tokenizer)
    assert done.report["rejects"] == {"template cannot render it": 1}
    [reject] = map(json.loads, (tmp_path / "x.rejects.jsonl").read_text().splitlines())
    assert (reject["line"], "no tools here" in reject["detail"]) == (2, True)


def test_a_wrong_accelerator_is_found_out_and_left(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that makes other ids for one word, somewhere in the middle: the run starts again with the reference."""
    fastokens = pytest.importorskip("fastokens")
    from jumar.data_prep.engines import Fastokens, Ids

    assert fastokens
    right = Fastokens.encode

    def wrong(self: Fastokens, texts: list[str], *, special: bool = False) -> Ids:
        ids = right(self, texts, special=special)
        flat = ids.flat.copy()
        if any("tensor" in text for text in texts):
            flat[flat == flat.max()] -= 1
        return Ids(flat, ids.offsets)

    lot = random.Random(3)
    file = write_jsonl(tmp_path / "in.jsonl", [{"text": text(lot)} for _ in range(3000)])
    do("pretrain", file, output=tmp_path / "right", tokenizer=tokenizer, tokenizer_engine="tokenizers")
    monkeypatch.setattr(Fastokens, "encode", wrong)
    said: list[tuple[str, str]] = []
    options = dict(tokenizer=tokenizer, tokenizer_engine="fastokens", block_bytes=4096)
    do("pretrain", file, output=tmp_path / "x", **options, said=said)
    assert [line for word, line in said if word == "warning" and "starting again without it" in line]
    assert (tmp_path / "x_text_document.bin").read_bytes() == (tmp_path / "right_text_document.bin").read_bytes()
