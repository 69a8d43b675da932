"""Runs that are killed, and go on: the bytes are those of a run that was left alone, whatever the moment."""

from __future__ import annotations

import errno
import filecmp
import json
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import failing
from failing import (
    ITERATION,
    contents,
    copied,
    edit_json,
    execute,
    megatron,
    model,
    ok,
    python,
    refused,
    run,
    started,
)
from stopping import AT_ONCE, journal, lines, resume

pytestmark = pytest.mark.matrix

OFTEN = "import jumar.ckpt_convert.execute as execute; execute.SYNC_EVERY = {size}"
"""So that the journal has lines to go on from, however small the model."""


def command(direction: str, source: Path, dst: Path, *flags: object, often: int = 1) -> list[str]:
    layout = ["--tp", 2, "--pp", 2] if direction == "to-megatron" else ["--max-shard-size", "60MB"]
    return python(OFTEN.format(size=often), direction, source, dst, *layout, *flags)


def same_files(a: Path, b: Path) -> None:
    """Asserts that two directories hold the same files, byte for byte."""
    names = sorted(str(p.relative_to(a)) for p in a.rglob("*") if p.is_file())
    assert names == sorted(str(p.relative_to(b)) for p in b.rglob("*") if p.is_file())
    _, differing, faults = filecmp.cmpfiles(a, b, names, shallow=False)
    assert not differing
    assert not faults


# Kills at any moment, of a conversion that takes a while


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Path, Path]]]:
    """Direction -> a source of 200 MB, and what an undisturbed run makes of it."""
    root = tmp_path_factory.mktemp("large")
    sizes = dict(hidden_size=1024, intermediate_size=2816, num_hidden_layers=6, vocab_size=16000)
    hf = model(root / "hf", dtype="BF16", num_attention_heads=16, **sizes)
    mcore, back = root / "mcore", root / "back"
    ok(execute(command("to-megatron", hf, mcore)))
    ok(execute(command("to-hf", mcore, back)))
    yield {"to-megatron": (hf, mcore), "to-hf": (mcore, back)}
    shutil.rmtree(root)


def has_written(process: subprocess.Popen[str], count: float) -> bool:
    """Whether a process has written so many bytes, or has ended."""
    if process.poll() is not None:
        return True
    return int(Path(f"/proc/{process.pid}/io").read_text().split("wchar: ")[1].split()[0]) >= count


def kill_often(direction: str, source: Path, expected: Path, dst: Path, kills: int, seed: int) -> None:
    """Kills runs at random points until so many were killed; each goes on where the one before was; compares every end."""
    chance, killed, finished = random.Random(seed), 0, 0
    total = sum(p.stat().st_size for p in expected.rglob("*") if p.is_file())
    seen = set()
    while killed < kills or not dst.exists():
        assert finished < 5 * kills, "runs end before they can be killed"
        running = started(command(direction, source, dst, "--resume", often=4_000_000))
        point = total * (chance.uniform(0.95, 1.0) if chance.random() < 0.3 else chance.uniform(0.0, 0.6))
        if killed < kills:
            failing.wait_for(lambda at=point, process=running.process: has_written(process, at), every_s=0.0005)
            running.process.send_signal(signal.SIGKILL)
        result = running.wait()
        if result.code == -signal.SIGKILL:
            killed += 1
            seen.add(lines(dst))
            continue
        ok(result)
        same_files(dst, expected)
        finished += 1
        if killed < kills:
            shutil.rmtree(dst)
    assert max(seen) > 1, f"no run had anything to go on from (seed {seed})"
    assert [p.name for p in dst.parent.iterdir()] == [dst.name]


@pytest.mark.parametrize("direction", ["to-megatron", "to-hf"])
def test_killed_at_random_moments(direction: str, large: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    kill_often(direction, *large[direction], tmp_path / "out", kills=10, seed=1)
    shutil.rmtree(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 4))
