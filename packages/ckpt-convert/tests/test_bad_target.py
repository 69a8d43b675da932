"""Targets that may not be written, disks that are full, files that may not be read: nothing of anybody's is ever lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import failing
from failing import (
    ITERATION,
    contents,
    copied,
    huggingface,
    megatron,
    model,
    ok,
    on_a_disk,
    python,
    refused,
    run,
    untouched,
    without_privileges,
)

pytestmark = pytest.mark.matrix

FORCE = ([], ["--force"])
ALL = ([], ["--force"], ["--resume"], ["--resume", "--force"])


def precious(path: Path, name: str = "thesis.tex") -> Path:
    """Something of the user's."""
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_text("years of work")
    return path


# Targets that are there already


def test_target_that_is_not_empty(llama: Path, tmp_path: Path) -> None:
    dst = precious(tmp_path / "out")
    said = refused(run("to-megatron", llama, dst), 3, f"{dst} is not empty (thesis.tex)")
    assert "--force" not in said, "where it would not help, it is not advised"
    refused(run("to-megatron", llama, dst, "--resume"), 3, "is not empty")
    said = refused(run("to-megatron", llama, dst, "--force"), 3, "is not empty (thesis.tex), and no conversion wrote it")
    assert "--force does not delete that" in said
    assert (dst / "thesis.tex").read_text() == "years of work"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("flags", FORCE)
def test_target_that_is_a_file(flags: list[str], llama: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("years of work")
    refused(run("to-megatron", llama, tmp_path / "out", *flags), 3, "out is a file, expected a directory")
    assert (tmp_path / "out").read_text() == "years of work"
    refused(run("to-megatron", llama, tmp_path / "out" / "below", *flags), 4, str(tmp_path / "out"))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("flags", FORCE)
def test_target_and_source_in_one_another(flags: list[str], llama: Path, tmp_path: Path) -> None:
    source = copied(llama, tmp_path / "models" / "hf")
    (tmp_path / "link").symlink_to(source)
    before = contents(source)
    for dst in (source, source / "out", tmp_path / "models", tmp_path, tmp_path / "link", tmp_path / "link" / "out"):
        refused(run("to-megatron", source, dst, *flags), 3, str(source), "lie in one another")
    refused(run("to-megatron", source, ".", *flags, cwd=source), 3, "lie in one another")
    refused(run("to-megatron", source, "/", *flags), 3, "/ cannot be a target")
    assert contents(source) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "models"]


