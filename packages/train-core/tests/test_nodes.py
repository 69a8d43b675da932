"""A machine among several: what torchrun's variables say, and what the ranks of two launchers are told."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jumar.schema.errors import Exit, ToolError
from jumar.train_core.exit_file import Ended
from jumar.train_core.launch import Place, _outcome, place
from jumar.train_core.nodes import Nodes, nodes

HERE = Path(__file__).parent
SCRIPT = """
import os, sys
from pathlib import Path
from jumar.schema.errors import ToolError
from jumar.train_core.launch import launch
from jumar.train_core.nodes import nodes
try:
    sys.exit(launch(1, [sys.argv[1], sys.argv[2]], Path(sys.argv[2]), module="launch_worker", nodes=nodes(os.environ)))
except ToolError as fault:
    print(fault.message, file=sys.stderr)
    sys.exit(fault.code)
"""
TWO = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "here"}


def test_where_a_machine_is() -> None:
    assert nodes({}) == nodes({"PET_NPROC_PER_NODE": "4"}) == Nodes()
    assert nodes({"PET_NNODES": "1"}) == Nodes()
    assert nodes(TWO) == Nodes(count=2, rank=1)
    assert nodes({**TWO, "PET_NPROC_PER_NODE": "8"}) == Nodes(count=2, rank=1, nproc=8)
    assert nodes({**TWO, "PET_NPROC_PER_NODE": "auto"}).nproc is None


@pytest.mark.parametrize(
    "changes, message, hint",
    [
        ({"PET_NNODES": "1:4"}, "PET_NNODES='1:4' is not a number of 1 or more", "the same machines from beginning to end"),
        ({"PET_NNODES": "0"}, "PET_NNODES='0' is not a number of 1 or more", "export PET_NNODES=1"),
        ({"PET_NODE_RANK": ""}, "PET_NODE_RANK='' is not a number of 0 or more", "export PET_NODE_RANK=0"),
        ({"PET_NODE_RANK": "2"}, "PET_NODE_RANK is 2, PET_NNODES 2", "from 0 to 1"),
        ({"PET_MASTER_ADDR": ""}, "PET_MASTER_ADDR is not set", "export PET_MASTER_ADDR=HOST"),
    ],
)
def test_variables_that_do_not_say_it(changes: dict[str, str], message: str, hint: str) -> None:
    with pytest.raises(ToolError) as fault:
        nodes({**TWO, **changes})
    assert (fault.value.message, fault.value.code) == (message, Exit.USAGE)
    assert hint in (fault.value.hint or "")


def test_a_pod_is_no_rank() -> None:
    """Kubeflow's operator sets RANK and WORLD_SIZE too, which count pods; torchrun's ranks have LOCAL_RANK."""
    pod = {**TWO, "RANK": "1", "WORLD_SIZE": "16"}
    assert place(pod) is None
    assert place({**pod, "RANK": "9", "LOCAL_RANK": "1"}) == Place(9, 16, False)


def test_a_rank_killed_here_is_told_though_another_machine_spoke_first() -> None:
    killed = {"1": {"exitcode": -9, "pid": 1, "timestamp": 0}}
    lost = Ended(4, "another rank has ended", 0)
    with pytest.raises(ToolError, match="rank 1 was killed by signal 9"):
        _outcome(1, killed, lost, 0, None, range(1, 2))
    assert _outcome(1, {"0": {"exitcode": 4, "pid": 1, "timestamp": 0}}, lost, 0, None, range(1)) == 4


def both(run: Path, what: str) -> tuple[list[int], list[str]]:
    """Two launchers of a rank each, as if on two machines: their codes, and what they said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path, "PET_NNODES": "2", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, what, str(run)],
            env={**env, "PET_NODE_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in processes]
    return [process.returncode for process in processes], said


@pytest.mark.slow  # tests/e2e/test_launchers.py has a default test of two launchers
def test_two_launchers_are_one_run(tmp_path: Path) -> None:
    """Each has a rank; the last number says that there are two machines. What one of them says of the end, the other tells."""
    codes, said = both(tmp_path, "fail")
    assert [(tmp_path / f"rank{i}").read_text() for i in range(2)] == ["0 2 0 2", "1 2 0 2"]
    assert codes == [Exit.INPUT, Exit.INPUT]
    assert json.loads((tmp_path / "exit.json").read_text())["rank"] == 1
    assert [line.strip() for line in said] == ["rank 1: does not fit", ""]
