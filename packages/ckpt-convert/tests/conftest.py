"""Checkpoints that several files of tests use; and, at the end, how many layouts were converted, and how many refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import failing


def pytest_terminal_summary(terminalreporter: Any) -> None:
    counts: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                for name, n in report.user_properties:
                    counts[name] += n if name in ("converted", "refused") else 0
    if counts:
        terminalreporter.write_line(f"{counts['converted']} layouts converted, {counts['refused']} refused")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory to convert, or to copy and damage."""
    return failing.model(tmp_path_factory.mktemp("llama") / "hf")


@pytest.fixture(scope="session")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with 8 experts a layer."""
    return failing.model(tmp_path_factory.mktemp("moe") / "hf", "qwen3_moe")


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """`llama` as Megatron shards, TP 2 PP 2."""
    return failing.megatron(tmp_path_factory.mktemp("megatron") / "mcore", llama, tp=2, pp=2)