FOREIGN = [
    "thesis.tex",
    "notes.md",
    "train.py",
    "data.json/part.json",
    "hf/adapter.bin",
    "adapter_model.safetensors",
    f"{ITERATION}/mp_rank_00/distrib_optim.pt",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_force_deletes_no_foreign_file(name: str, llama: Path, tmp_path: Path) -> None:
    """Not even in a directory that an earlier conversion made, and not where the file looks like one of ours."""
    dst = megatron(tmp_path / "out", llama)
    precious(dst, name)
    before = contents(dst)
    said = refused(run("to-megatron", llama, dst, "--tp", 2, "--force"), 3, "holds what the conversion did not write", name)
    assert "--force does not delete that" in said
    assert contents(dst) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_force_deletes_no_training_run(llama: Path, tmp_path: Path) -> None:
    dst = megatron(tmp_path / "out", llama)
    shutil.copytree(dst / ITERATION, dst / "iter_0000500")
    before = contents(dst)
    refused(run("to-megatron", llama, dst, "--force"), 3, "iter_0000500", "--force does not delete that")
    assert contents(dst) == before


def test_force_deletes_no_checkpoint_of_another_tool(llama: Path, tmp_path: Path) -> None:
    dst = copied(llama, tmp_path / "out")
    before = contents(dst)
    for flags in FORCE:
        refused(run("to-hf", megatron(tmp_path / "mg", llama), dst, *flags), 3, "no conversion wrote it")
        shutil.rmtree(tmp_path / "mg")
    assert contents(dst) == before


def test_a_directory_that_only_looks_like_a_stopped_run(llama: Path, tmp_path: Path) -> None:
    own = precious(tmp_path / "out.partial")
    (own / "journal.jsonl").write_text("dear diary\n")
    before = contents(own)
    for flags in ALL:
        refused(run("to-megatron", llama, tmp_path / "out", *flags), 3, "is in the way, and is not ours")
    assert contents(own) == before


def test_source_that_is_links_into_the_target(llama: Path, tmp_path: Path) -> None:
    """A view of a directory as links to its files: replacing that directory would take the source away."""
    first = tmp_path / "first"
    ok(run("to-hf", megatron(tmp_path / "mg", llama), first))
    view = tmp_path / "view"
    view.mkdir()
    for file in first.iterdir():
        (view / file.name).symlink_to(file)
    before = contents(first)
    refused(run("to-hf", view, first, "--dtype", "bf16", "--force"), 3, "lies in the target")
    assert contents(first) == before


def test_force_replaces_what_a_conversion_wrote(llama: Path, tmp_path: Path) -> None:
    dst, fresh = tmp_path / "out", tmp_path / "fresh"
    megatron(dst, llama, tp=2, pp=2)
    refused(run("to-megatron", llama, dst, "--tp", 4), 3, "is not empty", "hint: add --force to replace it")
    ok(run("to-megatron", llama, dst, "--tp", 4, "--force"))
    assert contents(dst) == contents(megatron(fresh, llama, tp=4))
    shutil.rmtree(dst)
    huggingface(dst, fresh)
    ok(run("to-hf", fresh, dst, "--max-shard-size", "100KB", "--force"))
    assert len(list(dst.glob("model-*.safetensors"))) > 2
    assert not (dst / "model.safetensors").exists()
    ok(run("to-hf", fresh, dst, "--force"))
    assert contents(dst) == contents(huggingface(tmp_path / "other", fresh))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fresh", "other", "out"]


@pytest.mark.parametrize("flags", FORCE)
@pytest.mark.parametrize("name", ["out.old", "out.bak", "out.new", "out.tmp"])
def test_directories_beside_the_target_are_somebody_elses(name: str, flags: list[str], llama: Path, tmp_path: Path) -> None:
    precious(tmp_path / name)
    if flags:
        megatron(tmp_path / "out", llama)
    ok(run("to-megatron", llama, tmp_path / "out", "--tp", 2, *flags))
    assert contents(tmp_path / name) == contents(precious(tmp_path / "like"))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "like", "out"])


def test_source_beside_the_target(llama: Path, tmp_path: Path) -> None:
    """`mv model model.old`, then a conversion from there into `model`: the source stays."""
    source = copied(llama, tmp_path / "model.old")
    ok(run("to-megatron", source, tmp_path / "model"))
    assert contents(source) == contents(llama)
    ok(run("to-megatron", source, tmp_path / "model", "--tp", 2, "--force"))
    assert contents(source) == contents(llama)


@pytest.mark.parametrize("flags", ALL)
def test_source_in_the_place_of_the_partial_target(flags: list[str], llama: Path, tmp_path: Path) -> None:
    source = copied(llama, tmp_path / "model.partial")
    (source / "journal.jsonl").write_text("")
    refused(run("to-megatron", source, tmp_path / "model", *flags), 3, "model.partial", "lie in one another")
    assert sorted(p.name for p in source.iterdir()) == sorted([*(p.name for p in llama.iterdir()), "journal.jsonl"])