@pytest.mark.parametrize("direction", ["to-megatron", "to-hf"])
def test_killed_at_many_more(direction: str, seed: int, large: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    kill_often(direction, *large[direction], tmp_path / "out", kills=40, seed=seed)
    shutil.rmtree(tmp_path / "out")


# Kills at every step that changes what is on the disk

KILL = (
    AT_ONCE
    + """
import os, pathlib, shutil, signal
import jumar.ckpt_convert.formats.archive as archive
import jumar.ckpt_convert.journal as journal
places = {{
    "rename": (os, "rename"), "unlink": (pathlib.Path, "unlink"), "rmdir": (pathlib.Path, "rmdir"),
    "mkdir": (pathlib.Path, "mkdir"), "small file": (pathlib.Path, "write_bytes"), "sync": (os, "fdatasync"),
    "record": (execute.Executor, "_write"), "journal line": (journal.Journal, "add"), "truncate": (os, "truncate"),
    "head": (archive.ArchiveLayout, "write_skeleton"), "tail": (archive.ArchiveLayout, "finish"),
}}
owner, name = places[{place!r}]
original, calls = getattr(owner, name), 0
def deadly(*args, **kwargs):
    global calls
    calls += 1
    if calls == {number} and {when!r} == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*args, **kwargs)
    if calls == {number} and {when!r} == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(owner, name, deadly)
"""
)
STEPS = [
    ("truncate", 1, "before"),  # the journal is there, and empty
    ("truncate", 1, "after"),
    ("head", 1, "before"),
    ("head", 3, "after"),
    ("record", 1, "before"),
    ("record", 2, "after"),
    ("sync", 1, "before"),
    ("sync", 3, "after"),
    ("journal line", 1, "before"),
    ("journal line", 1, "after"),
    ("journal line", 9, "after"),
    ("tail", 1, "before"),
    ("tail", 4, "after"),
    ("small file", 1, "before"),
    ("small file", 3, "after"),
    ("rename", 1, "before"),  # the old target gives way
    ("rename", 1, "after"),
    ("rename", 2, "before"),  # the new one takes its place
    ("rename", 2, "after"),
    ("unlink", 1, "before"),  # the journal goes
    ("unlink", 1, "after"),
    ("unlink", 3, "before"),  # the old target goes
    ("rmdir", 1, "after"),
]


def killed_at(place: str, number: int, when: str, *args: object) -> None:
    result = run(*args, code=KILL.format(place=place, number=number, when=when))
    assert result.code == -signal.SIGKILL, f"never came to {place} {number}\n{result}"
    assert result.out == ""


@pytest.mark.parametrize(("place", "number", "when"), STEPS)
def test_killed_at_a_step(place: str, number: int, when: str, llama: Path, sharded: Path, tmp_path: Path) -> None:
    """While an older target is replaced: the old one or the new one is always whole, and `--resume` brings the new one."""
    dst, staging = tmp_path / "out", tmp_path / "out.partial"
    old = contents(megatron(dst, llama))
    convert = ["to-megatron", llama, dst, "--tp", 2, "--pp", 2]
    killed_at(place, number, when, *convert, "--force", "--threads", 1)
    new = contents(sharded)
    if dst.exists() and staging.exists():
        assert contents(dst) == old
    elif staging.exists():
        assert contents(staging / ".replaced") == old
    else:
        assert new.items() <= contents(dst).items()
    again = run(*convert)
    if staging.exists():
        words = "is not empty" if dst.exists() else "holds a run that was stopped"
        refused(again, 3, words, "--force" if dst.exists() else "--resume")
        ok(run(*convert, "--resume", "--force"))
    else:
        assert ok(again).out.startswith("already done")
    assert contents(dst) == new
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("place", "number", "when"), [("rename", 1, "before"), ("rename", 1, "after"), ("unlink", 1, "before")])
def test_killed_at_the_end_of_a_first_run(place: str, number: int, when: str, llama: Path, sharded: Path, tmp_path: Path) -> None:
    dst = tmp_path / "out"
    convert = ["to-megatron", llama, dst, "--tp", 2, "--pp", 2]
    killed_at(place, number, when, *convert)
    if not dst.exists():
        refused(run(*convert), 3, "holds a run that was stopped", "--resume")
    ok(run(*convert, "--resume"))
    assert contents(dst) == contents(sharded)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_killed_again_and_again(llama: Path, sharded: Path, tmp_path: Path) -> None:
    """Each run comes a few records further."""
    dst, before = tmp_path / "out", 0
    for _ in range(6):
        killed_at("journal line", 4, "after", "to-megatron", llama, dst, "--tp", 2, "--pp", 2, "--resume", "--threads", 1)
        assert lines(dst) > before
        before = lines(dst)
    ok(run("to-megatron", llama, dst, "--tp", 2, "--pp", 2, "--resume"))
    assert contents(dst) == contents(sharded)


# Going on


