"""What is known of checkpoints without a run: which are there, which are whole, and what a writer answers."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageWriterTransforms

from jobs import make_job
from jumar.schema.errors import Exit, ToolError
from jumar.train_core.run.beside import check_same_run, recipe_facts, replace_file, write_beside
from jumar.train_core.run.checkpoint import Checkpoints
from jumar.train_core.run.claim import InUse, _claim
from jumar.train_core.run.complete import COMPLETE, damage, facts_text, iterations, judge, look, newest, read_facts, step_here
from jumar.train_core.run.export import Exports, hf_of
from jumar.train_core.run.gathered import joined, segments
from jumar.train_core.run.nodes import Nodes, one_disk
from jumar.train_core.run.ranks import Lost, lost, torchrun_serves
from jumar.train_core.run.writing import Results, checksum, write

TRANSFORMS = [_StorageWriterTransforms()]
INPUTS = [{"name": "a.idx", "size": 10, "head_sha256": "aa"}, {"name": "a.bin", "size": 20, "head_sha256": "bb"}]


def checkpoint(root: Path, step: int, **facts: Any) -> Path:
    path = root / f"iter_{step:07d}"
    path.mkdir(parents=True)
    (path / "common.pt").write_bytes(bytes(range(200)))
    (path / "__0_0.distcp").write_bytes(os.urandom(5000))
    files = {file.name: checksum(file) for file in path.iterdir()}
    (path / COMPLETE).write_text(facts_text({"step": step, "unevaluated": False, **facts, "files": files}))
    return path


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Nodes]:
    """The only rank there is."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/.store", rank=0, world_size=1)
    yield one_disk()
    torch.distributed.destroy_process_group()


def test_published_ones_newest_first(tmp_path: Path) -> None:
    assert iterations(tmp_path / "no") == []
    for name in (
        "iter_0000009",
        "iter_0000010",
        "iter_0000011.partial",
        "iter_0000012.removing",
        "iter_12345678",
        "iter_1",
        "hf",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "iter_0000099").touch()
    assert [path.name for path in iterations(tmp_path)] == ["iter_12345678", "iter_0000010", "iter_0000009"]


def test_a_whole_one(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 3, samples=12)
    assert damage(path) is None
    assert damage(path, 1, 2) is None
    assert read_facts(path)["samples"] == 12
    (path / "more").touch()
    assert damage(path) is None


@pytest.mark.parametrize("name", ["common.pt", "__0_0.distcp"])
def test_each_damage_is_seen(tmp_path: Path, name: str) -> None:
    path = checkpoint(tmp_path, 3)
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[:-1])
    assert damage(path) == f"{name} has {len(whole) - 1} bytes of {len(whole)}"
    (path / name).write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    assert damage(path) == f"{name} has other bytes than were written"
    assert damage(path, content=False) is None
    assert [damage(path, rank, 2) for rank in range(2)].count(None) == 1, "each rank reads its share"
    (path / name).unlink()
    assert damage(path) == f"{name} is missing"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"files": {}}', '{"files": {"a": 3}, "crc32": 1}'])
def test_a_list_that_is_none(tmp_path: Path, text: str) -> None:
    path = checkpoint(tmp_path, 3)
    (path / COMPLETE).write_text(text)
    assert (damage(path) or "").startswith("complete.json cannot be read")


def test_any_other_byte_of_the_list(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 3)
    content = (path / COMPLETE).read_bytes()
    for at in [at for at, byte in enumerate(content) if chr(byte).isalnum()]:
        (path / COMPLETE).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert damage(path) is not None, content[max(0, at - 20) : at + 5]


def test_the_newest_that_is_there(tmp_path: Path, alone: Nodes) -> None:
    assert newest(alone, None) is None
    assert newest(alone, tmp_path) is None
    for step in (3, 6, 9):
        checkpoint(tmp_path, step)
    (tmp_path / "iter_0000009" / COMPLETE).unlink()
    found = newest(alone, tmp_path)
    assert found is not None
    assert (found.facts["step"], found.path) == (6, tmp_path / "iter_0000006")


