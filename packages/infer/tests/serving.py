"""A server of a tiny model, as a process, and what tests ask of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import httpx
import openai

KEY = "sk-rope"


@dataclass
class Running:
    process: subprocess.Popen[str]
    url: str
    hf: Path

    @cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=120)

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics").text
        return float(re.search(rf"^jumar_{name} (.*)$", text, re.MULTILINE)[1])

    def post(self, body: bytes | dict, path: str = "chat/completions", key: str = KEY) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(f"{self.url}/v1/{path}", content=content, headers={"authorization": f"Bearer {key}"}, timeout=120)

    def settles(self) -> None:
        """Nothing runs any more, and no page is held."""
        end = time.monotonic() + 60
        while self.metric("requests_running") or self.metric("cache_pages_in_use") or self.metric("requests_waiting"):
            assert time.monotonic() < end
            time.sleep(0.05)


def start(hf: Path, home: Path, *words: str, python: Sequence[str] = (sys.executable,)) -> Running:
    (home / "keys").write_text(f"sk-other\n{KEY}\n")
    command = [*python, "-m", "jumar.infer", "serve", str(hf), "--port", "0", "--device", "cpu", "--name", "tiny"]
    log = (home / "log").open("w")
    process = subprocess.Popen(
        [*command, "--api-key-file", str(home / "keys"), *words],
        stderr=log,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )
    end = time.monotonic() + 120
    while (found := re.search(r"at (http://\S+) ", (home / "log").read_text())) is None:
        assert process.poll() is None, (home / "log").read_text()
        assert time.monotonic() < end
        time.sleep(0.05)
    while True:
        try:
            assert httpx.get(f"{found[1]}/health").json() == {"status": "ok"}
            return Running(process, found[1], hf)
        except httpx.TransportError:
            assert time.monotonic() < end
            time.sleep(0.05)
