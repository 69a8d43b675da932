"""One rank of benchmarks/train.py --traffic: counts what it sends, and what it keeps for the backward pass, in one step.

torchrun --nproc-per-node N _train_traffic.py OUT.json ROWS.json       ROWS: [{"name", "recipe"}]; every row uses all N ranks
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

# Bytes that a rank of n sends for a tensor of its own side, where every algorithm is the best one (rings).
SENT = {
    "allreduce_": lambda size, n: 2 * size * (n - 1) / n,
    "allreduce_coalesced_": lambda size, n: 2 * size * (n - 1) / n,
    "_allgather_base_": lambda size, n: size * (n - 1),
    "allgather_into_tensor_coalesced_": lambda size, n: size * (n - 1),
    "allgather_": lambda size, n: size * (n - 1),
    "_reduce_scatter_base_": lambda size, n: size * (n - 1) / n,
    "reduce_scatter_tensor_coalesced_": lambda size, n: size * (n - 1) / n,
    "reduce_scatter_": lambda size, n: size * (n - 1) / n,
    "alltoall_base_": lambda size, n: size * (n - 1) / n,
    "send": lambda size, n: size,
}
INPUT = {"_allgather_base_": 1, "_reduce_scatter_base_": 1, "alltoall_base_": 1, "allgather_into_tensor_coalesced_": 1}
INPUT |= {"reduce_scatter_tensor_coalesced_": 1, "allgather_": 1, "reduce_scatter_": 1}


def bytes_of(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(map(bytes_of, value)) if isinstance(value, (list, tuple)) else 0


class Sent(TorchDispatchMode):
    """Bytes of collectives that this thread starts, by kind; those that everyone makes of every step alike are small."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name.startswith("c10d::") and (kind := name.removeprefix("c10d::")) in SENT:
            groups = [
                dist.ProcessGroup.unbox(arg) for arg in args if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg)
            ]
            if groups and groups[0].size() > 1:
                self.kinds[kind] += SENT[kind](bytes_of(args[INPUT.get(kind, 0)]), groups[0].size())
        return func(*args, **(kwargs or {}))


class Kept:
    """Bytes of tensors that autograd keeps: the most at once, each storage counted once, parameters left out."""

    def __init__(self, parameters: Any) -> None:
        self.params = {p.untyped_storage().data_ptr() for p in parameters}
        self.live: Counter[int] = Counter()
        self.sizes: dict[int, int] = {}
        self.most = 0

    def pack(self, tensor: torch.Tensor) -> Any:
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place in self.params or not place:
            return tensor
        self.live[place] += 1
        self.sizes[place] = storage.nbytes()
        self.most = max(self.most, sum(self.sizes[p] for p, n in self.live.items() if n))
        return Ticket(self, tensor, place)

    def unpack(self, packed: Any) -> torch.Tensor:
        return packed.tensor if isinstance(packed, Ticket) else packed


class Ticket:
    """A kept tensor; autograd drops it when it is done with it."""

    def __init__(self, book: Kept, tensor: torch.Tensor, place: int) -> None:
        self.book, self.tensor, self.place = book, tensor, place

    def __del__(self) -> None:
        self.book.live[self.place] -= 1


def measure(row: dict) -> dict:
    from megatron.core import parallel_state

    from jumar.device import open_device
    from jumar.schema.recipe import validate
    from jumar.train_core.activations import activation_bytes
    from jumar.train_core.job import resolve
    from jumar.train_core.model.build import build
    from jumar.train_core.parallel.context import local_positions
    from jumar.train_core.recipe import Recipe
    from jumar.train_core.run.checkpoint import Progress
    from jumar.train_core.run.groups import model_parallel
    from jumar.train_core.run.loop import Loop
    from jumar.train_core.run.optimizer import wrap
    from jumar.train_core.run.stop import Stop
    from jumar.train_core.run.weights import initialise

    hardware = open_device("cpu")
    job = resolve(validate(Recipe, row["recipe"], row["name"]), world=dist.get_world_size(), device="cpu")
    with model_parallel(job, hardware):
        config, chunks = build(job, hardware.ops(), torch.device("cpu"))
        initialise(job, chunks)
        loop = Loop(job, wrap(job, config, chunks, hardware.ops()), hardware, torch.device("cpu"), Stop())
        length, size = job.recipe.data.seq_len, job.recipe.train.micro_batch_size
        cp = parallel_state.get_context_parallel_group()
        here = local_positions(length, cp.rank(), cp.size())
        rank = parallel_state.get_data_parallel_rank()

        def batches() -> Any:
            for number in range(job.micro_batches):
                seed = torch.Generator().manual_seed(1000 * rank + number)
                rows = torch.randint(job.spec.vocab_size, (size, length + 1), generator=seed)
                part = {"tokens": rows[:, :-1][:, here], "labels": rows[:, 1:][:, here]}
                yield part | {"loss_mask": torch.ones(size, len(here)), "position_ids": here.expand(size, -1)}

        loop.step(Progress(), batches())
        kept = Kept(p for chunk in chunks for p in chunk.parameters())
        with Sent() as sent, torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
            loop.step(Progress(1), batches())
        parameters = sum(p.numel() for chunk in chunks for p in chunk.parameters())
        stage = parallel_state.get_pipeline_model_parallel_rank()
        formula = activation_bytes(job, stage)
        if stage == job.layout.pp - 1:
            formula += 4 * size * len(here) * job.padded_vocab // job.layout.tp  # the loss keeps the probabilities
        return {"sent": dict(sent.kinds), "kept": kept.most, "kept_formula": formula, "parameters": parameters}


def main() -> None:
    from jumar.device import open_device
    from jumar.train_core.run.main import engine

    out, rows = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    torch.set_num_threads(1)
    with engine(open_device("cpu")):
        dist.init_process_group("gloo")
        found = [measure(row) for row in rows]
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, found)
        if dist.get_rank() == 0:
            out.write_text(json.dumps(everyone))
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
