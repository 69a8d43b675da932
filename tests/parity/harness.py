"""The converter and the Megatron worker as their users start them: as commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from jumar.ckpt_convert import cli

WORKER = Path(__file__).with_name("megatron_worker.py")
DIST_WORKER = Path(__file__).with_name("dist_worker.py")
Layout = dict[str, int]  # tp, pp, vpp, ep, etp; and grouped, which is true or absent


def run(*command: object) -> None:
    """Run `python COMMAND...`, and fail with its last words if it fails."""
    env = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-8000:]


def jumar_convert(*words: object) -> None:
    """`jumar-convert WORDS`, in this process: a hundred of them would start as many interpreters."""
    with mock.patch.object(sys, "argv", ["jumar-convert", *map(str, words)]), pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code, words


def size_flags(layout: Layout) -> list[str]:
    return [word for name, size in layout.items() if name != "grouped" for word in (f"--{name}", str(size))]


def convert(hf_dir: Path, out: Path, layout: Layout) -> None:
    experts = "grouped" if layout.get("grouped") else "sequential"
    jumar_convert("to-megatron", hf_dir, out, *size_flags(layout), "--expert-layout", experts)


def launch(pairs: list[tuple[Path, Path]], layout: Layout, report: Path) -> list[dict]:
    """What megatron_worker.py reports of (Megatron directory, HF directory) pairs, one row each."""
    tp, pp, ep = (layout.get(name, 1) for name in ("tp", "pp", "ep"))
    processes = pp * max(tp, ep * layout.get("etp", tp))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    flags = [*size_flags(layout), *(["--grouped"] if layout.get("grouped") else [])]
    run(*torchrun, WORKER, report, *flags, *(path for pair in pairs for path in pair))
    return json.loads(report.read_text())


def run_for_text(*args: object) -> str:
    """What `jumar-convert ARGS` says to its user."""
    command = [sys.executable, "-m", "jumar.ckpt_convert", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "500"})
    assert done.returncode == 0, done.stderr[-8000:]
    return done.stdout + done.stderr


def launch_jobs(jobs: list[dict], layout: Layout, folder: Path) -> list[dict]:
    """What dist_worker.py reports of its jobs, one row each, run by as many processes as the layout has."""
    tp, pp, ep, dp = (layout.get(name, 1) for name in ("tp", "pp", "ep", "dp"))
    processes = pp * max(tp * dp, ep * layout.get("etp", tp))
    (folder / "jobs.json").write_text(json.dumps(jobs))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    flags = size_flags({name: size for name, size in layout.items() if name != "dp"})
    flags += ["--grouped"] if layout.get("grouped") else []
    run(*torchrun, DIST_WORKER, folder / "report.json", folder / "jobs.json", *flags)
    return json.loads((folder / "report.json").read_text())
