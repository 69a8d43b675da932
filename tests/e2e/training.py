"""Runs of the real `jumar-train pretrain` on tiny models, and what is left of them."""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

import forked
from jumar.schema.indexed import IndexedWriter
from jumar.schema.registry import families

TRAIN = str(Path(sys.executable).with_name("jumar-train"))
SEQ_LEN = 32
Settings = Mapping[str, Any]
TWO: Settings = {"features.overlap_grad_reduce": True, "features.overlap_param_gather": True}
"""What two data-parallel ranks do at the same time as they compute."""
DONE, USAGE, INPUT, ENVIRONMENT, STOPPED, INTERRUPTED = 0, 2, 3, 4, 75, 130


def model_dir(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """A directory with the config.json of a tiny model, for random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**families()[family].tiny, **changes}))
    return folder


def token_file(prefix: Path, *, vocab: int = 97, documents: int = 200, seed: int = 0) -> Path:
    """Documents in which each token has three that may follow it, so that there is something to learn."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    follow = rng.integers(0, vocab, (vocab, 3))
    with IndexedWriter(prefix, np.uint16) as writer:
        for _ in range(documents):
            tokens = [int(rng.integers(0, vocab))]
            for choice in rng.integers(0, 3, int(rng.integers(20, 120))):
                tokens.append(int(follow[tokens[-1], choice]))
            writer.add(np.array(tokens))
    return prefix


@dataclass(frozen=True)
class Run:
    """A recipe and its directory."""

    folder: Path
    values: dict[str, Any]

    @property
    def path(self) -> Path:
        return Path(self.values["save"]["path"])

    @property
    def recipe(self) -> Path:
        return self.folder / f"{self.path.name}.yaml"

    def write(self) -> Run:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.recipe.write_text(yaml.safe_dump(self.values))
        return self

    def having(self, settings: Settings, name: str | None = None) -> Run:
        """The same with other settings, in a directory of its own if `name` is given."""
        values = copy.deepcopy(self.values)
        for key, value in settings.items():
            section, field = key.split(".", 1)
            while "." in field:
                part, field = field.split(".", 1)
                values.setdefault(section, {}).setdefault(part, {})
                values[section][part][field] = value
                break
            else:
                values.setdefault(section, {})[field] = value
        if name is not None:
            values["save"]["path"] = str(self.folder / name)
        return Run(self.folder, values).write()

    def copied(self, name: str, *, until: int, settings: Settings | None = None) -> Run:
        """A copy as if the run had been killed after the checkpoint of step `until`."""
        other = self.having(settings or {}, name)
        shutil.copytree(self.path, other.path)
        for path in other.path.glob("iter_*"):
            if int(path.name[5:]) > until:
                shutil.rmtree(path)
        (other.path / "latest_checkpointed_iteration.txt").write_text(str(until))
        return other

    def metrics(self, *keys: str) -> dict[int, tuple[Any, ...]]:
        """Step -> these numbers of its line; of lines that have the first of them."""
        lines = [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: tuple(line.get(key) for key in keys) for line in lines if keys[0] in line}

    def learned(self) -> dict[int, tuple[Any, ...]]:
        return self.metrics("loss", "grad_norm", "lr", "tokens", "skipped")

    def steps(self) -> list[int]:
        """Of published checkpoints."""
        return sorted(int(path.name[5:]) for path in self.path.glob("iter_???????"))

    def ended(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / "exit.json").read_text())
        return found

    def left_over(self) -> list[str]:
        """What must not be there after a run has ended."""
        return sorted(path.name for path in self.path.iterdir() if path.suffix in (".partial", ".removing", ".new", ".tmp"))


def make_run(folder: Path, settings: Settings | None = None, *, family: str = "llama", model: Settings | None = None) -> Run:
    """Six steps of a tiny model in float32, a checkpoint every third."""
    values: dict[str, Any] = {
        "model": {"path": str(model_dir(folder / family, family, **(model or {})))},
        "data": {"train": str(token_file(folder / "data/a_text_document")), "seq_len": SEQ_LEN, "split": [80, 20, 0]},
        "train": {"steps": 6, "global_batch_size": 4, "precision": "fp32"},
        "optim": {"lr": 0.003},
        "schedule": {"warmup_steps": 2},
        "save": {"path": str(folder / "run"), "every": 3},
    }
    return Run(folder, values).having(settings or {})


@dataclass(frozen=True)
class Ended:
    code: int
    err: str
    seconds: float


def environment(more: Settings | None = None) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **(more or {})}


def command(run: Run, nproc: int | None = None, sets: Sequence[str] = ()) -> list[str]:
    many = [] if nproc is None else ["--nproc", str(nproc)]
    return [TRAIN, "pretrain", str(run.recipe), "--device", "cpu", *many, *(word for each in sets for word in ("--set", each))]


def torchrun(run: Run, nproc: int) -> list[str]:
    mine = ["-m", "jumar.train_core", "pretrain", str(run.recipe), "--device", "cpu"]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc), *mine]