@pytest.fixture
def stopped(llama: Path, tmp_path: Path) -> Callable[..., Path]:
    """A conversion that was killed after some records."""

    def stop(source: Path = llama) -> Path:
        dst = tmp_path / "out"
        killed_at("journal line", 20, "after", "to-megatron", source, dst, "--tp", 2, "--pp", 2, "--threads", 1)
        return dst

    return stop


COUNT = """
import atexit
import jumar.ckpt_convert.execute as execute
write, written = execute.Executor._write, []
execute.Executor._write = lambda self, files, *item: (written.append(item), write(self, files, *item))[1]
atexit.register(lambda: print(len(written)))
"""


def test_only_what_is_left_is_written(stopped: Callable[..., Path], llama: Path, sharded: Path) -> None:
    dst = stopped()
    done = lines(dst) - 1
    assert done >= 20
    result = ok(run("to-megatron", llama, dst, "--tp", 2, "--pp", 2, "--resume", "--json", code=COUNT))
    facts, _, written = result.out.rpartition("}")
    assert int(written) == json.loads(facts + "}")["tensors"] - done
    assert contents(dst) == contents(sharded)


def test_stopped_run_is_reported(stopped: Callable[..., Path], llama: Path, sharded: Path, tmp_path: Path) -> None:
    dst = stopped()
    before = contents(tmp_path)
    said = refused(run("to-megatron", llama, dst, "--tp", 2, "--pp", 2), 3, f"{dst}.partial holds a run that was stopped")
    assert "hint: add --resume to go on with it, or --force to start over" in said
    assert contents(tmp_path) == before
    ok(run("to-megatron", llama, dst, "--tp", 2, "--pp", 2, "--force"))
    assert contents(dst) == contents(sharded)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_resume_with_nothing_to_resume(llama: Path, sharded: Path, tmp_path: Path) -> None:
    """A script may say --resume always."""
    ok(resume(llama, tmp_path / "out"))
    assert contents(tmp_path / "out") == contents(sharded)
    assert ok(resume(llama, tmp_path / "out")).out.startswith("already done")


@pytest.mark.parametrize("flags", ["--tp 4", "--vocab-divisible-by 64", "--dialect te", "--dtype bf16", "--vpp 2"])
def test_resume_with_other_options(flags: str, stopped: Callable[..., Path], llama: Path, sharded: Path) -> None:
    dst = stopped()
    said = refused(resume(llama, dst, *flags.split()), 3, "out.partial was begun with other sources or options")
    assert "give the options of the first run, or start over with --force" in said
    ok(resume(llama, dst))
    assert contents(dst) == contents(sharded)


def touched(source: Path) -> None:
    (source / "model.safetensors").touch()


def changed(source: Path) -> None:
    failing.flip(source / "model.safetensors", 50_000)


@pytest.mark.parametrize("change", [touched, changed])
def test_resume_when_the_source_changed(change: Callable[[Path], None], stopped: Callable[..., Path], llama: Path) -> None:
    dst = stopped(source := copied(llama, llama.parent / f"to-be-{change.__name__}"))
    change(source)
    refused(resume(source, dst), 3, "was begun with other sources or options", "--force instead of --resume")
    ok(run("to-megatron", source, dst, "--tp", 2, "--pp", 2, "--force"))
    ok(run("verify", source, dst))


def test_resume_takes_the_small_files_as_they_are_now(stopped: Callable[..., Path], llama: Path, tmp_path: Path) -> None:
    """They are read at the end: a target never mixes two versions of them."""
    dst = stopped(source := copied(llama, tmp_path / "hf"))
    edit_json(source / "generation_config.json", temperature=0.5)
    ok(resume(source, dst))
    assert (dst / "hf" / "generation_config.json").read_bytes() == (source / "generation_config.json").read_bytes()


FAULTY_DISK = """
import os
sync, calls = os.fdatasync, 0
def faulty(fd):
    global calls
    calls += 1
    if calls >= 3:
        raise OSError({number}, os.strerror({number}))
    sync(fd)
os.fdatasync = faulty
import jumar.ckpt_convert.execute as execute
execute.SYNC_EVERY = 50_000
"""


@pytest.mark.parametrize(("number", "words"), [(errno.EIO, "Input/output error"), (errno.ENOSPC, "is full")])
def test_disk_that_fails_when_it_is_synced(number: int, words: str, llama: Path, sharded: Path, tmp_path: Path) -> None:
    """What could not be synced was not written, though every write seemed to succeed."""
    convert = ["to-megatron", llama, tmp_path / "out", "--tp", 2, "--pp", 2]
    refused(run(*convert, code=FAULTY_DISK.format(number=number)), 4, "out.partial", words, "--resume")
    assert not (tmp_path / "out").exists()
    ok(run(*convert, "--resume"))
    assert contents(tmp_path / "out") == contents(sharded)