@pytest.mark.parametrize("flags", ALL)
def test_foreign_partial_directory(flags: list[str], llama: Path, tmp_path: Path) -> None:
    precious(tmp_path / "out.partial")
    refused(run("to-megatron", llama, tmp_path / "out", *flags), 3, "out.partial is in the way, and is not ours")
    shutil.rmtree(tmp_path / "out.partial")
    (tmp_path / "out.partial").write_text("years of work")
    refused(run("to-megatron", llama, tmp_path / "out", *flags), 3, "out.partial is in the way, and is not ours")
    assert (tmp_path / "out.partial").read_text() == "years of work"
    assert [p.name for p in tmp_path.iterdir()] == ["out.partial"]


def test_target_behind_a_link(llama: Path, tmp_path: Path) -> None:
    """A link to a directory on another disk: the directory is written, beside where it lies, and the link stays."""
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "empty").mkdir()
    for name in ("empty", "none-yet"):
        link = tmp_path / name
        link.symlink_to(disk / name)
        ok(run("to-megatron", llama, link))
        ok(run("to-megatron", llama, link, "--tp", 2, "--force"))
        assert link.is_symlink()
        assert contents(disk / name) == contents(link) == contents(megatron(tmp_path / f"like-{name}", llama, tp=2))
    assert sorted(p.name for p in disk.iterdir()) == ["empty", "none-yet"]
    (tmp_path / "link").symlink_to(tmp_path / "link")
    refused(run("to-megatron", llama, tmp_path / "link"), 3, "link is a file, expected a directory")


def test_target_whose_parents_are_missing(llama: Path, tmp_path: Path) -> None:
    ok(run("to-megatron", llama, tmp_path / "a" / "b" / "out"))
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["out"]


def test_name_that_is_too_long(llama: Path, tmp_path: Path) -> None:
    refused(run("to-megatron", llama, tmp_path / ("x" * 250)), 4, "File name too long")
    assert list(tmp_path.iterdir()) == []


# Finished runs


def test_finished_run_says_so_and_writes_nothing(llama: Path, tmp_path: Path) -> None:
    dst = tmp_path / "out"
    ok(run("to-megatron", llama, dst, "--tp", 2))
    before = failing.times(tmp_path)
    for flags in ([], ["--resume"], ["--threads", "1"]):
        assert ok(run("to-megatron", llama, dst, "--tp", 2, *flags)).out.startswith("already done")
    assert failing.times(tmp_path) == before


def change_weights(source: Path) -> None:
    failing.flip(source / "model.safetensors", -1 + (source / "model.safetensors").stat().st_size)


STALE: dict[str, Callable[[Path, Path], object]] = {
    "other weights, the header as before": lambda src, dst: change_weights(src),
    "another config": lambda src, dst: failing.edit_json(src / "generation_config.json", temperature=0.5),
    "a shard is gone": lambda src, dst: (dst / ITERATION / "mp_rank_01" / "model_optim_rng.pt").unlink(),
    "a shard is cut": lambda src, dst: (dst / ITERATION / "mp_rank_01" / "model_optim_rng.pt").write_bytes(b""),
    "a tokenizer is gone": lambda src, dst: (dst / "hf" / "tokenizer.json").unlink(),
    "a config was edited": lambda src, dst: failing.edit_json(dst / "hf" / "config.json", vocab_size=7),
}


@pytest.mark.parametrize("name", STALE)
def test_finished_run_that_is_not_so_any_more(name: str, llama: Path, tmp_path: Path) -> None:
    """ "already done" is said only of what the same command would write again."""
    source, dst = copied(llama, tmp_path / "hf"), tmp_path / "out"
    ok(run("to-megatron", source, dst, "--tp", 2))
    STALE[name](source, dst)
    refused(run("to-megatron", source, dst, "--tp", 2), 3, "is not empty", "hint: add --force to replace it")
    ok(run("to-megatron", source, dst, "--tp", 2, "--force"))
    assert contents(dst) == contents(megatron(tmp_path / "fresh", source, tp=2))


# Disks

