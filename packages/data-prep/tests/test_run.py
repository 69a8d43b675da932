"""Whole runs: the same bytes whatever the workers, shards and interruptions; what goes wrong is said, and nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jumar.data_prep.merge import merge
from jumar.data_prep.store import Store
from jumar.schema.errors import Exit, ToolError
from jumar.schema.indexed import IndexedReader
from making import chats, cli, contents, do, write_jsonl

SFT = {"seq_len": 128, "pack": True, "long": "split"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path, inputs: list[Path]) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    do("sft", *inputs, output=folder / "x", tokenizer=tokenizer, workers=1, block_bytes=4096, **SFT)
    made = contents(folder)
    assert {name.split(".")[-1] for name in made} == {"bin", "idx", "json", "jsonl", "html"}
    return made


# --- the same bytes


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_workers_makes_the_same_bytes(
    tmp_path: Path, tokenizer: Path, inputs: list[Path], undisturbed: dict[str, bytes], workers: int
) -> None:
    do("sft", *inputs, output=tmp_path / "x", tokenizer=tokenizer, workers=workers, block_bytes=4096, **SFT)
    assert contents(tmp_path) == undisturbed


def test_any_size_of_blocks_makes_the_same_tokens_and_rejects(
    tmp_path: Path, tokenizer: Path, inputs: list[Path], undisturbed: dict[str, bytes]
) -> None:
    do("sft", *inputs, output=tmp_path / "x", tokenizer=tokenizer, **SFT)
    made = contents(tmp_path)
    same = [name for name in made if name.endswith((".bin", ".idx", ".jsonl", "report.json"))]
    assert len(same) == 8
    assert [name for name in same if name != "x.report.json" and made[name] != undisturbed[name]] == []
    ours, theirs = (json.loads(of["x.report.json"]) for of in (made, undisturbed))
    assert theirs["settings"].pop("block_bytes") == 4096
    assert ours == theirs


@pytest.mark.parametrize("engine", ["fastokens", "gigatoken"])
def test_accelerators_make_the_same_bytes(
    tmp_path: Path, tokenizer: Path, inputs: list[Path], undisturbed: dict[str, bytes], engine: str
) -> None:
    pytest.importorskip(engine)
    do("sft", *inputs, output=tmp_path / "x", tokenizer=tokenizer, block_bytes=4096, tokenizer_engine=engine, **SFT)
    made = contents(tmp_path)
    assert {n: b for n, b in made.items() if n.endswith((".bin", ".idx"))} == {
        n: b for n, b in undisturbed.items() if n.endswith((".bin", ".idx"))
    }


@pytest.mark.parametrize("of", [1, 3, 12])
def test_shards_merged_are_the_undivided_run(
    tmp_path: Path, tokenizer: Path, inputs: list[Path], undisturbed: dict[str, bytes], of: int
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    order = list(range(of))
    random.Random(of).shuffle(order)
    for i in order:
        do("sft", *inputs, output=tmp_path / "x", tokenizer=tokenizer, block_bytes=4096, workers=1, shard=(i, of), **SFT)
    merge([str(tmp_path / "x")], made / "x", force=False, say=print)
    assert contents(made) == undisturbed


def test_a_shard_that_is_missing_or_unfinished_is_named(tmp_path: Path, tokenizer: Path, inputs: list[Path]) -> None:
    for i in (0, 2):
        do("sft", *inputs, output=tmp_path / "x", tokenizer=tokenizer, shard=(i, 3), **SFT)
    with pytest.raises(ToolError, match="shard 2 of 3 is missing"):
        merge([str(tmp_path / "x")], None, force=False, say=print)
    do("sft", *inputs, output=tmp_path / "x", tokenizer=tokenizer, shard=(1, 3), **SFT)
    (tmp_path / "x.shard-2-of-3" / "done").unlink()
    with pytest.raises(ToolError, match="shard-2-of-3 is not finished"):
        merge([str(tmp_path / "x")], None, force=False, say=print)


# --- interruptions


def begun(*arguments: object) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "jumar.data_prep", *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def test_killed_at_any_moment_a_run_goes_on_to_the_same_bytes(tmp_path: Path, tokenizer: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", chats(6000), broken=97)
    line = ["sft", file, "--tokenizer", tokenizer, "--block-size", "8KiB", "--seq-len", 256, "--pack", "--workers", 2]
    (tmp_path / "whole").mkdir()
    assert cli(*line, "-o", tmp_path / "whole/x").returncode == 0
    (tmp_path / "cut").mkdir()
    journal = tmp_path / "cut/x.work/blocks.jsonl"
    lot, killed = random.Random(7), 0

    def blocks() -> int:
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    for _ in range(8):
        process, wanted = begun(*line, "-o", tmp_path / "cut/x"), blocks() + lot.randint(5, 50)
        until = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until and blocks() < wanted:
            time.sleep(0.001)
        time.sleep(lot.random() * 0.02)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 5
    assert cli(*line, "-o", tmp_path / "cut/x").returncode == 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_killed_while_it_finishes_a_run_finishes_again(
    tmp_path: Path, tokenizer: Path, inputs: list[Path], undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every rename of the end: what was killed there is done by the next call."""
    replace, calls = os.replace, 0

    class Killed(BaseException):
        pass

    def count(source: Any, target: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", count)
    for stop in range(2, 12, 3):
        calls = 0
        out = tmp_path / f"at{stop}"
        out.mkdir()
        with pytest.raises(Killed):
            do("sft", *inputs, output=out / "x", tokenizer=tokenizer, block_bytes=4096, workers=1, **SFT)
        stop = 0
        do("sft", *inputs, output=out / "x", tokenizer=tokenizer, block_bytes=4096, workers=1, **SFT)
        assert contents(out) == undisturbed


def test_a_killed_worker_is_said_and_the_run_goes_on(tmp_path: Path, tokenizer: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", chats(6000))
    line = ["sft", file, "-o", tmp_path / "x", "--tokenizer", tokenizer, "--block-size", "8KiB", "--workers", 2]
    process = subprocess.Popen([sys.executable, "-m", "jumar.data_prep", *map(str, line)], stderr=subprocess.PIPE, text=True)
    journal, until = tmp_path / "x.work/blocks.jsonl", time.monotonic() + 60
    while time.monotonic() < until and not (journal.exists() and journal.stat().st_size):
        time.sleep(0.001)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGKILL)  # before the workers there may be the process that checks ids
    _, said = process.communicate(timeout=60)
    assert process.returncode == Exit.ENVIRONMENT, said
    assert "a worker was killed" in said
    again = cli(*line)
    assert "going on behind" in again.stderr
    assert again.returncode == 0
    assert len(IndexedReader(tmp_path / "x_packed_labels_document")) == 6000


def test_two_at_once_are_refused(tmp_path: Path, tokenizer: Path, inputs: list[Path]) -> None:
    store = Store(tmp_path / "x.work", {}, ["input_ids"], documents=False)
    with pytest.raises(ToolError, match="is in use") as caught:
        do("sft", *inputs, output=tmp_path / "x", tokenizer=tokenizer, force=True)
    assert caught.value.code == Exit.ENVIRONMENT
    store.close()


def test_a_run_begun_with_other_options_is_not_gone_on_with(tmp_path: Path, tokenizer: Path, inputs: list[Path]) -> None:
    Store(tmp_path / "x.work", {"recipe": {"seq_len": 7}}, ["input_ids"], documents=False).close()
    with pytest.raises(ToolError, match=r"another run began: .*recipe\.") as caught:
        do("sft", *inputs, output=tmp_path / "x", tokenizer=tokenizer)
    assert "--force" in (caught.value.hint or "")
    do("sft", *inputs, output=tmp_path / "x", tokenizer=tokenizer, force=True)


def test_a_finished_run_is_not_done_again_and_another_not_over_it(tmp_path: Path, tokenizer: Path, inputs: list[Path]) -> None:
    first = do("sft", *inputs, output=tmp_path / "x", tokenizer=tokenizer)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = do("sft", *inputs, output=tmp_path / "x", tokenizer=tokenizer)
    assert again.already
    assert again.report == first.report
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with pytest.raises(ToolError, match="of another run"):
        do("sft", *inputs, output=tmp_path / "x", tokenizer=tokenizer, train_on="last")
    with pytest.raises(ToolError, match="records were bad"):
        do("sft", *inputs, output=tmp_path / "x", tokenizer=tokenizer, strict=True)


@pytest.mark.parametrize(
    "blank, why", [(2, "is of another run"), (7, r"a\.jsonl has changed since .*x\.manifest\.json was written")]
)
def test_a_large_file_that_has_changed_behind_its_beginning_is_another(
    tmp_path: Path, tokenizer: Path, blank: int, why: str
) -> None:
    """blank: MiB in its middle. A manifest knows every byte of some MiB, and of more a part, but when it was written."""
    file, options = tmp_path / "a.jsonl", {"output": tmp_path / "x", "tokenizer": tokenizer}
    lines = [json.dumps({"text": "a tensor"}) + "\n", *[" " * ((1 << 20) - 1) + "\n"] * blank]
    file.write_text("".join(lines))
    do("pretrain", file, **options)
    assert do("pretrain", file, **options).already
    if blank == 2:
        lines[-1] = lines[-1][1:] + "\n"
    file.write_text("".join(lines))
    with pytest.raises(ToolError, match=why) as fault:
        do("pretrain", file, **options)
    assert "--force" in (fault.value.hint or "")


def test_what_a_command_made_is_told_with_its_path(tmp_path: Path, tokenizer: Path, inputs: list[Path]) -> None:
    """`out` is what the next command takes, and a second call says that it was there."""

    def told(*words: object) -> tuple[dict[str, Any], dict[str, Any]]:
        twice = []
        for _ in range(2):
            done = cli(*words, "--json")
            assert done.returncode == 0, done.stderr
            twice.append(json.loads(done.stdout))
            times.append({path: path.stat().st_mtime_ns for path in tmp_path.iterdir()})
        assert times[-1] == times[-2]
        assert [each["already_done"] for each in twice] == [False, True]
        return twice[0], twice[1]

    times: list[dict[Path, int]] = []
    first, again = told("sft", *inputs, "-o", tmp_path / "x", "--tokenizer", tokenizer)
    assert first == again | {"already_done": False, "seconds": first["seconds"]}
    assert (first["out"], first["samples"]) == (str(tmp_path / "x"), first["report"]["records"]["samples"])
    assert all(Path(file).is_file() for file in first["outputs"])
    parted, _ = told("split", first["out"], "-o", tmp_path / "x", "--parts", "0.5,0.5", "--names", "train,valid", "--seed", 1)
    train, valid = (part["out"] for part in parted["parts"])
    assert train == str(tmp_path / "x_train")
    mixed, _ = told("blend", train, f"{valid}:3", "-o", tmp_path / "mixed")
    joined, _ = told("merge", train, valid, "-o", tmp_path / "joined")
    assert joined["tokens"] == first["tokens"]
    assert joined["documents"] == sum(part["documents"] for part in parted["parts"])
    page, _ = told("report", mixed["out"])
    assert Path(page["out"]).is_file()
    own = cli("report", tmp_path / "x", "--json")  # the run's own page is there, and tells more
    assert json.loads(own.stdout) == {"out": str(tmp_path / "x.report.html"), "already_done": True}
    (tmp_path / "x.report.html").write_text("mine")
    assert cli("report", tmp_path / "x").returncode == 3
    shown = cli("merge", train, valid, "-o", tmp_path / "joined").stdout
    assert shown.startswith(f"already done: {tmp_path / 'joined'}: ")
    for words in (["merge", valid, train, "-o", tmp_path / "joined"], ["blend", train, valid, "-o", tmp_path / "mixed"]):
        other = cli(*words, "--json")
        assert (other.returncode, other.stdout) == (3, "")
        assert "--force" in other.stderr
    (tmp_path / "x.manifest.json").unlink()
    with pytest.raises(ToolError, match="is there already"):
        do("sft", *inputs, output=tmp_path / "x", tokenizer=tokenizer)


@pytest.mark.parametrize("line", ["sft,,-o,{},--tokenizer,{}", "report,", "merge,", "blend,,-o,{}"])
def test_empty_path(line: str, tmp_path: Path) -> None:
    """A variable that is not set in somebody's script is not the working directory."""
    done = cli(*(word.format(tmp_path / "x") for word in line.split(",")))
    assert (done.returncode, done.stdout) == (2, "")
    assert "a path is empty" in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- a full disk


def test_a_full_disk_is_said_and_what_is_done_is_kept(tmp_path: Path, tokenizer: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", chats(3000))
    line = ["sft", file, "-o", tmp_path / "x", "--tokenizer", tokenizer, "--block-size", "8KiB", "--workers", 1]

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    full = cli(*line, preexec_fn=limited)
    assert full.returncode == Exit.ENVIRONMENT, full.stderr
    assert os.strerror(errno.EFBIG) in full.stderr
    assert "run the same command again" in full.stderr
    assert not list(tmp_path.glob("x*.bin"))
    assert cli(*line).returncode == 0
    assert cli(*line[:3], tmp_path / "y", *line[4:]).returncode == 0
    assert (tmp_path / "x_packed_labels_document.bin").read_bytes() == (tmp_path / "y_packed_labels_document.bin").read_bytes()


@pytest.mark.parametrize("line", ["split {0} -o {1} --parts 0.5,0.5 --names a,b", "blend {0} -o {1}", "merge {0} -o {1}"])
def test_a_full_disk_while_datasets_are_moved(line: str, tmp_path: Path, tokenizer: Path) -> None:
    data = tmp_path / "data" / "x"
    text = write_jsonl(tmp_path / "in.jsonl", [{"text": f"{i} " + "a tensor " * 200} for i in range(60)])
    for shard in ((0, 2), (1, 2)) if line.startswith("merge") else (None,):
        do("pretrain", text, output=data, tokenizer=tokenizer, shard=shard, workers=1)

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    out = tmp_path / "made" / "y"
    words = line.format(data, out).split()
    full = cli(*words, preexec_fn=limited)
    assert full.returncode == Exit.ENVIRONMENT, full.stderr
    assert f"error: {out}" in full.stderr
    assert os.strerror(errno.EFBIG) in full.stderr
    assert "hint: make room" in full.stderr
    assert not list(out.parent.glob("*.bin"))
    assert cli(*words).returncode == 0


# --- what comes out


def test_standard_input_and_samples(tmp_path: Path, tokenizer: Path) -> None:
    data = "".join(json.dumps({"text": f"a {i}"}) + "\n" for i in range(50))
    done = cli("pretrain", "-", "-o", tmp_path / "x", "--tokenizer", tokenizer, "--max-samples", 7, "--json", input=data)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["report"]
    assert report["records"]["kept"] == 7
    assert len(IndexedReader(tmp_path / "x_text_document")) == 7


def test_the_standard_input_is_not_taken_for_that_of_before(tmp_path: Path, tokenizer: Path) -> None:
    line = ("pretrain", "-", "-o", tmp_path / "x", "--tokenizer", tokenizer)
    assert cli(*line, input="one text").returncode == 0
    before = contents(tmp_path)
    again = cli(*line, input="another text")
    assert (again.returncode, again.stdout) == (3, "")
    assert "the standard input of now cannot be compared" in again.stderr
    assert contents(tmp_path) == before
    assert cli(*line, "--force", input="another text").returncode == 0
    assert contents(tmp_path) != before


def test_memory_does_not_grow_with_the_input(tmp_path: Path, tokenizer: Path) -> None:
    """40 MB more data, the same memory within a few MB: all but lengths and hashes streams."""
    pytest.importorskip("fastokens")
    peaks = []
    for count in (10_000, 60_000):
        file = write_jsonl(tmp_path / f"{count}.jsonl", [{"text": f"{i} " + "a tensor " * 100} for i in range(count)])
        code = (
            "import re, sys; from jumar.data_prep.cli import app; app(sys.argv[1:], standalone_mode=False);"
            "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
        )
        line = [
            sys.executable,
            "-c",
            code,
            "pretrain",
            str(file),
            "-o",
            str(tmp_path / f"o{count}"),
            "--tokenizer",
            str(tokenizer),
        ]
        done = subprocess.run([*line, "--tokenizer-engine", "fastokens"], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.splitlines()[-1]) // 1024)
    assert peaks[1] - peaks[0] < 16, peaks


def test_packed_samples_hold_every_token_once(tmp_path: Path, tokenizer: Path, inputs: list[Path]) -> None:
    options = dict(tokenizer=tokenizer, seq_len=512)
    do("sft", *inputs, output=tmp_path / "plain", **options)
    do("sft", *inputs, output=tmp_path / "packed", pack=True, **options)
    ids, labels, mask = (
        IndexedReader(tmp_path / f"packed_packed_{k}_document") for k in ("input_ids", "labels", "attention_mask")
    )
    plain = IndexedReader(tmp_path / "plain_packed_input_ids_document")
    plain_labels = IndexedReader(tmp_path / "plain_packed_labels_document")
    wanted = sorted((tuple(plain[i]), tuple(plain_labels[i])) for i in range(len(plain)))
    found = []
    for i in range(len(ids)):
        assert len(ids[i]) == 512
        numbers = mask[i]
        assert (np.diff(numbers[numbers > 0]) >= 0).all()
        assert (labels[i][numbers == 0] == -100).all()
        each = [numbers == number for number in range(1, int(numbers.max()) + 1)]
        found += [(tuple(ids[i][own]), tuple(labels[i][own])) for own in each]
    assert sorted(found) == wanted


def test_strict_stays_so_when_it_is_asked_again(tmp_path: Path, tokenizer: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", [{"text": "a"}] * 300, broken=90)
    for _ in range(3):
        with pytest.raises(ToolError, match=r"in\.jsonl, line 90: not JSON"):
            do("pretrain", file, output=tmp_path / "x", tokenizer=tokenizer, strict=True, block_bytes=1024)
    with pytest.raises(ToolError, match="max-bad"):
        do("pretrain", file, output=tmp_path / "x", tokenizer=tokenizer, max_bad=0.001, block_bytes=1024)
    with pytest.raises(ToolError, match="bad records of the run before"):
        do("pretrain", file, output=tmp_path / "x", tokenizer=tokenizer, strict=True, block_bytes=1024)
    do("pretrain", file, output=tmp_path / "x", tokenizer=tokenizer, block_bytes=1024)
    with pytest.raises(ToolError, match="3 of 300 records were bad"):
        do("pretrain", file, output=tmp_path / "x", tokenizer=tokenizer, strict=True, block_bytes=1024)


@pytest.mark.parametrize("how", [dict(strict=True), dict(max_bad=0.5)])
def test_a_loss_that_cannot_be_counted_is_a_bad_one(tmp_path: Path, tokenizer: Path, how: dict[str, Any]) -> None:
    file = tmp_path / "cut.json"
    file.write_text('[{"text": "one"},\n {"text": bad},\n {"text": "two"}]')
    with pytest.raises(ToolError, match="cannot be counted"):
        do("pretrain", file, output=tmp_path / "x", tokenizer=tokenizer, **how)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, tokenizer: Path, shelf: Path) -> None:
    (tmp_path / "x.work").mkdir()
    (tmp_path / "x.work/mine").write_text("mine")
    for force in (False, True):
        with pytest.raises(ToolError, match="is no run's: it holds mine"):
            do("pretrain", shelf / "text.jsonl", output=tmp_path / "x", tokenizer=tokenizer, force=force)
    (tmp_path / "y.report.html").write_text("mine")
    with pytest.raises(ToolError, match=r"y\.report\.html is there already"):
        do("pretrain", shelf / "text.jsonl", output=tmp_path / "y", tokenizer=tokenizer)
    (tmp_path / "z.manifest.json").write_text("bad")
    with pytest.raises(ToolError, match="is not JSON"):
        do("pretrain", shelf / "text.jsonl", output=tmp_path / "z", tokenizer=tokenizer)


def test_ctrl_c_however_often_it_is_pressed(tmp_path: Path, tokenizer: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", chats(8000))
    for times, apart_s in ((1, 0.0), (3, 0.03), (12, 0.001)):
        process = begun("sft", file, "-o", tmp_path / "x", "--tokenizer", tokenizer, "--block-size", "4KiB", "--workers", 2)
        journal, until = tmp_path / "x.work/blocks.jsonl", time.monotonic() + 60
        before = journal.stat().st_size if journal.exists() else 0
        while time.monotonic() < until and (not journal.exists() or journal.stat().st_size <= before):
            time.sleep(0.001)
        for _ in range(times):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(apart_s)
        assert process.wait(30) == Exit.INTERRUPTED


@pytest.mark.parametrize("key", ["../x", "a/b", ""])
def test_a_column_that_cannot_name_a_file_is_refused(tmp_path: Path, tokenizer: Path, shelf: Path, key: str) -> None:
    with pytest.raises(ToolError, match="cannot name a file") as caught:
        do("pretrain", shelf / "text.jsonl", output=tmp_path / "x", tokenizer=tokenizer, keys=(key,))
    assert caught.value.code == Exit.USAGE


def test_a_call_that_the_template_leaves_out_is_missed_though_its_name_is_elsewhere(tmp_path: Path, tokenizer: Path) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    talk = [
        {"role": "user", "content": "weather please"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "a"},
    ]
    file = write_jsonl(tmp_path / "in.jsonl", [*chats(1), {"messages": talk}, {**chats(1)[0], "tools": [call]}])
    done = do("sft", file, output=tmp_path / "x", tokenizer=tokenizer)
    assert done.report["records"]["kept"] == 1
    details = [json.loads(line)["detail"] for line in (tmp_path / "x.rejects.jsonl").read_text().splitlines()]
    assert ["leaves the call of weather out" in details[0], "leaves the tools out" in details[1]] == [True, True]


@pytest.mark.parametrize("template", ["auto", "chatml"])
def test_answers_of_no_weight_are_not_trained(tmp_path: Path, tokenizer: Path, template: str) -> None:
    talk = [{"role": role, "content": word} for role, word in zip(("user", "assistant") * 2, "abcd", strict=True)]
    plain = write_jsonl(tmp_path / "plain.jsonl", [{"messages": talk}])
    talk[1] = {**talk[1], "weight": 0}
    weighed = write_jsonl(tmp_path / "weighed.jsonl", [{"messages": talk}, {"messages": talk[:2]}])
    labels = {}
    for name, file, options in (("all", plain, {}), ("last", plain, {"train_on": "last"}), ("weighed", weighed, {})):
        do("sft", file, output=tmp_path / name, tokenizer=tokenizer, template=template, **options)
        labels[name] = IndexedReader(tmp_path / f"{name}_packed_labels_document")[0].tolist()
    assert labels["weighed"] == labels["last"] != labels["all"]
    assert json.loads((tmp_path / "weighed.rejects.jsonl").read_text())["reason"] == "nothing to train on"
