from __future__ import annotations

from pathlib import Path

import pytest

import mindspeed_files
from eval_files import Maker


@pytest.fixture(scope="session")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that reads bytes; its scores are noise."""
    import infer_models  # here: what an endpoint's scores take is tested without torch too

    directory = tmp_path_factory.mktemp("llama") / "hf"
    infer_models.llama_with_tokenizer(directory, max_position_embeddings=1600)
    return directory


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    """Writes benchmarks below tmp_path / "data"."""
    return Maker(tmp_path / "data")


@pytest.fixture
def mindspeed(tmp_path: Path) -> Path:
    """A directory of benchmarks as MindSpeed-LLM reads them."""
    mindspeed_files.write_all(tmp_path / "data")
    return tmp_path / "data"
