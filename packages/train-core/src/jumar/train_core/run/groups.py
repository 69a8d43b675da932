"""Process groups: torch.distributed, and megatron-core's parallel state for the ranks of a job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch.distributed.distributed_c10d import _world

from jumar.device import Device
from jumar.train_core.job import Job
from jumar.train_core.launch import PATIENCE_S
from jumar.train_core.run.ranks import torchrun_serves


@contextmanager
def joined(device: Device) -> Iterator[None]:
    """Joins the processes that torchrun started (its environment says which is which)."""
    torchrun_serves(os.environ)
    dist.init_process_group(device.backend, timeout=timedelta(seconds=PATIENCE_S))
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def model_parallel(job: Job, device: Device) -> Iterator[None]:
    """Cuts the joined processes into Megatron's groups, and seeds their generators."""
    layout = job.layout
    parallel_state.initialize_model_parallel(
        layout.tp,
        layout.pp,
        virtual_pipeline_model_parallel_size=layout.vpp if layout.vpp > 1 else None,
        context_parallel_size=layout.cp,
        expert_model_parallel_size=layout.ep,
        expert_tensor_parallel_size=layout.expert_tp,
        distributed_timeout_minutes=max(1, round(PATIENCE_S / 60)),
    )
    try:
        device.seed(job.recipe.train.seed)
        stage = parallel_state.get_pipeline_model_parallel_rank()
        model_parallel_cuda_manual_seed(job.recipe.train.seed + 100 * stage)  # dropout: other masks on other stages
        yield
    finally:
        parallel_state.destroy_model_parallel()
        for group in [group for group in _world.pg_map if group is not dist.group.WORLD]:
            dist.destroy_process_group(group)  # megatron-core only forgets them: their threads and connections stay


def is_reporting_rank() -> bool:
    """Whether this rank's losses count: those of the last stage, once for all tensor-parallel ranks."""
    return bool(
        parallel_state.is_pipeline_last_stage(ignore_virtual=True) and parallel_state.get_tensor_model_parallel_rank() == 0
    )
