"""Ranks of one machine: how they are started, stopped, and what their end means. The ranks really are torchrun's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from jumar.schema.errors import Exit, ToolError
from jumar.train_core.exit_file import Ended, ExitFile
from jumar.train_core.launch import Place, _outcome, alone, launch, place
from jumar.train_core.run.complete import COMPLETE, facts_text

HERE = Path(__file__).parent
SCRIPT = "import sys; from pathlib import Path; from jumar.train_core.launch import launch; "
SCRIPT += "sys.exit(launch(2, ['wait', sys.argv[1]], Path(sys.argv[1]), module='launch_worker'))"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's directory; the stand-in for a rank can be imported by the processes that are started."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH")))))
    return tmp_path


def test_ranks_are_told_who_they_are(run: Path) -> None:
    assert launch(2, ["fine", str(run)], run, module="launch_worker") == Exit.OK
    assert [(run / f"rank{i}").read_text() for i in range(2)] == ["0 2 0 1", "1 2 1 1"]


def test_the_code_is_that_of_the_ranks_and_torchrun_is_silent(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(2, ["fail", str(run)], run, module="launch_worker") == Exit.INPUT
    assert json.loads((run / "exit.json").read_text()) == {"code": 3, "message": "does not fit", "rank": 1}
    assert capfd.readouterr() == ("", "")


def test_a_code_without_a_word(run: Path) -> None:
    """An exit.json of an earlier run is not read."""
    ExitFile(run).write(75, "stopped", 0)
    assert launch(2, ["quiet", str(run)], run, module="launch_worker") == Exit.ENVIRONMENT


def test_a_killed_rank(run: Path) -> None:
    saved = run / "iter_0000040"  # the tracker, which is written after it, is not there yet
    saved.mkdir()
    (saved / "common.pt").write_bytes(b"bytes")
    (saved / COMPLETE).write_text(facts_text({"step": 40, "files": {"common.pt": (5, zlib.crc32(b"bytes"))}}))
    with pytest.raises(ToolError) as fault:
        launch(2, ["killed", str(run)], run, module="launch_worker")
    assert fault.value.message == "rank 1 was killed by signal 9 (out of memory?)"
    assert (fault.value.hint or "").startswith("the same command goes on from step 40")
    assert fault.value.code == Exit.ENVIRONMENT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_reaches_each_rank_once(run: Path, number: signal.Signals) -> None:
    """As Ctrl-C in a terminal: to the whole process group of the command."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(run)], start_new_session=True)
    try:
        _until(lambda: all((run / f"ready{i}").exists() for i in range(2)), process)
        os.killpg(process.pid, number)
        assert process.wait(timeout=60) == Exit.STOPPED
    finally:
        process.kill()
    assert [(run / f"heard{i}").read_text() for i in range(2)] == [str(int(number))] * 2


def _until(there: Any, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if there():
            return
        assert process.poll() is None
        time.sleep(0.1)
    raise AssertionError("the ranks did not start")


def failed(**codes: int) -> dict[str, Any]:
    return {rank.removeprefix("r"): {"exitcode": code, "pid": 1, "timestamp": 0} for rank, code in codes.items()}


@pytest.mark.parametrize(
    "code, failures, ended, signals, wanted",
    [
        (0, {}, None, 0, 0),
        (0, {}, Ended(0, "", 0), 0, 0),
        (1, failed(r0=75, r1=75), Ended(75, "", 0), 1, 75),
        (1, failed(r0=3), Ended(3, "no", 0), 0, 3),
        (1, failed(r1=1), Ended(0, "", 0), 0, 1),  # rank 0 was done before rank 1 failed
        (1, failed(r0=4), None, 0, 4),
        (1, failed(r0=-15, r1=4), None, 0, 4),  # torchrun ended rank 0 after rank 1
        (1, {}, None, 0, 1),
        (1, failed(r0=-15, r1=-15), None, 1, 130),  # asked before anything could be saved
        (-15, {}, None, 1, 130),
        (1, failed(r0=-9), None, 2, 130),  # asked twice
    ],
)
def test_outcomes(code: int, failures: dict[str, Any], ended: Ended | None, signals: int, wanted: int) -> None:
    assert _outcome(code, failures, ended, signals, None) == wanted


@pytest.mark.parametrize(
    "failures, ended, message",
    [
        (failed(r0=-9, r1=-15), None, "rank 0 was killed by signal 9 (out of memory?)"),
        (failed(r0=1, r3=-11), Ended(1, "connection closed", 0), "rank 3 was killed by signal 11 (a fault in native code)"),
        (failed(r2=-7), None, "rank 2 was killed by signal 7 (is shared memory full?)"),
        (failed(r2=-31), None, "rank 2 was killed by signal 31"),
    ],
)
def test_dead_ranks(failures: dict[str, Any], ended: Ended | None, message: str) -> None:
    with pytest.raises(ToolError) as fault:
        _outcome(1, failures, ended, 0, None)
    assert (fault.value.message, fault.value.code) == (message, Exit.ENVIRONMENT)
    assert "no checkpoint is there" in (fault.value.hint or "")


def test_a_killed_torchrun() -> None:
    with pytest.raises(ToolError) as fault:
        _outcome(-9, {}, None, 0, None)
    told = "torchrun, which starts the ranks, was killed by signal 9 (out of memory?)"
    assert (fault.value.message, fault.value.code) == (told, Exit.ENVIRONMENT)
    assert _outcome(-9, {}, Ended(75, "", 0), 0, None) == Exit.STOPPED  # the ranks have saved


def test_where_a_process_is() -> None:
    assert place({}) is None
    assert place({"RANK": "1"}) is None
    assert place({"RANK": "1", "WORLD_SIZE": "4"}) == Place(1, 4, False)
    assert place({"RANK": "1", "WORLD_SIZE": "4", "JUMAR_TRAIN_LAUNCHED": "1"}) == Place(1, 4, True)


def test_one_process_alone() -> None:
    found = alone({})
    assert place(found) == Place(0, 1, False)
    assert 1024 < int(found["MASTER_PORT"]) < 65536
    assert alone({"MASTER_PORT": "29511"})["MASTER_PORT"] == "29511"


def test_exit_file(tmp_path: Path) -> None:
    run = tmp_path / "a/b"
    first = ExitFile(run)
    assert first.read() is None
    first.write(3, "does not fit", 2)
    first.write(1, "afterwards", 0)  # what came first is the reason
    assert first.read() == Ended(3, "does not fit", 2)
    second = ExitFile(run)
    assert second.read() is None  # another run's
    second.write(3, "does not fit", 2)
    assert second.read() == Ended(3, "does not fit", 2)
    assert [path.name for path in run.iterdir()] == ["exit.json"]


def test_a_damaged_exit_file_and_one_that_cannot_be_written(tmp_path: Path) -> None:
    file = ExitFile(tmp_path)
    (tmp_path / "exit.json").write_text("{")
    assert file.read() is None
    (tmp_path / "file").touch()
    ExitFile(tmp_path / "file").write(3, "no", 0)
    ExitFile(None).write(3, "no", 0)
    assert ExitFile(None).read() is None