MB = 1_000_000
FILL = """
import shutil
import jumar.ckpt_convert.execute as execute
import jumar.ckpt_convert.target as target
execute.SYNC_EVERY = 2_000_000
check = target.Target.check_space
def check_then_fill(self, nbytes):
    check(self, nbytes)
    with open(self.dst.parent / "filler", "wb") as filler:
        filler.write(bytes(shutil.disk_usage(self.dst.parent).free - 20_000_000))
target.Target.check_space = check_then_fill
"""


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 40 MB."""
    sizes = dict(hidden_size=512, intermediate_size=1024, num_hidden_layers=8, vocab_size=1024)
    return model(tmp_path_factory.mktemp("larger") / "hf", dtype="BF16", **sizes)


@pytest.mark.parametrize("flags", FORCE)
def test_disk_too_small(flags: list[str], larger: Path, tmp_path: Path) -> None:
    """Said before a byte is written."""
    convert = [failing.COMMAND, "to-megatron", larger, tmp_path / "out", *flags]
    (first, left) = on_a_disk(tmp_path, "size=16m", convert, ["ls", "-A", tmp_path])
    refused(first, 4, str(tmp_path), "MiB needed, 16.0 MiB free", "make room")
    assert left.out == ""


def test_disk_that_fills_up(larger: Path, tmp_path: Path) -> None:
    """Something else takes the space while a conversion runs; when it is given back, the conversion goes on."""
    disk, out = tmp_path / "disk", tmp_path / "disk" / "out"
    disk.mkdir()
    convert = ["to-megatron", larger, out, "--tp", "2"]
    first, left, second, third, fourth, _ = on_a_disk(
        disk,
        "size=64m",
        python(FILL, *convert),
        ["ls", "-A", disk],
        [failing.COMMAND, *convert, "--resume"],
        ["rm", disk / "filler"],
        [failing.COMMAND, *convert, "--resume"],
        ["cp", "-r", out, tmp_path / "out"],
    )
    said = refused(first, 4, "out.partial", "is full")
    assert "hint: make room, then run the same command with --resume" in said
    assert left.out.split() == ["filler", "out.partial"]
    refused(second, 4, "needed", "free", "make room")
    assert third.code == 0
    assert "done" in ok(fourth).out
    assert contents(tmp_path / "out") == contents(megatron(tmp_path / "direct", larger, tp=2))


def test_disk_that_has_no_room_for_the_last_file(larger: Path, tmp_path: Path) -> None:
    """The weights fit, the tokenizer does not."""
    source = copied(larger, tmp_path / "hf")
    (source / "tokenizer.json").write_bytes(b" " * 16 * MB)
    disk, out = tmp_path / "disk", tmp_path / "disk" / "out"
    disk.mkdir()
    convert = [failing.COMMAND, "to-megatron", source, out]
    first, left, grown, second, _ = on_a_disk(
        disk,
        "size=48m",
        convert,
        ["ls", "-A", disk],
        ["mount", "-o", "remount,size=64m", disk],
        [*convert, "--resume"],
        ["cp", "-r", out, tmp_path / "out"],
    )
    refused(first, 4, str(disk), "hint: make room")
    assert left.out.split() in ([], ["out.partial"])
    assert grown.code == 0
    ok(second)
    assert contents(tmp_path / "out") == contents(megatron(tmp_path / "direct", source))


def test_read_only_disk(llama: Path, tmp_path: Path) -> None:
    convert = [failing.COMMAND, "to-megatron", llama, tmp_path / "out"]
    refused(*on_a_disk(tmp_path, "ro", convert), 4, str(tmp_path), "Read-only file system")


def test_target_that_is_a_mount_point(llama: Path, tmp_path: Path) -> None:
    """A container's volume: nothing can be renamed into its place."""
    (tmp_path / "volume").mkdir()
    convert = [failing.COMMAND, "to-megatron", llama, tmp_path / "volume"]
    first, second = on_a_disk(tmp_path / "volume", "size=64m", convert, [*convert[:-1], tmp_path / "volume" / "model"])
    said = refused(first, 3, "volume is a mount point")
    assert f"name a directory inside it, such as {tmp_path / 'volume' / 'model'}" in said
    ok(second)
    assert [p.name for p in tmp_path.iterdir()] == ["volume"]