# What a machine that went down can leave of a journal


def append(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.open("ab").write(content)


def rewrite(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


TOLERATED: dict[str, Callable[[Path], object]] = {
    "half a line": append(b"[3, 7, 12"),
    "a line that lacks its end": append(b"[3, 7, 123456]"),
    "noughts": append(bytes(100)),
    "not text": append(b"\xff\xfe"),
    "the last line cut": lambda path: path.write_bytes(path.read_bytes()[:-4]),
    "half a first line": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "nothing": lambda path: path.write_bytes(b""),
    "only the first line": rewrite(lambda old: old[:1]),
    "a line twice": rewrite(lambda old: [*old, old[-1]]),
}
DAMAGED: dict[str, Callable[[Path], object]] = {
    "a line of garbage": rewrite(lambda old: [*old[:5], b"garbage\n", *old[5:]]),
    "a line of noughts": rewrite(lambda old: [*old[:5], bytes(20) + b"\n", *old[5:]]),
    "a line cut in the middle": rewrite(lambda old: [*old[:5], old[5][:3], *old[6:]]),
    "an empty line": rewrite(lambda old: [*old[:5], b"\n", *old[5:]]),
    "a number": append(b"5\n"),
    "two numbers": append(b"[1, 2]\n"),
    "an object": append(b'{"file": 1}\n'),
    "text": append(b'["a", "b", "c"]\n'),
    "a file that is not there": append(b"[99, 0, 5]\n"),
    "a record that is not there": append(b"[0, 999, 5]\n"),
    "a negative record": append(b"[0, -1, 5]\n"),
}
NOT_OURS: dict[str, Callable[[Path], object]] = {
    "a first line of garbage": rewrite(lambda old: [b"garbage\n", *old[1:]]),
    "a first line of another kind": rewrite(lambda old: [b"[]\n", *old[1:]]),
}


@pytest.mark.parametrize("name", TOLERATED)
def test_journal_cut_short(name: str, stopped: Callable[..., Path], llama: Path, sharded: Path) -> None:
    dst = stopped()
    TOLERATED[name](journal(dst))
    ok(resume(llama, dst))
    assert contents(dst) == contents(sharded)


@pytest.mark.parametrize("name", DAMAGED)
def test_journal_damaged(name: str, stopped: Callable[..., Path], llama: Path) -> None:
    dst = stopped()
    DAMAGED[name](journal(dst))
    refused(resume(llama, dst), 3, str(journal(dst)), "is damaged", "start over with --force instead of --resume")
    assert not dst.exists()


@pytest.mark.parametrize("name", NOT_OURS)
def test_journal_that_no_run_began(name: str, stopped: Callable[..., Path], llama: Path) -> None:
    """Without a first line of ours the directory may be anybody's: it is neither gone on with nor deleted."""
    dst = stopped()
    NOT_OURS[name](journal(dst))
    refused(resume(llama, dst), 3, "is in the way, and is not ours")
    refused(run("to-megatron", llama, dst, "--tp", 2, "--pp", 2, "--force"), 3, "is in the way, and is not ours")


def test_damage_is_mended_by_starting_over(stopped: Callable[..., Path], llama: Path, sharded: Path) -> None:
    dst = stopped()
    DAMAGED["a line of garbage"](journal(dst))
    ok(run("to-megatron", llama, dst, "--tp", 2, "--pp", 2, "--force"))
    assert contents(dst) == contents(sharded)


LOST: dict[str, Callable[[Path], object]] = {
    "a file is gone": lambda path: path.unlink(),
    "a file is cut": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "a directory is gone": lambda path: shutil.rmtree(path.parent),
}


@pytest.mark.parametrize("name", LOST)
def test_what_the_journal_says_is_there_is_not(name: str, stopped: Callable[..., Path], llama: Path) -> None:
    dst = stopped()
    LOST[name](Path(f"{dst}.partial") / ITERATION / "mp_rank_00_000" / "model_optim_rng.pt")
    refused(resume(llama, dst), 3, "mp_rank_00_000", "is not as the stopped run left it", "start over with --force")
    assert not dst.exists()
