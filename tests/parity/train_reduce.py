"""The sum over TP ranks of a tensor that is not contiguous, forward and backward, with and without the mend.

torchrun --nproc-per-node 2 train_reduce.py REPORT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from jumar.device import open_device
from jumar.train_core.run.main import engine
from jumar.train_core.run.stop import Stop


def sums() -> dict[str, list[float]]:
    """Distinct elements of what every rank should have as 1 + 2 = 3: a sum, and the gradient of a copy."""
    from megatron.core.tensor_parallel import mappings

    mine = float(dist.get_rank() + 1)
    slices = torch.full((4, 6), mine).t()
    assert not slices.is_contiguous()
    total = mappings.reduce_from_tensor_model_parallel_region(slices)
    x = torch.ones(6, 4, requires_grad=True)
    mappings.copy_to_tensor_model_parallel_region(x).backward(torch.full((4, 6), mine).t())
    assert x.grad is not None
    return {"sum": total.unique().tolist(), "gradient": x.grad.unique().tolist()}


def main() -> None:
    from train_traps import TRAPS

    with Stop(), engine(open_device("cpu")) as (hardware, _):
        from megatron.core import parallel_state

        from jumar.train_core.run.groups import joined

        with joined(hardware):
            parallel_state.initialize_model_parallel(dist.get_world_size())
            report = {"mended": sums()}
            with TRAPS["stock_reduce"]():
                report["stock"] = sums()
            if dist.get_rank() == 0:
                Path(sys.argv[1]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
