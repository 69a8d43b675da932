"""What others do to target, staging directory and sources while a conversion runs. Nothing is lost, nothing is mixed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from failing import ITERATION, contents, copied, megatron, model, ok, refused, run, without_privileges

pytestmark = pytest.mark.matrix

AT_THE_END = """
import os, shutil
from pathlib import Path
import jumar.ckpt_convert.target as target
import jumar.ckpt_convert.execute as execute
work = execute.Executor.run
def run_then_meddle(self, files):
    work(self, files)
    {what}
execute.Executor.run = run_then_meddle
"""
AFTER_ONE = """
import os, shutil
from pathlib import Path
import jumar.ckpt_convert.execute as execute
write, done = execute.Executor._write, []
def write_then_meddle(self, *args):
    write(self, *args)
    if not done:
        done.append(1)
        {what}
execute.Executor._write = write_then_meddle
"""


def meddling(what: str, when: str = AT_THE_END) -> str:
    """Code that does `what` in the middle of a run."""
    return when.replace("{what}", what)


# The target


@pytest.mark.parametrize("there", ["nothing", "empty", "ours"])
def test_file_that_appears_in_the_target_is_kept(there: str, llama: Path, tmp_path: Path) -> None:
    """Somebody begins to work there while the conversion runs: it is heard before the renaming, and can be gone on with."""
    dst, flags = tmp_path / "out", ["--force"] if there == "ours" else []
    if there == "empty":
        dst.mkdir()
    if there == "ours":
        megatron(dst, llama)
    what = f"Path({str(dst)!r}).mkdir(exist_ok=True); Path({str(dst)!r}, 'thesis.tex').write_text('years of work')"
    said = refused(run("to-megatron", llama, dst, "--tp", 2, *flags, code=meddling(what)), 3, "thesis.tex")
    assert "--resume" in said
    assert (dst / "thesis.tex").read_text() == "years of work"
    (dst / "thesis.tex").rename(tmp_path / "thesis.tex")
    ok(run("to-megatron", llama, dst, "--tp", 2, "--resume", *flags))
    assert contents(dst) == contents(megatron(tmp_path / "fresh", llama, tp=2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fresh", "out", "thesis.tex"]


def test_finished_target_that_appears_is_not_replaced_without_force(llama: Path, tmp_path: Path) -> None:
    """Two machines convert into one place, and no lock is seen by both."""
    dst, other = tmp_path / "out", megatron(tmp_path / "other", llama)
    what = f"shutil.copytree({str(other)!r}, {str(dst)!r})"
    refused(run("to-megatron", llama, dst, "--tp", 2, code=meddling(what)), 3, "is not empty")
    assert contents(dst) == contents(other)


def test_file_that_appears_during_the_renaming_is_kept(llama: Path, tmp_path: Path) -> None:
    """Too late to be heard: what was replaced goes file by file, as its manifest lists them."""
    dst = megatron(tmp_path / "out", llama)
    what = f"""
    rename = os.rename
    def rename_then_meddle(old, new):
        if str(old) == {str(dst)!r}:
            Path(old, "hf", "thesis.tex").write_text("years of work")
        rename(old, new)
    target.os.rename = rename_then_meddle