def test_a_step_is_known_before_the_tracker_says_so(tmp_path: Path) -> None:
    assert step_here(None) is None
    assert step_here(tmp_path / "no") is None
    checkpoint(tmp_path, 3)
    assert step_here(tmp_path) == 3, "published, and whoever wrote it was killed before the tracker"
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    (checkpoint(tmp_path, 6) / "common.pt").unlink()
    assert step_here(tmp_path) == 3


def on_two_nodes(folder: Path, step: int = 3) -> list[Path]:
    """A checkpoint of which each node has a file of its own, and both have common.pt."""
    paths = [checkpoint(folder / node, step) for node in ("a", "b")]
    (paths[1] / "__0_0.distcp").rename(paths[1] / "__1_0.distcp")
    files = {file.name: checksum(file) for path in paths for file in path.iterdir() if file.name != COMPLETE}
    for path in paths:
        own = {name: each for name, each in files.items() if (path / name).exists()}
        others = {name: each for name, each in files.items() if name not in own}
        (path / COMPLETE).write_text(facts_text({"step": step, "files": own, "elsewhere": others}))
    return paths


def judged(*paths: Path) -> object:
    return judge([(node, look(path)) for node, path in enumerate(paths)], ["h0", "h1", "h2"][: len(paths)])


def test_what_is_whole_over_nodes(tmp_path: Path) -> None:
    a, b = on_two_nodes(tmp_path)
    both = {0: {"__1_0.distcp"}, 1: {"__0_0.distcp"}}
    assert judged(a, b) == both
    assert judged(b, a) == {0: both[1], 1: both[0]}, "nodes change places"
    assert judged(a, tmp_path / "new", b) == {0: both[0], 2: both[1]}, "a node more"
    assert judged(a, tmp_path / "new") == "__1_0.distcp is missing on all nodes, and h1 has nothing of it"
    assert judged(tmp_path / "new") == "it is not there"
    assert damage(a) == "__1_0.distcp is missing"
    (a / "__1_0.distcp").write_bytes((b / "__1_0.distcp").read_bytes())
    assert damage(a) is None, "copied together"
    (a / "__1_0.distcp").write_bytes(b"1")
    assert judged(a, b) == both, "what it need not have"
    whole = (b / "__1_0.distcp").read_bytes()
    (b / "__1_0.distcp").write_bytes(whole[:-1])
    assert judged(a, b) == "__1_0.distcp has 4999 bytes of 5000 on h1"
    (b / "__1_0.distcp").write_bytes(whole)
    other = on_two_nodes(tmp_path / "other")[1]
    assert judged(a, other) == "h0 and h1 have different ones of that number"


def test_spans_that_nodes_want() -> None:
    assert joined([("b", 0, 4), ("a", 5, 9), ("a", 0, 3), ("a", 2, 5), ("b", 6, 7)]) == [("a", 0, 9), ("b", 0, 4), ("b", 6, 7)]
    wanted = [[], [("a", 0, 10), ("b", 3, 5)], [("a", 4, 12), ("a", 20, 21)]]
    assert list(segments(wanted)) == [
        ("a", 0, 4, (1,)),
        ("a", 4, 10, (1, 2)),
        ("a", 10, 12, (2,)),
        ("a", 20, 21, (2,)),
        ("b", 3, 5, (1,)),
    ]


@pytest.mark.parametrize("keep, left", [(None, [3, 6, 9, 12]), (1, [9, 12]), (2, [6, 9, 12]), (5, [3, 6, 9, 12])])
def test_which_are_forgotten(tmp_path: Path, keep: int | None, left: list[int]) -> None:
    """12 is a damaged one that was passed over; 9 was just written."""
    for step in (3, 6, 9, 12):
        checkpoint(tmp_path, step)
        hf_of(tmp_path / f"iter_{step:07d}").mkdir()
    job = SimpleNamespace(recipe=SimpleNamespace(save=SimpleNamespace(keep=keep, path=tmp_path)))
    exports = Exports(job, Nodes((0,), ("",), 0), lambda *_: None)  # type: ignore[arg-type]
    here = SimpleNamespace(root=tmp_path, job=job, exports=exports)
    Checkpoints._forget_old(here, tmp_path / "iter_0000009")  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{hf}iter_{n:07d}" for hf in ("hf_", "") for n in left]