def train(run: Run, nproc: int | None = None, *sets: str, env: Settings | None = None, timeout: float = 600) -> Ended:
    """Runs it to its end, whatever that is. With `nproc` it is the real command."""
    if nproc is None:
        return forks(run, 1, *sets, env=env, timeout=timeout)
    begun = time.monotonic()
    done = subprocess.run(
        command(run, nproc, sets), env=environment(env), capture_output=True, text=True, check=False, timeout=timeout
    )
    return Ended(done.returncode, done.stderr, time.monotonic() - begun)


def forks(run: Run, ranks: int, *sets: str, env: Settings | None = None, timeout: float = 600) -> Ended:
    """The same by forks, one a rank and without a launcher; its code is the first that is not 0."""
    begun, out = time.monotonic(), run.folder / f"{run.path.name}.forked"
    words = command(run, None, sets)[1:]
    if ranks == 1:
        codes = forked.end([forked.start(words, out, environment(env))], timeout)
    else:
        codes = forked.end(forked.start_ranks(ranks, words, out, environment(env)), timeout)
    said = "".join(forked.printed(out, rank).read_text() for rank in range(ranks))
    return Ended(next(filter(None, codes), DONE), said, time.monotonic() - begun)


def finish(run: Run, nproc: int | None = None, *sets: str, env: Settings | None = None) -> Run:
    """Runs it to its end, all steps done."""
    ended = forks(run, nproc or 1, *sets, env=env)
    assert ended.code == DONE, ended.err
    assert run.ended()["code"] == DONE
    assert run.left_over() == []
    return run


class Going:
    """A run that goes on while a test disturbs it."""

    def __init__(self, run: Run, line: Sequence[str], env: Settings | None = None) -> None:
        self.run = run
        self.errors = run.folder / f"{run.path.name}.err"
        with self.errors.open("w") as out:
            self.process = subprocess.Popen(line, env=environment(env), stderr=out, stdout=out, start_new_session=True)

    def __enter__(self) -> Going:
        return self

    def __exit__(self, *_: object) -> None:
        for each in [*self.everyone(), self.process]:
            each.kill()
        self.process.wait()

    @property
    def err(self) -> str:
        return self.errors.read_text()

    def everyone(self) -> list[psutil.Process]:
        """All processes of this run that are alive, whoever their parents are now."""
        recipe = str(self.run.recipe)
        alive = (each for each in psutil.process_iter(["cmdline", "status"]) if each.info["status"] != psutil.STATUS_ZOMBIE)
        return [each for each in alive if recipe in (each.info["cmdline"] or ())]

    def ranks(self) -> dict[int, psutil.Process]:
        """The processes that train: those that are no child of one. Rank -> process."""
        found = {}
        for process in self.everyone():
            try:
                rank = process.environ().get("RANK")
            except (psutil.Error, OSError):
                continue
            if rank is not None and process.parent() is not None and process.parent().environ().get("RANK") is None:
                found[int(rank)] = process
        return found

    def until(self, there: Callable[[], Any], seconds: float = 300) -> Going:
        """Waits for something while the run goes on."""
        end = time.monotonic() + seconds
        while not there():
            assert self.process.poll() is None, f"it ended before: {self.process.returncode}\n{self.err}"
            assert time.monotonic() < end, f"it did not happen\n{self.err}"
            time.sleep(0.005)
        return self

    def at_step(self, step: int) -> Going:
        return self.until(lambda: f"step {step}/" in self.err)

    def send(self, number: int) -> Going:
        self.process.send_signal(number)
        return self

    def ends(self, within: float) -> Ended:
        """How it ends; within so many seconds, and nothing of it goes on."""
        begun = time.monotonic()
        try:
            code = self.process.wait(timeout=within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there after {within} s\n{self.err}") from None
        seconds = time.monotonic() - begun
        while left := self.everyone():
            assert time.monotonic() - begun < within, f"processes that go on: {left}"
            time.sleep(0.05)
        return Ended(code, self.err, seconds)


def going(run: Run, nproc: int | None = None, *sets: str, env: Settings | None = None) -> Going:
    return Going(run, command(run, nproc, sets), env)


def tensors(checkpoint: Path) -> dict[str, Any]:
    """Every tensor and object of a torch_dist directory: name -> dtype, shape, bytes."""
    import torch
    from torch import Tensor
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    state: dict[str, Any] = {}
    _load_state_dict(state, storage_reader=FileSystemReader(checkpoint), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    found: dict[str, Any] = {}
    for name, value in _flat(state):
        if isinstance(value, Tensor):
            found[name] = (value.dtype, value.shape, value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, io.BytesIO):
            found[name] = value.getvalue()
    return found


def _flat(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(state, dict):
        for key, value in state.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, state


def weights(checkpoint: Path) -> dict[str, Any]:
    return {name: value for name, value in tensors(checkpoint).items() if not name.startswith(("optimizer.", "rng_state"))}


def close(one: dict[int, tuple[Any, ...]], other: dict[int, tuple[Any, ...]], tolerance: float = 1e-5) -> None:
    """The same numbers, but for rounding."""
    assert one.keys() == other.keys()
    for step in one:
        for a, b in zip(one[step], other[step], strict=True):
            assert abs(a - b) <= tolerance * max(1, abs(a)), (step, one[step], other[step])


def kill(process: psutil.Process, number: int = signal.SIGKILL) -> None:
    process.send_signal(number)
