from __future__ import annotations

from pathlib import Path

import pytest

import infer_models


@pytest.fixture(scope="session")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer."""
    directory = tmp_path_factory.mktemp("llama") / "hf"
    infer_models.llama_with_tokenizer(directory)
    return directory