""".strip()
    said = refused(run("to-megatron", llama, dst, "--tp", 2, "--force", code=meddling(what)), 3, ".replaced/hf/thesis.tex")
    assert "hint: move it" in said
    assert (dst / ".replaced" / "hf" / "thesis.tex").read_text() == "years of work"
    again = refused(run("to-megatron", llama, dst, "--tp", 2), 3, ".replaced/hf/thesis.tex")
    assert "hint: move it" in again
    refused(run("to-megatron", llama, dst, "--tp", 4, "--force"), 3, ".replaced/hf/thesis.tex")
    (dst / ".replaced" / "hf" / "thesis.tex").rename(tmp_path / "thesis.tex")
    assert "already done" in ok(run("to-megatron", llama, dst, "--tp", 2)).out
    assert contents(dst) == contents(megatron(tmp_path / "fresh", llama, tp=2))
    assert not (dst / ".replaced").exists()


@pytest.mark.parametrize("what", ["file", "link"])
def test_what_only_has_the_name_of_a_replaced_target_is_kept(what: str, llama: Path, tmp_path: Path) -> None:
    dst, own = megatron(tmp_path / "out", llama), copied(llama, tmp_path / "own")
    (own / "manifest.json").write_bytes((dst / "manifest.json").read_bytes())
    (dst / ".replaced").write_text("mine") if what == "file" else (dst / ".replaced").symlink_to(own)
    before = contents(tmp_path)
    refused(run("to-megatron", llama, dst, "--tp", 2, "--force"), 3, "holds what the conversion did not write: .replaced")
    refused(run("to-megatron", llama, dst), 3, ".replaced")
    assert contents(tmp_path) == before


# The staging directory


@pytest.mark.parametrize("lost", ["out.partial", f"out.partial/{ITERATION}/mp_rank_00/model_optim_rng.pt"])
@pytest.mark.parametrize("when", [AFTER_ONE, AT_THE_END], ids=["while writing", "at the end"])
def test_staging_that_is_removed(lost: str, when: str, llama: Path, tmp_path: Path) -> None:
    """No file of holes takes its place."""
    gone = tmp_path / lost
    what = f"shutil.rmtree({str(gone)!r})" if lost == "out.partial" else f"os.unlink({str(gone)!r})"
    result = run("to-megatron", llama, tmp_path / "out", "--tp", 2, "--threads", 1, code=meddling(what, when))
    refused(result, 4, "out.partial", "removed")
    assert not (tmp_path / "out").exists()
    ok(run("to-megatron", llama, tmp_path / "out", "--tp", 2, "--force"))
    assert contents(tmp_path / "out") == contents(megatron(tmp_path / "fresh", llama, tp=2))


# The sources


@pytest.mark.parametrize("when", [AFTER_ONE, AT_THE_END], ids=["while reading", "at the end"])
@pytest.mark.parametrize("direction", ["to-megatron", "to-hf"])
def test_source_that_is_rewritten(direction: str, when: str, llama: Path, tmp_path: Path) -> None:
    """In place, with other values of the same shapes: half of each would be in the target."""
    source, other = copied(llama, tmp_path / "hf"), model(tmp_path / "other", seed=1)
    what = f"shutil.copyfile({str(other / 'model.safetensors')!r}, {str(source / 'model.safetensors')!r})"
    result = run(direction, source, tmp_path / "out", "--threads", 1, code=meddling(what, when))
    refused(result, 3, str(source / "model.safetensors"), "changed while it was read")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "other"]


def test_tokenizer_that_is_rewritten(llama: Path, tmp_path: Path) -> None:
    """The manifest already holds the hash of the one that was."""
    source = copied(llama, tmp_path / "hf")
    what = f"Path({str(source / 'tokenizer.json')!r}).write_text('{{}}')"
    refused(run("to-megatron", source, tmp_path / "out", code=meddling(what)), 3, "tokenizer.json", "changed while")


@pytest.mark.parametrize("command", ["to-hf", "to-megatron", "to-megatron --tp 2", "to-hf --dtype bf16"])
def test_source_that_is_cut_short(command: str, llama: Path, tmp_path: Path) -> None:
    """No signal kills the process; what is missing is named."""
    source = copied(llama, tmp_path / "hf")
    what = f"os.truncate({str(source / 'model.safetensors')!r}, 50_000)"
    verb, *flags = command.split()
    result = run(verb, source, tmp_path / "out", "--threads", 1, *flags, code=meddling(what, AFTER_ONE))
    refused(result, 3, str(source / "model.safetensors"), "cut short while it was read")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_source_that_is_cut_short_while_it_is_verified(llama: Path, tmp_path: Path) -> None:
    source = copied(llama, tmp_path / "hf")
    code = f"""
import os
import jumar.ckpt_convert.verification as verification
compare = verification._compare
def cut(*args):
    os.truncate({str(source / "model.safetensors")!r}, 50_000)
    return compare(*args)
verification._compare = cut
"""
    refused(run("verify", llama, source, "--threads", 1, code=code), 3, str(source / "model.safetensors"), "cut short")


# Where resuming does not help


def test_resuming_is_advised_only_where_there_is_something_to_go_on_from(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "locked").mkdir(mode=0o555)
    for dst in (tmp_path / ("x" * 250), tmp_path / "file" / "out", Path("/proc/out"), Path("/sys/out")):
        said = refused(run("to-megatron", llama, dst), 4, str(dst.parent))
        assert "--resume" not in said
        assert "make room" not in said
    said = refused(run("to-megatron", llama, tmp_path / "locked" / "out", prefix=without_privileges()), 4, "Permission denied")
    assert "--resume" not in said


# The working directory


@pytest.mark.parametrize("dst", [".", "..", "../here", "below/.."])
def test_working_directory_as_a_target(dst: str, llama: Path, tmp_path: Path) -> None:
    """Replaced under its user, a shell would stand in a directory that is no more."""
    here = tmp_path / "here"
    (here / "below").mkdir(parents=True)
    (here / "below").rmdir() if dst != "below/.." else None
    said = refused(run("to-megatron", llama, dst, cwd=here), 2, "working directory")
    assert "hint: " in said
    shutil.rmtree(here)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["to-hf,,out", "to-hf,hf,", "inspect,", "verify,,hf", "verify,hf,"])
def test_empty_path(line: str, llama: Path, tmp_path: Path) -> None:
    """A variable that is not set in somebody's script is not the working directory."""
    source, words = copied(llama, tmp_path / "hf"), line.split(",")
    refused(run(*words, cwd=source.parent), 2, "a path is empty")
    refused(run(*words, cwd=source), 2, "a path is empty")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]
