"""Tiny Hugging Face models for the parity tests, each made once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import tiny_models


@pytest.fixture(scope="session")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name in tiny_models.MODELS -> its HF directory."""
    folder = tmp_path_factory.mktemp("hf")

    def get(name: str) -> Path:
        if not (folder / name).exists():
            tiny_models.make(name, folder / name)
        return folder / name

    return get