def test_a_small_file_is_replaced_whole(tmp_path: Path) -> None:
    for text in ("1", "22"):
        replace_file(tmp_path / "tracker", text)
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("tracker", text)]


def test_a_recipe_s_files_are_told_by_their_names(tmp_path: Path) -> None:
    for spelled, name in (("auto", None), ("chatml", "chatml"), ("a/t.json", "t.json"), ("/b/t.json:brief", "t.json:brief")):
        data = recipe_facts(make_job(tmp_path, data__template=spelled, data__train=f"{tmp_path}/there/x"))["data"]
        assert (data.get("template"), data["train"]) == (name, "x")


def test_small_files_are_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    """As whoever reads them expects: names of data, values of a config."""
    code = (
        "import sys; from pathlib import Path; from jumar.train_core.run.beside import replace_file\n"
        "replace_file(Path(sys.argv[1]), '\\u5bf9\\u8bdd')"
    )
    other = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.json")], env=other, check=True, timeout=100)
    assert (tmp_path / "a.json").read_bytes() == "对话".encode()


def test_what_lies_beside(tmp_path: Path) -> None:
    job, root = make_job(tmp_path), tmp_path / "run"
    root.mkdir()
    write_beside(job, root, INPUTS)
    first = (root / "manifest.json").read_text()
    assert json.loads(first)["inputs"] == INPUTS
    assert sorted(path.name for path in root.iterdir()) == ["hf", "manifest.json"]
    write_beside(make_job(tmp_path, train__seed=5), root, INPUTS)
    assert json.loads((root / "manifest.json").read_text())["seed"] == 5, "it tells of the run as it is now"


def test_a_run_that_goes_on_is_the_one_that_began(tmp_path: Path) -> None:
    job, root, said = make_job(tmp_path), tmp_path / "run", list[str]()
    root.mkdir()
    said += check_same_run(job, root, INPUTS)  # of a manifest that is not there nothing is known
    write_beside(job, root, INPUTS)
    said += check_same_run(job, root, INPUTS)
    said += check_same_run(make_job(tmp_path, parallel__tp=2, world=2, optim__lr=0.1), root, INPUTS)
    assert said == []
    said += check_same_run(job, root, [INPUTS[0], {**INPUTS[1], "head_sha256": "cc"}])
    said += check_same_run(job, root, INPUTS[:1])
    said += check_same_run(make_job(tmp_path, train__seed=5), root, INPUTS)
    assert [re.search(r"\((.*)\)|was (\d+)", text).group() for text in said] == ["(a.bin)", "(a.bin)", "was 1234"]  # type: ignore[union-attr]
    with pytest.raises(ToolError, match="holds a run of another model: num_layers 4 there, 2 here"):
        check_same_run(make_job(tmp_path, model__config={"num_hidden_layers": 2}), root, INPUTS)


def test_a_directory_is_claimed_and_cleared(tmp_path: Path) -> None:
    root = tmp_path / "a/run"
    for name in ("iter_0000003", "iter_0000004.partial", "iter_0000001.removing", ".hf.new", "hf"):
        (root / name).mkdir(parents=True)
    (root / "exit.json").touch()
    text = f"import sys\nfrom pathlib import Path\nfrom jumar.train_core.run.claim import _claim\n_claim(Path({str(root)!r}))\n"
    text += "print('claimed', flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "claimed\n"
        assert sorted(path.name for path in root.iterdir()) == [".lock", "hf", "iter_0000003"]
        with pytest.raises(InUse, match=f"is in use by another run .process {other.pid} on ") as fault:
            _claim(root)
        assert fault.value.code == Exit.ENVIRONMENT
        other.kill()
    os.close(_claim(root))


