"""What a script says of a run: its task, its ranks, its steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jumar.chain.jobs import Job
from jumar.chain.verdicts import Unreadable, whole

TUNING = ("sft",)
RAW = (".jsonl", ".ndjson", ".json", ".txt", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".gz", ".zst")
"""Files that jumar-data reads."""
NOWHERE = ("None", "none", "null")
"""What some scripts have for no path."""
MACHINE = 8
"""Devices of a machine, where a script does not say."""


@dataclass(frozen=True, slots=True)
class Facts:
    """A job's flags, asked by name. Numbers that a flag does not say readably count as not said: its own verdict tells of it."""

    job: Job

    def has(self, *names: str) -> bool:
        return any(self.job.last(name) is not None for name in names)

    def number(self, name: str, default: int | None = None) -> int | None:
        """A whole number that a flag says; None (or the default) where it does not, or not so that it could be read."""
        flag = self.job.last(name)
        try:
            return default if flag is None else whole(flag)
        except Unreadable:
            return default

    def said(self, name: str) -> str | None:
        flag = self.job.last(name)
        return None if flag is None or not flag.values else flag.text

    @property
    def task(self) -> str:
        stage = self.said("--stage")
        tunes = (
            stage in TUNING or self.has("--is-instruction-dataset") or self.job.program.rpartition("/")[2].startswith("posttrain")
        )
        return "sft" if tunes else "pretrain"

    @property
    def experts(self) -> bool:
        return self.has("--num-experts")

    @property
    def tp(self) -> int:
        return self.number("--tensor-model-parallel-size", 1) or 1

    @property
    def pp(self) -> int:
        return self.number("--pipeline-model-parallel-size", 1) or 1

    @property
    def cp(self) -> int:
        return self.number("--context-parallel-size", 1) or 1

    @property
    def etp(self) -> int:
        if self.has("--moe-tp-extend-ep"):
            return 1
        return self.number("--expert-tensor-parallel-size", self.tp if self.experts else 1) or 1

    @property
    def unit(self) -> int:
        """Ranks of one copy of the model; a run has a multiple of them."""
        experts = self.etp * (self.number("--expert-model-parallel-size", 1) or 1) * self.pp if self.experts else 1
        return math.lcm(self.tp * self.pp * self.cp, experts)

    @property
    def said_ranks(self) -> int | None:
        """Ranks of one machine, as the launcher has them; None where it does not say."""
        names = ("--nproc_per_node", "--local_worker_num", "--num_processes")
        return next((n for name in names if (n := self.number(name))), None)

    @property
    def said_nodes(self) -> int:
        workers = self.number("--worker_num")
        return self.number("--nnodes") or (-(-workers // (self.said_ranks or 1)) if workers else 1)

    @property
    def nproc(self) -> int:
        """Ranks of one machine: the launcher's, or where it says none as many as one copy of the model needs, at most 8."""
        if self.said_ranks is not None:
            return self.said_ranks
        return math.gcd(self.unit, MACHINE) if self.unit > MACHINE else self.unit

    @property
    def nodes(self) -> int:
        """Machines: the launcher's, or where they do not hold a copy of the model as many as do."""
        ranks = self.nproc * self.said_nodes
        return self.unit // self.nproc if ranks % self.unit and not self.unit % ranks else self.said_nodes

    @property
    def dp(self) -> int:
        return max(1, self.nproc * self.nodes // (self.tp * self.pp * self.cp))

    @property
    def slots(self) -> int | None:
        """Layers, empty slots among them, as both projects count --num-layers where there are such."""
        return self.number("--num-layers")

    @property
    def vpp(self) -> int:
        if (count := self.number("--num-virtual-stages-per-pipeline-rank")) is not None:
            return count
        each, slots = self.number("--num-layers-per-virtual-pipeline-stage"), self.slots
        if self.pp == 1 or not each or not slots:
            return 1
        return max(1, slots // (self.pp * each))

    @property
    def layers_of_chunks(self) -> list[int]:
        """Layers of each model chunk; nothing where the script does not say how many there are."""
        uneven, slots = numbers_of(self.said("--num-layer-list")), self.slots
        if uneven and self.pp > 1:
            return uneven
        chunks = self.pp * self.vpp
        if not slots or slots < chunks:
            return []
        each = slots // chunks
        empty = [slot // each for slot in numbers_of(self.said("--noop-layers"))] if self.pp > 1 else []
        return [each - empty.count(chunk) for chunk in range(chunks)]

    @property
    def steps(self) -> int | None:
        return self.number("--train-iters") or self.in_steps(self.number("--train-samples"))

    @property
    def batch(self) -> int:
        """Samples of a step: those of a micro batch on each replica, where none are said, as Megatron has it."""
        return self.number("--global-batch-size") or (self.number("--micro-batch-size", 1) or 1) * self.dp

    def in_steps(self, samples: int | None) -> int | None:
        return None if samples is None else -(-samples // self.batch)

    @property
    def loads(self) -> bool:
        """Whether weights come from elsewhere than the run's own directory."""
        load = self.said("--load")
        return load is not None and load not in NOWHERE and load != self.said("--save")

    @property
    def validates(self) -> bool:
        if self.number("--eval-iters", 100) == 0:
            return False
        if self.has("--valid-data-path"):
            return True
        shares = shares_of(self.said("--split") or "969,30,1")
        return len(shares) > 1 and shares[1] > 0


def shares_of(said: str) -> list[float]:
    """The numbers of --split, without zeros at its end; nothing where it is no such list."""
    try:
        shares = [float(part) for part in said.strip("'\"").replace("/", ",").split(",") if part.strip()]
    except ValueError:
        return []
    while shares and not shares[-1]:
        shares.pop()
    return shares


def numbers_of(said: str | None) -> list[int]:
    """ "5,5,6" -> [5, 5, 6]; nothing where it is no such list."""
    parts = [part.strip() for part in (said or "").strip("'\"").split(",") if part.strip()]
    return [int(part) for part in parts] if all(part.isdecimal() for part in parts) else []
