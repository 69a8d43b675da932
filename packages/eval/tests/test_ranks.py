"""Several processes score as one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import faulty_rank
from eval_files import Maker
from jumar.eval.local import LocalModel, Opening
from jumar.eval.run import Settings, evaluate
from jumar.eval.task import FOLDER

TASKS = ("mmlu", "piqa", "short.yaml", "perplexity")
MODULE = ("-m", "jumar.eval")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    make = Maker(tmp_path_factory.mktemp("benchmarks"))
    for subject in ("anatomy", "astronomy"):
        make.mmlu(subject, count=12)
    make.piqa(count=12)
    make.gsm8k(count=4)
    make.texts()
    short = yaml.safe_load((FOLDER / "gsm8k.yaml").read_text()) | {"shots": 1, "max_new_tokens": 8}
    (make.folder / "short.yaml").write_text(yaml.safe_dump(short))
    return make.folder


@pytest.fixture(scope="module")
def whole(hf: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    tasks = tuple(str(data / name) if name.endswith("yaml") else name for name in TASKS)
    evaluate(lambda: LocalModel(hf, Opening(device="cpu")), Settings(tasks=tasks, data=data, out=out))
    return out


def torchrun(processes: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]


def words(hf: Path, data: Path, out: Path, *more: str) -> list[str]:
    tasks = ",".join(str(data / name) if name.endswith("yaml") else name for name in TASKS)
    return ["run", str(hf), "--tasks", tasks, "--data", str(data), "-o", str(out), "--device", "cpu", *more]


ENVIRON = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def launch(processes: int, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*torchrun(processes), *command], capture_output=True, text=True, timeout=280, env=ENVIRON)


def samples(out: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in out.glob("samples_*")}
    assert len(found) == 5
    return found


def result(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def test_two_copies(hf: Path, data: Path, whole: Path, tmp_path: Path) -> None:
    done = launch(2, *MODULE, *words(hf, data, tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == ["task", "answer", "shots", "metric", "value", "stderr"]
    assert done.stdout.count("piqa") == 2
    assert done.stderr.count("note: cpu over dp 2") == 1
    assert samples(tmp_path / "out") == samples(whole)
    found, expected = result(tmp_path / "out"), result(whole)
    assert found["results"] == expected["results"]
    assert (found["config"]["dp"], "dp" in expected["config"]) == (2, False)


@pytest.mark.slow
def test_ranks_of_a_run_that_is_done_end_too(hf: Path, data: Path, tmp_path: Path) -> None:
    """The others wait to be asked, and are told that there is nothing."""
    for already in (False, True):
        done = launch(2, *MODULE, *words(hf, data, tmp_path / "out", "--json"))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["already_done"] is already
    assert done.stderr.count("already done: ") == 1


def test_two_ranks_of_one_copy(hf: Path, data: Path, whole: Path, tmp_path: Path) -> None:
    assert_close(2, ("--tp", "2"), hf, data, whole, tmp_path / "out")
    assert result(tmp_path / "out")["config"]["tp"] == "2"


def assert_close(processes: int, layout: tuple[str, ...], hf: Path, data: Path, whole: Path, out: Path) -> None:
    """The same texts, and log-likelihoods to the rounding of sums."""
    done = launch(processes, *MODULE, *words(hf, data, out, *layout))
    assert done.returncode == 0, done.stderr
    for name, lines in samples(whole).items():
        pairs = zip(lines.splitlines(), (out / name).read_bytes().splitlines(), strict=True)
        for expected, found in ((json.loads(a), json.loads(b)) for a, b in pairs):
            assert found["arguments"] == expected["arguments"]
            for (value,), (wanted,) in zip(found["resps"], expected["resps"], strict=True):
                if isinstance(wanted, str):
                    assert value == wanted
                elif isinstance(wanted, list):
                    assert value == [pytest.approx(wanted[0], abs=1e-4), wanted[1]]
                else:
                    assert value == pytest.approx(wanted, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("processes, layout", [(2, ("--pp", "2")), (4, ("--tp", "2")), (4, ("--tp", "2", "--pp", "2"))])
def test_layouts(processes: int, layout: tuple[str, ...], hf: Path, data: Path, whole: Path, tmp_path: Path) -> None:
    assert_close(processes, layout, hf, data, whole, tmp_path / "out")
    config = result(tmp_path / "out")["config"]
    given = {
        "tp": "2" if "--tp" in layout else None,
        "pp": "2" if "--pp" in layout else None,
        "dp": 2 if processes == 4 and len(layout) == 2 else None,
    }
    assert {key: config.get(key) for key in given} == given


@pytest.mark.slow
@pytest.mark.parametrize("how, code, told", [("memory", 4, "out of memory"), ("bug", 1, "this is a bug in jumar-eval")])
@pytest.mark.parametrize("tp, rank", [(1, 0), (1, 1), (2, 0), (2, 1)])
def test_a_rank_that_fails_ends_all(
    how: str, code: int, told: str, tp: int, rank: int, hf: Path, data: Path, tmp_path: Path
) -> None:
    """It is told once, and every rank that was not ended by torchrun leaves with the code of the fault."""
    command = words(hf, data, tmp_path / "out", "--tp", str(tp))
    done = launch(2, faulty_rank.__file__, str(rank), "3", how, *command)
    assert done.returncode == 1  # torchrun's
    assert done.stderr.count("error:") == 1, done.stderr
    assert told in done.stderr
    codes = {int(line.split(":")[1].split("(")[0]) for line in done.stderr.splitlines() if line.lstrip().startswith("exitcode")}
    assert codes - {-signal.SIGTERM} == {code}
    assert done.stdout == ""


@pytest.mark.slow
def test_what_every_rank_finds_wrong_is_told_once(hf: Path, data: Path, tmp_path: Path) -> None:
    for more, said in (
        (words(tmp_path / "nowhere", data, tmp_path / "out"), "nowhere does not exist"),
        (words(hf, data, tmp_path / "out", "--data", str(tmp_path)), "no data of"),
        (words(hf, data, tmp_path / "out", "--tp", "3"), "tp 3 pp 1 cannot share 2 processes"),
        (words(hf, data, tmp_path / "out", "--cache-tokens", "64"), "raise --cache-tokens"),
    ):
        done = launch(2, *MODULE, *more)
        assert (done.stderr.count("error:"), said in done.stderr) == (1, True), done.stderr


def ranks_of(running: subprocess.Popen[bytes]) -> dict[int, int]:
    """Process numbers of ranks."""
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    environs = {int(child): Path(f"/proc/{child}/environ").read_bytes().split(b"\0") for child in children}
    return {int(v[5:]): child for child, environ in environs.items() for v in environ if v.startswith(b"RANK=")}


@pytest.mark.slow
def test_killed_and_gone_on_with(hf: Path, tmp_path: Path) -> None:
    """kill -9 of the first rank, then of the other; the same bytes as of a run of one process, but for when it was."""
    make = Maker(tmp_path / "data")
    make.piqa(count=1500)
    make.mmlu(count=600)
    command = ["run", str(hf), "--tasks", "piqa,mmlu", "--data", str(make.folder), "--device", "cpu"]
    subprocess.run([sys.executable, *MODULE, *command, "-o", tmp_path / "whole"], check=True, capture_output=True, env=ENVIRON)
    out = tmp_path / "out"
    for rank, size in ((0, 100_000), (1, 900_000)):
        again = ["--resume"] if rank else []
        running = subprocess.Popen([*torchrun(2), *MODULE, *command, "-o", str(out), *again], env=ENVIRON, stderr=subprocess.PIPE)
        while sum(path.stat().st_size for path in out.glob("samples_*")) < size:
            assert running.poll() is None
            time.sleep(0.01)
        os.kill(ranks_of(running)[rank], signal.SIGKILL)
        running.communicate()
        assert running.returncode == 1
        assert not (out / "results.json").exists()
    done = launch(2, *MODULE, *command, "-o", str(out), "--resume")
    assert done.returncode == 0, done.stderr
    for path in (tmp_path / "whole").glob("samples_*"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert result(out)["results"] == result(tmp_path / "whole")["results"]
