"""Two torchruns that stand for two machines: each has a working directory, and below it a disk of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked
from forked import free_port
from training import DONE, Ended, Going, Run, Settings, environment, tensors

PER_NODE: Settings = {"save.path": "run", "save.storage": "per_node", "data.cache": "cache"}


def torchruns(run: Run, nproc: int, task: str) -> list[list[str]]:
    """The command of each of two nodes."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", str(nproc)]
    start += ["--master-addr", "127.0.0.1", "--master-port", free_port()]
    return [[*start, "--node-rank", str(rank), *rank_line(run, task)] for rank in range(2)]


def rank_line(run: Run, task: str) -> list[str]:
    return ["-m", "jumar.train_core", task, str(run.recipe), "--device", "cpu"]


def variables(node: int, port: str) -> dict[str, str]:
    """What torchrun sets for the only rank of a node. Tests that need not the agents themselves are sooner done without."""
    mine = {"RANK": node, "GROUP_RANK": node, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1, "GROUP_WORLD_SIZE": 2}
    return {name: str(value) for name, value in mine.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


@dataclass(frozen=True)
class Cluster:
    """Where the nodes are. The first is node 0 of the next run."""

    folders: tuple[Path, ...]
    agents: bool = True
    task: str = "pretrain"

    @classmethod
    def made(cls, folder: Path, *, agents: bool = True, task: str = "pretrain") -> Cluster:
        """agents: under torchrun; else its ranks alone, one a node."""
        folders = folder / "one", folder / "two"
        for each in folders:
            each.mkdir()
        return cls(folders, agents, task)

    @property
    def swapped(self) -> Cluster:
        return Cluster(self.folders[::-1], self.agents, self.task)

    @property
    def paths(self) -> list[Path]:
        """The run's directory on each node."""
        return [folder / "run" for folder in self.folders]

    def copied(self, name: str, *, until: int) -> Cluster:
        """A copy as if the run had been killed after the checkpoint of step `until`."""
        other = Cluster(tuple(folder.parent / f"{name} {folder.name}" for folder in self.folders), self.agents, self.task)
        for mine, theirs in zip(self.folders, other.folders, strict=True):
            shutil.copytree(mine, theirs)
            for path in (theirs / "run").glob("*iter_???????"):
                if int(path.name.rpartition("_")[2]) > until:
                    shutil.rmtree(path)
            (theirs / "run/latest_checkpointed_iteration.txt").write_text(str(until))
        return other

    def steps(self) -> list[list[int]]:
        return [sorted(int(path.name[5:]) for path in root.glob("iter_???????")) for root in self.paths]

    def trackers(self) -> list[str]:
        return [(root / "latest_checkpointed_iteration.txt").read_text() for root in self.paths]

    def left_over(self) -> list[str]:
        endings = (".partial", ".removing", ".gathered", ".new", ".tmp", ".mark")
        return [path.name for root in self.paths for path in root.iterdir() if path.suffix in endings]

    def start(
        self, run: Run, nproc: int = 1, limits: Sequence[Any] = (None, None), env: Settings | None = None
    ) -> list[subprocess.Popen[bytes]]:
        """limits: what is called in each node's process before it begins; env: more variables."""
        run.write()  # recipes of one name share a file
        started, port = [], free_port()
        lines = torchruns(run, nproc, self.task) if self.agents else [[sys.executable, *rank_line(run, self.task)]] * 2
        for node, (folder, line, limit) in enumerate(zip(self.folders, lines, limits, strict=True)):
            mine = environment({**(env or {}), **({} if self.agents else variables(node, port))})
            with (folder / "err").open("w") as out:
                more: dict[str, Any] = {"stdout": out, "stderr": out, "cwd": folder, "preexec_fn": limit}
                started.append(subprocess.Popen(line, env=mine, start_new_session=True, **more))
        return started

    def err(self) -> list[str]:
        return [(folder / "err").read_text() for folder in self.folders]

    def train(self, run: Run, nproc: int = 1, *, within: float = 600, limits: Sequence[Any] = (None, None)) -> list[Ended]:
        """Runs it to its end on both nodes, whatever that is. Under torchrun the codes are 0 and 1."""
        return self.end(run, self.start(run, nproc, limits), within)

    def end(self, run: Run, started: Sequence[subprocess.Popen[bytes]], within: float) -> list[Ended]:
        begun = time.monotonic()
        try:
            codes = [each.wait(timeout=max(1, within - time.monotonic() + begun)) for each in started]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there after {within} s\n" + "\n---\n".join(self.err())) from None
        finally:
            watch = Going.__new__(Going)
            watch.run = run
            for left in watch.everyone():
                left.kill()
        seconds = time.monotonic() - begun
        return [Ended(code, err, seconds) for code, err in zip(codes, self.err(), strict=True)]

    def finish(self, run: Run, nproc: int = 1) -> Cluster:
        ended = self.train(run, nproc) if self.agents else self._forks(run)
        assert [each.code for each in ended] == [DONE, DONE], "\n---\n".join(each.err for each in ended)
        assert [json.loads((root / "exit.json").read_text())["code"] for root in self.paths] == [DONE, DONE]
        assert self.left_over() == []
        return self

    def _forks(self, run: Run) -> list[Ended]:
        """The same without agents and without imports of its own."""
        run.write()
        begun, port, words = time.monotonic(), free_port(), [self.task, str(run.recipe), "--device", "cpu"]
        started = [
            forked.start(words, folder / "err", environment(variables(node, port)), cwd=folder)
            for node, folder in enumerate(self.folders)
        ]
        codes = forked.end(started, 600)
        return [Ended(code, err, time.monotonic() - begun) for code, err in zip(codes, self.err(), strict=True)]

    def merged(self, step: int) -> Path:
        """The files of both nodes in one directory."""
        home = self.folders[0].parent / f"merged {self.folders[0].name} {step}"
        for root in self.paths:
            shutil.copytree(root / f"iter_{step:07d}", home, dirs_exist_ok=True)
        return home

    def tensors(self, step: int) -> dict[str, Any]:
        return tensors(self.merged(step))

    def learned(self) -> dict[int, tuple[Any, ...]]:
        """Of the node that holds rank 0."""
        here = Run(self.folders[0], {"save": {"path": str(self.paths[0])}})
        return here.learned()
