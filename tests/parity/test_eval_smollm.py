"""jumar-eval on a real model, SmolLM2-135M-Instruct as `make demo` makes it: scores of its shards are those of its directory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from eval_files import Maker
from jumar.ckpt_convert import open_checkpoint, plan_megatron, run_plan
from jumar.schema.parallel import ParallelLayout

DEMO = Path(__file__).resolve().parents[2] / "runs/demo/hf"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not DEMO.exists(), reason="the demo's model is not here (make demo)"),
]


def test_the_same_bytes_from_shards_of_tp3_pp2(tmp_path: Path) -> None:
    """Samples and results, but for paths and times."""
    make = Maker(tmp_path / "data")
    make.piqa(count=4)
    make.mmlu(count=3)
    make.gsm8k(count=2)
    run_plan(plan_megatron(open_checkpoint(DEMO), ParallelLayout(tp=3, pp=2)), tmp_path / "mcore")
    found = []
    for model in (DEMO, tmp_path / "mcore"):
        out = tmp_path / f"out-{model.name}"
        words = ["run", model, "--tasks", "piqa,mmlu,gsm8k", "--data", make.folder, "--device", "cpu", "-o", out]
        subprocess.run([sys.executable, "-m", "jumar.eval", *map(str, words)], check=True, capture_output=True)
        results = json.loads((out / "results.json").read_text())
        for key in ("date", "total_evaluation_time_seconds", "model_name"):
            del results[key]
        for key in ("model", "model_args", "batch_size"):  # of the free memory, which others use too
            del results["config"][key]
        samples = {path.name: path.read_bytes() for path in out.glob("samples_*")}
        found.append((json.dumps(results).replace(str(model), "MODEL"), samples))
    assert len(found[0][1]) == 3
    assert found[0] == found[1]
