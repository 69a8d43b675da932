"""kill -9 at any moment, disks that are full, two runs in one directory: what is gone on with ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval_files import Maker
from jumar.eval.task import FOLDER
from jumar.schema.errors import Exit

TASKS = "mmlu,piqa,short.yaml"


class Oracle(BaseHTTPRequestHandler):
    """A model of checksums behind /v1/completions: always the same answer to the same question."""

    gate = threading.Event()

    def log_message(self, *args: Any) -> None:
        pass

    def reply(self, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.reply({"data": [{"id": "oracle"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.gate.wait(200)
        prompt = body["prompt"]
        if not body.get("echo"):
            self.reply({"choices": [{"text": f" {zlib.crc32(prompt.encode())} #### 7"}]})
            return
        tokens = re.findall(r"\s*\S+", prompt)
        ends = [match.end() for match in re.finditer(r"\s*\S+", prompt)]
        values = [-(zlib.crc32(prompt[:end].encode()) % 1000) / 100 for end in ends]
        logs = {"tokens": tokens, "token_logprobs": values, "text_offset": [0, *ends[:-1]], "top_logprobs": [None] * len(tokens)}
        self.reply({"choices": [{"logprobs": logs}], "usage": {"prompt_tokens": len(tokens)}})


@pytest.fixture
def oracle() -> Iterator[tuple[str, type[Oracle]]]:
    handler = type("Handler", (Oracle,), {"gate": threading.Event()})
    handler.gate.set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def data(make: Maker) -> Path:
    make.mmlu("anatomy", count=25)
    make.mmlu("astronomy", count=10)
    make.piqa(count=30)
    make.gsm8k(count=12)
    short = yaml.safe_load((FOLDER / "gsm8k.yaml").read_text()) | {"shots": 1, "max_new_tokens": 8}
    (make.folder / "short.yaml").write_text(yaml.safe_dump(short))
    return make.folder


def command(model: str, data: Path, out: Path, *more: str) -> list[str]:
    tasks = TASKS.replace("short.yaml", str(data / "short.yaml"))
    run = [sys.executable, "-m", "jumar.eval", "run", model, "--tasks", tasks, "--data", str(data), "-o", str(out)]
    return [*run, "--device", "cpu", "--batch", "2", *more]


def told(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=250, **options)


def written(out: Path) -> int:
    return sum(path.stat().st_size for path in out.glob("samples_*.jsonl"))


def files(out: Path) -> dict[str, bytes]:
    """All that a run leaves, results without what tells when they were made."""
    found = {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}
    results = json.loads(found.pop("results.json"))
    for key in ("date", "total_evaluation_time_seconds"):
        del results[key]
    return found | {"results": json.dumps(results).encode()}


def killed(words: list[str], out: Path, size: float) -> bool:
    """Whether it was still running when so many bytes of samples were there, and was killed."""
    running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 200
        while running.poll() is None and not (out.exists() and written(out) >= size):
            assert time.monotonic() < end
            time.sleep(0.001)
        alive = running.poll() is None
        os.kill(running.pid, signal.SIGKILL) if alive else None
        return alive
    finally:
        running.kill()
        running.wait()


def goes_on(model: str, data: Path, folder: Path, seed: int, kills: int) -> None:
    """Killed at moments that the seed draws, the first as soon as the directory is there."""
    assert told(command(model, data, folder / "whole")).returncode == 0
    drawn, total, out = random.Random(seed), written(folder / "whole"), folder / "out"
    moments = [0, *sorted(drawn.uniform(0, total) for _ in range(kills - 1))]
    assert sum(killed(command(model, data, out, "--resume"), out, moment) for moment in moments) > kills // 2
    done = told(command(model, data, out, "--resume"))
    assert done.returncode == 0, done.stderr
    assert files(out) == files(folder / "whole")


def test_killed_and_gone_on_with(oracle: tuple[str, type[Oracle]], data: Path, tmp_path: Path) -> None:
    goes_on(oracle[0], data, tmp_path, seed=0, kills=3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(1, 5))
def test_killed_again_and_again(seed: int, oracle: tuple[str, type[Oracle]], data: Path, tmp_path: Path) -> None:
    goes_on(oracle[0], data, tmp_path, seed, kills=10)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_beside_the_model(hf: Path, data: Path, tmp_path: Path) -> None:
    goes_on(str(hf), data, tmp_path, seed=9, kills=4)


def test_two_runs_do_not_write_to_one_directory(oracle: tuple[str, type[Oracle]], data: Path, tmp_path: Path) -> None:
    url, handler = oracle
    out = tmp_path / "out"
    first = subprocess.Popen(command(url, data, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not written(out) if out.exists() else True:
        assert first.poll() is None
        time.sleep(0.001)
    handler.gate.clear()  # the first one waits for its answers as long as others try
    for more in ((), ("--resume",), ("--force",)):
        second = told(command(url, data, out, *more))
        assert second.returncode == Exit.ENVIRONMENT, second.stderr
        assert f"{out} is in use by another run (process {first.pid} on " in second.stderr
    handler.gate.set()
    assert first.wait(200) == 0
    assert told(command(url, data, tmp_path / "whole")).returncode == 0
    assert files(out) == files(tmp_path / "whole")


def test_a_full_disk(oracle: tuple[str, type[Oracle]], data: Path, tmp_path: Path) -> None:
    """Files may grow to 9000 bytes, as on a disk that is full then."""
    out = tmp_path / "out"
    done = told(command(oracle[0], data, out), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)))
    assert done.returncode == Exit.ENVIRONMENT, done.stderr
    said, hint = done.stderr.splitlines()[-2:]
    assert re.fullmatch(rf"error: {re.escape(str(out))}/\S+\.jsonl: File too large", said), said
    assert hint == "hint: make room on that disk, or choose another, and run the same command again"
    assert "Traceback" not in done.stderr
    assert 0 < written(out) <= 9000 * 4
    assert told(command(oracle[0], data, out, "--resume")).returncode == 0
    assert told(command(oracle[0], data, tmp_path / "whole")).returncode == 0
    assert files(out) == files(tmp_path / "whole")


def test_a_directory_that_cannot_be_made(oracle: tuple[str, type[Oracle]], data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out, said in ((tmp_path / "file/out", "file is no directory"), (Path("/proc/1/jumar/out"), "")):
        done = told(command(oracle[0], data, out))
        assert done.returncode == Exit.ENVIRONMENT, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_what_a_run_left_that_had_no_manifest_yet(oracle: tuple[str, type[Oracle]], data: Path, tmp_path: Path) -> None:
    """Killed before the manifest was whole; a manifest that is torn is told, and --force begins again."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json.part").write_text('{"sch')
    assert told(command(oracle[0], data, out)).returncode == 0
    whole = files(out)
    (out / "manifest.json").write_bytes(whole["manifest.json"][:40])
    done = told(command(oracle[0], data, out, "--resume"))
    assert done.returncode == Exit.INPUT
    assert "manifest.json is not JSON" in done.stderr
    assert "hint: --force begins again" in done.stderr
    assert told(command(oracle[0], data, out, "--force")).returncode == 0
    assert files(out) == whole
    (out / "manifest.json").write_text("{")
    (out / "thesis.tex").write_text("years of work")
    assert told(command(oracle[0], data, out, "--force")).returncode == Exit.INPUT