def bucket(path: Path, tensor: torch.Tensor) -> Any:
    from torch.distributed.checkpoint.metadata import MetadataIndex
    from torch.distributed.checkpoint.planner import WriteItem, WriteItemType

    item = WriteItem(index=MetadataIndex("x"), type=WriteItemType.TENSOR)
    return str(path), path.name, ([], [(item, tensor)])


@pytest.mark.parametrize("forked", [False, True])
def test_a_writer_answers(tmp_path: Path, forked: bool) -> None:
    """Also with more than a pipe holds."""
    results = Results()
    assert results.outcome() == ("the process that writes it was killed", {})
    with pytest.raises(queue.Empty):
        results.get_nowait()
    buckets = [bucket(tmp_path / f"__0_{i}.distcp", torch.full((100 + i,), float(i))) for i in range(3)]
    _written(results, buckets, forked)
    fault, sums = results.outcome()
    assert fault is None
    assert sums == {f"__0_{i}.distcp": checksum(tmp_path / f"__0_{i}.distcp") for i in range(3)}
    assert sorted(results.get_nowait()) == [0, 1, 2]


@pytest.mark.parametrize("forked", [False, True])
def test_a_writer_that_cannot(tmp_path: Path, forked: bool) -> None:
    results = Results()
    _written(results, [bucket(tmp_path / "no/__0_0.distcp", torch.zeros(3))], forked)
    assert "No such file or directory" in str(results.outcome()[0])
    assert isinstance(results.get_nowait(), OSError)


def _written(results: Results, buckets: Any, forked: bool) -> None:
    if not forked:
        write(TRANSFORMS, False, 0, buckets, results)
        return
    process = multiprocessing.get_context("fork").Process(target=write, args=(TRANSFORMS, False, 0, buckets, results))
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_a_forked_writer_ends_with_its_rank_and_not_by_signals(tmp_path: Path) -> None:
    text = (  # one write a line: two processes write
        "import multiprocessing, os, time\nfrom jumar.train_core.run.writing import _aside\n"
        "def work():\n    _aside(os.getppid())\n    os.write(1, b'aside\\n')\n    time.sleep(60)\n"
        "p = multiprocessing.get_context('fork').Process(target=work)\np.start()\nos.write(1, b'%d\\n' % p.pid)\np.join()\n"
    )
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout is not None
        lines = {rank.stdout.readline().strip() for _ in range(2)}
        (writer,) = (int(line) for line in lines if line != "aside")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(writer, number)
        time.sleep(0.3)
        assert Path(f"/proc/{writer}").exists()
        rank.kill()
    end = time.monotonic() + 30
    while Path(f"/proc/{writer}").exists() and "Z" not in Path(f"/proc/{writer}/stat").read_text().rsplit(")", 1)[1]:
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    "text, late",
    [
        ("[/x/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1", False),
        ("[/x/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 6000ms for recv operation to complete", True),
        ("NCCL communicator was aborted on rank 0", False),
        ("wait timeout after 40000ms, keys: /default_pg/0//cpu//0/1", True),
        ("shape '[2]' is invalid for input of size 3", None),
    ],
)
def test_what_a_failed_collective_means(text: str, late: bool | None) -> None:
    found = lost(RuntimeError(text))
    assert (found and found.late) == late
    assert found is None or found.code == Exit.ENVIRONMENT


def test_a_torchrun_that_is_gone_before_its_ranks_meet() -> None:
    with socket.socket() as store:
        store.bind(("127.0.0.1", 0))
        at = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.getsockname()[1])}
        torchrun_serves(at)  # one rank serves the others, and comes when it comes
        at["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        with pytest.raises(Lost, match=f"torchrun does not answer at 127.0.0.1:{at['MASTER_PORT']} .Connection refused"):
            torchrun_serves(at, 0.2)
        threading.Timer(1, store.listen).start()
        torchrun_serves(at, 30)
