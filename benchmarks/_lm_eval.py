"""lm-eval's own tasks on local files, its Hugging Face model on one thread: what scores are compared with."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def tasks_folder() -> Path:
    """Where lm-eval's task files are."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "tasks"


def write_task(folder: Path, name: str, include: str, files: Mapping[str, Path], **changes: Any) -> None:
    """A task `peer_NAME` that is lm-eval's own (`include`, below its task folder) on local JSON lines: split -> file."""
    config = {
        "include": str(tasks_folder() / include),
        "task": f"peer_{name}",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(path) for split, path in files.items()}},
        **changes,
    }
    (folder / f"peer_{name}.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))


def evaluate(
    path: Path, folder: Path, names: list[str], *, shots: int | None, batch: int = 4, model: Any = None, **words: Any
) -> dict[str, Any]:
    """lm-eval's results with its samples, of the tasks that `write_task` wrote. model: of lm-eval, already open."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    peer = model or HFLM(pretrained=str(path), device="cpu", dtype="float32", batch_size=batch)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found: dict[str, Any] = lm_eval.simple_evaluate(
        model=peer, tasks=[f"peer_{n}" for n in names], num_fewshot=shots, task_manager=manager, bootstrap_iters=100, **words
    )
    return found
