"""Documents of a packed sample in state-space layers: no state goes from one to the next."""

from __future__ import annotations

import json
from pathlib import Path

import harness
import train_models


def test_a_packed_sample_gives_what_its_documents_give(tmp_path: Path) -> None:
    model, report = train_models.write_model("mamba2", tmp_path / "mamba2"), tmp_path / "report.json"
    worker = Path(__file__).with_name("mixer_worker.py")
    harness.run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 1, worker, model, report)
    apart = json.loads(report.read_text())
    assert apart["alone"] < 1e-6
    assert apart["whole"] > 1e-2, "the documents of this sample do not depend on one another"