# Rights


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_source_file_that_may_not_be_read(name: str, llama: Path, tmp_path: Path) -> None:
    source = copied(llama, tmp_path / "hf")
    (source / name).chmod(0)
    result = run("to-megatron", source, tmp_path / "out", prefix=without_privileges())
    refused(result, 4, str(source / name), "Permission denied")
    untouched(tmp_path / "out")


def test_source_directory_that_may_not_be_read(llama: Path, tmp_path: Path) -> None:
    source = copied(llama, tmp_path / "hf")
    for mode in (0, 0o444):
        source.chmod(mode)
        result = run("to-megatron", source, tmp_path / "out", prefix=without_privileges())
        assert result.code in (2, 4), str(result)
        assert "Traceback" not in result.err
        assert str(source) in result.err.replace("\n", "")
    source.chmod(0o755)
    untouched(tmp_path / "out")


def test_shard_that_may_not_be_read(sharded: Path, tmp_path: Path) -> None:
    source = copied(sharded, tmp_path / "mcore")
    failing.shard(source, "01_001").chmod(0)
    refused(run("inspect", source, prefix=without_privileges()), 3, "mp_rank_01_001", "Permission denied")


def test_target_that_may_not_be_written(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "targets").mkdir(mode=0o555)
    result = run("to-megatron", llama, tmp_path / "targets" / "out", prefix=without_privileges())
    refused(result, 4, "targets/out", "Permission denied")
    assert list((tmp_path / "targets").iterdir()) == []


# Company

SLOW = """
import time
import jumar.ckpt_convert.execute as execute
write = execute.Executor._write
def slow(self, *args):
    time.sleep(0.3)
    write(self, *args)
execute.Executor._write = slow
"""


def test_two_runs_at_once(llama: Path, tmp_path: Path) -> None:
    """The second is told of the first, whatever its flags; the first is not disturbed."""
    first = failing.started(python(SLOW, "to-megatron", llama, tmp_path / "out", "--threads", 1))
    failing.wait_for(lambda: (tmp_path / "out.partial" / ITERATION).exists())
    for flags in ALL:
        said = refused(run("to-megatron", llama, tmp_path / "out", *flags), 4, "another process is writing", "out.partial")
        assert "hint: wait until it is done" in said
    ok(first.wait())
    assert contents(tmp_path / "out") == contents(megatron(tmp_path / "direct", llama))


# The network

NO_SOCKETS = """
import sys
def refuse(event, args):
    if event.startswith(("socket.", "urllib.")):
        raise RuntimeError(f"the network: {event} {args}")
sys.addaudithook(refuse)
"""


def test_no_socket_is_opened(llama: Path, tmp_path: Path) -> None:
    mcore, back = tmp_path / "mcore", tmp_path / "hf"
    for line in (
        ["to-megatron", llama, mcore, "--tp", 2],
        ["to-hf", mcore, back],
        ["verify", llama, mcore],
        ["inspect", mcore],
        ["families"],
        ["--help"],
    ):
        ok(run(*line, code=NO_SOCKETS))
    refused(run("to-hf", "org/model", back, code=NO_SOCKETS), 3, "hub names are not fetched")
    assert run("--version", code=NO_SOCKETS + "import socket; socket.socket()").code == 1


def test_without_a_network(llama: Path, tmp_path: Path) -> None:
    failing.needs_namespace("-rn", "cutting the network")
    prefix = ["unshare", "-rn"]
    ok(run("to-megatron", llama, tmp_path / "out", "--pp", 2, prefix=prefix))
    ok(run("verify", llama, tmp_path / "out", prefix=prefix))
